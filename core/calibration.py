"""Calibration: from a discriminator's logits to probabilities that mean what they say, fitted on held-out judgements.

Two maps, both monotone, so that neither changes which of two erasures is the better one. ``Temperature`` divides the logit by one number
before the sigmoid (Guo et al. 2017, section 4.2). ``Isotonic`` is the best monotone curve through the judgements (pool adjacent violators,
Ayer et al. 1955; Zadrozny and Elkan 2002, section 3.2); it assumes nothing of the logit's scale, which makes it the right one for a head
that was trained with a squared error on a softplus, and it needs some hundred judgements.

Legend for shapes: N items, K breakpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from core.errors import UsageError

LOWEST_TEMPERATURE: Final = 0.05
HIGHEST_TEMPERATURE: Final = 20.0
HALVINGS: Final = 80
_LARGEST_LOGIT: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Temperature:
    """probability = sigmoid(logit / ``temperature``) (Guo et al. 2017, section 4.2).

    Raises:
        UsageError: ``temperature`` is not a finite number above 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise UsageError(f"a calibration's temperature is {self.temperature!r}; it must be a finite number above 0")

    def __call__(self, logits_N: np.ndarray) -> np.ndarray:
        """Probabilities (N,) float64 in [0, 1] for logits (N,); NaN stays NaN."""
        return sigmoid(np.asarray(logits_N, np.float64) / self.temperature)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a discriminator's configuration."""
        return {"kind": "temperature", "temperature": self.temperature}


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A monotone curve through breakpoints, straight between them and level beyond them.

    Attributes:
        x: logits (K,), increasing.
        y: probabilities (K,) in [0, 1], not decreasing.

    Raises:
        UsageError: there is no breakpoint, their numbers differ, or they are not as above.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.x or len(self.x) != len(self.y):
            raise UsageError(f"an isotonic calibration has {len(self.x)} x and {len(self.y)} y; it needs as many of both, at least one")
        if not all(_is_number(value) and abs(value) <= _LARGEST_LOGIT for value in self.x) or any(
            high <= low for low, high in zip(self.x, self.x[1:], strict=False)
        ):
            raise UsageError("an isotonic calibration's x must be finite numbers that increase")
        if not all(_is_number(value) and 0 <= value <= 1 for value in self.y) or any(
            high < low for low, high in zip(self.y, self.y[1:], strict=False)
        ):
            raise UsageError("an isotonic calibration's y must be numbers from 0 to 1 that do not decrease")

    def __call__(self, logits_N: np.ndarray) -> np.ndarray:
        """Probabilities (N,) float64 in [0, 1] for logits (N,); NaN stays NaN."""
        logits_N = np.asarray(logits_N, np.float64)
        x_K, y_K = np.asarray(self.x, np.float64), np.asarray(self.y, np.float64)
        inside_N = np.clip(logits_N, x_K[0], x_K[-1])
        right_N = np.searchsorted(x_K, inside_N).clip(0, len(x_K) - 1)
        left_N = np.maximum(right_N - 1, 0)
        width_N = x_K[right_N] - x_K[left_N]
        share_N = np.divide(inside_N - x_K[left_N], width_N, out=np.zeros_like(inside_N), where=width_N > 0)
        # rounding may carry the sum a bit past the right end, and then the curve would fall there; at the end it is the breakpoint itself
        values_N = np.minimum(y_K[left_N] + share_N * (y_K[right_N] - y_K[left_N]), y_K[right_N])
        values_N = np.where(inside_N == x_K[right_N], y_K[right_N], values_N)
        return np.where(np.isnan(logits_N), np.nan, values_N)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a discriminator's configuration."""
        return {"kind": "isotonic", "x": list(self.x), "y": list(self.y)}


Calibration: TypeAlias = Temperature | Isotonic


def calibration_from_json(value: Any) -> Calibration:
    """The calibration that ``to_json`` wrote.

    Raises:
        UsageError: it is neither ``{"kind": "temperature", "temperature": T}`` nor ``{"kind": "isotonic", "x": [...], "y": [...]}``.
    """
    names = {"temperature": {"kind", "temperature"}, "isotonic": {"kind", "x", "y"}}
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in names or set(value) != names[kind]:
        raise UsageError(
            f'calibration is {str(value)[:200]}; allowed: {{"kind": "temperature", "temperature": T}} or '
            '{"kind": "isotonic", "x": [...], "y": [...]}'
        )
    if kind == "temperature":
        return Temperature(value["temperature"])
    if not isinstance(value["x"], list) or not isinstance(value["y"], list):
        raise UsageError("an isotonic calibration's x and y must be lists of numbers")
    return Isotonic(tuple(value["x"]), tuple(value["y"]))


