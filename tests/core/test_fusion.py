"""Attention-guided fusion: against OpenCV's own operations, in a batch of different masks, and by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.crops import Crop, CropRule, Fill, make_crop, paste, paste_mask
from core.fusion import attention_map, attention_soft_mask, hard_mask, soften


def spot(height: int, width: int, row: int, column: int) -> torch.Tensor:
    """(1, 2 heads, N): attention on one place; the heads differ, their mean is the spot."""
    picture = torch.full((height, width), 0.01)
    picture[row, column] = 0.5
    return torch.stack([picture.flatten() * 1.5, picture.flatten() * 0.5])[None]


def test_heads_are_averaged_and_positions_become_a_picture() -> None:
    found = attention_map(spot(4, 8, 1, 6), 64, 128)
    assert found.shape == (1, 1, 4, 8)
    assert found.flatten().argmax() == 1 * 8 + 6
    assert float(found.max()) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="32 positions are no picture"):
        attention_map(torch.zeros(1, 1, 32), 64, 65)


@pytest.mark.parametrize(
    ("size", "growth", "blur", "sigma"),
    [((512, 560), 21, 9, 2.0), ((300, 256), 11, 5, 1.0), ((128, 128), 5, 3, 0.5), ((48, 64), 3, 3, 0.1875)],
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.0, 0.05))
def test_softening_equals_opencvs(size: tuple[int, int], growth: int, blur: int, sigma: float, seed: int, share: float) -> None:
    """With the reference's kernels at 512 pixels, and as large in proportion elsewhere."""
    hard = (np.random.default_rng(seed).random(size) < share).astype(np.float32)
    grown = cv2.dilate(hard, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (growth, growth)))
    expected = np.clip(np.maximum(cv2.GaussianBlur(grown, (blur, blur), sigma), hard), 0, 1)
    found = soften(torch.from_numpy(hard)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_hard_masks_follow_the_references_steps() -> None:
    generator = np.random.default_rng(0)
    coarse = cv2.GaussianBlur(generator.random((8, 8)).astype(np.float32), (3, 3), 1)
    twice = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None, None], scale_factor=2, mode="bilinear")[0, 0].numpy()
    stretched = (twice - twice.min()) / (twice.max() - twice.min())
    expected = cv2.resize((stretched > 128 / 255).astype(np.float32), (128, 128), interpolation=cv2.INTER_NEAREST)
    found = hard_mask(torch.from_numpy(coarse)[None, None], 128, 128)[0, 0].numpy()
    np.testing.assert_array_equal(found, expected)
    assert 0 < found.mean() < 1


def test_each_item_of_a_batch_has_its_own_mask() -> None:
    places = [(1, 1), (6, 2), (3, 7)]
    together = attention_soft_mask(torch.cat([spot(8, 8, *place) for place in places]), 128, 128)
    for index, (row, column) in enumerate(places):
        alone = attention_soft_mask(spot(8, 8, row, column), 128, 128)[0]
        assert torch.equal(together[index], alone)
        assert float(alone[row * 16 + 8, column * 16 + 8]) == 1.0
        assert float(alone[(row + 4) % 8 * 16, (column + 4) % 8 * 16]) == 0.0


def test_a_map_without_contrast_makes_no_mask() -> None:
    flat = torch.full((1, 1, 64), 1 / 77) + torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0)) * 1e-5
    assert float(attention_soft_mask(flat, 128, 128).max()) == 0.0


def photo_with(mask_box: tuple[int, int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    photo = np.random.default_rng(seed).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    mask = np.zeros((120, 160), np.uint8)
    x0, y0, x1, y1 = mask_box
    mask[y0:y1, x0:x1] = 255
    return photo, mask


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    x=st.integers(0, 150),
    y=st.integers(0, 110),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    context=st.floats(1.0, 4.0),
    soft=st.sampled_from(["none", "ones", "spots"]),
)
def test_bytes_outside_the_soft_mask_are_the_photos(seed: int, x: int, y: int, width: int, height: int, context: float, soft: str) -> None:
    photo, mask = photo_with((x, y, min(160, x + width), min(120, y + height)), seed)
    crop = make_crop(photo, mask, CropRule(size=64, context=context, feather_px=4))
    rng = np.random.default_rng(seed)
    own = {"none": None, "ones": np.ones((64, 64), np.float32), "spots": (rng.random((64, 64)) < 0.05).astype(np.float32)}[soft]
    fill = Fill(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), own)
    result = paste(photo, crop, fill)
    side_mask = paste_mask(crop, fill, 160, 120)
    whole = np.zeros((120, 160), np.float32)
    for row in range(max(0, crop.y), min(120, crop.y + crop.side)):
        left, right = max(0, crop.x), min(160, crop.x + crop.side)
        whole[row, left:right] = side_mask[row - crop.y, left - crop.x : right - crop.x]
    np.testing.assert_array_equal(result[whole == 0], photo[whole == 0])
    assert (side_mask >= crop.soft).all()
    assert side_mask.max() <= 1
    assert (whole[mask > 0] == 1).all()


def crop_at(x: int, y: int, side: int) -> Crop:
    empty = np.zeros((side, side), np.float32)
    return Crop(np.zeros((side, side, 3), np.uint8), empty.astype(np.uint8), empty, x, y, side)


def test_a_fills_own_mask_fades_only_where_the_photo_goes_on() -> None:
    ones = Fill(np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), np.float32))
    inside = paste_mask(crop_at(20, 20, 64), ones, 200, 200)
    assert (inside[0] == 0).all()
    assert (inside[:, -1] == 0).all()
    assert inside[32, 32] == 1
    corner = paste_mask(crop_at(0, 0, 64), ones, 200, 200)
    assert corner[0, 0] == 1
    assert (corner[-1] == 0).all()
    whole = paste_mask(crop_at(-10, 0, 64), ones, 44, 64)
    assert (whole == 1).all()
