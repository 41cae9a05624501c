"""Measures on disk: a folder of Parquet files, one for each run of rows of the plan, each put in one piece.

A file's name says which rows it holds, so what is missing after a kill is seen from the names, and a file that is written twice is the
same twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from core import storage
from core.curation.measures import MEASURES_SCHEMA, VALUES
from core.errors import StorageError, UsageError
from core.readers import Input, open_parquet, parquet_source

_NAME: Final = re.compile(r"rows-(\d{9,})-(\d+)\.parquet")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``start`` to ``start + count`` of file number ``file`` of a plan."""

    file: int
    start: int
    count: int
    offset: int
    """Of the first row in the whole plan."""


def pieces(counts: Iterable[int], rows: int) -> Iterator[Piece]:
    """A plan whose files have so many rows, in pieces of at most ``rows``."""
    offset = 0
    for file, count in enumerate(counts):
        for start in range(0, count, rows):
            size = min(rows, count - start)
            yield Piece(file, start, size, offset)
            offset += size


def measures_name(offset: int, count: int) -> str:
    """The name of the file with the measures of ``count`` rows from ``offset`` on."""
    return f"rows-{offset:09d}-{count}.parquet"


def measured(folder: str) -> dict[int, int]:
    """Which rows are measured: number of the first row of each file, and how many it holds."""
    names = (storage.relative(folder, entry.uri) for entry in storage.storage_for(folder).list(folder))
    return {int(match[1]): int(match[2]) for name in names if (match := _NAME.fullmatch(name))}


def write_measures(folder: str, offset: int, table: pa.Table) -> None:
    """Put the measures of rows from ``offset`` on."""
    uri = storage.join(folder, measures_name(offset, len(table)))
    with storage.storage_for(uri).create(uri) as file:
        pq.write_table(table.cast(MEASURES_SCHEMA), file, compression="zstd", row_group_size=16_384)


def read_measures(folder: str, items: int) -> Iterator[pa.Table]:
    """All measures in the order of the plan.

    Raises:
        StorageError: a file is missing or damaged.
    """
    found = measured(folder)
    offset = 0
    while offset < items:
        if offset not in found:
            raise StorageError(f"{folder} lacks the measures of row {offset}; run the same command again")
        uri = storage.join(folder, measures_name(offset, found[offset]))
        try:
            yield pq.read_table(parquet_source(uri), schema=MEASURES_SCHEMA, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{uri} is damaged ({str(error).splitlines()[0]}); remove it, then run the same command again") from error
        offset += found[offset]


def known_values(found: Input, uri: str) -> Iterator[dict[str, Any]]:
    """What a Parquet manifest or a dataset says of its rows in columns named as ``VALUES``, in the order of the rows of ``found``.

    Raises:
        UsageError: the input is of another kind.
    """
    uri = storage.normalize_uri(uri)
    if uri.endswith(".parquet"):
        files = [uri]
    elif found.kind == "dataset":
        store = storage.storage_for(uri)
        files = sorted(entry.uri for entry in store.list(uri) if re.fullmatch(r"part-[^/]*\.parquet", storage.relative(uri, entry.uri)))
    else:
        raise UsageError(f"--measure metadata needs a dataset or a Parquet manifest, and {uri} is a {found.kind}; use --measure pictures")
    for name in files:
        file = open_parquet(name)
        columns = [field for field in VALUES if field.name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=16_384, columns=[field.name for field in columns]):
            if not columns:
                yield from ({} for _ in range(batch.num_rows))
                continue
            yield from pa.Table.from_batches([batch]).cast(pa.schema(columns)).to_pylist()
