"""The ledger: which items of a job are done. It is the output itself.

A shard holds results and their ids in one object that is put atomically, so there is no moment at which an item is written but not
counted, or counted but not written. Starting a job reads the ids of all shards (one column, by ranged reads) and leaves those items out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core import storage
from core.errors import StorageError
from core.parallel import map_ahead
from core.readers import parquet_source

PART_PREFIX: Final = "part-"
FAILURES: Final = "failures"
READERS: Final = 16
ROW_GROUP_ROWS: Final = 8
"""What a reader of single rows reads at least: training takes few neighbours at a time (``training.order``), and a shard has hundreds."""
ROW_GROUP_BYTES: Final = 2 * 2**20
"""Where rows are small a group has more of them, up to so many bytes: one request brings them all."""


def part_name(run: int, task: int) -> str:
    """The name of a shard: unique to the run of the job and the write task, the same when a task is retried."""
    return f"{PART_PREFIX}{run:04d}-{task:06d}.parquet"


def is_part(name: str) -> bool:
    """Whether an object's name, relative to its folder, is that of a shard."""
    return "/" not in name and name.startswith(PART_PREFIX) and name.endswith(".parquet")


def list_parts(folder: str) -> list[str]:
    """URIs of the shards directly in ``folder``, in the order of their names."""
    found = (entry.uri for entry in storage.storage_for(folder).list(folder))
    return sorted(uri for uri in found if is_part(storage.relative(folder, uri)))


def list_output(output: str) -> tuple[list[str], list[str]]:
    """Shards of results and shards of failures, from one listing."""
    results, failures = [], []
    for entry in storage.storage_for(output).list(output):
        name = storage.relative(output, entry.uri)
        if is_part(name):
            results.append(entry.uri)
        elif name.startswith(f"{FAILURES}/") and is_part(name.removeprefix(f"{FAILURES}/")):
            failures.append(entry.uri)
    return sorted(results), sorted(failures)


def read_columns(uri: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of one shard, by ranged reads.

    Raises:
        StorageError: the object is no whole Parquet file, or lacks a column. A job never writes such a one.
    """
    try:
        return pq.read_table(parquet_source(uri), columns=list(columns), partitioning=None)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise StorageError(
            f"{uri} is no shard of this job ({str(error).splitlines()[0]}); move it away, then run the same command again"
        ) from error


class IdSet:
    """Ids as 128-bit hashes in two sorted arrays: 16 bytes an id, searched without a Python loop, shared among tasks without a copy."""

    def __init__(self, high: np.ndarray, low: np.ndarray) -> None:
        order = np.lexsort((low, high))
        self._high, self._low = high[order], low[order]

    def __len__(self) -> int:
        return len(self._high)

    @classmethod
    def of(cls, ids: Sequence[str]) -> IdSet:
        return cls(*hash_ids(ids))

    def contains(self, ids: Sequence[str]) -> np.ndarray:
        """A boolean for every id."""
        high, low = hash_ids(ids)
        found = np.zeros(len(ids), dtype=bool)
        at = np.searchsorted(self._high, high, side="left")
        # several ids may share the upper 64 bits: step on while they do
        while True:
            inside = at < len(self._high)
            same_high = np.zeros(len(ids), dtype=bool)
            same_high[inside] = self._high[at[inside]] == high[inside]
            if not same_high.any():
                return found
            found[same_high] |= self._low[at[same_high]] == low[same_high]
            at = np.where(same_high, at + 1, len(self._high))

    def duplicates(self) -> int:
        """How many ids stand in the set once more than they should."""
        if len(self._high) < 2:
            return 0
        return int(((self._high[1:] == self._high[:-1]) & (self._low[1:] == self._low[:-1])).sum())


def hash_ids(ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower 64 bits of every id's hash."""
    raw = b"".join(hashlib.blake2b(item.encode(), digest_size=16).digest() for item in ids)
    pairs = np.frombuffer(raw, dtype="<u8").reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


@dataclass(slots=True)
class Ledger:
    """What a job's output holds."""

    ids: IdSet
    verdicts: Counter[str] = field(default_factory=Counter)
    """Written results by verdict (``none`` for those without a score)."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failures by reason."""
    parts: list[str] = field(default_factory=list)
    failure_parts: list[str] = field(default_factory=list)

    @property
    def out(self) -> int:
        return self.verdicts.total()

    @property
    def failed(self) -> int:
        return self.errors.total()


def read_ledger(output: str) -> Ledger:
    """Read the ids, verdicts and failure reasons that stand in ``output``; an output that does not exist yet is empty."""
    parts, failure_parts = list_output(output)
    counts: dict[str, Counter[str]] = {"verdict": Counter(), "error": Counter()}
    hashes = [(np.zeros(0, dtype="<u8"), np.zeros(0, dtype="<u8"))]
    for uris, name in ((parts, "verdict"), (failure_parts, "error")):
        for table in _tables(uris, ("id", name)):
            counts[name].update(value or "none" for value in table.column(name).to_pylist())
            hashes.append(hash_ids(table.column("id").to_pylist()))
    high, low = (np.concatenate(halves) for halves in zip(*hashes, strict=True))
    return Ledger(IdSet(high, low), counts["verdict"], counts["error"], parts, failure_parts)


def _tables(uris: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    with ThreadPoolExecutor(READERS) as pool:
        yield from map_ahead(pool, lambda uri: read_columns(uri, columns), uris, READERS)


def settle(ledger: Ledger) -> int:
    """Remove second copies of an id, and return how many there were.

    They come about only when a write task of a killed run outlives it and puts its shard after the next run has read the ledger. Results
    are a function of the item, so the copies are equal; the one in the first shard by name stays, a result before a failure.
    """
    if not ledger.ids.duplicates():
        return 0
    seen: set[str] = set()
    removed = 0
    for uri in [*ledger.parts, *ledger.failure_parts]:
        ids = read_columns(uri, ("id",)).column("id").to_pylist()
        keep = [item not in seen and not seen.add(item) for item in ids]  # type: ignore[func-returns-value]
        if all(keep):
            continue
        removed += keep.count(False)
        table = pq.read_table(parquet_source(uri), partitioning=None).filter(pa.array(keep))
        if len(table):
            write_shard(uri, table)
        else:
            storage.storage_for(uri).delete(uri)
    return removed


def write_shard(uri: str, table: pa.Table) -> None:
    """Put one shard atomically. Pictures are compressed already; the other columns are small.

    A group has ``ROW_GROUP_ROWS`` rows, or as many small ones as make ``ROW_GROUP_BYTES``: who reads one row of a shard reads a group, and
    who reads one column makes a request for every group.
    """
    rows = max(ROW_GROUP_ROWS, ROW_GROUP_BYTES * len(table) // max(1, table.nbytes))
    names = table.schema.names
    small = [name for name in names if not pa.types.is_struct(table.schema.field(name).type)]
    compression = {name: "zstd" if name in small else "none" for name in names}
    with storage.storage_for(uri).create(uri) as file:
        # a dictionary and least and largest values of pictures would hash and compare every byte of them
        pq.write_table(table, file, rows, compression=compression, use_dictionary=small, write_statistics=small)
