"""Which items make up which step: a pure function of the items, the seed and the step, whatever the number of workers.

An epoch's batches have as many *lanes* as a batch has items. The groups of neighbours in the data (row groups) are shuffled, each lane gets
a span of the resulting sequence, and the items of a span are shuffled within windows of some steps. So the items of a batch come from as
many places of the data as it has items, a worker that reads its lanes for a window reads every group about once, and what it takes at a
step does not depend on how many others there are, or on when it began.

Photos of several sizes are spread over buckets (training pictures of one size); a batch is of one bucket.

Legend for shape suffixes: N items, S steps of an epoch, G items of a batch (lanes).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from core.errors import UsageError
from training.index import TrainingIndex

WINDOW: Final = 8
"""Steps within which a lane's items are shuffled, and that are read at a time: what a task of the feed holds in memory grows with it."""
ASPECTS: Final = (1.0, 4 / 3, 3 / 2, 16 / 9)
GRID: Final = 64
"""Sides of training pictures are multiples of this in aspect buckets, as SDXL's are."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Training pictures of one size: ``width`` x ``height`` pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """An epoch: ``bucket_S`` int64, which bucket a step's batch is of; ``item_SG`` int64, which items it takes."""

    bucket_S: np.ndarray
    item_SG: np.ndarray


def make_buckets(sizes: tuple[int, ...], *, aspects: bool) -> tuple[Bucket, ...]:
    """Squares of every size; with ``aspects`` also broad and upright ones of about the same area, their sides multiples of 64."""
    buckets: list[Bucket] = []
    for size in sizes:
        for ratio in ASPECTS if aspects else (1.0,):
            long = size if ratio == 1.0 else round(size * math.sqrt(ratio) / GRID) * GRID
            short = size if ratio == 1.0 else round(size / math.sqrt(ratio) / GRID) * GRID
            buckets += [Bucket(long, short), Bucket(short, long)]
    return tuple(dict.fromkeys(buckets))


