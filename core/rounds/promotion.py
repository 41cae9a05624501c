"""Whether a new remover takes the place of the one before: not where it is surely worse on the evaluation set.

RORem trains on from the last remover whatever became of it. A loop that learns from its own results can go down a slope, each round a
little; so a new remover is compared, item by item, with the best that stood before it, not with the last one alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from core.metrics.statistics import Estimate, bootstrap_mean


@dataclass(frozen=True, slots=True)
class Promotion:
    """What was decided, and why.

    Attributes:
        promoted: the new remover stands.
        better: its mean is above that of the best before, so that later ones are compared with it.
        difference: mean of the paired differences, new less best before, with its 95 % interval; None where they share no item.
    """

    promoted: bool
    better: bool
    difference: Estimate | None


def decide(best: Mapping[str, float], new: Mapping[str, float]) -> Promotion:
    """Refuse the new remover where the whole interval of the paired difference is below 0.

    Args:
        best, new: one figure of each item by id, higher is better; ids that only one has are left alone.
    """
    shared = sorted(best.keys() & new.keys())
    if not shared:
        return Promotion(promoted=True, better=True, difference=None)
    difference = bootstrap_mean(np.array([new[item] - best[item] for item in shared], np.float64))
    return Promotion(promoted=difference.high >= 0, better=difference.mean > 0, difference=difference)
