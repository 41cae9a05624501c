"""Masks as people and detectors give them: grown, eroded, or drawn by hand as a box, a brush stroke, a lasso or a hull.

Every change is a pure function of a mask and a generator. Masks are (H, W) uint8, 255 = remove and 0 = keep, and nothing else; results
are new arrays, never empty, and never full unless what came in was. Lengths are pixels of the training picture, whose shorter side is
compared with ``REFERENCE_SIDE`` where a paper gives them in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

import cv2
import numpy as np

from core.errors import UsageError
from core.images import Pixels
from core.masks import dilate, mask_box

REFERENCE_SIDE: Final = 512
"""Side in pixels of the pictures for which ``KERNEL_BY_SHARE`` is given."""

KERNEL_BY_SHARE: Final = ((0.005, 5), (0.02, 8), (0.05, 12), (0.10, 17), (0.25, 23), (1.0, 30))
"""(share of the picture that the mask takes at most, side of the largest kernel in pixels) of ObjectClear's released training code."""

_MAX_DABS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskAugmentation:
    """How often a mask is changed, and how: at most one change an item, and none with the probability that is left.

    The defaults are those of ObjectClear's released code: dilate, erode and leave with 0.67, 0.165 and 0.165; nothing is drawn by hand.

    Attributes:
        dilate: see ``grown``.
        erode: see ``eroded``.
        box: see ``padded_box``.
        stroke: see ``brush_stroke``.
        polygon: see ``loose_polygon``.
        hull: see ``padded_hull``.

    Raises:
        UsageError: a probability is not within 0 to 1, or they add up to more than 1.
    """

    dilate: float = 0.67
    erode: float = 0.165
    box: float = 0.0
    stroke: float = 0.0
    polygon: float = 0.0
    hull: float = 0.0

    def __post_init__(self) -> None:
        for name, chance in self.probabilities.items():
            if not 0 <= chance <= 1:
                raise UsageError(f"mask augmentation {name} is {chance}; a probability is 0 to 1")
        total = sum(self.probabilities.values())
        if total > 1 + 1e-9:
            raise UsageError(f"the probabilities of mask augmentation add up to {total:g}; allowed is 1 at most: lower some of them")

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of every change by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


UNCHANGED: Final = MaskAugmentation(dilate=0.0, erode=0.0)
"""Masks as they are, for validation."""

HAND_DRAWN: Final = MaskAugmentation(dilate=0.30, erode=0.08, box=0.12, stroke=0.16, polygon=0.12, hull=0.10)
"""Half of the masks as people draw them; the rest near ObjectClear's proportions."""


def largest_kernel(mask: Pixels) -> int:
    """Side in pixels of the largest kernel for a mask: by its share of the picture, in proportion to the picture's shorter side."""
    share = cv2.countNonZero(mask) / mask.size
    side = next(kernel for most, kernel in KERNEL_BY_SHARE if share <= most)
    return max(1, round(side * min(mask.shape) / REFERENCE_SIDE))


def grown(mask: Pixels, rng: np.random.Generator) -> Pixels:
    """Dilated by a k x k square, k uniform from 1 to ``largest_kernel`` (ObjectClear, released code); covers the mask."""
    _check(mask)
    side = int(rng.integers(1, largest_kernel(mask) + 1))
    return _unless_full(cv2.dilate(mask, np.ones((side, side), np.uint8)).astype(np.uint8, copy=False), mask)