class TrainingOrder:
    """The order of all steps.

    Args:
        index: the items.
        buckets: sizes of training pictures.
        batch_size: items a step, of all workers together.
        seed: of the training.

    Raises:
        UsageError: there are too few items for one batch.
    """

    def __init__(self, index: TrainingIndex, buckets: tuple[Bucket, ...], batch_size: int, seed: int) -> None:
        self.index, self.buckets, self.batch_size, self.seed = index, buckets, batch_size, seed
        self._counted: list[int] = []
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        if not self.steps_in(0):
            raise UsageError(
                f"a batch takes {batch_size} items of one size, and there are {len(index)} items for {len(buckets)} sizes: "
                "lower batch_size, give more data, or fewer sizes"
            )

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch and place in it of a step; all from 0."""
        epoch, left = 0, step
        if len(self.buckets) == 1:
            return divmod(step, self.steps_in(0))
        while left >= (steps := self.steps_in(epoch)):
            left -= steps
            epoch += 1
        return epoch, left

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch: whole batches; which items are left over differs between epochs."""
        if len(self.buckets) == 1:
            return len(self.index) // self.batch_size
        while len(self._counted) <= epoch:
            steps = int((np.bincount(self._bucket_of_items(len(self._counted))) // self.batch_size).sum())
            # where sizes are drawn so that no bucket fills a batch, an epoch still has a step
            self._counted.append(max(1, steps) if self._counted else steps)
        return self._counted[epoch]

    def items(self, step: int, lanes: slice) -> tuple[Bucket, np.ndarray, int]:
        """Bucket, items (int64) and epoch of some lanes of a step."""
        epoch, place = self.locate(step)
        order = self.epoch(epoch)
        return self.buckets[int(order.bucket_S[place])], order.item_SG[place, lanes], epoch

    def windows(self, start: int, stop: int) -> Iterator[range]:
        """The steps from ``start`` to before ``stop`` in runs that are read together: parts of the windows of an epoch."""
        while start < stop:
            epoch, place = self.locate(start)
            end = min((place // WINDOW + 1) * WINDOW, self.steps_in(epoch))
            following = min(start + end - place, stop)
            yield range(start, following)
            start = following

    def _bucket_of_items(self, epoch: int) -> np.ndarray:
        """The bucket of every item in an epoch, (N,) int64: of the sizes that its photo can fill, one by its id and the epoch; of these
        the one of its aspect. A photo whose size is not known, or that is too small for all, gets the smallest."""
        if len(self.buckets) == 1:
            return np.zeros(len(self.index), np.int64)
        areas = np.array([bucket.width * bucket.height for bucket in self.buckets], np.float64)
        ratios = np.log([bucket.width / bucket.height for bucket in self.buckets])
        size_N2 = self.index.size_N2.astype(np.float64)
        known_N = (size_N2 > 0).all(axis=1)
        ratio_N = np.log(np.where(known_N, size_N2[:, 0].clip(1) / size_N2[:, 1].clip(1), 1.0))
        # a little enlargement is allowed: a photo of 1000 pixels serves a picture of 1024
        fits_NK = (size_N2.prod(axis=1) * 1.25)[:, None] >= areas[None]
        levels = np.array(sorted({round(math.sqrt(area) / GRID) for area in areas}))
        level_K = np.abs(np.sqrt(areas)[:, None] / GRID - levels[None]).argmin(axis=1)
        most_N = np.where(fits_NK, level_K[None], -1).max(axis=1).clip(0)
        draw_N = (_mixed(self.index.key_N, self.seed, epoch) / float(2**64) * (most_N + 1)).astype(np.int64)
        distance_NK = np.abs(ratio_N[:, None] - ratios[None]) + 1e3 * (level_K[None] != draw_N[:, None])
        return distance_NK.argmin(axis=1)

    def _epoch(self, epoch: int) -> EpochOrder:
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        groups = int(self.index.group_N.max()) + 1
        rank_N = rng.permutation(groups)[self.index.group_N]
        sequence = np.lexsort((np.arange(len(rank_N)), rank_N))
        bucket_N = self._bucket_of_items(epoch)
        parts: list[np.ndarray] = []
        buckets: list[np.ndarray] = []
        for number in range(len(self.buckets)):
            mine = sequence[bucket_N[sequence] == number]
            steps = len(mine) // self.batch_size
            # whose remainder is left out changes with the permutation
            lanes_GS = mine[: steps * self.batch_size].reshape(self.batch_size, steps)
            window_S = np.arange(steps) // WINDOW
            within_GS = np.argsort(window_S[None] + rng.random(lanes_GS.shape), axis=1)
            parts.append(np.take_along_axis(lanes_GS, within_GS, axis=1).T)
            buckets.append(np.full(steps, number))
        items_SG, bucket_S = np.concatenate(parts), np.concatenate(buckets)
        if not len(bucket_S):  # in this epoch no bucket has a whole batch: one of the fullest, filled up with its own items
            number = int(np.bincount(bucket_N, minlength=len(self.buckets)).argmax())
            mine = sequence[bucket_N[sequence] == number]
            return EpochOrder(np.array([number]), np.resize(mine, (1, self.batch_size)))
        if len(self.buckets) > 1:
            # steps of a bucket stay in their order, so that what is read together stays together
            mixed_S = bucket_S[rng.permutation(len(bucket_S))]
            place_S = np.empty(len(bucket_S), np.int64)
            for number in range(len(self.buckets)):
                place_S[mixed_S == number] = np.flatnonzero(bucket_S == number)
            items_SG, bucket_S = items_SG[place_S], mixed_S
        return EpochOrder(bucket_S, items_SG)


def worker_lanes(batch_size: int, rank: int, world_size: int) -> slice:
    """The lanes of a worker: as even as may be.

    Raises:
        UsageError: there are more workers than lanes.
    """
    if world_size > batch_size:
        raise UsageError(f"{world_size} workers share a batch of {batch_size}: each needs an item; raise batch_size or use fewer workers")
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


def _mixed(key_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Hashes (N,) uint64 of key, seed and epoch (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        z = key_N + np.uint64((seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03 + 1) & (2**64 - 1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
