"""Plain erasers: they fill the hole from around it and leave all else alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.rough_erasers import ROUGH_ERASERS, moved

NAMES = sorted(ROUGH_ERASERS)


def striped(side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Vertical stripes of 8 pixels with a red disc on them, and the disc as a hole."""
    photo = np.full((side, side, 3), 90, np.uint8)
    photo[:, (np.arange(side) // 4) % 2 == 0] = 170
    hole = cv2.circle(np.zeros((side, side), np.uint8), (side // 2, side // 2), 14, 1, -1) > 0
    photo[hole] = (250, 0, 0)
    return photo, hole


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), x=st.integers(0, 60), y=st.integers(0, 50), width=st.integers(1, 40), height=st.integers(1, 40))
def test_only_the_hole_changes_and_draws_come_from_the_generator(name: str, seed: int, x: int, y: int, width: int, height: int) -> None:
    photo = np.random.default_rng(seed).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    hole = np.zeros((64, 72), bool)
    hole[y : y + height, x : x + width] = True
    before = photo.copy()
    one, two = (ROUGH_ERASERS[name](photo, hole, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(photo, before)
    assert (one.shape, one.dtype) == (photo.shape, np.uint8)
    np.testing.assert_array_equal(one[~hole], photo[~hole])
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", NAMES)
def test_the_object_is_gone(name: str) -> None:
    photo, hole = striped()
    filled = ROUGH_ERASERS[name](photo, hole, np.random.default_rng(1))
    inside = filled[hole].astype(int)
    assert np.abs(inside[:, 0] - inside[:, 1]).max() <= 2, "there is red left"
    assert inside.min() >= 85
    assert inside.max() <= 175


def test_a_piece_from_elsewhere_continues_stripes() -> None:
    """Of the places that it tries, the one whose rim fits: the stripes meet."""
    photo, hole = striped()
    truth = np.where(hole[..., None], np.where((np.arange(96) // 4) % 2 == 0, 170, 90)[None, :, None].astype(np.uint8), photo)
    np.testing.assert_array_equal(moved(photo, hole, np.random.default_rng(0)), truth)


def test_without_room_for_a_piece_the_hole_is_filled_all_the_same() -> None:
    photo, _ = striped(40)
    hole = np.ones((40, 40), bool)
    hole[:, :6] = hole[:6] = False
    filled = moved(photo, hole, np.random.default_rng(0))
    assert not np.array_equal(filled[hole], photo[hole])
    assert np.abs(filled[hole].astype(int)[:, 0] - filled[hole].astype(int)[:, 1]).max() <= 2
