"""What a job may take as input: a dataset of records, a folder of pictures, or a manifest; each read as a stream of plan rows."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from core import record, storage
from core.errors import ObjectMissing, StorageError, UsageError
from core.plan import PlanRow

ROLES: Final = {
    "source": "source",
    "mask": "mask",
    "target": "target",
    "gt": "target",
    "effect_mask": "effect_mask",
    "erased": "erased",
}
MANIFEST_COLUMNS: Final = ("id", "source", "mask", "target", "effect_mask", "erased", "category", "origin")
MANIFEST_SUFFIXES: Final = (".csv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, slots=True)
class Input:
    """A recognised input: its ``kind``, the folder ``base`` that its names are relative to, and ``rows`` to stream it."""

    kind: str
    base: str
    rows: Callable[[], Iterator[PlanRow]]


def open_input(uri: str, origin: str | None = None) -> Input:
    """Recognise what ``uri`` holds, without reading it through.

    ``origin`` names the collection in the records that name none; the default is the last part of the URI.

    Raises:
        UsageError: it is nothing that can be read, with what was found there and what is possible.
        StorageError: the store refused.
    """
    uri = storage.normalize_uri(uri)
    origin = origin or PurePosixPath(uri.removeprefix("s3://")).stem
    if uri.endswith(MANIFEST_SUFFIXES) and storage.exists(uri):
        return _open_file(uri, origin)
    return _open_folder(uri, origin)


def _open_file(uri: str, origin: str) -> Input:
    base = storage.parent(uri)
    if uri.endswith(".parquet"):
        schema = open_parquet(uri).schema_arrow
        if "source" in schema.names and pa.types.is_struct(schema.field("source").type):
            return Input("dataset", base, lambda: _dataset_rows([uri], base, origin))
        _check_manifest_columns(uri, schema.names)
        return Input("manifest", base, lambda: _manifest_rows(_parquet_lines(uri), origin))
    reader = _csv_lines if uri.endswith(".csv") else _jsonl_lines
    first = next(iter(reader(uri)), None)
    if first is not None and isinstance(first[1], dict):
        _check_manifest_columns(uri, first[1])
    return Input("manifest", base, lambda: _manifest_rows(reader(uri), origin))


def manifest_photos(uri: str, origin: str) -> Input:
    """The photos of a manifest: its column ``source`` alone has to be there.

    Raises:
        UsageError: the file lacks it.
        StorageError: the store refused.
    """
    reader = {".csv": _csv_lines, ".parquet": _parquet_lines}.get(PurePosixPath(uri).suffix, _jsonl_lines)
    first = next(iter(reader(uri)), None)
    if first is not None and isinstance(first[1], dict):
        _check_manifest_columns(uri, first[1], ("source",))
    return Input("photos", storage.parent(uri), lambda: _manifest_rows(reader(uri), origin, ("source",)))


def _open_folder(uri: str, origin: str) -> Input:
    store = storage.storage_for(uri)
    listing = (entry.uri for entry in store.list(uri) if not _hidden(storage.relative(uri, entry.uri)))
    seen: list[str] = []
    for name in (storage.relative(uri, found) for found in listing):
        path = PurePosixPath(name)
        if len(path.parts) == 1 and path.suffix == ".parquet" and path.name.startswith("part-"):
            return Input("dataset", uri, lambda: _dataset_rows(_shards(uri), uri, origin))
        if len(path.parts) > 1 and path.parts[0] in ROLES:
            return Input("folder", uri, lambda: _folder_rows(uri, origin, _role_by_folder))
        if len(path.parts) > 1 and path.stem in ROLES:
            return Input("folder", uri, lambda: _folder_rows(uri, origin, _role_by_name))
        seen.append(name)
        if len(seen) >= 1000:
            break
    found = f"found {', '.join(seen[:5])}{', ...' if len(seen) > 5 else ''}" if seen else "found nothing there"
    raise UsageError(
        f"cannot read {uri} as input: {found}; give a dataset (part-*.parquet), a folder with source/ and mask/ (or one folder an item "
        f"with source.* and mask.*), or a manifest ({', '.join(MANIFEST_SUFFIXES)})"
    )


def parquet_source(uri: str) -> Any:
    """Something that pyarrow.parquet opens, local or in a bucket, reading only what is asked for."""
    if storage.is_s3(uri):
        return pa.PythonFile(io.BufferedReader(storage.ObjectReader(storage.storage_for(uri), uri), 1 << 18), mode="r")
    if not Path(uri).exists():
        raise ObjectMissing(f"no such file: {uri}")
    return uri


def open_parquet(uri: str) -> pq.ParquetFile:
    """A Parquet file, local or in a bucket.

    Raises:
        StorageError: it is none, or is cut off.
    """
    try:
        return pq.ParquetFile(parquet_source(uri))
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri} is no whole Parquet file ({str(error).split(chr(10))[0]}); write it again, or move it away") from error


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _shards(folder: str) -> list[str]:
    entries = storage.storage_for(folder).list(folder)
    return sorted(entry.uri for entry in entries if _is_shard(storage.relative(folder, entry.uri)))


def _is_shard(name: str) -> bool:
    return "/" not in name and name.startswith("part-") and name.endswith(".parquet")


def _dataset_rows(shards: list[str], base: str, origin: str) -> Iterator[PlanRow]:
    for shard in shards:
        file = open_parquet(shard)
        problem = record.schema_problem(file.schema_arrow)
        if problem:
            raise UsageError(f"{shard} is no shard of a dataset: {problem}")
        row = 0
        has_category = "category" in file.schema_arrow.names
        for batch in file.iter_batches(batch_size=65_536, columns=["id", "origin", *(["category"] if has_category else [])]):
            for values in batch.to_pylist():
                name = storage.relative(base, shard)
                item = PlanRow(
                    values["id"] or f"{name}-{row}", category=values.get("category"), origin=values["origin"] or origin, shard=name, row=row
                )
                if not values["id"]:
                    item.error, item.message = "no_id", f"row {row} of {name} has no id; give it one"
                yield item
                row += 1


def _role_by_folder(path: PurePosixPath) -> tuple[str, str] | None:
    role = ROLES.get(path.parts[0])
    return (role, str(PurePosixPath(*path.parts[1:]).with_suffix(""))) if role and len(path.parts) > 1 else None


def _role_by_name(path: PurePosixPath) -> tuple[str, str] | None:
    role = ROLES.get(path.stem)
    return (role, str(path.parent)) if role and len(path.parts) > 1 else None


def _folder_rows(root: str, origin: str, role_of: Callable[[PurePosixPath], tuple[str, str] | None]) -> Iterator[PlanRow]:
    """Pair by name, on disk: a bucket's listing may be larger than memory, and its order is not the order of the names."""
    with (
        tempfile.TemporaryDirectory(prefix="cleanplate-pairs-") as scratch,
        closing(sqlite3.connect(Path(scratch, "pairs.sqlite"))) as database,
    ):
        database.execute("PRAGMA journal_mode=OFF")
        database.execute("CREATE TABLE found (item TEXT, role TEXT, name TEXT)")
        names = (storage.relative(root, entry.uri) for entry in storage.storage_for(root).list(root))
        pairs = (_printable(key[1], key[0], name) for name in names if not _hidden(name) and (key := role_of(PurePosixPath(name))))
        database.executemany("INSERT INTO found VALUES (?, ?, ?)", pairs)
        ordered = "(SELECT * FROM found ORDER BY item, role, name)"
        query = f"SELECT item, role, min(name), count(*), group_concat(name, ', ') FROM {ordered} GROUP BY item, role ORDER BY item, role"
        item: str | None = None
        found: dict[str, tuple[str, int, str]] = {}
        for name, role, first, count, every in database.execute(query):
            if item is not None and name != item:
                yield _paired(item, found, origin)
                found = {}
            item = name
            found[role] = (first, count, every)
        if item is not None:
            yield _paired(item, found, origin)


