"""The seam of an erasure: a step along the mask's border that the true picture does not have."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from core.errors import UsageError
from core.images import Pixels
from core.metrics.fidelity import check_pair, luminance

REACH_PX: Final = 12
"""How far outside the mask a fill may end: masks are dilated and feathered before they are filled."""


def seam_excess(output: Pixels, truth: Pixels, mask: Pixels, reach_px: int = REACH_PX) -> float | None:
    """The step across the worst border, in levels of 255, above the truth's there: 0 = as in the truth, 3 and more is well visible.

    Borders are the lines at a whole distance of 0 to ``reach_px`` pixels around the mask, since nobody knows at which one a fill was
    joined. Across each, the mean absolute difference of luminance between neighbours on either side, less the same of the truth.

    Args:
        output, truth: (H, W, 3) uint8 RGB of one size.
        mask: (H, W) uint8, not zero = removed.
        reach_px: 0 and more.

    Returns:
        None where the mask has no border: it covers nothing, or everything.

    Raises:
        UsageError: sizes differ, or a negative reach.
    """
    check_pair(output, truth)
    if mask.shape != truth.shape[:2] or reach_px < 0:
        raise UsageError(f"mask of {mask.shape} and reach of {reach_px}; a mask has the picture's {truth.shape[:2]}, a reach is 0 or more")
    if not (mask > 0).any() or (mask > 0).all():
        return None
    distance = cv2.distanceTransform(np.equal(mask, 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ring = np.ceil(distance).astype(np.int64)
    mine, its = luminance(output), luminance(truth)
    sums, counts = np.zeros(reach_px + 2), np.zeros(reach_px + 2, np.int64)
    for near, far in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        border = np.maximum(ring[near], ring[far])
        crossed = (ring[near] != ring[far]) & (border <= reach_px + 1)
        excess = np.abs(mine[near] - mine[far]) - np.abs(its[near] - its[far])
        sums += np.bincount(border[crossed], weights=excess[crossed], minlength=reach_px + 2)
        counts += np.bincount(border[crossed], minlength=reach_px + 2)
    return float((sums[counts > 0] / counts[counts > 0]).max())
