"""How well scores tell good items from bad ones: AUROC, and precision and recall at a threshold.

Whether scores mean what they say is ``core.calibration.expected_calibration_error``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.errors import UsageError


def auroc(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Area under the ROC curve, 0 to 1: the probability that a good item scores above a bad one, ties counted by half.

    Args:
        scores_N: (N,) finite numbers.
        labels_N: (N,) 1 = good, 0 = bad.

    Raises:
        UsageError: lengths differ, a value is not allowed, or all items are of one kind.
    """
    scores_N, good_N = _checked(scores_N, labels_N)
    good, bad = int(good_N.sum()), int((~good_N).sum())
    if not good or not bad:
        raise UsageError(f"{good} good and {bad} bad items; an AUROC needs at least one of both")
    _, inverse, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    rank_N = (last - (counts - 1) / 2)[inverse]  # ties share the mean of their ranks, which counts them by half
    return float((rank_N[good_N].sum() - good * (good + 1) / 2) / (good * bad))


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """What is above a threshold.

    Attributes:
        accepted: items above it.
        correct: good items among them.
        good: good items in all.
    """

    accepted: int
    correct: int
    good: int

    @property
    def precision(self) -> float | None:
        """Share of good items among those above, 0 to 1; None where nothing is above."""
        return self.correct / self.accepted if self.accepted else None

    @property
    def recall(self) -> float | None:
        """Share of the good items that are above, 0 to 1; None where none is good."""
        return self.correct / self.good if self.good else None


def at_threshold(scores_N: np.ndarray, labels_N: np.ndarray, threshold: float) -> AtThreshold:
    """The items that score strictly above ``threshold``, as ``core.record.verdict_for`` accepts them. Arguments and errors as ``auroc``."""
    scores_N, good_N = _checked(scores_N, labels_N)
    above_N = scores_N > threshold
    return AtThreshold(int(above_N.sum()), int((above_N & good_N).sum()), int(good_N.sum()))


def _checked(scores_N: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores_N, labels_N = np.asarray(scores_N, np.float64), np.asarray(labels_N, np.float64)
    if scores_N.ndim != 1 or scores_N.shape != labels_N.shape:
        raise UsageError(f"{scores_N.shape} scores and {labels_N.shape} labels; give one of each for every item")
    if not np.isfinite(scores_N).all() or not np.isin(labels_N, (0.0, 1.0)).all():
        raise UsageError("a ranking needs finite scores, and labels that are 0 (bad) or 1 (good)")
    return scores_N, labels_N == 1
