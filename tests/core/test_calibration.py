"""Calibration: both maps are monotone and bounded, the fits are the best there are, and the files' form comes back as it went."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.calibration import (
    Isotonic,
    Temperature,
    calibration_from_json,
    cross_entropy,
    expected_calibration_error,
    fit_isotonic,
    fit_temperature,
    sigmoid,
)
from core.errors import UsageError

LOGITS = st.floats(-30, 30, width=32)
LABELS = st.sampled_from([0.0, 1.0])


@st.composite
def judgements(draw: st.DrawFn, most: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Logits, often equal ones, and labels of which both kinds occur."""
    pairs = draw(st.lists(st.tuples(LOGITS | st.sampled_from([-1.0, 0.0, 2.0]), LABELS), min_size=0, max_size=most - 2))
    pairs += [(draw(LOGITS), 0.0), (draw(LOGITS), 1.0)]
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


@st.composite
def curves(draw: st.DrawFn) -> Isotonic:
    x = sorted(draw(st.sets(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8)))
    y = sorted(draw(st.lists(st.floats(0, 1), min_size=len(x), max_size=len(x))))
    return Isotonic(tuple(x), tuple(y))


@settings(deadline=None)
@given(curves() | st.floats(0.01, 50).map(Temperature), st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=30))
def test_maps_are_monotone_and_bounded(calibration: Temperature | Isotonic, logits: list[float]) -> None:
    probabilities = calibration(np.sort(np.array(logits)))
    assert (np.diff(probabilities) >= 0).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


@settings(deadline=None)
@given(curves(), st.data())
def test_the_curve_is_straight_between_breakpoints_and_level_beyond(curve: Isotonic, data: st.DataObject) -> None:
    x = data.draw(st.floats(curve.x[0] - 10, curve.x[-1] + 10))
    assert curve(np.array([x]))[0] == pytest.approx(np.interp(x, curve.x, curve.y), abs=1e-9)
    assert curve(np.array(curve.x)).tolist() == list(curve.y)


@settings(deadline=None)
@given(st.lists(st.floats(-40, 40), min_size=1, max_size=40), st.floats(0.05, 20))
def test_temperature_is_the_sigmoid_of_torch_whatever_the_batch(logits: list[float], temperature: float) -> None:
    together = Temperature(temperature)(np.array(logits))
    expected = torch.sigmoid(torch.tensor(logits, dtype=torch.float64) / temperature)
    np.testing.assert_allclose(together, expected.numpy(), rtol=1e-14, atol=1e-300)
    assert together.tolist() == [Temperature(temperature)(np.array([logit]))[0] for logit in logits]


@pytest.mark.parametrize("calibration", [Temperature(2.0), Isotonic((0.0, 1.0), (0.2, 1.0))])
def test_what_is_no_number_stays_none(calibration: Temperature | Isotonic) -> None:
    found = calibration(np.array([np.nan, 0.5, np.inf, -np.inf]))
    assert np.isnan(found).tolist() == [True, False, False, False]
    assert found[2] == 1.0


@settings(deadline=None)
@given(judgements())
def test_fitted_temperature_has_no_more_loss_than_one_and_than_any_other(items: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = items
    fitted = fit_temperature(logits, labels)
    loss = cross_entropy(logits / fitted.temperature, labels)
    assert loss <= cross_entropy(logits, labels)
    others = [cross_entropy(logits / other, labels) for other in np.geomspace(0.05, 20, 60)]
    assert loss <= min(others) + 1e-9


def test_temperature_is_recovered() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < sigmoid(honest)).astype(float)
    assert fit_temperature(honest * 3, labels).temperature == pytest.approx(3.0, rel=0.05)
    assert fit_temperature(honest / 2, labels).temperature == pytest.approx(0.5, rel=0.05)
    before, after = (expected_calibration_error(map_(honest * 3), labels) for map_ in (sigmoid, fit_temperature(honest * 3, labels)))
    assert before > 0.08
    assert after < 0.02


