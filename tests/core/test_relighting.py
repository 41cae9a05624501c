"""Light as a factor: a shadow goes and contrast comes back, whether a network gave a picture of the scene or one of the light."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from core.conditioning import image_batch, pixel_batch
from core.crops import CropRule, make_crop, paste
from core.relighting import LIGHT_RANGE, light_picture, lit, relit
from tests.pictures import box_mask

MIDDLE = np.s_[96:160, 96:160]


def shaded() -> tuple[np.ndarray, np.ndarray]:
    """A scene (256, 256, 3) in the light and with a soft shadow in its middle, textured to the pixel."""
    bright = np.random.default_rng(3).integers(120, 240, (256, 256, 3)).astype(np.float32)
    y, x = np.mgrid[:256, :256]
    shade = 1 - 0.5 * np.exp(-((x - 128) ** 2 + (y - 128) ** 2) / 2 / 40**2)
    return bright.astype(np.uint8), np.rint(bright * shade[..., None]).astype(np.uint8)


def small(*pictures: np.ndarray) -> list[np.ndarray]:
    return [cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA) for picture in pictures]


def light(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """As a network that is always right would draw it."""
    source_B3HW, target_B3HW = (image_batch(torch.from_numpy(picture)[None]) for picture in (source, target))
    return pixel_batch(light_picture(source_B3HW, target_B3HW))[0].numpy()


def test_relighting_takes_a_shadow_away_and_brings_the_contrast_back() -> None:
    """Seen at a quarter of the size, it is undone at full size, texture included."""
    bright, dark = shaded()
    seen, filled = small(dark, bright)
    assert np.abs(dark[MIDDLE].astype(int) - bright[MIDDLE]).mean() > 60
    for result in (relit(dark, seen, filled), lit(dark, light(seen, filled))):
        assert np.abs(result[MIDDLE].astype(int) - bright[MIDDLE]).mean() < 4


def test_where_nothing_changes_the_plate_stays_to_the_byte() -> None:
    _, dark = shaded()
    seen = small(dark)[0]
    np.testing.assert_array_equal(relit(dark, seen, seen), dark)
    np.testing.assert_array_equal(lit(dark, light(seen, seen)), dark)


def test_a_picture_of_light_ends_at_its_range_and_is_finite_in_black() -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert (light(black, white) == 255).all()
    assert (light(white, black) == 0).all()
    np.testing.assert_allclose(lit(np.full((8, 8, 3), 60, np.uint8), light(black, white)), 60 * LIGHT_RANGE, atol=3)


def test_a_picture_of_light_depends_on_its_item_alone() -> None:
    rng = np.random.default_rng(5)
    source_B3HW, target_B3HW = (image_batch(torch.from_numpy(rng.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8))) for _ in range(2))
    together = light_picture(source_B3HW, target_B3HW)
    for item in range(3):
        assert torch.equal(together[item], light_picture(source_B3HW[item : item + 1], target_B3HW[item : item + 1])[0])


def test_a_crop_whose_network_draws_light_is_pasted_in_that_light() -> None:
    photo = np.full((96, 96, 3), 100, np.uint8)
    mask = box_mask(96, 96, (40, 40, 56, 56))
    crop = make_crop(photo, mask, CropRule(size=32, context=2.0, feather_px=0, texture="light"))
    assert crop.texture == "light"
    brighter = np.full_like(crop.pixels, 128 + round(127.5 * np.log(1.5) / np.log(LIGHT_RANGE)))
    result = paste(photo, crop, brighter)
    assert (result[mask == 0] == 100).all()
    assert crop.plate is not None
    plate = crop.plate[crop.soft > 0].astype(float)
    np.testing.assert_allclose(result[mask > 0], plate * 1.5, atol=2)


def test_noise_of_colour_in_the_light_does_not_reach_the_photo() -> None:
    """Its mean is grey; what is left of it is a fraction of what a brightness of the same strength would be."""
    noise = np.random.default_rng(7).integers(-20, 21, (64, 64, 3))
    coloured = noise - np.rint(noise.mean(axis=2, keepdims=True)).astype(int)
    plate = np.full((64, 64, 3), 120, np.uint8)
    found, grey = (lit(plate, (128 + each).astype(np.uint8)).astype(int) - 120 for each in (coloured, noise[..., :1].repeat(3, 2)))
    assert np.abs(found).mean() < 0.3 * np.abs(grey).mean()
    tint = np.full((64, 64, 3), (128, 128, 148), np.uint8)
    assert (lit(plate, tint)[..., 2] > lit(plate, tint)[..., 0]).all(), "an even tint stays"
