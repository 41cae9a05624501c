"""OBER, ObjectClear's data: Parquet with ``input``, ``gt``, ``object_mask``, ``object_effect_mask`` (images), ``subset`` and ``split``.

Layout: the data set's card (huggingface.co/datasets/sczhou/OBERDataset_ObjectClear) and ObjectClear's ``ober_parquet_dataset.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

import pyarrow as pa

from core import storage
from core.collections.builder import Builder, Built, Choice, nothing_found
from core.errors import ItemError, UsageError
from core.plan import PlanRow
from core.readers import Input, open_parquet

_IMAGES: Final = ("input", "gt", "object_mask", "object_effect_mask")
_COLUMNS: Final = (*_IMAGES, "subset", "split")


def open_ober(uri: str, origin: str, choice: Choice) -> Input:
    """One Parquet file, or a folder with them (``data/train-00000-of-00053.parquet``, ...)."""
    if uri.endswith(".parquet"):
        base = storage.parent(uri)
        return Input("ober collection", base, lambda: _rows(base, [storage.relative(base, uri)], origin, choice))
    return Input("ober collection", uri, lambda: _rows(uri, _shards(uri), origin, choice))


def _shards(uri: str) -> list[str]:
    names = (storage.relative(uri, entry.uri) for entry in storage.storage_for(uri).list(uri))
    found = sorted(name for name in names if name.endswith(".parquet"))
    if not found:
        raise nothing_found(uri, "ober", "no Parquet file was found there")
    return found


def _rows(base: str, shards: list[str], origin: str, choice: Choice) -> Iterator[PlanRow]:
    for shard in shards:
        file = open_parquet(storage.join(base, shard))
        schema = file.schema_arrow
        missing = [name for name in _COLUMNS if name not in schema.names]
        if missing:
            raise UsageError(
                f"{storage.join(base, shard)} is no shard of OBER: no column {' and no column '.join(missing)}; "
                f"found {', '.join(schema.names)}"
            )
        for name in _IMAGES:
            kind = schema.field(name).type
            if not pa.types.is_struct(kind) or {field.name for field in kind} < {"bytes", "path"}:
                raise UsageError(f"{storage.join(base, shard)} is no shard of OBER: column {name} is {kind}; it must be an image")
        number = -1
        for batch in file.iter_batches(batch_size=8192, columns=["input.path", "subset", "split"]):
            for values in batch.to_pylist():
                number += 1
                subset, split = values["subset"] or "unknown", values["split"] or "unknown"
                if not _taken(split, choice.splits) or not _taken(subset, choice.subsets):
                    continue
                path = (values["input"] or {}).get("path")
                stem = PurePosixPath(path).stem if path else f"{PurePosixPath(shard).stem}-{number}"
                yield PlanRow(f"{split}/{subset}/{stem}", origin=f"{origin}/{subset}", shard=shard, row=number)


def _taken(name: str, allowed: frozenset[str]) -> bool:
    return not allowed or name.casefold() in allowed


class OberBuilder(Builder):
    """Takes the row out of its shard. The subset stays in ``origin``; where there is no ``gt`` (OBER-Wild) there is no target."""

    def build(self, row: Mapping[str, Any]) -> Built:
        self.check(row)
        values = self._shard_row(row["shard"], row["row"], _IMAGES)
        named = {name: self._image(values[name], row, name) for name in _IMAGES}
        source, mask = named["input"], named["object_mask"]
        if source is None or mask is None:
            missing = "input" if source is None else "object_mask"
            raise ItemError("fetch", "missing", f"row {row['row']} of {row['shard']} has no bytes in {missing}; get the shard again")
        return self.assemble(row, source=source, mask=mask, target=named["gt"], effect_mask=named["object_effect_mask"])

    def _image(self, value: Mapping[str, Any] | None, row: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        if not value or not value.get("bytes"):
            return None
        return {"bytes": value["bytes"], "path": value.get("path") or f"{row['id']}-{name}"}