def _printable(item: str, role: str, name: str) -> tuple[str, str, str]:
    """The row for a file; role ``bad`` and an escaped name where the name on disk is no UTF-8, and so cannot stand in a plan."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return (item, role, name) if text == name else (item.encode("utf-8", "backslashreplace").decode(), "bad", text)


def _paired(item: str, found: dict[str, tuple[str, int, str]], origin: str) -> PlanRow:
    row = PlanRow(item, origin=origin)
    if "bad" in found:
        row.error, row.message = "bad_name", f"the name {found['bad'][0]} is not UTF-8; rename the file"
        return row
    for role, (first, _, _) in found.items():
        setattr(row, role, first)
    for role, (_, count, every) in sorted(found.items()):
        if count > 1:
            row.error, row.message = "ambiguous_pair", f"{count} files could be the {role} of {item}: {every}; leave one"
    if "source" not in found:
        first = next(iter(found.values()))[0]
        row.error, row.message = "unpaired", f"{first} has no source of the same name; add it to source/, or remove this file"
    elif "mask" not in found:
        first = found["source"][0]
        row.error, row.message = "unpaired", f"{first} has no mask of the same name; add it to mask/, or make masks with cleanplate segment"
    return row


def _check_manifest_columns(uri: str, names: Iterable[str], needed: tuple[str, ...] = ("source", "mask")) -> None:
    names = list(names)
    missing = [name for name in needed if name not in names]
    if missing:
        raise UsageError(
            f"manifest {uri} has no column {' and '.join(missing)}: found {', '.join(names[:20]) or 'none'}; it needs "
            f"{' and '.join(needed)}, and may have {', '.join(name for name in MANIFEST_COLUMNS if name not in needed)}"
        )


Line = tuple[int, "dict[str, Any] | str"]


def _text(uri: str) -> io.TextIOWrapper:
    raw: Any = storage.ObjectReader(storage.storage_for(uri), uri)
    return io.TextIOWrapper(io.BufferedReader(raw, 1 << 20), encoding="utf-8-sig", errors="replace", newline="")


def _csv_lines(uri: str) -> Iterator[Line]:
    with _text(uri) as text:
        reader = csv.reader(text)
        header = next(reader, [])
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, f"line {reader.line_num} is not CSV: {error}"
                continue
            number = reader.line_num
            if not values:
                continue
            if len(values) != len(header):
                yield number, f"line {number} has {len(values)} fields, the header has {len(header)}"
            else:
                yield number, dict(zip(header, values, strict=True))


def _jsonl_lines(uri: str) -> Iterator[Line]:
    with _text(uri) as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, f"line {number} is not JSON: {error}"
                continue
            if "\\u" in line and not _is_text(value):
                yield number, f"line {number} has half of a surrogate pair, which is no character"
                continue
            yield (
                number,
                value if isinstance(value, dict) else f"line {number} is a JSON {type(value).__name__}; each line must be an object",
            )


def _is_text(value: object) -> bool:
    """Whether all strings in a JSON value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_lines(uri: str) -> Iterator[Line]:
    file = open_parquet(uri)
    columns = [name for name in MANIFEST_COLUMNS if name in file.schema_arrow.names]
    number = 0
    for batch in file.iter_batches(batch_size=65_536, columns=columns):
        for values in batch.to_pylist():
            number += 1
            yield number, values


def _manifest_rows(lines: Iterable[Line], origin: str, needed: tuple[str, ...] = ("source", "mask")) -> Iterator[PlanRow]:
    for number, values in lines:
        if isinstance(values, str):
            yield PlanRow(f"line-{number}", origin=origin, error="bad_manifest_line", message=f"{values}; correct the line")
            continue
        given = {name: str(value) for name in MANIFEST_COLUMNS if (value := values.get(name)) not in (None, "")}
        source, mask = given.get("source"), given.get("mask")
        row = PlanRow(given.get("id") or record.id_from_uris(source or f"line {number}", mask or ""), origin=origin)
        for name, value in given.items():
            setattr(row, name, value)
        missing = [name for name in needed if not given.get(name)]
        if missing:
            what = "both URIs" if len(needed) > 1 else "its URI"
            row.error, row.message = "bad_manifest_line", f"row {number} has no {' and no '.join(missing)}; give {what}"
        yield row
