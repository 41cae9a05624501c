"""Open Images' segmentations: ``*-annotations-object-segmentation.csv``, mask PNGs of its ``MaskPath`` and photos ``<ImageID>.jpg``.

Layout: storage.googleapis.com/openimages/web, "Data formats", as unpacked anywhere below one folder; FiftyOne's
(``labels/segmentations.csv``, ``metadata/classes.csv``) as well. One item is one object of one photo, in the order of the CSV.
"""

from __future__ import annotations

import csv
import io
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from core import storage
from core.collections.builder import Choice, failed, nothing_found
from core.collections.listing import scratch_table, visible_names
from core.errors import UsageError
from core.plan import PlanRow
from core.readers import Input

log = logging.getLogger(__name__)

_COLUMNS: Final = ("MaskPath", "ImageID", "LabelName")
_PICTURES: Final = (".jpg", ".jpeg", ".png")


def open_openimages(uri: str, origin: str, choice: Choice) -> Input:
    """The folder with the CSV files, the masks and the photos below it; ``choice.images`` for photos that are elsewhere."""
    return Input("openimages collection", uri, lambda: _rows(uri, origin, choice))


def _rows(uri: str, origin: str, choice: Choice) -> Iterator[PlanRow]:
    photos = storage.normalize_uri(choice.images) if choice.images else None
    with scratch_table(("kind", "key", "name"), _places(uri, photos)) as database:
        database.execute("CREATE INDEX by_key ON found (kind, key)")
        tables = [name for (name,) in database.execute("SELECT name FROM found WHERE kind = 'segmentations' ORDER BY name")]
        if not tables:
            raise nothing_found(uri, "openimages", "no *-annotations-object-segmentation.csv was found there or in a folder below")
        names = _class_names(uri, [name for (name,) in database.execute("SELECT name FROM found WHERE kind = 'classes' ORDER BY name")])
        left_out = 0
        for table in tables:
            for line, values in _lines(storage.join(uri, table)):
                row = _row(database, values, f"line {line} of {table}", names, origin)
                if choice.excludes(row.category, values.get("LabelName")):
                    left_out += 1
                else:
                    yield row
        log.info("left out %d objects of excluded classes", left_out)


def _places(uri: str, photos: str | None) -> Iterator[tuple[str, str, str]]:
    for path in visible_names(uri):
        name = path.name.lower()
        if name.endswith("annotations-object-segmentation.csv") or path.parts[-2:] == ("labels", "segmentations.csv"):
            yield "segmentations", "", str(path)
        elif name.endswith(".csv") and ("class-descriptions" in name or path.parts[-2:] == ("metadata", "classes.csv")):
            yield "classes", "", str(path)
        elif path.suffix.lower() == ".png":
            yield "mask", path.name, str(path)
            if photos is None:
                yield "photo", path.stem, str(path)
        elif photos is None and path.suffix.lower() in _PICTURES:
            yield "photo", path.stem, str(path)
    if photos is not None:
        for path in visible_names(photos):
            if path.suffix.lower() in _PICTURES:
                yield "photo", path.stem, storage.join(photos, str(path))


def _text(uri: str) -> io.TextIOWrapper:
    raw: Any = storage.ObjectReader(storage.storage_for(uri), uri)
    return io.TextIOWrapper(io.BufferedReader(raw, 1 << 20), encoding="utf-8-sig", errors="replace", newline="")


def _class_names(uri: str, tables: list[str]) -> dict[str, str]:
    """Names by label (``/m/04yx4``), from files without a header."""
    names: dict[str, str] = {}
    for table in tables:
        with _text(storage.join(uri, table)) as text:
            names.update({line[0]: line[1] for line in csv.reader(text) if len(line) >= 2 and line[0].startswith("/")})
    return names


def _lines(uri: str) -> Iterator[tuple[int, dict[str, str]]]:
    with _text(uri) as text:
        reader = csv.reader(text)
        header = next(reader, [])
        missing = [name for name in _COLUMNS if name not in header]
        if missing:
            raise UsageError(f"{uri} has no column {' and no column '.join(missing)}: found {', '.join(header[:20]) or 'nothing'}")
        for values in reader:
            if values:
                yield reader.line_num, dict(zip(header, values, strict=False))


def _row(database: sqlite3.Connection, values: Mapping[str, str], place: str, names: Mapping[str, str], origin: str) -> PlanRow:
    given = {name: values.get(name) or "" for name in _COLUMNS}
    empty = [name for name, value in given.items() if not value]
    if empty:
        return failed(place, origin, "bad_annotation", f"{place} has no {' and no '.join(empty)}; correct the line")
    mask_path, image, label = (given[name] for name in _COLUMNS)
    mask, photo = _find(database, "mask", PurePosixPath(mask_path).name), _find(database, "photo", image)
    row = PlanRow(PurePosixPath(mask_path).stem, photo, mask, category=names.get(label, label), origin=origin)
    missing = [text for text, found in ((f"photo {image}.jpg", photo), (f"mask {mask_path}", mask)) if found is None]
    if missing:
        row.error, row.message = "missing", f"{' and '.join(missing)} of {place} were not found; unpack them, or take the line out"
    return row


def _find(database: sqlite3.Connection, kind: str, key: str) -> str | None:
    found = database.execute("SELECT min(name) FROM found WHERE kind = ? AND key = ?", (kind, key)).fetchone()[0]
    return None if found is None else str(found)
