"""Carrying tone over a hole: the prefilled conditioning, and the fill that is matched to the photo in the seam."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.conditioning import image_tensor, prefill
from core.crops import CropRule, make_crop, match_tone, paste
from core.masks import soft_mask


def gradient(height: int = 96, width: int = 120) -> np.ndarray:
    ys, xs = np.mgrid[:height, :width]
    return np.stack([xs + 40, ys + 60, xs + ys], axis=-1).astype(np.uint8)


def hole(height: int = 96, width: int = 120) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[30:62, 40:90] = 255
    mask[20:40, 60:70] = 255
    return mask


def test_prefill_continues_a_gradient_and_leaves_what_is_known() -> None:
    image, mask = image_tensor(gradient()), torch.from_numpy((hole() > 0).astype(np.float32))[None, None]
    spoiled = torch.where(mask > 0, torch.full_like(image, 0.9), image)
    filled = prefill(spoiled, mask)
    assert torch.equal(filled[(mask == 0).expand_as(filled)], image[(mask == 0).expand_as(image)])
    error = (filled - image).abs()[(mask > 0).expand_as(image)] * 127.5
    assert error.mean() < 3
    assert error.max() < 12


def test_prefill_does_not_depend_on_the_batch() -> None:
    masks = torch.stack([torch.from_numpy((np.roll(hole(), shift, 1) > 0).astype(np.float32))[None] for shift in (0, 9, -7)])
    images = torch.cat([image_tensor(np.roll(gradient(), shift, 0)) for shift in (0, 3, 50)])
    together = prefill(images, masks)
    for index in range(3):
        assert torch.equal(together[index], prefill(images[index : index + 1], masks[index : index + 1])[0])


@pytest.mark.parametrize("shift", [(25, 25, 25), (-30, 0, 18)])
def test_a_shifted_fill_is_brought_back(shift: tuple[int, int, int]) -> None:
    photo, soft = gradient(), soft_mask(hole(), 6)
    shifted = np.clip(photo.astype(int) + shift, 0, 255).astype(np.uint8)
    matched = match_tone(photo, shifted, soft)
    inside = soft > 0
    assert np.abs(matched.astype(int) - photo)[inside].mean() < 1.5
    assert np.abs(shifted.astype(int) - photo)[inside].mean() > 10


def test_without_a_seam_nothing_changes() -> None:
    photo, filled = gradient(), 255 - gradient()
    assert (match_tone(photo, filled, (hole() > 0).astype(np.float32)) == filled).all()


def test_texture_stays_and_bytes_outside_are_the_photos() -> None:
    photo, mask = gradient(), hole()
    crop = make_crop(photo, mask, CropRule(size=64, feather_px=4, match_tone=True))
    noise = np.random.default_rng(3).integers(-20, 20, crop.pixels.shape)
    result = paste(photo, crop, np.clip(crop.pixels.astype(int) + 40 + noise, 0, 255).astype(np.uint8))
    outside = np.ones(mask.shape, bool)
    ys, xs = np.nonzero(crop.soft)
    outside[ys + crop.y, xs + crop.x] = False
    assert (result[outside] == photo[outside]).all()
    inside = mask > 0
    difference = result.astype(int)[inside] - photo[inside]
    assert abs(difference.mean()) < 4
    assert difference.std() > 4
