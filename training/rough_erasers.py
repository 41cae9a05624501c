"""Plain erasers, whose good and bad results a discriminator learns from: ``training.judged_triplets``.

They are none of those that people erase with (``core.eraser``), so that these can show what a discriminator makes of results that it has
not learnt. Each takes a photo (H, W, 3) uint8 and a hole (H, W) bool with at least one pixel in and one out of it, and gives the photo with
the hole filled; all else in it is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from core.images import Pixels

Hole = NDArray[np.bool_]
RoughEraser = Callable[[Pixels, Hole, np.random.Generator], Pixels]

OFFSETS: Final = 48
"""Places that ``moved`` tries."""
MORE_OFFSETS: Final = 400
"""Places that ``matched`` tries."""
RING_PX: Final = 5
"""Width of the ring around the hole in which a place is compared, in pixels."""


def smooth(photo: Pixels, hole: Hole, rng: np.random.Generator) -> Pixels:
    """Navier-Stokes inpainting (Bertalmio et al. 2001)."""
    return np.asarray(cv2.inpaint(photo, hole.astype(np.uint8), float(rng.integers(3, 8)), cv2.INPAINT_NS), dtype=np.uint8)


def mean_tone(photo: Pixels, hole: Hole, rng: np.random.Generator) -> Pixels:
    """A wide mean of what surrounds the hole, weighted by nearness: no structure at all."""
    sigma = max(2.0, float(np.sqrt(hole.sum())) * float(rng.uniform(0.1, 0.3)))
    tone = _spread(photo.astype(np.float32), ~hole, sigma)
    return np.where(hole[..., None], np.clip(np.rint(tone), 0, 255), photo).astype(np.uint8)


def _spread(values_HW3: NDArray[np.float32], known: Hole, sigma: float) -> NDArray[np.float32]:
    """Everywhere the mean of the known values, weighted by nearness."""
    weights = known.astype(np.float32)
    factor = min(1.0, 6.0 / sigma)  # a wide blur is the same on a small picture, and many times as fast
    height, width = known.shape
    small = (max(8, round(width * factor)), max(8, round(height * factor)))
    total, weight = (
        cv2.GaussianBlur(cv2.resize(each, small, interpolation=cv2.INTER_AREA), (0, 0), sigma * factor)
        for each in (values_HW3 * weights[..., None], weights)
    )
    # far from all that is known both are next to nothing, and so is the mean
    return np.asarray(cv2.resize(total / (weight + 1e-4)[..., None], (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def moved(photo: Pixels, hole: Hole, rng: np.random.Generator) -> Pixels:
    """One piece of the photo from elsewhere: of some places that were drawn, that whose rim fits the hole's best."""
    return _moved(photo, hole, rng, OFFSETS)


def matched(photo: Pixels, hole: Hole, rng: np.random.Generator) -> Pixels:
    """A piece from the best of many places, its tones made those of the hole's rim: the one of these that may pass for an erasure."""
    piece = _moved(photo, hole, rng, MORE_OFFSETS, rim=True)
    ring = _ring(hole)
    apart = photo.astype(np.float32) - piece
    tone = _spread(apart, ring, max(2.0, 0.15 * float(np.sqrt(hole.sum()))))
    return np.where(hole[..., None], np.clip(np.rint(piece + tone), 0, 255), photo).astype(np.uint8)


def _ring(hole: Hole) -> Hole:
    return (cv2.dilate(hole.astype(np.uint8), np.ones((2 * RING_PX + 1,) * 2, np.uint8)) > 0) & ~hole


def _moved(photo: Pixels, hole: Hole, rng: np.random.Generator, offsets: int, *, rim: bool = False) -> Pixels:
    """The photo with a piece of it in the hole; with ``rim`` also in the ring around it. Where no place has room, ``smooth``'s."""
    height, width = hole.shape
    rows, columns = np.nonzero(hole)
    top, bottom, left, right = int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
    ring = _ring(hole)
    ring_rows, ring_columns = np.nonzero(ring)
    best, rim_there, least = (0, 0), (ring_rows, ring_columns), np.inf
    for _ in range(offsets):
        down, along = int(rng.integers(-top, height - bottom + 1)), int(rng.integers(-left, width - right + 1))
        there = (np.clip(ring_rows + down, 0, height - 1), np.clip(ring_columns + along, 0, width - 1))
        if hole[rows + down, columns + along].any():
            continue
        error = float(np.mean((photo[there].astype(np.float32) - photo[ring_rows, ring_columns]) ** 2))
        if error < least:
            best, rim_there, least = (down, along), there, error
    if least == np.inf:  # nowhere is room for the whole piece
        return smooth(photo, hole, rng)
    filled = photo.copy()
    if rim:
        filled[ring_rows, ring_columns] = photo[rim_there]
    filled[rows, columns] = photo[rows + best[0], columns + best[1]]
    return filled


def mirrored(photo: Pixels, hole: Hole, rng: np.random.Generator) -> Pixels:
    """The hole's rows or columns continued from its rim as in a mirror, from the side with more room."""
    across = bool(rng.random() < 0.5)
    seen, inside = (photo, hole) if across else (photo.swapaxes(0, 1), hole.T)
    filled = seen.copy()
    for row in np.flatnonzero(inside.any(axis=1)).tolist():
        places = np.flatnonzero(inside[row])
        first, last, width = int(places[0]), int(places[-1]), inside.shape[1]
        mirror = first - 1 if first >= width - 1 - last else last + 1
        filled[row, places] = seen[row, np.clip(2 * mirror - places, 0, width - 1)]
    return np.ascontiguousarray(filled if across else filled.swapaxes(0, 1))


ROUGH_ERASERS: Final[Mapping[str, RoughEraser]] = {
    "smooth": smooth,
    "mean_tone": mean_tone,
    "moved": moved,
    "matched": matched,
    "mirrored": mirrored,
}
