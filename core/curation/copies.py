"""Which items of a collection show the same: one photo may carry many objects, so photos are compared once, and then the boxes on them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.curation.duplicates import DuplicateIndex, Pairs
from core.curation.signature import WINDOWS, WORDS, Words

LEAST_OVERLAP: Final = 0.5
"""Two objects on one photo are one where the intersection of their boxes is at least this share of their union."""
_ROWS: Final = 512
_MIX: Final = np.random.default_rng(20).integers(0, 2**63, len(WINDOWS) * WORDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def photo_keys(signatures: Words) -> NDArray[np.uint64]:
    """(N,) a number for each of (N, 15, 4) signatures, the same for the same photo (and, once in 10**19 pairs, for two others)."""
    mixed = signatures.reshape(len(signatures), -1) * _MIX
    return np.asarray((mixed ^ (mixed >> np.uint64(29))).sum(axis=1, dtype=np.uint64))


class Copies:
    """Compares N items with one another; give the signatures of all to ``add``, in pieces and in order, then all again to ``compare``.

    Args:
        keys: (N,) of ``photo_keys``.
        ranks: (N,) int64; of two copies the one with the lower rank stays.
        boxes: (N, 4) float32 x0, y0, x1, y1 in fractions; NaN where unknown, which is taken as the same as any.
        whole_photos: items on near photos are copies wherever their boxes lie.
    """

    def __init__(self, keys: NDArray[np.uint64], ranks: NDArray[np.int64], boxes: NDArray[np.float32], *, whole_photos: bool) -> None:
        _, first, photo = np.unique(keys, return_index=True, return_inverse=True)
        self._is_first = np.zeros(len(keys), np.bool_)
        self._is_first[first] = True
        # photos are numbered by their first items, which is how the index sees them
        number = np.empty(len(first), np.int64)
        number[np.argsort(first)] = np.arange(len(first))
        self._photo = number[photo]
        self._rows = np.lexsort((ranks, self._photo))
        self._starts = np.searchsorted(self._photo[self._rows], np.arange(len(first) + 1))
        self._rank, self._boxes, self._whole = ranks, boxes, whole_photos
        self._better = np.full(len(keys), -1, np.int64)
        self._index = DuplicateIndex(both_ways=False)
        self._added = self._asked = 0
        self._photos_asked = 0

    def add(self, signatures: Words) -> None:
        """The next signatures, (M, 15, 4)."""
        self._index.add_many(signatures[self._is_first[self._added : self._added + len(signatures)]])
        self._added += len(signatures)

    def compare(self, signatures: Words) -> None:
        """The same once more, when all were added."""
        firsts = signatures[self._is_first[self._asked : self._asked + len(signatures)]]
        pairs = self._index.pairs(firsts)
        for place in range(len(pairs.given)):
            given, found = int(pairs.given[place]) + self._photos_asked, int(pairs.found[place])
            if given != found or self._starts[given + 1] - self._starts[given] > 1:
                self._settle(given, found, pairs, place)
        self._asked += len(signatures)
        self._photos_asked += len(firsts)

    def better(self) -> NDArray[np.int64]:
        """(N,) for each item the copy of it with the least rank, if that is lower than its own; else -1."""
        return self._better

    def _settle(self, given: int, found: int, pairs: Pairs, place: int) -> None:
        mine, other = (self._rows[self._starts[photo] : self._starts[photo + 1]] for photo in (given, found))
        if self._whole:  # rows of a photo are in the order of their ranks
            self._note(mine, np.full(len(mine), other[0]))
            self._note(other, np.full(len(other), mine[0]))
            return
        part = np.array(WINDOWS[int(pairs.window[place])], np.float32)
        for first in range(0, len(mine), _ROWS):
            some = mine[first : first + _ROWS]
            for start in range(0, len(other), _ROWS):
                others = other[start : start + _ROWS]
                outer, inner = (some, others) if pairs.of_given[place] else (others, some)
                same = same_object(self._boxes[outer], self._boxes[inner], part)
                left, right = np.nonzero(same if pairs.of_given[place] else same.T)
                self._note(some[left], others[right])
                self._note(others[right], some[left])

    def _note(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Remember ``others`` for ``rows`` where they have a lower rank than the row and than what was remembered."""
        lower = (self._rank[others] < self._rank[rows]) | ((self._rank[others] == self._rank[rows]) & (others < rows))
        rows, others = rows[lower], others[lower]
        order = np.lexsort((-others, -self._rank[others]))
        rows, others = rows[order], others[order]
        known = self._better[rows]
        new = (known < 0) | (self._rank[others] < self._rank[known])
        self._better[rows[new]] = others[new]  # of several for one row the last is written, which has the least rank


def same_object(outer: NDArray[np.float32], inner: NDArray[np.float32], part: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether objects are one when a photo is laid on the part of another that it was cut from.

    Args:
        outer: (A, 4) boxes on the larger photo, in fractions of it; inner: (B, 4) on the part.
        part: (4,) x0, y0, x1, y1 of the part in fractions of the larger photo.

    Returns:
        (A, B) bool.
    """
    corner = np.concatenate([part[:2], part[:2]])
    size = np.concatenate([part[2:] - part[:2]] * 2)
    moved = np.clip((outer - corner) / size, 0, 1)[:, None]
    other = inner[None]
    sides = np.clip(np.minimum(moved[..., 2:], other[..., 2:]) - np.maximum(moved[..., :2], other[..., :2]), 0, None)
    shared = sides.prod(axis=2)
    union = (moved[..., 2:] - moved[..., :2]).prod(axis=2) + (other[..., 2:] - other[..., :2]).prod(axis=2) - shared
    unknown = np.isnan(outer.sum(axis=1))[:, None] | np.isnan(inner.sum(axis=1))[None]
    return np.asarray((shared >= LEAST_OVERLAP * union) | unknown, np.bool_)
