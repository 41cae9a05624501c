"""COCO's instances: ``annotations/instances_<split>.json`` with ``images``, ``annotations`` and ``categories``; photos in ``<split>/``.

Layout: cocodataset.org, "format-data". One item is one object of one photo; crowds (``iscrowd`` 1) are no single object and are left out.
The outline travels in the plan's ``mask`` as text, so that no worker has to hold a file of a million annotations.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from core import storage
from core.collections.builder import Builder, Built, Choice, failed, nothing_found
from core.collections.json_stream import iterate_arrays
from core.collections.segmentation import decode_segmentation
from core.errors import UsageError
from core.masks import encode_mask
from core.plan import PlanRow
from core.readers import Input

log = logging.getLogger(__name__)

_OUTLINE: Final = "outline:"
_LOOKED_AT: Final = 20
"""Photos of which one must exist for a folder to be the right one."""

Image = tuple[str, int, int]
"""File name, width and height."""


def open_coco(uri: str, origin: str, choice: Choice) -> Input:
    """An instances file, or the folder with ``annotations/instances_*.json``.

    Raises:
        UsageError: there is none.
    """
    if uri.endswith(".json"):
        folder = storage.parent(uri)
        base = storage.parent(folder) if folder.endswith("/annotations") else folder
        return Input("coco collection", base, lambda: _rows(base, [storage.relative(base, uri)], origin, choice))
    return Input("coco collection", uri, lambda: _rows(uri, _instances(uri), origin, choice))


def _instances(uri: str) -> list[str]:
    folder = storage.join(uri, "annotations")
    names = (storage.relative(uri, entry.uri) for entry in storage.storage_for(uri).list(folder))
    found = sorted(name for name in names if PurePosixPath(name).name.startswith("instances") and name.endswith(".json"))
    if not found:
        raise nothing_found(uri, "coco", "no annotations/instances_*.json was found there")
    return found


def _rows(base: str, files: list[str], origin: str, choice: Choice) -> Iterator[PlanRow]:
    for name in files:
        uri = storage.join(base, name)
        images: dict[object, Image] = {}
        categories: dict[object, str] = {}
        for key, value in iterate_arrays(uri, frozenset({"images", "categories"})):
            if not isinstance(value, Mapping) or "id" not in value:
                raise UsageError(f"{uri} has something else than objects with an id among its {key}; give COCO's instances")
            if key == "categories":
                categories[_key(value["id"])] = str(value.get("name", value["id"]))
            elif isinstance(value.get("file_name"), str):
                images[_key(value["id"])] = (value["file_name"], value.get("width", 0), value.get("height", 0))
        if not images:
            raise nothing_found(uri, "coco", "its JSON has no images with a file_name")
        stem = PurePosixPath(name).stem
        split = stem.removeprefix("instances_")
        folder = _photos(base, name, split, images, choice)
        left_out = {"crowd": 0, "class": 0}
        for _, value in iterate_arrays(uri, frozenset({"annotations"})):
            row = _row(value, f"{split}/", name, folder, images, categories, origin)
            if isinstance(value, Mapping) and value.get("iscrowd"):
                left_out["crowd"] += 1
            elif choice.excludes(row.category):
                left_out["class"] += 1
            else:
                yield row
        log.info("%s: left out %d crowds and %d objects of excluded classes", name, left_out["crowd"], left_out["class"])


def _key(value: object) -> object:
    """An id that can be looked up: whatever JSON gives, also where it makes no sense."""
    return value if isinstance(value, str | int | float) else repr(value)


def _photos(base: str, name: str, split: str, images: Mapping[object, Image], choice: Choice) -> str:
    """The folder of the photos, relative to ``base`` or whole: the first in which one of the first photos is."""
    beside = str(PurePosixPath(name).parent)
    published = [split, f"images/{split}", "images", "" if beside == "." else beside, ""]
    candidates = [storage.normalize_uri(choice.images)] if choice.images else list(dict.fromkeys(published))
    first = [image[0] for image in list(images.values())[:_LOOKED_AT]]
    for folder in candidates:
        if any(storage.exists(storage.resolve(base, _name(folder, file))) for file in first):
            return folder
    places = ", ".join(storage.resolve(base, folder) if folder else base for folder in candidates)
    raise UsageError(f"the photos of {storage.join(base, name)} are not found: {first[0]} is in none of {places}; give --images FOLDER")


def _name(folder: str, file: str) -> str:
    return storage.join(folder, file) if folder else file


def _row(
    value: object,
    prefix: str,
    annotations: str,
    folder: str,
    images: Mapping[object, Image],
    categories: Mapping[object, str],
    origin: str,
) -> PlanRow:
    if not isinstance(value, Mapping):
        return failed(f"{prefix}?", origin, "bad_annotation", f"an annotation in {annotations} is no JSON object; correct it")
    place = f"{annotations}#{value.get('id')}"
    item = f"{prefix}{value.get('id')}"
    image = images.get(_key(value.get("image_id")))
    if image is None:
        return failed(item, origin, "unpaired", f"{place} is of image {value.get('image_id')!r}, which the file does not have; add it")
    file, width, height = image
    row = PlanRow(item, source=_name(folder, file), origin=origin)
    category = value.get("category_id")
    row.category = categories.get(_key(category), None if category is None else str(category))
    if not value.get("segmentation"):
        row.error, row.message = "empty_mask", f"{place} has no segmentation: there is nothing to remove; correct it, or leave it out"
        return row
    outline = {"at": place, "height": height, "width": width, "segmentation": value["segmentation"]}
    row.mask = _OUTLINE + json.dumps(outline, separators=(",", ":"))
    return row


class CocoBuilder(Builder):
    """Draws the outline that the plan carries. The record has no target: these are objects to remove, and no triplets yet."""

    def build(self, row: Mapping[str, Any]) -> Built:
        self.check(row)
        outline = json.loads(row["mask"].removeprefix(_OUTLINE))
        pixels = decode_segmentation(outline["segmentation"], outline["height"], outline["width"])
        mask = {"bytes": encode_mask(pixels), "path": outline["at"]}
        return self.assemble(row, source=self.stored(row["source"], "source"), mask=mask)