def eroded(mask: Pixels, rng: np.random.Generator) -> Pixels:
    """Eroded by a k x k square, k uniform over the odd numbers up to ``largest_kernel`` (ObjectClear, released code).

    A part of the mask; the whole mask where nothing would be left of it.
    """
    _check(mask)
    side = 1 + 2 * int(rng.integers(0, (largest_kernel(mask) + 1) // 2))
    smaller = cv2.erode(mask, np.ones((side, side), np.uint8)).astype(np.uint8, copy=False)
    return smaller if smaller.any() else mask.copy()


def padded_box(mask: Pixels, rng: np.random.Generator) -> Pixels:
    """The box around the mask, each side moved outwards by up to a quarter of the box; covers the mask's box, or is the mask itself."""
    _check(mask)
    x0, y0, x1, y1 = mask_box(mask)
    left, top, right, bottom = (rng.uniform(0, 0.25, 4) * np.array([x1 - x0, y1 - y0] * 2)).round().astype(int)
    drawn = np.zeros_like(mask)
    drawn[max(y0 - top, 0) : y1 + bottom, max(x0 - left, 0) : x1 + right] = 255
    return _unless_full(drawn, mask)


def padded_hull(mask: Pixels, rng: np.random.Generator) -> Pixels:
    """The convex hull of the mask, grown by up to 8 % of its box; covers the mask and every line between two of its points."""
    _check(mask)
    drawn = np.zeros_like(mask)
    cv2.fillConvexPoly(drawn, cv2.convexHull(_points(mask)), 255)
    drawn |= mask
    return _unless_full(dilate(drawn, round(rng.uniform(0, 0.08) * _extent(mask))), mask)


def loose_polygon(mask: Pixels, rng: np.random.Generator) -> Pixels:
    """A lasso: straight lines at a distance of up to about a sixth of the box around the mask and what lies inside it; covers the mask."""
    _check(mask)
    margin = max(2, round(rng.uniform(0.04, 0.12) * _extent(mask)))
    # padded, or the lines would follow the picture's edge and cut the corners there
    around = dilate(np.pad(mask, 2 * margin), margin)
    outlines, _ = cv2.findContours(around, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    drawn = np.zeros_like(around)
    for outline in outlines:
        # what is cut off and how far a corner slips add up to less than the margin, so that the object stays inside
        corners = cv2.approxPolyDP(outline, 0.4 * margin, True).reshape(-1, 2)
        slip = rng.uniform(-0.35, 0.35, corners.shape) * margin
        cv2.fillPoly(drawn, [np.rint(corners + slip).astype(np.int32)], 255)
    inner = np.ascontiguousarray(drawn[2 * margin : -2 * margin, 2 * margin : -2 * margin])
    return _unless_full(inner | mask, mask)


def brush_stroke(mask: Pixels, rng: np.random.Generator) -> Pixels:
    """One round brush moved to and fro over the object at some angle, with dabs where it missed; covers the mask.

    The brush's radius is 6 to 20 % of the longer side of the mask's box.
    """
    _check(mask)
    radius = max(2.0, rng.uniform(0.06, 0.2) * _extent(mask))
    angle = rng.uniform(0, math.pi)
    along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    points = _points(mask).reshape(-1, 2).astype(np.float64)
    t, s = points @ along, points @ across
    rows = np.floor((s - s.min()) / (1.3 * radius)).astype(int)
    path: list[np.ndarray] = []
    for row in np.unique(rows):
        chosen = rows == row
        ends = [t[chosen].min(), t[chosen].max()]
        middle = s[chosen].mean()
        path += [end * along + middle * across for end in (ends if len(path) % 4 == 0 else ends[::-1])]
    corners = np.array(path) + rng.uniform(-0.25, 0.25, (len(path), 2)) * radius
    drawn = np.zeros_like(mask)
    cv2.polylines(drawn, [np.rint(corners).astype(np.int32)], False, 255, thickness=max(1, round(2 * radius)))
    for _ in range(_MAX_DABS):
        missed = np.flatnonzero(mask & ~drawn)
        if not len(missed):
            break
        y, x = divmod(int(missed[rng.integers(len(missed))]), mask.shape[1])
        cv2.circle(drawn, (x, y), math.ceil(radius), 255, thickness=-1)
    return _unless_full(drawn | mask, mask)


SHAPES: Final[dict[str, Callable[[Pixels, np.random.Generator], Pixels]]] = {
    "dilate": grown,
    "erode": eroded,
    "box": padded_box,
    "stroke": brush_stroke,
    "polygon": loose_polygon,
    "hull": padded_hull,
}
"""The changes by the names of ``MaskAugmentation``'s fields."""


def draw_change(settings: MaskAugmentation, rng: np.random.Generator) -> str | None:
    """Which change this item gets, a key of ``SHAPES``; None for none."""
    at = rng.random()
    for name, chance in settings.probabilities.items():
        at -= chance
        if at < 0:
            return name
    return None


def augment_mask(mask: Pixels, rng: np.random.Generator, settings: MaskAugmentation) -> Pixels:
    """The mask with one change drawn by ``settings``, or a copy of it.

    Args:
        mask: (H, W) uint8, 0 or 255, at least one pixel set.
        rng: the item's own; the result depends on nothing else.
        settings: how often which change is made.

    Raises:
        UsageError: no such mask.
    """
    _check(mask)
    change = draw_change(settings, rng)
    return mask.copy() if change is None else SHAPES[change](mask, rng)


def _check(mask: Pixels) -> None:
    if mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
        raise UsageError(f"a mask to augment is (H, W) uint8, got {mask.shape} {mask.dtype}")
    if not mask.any():
        raise UsageError("a mask to augment is empty; set at least one pixel to 255, or leave an empty mask as it is")
    if ((mask != 0) & (mask != 255)).any():
        raise UsageError("a mask to augment has values other than 0 and 255; threshold it first, as core.masks.decode_mask does")


def _unless_full(drawn: Pixels, mask: Pixels) -> Pixels:
    """``drawn``, or a copy of the mask where nothing of the picture would be left."""
    return mask.copy() if drawn.all() else drawn


def _extent(mask: Pixels) -> int:
    x0, y0, x1, y1 = mask_box(mask)
    return max(x1 - x0, y1 - y0)


def _points(mask: Pixels) -> np.ndarray:
    """(N, 1, 2) int32 x and y of all set pixels."""
    return np.argwhere(mask)[:, None, ::-1].astype(np.int32)
