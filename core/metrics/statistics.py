"""Intervals: how far a share or a mean over some items may be from that over all items of their kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from core.errors import UsageError

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
_DRAWS_AT_ONCE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or a share with its interval from ``low`` to ``high``, over ``count`` items."""

    mean: float
    low: float
    high: float
    count: int


def wilson_interval(successes: int, count: int, confidence: float = CONFIDENCE) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927), which stays in [0, 1] and is honest at 0 and at 1.

    Raises:
        UsageError: no items, more successes than items, or a confidence outside (0, 1).
    """
    _check_confidence(confidence)
    if count < 1 or not 0 <= successes <= count:
        raise UsageError(f"{successes} successes of {count} items; a share needs items, and from 0 to all of them")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # at 0 and at 1 the bound is the share itself, and rounding would miss it
    low, high = (0.0 if successes == 0 else middle - half), (1.0 if successes == count else middle + half)
    return Estimate(share, low, high, count)


def bootstrap_mean(values_N: np.ndarray, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """A mean with its percentile bootstrap interval (Efron 1979): items are drawn with replacement, the same for the same ``seed``.

    Differences of two models on the same items are such values, too: their interval is that of the paired difference. Time is that of
    ``resamples`` means.

    Args:
        values_N: (N,) finite numbers, one an item.

    Raises:
        UsageError: no values, one that is not finite, a confidence outside (0, 1), or no resamples.
    """
    _check_confidence(confidence)
    values_N = np.asarray(values_N, np.float64)
    if values_N.ndim != 1 or not len(values_N) or not np.isfinite(values_N).all() or resamples < 1:
        raise UsageError(f"values of shape {values_N.shape} and {resamples} resamples; a mean needs finite numbers, at least one of both")
    generator = np.random.default_rng(seed)
    count = len(values_N)
    at_once = max(1, _DRAWS_AT_ONCE // count)
    sizes = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    means = np.concatenate([values_N[generator.integers(0, count, (size, count))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(values_N.mean()), float(low), float(high), count)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}; it must be above 0 and below 1, as 0.95")
