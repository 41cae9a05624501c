"""Latents of a dataset's pictures, kept beside them: what a row of such a dataset holds, how it is made, and how it is read.

A cached dataset is an ordinary one (``core.record``) of square views of one size, with one more column, ``latents``: the moments (mean and
log-variance) that the autoencoder gives of every picture of the row, as it is and mirrored, since an autoencoder does not quite commute
with mirroring. Pictures are stored without loss, so the moments belong to the very pixels beside them, and whatever needs pixels works as
before.

``core.latent_encoding`` makes the moments; nothing here needs a network library. L stands for latent channels, h and w for latent sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from core import storage
from core.errors import ItemError, UsageError
from core.readers import open_parquet

LATENTS_COLUMN: Final = "latents"
LATENTS_FIELD: Final = pa.field(
    LATENTS_COLUMN,
    pa.struct(
        [
            pa.field("bytes", pa.binary()),
            pa.field("pictures", pa.list_(pa.string())),
            pa.field("shape", pa.list_(pa.int32())),
            pa.field("dtype", pa.string()),
            pa.field("vae", pa.string()),
        ]
    ),
)
"""All moments of a row: an array of ``shape`` (pictures, 2 orientations, 2 L, h, w) and ``dtype`` in C order, little-endian; the names of
its ``pictures``; and the fingerprint of the autoencoder's encoder."""

StoredType = Literal["float16", "float32"]


class LatentsUnusable(UsageError):
    """The cache as a whole does not fit what is asked of it: no item of it will."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedMoments:
    """The moments of a row's pictures.

    Attributes:
        vae: ``core.latent_encoding.vae_fingerprint`` of the autoencoder that made them.
        moments: (2, 2 L, h, w) float16 or float32 by picture; 0 is the picture as it is, 1 the mirrored one; channels are L means, then L
            log-variances, unscaled. Pictures are ``source``, ``target``, ``erased``, and the conditioning picture under the row's own
            mask, ``masked`` or ``prefilled``.
    """

    vae: str
    moments: Mapping[str, np.ndarray]

    def value(self) -> dict[str, Any]:
        """As the column holds it."""
        stacked = np.stack(list(self.moments.values()))
        return {
            "bytes": stacked.astype(stacked.dtype.newbyteorder("<")).tobytes(),
            "pictures": list(self.moments),
            "shape": list(stacked.shape),
            "dtype": stacked.dtype.name,
            "vae": self.vae,
        }

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> CachedMoments:
        """What ``value`` made; arrays are views of its bytes, not to be written to.

        Raises:
            ItemError: the value contradicts itself.
        """
        shape, names = tuple(int(side) for side in value["shape"]), [str(name) for name in value["pictures"]]
        if value["dtype"] not in ("float16", "float32"):
            raise ItemError("decode", "bad_latents", f"latents are {value['dtype']}, not float16 or float32; run cleanplate encode again")
        kind = np.dtype(str(value["dtype"])).newbyteorder("<")
        if len(shape) != 5 or shape[0] != len(names) or shape[1] != 2 or len(value["bytes"]) != np.prod(shape) * kind.itemsize:
            raise ItemError(
                "decode",
                "bad_latents",
                f"latents of {len(names)} pictures are {len(value['bytes'])} bytes of shape {shape}; run cleanplate encode again",
            )
        stacked = np.frombuffer(value["bytes"], kind).reshape(shape)
        return cls(str(value["vae"]), dict(zip(names, stacked, strict=True)))


class LatentReader:
    """Reads the column ``latents`` of single rows; one row group of one shard is kept, since neighbours stand together. For one thread."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._shard: str | None = None
        self._starts = np.zeros(0, np.int64)
        self._file: Any = None
        self._group = -1
        self._table: pa.Table | None = None

    def value(self, shard: str, row: int) -> dict[str, Any]:
        """A row's value of the column, for ``CachedMoments.of``.

        Raises:
            LatentsUnusable: the shard has no such column, or the row nothing in it.
            StorageError: the shard cannot be read.
        """
        if shard != self._shard:
            self._open(shard)
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group or self._table is None:
            self._table, self._group = self._file.read_row_group(group, columns=[LATENTS_COLUMN]), group
        found = self._table.column(0)[row - int(self._starts[group])].as_py()
        if found is None:
            raise LatentsUnusable(f"row {row} of {shard} has no latents; run cleanplate encode on the data, or set data.latents false")
        return dict(found)

    def _open(self, shard: str) -> None:
        file = open_parquet(storage.resolve(self._base, shard))
        names: Sequence[str] = file.schema_arrow.names
        if LATENTS_COLUMN not in names:
            raise LatentsUnusable(f"{shard} has no column {LATENTS_COLUMN}; run cleanplate encode on the data, or set data.latents false")
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        self._file, self._shard, self._starts = file, shard, np.cumsum([0, *sizes])[:-1]
        self._group, self._table = -1, None
