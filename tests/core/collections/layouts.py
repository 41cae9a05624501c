"""Small collections in exactly the published layouts, as objects by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core import record
from core.images import encode_image
from core.masks import encode_mask
from tests.pictures import Pixels, box_mask, gradient, with_object

BOX = (20, 14, 34, 28)
SIZE = (64, 48)


def clean(seed: int = 0) -> bytes:
    """The photo without its object, 64 x 48."""
    return encode_image(gradient(*SIZE, seed))


def photo(seed: int = 0, box: tuple[int, int, int, int] = BOX) -> bytes:
    """The photo with an object in the box."""
    return encode_image(with_object(gradient(*SIZE, seed), box_mask(*SIZE, box)))


def mask(box: tuple[int, int, int, int] = BOX) -> bytes:
    return encode_mask(box_mask(*SIZE, box))


def triplet(seed: int = 0) -> tuple[bytes, bytes, bytes]:
    """Source, mask and target."""
    return photo(seed), mask(), clean(seed)


def as_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def rgba(seed: int, alpha: Pixels) -> bytes:
    return encode_image(gradient(*SIZE, seed), alpha)


def parquet(rows: list[dict[str, Any]], columns: tuple[str, ...] = ()) -> bytes:
    """OBER's columns, in row groups of two."""
    kinds = dict.fromkeys(("input", "gt", "object_mask", "object_effect_mask"), record.IMAGE)
    kinds |= {"subset": pa.string(), "split": pa.string()}
    schema = pa.schema([pa.field(name, kind) for name, kind in kinds.items() if not columns or name in columns])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, row_group_size=2)
    return bytes(sink.getvalue().to_pybytes())


def ober_row(name: str, seed: int, **values: Any) -> dict[str, Any]:
    effect = np.maximum(box_mask(*SIZE, BOX), box_mask(*SIZE, (20, 28, 50, 34)))
    row = {
        "input": {"bytes": photo(seed), "path": f"{name}.png"},
        "gt": {"bytes": clean(seed), "path": f"{name}.png"},
        "object_mask": {"bytes": mask(), "path": f"{name}.png"},
        "object_effect_mask": {"bytes": encode_mask(effect), "path": f"{name}.png"},
        "subset": "captured",
        "split": "train",
    }
    return {**row, **values}


def outline(box: tuple[int, int, int, int]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0 + 0.5, y0 + 0.5, x1 - 0.5, y0 + 0.5, x1 - 0.5, y1 - 0.5, x0 + 0.5, y1 - 0.5]


def coco(annotations: list[object], images: list[object] | None = None) -> bytes:
    default = [{"id": 7, "file_name": "000007.png", "width": SIZE[0], "height": SIZE[1], "license": 1}]
    return as_json(
        {
            "info": {"year": 2017},
            "licenses": [{"id": 1, "name": "x"}],
            "images": default if images is None else images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "cat"}, {"id": 18, "name": "Hund é"}],
        }
    )


def annotation(number: int, segmentation: object, **more: object) -> dict[str, object]:
    return {"id": number, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 1.0, "segmentation": segmentation, **more}
