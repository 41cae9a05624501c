"""Objects lifted with their effects: put back they give the photo, and what they cast darkens and brightens another ground."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from core.composing.light import to_linear, to_srgb
from core.effects.lifting import Lifted, lift
from core.effects.region import EffectRegion, effect_region
from core.errors import UsageError

SIZE = (120, 160)


def scene(seed: int, *, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Before, after and object mask of a box with a shadow on its right and coloured light on its left, and the true shade."""
    rng = np.random.default_rng(seed)
    after = np.clip(110 + cv2.GaussianBlur(rng.normal(0, 60, (*SIZE, 3)), (0, 0), 2), 0, 255)
    mask = np.zeros(SIZE, np.uint8)
    mask[30:90, 60:90] = 255
    shade, glow = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    shade[70:90, 90:130], glow[60:90, 35:60] = 0.5, 0.12
    shade, glow = cv2.GaussianBlur(shade, (0, 0), 2), cv2.GaussianBlur(glow, (0, 0), 2)
    light = to_linear(after.astype(np.uint8)) * (1 - shade[..., None]) + glow[..., None] * np.array([1.0, 0.8, 0.3], np.float32)
    light[mask > 0] = (0.4, 0.1, 0.05)
    photos = [np.clip(np.round(pixels + rng.normal(0, noise, after.shape)), 0, 255).astype(np.uint8) for pixels in (to_srgb(light), after)]
    return photos[0], photos[1], mask, shade


def lifted(seed: int, *, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, EffectRegion, Lifted]:
    before, after, mask, _ = scene(seed, noise=noise)
    region = effect_region(before, after, mask)
    return before, after, region, lift(region)


def test_on_the_photo_without_it_the_object_gives_the_photo_with_it() -> None:
    for noise in (0.0, 2.0):
        before, _, region, item = lifted(0, noise=noise)
        again = to_srgb(item.over(region.pair.after))
        there = region.whole > 0
        assert np.abs(again[there].astype(int) - before[there]).max() <= 1
        error = np.mean((again.astype(np.float64) - before) ** 2)
        assert 10 * np.log10(255**2 / error) > 35


def test_shadow_and_glow_go_along_to_another_ground() -> None:
    _, _, region, item = lifted(1)
    _, _, _, shade = scene(1)
    assert region.effect[75:85, 95:125].all(), "the shadow"
    assert region.effect[65:85, 42:58].all(), "the glow"
    assert np.allclose(item.alpha[75:85, 95:120], shade[75:85, 95:120], atol=0.06)
    ground = np.full((*SIZE, 3), 0.3, np.float32)
    placed = item.over(ground)
    assert (placed[75:85, 95:120].mean(axis=2) < 0.22).all()
    assert (placed[65:85, 45:55, 0] > 0.33).all(), "light that the object throws brightens"
    assert np.array_equal(placed[region.whole == 0], ground[region.whole == 0])
    assert np.allclose(placed[40:80, 65:85], (0.4, 0.1, 0.05), atol=0.01)


def test_darkening_by_one_factor_is_obers_alpha_on_black() -> None:
    before, after, mask, shade = scene(2)
    region = effect_region(before, after, mask)
    item = lift(region)
    plain = (region.effect > 0) & (shade > 0.4)
    light = [to_linear(pixels).mean(axis=2) for pixels in (before, after)]
    expected = (light[1] - light[0]) / light[1]
    assert plain.sum() > 300
    assert np.abs(item.alpha[plain] - expected[plain]).mean() < 0.02
    assert item.light[plain].mean() < 0.01, "the colour is black"


def test_values_fit_a_png_and_the_png_gives_them_back() -> None:
    _, after, _, item = lifted(3)
    assert item.alpha.dtype == item.light.dtype == np.float32
    assert item.alpha.min() >= 0
    assert item.alpha.max() == 1
    assert (item.light >= 0).all()
    assert (item.light <= item.alpha[..., None]).all()
    colours, alpha = item.cutout()
    share = alpha[..., None].astype(np.float32) / 255
    again = to_linear(after) * (1 - share) + to_linear(colours) * share
    assert np.abs(to_srgb(again).astype(int) - to_srgb(item.over(to_linear(after)))).max() <= 4


def test_a_ground_of_another_size_is_refused() -> None:
    with pytest.raises(UsageError, match="the ground is"):
        lifted(4)[3].over(np.zeros((4, 4, 3), np.float32))
