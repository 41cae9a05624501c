"""The plan of a job: its list of items, frozen in the output before any work is done.

Listing a bucket or reading a manifest happens once; every later run of the same job reads the plan. A plan is a folder of Parquet files
of ``PLAN_SCHEMA``, small enough to hold one in memory, and ``plan.json`` with the counts, written last.

Names in a plan are as the input gave them (relative to the input's folder where they were relative), so that the same collection has the
same ids, and makes the same dataset, from a local folder and from a bucket.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from core import storage
from core.errors import ObjectMissing, UsageError
from core.parallel import map_ahead

ROWS_PER_FILE: Final = 50_000

PLAN_SCHEMA: Final = pa.schema(
    [
        pa.field(name, pa.string())
        for name in ("id", "source", "mask", "target", "effect_mask", "erased", "category", "origin", "shard")
    ]
    + [pa.field("row", pa.int64()), pa.field("error", pa.string()), pa.field("message", pa.string())]
)


@dataclass(slots=True)
class PlanRow:
    """One item of the input.

    ``source``, ``mask``, ``target``, ``effect_mask`` and ``erased`` are names of objects; or ``shard`` and ``row`` say where a record of
    a dataset stands. ``error`` and ``message`` are set for an item that is known to fail before it is fetched (unpaired, incomplete,
    twice).
    """

    id: str
    source: str | None = None
    mask: str | None = None
    target: str | None = None
    effect_mask: str | None = None
    erased: str | None = None
    category: str | None = None
    origin: str | None = None
    shard: str | None = None
    row: int | None = None
    error: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """Counts of a plan: ``items`` in all, and the ``files`` that hold them, in order."""

    items: int
    files: tuple[str, ...]
    input: str
    base: str


def write_plan(folder: str, rows: Iterable[PlanRow], *, source_input: str, base: str) -> PlanInfo:
    """Write a plan below ``folder`` and return its counts.

    The first of several rows with one id keeps it; the others get ``<id>@<n>`` (n counts from 2) and fail as ``duplicate_id``, so that
    nothing is lost and no id is twice. Ids are compared in a temporary SQLite file, so memory does not grow with the input.

    Raises:
        UsageError: the input has no items.
    """
    store = storage.storage_for(folder)
    files: list[str] = []
    total = 0
    with tempfile.TemporaryDirectory(prefix="cleanplate-plan-") as scratch:
        for table in _tables(_unique(rows, Path(scratch, "ids.sqlite"))):
            name = f"plan-{len(files):05d}.parquet"
            with store.create(storage.join(folder, name)) as file:
                pq.write_table(table, file, compression="zstd")
            files.append(name)
            total += len(table)
    if not total:
        raise UsageError(
            f"{source_input} holds no items: give a dataset, a folder with source/ and mask/, or a csv, jsonl or parquet manifest"
        )
    info = PlanInfo(items=total, files=tuple(files), input=source_input, base=base)
    store.write(storage.join(folder, "plan.json"), json.dumps(asdict(info), indent=1).encode())
    return info


def read_plan_info(folder: str) -> PlanInfo | None:
    """The counts of the plan in ``folder``; None where none was finished."""
    uri = storage.join(folder, "plan.json")
    try:
        values = json.loads(storage.storage_for(uri).read(uri))
    except ObjectMissing:
        return None
    return PlanInfo(items=values["items"], files=tuple(values["files"]), input=values["input"], base=values["base"])


def read_plan_file(folder: str, name: str) -> pa.Table:
    """One file of a plan, of ``PLAN_SCHEMA``."""
    uri = storage.join(folder, name)
    return pq.read_table(pa.BufferReader(storage.storage_for(uri).read(uri)), schema=PLAN_SCHEMA)


def read_plan_ids(folder: str, info: PlanInfo) -> Iterator[list[str]]:
    """The ids of a plan, a file at a time, in order."""
    with ThreadPoolExecutor(4) as pool:
        for table in map_ahead(pool, lambda name: read_plan_file(folder, name), info.files, 4):
            yield table.column("id").to_pylist()


def _unique(rows: Iterable[PlanRow], path: Path) -> Iterator[PlanRow]:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=OFF")
        database.execute("PRAGMA synchronous=OFF")
        database.execute("PRAGMA cache_size=-65536")
        database.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID")
        database.execute("BEGIN")
        upsert = "INSERT INTO seen VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET count = count + 1 RETURNING count"
        for row in rows:
            count = database.execute(upsert, (row.id,)).fetchone()[0]
            while count > 1:
                given, row.id = row.id, f"{row.id}@{count}"
                row.error = "duplicate_id"
                row.message = f"id {given} is number {count} of that name in the input; ids must be unique: the first one was taken"
                count = database.execute(upsert, (row.id,)).fetchone()[0]
            yield row
        database.execute("COMMIT")


def _tables(rows: Iterable[PlanRow]) -> Iterator[pa.Table]:
    columns: list[list[object]] = [[] for _ in PLAN_SCHEMA.names]
    for row in rows:
        for values, name in zip(columns, PLAN_SCHEMA.names, strict=True):
            values.append(getattr(row, name))
        if len(columns[0]) == ROWS_PER_FILE:
            yield pa.table(columns, schema=PLAN_SCHEMA)
            columns = [[] for _ in PLAN_SCHEMA.names]
    if columns[0]:
        yield pa.table(columns, schema=PLAN_SCHEMA)
