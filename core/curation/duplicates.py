"""Near-duplicates: which photos are the same picture, resized, encoded anew or cropped by up to 5 %.

Two photos are near where the hash of the whole of one and that of a window of the other (``core.curation.signature``) differ in at most
``RADIUS`` of 256 bits. Candidates are those that agree exactly in one of four bands of 16 low-frequency bits (locality-sensitive hashing
by bit sampling, Indyk and Motwani 1998): sorted arrays, searched without a Python loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from core.curation.signature import WINDOWS, WORDS, Words
from core.errors import UsageError

RADIUS: Final = 48
"""Bits of 256. Measured on 156 photos: 5 % crops differ by 36 in 99 % of cases and by 44 at most, different photos by 80 and more."""
_COARSE_RADIUS: Final = 16
"""Of the first 64 bits; looked at before the rest is fetched."""
_BANDS: Final = 4
_BAND_BITS: Final = 16
_TAIL: Final = 2048
"""Hashes that were added last are compared one by one; more are sorted in."""
_CANDIDATES: Final = 1 << 21
"""Compared at a time: 100 MB."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """A photo of the index that is near a given one: how many bits differ, and its name."""

    distance: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Near pairs of given photos and photos of an index, each once, with their least distance.

    Attributes:
        given, found: (P,) int64 numbers of the given photo and of the one in the index (in the order in which they were added).
        distance: (P,) int64 bits.
        window: (P,) int64 number in ``WINDOWS`` of the part that is like the whole of the other photo.
        of_given: (P,) bool: that part is of the given photo; otherwise of the one in the index.
    """

    given: Indices
    found: Indices
    distance: Indices
    window: Indices
    of_given: NDArray[np.bool_]


class DuplicateIndex:
    """Photos by their looks.

    Args:
        radius: bits of 256 that may differ.
        both_ways: also find photos that are crops of those in the index. Costs about 1,200 bytes a photo and not 80; without it the index
            finds them where each photo of it is also asked for, as in a collection against itself.

    Raises:
        UsageError: the radius is no number of bits.
    """

    def __init__(self, *, radius: int = RADIUS, both_ways: bool = True) -> None:
        if not 0 <= radius <= 256:
            raise UsageError(f"a radius is 0 to 256 bits, got {radius}")
        self.radius = radius
        self._names: list[str] = []
        self._count = 0
        self._wholes = _HashTable()
        self._parts = _HashTable() if both_ways else None

    def __len__(self) -> int:
        return self._count

    def add(self, name: str, found: Words) -> None:
        """Add one photo by its ``signature``, (15, 4) uint64."""
        if len(self._names) != self._count:
            raise UsageError("photos were added without names; add all with names or none")
        self._names.append(name)
        self.add_many(found[None])

    def add_many(self, found: Words) -> None:
        """Add (N, 15, 4) uint64 signatures without names; they are known by their numbers."""
        _check(found)
        numbers = np.arange(self._count, self._count + len(found), dtype=np.int64)
        self._wholes.add(found[:, 0], numbers, np.zeros(len(found), np.int64))
        if self._parts is not None:
            windows = np.tile(np.arange(1, len(WINDOWS), dtype=np.int64), len(found))
            self._parts.add(found[:, 1:].reshape(-1, WORDS), np.repeat(numbers, len(WINDOWS) - 1), windows)
        self._count += len(found)

    def near(self, found: Words) -> list[Match]:
        """The named photos that are near the one with this ``signature``, (15, 4) uint64; nearest first."""
        pairs = self.pairs(found[None])
        return sorted(Match(int(distance), self._names[number]) for number, distance in zip(pairs.found, pairs.distance, strict=True))

    def pairs(self, found: Words) -> Pairs:
        """All near pairs of (N, 15, 4) uint64 signatures with the photos of the index; a photo that is in it is near itself."""
        _check(found)
        rows: list[NDArray[np.int64]] = [np.zeros((5, 0), np.int64)]
        windows = np.tile(np.arange(len(WINDOWS), dtype=np.int64), len(found))
        owners = np.repeat(np.arange(len(found), dtype=np.int64), len(WINDOWS))
        for asked, place, distance in self._wholes.near(found.reshape(-1, WORDS), self.radius):
            rows.append(np.stack([owners[asked], self._wholes.numbers[place], distance, windows[asked], np.ones_like(asked)]))
        if self._parts is not None:
            for asked, place, distance in self._parts.near(np.ascontiguousarray(found[:, 0]), self.radius):
                rows.append(np.stack([asked, self._parts.numbers[place], distance, self._parts.windows[place], np.zeros_like(asked)]))
        return _best(np.concatenate(rows, axis=1))


