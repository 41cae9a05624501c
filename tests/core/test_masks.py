"""Masks: what counts as remove, resizing, growing and feathering."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from core.errors import ItemError, UsageError
from core.masks import Mask, decode_mask, dilate, encode_mask, mask_box, soft_mask
from tests.malformed import HEIGHT, WIDTH, object_mask, picture, save

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MASKS = hnp.arrays(np.uint8, st.tuples(st.integers(8, 32), st.integers(8, 32)), elements=st.sampled_from([0, 0, 0, 0, 0, 255]))


def distances(mask: np.ndarray) -> np.ndarray:
    """How far every pixel is from the nearest one of the mask, the slow way."""
    here = np.stack(np.mgrid[: mask.shape[0], : mask.shape[1]], axis=-1).reshape(-1, 1, 2)
    there = np.argwhere(mask > 0).reshape(1, -1, 2)
    return np.sqrt(((here - there) ** 2).sum(-1).min(1)).reshape(mask.shape)


@QUICK
@given(MASKS.filter(lambda mask: 0 < np.count_nonzero(mask) < mask.size))
def test_masks_come_back_as_they_were(pixels: np.ndarray) -> None:
    data = encode_mask(pixels)
    mask = decode_mask(data, (pixels.shape[1], pixels.shape[0]))
    np.testing.assert_array_equal(mask.pixels, pixels)
    assert not mask.resized
    assert encode_mask(mask.pixels) == data
    assert mask.area == np.count_nonzero(pixels)
    rows, columns = np.nonzero(pixels)
    assert mask.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@QUICK
@given(MASKS, st.integers(0, 12), st.integers(0, 12))
def test_dilation_only_grows_and_grows_with_the_radius(pixels: np.ndarray, radius: int, more: int) -> None:
    small, large = dilate(pixels, radius), dilate(pixels, radius + more)
    assert (pixels <= small).all()
    assert (small <= large).all()
    assert set(np.unique(large)) <= {0, 255}
    if pixels.any():
        reach = distances(pixels)
        # OpenCV's ellipse is the disc, give or take less than a pixel.
        assert (small[reach <= radius - 1] == 255).all()
        assert (small[reach > radius + 1] == 0).all()
    else:
        assert not large.any()


@QUICK
@given(MASKS, MASKS, st.integers(0, 6))
def test_a_larger_mask_dilates_to_a_larger_mask(one: np.ndarray, other: np.ndarray, radius: int) -> None:
    height, width = (min(a, b) for a, b in zip(one.shape, other.shape, strict=True))
    one, other = one[:height, :width].copy(), other[:height, :width].copy()
    both = np.maximum(one, other)
    np.testing.assert_array_equal(dilate(both, radius), np.maximum(dilate(one, radius), dilate(other, radius)))


@QUICK
@given(MASKS, st.floats(0, 12, width=32))
def test_a_soft_mask_is_one_inside_and_zero_beyond_the_feather(pixels: np.ndarray, feather: float) -> None:
    soft = soft_mask(pixels, feather)
    assert soft.dtype == np.float32
    assert soft.shape == pixels.shape
    assert (soft[pixels > 0] == 1.0).all()
    if not pixels.any():
        assert not soft.any()
        return
    reach = distances(pixels)
    assert (soft[(reach >= np.float32(feather) * (1 + 1e-6)) & (pixels == 0)] == 0.0).all()
    ramp = np.clip(1 - reach / max(feather, 1e-9), 0, 1)
    expected = np.where(pixels > 0, 1, ramp * ramp * (3 - 2 * ramp))
    np.testing.assert_allclose(soft, expected, atol=1e-5)
    assert soft.min() >= 0.0
    assert soft.max() == 1.0


def test_the_feather_ends_where_it_says() -> None:
    mask = np.zeros((21, 41), np.uint8)
    mask[:, :10] = 255
    row = soft_mask(mask, 8)[10]
    assert row[9] == 1.0
    assert row[17] == 0.0  # 8 pixels outside
    assert (row[18:] == 0.0).all()
    assert 0 < row[16] < row[13] < row[10] < 1
    assert row[13] == 0.5  # half-way


def test_nothing_is_written_into_the_argument() -> None:
    mask = object_mask()
    before = mask.copy()
    assert dilate(mask, 0) is not mask
    dilate(mask, 5)
    soft_mask(mask, 5)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("side", [(32, 24), (128, 96), (640, 480), (65, 48)])
def test_other_sizes_of_the_same_shape_are_resized(side: tuple[int, int]) -> None:
    data = save(Image.fromarray(object_mask()).resize(side, Image.Resampling.NEAREST), "PNG")
    mask = decode_mask(data, (WIDTH, HEIGHT))
    assert mask.resized
    assert mask.pixels.shape == (HEIGHT, WIDTH)
    assert set(np.unique(mask.pixels)) == {0, 255}
    off = np.count_nonzero(mask.pixels != object_mask())
    assert off <= 20  # the pixels of one edge at most; exact for whole multiples
    if side in [(32, 24), (128, 96), (640, 480)]:
        assert off == 0


@pytest.mark.parametrize(("width", "fits"), [(98, True), (102, True), (97, False), (103, False)])
def test_shapes_may_differ_by_two_percent(width: int, fits: bool) -> None:
    pixels = np.zeros((100, width), np.uint8)
    pixels[20:50, 20:50] = 255
    if fits:
        assert decode_mask(encode_mask(pixels), (100, 100)).resized
    else:
        with pytest.raises(ItemError, match=f"the mask is {width} x 100 and the photo 100 x 100 pixels") as caught:
            decode_mask(encode_mask(pixels), (100, 100))
        assert caught.value.code == "mask_size_mismatch"


def test_colour_counts_by_its_luminance() -> None:
    colours = np.zeros((16, 40, 3), np.uint8)
    for index, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (128, 128, 128)]):
        colours[:, index * 8 : index * 8 + 8] = colour
    mask = decode_mask(save(colours, "PNG"), (40, 16))
    assert mask.pixels[0, ::8].tolist() == [0, 255, 0, 255, 255]


def test_alpha_counts_only_where_there_is_no_colour() -> None:
    alpha = 255 - object_mask()
    drawn = np.dstack([np.repeat(object_mask()[..., None], 3, axis=2), alpha])
    np.testing.assert_array_equal(decode_mask(save(drawn, "PNG"), (WIDTH, HEIGHT)).pixels, object_mask())
    single = np.dstack([np.full_like(picture(), 77), alpha])
    np.testing.assert_array_equal(decode_mask(save(single, "PNG"), (WIDTH, HEIGHT)).pixels, alpha)


def test_the_limit_holds_for_masks_too() -> None:
    with pytest.raises(ItemError, match=r"the mask has .* raise --max-megapixels") as caught:
        decode_mask(encode_mask(object_mask()), (WIDTH, HEIGHT), max_megapixels=0.001)
    assert caught.value.code == "mask_too_large"


def test_the_file_has_one_channel_of_two_values() -> None:
    data = encode_mask(np.array([[0, 1, 127, 128, 254, 255]], np.uint8))
    assert data[24:26] == bytes([8, 0])
    assert data[16:24] == bytes([0, 0, 0, 6, 0, 0, 0, 1])


def test_a_mask_of_nothing_has_no_box() -> None:
    nothing = Mask(np.zeros((9, 9), np.uint8))
    assert (nothing.area, nothing.box, mask_box(nothing.pixels)) == (0, (0, 0, 0, 0), (0, 0, 0, 0))


def test_wrong_calls_say_what_they_got() -> None:
    with pytest.raises(UsageError, match="-1"):
        dilate(object_mask(), -1)
    for feather in (-0.5, math.inf, math.nan):
        with pytest.raises(UsageError, match=str(feather)):
            soft_mask(object_mask(), feather)
    with pytest.raises(UsageError, match="float64"):
        encode_mask(np.zeros((4, 4)))
    with pytest.raises(UsageError, match=r"\(4, 4, 3\)"):
        encode_mask(np.zeros((4, 4, 3), np.uint8))
