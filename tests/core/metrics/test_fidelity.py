"""PSNR and SSIM against independent references: loops, and scipy's filters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from core.errors import ItemError, UsageError
from core.metrics.fidelity import CEILING_DB, psnr, region_mean, region_psnr, resize_to, ssim, ssim_map
from tests.pictures import box_mask, gradient, random_mask


def pair(seed: int, height: int = 40, width: int = 52, noise: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """A truth and an output that differs from it by noise."""
    rng = np.random.default_rng(seed)
    truth = np.clip(gradient(width, height, seed).astype(int) + rng.integers(-40, 41, (height, width, 3)), 0, 255)
    output = np.clip(truth + rng.integers(-noise, noise + 1, truth.shape), 0, 255)
    return output.astype(np.uint8), truth.astype(np.uint8)


def test_psnr_is_that_of_a_loop_over_pixels() -> None:
    output, truth = pair(0, 9, 12)
    squares = [((int(a) - int(b)) / 255) ** 2 for a, b in zip(output.ravel(), truth.ravel(), strict=True)]
    assert psnr(output, truth) == pytest.approx(10 * math.log10(len(squares) / sum(squares)))


def test_psnr_of_known_differences() -> None:
    truth = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(truth + np.uint8(1), truth) == pytest.approx(48.1308036)
    assert psnr(truth, truth) == CEILING_DB
    assert psnr(np.full_like(truth, 255), np.zeros_like(truth)) == 0.0


def test_an_error_is_divided_by_the_pixels_of_its_region() -> None:
    """Zero-filling the rest and dividing by the whole picture would add 10 log10(64 / 4) = 12 dB here."""
    truth = np.full((8, 8, 3), 100, np.uint8)
    mask = box_mask(8, 8, (2, 2, 4, 4))
    output = np.where(mask[..., None] > 0, truth + np.uint8(10), truth)
    assert region_psnr(output, truth, mask) == pytest.approx(20 * math.log10(25.5))
    assert region_psnr(output, truth, mask == 0) == CEILING_DB
    assert psnr(output, truth) == pytest.approx(20 * math.log10(25.5) + 10 * math.log10(16))
    assert region_psnr(output, truth, np.zeros_like(mask)) is None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_region_does_not_see_beyond_itself_and_regions_make_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    output, truth = pair(seed)
    mask = random_mask(rng, 52, 40)
    other = np.where(mask[..., None] > 0, output, rng.integers(0, 256, output.shape)).astype(np.uint8)
    inside, outside = region_psnr(output, truth, mask), region_psnr(output, truth, mask == 0)
    assert region_psnr(other, truth, mask) == inside
    assert region_psnr(output, truth, np.full_like(mask, 255)) == pytest.approx(psnr(output, truth))
    assert inside is not None
    assert outside is not None
    share = float((mask > 0).mean())
    whole = share * 10 ** (-inside / 10) + (1 - share) * 10 ** (-outside / 10)
    assert -10 * math.log10(whole) == pytest.approx(psnr(output, truth))


def reference_map(output: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Wang et al. 2004, equation 13, by scipy: a Gaussian of sigma 1.5 cut off at 5 pixels, mirrored without the edge pixel."""

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma=1.5, truncate=3.5, mode="mirror")

    channels = []
    for c in range(3):
        x, y = output[..., c] / 255.0, truth[..., c] / 255.0
        mx, my = mean(x), mean(y)
        vx, vy, cxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        channels.append((2 * mx * my + 1e-4) * (2 * cxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.mean(channels, axis=0)


@pytest.mark.parametrize(("height", "width"), [(40, 52), (11, 30), (8, 9)])
def test_ssim_equals_the_formula_by_scipy(height: int, width: int) -> None:
    output, truth = pair(1, height, width)
    expected = reference_map(output, truth)
    np.testing.assert_allclose(ssim_map(output, truth), expected, atol=1e-9)
    assert ssim(output, truth) == pytest.approx(expected.mean())
    mask = box_mask(width, height, (2, 2, 6, 6))
    assert region_mean(ssim_map(output, truth), mask) == pytest.approx(expected[2:6, 2:6].mean())


def test_ssim_of_equal_and_of_inverted_pictures() -> None:
    output, truth = pair(2)
    assert ssim(truth, truth) == pytest.approx(1.0)
    assert ssim(255 - truth, truth) < 0 < ssim(output, truth) < 1
    assert region_mean(ssim_map(truth, truth), np.zeros(truth.shape[:2], np.uint8)) is None


def test_the_output_comes_to_the_size_of_the_truth() -> None:
    picture = gradient(64, 48)
    small = resize_to(picture, 24, 32, "erasure")
    assert small.shape == (24, 32, 3)
    np.testing.assert_array_equal(small, np.rint(picture.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3)) + 1e-6).astype(np.uint8))
    assert resize_to(small, 48, 64, "erasure").dtype == np.uint8
    assert resize_to(picture, 48, 64, "erasure") is picture
    with pytest.raises(ItemError, match=r"the erasure is 64 x 48 and the target 48 x 64 pixels") as caught:
        resize_to(picture, 64, 48, "erasure")
    assert caught.value.code == "size_mismatch"


def test_wrong_pictures_are_refused() -> None:
    truth = gradient(20, 16)
    for wrong in (truth[..., 0], truth.astype(np.float32), truth[:0]):
        with pytest.raises(UsageError, match=r"\(H, W, 3\) uint8"):
            psnr(wrong, truth)
    with pytest.raises(UsageError, match="bring it to that size"):
        ssim(truth[:10], truth)
    with pytest.raises(UsageError, match="the region is"):
        region_psnr(truth, truth, np.zeros((3, 3), np.uint8))
