"""Changes of masks: what each promises holds for any mask, and they come as often as they were asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UsageError
from core.masks import mask_box
from training.mask_augmentation import (
    HAND_DRAWN,
    SHAPES,
    UNCHANGED,
    MaskAugmentation,
    augment_mask,
    brush_stroke,
    draw_change,
    eroded,
    grown,
    largest_kernel,
    loose_polygon,
    padded_box,
    padded_hull,
)

COVERING = [shape for name, shape in SHAPES.items() if name != "erode"]
Shape = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Ellipses, bars and single pixels, also at the edge, also apart, from one pixel to all of them."""
    height, width = draw(st.integers(8, 120)), draw(st.integers(8, 120))
    mask = np.zeros((height, width), np.uint8)
    for _ in range(draw(st.integers(1, 3))):
        x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        axes = (draw(st.integers(0, 60)), draw(st.integers(0, 60)))
        cv2.ellipse(mask, (x, y), axes, draw(st.integers(0, 180)), 0, 360, 255, -1)
        mask[y, x] = 255
    return mask


def disc(size: int, radius: int) -> np.ndarray:
    return cv2.circle(np.zeros((size, size), np.uint8), (size // 2, size // 2), radius, 255, -1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@settings(max_examples=60, deadline=None)
@given(mask=masks(), seed=st.integers(0, 2**32 - 1))
def test_every_change_gives_a_mask(shape: Shape, mask: np.ndarray, seed: int) -> None:
    before = mask.copy()
    changed = shape(mask, np.random.default_rng(seed))
    assert changed.dtype == np.uint8
    assert changed.shape == mask.shape
    assert set(np.unique(changed)) <= {0, 255}
    assert changed.any()
    assert not changed.all() or mask.all()
    assert not np.shares_memory(changed, mask)
    np.testing.assert_array_equal(mask, before)
    np.testing.assert_array_equal(changed, shape(mask, np.random.default_rng(seed)))


@pytest.mark.parametrize("shape", COVERING)
@settings(max_examples=60, deadline=None)
@given(mask=masks(), seed=st.integers(0, 2**32 - 1))
def test_covering_changes_cover_the_mask(shape: Shape, mask: np.ndarray, seed: int) -> None:
    assert (shape(mask, np.random.default_rng(seed))[mask > 0] == 255).all()


@settings(max_examples=60, deadline=None)
@given(mask=masks(), seed=st.integers(0, 2**32 - 1))
def test_erosion_only_takes_away(mask: np.ndarray, seed: int) -> None:
    assert not (eroded(mask, np.random.default_rng(seed)) & ~mask).any()


@settings(max_examples=60, deadline=None)
@given(mask=masks(), seed=st.integers(0, 2**32 - 1))
def test_box_and_hull_cover_box_and_hull(mask: np.ndarray, seed: int) -> None:
    box = padded_box(mask, np.random.default_rng(seed))
    x0, y0, x1, y1 = mask_box(mask)
    assert (box[y0:y1, x0:x1] == 255).all() or np.array_equal(box, mask)
    hull = padded_hull(mask, np.random.default_rng(seed))
    row, column = np.argwhere(mask)[[0, -1]].mean(axis=0).round().astype(int)
    # a hull may be a line, and the rounded middle beside it
    assert (hull[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] == 255).any() or np.array_equal(hull, mask)


def test_box_is_a_rectangle_within_a_quarter() -> None:
    mask = disc(400, 50)
    for seed in range(50):
        x0, y0, x1, y1 = mask_box(padded_box(mask, np.random.default_rng(seed)))
        assert 150 - 26 <= x0 <= 150
        assert 150 - 26 <= y0 <= 150
        assert 251 <= x1 <= 251 + 26
        assert 251 <= y1 <= 251 + 26


@pytest.mark.parametrize(("shape", "most"), [(padded_hull, 1.45), (loose_polygon, 1.9), (brush_stroke, 2.5)])
def test_hand_drawn_shapes_are_looser_but_not_everywhere(shape: Shape, most: float) -> None:
    mask = disc(400, 60)
    areas = [np.count_nonzero(shape(mask, np.random.default_rng(seed))) / np.count_nonzero(mask) for seed in range(30)]
    assert min(areas) >= 1
    assert max(areas) < most
    assert np.ptp(areas) > 0.1  # they differ


def test_largest_kernel_goes_by_share_and_size() -> None:
    def square(area: float, side: int) -> np.ndarray:
        mask = np.zeros((side, side), np.uint8)
        mask.reshape(-1)[: int(area * side * side)] = 255
        return mask

    assert [largest_kernel(square(share, 512)) for share in (0.004, 0.015, 0.04, 0.09, 0.2, 0.5)] == [5, 8, 12, 17, 23, 30]
    assert largest_kernel(square(0.2, 1024)) == 46
    assert largest_kernel(square(0.004, 32)) == 1


def test_kernels_are_drawn_from_one_to_the_largest() -> None:
    mask = np.zeros((512, 512), np.uint8)
    mask[150:328, 160:338] = 255  # 12 % of the picture: kernels up to 23; a square's box shows the kernel's side
    before = mask_box(mask)
    larger = {mask_box(grown(mask, np.random.default_rng(seed))) for seed in range(600)}
    smaller = {mask_box(eroded(mask, np.random.default_rng(seed))) for seed in range(600)}
    assert {x1 - x0 - (before[2] - before[0]) + 1 for x0, _, x1, _ in larger} == set(range(1, 24))
    assert {before[2] - before[0] - (x1 - x0) + 1 for x0, _, x1, _ in smaller} == set(range(1, 24, 2))


def test_erosion_keeps_a_mask_that_would_vanish() -> None:
    mask = np.zeros((512, 512), np.uint8)
    mask[200:460, 100] = 255
    kept = [eroded(mask, np.random.default_rng(seed)) for seed in range(20)]
    assert all(np.array_equal(each, mask) for each in kept)


def test_changes_come_as_often_as_asked() -> None:
    rng = np.random.default_rng(7)
    n = 20_000
    for given_settings in (MaskAugmentation(), HAND_DRAWN):
        counts = Counter(draw_change(given_settings, rng) for _ in range(n))
        for name, chance in given_settings.probabilities.items():
            assert abs(counts[name] / n - chance) < 0.015
    assert {draw_change(UNCHANGED, rng) for _ in range(1000)} == {None}
    assert MaskAugmentation().probabilities["dilate"] == 0.67
    assert draw_change(MaskAugmentation(dilate=0, erode=0, hull=1), rng) == "hull"


def test_augment_mask_makes_the_change_it_draws() -> None:
    mask = disc(128, 20)
    only_box = MaskAugmentation(dilate=0, erode=0, box=1)
    box = augment_mask(mask, np.random.default_rng(3), only_box)
    x0, y0, x1, y1 = mask_box(box)
    assert (box[y0:y1, x0:x1] == 255).all()
    same = augment_mask(mask, np.random.default_rng(3), UNCHANGED)
    np.testing.assert_array_equal(same, mask)
    assert same is not mask


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((9, 9), np.uint8), "empty"),
        (np.full((9, 9), 100, np.uint8), "other than 0 and 255"),
        (np.full((9, 9), 255, np.float32), "float32"),
        (np.full((9, 9, 1), 255, np.uint8), "(9, 9, 1)"),
    ],
)
def test_what_is_no_mask_is_refused(mask: np.ndarray, words: str) -> None:
    for shape in [*SHAPES.values(), lambda m, rng: augment_mask(m, rng, UNCHANGED)]:
        with pytest.raises(UsageError) as error:
            shape(mask, np.random.default_rng(0))
        assert words in str(error.value)


def test_probabilities_are_checked() -> None:
    with pytest.raises(UsageError, match=r"box is -0\.1"):
        MaskAugmentation(box=-0.1)
    with pytest.raises(UsageError, match="dilate is nan"):
        MaskAugmentation(dilate=float("nan"))
    with pytest.raises(UsageError, match=r"add up to 1\.335"):
        MaskAugmentation(hull=0.5)
