"""Getting an item's bytes: objects by URI, or rows of a dataset's shards."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core import record, storage
from core.errors import ItemError, ObjectMissing, ObjectTooLarge, StorageError, StorageUnavailable, UsageError
from core.images import decode_photo, storable_source
from core.masks import decode_mask, encode_mask
from core.readers import open_parquet
from core.workload import RawItem

LARGEST_OBJECT: Final = 1 << 30
_SHARD_COLUMNS: Final = ("source", "mask", "target", "effect_mask")


class Fetcher:
    """Fetches the items of a plan; may be used by many threads. One row group of one shard is kept, since neighbours stand together."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._lock = threading.Lock()
        self._files: dict[str, tuple[pq.ParquetFile, np.ndarray]] = {}
        self._group: tuple[str, int] | None = None
        self._table: pa.Table | None = None

    def uri(self, row: Mapping[str, Any]) -> str | None:
        """What a message about this plan row names."""
        name = row.get("source") or row.get("shard") or row.get("mask")
        try:
            return storage.resolve(self._base, name) if name else None
        except UsageError:  # of a scheme that cannot be read; fetching says so
            return str(name)

    def fetch(self, row: Mapping[str, Any]) -> RawItem:
        """The item of a plan row.

        Raises:
            ItemError: the plan knows that it fails, or an object is missing, forbidden or too large.
            StorageUnavailable: the store does not answer.
        """
        if row["error"]:
            raise ItemError("read", row["error"], row["message"])
        if row["shard"]:
            return self._from_shard(row)
        source, mask = self._bytes(row["source"], "source"), self._bytes(row["mask"], "mask")
        extra = {
            name: record.image_value(self._bytes(row[name], name.replace("_", " ")), row[name]) if row[name] else None
            for name in ("target", "effect_mask")
        }
        return RawItem(
            row["id"], source, mask, row["origin"], row["source"], row["mask"], extra["target"], extra["effect_mask"], row["category"]
        )

    def fetch_photo(self, row: Mapping[str, Any]) -> bytes:
        """The source of a plan row of files; its mask is not looked at. Raises as ``fetch``."""
        if row["error"]:
            raise ItemError("read", row["error"], row["message"])
        return self._bytes(row["source"], "source")

    def record_at(self, shard: str, row: int) -> dict[str, Any]:
        """All columns of a row of a dataset's shard; those that it lacks are null.

        Raises:
            StorageError: the shard cannot be read.
        """
        values = self._shard_row(shard, row, record.RECORD_SCHEMA.names)
        return record.empty_record(**{name: values.get(name) for name in record.RECORD_SCHEMA.names})

    def fetch_record(self, row: Mapping[str, Any], max_megapixels: float, *, needs_erasure: bool = True) -> dict[str, Any]:
        """The whole record of a plan row, with the erasure that the input has of it: all columns of a dataset's row, or built from files.

        Raises:
            ItemError: as ``fetch``; or source or mask of files cannot be decoded, or there is no erasure.
            StorageUnavailable: the store does not answer.
        """
        item = self.fetch(row)
        if row["shard"]:
            return {**self.record_at(row["shard"], row["row"]), "id": item.id, "origin": item.origin, "category": item.category}
        if needs_erasure and not row["erased"]:
            raise ItemError("fetch", "nothing_erased", f"{row['source']} has no erasure beside it; add erased/ or a column erased")
        photo = decode_photo(item.source, max_megapixels=max_megapixels)
        mask = decode_mask(item.mask, (photo.width, photo.height), max_megapixels=max_megapixels)
        return record.empty_record(
            id=item.id,
            source=record.image_value(storable_source(item.source, photo), item.source_name),
            mask=record.image_value(encode_mask(mask.pixels), item.mask_name),
            target=item.target,
            effect_mask=item.effect_mask,
            category=item.category,
            origin=item.origin,
            width=photo.width,
            height=photo.height,
            erased=record.image_value(self._bytes(row["erased"], "erasure"), row["erased"]) if row["erased"] else None,
        )

    def _bytes(self, name: str, role: str) -> bytes:
        try:
            uri = storage.resolve(self._base, name)
            return storage.storage_for(uri).read(uri, LARGEST_OBJECT)
        except ObjectMissing as error:
            raise ItemError("fetch", "missing", f"{role} is missing: {error}; correct the manifest or upload it") from error
        except ObjectTooLarge as error:
            raise ItemError("fetch", "too_large", f"{role}: {error}") from error
        except StorageUnavailable:
            raise
        except (StorageError, UsageError) as error:
            raise ItemError("fetch", "not_readable", f"{role} cannot be read: {error}") from error

    def _from_shard(self, row: Mapping[str, Any]) -> RawItem:
        try:
            values = self._shard_row(row["shard"], row["row"])
        except ObjectMissing as error:
            raise ItemError("fetch", "missing", f"shard of the input is missing: {error}; put it back") from error
        for name in ("source", "mask"):
            if not (values[name] or {}).get("bytes"):
                raise ItemError(
                    "fetch", "missing", f"{name} of record {row['id']} has no bytes in {row['shard']}; a dataset holds its pictures"
                )
        source, mask = values["source"], values["mask"]
        return RawItem(
            row["id"],
            source["bytes"],
            mask["bytes"],
            row["origin"],
            source["path"],
            mask["path"],
            values.get("target"),
            values.get("effect_mask"),
            row["category"],
        )

    def _shard_row(self, shard: str, row: int, columns: Sequence[str] = _SHARD_COLUMNS) -> dict[str, Any]:
        with self._lock:
            file, starts = self._open(shard)
            group = int(np.searchsorted(starts, row, side="right")) - 1
            wanted = [name for name in columns if name in file.schema_arrow.names]
            if self._group != (shard, group) or self._table is None or not set(wanted) <= set(self._table.column_names):
                self._table = file.read_row_group(group, columns=wanted)
                self._group = (shard, group)
            table, start = self._table, int(starts[group])
        return dict(table.slice(row - start, 1).to_pylist()[0])

    def _open(self, shard: str) -> tuple[pq.ParquetFile, np.ndarray]:
        if shard not in self._files:
            self._files.clear()
            file = open_parquet(storage.resolve(self._base, shard))
            sizes = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
            self._files[shard] = (file, np.cumsum([0, *sizes])[:-1])
        return self._files[shard]
