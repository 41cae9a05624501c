"""MuLAn: photos taken apart into layers, ``<image>/layer_0.png`` (the background) and ``layer_1.png``, ... (RGBA objects, back to front).

Layout: what the data set's own ``dataset_decomposition.py`` writes from its annotations and the photos of COCO and LAION (docs/data.md).
Each object is removed in turn: source is all layers, target all but one, so that what was hidden behind it shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np

from core.collections.builder import Builder, Built, Choice, failed, nothing_found
from core.collections.listing import scratch_table, visible_names
from core.errors import ItemError
from core.images import Photo, Pixels, decode_picture, encode_image
from core.masks import encode_mask
from core.plan import PlanRow
from core.readers import Input

_LAYER: Final = re.compile(r"layer_(\d+)")
_LAYERS: Final = "layers:"


def open_mulan(uri: str, origin: str, choice: Choice) -> Input:  # noqa: ARG001 - one signature for all collections
    """A folder with one folder of layers for each photo, at any depth."""
    return Input("mulan collection", uri, lambda: _rows(uri, origin))


def _place(path: PurePosixPath) -> tuple[str, int, str] | None:
    match = _LAYER.fullmatch(path.stem)
    if match is None or path.suffix.lower() != ".png":
        return None
    return str(path.parent), int(match[1]), str(path)


def _rows(uri: str, origin: str) -> Iterator[PlanRow]:
    places = (place for path in visible_names(uri) if (place := _place(path)))
    with scratch_table(("image", "layer INTEGER", "name"), places) as database:
        if not database.execute("SELECT 1 FROM found LIMIT 1").fetchone():
            raise nothing_found(uri, "mulan", "no <image>/layer_0.png was found there")
        query = "SELECT image, layer, name FROM found ORDER BY image, layer, name"
        for image, layers in groupby(database.execute(query), key=lambda row: row[0]):
            yield from _image_rows(image, [(number, name) for _, number, name in layers], origin)


def _image_rows(image: str, layers: Sequence[tuple[int, str]], origin: str) -> Iterator[PlanRow]:
    numbers, names = [number for number, _ in layers], [name for _, name in layers]
    if numbers != list(range(len(numbers))) or len(numbers) < 2:
        found = ", ".join(PurePosixPath(name).name for name in names)
        message = f"{image} has {found}; an image needs layer_0.png and one more, without a gap"
        yield failed(image, origin, "incomplete_layers", message, names[0])
        return
    for number in numbers[1:]:
        layout = json.dumps({"names": names, "remove": number}, ensure_ascii=False, separators=(",", ":"))
        yield PlanRow(f"{image}/layer_{number}", source=names[number], mask=_LAYERS + layout, origin=origin)


class MulanBuilder(Builder):
    """Composes the layers, with and without the one that is removed. Source and target are PNG, equal wherever nothing was removed."""

    def build(self, row: Mapping[str, Any]) -> Built:
        self.check(row)
        layout = json.loads(row["mask"].removeprefix(_LAYERS))
        names, removed = layout["names"], layout["remove"]
        layers = [decode_picture(self._bytes(name, "layer"), noun="layer", prefix="layer_", max_megapixels=self.limit) for name in names]
        sizes = {(layer.width, layer.height) for layer in layers}
        if len(sizes) > 1:
            text = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
            raise ItemError("decode", "layer_size_mismatch", f"the layers of {row['id']} are {text} pixels; all must have one size")
        source, target = compose(layers), compose([*layers[:removed], *layers[removed + 1 :]])
        mask = visible_part(layers, removed)
        changed = np.where((source != target).any(axis=2), 255, 0).astype(np.uint8)
        name = names[removed]
        return self.assemble(
            row,
            source={"bytes": encode_image(source), "path": f"{row['id']}.png"},
            mask={"bytes": encode_mask(mask), "path": name},
            target={"bytes": encode_image(target), "path": f"{row['id']}-removed.png"},
            effect_mask={"bytes": encode_mask(np.maximum(mask, changed)), "path": name} if mask.any() else None,
        )


def compose(layers: Sequence[Photo]) -> Pixels:
    """(H, W, 3) uint8: the layers over each other, the first at the bottom and taken as opaque."""
    result = layers[0].pixels
    for layer in layers[1:]:
        alpha = _alpha(layer).astype(np.uint16)[..., None]
        result = ((alpha * layer.pixels + (255 - alpha) * result + 127) // 255).astype(np.uint8)
    return result


def visible_part(layers: Sequence[Photo], index: int) -> Pixels:
    """(H, W) uint8: 255 where layer ``index`` is seen, through all that lies above it, with an opacity above one half."""
    opacity = _alpha(layers[index]).astype(np.float32) / np.float32(255)
    for layer in layers[index + 1 :]:
        opacity = opacity * (np.float32(1) - _alpha(layer).astype(np.float32) / np.float32(255))
    return np.where(opacity > 0.5, 255, 0).astype(np.uint8)


def _alpha(layer: Photo) -> Pixels:
    return layer.alpha if layer.alpha is not None else np.full(layer.pixels.shape[:2], 255, np.uint8)
