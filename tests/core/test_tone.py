"""Carrying tone over a hole: the prefilled conditioning, and the fill that is matched to the photo in the seam."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from core.conditioning import image_tensor, prefill
from core.crops import CropRule, Fill, make_crop, paste
from core.masks import soft_mask
from core.tone import continue_tone, match_tone


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


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_fill_of_another_light_takes_the_light_around_it_and_keeps_its_texture(factor: float) -> None:
    photo = (gradient() * (0.6 + 0.1 * np.random.default_rng(4).random((96, 120, 1)))).astype(np.uint8)
    inside = hole() > 0
    other = np.where(inside[..., None], np.rint(photo * factor), photo).astype(np.uint8)
    toned = continue_tone(other, inside, photo)
    np.testing.assert_array_equal(toned[~inside], photo[~inside])
    before, after = (np.abs(picture[inside].astype(int) - photo[inside]).mean() for picture in (other, toned))
    assert after < 0.3 * before
    noise = [np.std(cv2.Laplacian(picture[..., 0], cv2.CV_32F)[36:56, 48:82]) for picture in (photo, toned)]
    assert noise[1] == pytest.approx(noise[0], rel=0.15)


def test_another_thing_beside_the_hole_throws_no_halo_into_it() -> None:
    """A dark post touches the hole in an even wall; the fill goes on with the wall, and so it should stay."""
    wall = np.full((128, 128, 3), 170, np.uint8)
    wall[:, 20:40] = 25
    inside = np.zeros((128, 128), bool)
    inside[40:90, 40:90] = True
    assert np.abs(continue_tone(wall, inside, wall).astype(int) - wall).max() <= 2


def test_a_horizon_in_the_fill_stays() -> None:
    scene = np.full((128, 128, 3), (60, 110, 220), np.uint8)
    scene[64:] = (190, 160, 40)
    inside = np.zeros((128, 128), bool)
    inside[40:90, 40:90] = True
    toned = continue_tone(scene, inside, scene).astype(int)
    steps = [picture[61:63, 45:85].mean(axis=(0, 1)) - picture[65:67, 45:85].mean(axis=(0, 1)) for picture in (scene.astype(int), toned)]
    assert (np.abs(steps[1]) > 0.75 * np.abs(steps[0])).all(), steps


def test_with_nothing_around_it_or_nothing_alike_a_fill_stays() -> None:
    photo = gradient()
    assert (continue_tone(photo, np.ones(photo.shape[:2], bool), photo) == photo).all()
    assert (continue_tone(photo, np.zeros(photo.shape[:2], bool), photo) == photo).all()
    apart = np.where((hole() > 0)[..., None], 250, 3).repeat(3, axis=2).astype(np.uint8)
    assert (continue_tone(apart, hole() > 0, apart) == apart).all()


def test_large_pictures_get_the_tone_that_small_ones_get() -> None:
    small = np.where((hole() > 0)[..., None], gradient() * 0.8, gradient()).astype(np.uint8)
    large = cv2.resize(small, None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)
    inside = cv2.resize(hole(), None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST) > 0
    shrunk = cv2.resize(continue_tone(large, inside, large), small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - continue_tone(small, hole() > 0, small)).mean() < 1


def test_a_fill_with_the_photos_texture_takes_the_tone_of_what_was_never_in_the_shadow() -> None:
    """A shadow lies around the hole and in the fill; the network takes half of it away around the hole, and none in it."""
    lit = np.full((160, 160, 3), 180, np.uint8)
    dark = lit.copy()
    dark[56:104, 56:104] = 135
    mask = np.zeros((160, 160), np.uint8)
    mask[70:90, 70:90] = 255
    halved = np.where(dark < 180, np.uint8(156), dark)
    found = {}
    for toned in (False, True):
        crop = make_crop(dark, mask, CropRule(size=160, context=8, feather_px=2, texture="photo", match_tone=toned))
        fill = np.where((crop.soft == 1)[..., None], dark, halved)
        result = paste(dark, crop, Fill(fill, np.ones((160, 160), np.float32)))
        found[toned] = float(result[76:84, 76:84].mean())
    assert found[False] < 140
    assert found[True] > 160


def test_the_rim_of_an_object_has_no_say() -> None:
    """A dark line of contact around the hole is not carried into it."""
    photo, inside = np.full((96, 120, 3), 150, np.uint8), hole() > 0
    rim = (cv2.dilate(hole(), np.ones((5, 5), np.uint8)) > 0) & ~inside
    picture = np.where(rim[..., None], np.uint8(125), photo)
    before = np.where(inside[..., None], np.uint8(40), picture)
    assert np.abs(continue_tone(picture, inside, before).astype(int) - picture)[inside].mean() < 3
    assert np.abs(continue_tone(picture, inside, picture).astype(int) - picture)[inside].mean() > 8


def test_places_that_were_relit_have_no_say() -> None:
    photo, inside = np.full((96, 120, 3), 150, np.uint8), hole() > 0
    shadow = cv2.dilate(hole(), np.ones((9, 9), np.uint8)) > 0
    before = np.where(shadow[..., None], np.uint8(110), photo)
    half = np.where((shadow & ~inside)[..., None], np.uint8(125), photo)
    assert np.abs(continue_tone(half, inside, before).astype(int) - half).max() <= 3
    assert continue_tone(half, inside, half)[inside].mean() < 145
