"""AUROC against its definition by pairs; intervals against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from core.errors import UsageError
from core.metrics.ranking import at_threshold, auroc
from core.metrics.statistics import bootstrap_mean, wilson_interval


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-1.5, 0.0, 0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=2, max_size=25))
def test_auroc_counts_pairs_and_ties_by_half(items: list[tuple[float, bool]]) -> None:
    scores, labels = np.array([score for score, _ in items]), np.array([float(good) for _, good in items])
    if labels.min() == labels.max():
        with pytest.raises(UsageError, match="at least one of both"):
            auroc(scores, labels)
        return
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))
    assert auroc(-scores, labels) == pytest.approx(1 - np.mean(pairs))


def test_at_threshold_is_strictly_above() -> None:
    found = at_threshold(np.array([0.9, 0.91, 0.95, 0.2, 0.99]), np.array([1, 1, 0, 1, 1]), 0.9)
    assert (found.accepted, found.correct, found.good) == (3, 2, 4)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == 0.5
    nothing = at_threshold(np.array([0.1]), np.array([0]), 0.9)
    assert nothing.precision is None
    assert nothing.recall is None


@pytest.mark.parametrize(
    ("scores", "labels"), [([0.1, 0.2], [1]), ([0.1, float("nan")], [0, 1]), ([0.1, 0.2], [0.5, 1]), ([[0.1]], [[1]])]
)
def test_wrong_rankings_are_refused(scores: list[float], labels: list[float]) -> None:
    with pytest.raises(UsageError):
        auroc(np.array(scores), np.array(labels))


@pytest.mark.parametrize(("successes", "count"), [(0, 5), (5, 5), (1, 7), (380, 500), (12, 13)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(successes: int, count: int, confidence: float) -> None:
    found = wilson_interval(successes, count, confidence)
    expected = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (found.mean, found.count) == (successes / count, count)
    assert 0 <= found.low <= found.mean <= found.high <= 1


def test_500_judgements_are_good_for_four_points() -> None:
    found = wilson_interval(380, 500)
    assert (found.high - found.low) / 2 == pytest.approx(0.037, abs=0.001)


def test_bootstrap_agrees_with_scipy_and_is_the_same_each_time() -> None:
    values = np.random.default_rng(0).gamma(2.0, 3.0, 80)
    found = bootstrap_mean(values)
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.12)
    assert found == bootstrap_mean(values)
    assert found != bootstrap_mean(values, seed=1)
    assert bootstrap_mean(np.array([3.0])) == bootstrap_mean(np.array([3.0]), seed=9)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        found = bootstrap_mean(rng.normal(5.0, 2.0, 40), resamples=300)
        hits += found.low <= 5.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_wrong_values_are_refused() -> None:
    for values in (np.array([]), np.array([1.0, np.nan]), np.zeros((2, 2))):
        with pytest.raises(UsageError, match="finite numbers"):
            bootstrap_mean(values)
    for successes, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(UsageError, match="successes"):
            wilson_interval(successes, count)
    with pytest.raises(UsageError, match="confidence"):
        wilson_interval(1, 2, 95)
