"""Effect masks on composed pairs, whose true masks are known, with what a camera adds: noise, a small shift, another exposure."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.composing.composer import Composer, ComposeSettings, Composition
from core.composing.light import to_linear, to_srgb
from core.effects.lifting import lift
from core.effects.region import RegionSettings, effect_region
from core.effects.registration import register
from core.errors import ItemError, UsageError
from tests.core.composing.collections import open_collection, write_collection

SIDE, COUNT, RIM = 256, 12, 8


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> list[Composition]:
    composer = Composer(
        open_collection(write_collection(tmp_path_factory.mktemp("collection"))),
        ComposeSettings(size=SIDE + 2 * RIM, negatives=0.0, max_objects=1),
    )
    return [composer.compose(f"effects-{number}") for number in range(COUNT)]


def photographed(
    pixels: np.ndarray, rng: np.random.Generator, *, shift: tuple[float, float] = (0, 0), gain: float = 1.0, noise: float = 2.0
) -> np.ndarray:
    """A photo by a camera that stands ``shift`` pixels off, without the rim that it would not see."""
    light = to_linear(pixels)
    if any(shift):
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
        light = np.clip(cv2.warpAffine(light, matrix, light.shape[1::-1], flags=cv2.INTER_CUBIC), 0, 1)
    seen = to_srgb(light * np.float32(gain))[RIM:-RIM, RIM:-RIM]
    return np.clip(np.round(seen + rng.normal(0, noise, seen.shape)), 0, 255).astype(np.uint8)


def cut(mask: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(mask[RIM:-RIM, RIM:-RIM])


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one > 0) & (other > 0)).sum() / ((one > 0) | (other > 0)).sum())


def test_masks_are_found_in_spite_of_noise_shift_and_exposure(composed: list[Composition]) -> None:
    found, gains = [], []
    for number, item in enumerate(composed):
        rng = np.random.default_rng(number)
        shift, gain = (float(rng.uniform(-1.5, 1.5)), float(rng.uniform(-1.5, 1.5))), float(rng.uniform(0.9, 1.1))
        after = photographed(item.target, rng, shift=shift, gain=gain)
        region = effect_region(photographed(item.source, rng), after, cut(item.mask))
        assert not (region.whole[cut(item.mask) > 0] == 0).any(), "the object is part of it"
        assert np.array_equal(region.effect > 0, (region.whole > 0) & (cut(item.mask) == 0))
        found.append(overlap(region.whole, cut(item.effect_mask)))
        gains.append(region.pair.gain[1] * gain)
        assert abs(region.pair.shift_px - np.hypot(*shift)) < 0.35, shift
    assert np.median(found) >= 0.8, found
    assert np.allclose(gains, 1, atol=0.03)


def test_nothing_is_found_where_nothing_changed(composed: list[Composition]) -> None:
    for number, item in enumerate(composed):
        rng = np.random.default_rng(number)
        same = photographed(item.target, rng, noise=0)
        region = effect_region(same, same, cut(item.mask))
        assert np.array_equal(region.whole, cut(item.mask))
        assert not region.effect.any()
        noisy = effect_region(photographed(item.target, rng), photographed(item.target, rng, shift=(0.7, -0.4)), cut(item.mask))
        assert overlap(noisy.whole, cut(item.mask)) == 1.0, number


def test_a_moved_camera_is_refused_with_its_shift(composed: list[Composition]) -> None:
    for number, item in enumerate(composed):
        rng = np.random.default_rng(number)
        after = photographed(item.target, rng, shift=(7.5, 0))
        with pytest.raises(ItemError, match=r"moved by [78]\.\d pixels; allowed are 3\.0|backgrounds differ by") as caught:
            effect_region(photographed(item.source, rng), after, cut(item.mask))
        assert (caught.value.stage, caught.value.code) == ("effects", "background_moved")


def room(rng: np.random.Generator, ball: tuple[int, int] | None = None) -> np.ndarray:
    """A textured wall, (160, 200, 3) uint8, with a ball on it or none."""
    wall = np.clip(120 + cv2.GaussianBlur(rng.normal(0, 60, (160, 200, 3)), (0, 0), 2), 0, 255).astype(np.uint8)
    if ball:
        cv2.circle(wall, ball, 13, (200, 70, 40), -1, cv2.LINE_AA)
    return wall


def object_at(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((160, 200), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    return mask


def test_another_thing_that_moved_is_refused() -> None:
    mask = object_at((20, 30, 60, 90))
    before, after = room(np.random.default_rng(0), (150, 110)), room(np.random.default_rng(0), (158, 110))
    before[mask > 0] = (30, 40, 160)
    with pytest.raises(ItemError, match=r"around \(1[45]\d, 1[01]\d\), away from the object") as caught:
        effect_region(before, after, mask)
    assert caught.value.code in {"background_moved", "light_changed"}
    still = room(np.random.default_rng(0), (150, 110))
    assert np.array_equal(effect_region(before, still, mask).whole, mask)


def test_a_shadow_apart_from_the_object_is_its_effect() -> None:
    mask, shadow = object_at((20, 20, 60, 60)), object_at((90, 100, 140, 130))
    after = room(np.random.default_rng(1))
    shade = cv2.GaussianBlur(shadow.astype(np.float32) / 255, (0, 0), 2)[..., None] * np.float32(0.5)
    before = to_srgb(to_linear(after) * (1 - shade))
    before[mask > 0] = (30, 40, 160)
    assert overlap(effect_region(before, after, mask).effect, shadow) > 0.7


@pytest.mark.parametrize(("gain", "code"), [(np.array([0.5, 0.5, 0.5]), "light_changed"), (np.array([1.0, 1.0, 2.0]), "light_changed")])
def test_another_light_is_refused_with_its_gain(gain: np.ndarray, code: str) -> None:
    dim = room(np.random.default_rng(2)) // 2 + 20
    after = to_srgb(np.clip(to_linear(dim) * gain.astype(np.float32), 0, 1))
    with pytest.raises(ItemError, match="has to be multiplied by") as caught:
        effect_region(dim, after, object_at((20, 30, 60, 90)))
    assert caught.value.code == code


def test_light_that_changed_in_a_part_is_refused() -> None:
    after, mask = room(np.random.default_rng(3)), object_at((10, 10, 40, 40))
    brighter = to_linear(after)
    brighter[90:150, 110:190] *= np.float32(1.4)
    with pytest.raises(ItemError, match="away from the object, is lit differently") as caught:
        effect_region(to_srgb(brighter), after, mask)
    assert caught.value.code == "light_changed"


def test_an_object_that_fills_the_picture_cannot_be_compared() -> None:
    photo = room(np.random.default_rng(4))
    with pytest.raises(ItemError, match="clear of the object") as caught:
        register(photo, photo, object_at((2, 2, 198, 158)))
    assert caught.value.code == "no_background"


def test_wrong_arrays_and_thresholds_are_one_clear_line() -> None:
    photo, mask = room(np.random.default_rng(5)), object_at((20, 30, 60, 90))
    with pytest.raises(UsageError, match="like the one with it"):
        effect_region(photo, photo[:100], mask)
    with pytest.raises(UsageError, match="object mask is"):
        effect_region(photo, photo, mask[:100])
    with pytest.raises(UsageError, match="0 < low <= high"):
        RegionSettings(low=7, high=6)


@settings(max_examples=20, deadline=None)
@given(st.integers(16, 90), st.integers(16, 90), st.integers(0, 1000))
def test_any_size_works_and_an_equal_pair_gives_the_object(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[2 : 2 + height // 4, 2 : 2 + width // 4] = 255
    region = effect_region(photo, photo, mask)
    assert np.array_equal(region.whole, mask)
    assert np.array_equal(to_srgb(lift(region).over(to_linear(photo))), photo)
