"""Patch-based completion: what is kept, what comes back, and that the same picture gives the same bytes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.eraser import EraserSettings, load_eraser
from core.exemplar import SEARCH_SIDE, complete, complete_alike


def weave(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A coarse regular texture with some noise, (height, width, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    tiles = ((x // 6 + y // 6) % 2) * 110 + (x % 6) * 8 + 40
    noise = np.random.default_rng(seed).normal(0, 3, (height, width))
    grey = np.clip(tiles + noise, 0, 255)
    return np.stack([grey, 0.8 * grey, 0.6 * grey + 30], axis=-1).astype(np.uint8)


def box(height: int, width: int, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    hole = np.zeros((height, width), bool)
    hole[y0:y1, x0:x1] = True
    return hole


def test_texture_goes_on_through_the_hole() -> None:
    truth, hole = weave(96, 120), box(96, 120, 30, 40, 62, 76)
    damaged = truth.copy()
    damaged[hole] = (255, 0, 0)
    ours = complete(damaged, hole)
    telea = cv2.inpaint(damaged, hole.astype(np.uint8) * 255, 5, cv2.INPAINT_TELEA)
    errors = [float(np.abs(picture[hole].astype(int) - truth[hole]).mean()) for picture in (ours, telea)]
    assert errors[0] < 8 < errors[1] / 3, errors


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1), st.integers(20, 90), st.integers(20, 90))
def test_what_is_known_stays_bit_for_bit(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    hole = np.zeros((height, width), bool)
    for _ in range(3):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        hole[y : y + int(rng.integers(1, height)), x : x + int(rng.integers(1, width))] = True
    filled = complete(pixels, hole)
    assert filled.dtype == np.uint8
    np.testing.assert_array_equal(filled[~hole], pixels[~hole])
    np.testing.assert_array_equal(filled, complete(pixels.copy(), hole.copy()))


def test_nothing_of_what_was_in_the_hole_is_seen() -> None:
    pixels, hole = weave(70, 70), box(70, 70, 0, 20, 30, 50)
    other = pixels.copy()
    other[hole] = np.random.default_rng(1).integers(0, 256, (int(hole.sum()), 3))
    np.testing.assert_array_equal(complete(pixels, hole), complete(other, hole))


def test_an_empty_hole_changes_nothing_and_a_full_one_does_not_fail() -> None:
    pixels = weave(40, 40)
    np.testing.assert_array_equal(complete(pixels, np.zeros((40, 40), bool)), pixels)
    assert complete(pixels, np.ones((40, 40), bool)).shape == pixels.shape


def test_a_hole_with_hardly_anything_around_it_is_filled_all_the_same() -> None:
    pixels, hole = np.full((32, 32, 3), 90, np.uint8), box(32, 32, 2, 2, 30, 30)
    pixels[hole] = 255
    assert np.abs(complete(pixels, hole).astype(int) - 90).max() <= 5


def test_another_picture_is_filled_from_the_same_places() -> None:
    """A darker copy of the photo gives a darker copy of the fill: what differs is the light alone."""
    bright, hole = weave(100, 100), box(100, 100, 35, 35, 65, 70)
    dark = (bright * 0.5).astype(np.uint8)
    filled, alike = complete_alike(bright, [dark], hole)
    np.testing.assert_array_equal(filled, complete(bright, hole))
    np.testing.assert_array_equal(alike[~hole], dark[~hole])
    assert float(np.abs(alike[hole] - 0.5 * filled[hole]).max()) <= 2.0


def test_a_large_picture_keeps_its_finest_texture() -> None:
    """Above the side that is searched, matches are enlarged; what is copied stays as sharp as the photo."""
    side = SEARCH_SIDE * 2 + 60
    truth, hole = weave(side, side), box(side, side, 500, 480, 620, 640)
    damaged = truth.copy()
    damaged[hole] = 0
    filled = complete(damaged, hole)
    sharpness = [float(np.abs(np.diff(picture[500:620, 480:640, 0].astype(int), axis=1)).mean()) for picture in (filled, truth)]
    assert sharpness[0] > 0.8 * sharpness[1]


@pytest.mark.parametrize("size", [(60, 200), (200, 60)])
def test_the_eraser_keeps_everything_but_the_soft_mask(size: tuple[int, int]) -> None:
    height, width = size
    photo, mask = weave(height, width), box(height, width, 20, 20, 45, 50).astype(np.uint8) * 255
    photo[mask > 0] = (200, 20, 20)
    eraser = load_eraser("patchmatch", EraserSettings())
    result = eraser.erase(photo, mask, 3)
    far = cv2.dilate(mask, np.ones((15, 15), np.uint8)) == 0
    np.testing.assert_array_equal(result[far], photo[far])
    assert (np.abs(result[mask > 0].astype(int) - (200, 20, 20)).sum(axis=1) > 60).mean() > 0.95, "the object is still there"
    np.testing.assert_array_equal(result, eraser.erase(photo, mask, 4))
