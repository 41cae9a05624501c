"""Crops: nothing outside the soft mask changes, the network sees nothing of the object, and the way back fits the way in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.crops import CropRule, crop_square, make_crop, paste, view_of
from core.exemplar import complete
from core.masks import dilate, mask_box, soft_mask
from tests.pictures import box_mask, gradient, random_mask

MANY = settings(max_examples=200, deadline=None)
RULES = st.builds(
    CropRule,
    size=st.sampled_from([None, 16, 48, 64]),
    context=st.sampled_from([1.0, 1.5, 2.0, 4.0]),
    dilate_px=st.integers(0, 5),
    feather_px=st.integers(0, 6),
    least_side=st.sampled_from([8, 64]),
)
SIDES = st.integers(8, 90)


@MANY
@given(st.integers(0, 2**32 - 1), SIDES, SIDES, RULES)
def test_pixels_outside_the_soft_mask_stay_bit_for_bit(seed: int, width: int, height: int, rule: CropRule) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    before, mask = pixels.copy(), random_mask(rng, width, height)
    crop = make_crop(pixels, mask, rule)
    side = rule.size or crop.side
    assert crop.pixels.shape == (side, side, 3)
    assert crop.mask.shape == (side, side)
    assert crop.soft.shape == (crop.side, crop.side)
    result = paste(pixels, crop, rng.integers(0, 256, crop.pixels.shape, dtype=np.uint8))
    np.testing.assert_array_equal(pixels, before)
    # how far the result may differ, worked out on the whole photo
    scale = crop.side / rule.size if rule.size else 1.0
    reach = soft_mask(dilate(mask, round(rule.dilate_px * scale)), round(rule.feather_px * scale))
    np.testing.assert_array_equal(result[reach == 0], pixels[reach == 0])


@MANY
@given(st.integers(0, 2**32 - 1), SIDES, SIDES, RULES)
def test_the_whole_object_is_hidden_and_replaced(seed: int, width: int, height: int, rule: CropRule) -> None:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, width, height)
    pixels = np.where(mask[..., None] > 0, [255, 0, 0], [0, 0, 255]).astype(np.uint8)
    crop = make_crop(pixels, mask, rule)
    assert set(np.unique(crop.mask)) <= {0, 255}
    if crop.side >= crop.mask.shape[0]:  # nothing is enlarged, so nothing overshoots
        assert (crop.pixels[crop.mask == 0] == [0, 0, 255]).all()
    result = paste(pixels, crop, np.full_like(crop.pixels, 77))
    assert (result[mask > 0] == 77).all()


@MANY
@given(SIDES, SIDES, st.data(), RULES)
def test_the_square_holds_the_box_and_stays_inside_where_it_fits(width: int, height: int, data: st.DataObject, rule: CropRule) -> None:
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    x, y, side = crop_square((x0, y0, x1, y1), width, height, rule)
    assert x <= x0 < x1 <= x + side
    assert y <= y0 < y1 <= y + side
    assert side <= max(width, height)
    for start, extent in ((x, width), (y, height)):
        assert (start >= 0 and start + side <= extent) if side <= extent else (start <= 0 and start + side >= extent)


@MANY
@given(st.integers(0, 2**32 - 1), SIDES, SIDES, RULES)
def test_another_picture_is_seen_through_the_same_square(seed: int, width: int, height: int, rule: CropRule) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    crop = make_crop(pixels, random_mask(rng, width, height), rule)
    np.testing.assert_array_equal(view_of(pixels, crop, rule.size or crop.side), crop.pixels)


def test_the_crop_is_the_part_of_the_photo_that_it_says() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    crop = make_crop(pixels, box_mask(120, 100, (50, 40, 70, 50)), CropRule(size=None, context=2.0, least_side=8))
    assert (crop.x, crop.y, crop.side) == (40, 25, 40)
    np.testing.assert_array_equal(crop.pixels, pixels[25:65, 40:80])
    assert mask_box(crop.mask) == (10, 15, 30, 25)


def test_beyond_the_edge_photo_and_mask_are_mirrored_alike() -> None:
    """Otherwise the object's mirror image would be background, and be painted back in."""
    mask = box_mask(90, 30, (40, 0, 60, 12))
    pixels = np.where(mask[..., None] > 0, 255, 0).repeat(3, axis=2).astype(np.uint8)
    crop = make_crop(pixels, mask, CropRule(size=None, context=4.0, least_side=8))
    assert (crop.y, crop.side) == (-25, 80)
    np.testing.assert_array_equal(crop.mask, crop.pixels[..., 0])


def test_a_fill_that_is_the_photo_changes_nothing() -> None:
    pixels = gradient(80, 60)
    crop = make_crop(pixels, box_mask(80, 60, (0, 0, 30, 30)), CropRule(size=None, feather_px=9))
    np.testing.assert_array_equal(paste(pixels, crop, crop.pixels), pixels)


@pytest.mark.parametrize("side", [700, 1500])
def test_one_pixel_is_not_lost_when_the_crop_is_made_small(side: int) -> None:
    for place in (0, 1, side // 3, side - 1):
        mask = np.zeros((side, side), np.uint8)
        mask[place, place] = mask[side // 2, :] = 255
        crop = make_crop(np.zeros((side, side, 3), np.uint8), mask, CropRule(size=32))
        assert crop.side == side
        assert crop.mask[place * 32 // side, place * 32 // side] == 255


def test_with_the_photos_texture_a_network_that_changes_nothing_leaves_the_filled_photo() -> None:
    rng = np.random.default_rng(2)
    pixels, mask = rng.integers(0, 256, (150, 180, 3), dtype=np.uint8), box_mask(180, 150, (60, 50, 100, 90))
    crop = make_crop(pixels, mask, CropRule(size=64, context=2.5, dilate_px=1, feather_px=2, texture="photo"))
    assert crop.plate is not None
    view = pixels[crop.y : crop.y + crop.side, crop.x : crop.x + crop.side]
    np.testing.assert_array_equal(crop.plate, complete(np.ascontiguousarray(view), crop.soft == 1))
    result = paste(pixels, crop, crop.pixels)[crop.y : crop.y + crop.side, crop.x : crop.x + crop.side]
    np.testing.assert_array_equal(result[crop.soft == 1], crop.plate[crop.soft == 1])
    np.testing.assert_array_equal(result[crop.soft == 0], view[crop.soft == 0])