def brute_force(points: np.ndarray, sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The monotone values with the least squared error: every way to cut the points into level pieces is tried."""
    best, found = np.inf, np.zeros(len(points))
    for cuts in product([False, True], repeat=len(points) - 1):
        piece = np.concatenate([[0], np.cumsum(cuts)]).astype(int)
        levels = np.bincount(piece, weights=sums) / np.bincount(piece, weights=weights)
        values = levels[piece]
        # sum of w (v - mean)^2, up to a constant
        error = float((weights * values**2 - 2 * sums * values).sum())
        if (np.diff(levels) >= 0).all() and error < best:
            best, found = error, values
    return found


@settings(max_examples=150, deadline=None)
@given(judgements(most=9))
def test_isotonic_is_the_least_squares_solution(items: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = items
    points, inverse = np.unique(logits, return_inverse=True)
    expected = brute_force(points, np.bincount(inverse, weights=labels), np.bincount(inverse).astype(float))
    np.testing.assert_allclose(fit_isotonic(logits, labels)(points), expected, atol=1e-12)


@settings(deadline=None)
@given(judgements())
def test_isotonic_keeps_the_mean_and_does_not_depend_on_the_order(items: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = items
    curve = fit_isotonic(logits, labels)
    assert curve(logits).mean() == pytest.approx(labels.mean())
    assert expected_calibration_error(curve(logits), labels, bins=1) < 1e-9
    turned = fit_isotonic(logits[::-1], labels[::-1])
    assert turned.x == curve.x
    np.testing.assert_allclose(turned.y, curve.y)


@settings(deadline=None)
@given(judgements())
def test_calibrations_come_back_from_json(items: tuple[np.ndarray, np.ndarray]) -> None:
    for calibration in (fit_temperature(*items), fit_isotonic(*items)):
        assert calibration_from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
    assert calibration_from_json({"kind": "temperature", "temperature": 1.3}) == Temperature(1.3)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (1.3, "allowed"),
        ({"kind": "platt", "a": 1}, "platt"),
        ({"kind": ["isotonic"]}, "allowed"),
        ({"kind": "temperature"}, "allowed"),
        ({"kind": "temperature", "temperature": 0}, "above 0"),
        ({"kind": "temperature", "temperature": "1"}, "above 0"),
        ({"kind": "temperature", "temperature": float("nan")}, "above 0"),
        ({"kind": "temperature", "temperature": True}, "above 0"),
        ({"kind": "isotonic", "x": 1, "y": 2}, "lists"),
        ({"kind": "isotonic", "x": [], "y": []}, "at least one"),
        ({"kind": "isotonic", "x": [0, 1], "y": [0.5]}, "2 x and 1 y"),
        ({"kind": "isotonic", "x": [0, 0], "y": [0.1, 0.2]}, "increase"),
        ({"kind": "isotonic", "x": [0, float("inf")], "y": [0.1, 0.2]}, "increase"),
        ({"kind": "isotonic", "x": [0, 1], "y": [0.3, 0.2]}, "decrease"),
        ({"kind": "isotonic", "x": [0, 1], "y": [0.3, 1.2]}, "from 0 to 1"),
        ({"kind": "isotonic", "x": [0, 1], "y": ["a", 1]}, "from 0 to 1"),
    ],
)
def test_wrong_calibrations_are_one_clear_error(value: object, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        calibration_from_json(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fit", [fit_temperature, fit_isotonic])
@pytest.mark.parametrize(
    ("logits", "labels", "match"),
    [
        ([1.0, 2.0], [1.0], "one of each"),
        ([[1.0, 2.0]], [[1.0, 0.0]], "one of each"),
        ([1.0, np.nan], [0.0, 1.0], "finite"),
        ([1.0, 2.0], [0.0, 2.0], "labels from 0"),
        ([1.0, 2.0], [1.0, 1.0], "judged alike"),
        ([], [], "judged alike"),
    ],
)
def test_what_cannot_be_fitted_says_why(fit: object, logits: list[float], labels: list[float], match: str) -> None:
    assert callable(fit)
    with pytest.raises(UsageError, match=match):
        fit(np.array(logits), np.array(labels))


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.2 and 0.4 with labels 0 and 1 (gap 0.2 over two of five items); 0.6, 0.8 and 1 with 1, 1 and 0 (gap 0.4 / 3 of three)."""
    found = expected_calibration_error(np.array([0.2, 0.4, 0.6, 0.8, 1.0]), np.array([0, 1, 1, 1, 0]), bins=2)
    assert found == pytest.approx((0.4 + 0.4) / 5)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0.0
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([1, 0])) == 1.0
    # a probability on an edge belongs to the bin below it
    assert expected_calibration_error(np.array([0.5, 0.6]), np.array([1, 0]), bins=2) == pytest.approx((0.5 + 0.6) / 2)
    for wrong in (([0.5], [0.5, 1]), ([], []), ([1.5], [1]), ([np.nan], [1])):
        with pytest.raises(UsageError):
            expected_calibration_error(np.array(wrong[0]), np.array(wrong[1]))
    with pytest.raises(UsageError):
        expected_calibration_error(np.array([0.5]), np.array([1]), bins=0)
