"""All figures of one erasure at once are those of the single functions, over the right regions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from core.errors import ItemError
from core.metrics.comparison import FIGURES, Case
from core.metrics.fidelity import CEILING_DB, psnr, region_mean, region_psnr, ssim, ssim_map
from core.metrics.perceptual import Lpips
from core.metrics.seam import seam_excess
from core.metrics.shadow import shadow_residual
from tests.core.metrics.lpips_weights import random_weights
from tests.pictures import box_mask, gradient, with_object


@pytest.fixture
def case() -> Case:
    truth = gradient(96, 80)
    mask, effects = box_mask(96, 80, (20, 20, 44, 60)), box_mask(96, 80, (30, 40, 80, 60))
    shadowed = np.where(effects[..., None] > 0, truth * 0.6, truth).astype(np.uint8)
    return Case(source=with_object(shadowed, mask), truth=truth, mask=mask, effect_mask=effects)


def test_figures_are_those_of_the_functions(case: Case, tmp_path: Path) -> None:
    lpips = Lpips(random_weights(tmp_path), device="cpu")
    output = np.clip(case.truth.astype(int) + np.random.default_rng(0).integers(-9, 10, case.truth.shape), 0, 255).astype(np.uint8)
    effects = case.effect_mask
    assert effects is not None
    everything = np.maximum(case.mask, effects)
    region = np.zeros_like(everything)
    for y, x in np.argwhere(everything):
        region[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5] = 255
    borders = [seam_excess(output, case.truth, mask) for mask in (case.mask, everything)]
    expected = {
        "psnr": psnr(output, case.truth),
        "psnr_mask": region_psnr(output, case.truth, case.mask),
        "psnr_effect": region_psnr(output, case.truth, region),
        "psnr_background": region_psnr(output, case.truth, region == 0),
        "ssim": ssim(output, case.truth),
        "ssim_effect": region_mean(ssim_map(output, case.truth), region),
        "lpips": lpips.distance(output, case.truth),
        "shadow_residual": shadow_residual(output, case.truth, case.source, case.mask, effects),
        "seam": max(border for border in borders if border is not None),
    }
    found = case.compare(output, lpips)
    assert asdict(found) == pytest.approx(expected)
    assert tuple(expected) == FIGURES
    assert case.compare(output).with_lpips(found.lpips) == found
    assert case.compare(output).lpips is None


def test_without_an_effect_mask_the_object_stands_in(case: Case) -> None:
    alone = Case(source=case.source, truth=case.truth, mask=case.mask)
    found = alone.compare(case.source)
    assert found.shadow_residual is None
    assert found.psnr_effect == region_psnr(case.source, case.truth, cv2.dilate(case.mask, np.ones((9, 9), np.uint8)))


def test_pasting_keeps_the_sources_background_and_the_outputs_fill(case: Case) -> None:
    output = 255 - case.truth
    pasted = case.paste(output)
    assert case.effect_mask is not None
    inside = np.maximum(case.mask, case.effect_mask) > 0
    far = cv2.dilate(inside.astype(np.uint8), np.ones((13, 13), np.uint8)) == 0
    assert pasted.dtype == np.uint8
    np.testing.assert_array_equal(pasted[inside], output[inside])
    np.testing.assert_array_equal(pasted[far], case.source[far])
    between = ~inside & ~far
    assert ((pasted != output) & (pasted != case.source)).any(axis=2)[between].any()
    np.testing.assert_array_equal(case.paste(case.source), case.source)
    assert case.compare(case.paste(case.truth)).psnr == CEILING_DB


def test_an_erasure_of_another_size_comes_to_the_truths(case: Case) -> None:
    large = cv2.resize(case.truth, (192, 160), interpolation=cv2.INTER_NEAREST)
    assert case.compare(large).psnr == CEILING_DB
    with pytest.raises(ItemError, match="the erasure is 80 x 80"):
        case.compare(case.truth[:, :80])
