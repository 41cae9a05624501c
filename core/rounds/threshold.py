"""The score above which results are accepted without people, and how right that was.

RORem accepts above 0.9 (section 3.2), a number that means what it says only where the score is calibrated on the very results in question.
Here people judge a random part of them, and the lowest threshold is taken at which they bear out the precision that is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from core.errors import UsageError
from core.metrics.ranking import auroc
from core.metrics.statistics import wilson_interval
from core.rounds.settings import ThresholdSettings

CANDIDATES: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
NOTHING: Final = 1.0
"""Threshold that no score is above."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A result with the discriminator's score, 0 to 1, and people's verdict; ``groups`` names what it belongs to (eraser, class)."""

    score: float
    accepted: bool
    groups: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold, and why.

    Attributes:
        threshold: results that score above it are accepted.
        reason: ``precision`` (people bore it out), ``few_labels`` (the usual one) or ``not_reached`` (nothing is accepted).
        labels: judged results that it was chosen by.
    """

    threshold: float
    reason: Literal["precision", "few_labels", "not_reached"]
    labels: int


def choose_threshold(judged: Sequence[Judged], settings: ThresholdSettings) -> Choice:
    """The lowest of ``CANDIDATES`` above which the share of good results is at least ``settings.precision``, with ``settings.confidence``.

    The bound is Wilson's, one-sided, and its risk is divided by the number of candidates (Bonferroni): the best of ten thresholds looks
    better than it is. Few labels above a threshold make a wide interval, and so speak against it. Under ``least_labels`` in all, the usual
    threshold stands, and says so; where no candidate holds, nothing is accepted.

    Args:
        judged: results drawn at random from those that the threshold is for.
    """
    if len(judged) < settings.least_labels:
        return Choice(settings.usual, "few_labels", len(judged))
    risk = (1 - settings.confidence) / len(CANDIDATES)
    for threshold in CANDIDATES:
        above = [one.accepted for one in judged if one.score > threshold]
        if above and wilson_interval(sum(above), len(above), 1 - 2 * risk).low >= settings.precision:
            return Choice(threshold, "precision", len(judged))
    return Choice(NOTHING, "not_reached", len(judged))


def measure(judged: Sequence[Judged], threshold: float) -> dict[str, Any]:
    """How right the discriminator was about results that people judged and it was never trained on.

    Returns:
        ``labels``, ``accepted`` (share of all that people accepted), ``above`` (results over the threshold), ``precision`` of these with
        its interval (None where there are none), ``recall``, ``auroc`` (None where people judged all alike), and ``groups``: for every
        group (``model: ...``, ``category: ...``) its labels and precision.
    """
    if not judged:
        return {"labels": 0, "above": 0, "accepted": None, "precision": None, "recall": None, "auroc": None, "groups": {}}
    good = sum(one.accepted for one in judged)
    above = [one for one in judged if one.score > threshold]
    groups: dict[str, list[Judged]] = {}
    for one in judged:
        for kind, name in one.groups:
            groups.setdefault(f"{kind}: {name}", []).append(one)
    return {
        "labels": len(judged),
        "accepted": good / len(judged),
        "above": len(above),
        "precision": _precision(above),
        "recall": sum(one.accepted for one in above) / good if good else None,
        "auroc": _auroc(judged),
        "groups": {
            name: {"labels": len(found), "precision": _precision([one for one in found if one.score > threshold])}
            for name, found in sorted(groups.items())
        },
    }


def _precision(above: Sequence[Judged]) -> dict[str, float] | None:
    return asdict(wilson_interval(sum(one.accepted for one in above), len(above))) if above else None


def _auroc(judged: Sequence[Judged]) -> float | None:
    try:
        return auroc(np.array([one.score for one in judged]), np.array([float(one.accepted) for one in judged]))
    except UsageError:  # all were judged alike
        return None
