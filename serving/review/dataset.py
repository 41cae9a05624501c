"""The dataset that is judged: which of its records have an erasure, and the bytes of a record's pictures, as they are stored."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core import storage
from core.errors import ItemError, ObjectMissing, StorageError, UsageError
from core.headers import Rejected, read_header
from core.images import decode_photo, encode_image
from core.ledger import READERS, list_parts
from core.parallel import map_ahead
from core.readers import open_parquet, parquet_source
from core.record import schema_problem
from serving.review.entries import QueueItem

ROLES: Final = ("source", "mask", "erased")
CACHE_BYTES: Final = 256 << 20
_LIGHT: Final = ("id", "score", "model", "seed", "round", "category", "width", "height")
_TYPES: Final = {
    "id": pa.string(), "score": pa.float64(), "model": pa.string(), "seed": pa.int64(), "round": pa.int32(), "category": pa.string(),
    "width": pa.int32(), "height": pa.int32(), "shard": pa.string(), "row": pa.int64(),
}  # fmt: skip
_BROWSERS: Final = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "gif": "image/gif", "bmp": "image/bmp"}


def read_candidates(uri: str) -> pa.Table:
    """The records of a dataset that have an erasure: light columns, ``shard`` (relative to ``uri``) and ``row``; no picture is read.

    Raises:
        UsageError: there is no dataset.
        StorageError: a shard cannot be read.
    """
    uri = storage.normalize_uri(uri)
    parts = list_parts(uri)
    if not parts:
        raise UsageError(f"{uri} holds no dataset (part-*.parquet); give the --output of cleanplate clean or score")
    with ThreadPoolExecutor(READERS) as pool:
        return pa.concat_tables(map_ahead(pool, lambda part: _candidates(uri, part), parts, READERS))


def _candidates(base: str, part: str) -> pa.Table:
    file = open_parquet(part)
    problem = schema_problem(file.schema_arrow)
    if problem:
        raise UsageError(f"{part} is no shard of a dataset: {problem}")
    present = file.schema_arrow.names
    # of the pictures only the names are read, which tell where there is one
    table = file.read(columns=[name for name in _LIGHT if name in present] + ["erased.path"] * ("erased" in present))
    rows = table.num_rows
    erased_N = np.asarray(table.column("erased").is_valid()) if "erased" in present else np.zeros(rows, bool)
    columns: dict[str, Any] = {
        name: table.column(name).cast(_TYPES[name]) if name in present else pa.nulls(rows, _TYPES[name]) for name in _LIGHT
    }
    columns["shard"] = pa.array([storage.relative(base, part)] * rows, pa.string())
    columns["row"] = pa.array(range(rows), pa.int64())
    return pa.table(columns).filter(pa.array(erased_N))


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is sent: its bytes, their type, and a hash of what is stored (32 hex digits)."""

    data: bytes
    media_type: str
    digest: str


class Pictures:
    """Pictures of a dataset's records by shard and row, for many threads. The last records that were asked for are kept."""

    def __init__(self, uri: str, cache_bytes: int = CACHE_BYTES) -> None:
        self._base = storage.normalize_uri(uri)
        self._limit = cache_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], dict[str, bytes]] = OrderedDict()
        self._held = 0
        self._footers: dict[str, pq.FileMetaData] = {}
        # the three pictures of a record are asked for at once: the first reads, the others wait for it
        self._reading = [threading.Lock() for _ in range(64)]

    def get(self, item: QueueItem, role: str) -> Picture:
        """One of ``ROLES`` of an item. Formats that browsers do not show are sent as PNG, all others as they are stored.

        Raises:
            ItemError: the record is not where it was when the queue was made, or has no such picture, or none that can be shown.
            StorageError: the shard cannot be read.
        """
        key = (item.shard, item.row)
        with self._reading[hash(key) % len(self._reading)]:
            record = self._from_cache(key) or self._read(item, key)
        data = record.get(role)
        if not data:
            raise ItemError("fetch", "no_picture", f"record {item.id} has no {role}")
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        kind = _BROWSERS.get(_format(data))
        if kind is None:
            return Picture(encode_image(decode_photo(data).pixels), "image/png", digest)
        return Picture(data, kind, digest)

    def _from_cache(self, key: tuple[str, int]) -> dict[str, bytes] | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def _read(self, item: QueueItem, key: tuple[str, int]) -> dict[str, bytes]:
        uri = storage.resolve(self._base, item.shard)
        moved = ItemError("fetch", "moved", f"record {item.id} is no longer row {item.row} of {item.shard}; make a queue with another name")
        try:
            with self._lock:
                footer = self._footers.get(uri)
            file = pq.ParquetFile(parquet_source(uri), metadata=footer, buffer_size=1 << 20)
            with self._lock:
                self._footers[uri] = file.metadata
            values = _row(file, item.row)
        except (ObjectMissing, IndexError) as error:
            raise moved from error
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{uri} cannot be read ({str(error).splitlines()[0]}); is a job writing there?") from error
        if values["id"] != item.id:
            raise moved
        record = {role: (values.get(role) or {}).get("bytes") or b"" for role in ROLES}
        with self._lock:
            self._kept[key] = record
            self._held += sum(map(len, record.values()))
            while self._held > self._limit and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._held -= sum(map(len, old.values()))
        return record


def _row(file: pq.ParquetFile, row: int) -> dict[str, Any]:
    """One row of a file, read in pieces of one row: a group may be larger than the memory at hand."""
    start = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if start <= row < start + count:
            columns = ["id", *(role for role in ROLES if role in file.schema_arrow.names)]
            batches = file.iter_batches(1, row_groups=[group], columns=columns)
            return dict(next(islice(batches, row - start, None)).to_pylist()[0])
        start += count
    raise IndexError(row)


def _format(data: bytes) -> str:
    try:
        return read_header(data).format
    except Rejected as error:
        raise ItemError("decode", "not_a_picture", f"a stored picture {error}") from error
