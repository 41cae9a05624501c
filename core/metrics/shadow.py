"""The shadow that an erasure left: a residual at low frequencies, where texture does not drown it.

On textured ground PSNR hardly tells a removed shadow from a kept one, since a shadow changes the mean and texture the rest.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import UsageError
from core.images import Pixels
from core.metrics.fidelity import check_pair, luminance

SIGMA_PX: Final = 8.0
LEAST_LEVELS: Final = 0.25
"""Below this mean difference between source and truth, of 255, there is no shadow that could be left or taken away."""


def shadow_residual(output: Pixels, truth: Pixels, source: Pixels, mask: Pixels, effect_mask: Pixels) -> float | None:
    """How much of the object's effect is left: 0 = gone, 1 = as in the source; above 1 where the erasure made it worse.

    Output and truth are blurred with a Gaussian of sigma 8 px; the mean absolute difference of luminance over ``effect_mask`` without
    ``mask``, divided by the same for the untouched source.

    Args:
        output, truth, source: (H, W, 3) uint8 RGB of one size.
        mask, effect_mask: (H, W) uint8, not zero = the object; the object and its effects.

    Returns:
        None where the effect mask has no pixel beyond the mask, or source and truth are equal there (within ``LEAST_LEVELS``).

    Raises:
        UsageError: sizes differ.
    """
    check_pair(output, truth)
    check_pair(source, truth)
    if mask.shape != truth.shape[:2] or effect_mask.shape != truth.shape[:2]:
        raise UsageError(f"the masks are {mask.shape} and {effect_mask.shape}, the pictures {truth.shape[:2]} pixels; they must be equal")
    region = (effect_mask > 0) & (mask == 0)
    if not region.any():
        return None
    clean = _low(truth)
    before = float(np.abs(_low(source) - clean)[region].mean(dtype=np.float64))
    if before < LEAST_LEVELS:
        return None
    return float(np.abs(_low(output) - clean)[region].mean(dtype=np.float64)) / before


def _low(pixels: Pixels) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(luminance(pixels), (0, 0), SIGMA_PX, borderType=cv2.BORDER_REFLECT), np.float32)
