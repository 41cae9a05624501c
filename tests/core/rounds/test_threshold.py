"""The threshold: it holds what it promises, says when it cannot, and is measured by group."""

from __future__ import annotations

import numpy as np
import pytest

from core.metrics.statistics import wilson_interval
from core.rounds.settings import ThresholdSettings
from core.rounds.threshold import CANDIDATES, NOTHING, Judged, choose_threshold, measure

SETTINGS = ThresholdSettings(precision=0.9, confidence=0.95, least_labels=100)


def drawn(count: int, seed: int, sharpness: float = 1.0) -> list[Judged]:
    """Results whose score is their probability of being good (sharpness 1), or says too much."""
    generator = np.random.default_rng(seed)
    scores = generator.random(count)
    good = generator.random(count) < 0.5 + (scores - 0.5) * sharpness
    return [Judged(float(score), bool(one)) for score, one in zip(scores, good, strict=True)]


def test_few_labels_leave_the_usual_threshold_and_say_so() -> None:
    choice = choose_threshold(drawn(99, 0), SETTINGS)
    assert (choice.threshold, choice.reason, choice.labels) == (0.9, "few_labels", 99)


def test_a_score_that_says_nothing_accepts_nothing() -> None:
    choice = choose_threshold(drawn(1000, 0, sharpness=0.0), SETTINGS)
    assert (choice.threshold, choice.reason) == (NOTHING, "not_reached")


def test_the_lowest_candidate_that_people_bear_out() -> None:
    judged = drawn(4000, 1)
    choice = choose_threshold(judged, SETTINGS)
    assert choice.reason == "precision"
    risk = 0.05 / len(CANDIDATES)
    for candidate in CANDIDATES:
        above = [one.accepted for one in judged if one.score > candidate]
        holds = wilson_interval(sum(above), len(above), 1 - 2 * risk).low >= 0.9
        assert holds == (candidate == choice.threshold) or candidate > choice.threshold


def test_the_promise_is_kept_in_nearly_all_draws() -> None:
    """Above t, a calibrated uniform score is right in (1 + t) / 2 of the cases: 0.8 is the true threshold for 0.9."""
    chosen = [choose_threshold(drawn(600, seed), SETTINGS) for seed in range(100)]
    assert sum(one.threshold < 0.8 for one in chosen) <= 5


def test_measure_counts_by_hand_and_by_group() -> None:
    judged = [
        Judged(0.95, True, (("model", "a"), ("category", "dog"))),
        Judged(0.92, False, (("model", "a"), ("category", "cat"))),
        Judged(0.4, True, (("model", "b"), ("category", "dog"))),
        Judged(0.1, False, (("model", "b"), ("category", "cat"))),
    ]
    found = measure(judged, 0.9)
    assert (found["labels"], found["above"], found["accepted"], found["recall"], found["auroc"]) == (4, 2, 0.5, 0.5, 0.75)
    assert found["precision"]["mean"] == 0.5
    assert found["groups"]["category: dog"]["precision"]["mean"] == 1.0
    assert found["groups"]["model: b"] == {"labels": 2, "precision": None}
    assert measure([], 0.9)["precision"] is None
    assert measure(judged[:1], 0.9)["auroc"] is None


@pytest.mark.parametrize("values", [{"precision": 1.0}, {"confidence": 0.4}, {"usual": 1.5}, {"least_labels": 0}])
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(Exception, match=f"threshold.{next(iter(values))}"):
        ThresholdSettings(**values)  # type: ignore[arg-type]
