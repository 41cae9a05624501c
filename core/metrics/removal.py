"""ReMOVE and ReMOVE+: does what fills the hole look like what is around it, by features of a segmenter's encoder.

ReMOVE (Chandrasekar et al. 2024, section 3) needs no truth: the cosine of the mean feature within the mask and of that around it, both of
the result. ReMOVE+ (ObjectClear, section 5) takes the mean around from the *input*, and the mask with the object's effects. Unlike the
reference, the crop stays square and inside the picture: it is moved, not cut, at the border, so that mask and features stay aligned.

Legend for shapes: C channels, h w sides of the feature map, H W of the picture.
"""

from __future__ import annotations

from typing import Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import ItemError
from core.images import Pixels
from core.masks import mask_box

MARGIN_PX: Final = 16


class FeatureEncoder(Protocol):
    """A network that gives a picture a map of features; SAM's image encoder in the paper."""

    def features(self, pixels: Pixels) -> NDArray[np.float32]:
        """(C, h, w) float32 of a square picture (S, S, 3) uint8 RGB."""


def remove_score(encoder: FeatureEncoder, output: Pixels, mask: Pixels) -> float:
    """ReMOVE, -1 to 1, higher is better, of a result (H, W, 3) uint8 whose mask (H, W) is 255 where the object was.

    Raises:
        ItemError: stage ``evaluate``, code ``no_region``: the mask is empty, or leaves nothing around it.
    """
    return remove_plus_score(encoder, output, output, mask)


def remove_plus_score(encoder: FeatureEncoder, output: Pixels, source: Pixels, region: Pixels) -> float:
    """ReMOVE+, -1 to 1, higher is better: within ``region`` (object and effects) of the output, around it of the source; one crop for both.

    Errors as ``remove_score``.
    """
    x0, y0, side = square_around(region)
    inside, outside = (encoder.features(_cut(picture, x0, y0, side)) for picture in (output, source))
    return cosine_within(inside, outside, _cut(region, x0, y0, side))


def square_around(region: Pixels) -> tuple[int, int, int]:
    """Left, top and side in pixels of the square around the region with a margin of ``MARGIN_PX``, moved and shrunk to fit the picture.

    Raises:
        ItemError: as ``remove_score``.
    """
    if not (region > 0).any():
        raise ItemError("evaluate", "no_region", "the mask is empty; ReMOVE compares what is within it with what is around")
    box = mask_box(region)
    height, width = region.shape
    left, top, right, bottom = (int(value) for value in box)
    side = min(max(right - left, bottom - top) + 2 * MARGIN_PX, height, width)
    x0 = min(max(0, (left + right - side) // 2), width - side)
    y0 = min(max(0, (top + bottom - side) // 2), height - side)
    return x0, y0, side


def cosine_within(inside_Chw: NDArray[np.float32], outside_Chw: NDArray[np.float32], region: Pixels) -> float:
    """Cosine of the mean feature of the first map within the region and of the second one outside of it; -1 to 1.

    The region (H, W) is brought to the maps' size; a cell counts as inside only where all of it is, and as outside where nothing of it is.

    Raises:
        ItemError: as ``remove_score``.
    """
    height, width = inside_Chw.shape[1:]
    share = cv2.resize((region > 0).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    within, around = share >= 1 - 1e-6, share <= 1e-6
    if not within.any() or not around.any():
        raise ItemError("evaluate", "no_region", f"on {width} x {height} features, the mask covers no whole cell, or all of them")
    first, second = inside_Chw[:, within].mean(axis=1, dtype=np.float64), outside_Chw[:, around].mean(axis=1, dtype=np.float64)
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-12))


def _cut(picture: Pixels, x0: int, y0: int, side: int) -> Pixels:
    return np.ascontiguousarray(picture[y0 : y0 + side, x0 : x0 + side])
