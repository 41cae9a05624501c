"""A small dataset of triplets for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from core import storage
from core.images import encode_image
from core.ledger import write_shard
from core.masks import encode_mask
from core.record import RECORD_SCHEMA, empty_record, image_value
from training.triplets import TrainingPair


def triplet(number: int, *, width: int = 96, height: int = 96, **values: Any) -> dict[str, Any]:
    """A record: a soft picture, and a bright disc with a dark smear beside it as object and shadow; all from the number."""
    rng = np.random.default_rng(number)
    clean = cv2.resize(rng.integers(60, 200, (6, 6, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    centre = (int(rng.integers(width // 3, 2 * width // 3)), int(rng.integers(height // 3, 2 * height // 3)))
    radius = max(4, min(width, height) // 6)
    mask, effect = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    cv2.circle(mask, centre, radius, 255, -1)
    cv2.ellipse(effect, (centre[0] + radius, centre[1] + radius // 2), (radius, radius // 2), 0, 0, 360, 255, -1)
    source = clean.copy()
    source[effect > 0] = source[effect > 0] // 2
    source[mask > 0] = rng.integers(0, 256, 3)
    stored = {
        "id": f"item-{number:04d}",
        "source": image_value(encode_image(source)),
        "mask": image_value(encode_mask(mask)),
        "target": image_value(encode_image(clean)),
        "effect_mask": image_value(encode_mask(mask | effect)),
        "origin": "test",
        "width": width,
        "height": height,
    }
    return empty_record(**(stored | values))


def write_triplets(folder: str, count: int, shards: int = 2, changed: Mapping[int, Mapping[str, Any]] | None = None, **values: Any) -> str:
    """A dataset of ``count`` triplets in ``shards`` files; ``changed`` values by item. Returns ``folder``."""
    records = [triplet(number, **(values | dict((changed or {}).get(number, {})))) for number in range(count)]
    for number in range(shards):
        rows = records[number * count // shards : (number + 1) * count // shards]
        write_shard(storage.join(folder, f"part-000001-{number:06d}.parquet"), pa.Table.from_pylist(rows, RECORD_SCHEMA))
    return folder


def write_triplet_files(folder: Path, pairs: Sequence[TrainingPair]) -> Path:
    """Pairs with effect masks as files, 0.png and so on, in source/, mask/, target/ and effect_mask/ of the folder."""
    for role in ("source", "mask", "target", "effect_mask"):
        (folder / role).mkdir(parents=True, exist_ok=True)
        for number, pair in enumerate(pairs):
            pixels = getattr(pair, role)
            (folder / role / f"{number}.png").write_bytes(encode_image(pixels) if pixels.ndim == 3 else encode_mask(pixels))
    return folder
