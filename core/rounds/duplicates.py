"""Photos of evaluation sets, by their looks, so that none of them, nor one that is near it, enters the training data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.curation.duplicates import RADIUS, DuplicateIndex
from core.curation.signature import Words, from_bytes, to_bytes


class KnownPhotos:
    """Photos that nothing may be near (``core.curation.duplicates`` says what that is).

    Args:
        signatures: (N, 15, 4) uint64, as ``core.curation.signature.signature`` gives each.
        radius: bits of 256 in which near photos may differ.

    Raises:
        UsageError: signatures of another shape, or a radius that is no number of bits.
    """

    def __init__(self, signatures: Words, radius: int = RADIUS) -> None:
        self.signatures = np.unique(signatures, axis=0) if len(signatures) else signatures
        self.radius = radius
        self._index = DuplicateIndex(radius=radius)
        self._index.add_many(self.signatures)

    def __reduce__(self) -> tuple[type[KnownPhotos], tuple[Words, int]]:
        return KnownPhotos, (self.signatures, self.radius)

    def __len__(self) -> int:
        return len(self.signatures)

    def near(self, signatures: Words) -> NDArray[np.bool_]:
        """(M,) bool: which of the photos with these signatures, (M, 15, 4) uint64, are near one of them."""
        found = np.zeros(len(signatures), np.bool_)
        if len(signatures) and len(self):
            found[self._index.pairs(signatures).given] = True
        return found

    def to_bytes(self) -> bytes:
        """The signatures, one after the other."""
        return to_bytes(self.signatures)

    @classmethod
    def of_bytes(cls, data: bytes, radius: int = RADIUS) -> KnownPhotos:
        """What ``to_bytes`` gave. Raises UsageError where it is no whole number of signatures."""
        return cls(from_bytes(data), radius)
