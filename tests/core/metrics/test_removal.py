"""ReMOVE and ReMOVE+ by hand, on an encoder whose features are the colours of 4 x 4 cells."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import ItemError
from core.images import Pixels
from core.metrics.removal import cosine_within, remove_plus_score, remove_score, square_around
from tests.pictures import box_mask

RED, GREEN, BOTH = (200, 0, 0), (0, 200, 0), (200, 200, 0)


class Colours:
    """Mean colour of every 4 x 4 cell."""

    def features(self, pixels: Pixels) -> NDArray[np.float32]:
        side = pixels.shape[0] // 4
        assert pixels.shape == (side * 4, side * 4, 3)
        return np.ascontiguousarray(pixels.reshape(side, 4, side, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1), np.float32)


def scene(background: tuple[int, ...], inside: tuple[int, ...], mask: Pixels) -> Pixels:
    return np.where(mask[..., None] > 0, np.array(inside, np.uint8), np.array(background, np.uint8)).astype(np.uint8)


MASK = box_mask(128, 96, (40, 40, 56, 56))


def test_remove_is_the_cosine_of_inside_and_around() -> None:
    assert remove_score(Colours(), scene(RED, RED, MASK), MASK) == pytest.approx(1)
    assert remove_score(Colours(), scene(RED, GREEN, MASK), MASK) == pytest.approx(0, abs=1e-9)
    assert remove_score(Colours(), scene(RED, BOTH, MASK), MASK) == pytest.approx(np.sqrt(0.5))


def test_remove_plus_takes_the_surroundings_from_the_source() -> None:
    """A result that changed the whole picture looks alike inside and around, and unlike its source."""
    changed, source = scene(GREEN, GREEN, MASK), scene(RED, GREEN, MASK)
    assert remove_score(Colours(), changed, MASK) == pytest.approx(1)
    assert remove_plus_score(Colours(), changed, source, MASK) == pytest.approx(0, abs=1e-9)
    assert remove_plus_score(Colours(), scene(RED, RED, MASK), source, MASK) == pytest.approx(1)


def test_a_shadow_that_is_left_counts_where_the_region_holds_it() -> None:
    effects = box_mask(128, 96, (40, 40, 72, 56))
    shadow = scene(RED, (0, 0, 100), np.where(MASK > 0, 0, effects).astype(np.uint8))
    source = scene(RED, GREEN, MASK)
    assert remove_plus_score(Colours(), shadow, source, MASK) == pytest.approx(1)
    assert remove_plus_score(Colours(), shadow, source, effects) < 0.95


@pytest.mark.parametrize(
    ("box", "expected"),
    [((40, 40, 56, 56), (24, 24, 48)), ((0, 0, 10, 10), (0, 0, 42)), ((118, 86, 128, 96), (86, 54, 42)), ((10, 0, 120, 90), (17, 0, 96))],
)
def test_the_crop_is_square_inside_the_picture_and_holds_the_region_where_it_can(box: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert square_around(box_mask(128, 96, box)) == expected


def test_only_whole_cells_count() -> None:
    region = box_mask(16, 16, (2, 4, 12, 12))
    features = np.zeros((1, 4, 4), np.float32)
    features[0, 1:3, 1:3], features[0, 0], features[0, 3], features[0, :, 3] = 5, 1, 1, 1
    features[0, 1:3, 0] = -9  # half covered
    assert cosine_within(features, features, region) == pytest.approx(1)


def test_a_mask_that_leaves_nothing_has_no_score() -> None:
    for mask in (np.zeros((96, 128), np.uint8), np.full((96, 128), 255, np.uint8)):
        with pytest.raises(ItemError) as caught:
            remove_score(Colours(), scene(RED, RED, mask), mask)
        assert caught.value.code == "no_region"