def _check(found: Words) -> None:
    if found.dtype != np.uint64 or found.ndim != 3 or found.shape[1:] != (len(WINDOWS), WORDS):
        raise UsageError(f"signatures are (N, {len(WINDOWS)}, {WORDS}) uint64, got {found.shape} {found.dtype}")


def _best(rows: NDArray[np.int64]) -> Pairs:
    """Of each pair the row with the least distance; a whole that is like a whole goes before windows."""
    given, found, distance, window, of_given = rows
    order = np.lexsort((of_given, window, distance, found, given))
    given, found, distance, window, of_given = rows[:, order]
    first = np.ones(len(given), np.bool_)
    first[1:] = (given[1:] != given[:-1]) | (found[1:] != found[:-1])
    return Pairs(given[first], found[first], distance[first], window[first], of_given[first].astype(np.bool_))


class _HashTable:
    """Hashes (N, 4) uint64 with what they are of, in parts: sorted ones by band, and a short tail that is compared one by one."""

    def __init__(self) -> None:
        self._stored: list[tuple[Words, Indices, Indices]] = []
        self._hashes: Words = np.zeros((0, WORDS), np.uint64)
        self._coarse: Words = np.zeros(0, np.uint64)
        self.numbers: Indices = np.zeros(0, np.int64)
        self.windows: Indices = np.zeros(0, np.int64)
        self._orders: list[Indices] = []
        self._starts: list[Indices] = []
        self._sorted = 0

    def add(self, hashes: Words, numbers: Indices, windows: Indices) -> None:
        self._stored.append((np.ascontiguousarray(hashes), numbers, windows))

    def _gather(self) -> None:
        if self._stored:
            added = list(zip(*self._stored, strict=True))
            self._stored = []
            self._hashes = np.concatenate([self._hashes, *added[0]])
            self.numbers = np.concatenate([self.numbers, *added[1]])
            self.windows = np.concatenate([self.windows, *added[2]])
            self._coarse = np.ascontiguousarray(self._hashes[:, 0])
        if len(self._hashes) - self._sorted > max(_TAIL, self._sorted // 8):
            self._orders, self._starts = [], []
            for band in range(_BANDS):
                keys = _band(self._coarse, band)
                self._orders.append(np.argsort(keys, kind="stable"))
                self._starts.append(np.cumsum(np.bincount(keys + 1, minlength=(1 << _BAND_BITS) + 1)))
            self._sorted = len(self._hashes)

    def near(self, hashes: Words, radius: int) -> Iterator[tuple[Indices, Indices, Indices]]:
        """(which of ``hashes``, place in the table, bits) of near ones, in pieces; one may come several times."""
        self._gather()
        first = np.ascontiguousarray(hashes[:, 0])
        for asked, place in self._candidates(first):
            coarse = np.bitwise_count(first[asked] ^ self._coarse[place]) <= min(_COARSE_RADIUS, radius)
            asked, place = asked[coarse], place[coarse]
            distance = np.bitwise_count(hashes[asked] ^ self._hashes[place]).sum(axis=1, dtype=np.int64)
            close = distance <= radius
            yield asked[close], place[close], distance[close]

    def _candidates(self, hashes: Words) -> Iterator[tuple[Indices, Indices]]:
        """Pairs that share a band of their first words, ``hashes`` (N,) uint64."""
        for band, (order, starts) in enumerate(zip(self._orders, self._starts, strict=True)):
            keys = _band(hashes, band)
            begin = starts[keys]
            counts = starts[keys + 1] - begin
            for first, last in _pieces(counts):
                part = counts[first:last]
                asked = np.repeat(np.arange(first, last, dtype=np.int64), part)
                shift = np.repeat(begin[first:last] - (np.cumsum(part) - part), part)
                yield asked, order[np.arange(len(asked), dtype=np.int64) + shift]
        tail = np.arange(self._sorted, len(self._hashes), dtype=np.int64)
        step = max(1, _CANDIDATES // max(1, len(tail)))
        for first in range(0, len(hashes) if len(tail) else 0, step):
            rows = np.arange(first, min(first + step, len(hashes)), dtype=np.int64)
            yield np.repeat(rows, len(tail)), np.tile(tail, len(rows))


def _band(first_words: Words, band: int) -> Indices:
    return ((first_words >> np.uint64(band * _BAND_BITS)) & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)


def _pieces(counts: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Ranges of ``counts`` whose sums are about ``_CANDIDATES``, or one entry where that alone is more."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _CANDIDATES, side="right")))
        yield first, last
        first = last