def fit_temperature(logits_N: np.ndarray, labels_N: np.ndarray) -> Temperature:
    """The temperature, from 0.05 to 20, with the least cross-entropy (Guo et al. 2017, section 4.2).

    In 1 / temperature the cross-entropy of a sigmoid is convex, so that halving the interval by the sign of its slope finds the least
    value, and never more than that of temperature 1.

    Args:
        logits_N: (N,) of held-out items.
        labels_N: (N,) from 0 to 1, people's judgement (a share of votes is allowed).

    Raises:
        UsageError: lengths differ, a value is not allowed, or all items are judged alike.
    """
    logits_N, labels_N = _judged(logits_N, labels_N)
    low, high = 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if float(np.mean((sigmoid(middle * logits_N) - labels_N) * logits_N)) > 0:
            high = middle
        else:
            low = middle
    found = 2 / (low + high)
    better = cross_entropy(logits_N / found, labels_N) < cross_entropy(logits_N, labels_N)
    return Temperature(found if better else 1.0)


def fit_isotonic(logits_N: np.ndarray, labels_N: np.ndarray) -> Isotonic:
    """The monotone curve with the least squared error to the labels at the logits, by pooling adjacent violators (Ayer et al. 1955).

    Every pool of neighbours becomes a level piece from its first logit to its last; between pools the curve is straight.

    Args:
        logits_N: (N,) of held-out items.
        labels_N: (N,) from 0 to 1, people's judgement (a share of votes is allowed).

    Raises:
        UsageError: lengths differ, a value is not allowed, or all items are judged alike.
    """
    logits_N, labels_N = _judged(logits_N, labels_N)
    # equal logits get one probability whatever the curve, so they enter as one point with their weight
    points, inverse = np.unique(logits_N, return_inverse=True)
    weights, sums = np.bincount(inverse).astype(np.float64), np.bincount(inverse, weights=labels_N)
    pools: list[tuple[float, float, int, int]] = []  # sum of labels, weight, first point, last point
    for index in range(len(points)):
        total, weight, first = float(sums[index]), float(weights[index]), index
        while pools and pools[-1][0] * weight >= total * pools[-1][1]:
            before = pools.pop()
            total, weight, first = total + before[0], weight + before[1], before[2]
        pools.append((total, weight, first, index))
    x: list[float] = []
    y: list[float] = []
    for total, weight, first, last in pools:
        # rounding of the quotient may undo what the exact comparison above has settled
        level = max(min(total / weight, 1.0), y[-1] if y else 0.0)
        for point in sorted({first, last}):
            x.append(float(points[point]))
            y.append(level)
    return Isotonic(tuple(x), tuple(y))


def sigmoid(values_N: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-value)) of any shape, float64, without overflow."""
    values_N = np.asarray(values_N, np.float64)
    small = np.exp(-np.abs(values_N))
    return np.where(values_N >= 0, 1 / (1 + small), small / (1 + small))


def cross_entropy(logits_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean negative log-likelihood, in nats, of labels (N,) in [0, 1] under sigmoid(logits (N,))."""
    logits_N, labels_N = np.asarray(logits_N, np.float64), np.asarray(labels_N, np.float64)
    return float(np.mean(np.logaddexp(0.0, logits_N) - labels_N * logits_N))


def expected_calibration_error(probabilities_N: np.ndarray, labels_N: np.ndarray, bins: int = 15) -> float:
    """Mean distance, 0 to 1, of what was said from what came true, over ``bins`` equal steps of probability (Guo et al. 2017, section 2).

    Of each step, the mean probability against the mean label, weighted by its items.

    Args:
        probabilities_N: (N,) in [0, 1].
        labels_N: (N,) in [0, 1].

    Raises:
        UsageError: lengths differ or are 0, a value is outside [0, 1], or there is no bin.
    """
    probabilities_N, labels_N = np.asarray(probabilities_N, np.float64), np.asarray(labels_N, np.float64)
    if probabilities_N.ndim != 1 or probabilities_N.shape != labels_N.shape or not len(labels_N):
        raise UsageError(f"{probabilities_N.shape} probabilities and {labels_N.shape} labels; give one of each for every item")
    if not all(((values >= 0) & (values <= 1)).all() for values in (probabilities_N, labels_N)) or bins < 1:
        raise UsageError("the calibration error needs probabilities and labels from 0 to 1, and at least one bin")
    step_N = np.clip(np.ceil(probabilities_N * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(step_N, weights=probabilities_N - labels_N, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels_N))


def _judged(logits_N: np.ndarray, labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits_N, labels_N = np.asarray(logits_N, np.float64), np.asarray(labels_N, np.float64)
    if logits_N.ndim != 1 or logits_N.shape != labels_N.shape:
        raise UsageError(f"{logits_N.shape} logits and {labels_N.shape} labels; a calibration needs one of each for every item")
    if not (np.abs(logits_N) <= _LARGEST_LOGIT).all() or not ((labels_N >= 0) & (labels_N <= 1)).all():
        raise UsageError("a calibration needs finite logits, and labels from 0 (rejected) to 1 (accepted)")
    if len(labels_N) < 2 or labels_N.min() == labels_N.max():
        raise UsageError(f"all {len(labels_N)} items are judged alike; a calibration needs accepted and rejected ones")
    return logits_N, labels_N


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
