"""The shadow residual against scipy's filter, and the seam against a walk over neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from core.errors import UsageError
from core.masks import dilate
from core.metrics.seam import seam_excess
from core.metrics.shadow import shadow_residual
from tests.pictures import box_mask, gradient, with_object

SIZE = (96, 80)


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Truth with texture, source with object and shadow, object mask, effect mask."""
    rng = np.random.default_rng(0)
    truth = np.clip(gradient(*SIZE).astype(int) + rng.integers(-30, 31, (80, 96, 3)), 0, 255).astype(np.uint8)
    mask, effects = box_mask(*SIZE, (20, 20, 44, 60)), box_mask(*SIZE, (20, 20, 80, 60))
    shadowed = np.where(effects[..., None] > 0, truth * 0.6, truth).astype(np.uint8)
    return truth, with_object(shadowed, mask), mask, effects


def test_the_residual_is_1_for_the_source_and_0_for_the_truth(scene: tuple[np.ndarray, ...]) -> None:
    truth, source, mask, effects = scene
    assert shadow_residual(source, truth, source, mask, effects) == 1.0
    assert shadow_residual(truth, truth, source, mask, effects) == 0.0
    half = np.rint((truth.astype(float) + source) / 2).astype(np.uint8)
    assert shadow_residual(half, truth, source, mask, effects) == pytest.approx(0.5, abs=0.01)


def test_the_residual_equals_the_formula_by_scipy(scene: tuple[np.ndarray, ...]) -> None:
    truth, source, mask, effects = scene
    output = np.where(mask[..., None] > 0, truth, source).astype(np.uint8)

    def low(picture: np.ndarray) -> np.ndarray:
        return gaussian_filter(picture @ np.array([0.299, 0.587, 0.114]), 8.0, mode="reflect", truncate=4.0)

    region = (effects > 0) & (mask == 0)
    expected = np.abs(low(output) - low(truth))[region].mean() / np.abs(low(source) - low(truth))[region].mean()
    assert 0.3 < expected < 1
    assert shadow_residual(output, truth, source, mask, effects) == pytest.approx(expected, rel=1e-4)


def test_there_is_no_residual_without_a_shadow(scene: tuple[np.ndarray, ...]) -> None:
    truth, source, mask, effects = scene
    assert shadow_residual(truth, truth, source, mask, mask) is None
    assert shadow_residual(truth, truth, truth, mask, effects) is None
    with pytest.raises(UsageError, match="masks"):
        shadow_residual(truth, truth, source, mask, effects[:10])


def walked(output: np.ndarray, truth: np.ndarray, mask: np.ndarray, reach: int) -> float:
    """The definition, pixel by pixel."""
    ring = np.ceil(distance_transform_edt(mask == 0) - 1e-4).astype(int)
    grey = [picture @ np.array([0.299, 0.587, 0.114]) for picture in (output, truth)]
    excess: dict[int, list[float]] = {}
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            for v, u in ((y, x + 1), (y + 1, x)):
                if v < mask.shape[0] and u < mask.shape[1] and ring[y, x] != ring[v, u]:
                    steps = [abs(picture[y, x] - picture[v, u]) for picture in grey]
                    excess.setdefault(max(ring[y, x], ring[v, u]), []).append(steps[0] - steps[1])
    return max(float(np.mean(values)) for border, values in excess.items() if border <= reach + 1)


@pytest.mark.parametrize("reach", [0, 3, 12])
def test_the_seam_equals_a_walk_over_all_neighbours(scene: tuple[np.ndarray, ...], reach: int) -> None:
    truth, _, mask, _ = scene
    rng = np.random.default_rng(1)
    output = np.clip(truth.astype(int) + rng.integers(-20, 21, truth.shape), 0, 255).astype(np.uint8)
    assert seam_excess(output, truth, mask, reach) == pytest.approx(walked(output, truth, mask, reach), abs=1e-3)


@pytest.mark.parametrize("grown", [0, 4, 9])
def test_a_step_is_found_at_whichever_border_it_lies(grown: int) -> None:
    truth, mask = np.full((80, 96, 3), 100, np.uint8), box_mask(*SIZE, (20, 20, 44, 60))
    output = np.where(dilate(mask, grown)[..., None] > 0, truth + np.uint8(7), truth)
    found = seam_excess(output, truth, mask)
    assert found is not None
    assert 4 < found <= 7.001
    if not grown:
        assert found == pytest.approx(7, abs=1e-3)
        assert seam_excess(output, truth, mask, 0) == pytest.approx(7, abs=1e-3)


def test_the_truth_has_no_seam(scene: tuple[np.ndarray, ...]) -> None:
    truth, _, mask, _ = scene
    assert seam_excess(truth, truth, mask) == 0.0
    for nothing in (np.zeros_like(mask), np.full_like(mask, 255)):
        assert seam_excess(truth, truth, nothing) is None
    with pytest.raises(UsageError, match="reach"):
        seam_excess(truth, truth, mask, -1)
