"""Whether an erasure whose clean plate is known succeeded: the judgement that a discriminator is trained on and measured by."""

from __future__ import annotations

from typing import Final

GOOD_LPIPS: Final = 0.45
FAILED_LPIPS: Final = 0.8
"""LPIPS as shares of that of the untouched source: up to the one a result may be good, from the other on it failed."""
GOOD_RESIDUAL: Final = 0.4
FAILED_RESIDUAL: Final = 0.7
"""The same for the shadow residual."""


def measured_success(lpips: float | None, source_lpips: float | None, residual: float | None) -> bool | None:
    """True: a success, False: a failure, None: neither, or nobody can say.

    Args:
        lpips: distance of the result from the clean plate.
        source_lpips: that of the untouched source.
        residual: see ``core.metrics.shadow``; None where the object has no shadow or reflection.
    """
    if lpips is None or not source_lpips:
        return None
    share, left = lpips / source_lpips, residual or 0.0
    if share >= FAILED_LPIPS or left >= FAILED_RESIDUAL:
        return False
    return True if share <= GOOD_LPIPS and left <= GOOD_RESIDUAL else None
