"""Distances of sets against torchmetrics, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from core.errors import UsageError
from core.metrics.distances import clip_distance, frechet_distance, kernel_distance

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(0.5, 1.0, (60, 12)), RNG.normal(0.2, 1.5, (45, 12)) @ RNG.normal(0, 0.6, (12, 12))


def test_frechet_distance_equals_torchmetrics() -> None:
    first, second = torch.from_numpy(FIRST), torch.from_numpy(SECOND)
    expected = _compute_fid(first.mean(0), torch.cov(first.T), second.mean(0), torch.cov(second.T))
    assert frechet_distance(FIRST, SECOND) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(FIRST, FIRST) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_of_fewer_pictures_than_features() -> None:
    few, other = FIRST[:5], SECOND[:6]
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, other) == pytest.approx(frechet_distance(other, few), rel=1e-6)


def test_kernel_distance_equals_torchmetrics() -> None:
    """Its sums leave the diagonal out as ours do; it takes as many pictures of both sets."""
    first, second = torch.from_numpy(FIRST[:45]), torch.from_numpy(SECOND)
    assert kernel_distance(FIRST[:45], SECOND) == pytest.approx(float(poly_mmd(first, second)), rel=1e-9)


def test_clip_distance_by_hand() -> None:
    first, second = np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([[0.0, 1.0], [0.0, 5.0]])
    apart = np.exp(-2 / 200)
    expected = 1000 * ((2 + 2 * apart) / 4 + 1 - 2 * (1 + 1 + 2 * apart) / 4)
    assert clip_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert clip_distance(first, 7 * first) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, clip_distance])
def test_wrong_features_are_refused(measure: object) -> None:
    for first, second in ((FIRST[:1], SECOND), (FIRST, SECOND[:, :3]), (FIRST[0], SECOND), (FIRST * np.nan, SECOND)):
        with pytest.raises(UsageError, match="features"):
            measure(first, second)  # type: ignore[operator]
