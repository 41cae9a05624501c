"""The formats that ``cleanplate ingest`` knows: how each is opened, how its records are built, and under which licence it is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from core import storage
from core.collections.builder import Builder, Choice, printable
from core.collections.coco import CocoBuilder, open_coco
from core.collections.mulan import MulanBuilder, open_mulan
from core.collections.ober import OberBuilder, open_ober
from core.collections.openimages import open_openimages
from core.collections.rord import RordBuilder, open_rord
from core.collections.rorem import RoremBuilder, open_rorem
from core.errors import UsageError
from core.readers import Input, open_input


def _open_folder(uri: str, origin: str, choice: Choice) -> Input:  # noqa: ARG001 - one signature for all collections
    return _of_kind(uri, origin, "folder", "a folder with source/ and mask/ (or one folder an item with source.* and mask.*)")


def _open_manifest(uri: str, origin: str, choice: Choice) -> Input:  # noqa: ARG001
    return _of_kind(uri, origin, "manifest", "a csv, jsonl or parquet file with the columns source and mask")


def _of_kind(uri: str, origin: str, kind: str, wanted: str) -> Input:
    found = open_input(uri, origin)
    if found.kind != kind:
        raise UsageError(f"{uri} is a {found.kind} and no {kind}: give {wanted}, or another --format")
    return found


@dataclass(frozen=True, slots=True)
class Format:
    """One published layout.

    Attributes:
        open: its items, from the whole URI, the name of the collection, and what of it is taken.
        builder: makes records of the items.
        licence: under which it is published, in a few words.
        restricted: that licence forbids commercial use, or nobody has written down what it allows.
    """

    open: Callable[[str, str, Choice], Input]
    builder: type[Builder]
    licence: str
    restricted: bool = False


FORMATS: Final[dict[str, Format]] = {
    "rorem": Format(open_rorem, RoremBuilder, "Apache-2.0"),
    "rord": Format(open_rord, RordBuilder, "AI-Hub terms of use", restricted=True),
    "mulan": Format(open_mulan, MulanBuilder, "CC BY-NC-SA 4.0", restricted=True),
    "ober": Format(open_ober, OberBuilder, "NTU S-Lab 1.0 (non-commercial)", restricted=True),
    "openimages": Format(open_openimages, Builder, "CC BY 2.0 (photos), CC BY 4.0 (annotations)"),
    "coco": Format(open_coco, CocoBuilder, "each photo's own (Flickr), CC BY 4.0 (annotations)"),
    "folder": Format(_open_folder, Builder, "unknown"),
    "manifest": Format(_open_manifest, Builder, "unknown"),
}


def open_collection(name: str, uri: str, origin: str | None, choice: Choice) -> Input:
    """The items of a collection; ``origin`` names it in its records, the default is the format, or the last part of the URI.

    Raises:
        UsageError: no such format, or ``uri`` is not of it, with what was missed and where.
        StorageError: the store refused.
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}; the formats are {', '.join(FORMATS)}")
    uri = storage.normalize_uri(uri)
    plain = name in ("folder", "manifest")
    default = storage.normalize_uri(uri).rsplit("/", 1)[-1].split(".")[0] if plain else name
    found = FORMATS[name].open(uri, origin or default, choice)
    return replace(found, rows=lambda: printable(found.rows()))
