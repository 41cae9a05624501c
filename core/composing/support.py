"""Where feet may stand on a photo of which nothing is known: by a rule on colours, or by networks that know floors and flat surfaces.

The rule: ground is what reaches the lower edge of the photo in one colour, and does not go on into its upper half, as clouds, walls and
close-ups do; bluish ground is water, and next to no light is a silhouette. A rule of thumb: water of other colours and hedges pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import cv2
import numpy as np

from core.errors import UsageError
from core.images import Pixels

RULE: Final = "rule"
_SIDE: Final = 192
_BLUR_PX: Final = 1.6
_TOLERANCE: Final = (26.0, 9.0, 9.0)
"""How far L*, a* and b* may be from those at the lower edge."""
_SEEDS: Final = 17
_UPPER: Final = 0.45
_LARGEST_UPPER: Final = 0.25
"""Share of the photo's upper part that ground may fill: hills do, clouds and walls fill more."""
_LOWEST_B: Final = -3.0
_DARKEST_L: Final = 14.0
_HIGHEST_FOOT: Final = 0.6
_LEAST: Final = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Support:
    """Where feet may stand.

    Attributes:
        mask: (h, w) bool of a smaller copy of the photo.
    """

    mask: np.ndarray

    def mirrored(self) -> Support:
        """That of the photo turned over its vertical middle line."""
        return Support(self.mask[:, ::-1])

    def draw(self, rng: np.random.Generator) -> tuple[float, float]:
        """(x, y) of a point of it, in fractions of the photo."""
        height, width = self.mask.shape
        places = np.flatnonzero(self.mask)
        row, column = divmod(int(places[int(rng.random() * len(places))]), width)
        return (column + float(rng.random())) / width, (row + float(rng.random())) / height

    def holds(self, x: float, y: float, reach: float) -> bool:
        """Whether it is below all of a foot: x - reach to x + reach at y, in fractions of the photo."""
        height, width = self.mask.shape
        row = min(height - 1, max(0, int(y * height)))
        left, right = int((x - reach) * width), int((x + reach) * width)
        return left >= 0 and right < width and bool(self.mask[row, left : right + 1].all())


class SupportFinder(Protocol):
    """Anything that tells where feet may stand."""

    def __call__(self, photo: Pixels) -> Support | None:
        """Of (H, W, 3) uint8 RGB; None where nothing can stand anywhere. A function of the photo alone."""


def ground_by_colour(photo: Pixels) -> Support | None:
    """The rule at the head of this file."""
    scale = _SIDE / max(photo.shape[:2])
    size = _scaled_size(photo, scale)
    small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    plain = cv2.cvtColor(small.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    smooth = cv2.GaussianBlur(plain, (0, 0), _BLUR_PX)
    width, height = size
    found = np.zeros((height, width), np.uint8)
    flags = 8 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (255 << 8)
    for x in np.linspace(3, width - 4, _SEEDS):
        if not found[height - 3, int(x)]:
            reached = np.zeros((height + 2, width + 2), np.uint8)
            cv2.floodFill(smooth, reached, (int(x), height - 3), 0, _TOLERANCE, _TOLERANCE, flags)
            found |= reached[1:-1, 1:-1]
    inside = found > 0
    if inside[: int(_UPPER * height)].mean() > _LARGEST_UPPER:
        return None
    lightness, _, blueness = plain[inside].mean(axis=0)
    if blueness < _LOWEST_B or lightness < _DARKEST_L:
        return None
    closed = cv2.morphologyEx(found, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    # from the lower edge up to the first thing that is something else
    ground = np.minimum.accumulate(closed[: height - 1][::-1], axis=0)[::-1] > 0
    return _usable(np.vstack([ground, np.zeros((1, width), np.bool_)]))


class SurfaceNetworks:
    """Flat surfaces by class (Mask2Former) and, if asked, by depth (Depth Anything V2), after ObjectClear (arXiv 2505.22636, section 3).

    Args:
        classes: folder, ``s3://`` folder or hub id of a semantic segmenter.
        depth: of a depth estimator; ``none`` for none: a region counts by its class alone.

    Raises:
        UsageError: a model is missing, of another kind or broken, or knows no flat class.
    """

    def __init__(self, classes: str, depth: str = "none") -> None:
        from core.perception.depth import DepthEstimator
        from core.perception.semantics import SemanticSegmenter

        self._classes = SemanticSegmenter(classes, device="cpu", dtype="float32")
        self._depth = None if depth == "none" else DepthEstimator(depth, device="cpu")

    def __call__(self, photo: Pixels) -> Support | None:
        from core.perception.depth import flatness
        from core.perception.semantics import support_mask

        scale = min(1.0, 2 * _SIDE / max(photo.shape[:2]))
        size = _scaled_size(photo, scale)
        classes = self._classes.segment([photo])[0]
        flat = support_mask(classes.classes, classes.names)
        if self._depth is not None:
            depth = self._depth.estimate([photo])[0]
            count, labels = cv2.connectedComponents(flat, connectivity=4)
            for label in range(1, count):
                region = np.where(labels == label, 255, 0).astype(np.uint8)
                try:
                    is_flat = flatness(depth, region).is_flat()
                except UsageError:  # too narrow to tell
                    is_flat = False
                if not is_flat:
                    flat[region > 0] = 0
        return _usable(np.asarray(cv2.resize(flat, size, interpolation=cv2.INTER_NEAREST)) > 0)


def _scaled_size(photo: Pixels, scale: float) -> tuple[int, int]:
    """(width, height) of a smaller copy, at least 16 pixels each."""
    return max(16, round(photo.shape[1] * scale)), max(16, round(photo.shape[0] * scale))


def _usable(mask: np.ndarray) -> Support | None:
    """The lower part of a region, where things stand as large as one expects; None where next to nothing is left of it."""
    lower = mask.copy()
    lower[: int(_HIGHEST_FOOT * len(lower))] = False
    return Support(lower) if lower.mean() >= _LEAST else None
