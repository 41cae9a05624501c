"""Augmented pairs: windows hold the object, pairs stay aligned, and an item's draws are its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import assets
from core.crops import CropRule, make_crop
from core.errors import UsageError
from core.images import decode_photo
from core.masks import decode_mask
from training.mask_augmentation import HAND_DRAWN, UNCHANGED
from training.pair_augmentation import (
    ColourChange,
    PairAugmentation,
    Window,
    at_depth,
    augment_pair,
    centroid,
    change_colours,
    draw_colour,
    draw_window,
    mask_view,
    pair_generator,
    picture_view,
)
from training.triplets import TrainingPair

SAMPLES = Path(assets.__file__).parent / "samples"
PLAIN = PairAugmentation(size=64, flip=0, brightness=0, contrast=0, saturation=0, hue=0, mask=UNCHANGED)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def made_pair(height: int = 150, width: int = 200, item_id: str = "x") -> TrainingPair:
    """A pair that differs in its effect mask only: an object with a shadow to its right."""
    source = photo(height, width)
    mask, effect = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    mask[60:90, 80:110] = 255
    effect[60:90, 80:140] = 255
    target = np.where(effect[..., None] > 0, 255 - source, source)
    return TrainingPair(id=item_id, source=source, target=target, mask=mask, effect_mask=effect, score=0.5, verdict="accepted")


def sample(name: str) -> TrainingPair:
    source = decode_photo((SAMPLES / "source" / f"{name}.jpg").read_bytes())
    target = decode_photo((SAMPLES / "target" / f"{name}.jpg").read_bytes())
    mask = decode_mask((SAMPLES / "mask" / f"{name}.png").read_bytes(), (source.width, source.height))
    return TrainingPair(id=name, source=source.pixels, target=target.pixels, mask=mask.pixels)


@pytest.mark.parametrize(("height", "width"), [(1024, 768), (1536, 1024), (768, 1024), (1024, 1536), (512, 512), (513, 2000)])
def test_windows_contain_the_centroid_and_stay_inside(height: int, width: int) -> None:
    rng = np.random.default_rng(1)
    sides = set()
    for _ in range(200):
        mask = np.zeros((height, width), np.uint8)
        cx, cy = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(mask, (cx, cy), 12, 255, -1)
        x, y, side = draw_window(mask, 512, rng)
        mean_y, mean_x = (int(axis.mean()) for axis in np.nonzero(mask))
        assert centroid(mask) == (mean_x, mean_y)
        assert x <= mean_x < x + side
        assert y <= mean_y < y + side
        assert 0 <= x <= width - side
        assert 0 <= y <= height - side
        assert 512 <= side <= min(height, width)
        sides.add(side)
    if min(height, width) > 600:  # all sizes are drawn, the smallest and the largest too
        assert min(sides) < 540
        assert max(sides) > min(height, width) - 30


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(8, 90), width=st.integers(8, 90), size=st.integers(8, 128), seed=st.integers(0, 2**32 - 1), data=st.data()
)
def test_any_window_shows_some_of_the_mask_and_not_only_mask(height: int, width: int, size: int, seed: int, data: st.DataObject) -> None:
    mask = np.zeros((height, width), np.uint8)
    for _ in range(data.draw(st.integers(1, 3))):
        y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        mask[y : y + data.draw(st.integers(1, 90)), x : x + data.draw(st.integers(1, 90))] = 255
    mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = 255
    window = draw_window(mask, size, np.random.default_rng(seed))
    seen = mask_view(mask, Window(*window), (window.side, window.side))
    assert seen.any()
    assert not seen.all() or mask.all()
    assert window.side <= max(height, width)
    assert window.side >= min(size, max(height, width))
    for start, extent in ((window.x, width), (window.y, height)):
        if window.side <= extent:
            assert 0 <= start <= extent - window.side
        else:
            assert start <= 0
            assert start + window.side >= extent


def test_a_small_photo_is_mirrored_not_stretched() -> None:
    mask = np.zeros((40, 100), np.uint8)
    mask[10:20, 40:60] = 255
    window = draw_window(mask, 80, np.random.default_rng(0))
    assert window.side == 80
    assert window.y == -20
    view = picture_view(photo(40, 100), window, (80, 80))
    np.testing.assert_array_equal(view[20:60], photo(40, 100)[:, window.x : window.x + 80])
    np.testing.assert_array_equal(view[:20][::-1], view[21:41])


def test_a_gap_at_the_centroid_still_shows_an_object() -> None:
    mask = np.zeros((100, 400), np.uint8)
    mask[40:60, 10:20] = mask[40:60, 380:390] = 255
    for seed in range(50):
        window = draw_window(mask, 32, np.random.default_rng(seed))
        assert mask_view(mask, window, (32, 32)).any()


def test_an_object_larger_than_every_square_is_seen_in_the_whole_photo() -> None:
    mask = np.full((12, 8), 255, np.uint8)  # squares of 10 are mirrored at the sides and full unless they start at the top
    mask[0, 1:] = 0
    for seed in range(300):
        window = draw_window(mask, 10, np.random.default_rng(seed))
        assert not mask_view(mask, window, (window.side, window.side)).all()
    upright = np.full((400, 100), 255, np.uint8)
    upright[0] = 0
    windows = [draw_window(upright, 64, np.random.default_rng(seed)) for seed in range(20)]
    assert Window(-150, 0, 400) in windows


def test_draws_belong_to_seed_epoch_and_id() -> None:
    def first(item_id: str, seed: int, epoch: int) -> float:
        return float(pair_generator(item_id, seed=seed, epoch=epoch).random())

    assert first("a", 1, 2) == first("a", 1, 2)
    assert len({first("a", 1, 2), first("b", 1, 2), first("a", 2, 2), first("a", 1, 3), first("a", 2, 1)}) == 5
    with pytest.raises(UsageError, match="epoch is -1"):
        pair_generator("a", seed=0, epoch=-1)


def test_an_item_is_the_same_whatever_came_before() -> None:
    drawn = replace(PLAIN, flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2, hue=15, blank=0.3, mask=HAND_DRAWN)
    pairs = [made_pair(item_id=str(i)) for i in range(6)]
    forwards = {pair.id: augment_pair(pair, drawn, seed=3, epoch=1) for pair in pairs}
    backwards = {pair.id: augment_pair(pair, drawn, seed=3, epoch=1) for pair in reversed(pairs)}
    for key, one in forwards.items():
        for name in ("source", "target", "mask", "effect_mask"):
            np.testing.assert_array_equal(getattr(one, name), getattr(backwards[key], name))
    assert len({one.source.tobytes() for one in forwards.values()}) == 6  # same picture, six ids, six samples
    assert augment_pair(pairs[0], drawn, seed=3, epoch=2).source.tobytes() != forwards["0"].source.tobytes()


def test_flips_are_per_item() -> None:
    always, never = replace(PLAIN, flip=1.0), PLAIN
    for i in range(5):
        a = augment_pair(made_pair(item_id=str(i)), always, seed=0, epoch=0)
        b = augment_pair(made_pair(item_id=str(i)), never, seed=0, epoch=0)
        for name in ("source", "target", "mask", "effect_mask"):
            np.testing.assert_array_equal(getattr(a, name)[:, ::-1], getattr(b, name))
    half = [augment_pair(made_pair(item_id=str(i)), replace(PLAIN, flip=0.5), seed=0, epoch=0) for i in range(60)]
    unflipped = [augment_pair(made_pair(item_id=str(i)), never, seed=0, epoch=0) for i in range(60)]
    flipped = sum(not np.array_equal(a.source, b.source) for a, b in zip(half, unflipped, strict=True))
    assert 15 <= flipped <= 45


@settings(max_examples=30, deadline=None)
@given(epoch=st.integers(0, 10_000), size=st.sampled_from([48, 64, 96, 150]))
def test_pairs_equal_outside_the_effect_stay_equal_bit_for_bit(epoch: int, size: int) -> None:
    drawn = PairAugmentation(size=size, mask=HAND_DRAWN)
    out = augment_pair(made_pair(), drawn, seed=0, epoch=epoch)
    assert out.source.shape == out.target.shape == (size, size, 3)
    assert out.effect_mask is not None
    outside = out.effect_mask == 0
    np.testing.assert_array_equal(out.source[outside], out.target[outside])
    assert (out.source != out.target).any()
    assert set(np.unique(out.mask)) == {0, 255}
    assert set(np.unique(out.effect_mask)) <= {0, 255}


def test_enlarging_mixes_two_pixels_of_the_rim_at_most() -> None:
    pair = made_pair()
    window = Window(50, 25, 100)
    source, target = picture_view(pair.source, window, (250, 250)), picture_view(pair.target, window, (250, 250))
    assert pair.effect_mask is not None
    effect = cv2.dilate(pair.effect_mask, np.ones((5, 5), np.uint8)).astype(np.uint8)
    outside = mask_view(effect, window, (250, 250)) == 0
    assert outside.any()
    np.testing.assert_array_equal(source[outside], target[outside])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_colour_is_one_function_of_the_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, (31, 37, 3)).astype(np.uint8)
    target = rng.integers(0, 256, (31, 37, 3)).astype(np.uint8)
    equal = rng.random((31, 37)) < 0.6
    target[equal] = source[equal]
    a, b = change_colours(source, target, change=draw_colour(PairAugmentation(), rng))
    assert a.dtype == b.dtype == np.uint8
    np.testing.assert_array_equal(a[equal], b[equal])


def test_each_colour_change_does_what_it_says() -> None:
    flat = np.full((4, 4, 3), (100, 60, 20), np.uint8)
    other = np.full((4, 4, 3), 40, np.uint8)
    np.testing.assert_array_equal(change_colours(flat, other, change=ColourChange(brightness=1.2))[0], flat * 1.2)
    grey = change_colours(flat, other, change=ColourChange(saturation=0.0))[0][0, 0]
    assert len(set(grey.tolist())) == 1
    assert abs(int(grey[0]) - (0.299 * 100 + 0.587 * 60 + 0.114 * 20)) <= 1
    pivot = int(cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY)[0, 0])  # the source's, for the other picture too
    np.testing.assert_allclose(change_colours(flat, other, change=ColourChange(contrast=0.5))[1], (40 - pivot) * 0.5 + pivot, atol=0.51)
    red = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    third = change_colours(red, red, change=ColourChange(hue=64))[0][0, 0]  # a quarter of the circle: between yellow and green
    np.testing.assert_array_equal(third, [100, 200, 0])
    np.testing.assert_array_equal(change_colours(red, red, change=ColourChange(hue=-64))[0][0, 0], [100, 0, 200])
    assert change_colours(flat, other, change=ColourChange())[0] is flat


def test_colour_draws_fill_their_ranges() -> None:
    rng = np.random.default_rng(0)
    draws = np.array([draw_colour(PairAugmentation(), rng) for _ in range(3000)])
    for column in range(3):
        assert 0.8 <= draws[:, column].min() < 0.805
        assert 1.195 < draws[:, column].max() <= 1.2
    assert set(draws[:, 3].astype(int)) == set(range(-15, 16))


def test_blank_samples_have_nothing_to_remove() -> None:
    for epoch in range(5):
        out = augment_pair(made_pair(), PairAugmentation(size=64, blank=1.0), seed=0, epoch=epoch)
        np.testing.assert_array_equal(out.source, out.target)
        assert not out.mask.any()
        assert out.effect_mask is not None
        assert not out.effect_mask.any()
    drawn = [augment_pair(made_pair(), replace(PLAIN, blank=0.4), seed=0, epoch=epoch) for epoch in range(300)]
    assert 0.3 < np.mean([not out.mask.any() for out in drawn]) < 0.5
    assert all(out.mask.any() == (out.source != out.target).any() for out in drawn)


def shaded_pair(depth: float) -> tuple[TrainingPair, np.ndarray]:
    """A pair that differs by a shadow alone, with a soft edge, and where that lies outside the object mask."""
    pair = made_pair()
    shade = cv2.GaussianBlur((pair.effect_mask > 0).astype(np.float32), (0, 0), 3) if pair.effect_mask is not None else np.zeros(0)
    source = np.rint((pair.target + 1.0) * np.exp(-depth * shade[..., None]) - 1).clip(0, 255).astype(np.uint8)
    return replace(pair, source=source), (pair.effect_mask > 0) & (pair.mask == 0)  # type: ignore[operator]


def depth_of(source: np.ndarray, target: np.ndarray, place: np.ndarray) -> float:
    return float(np.abs(np.log((source + 1.0) / (target + 1.0))).mean(axis=2)[place].mean())


@pytest.mark.parametrize("depth", [0.08, 0.12, 0.3])
def test_a_shadow_gets_the_depth_that_is_asked_for_and_nothing_else_changes(depth: float) -> None:
    pair, place = shaded_pair(0.15)
    assert depth_of(pair.source, pair.target, place) == pytest.approx(0.13, abs=0.01)
    source = at_depth(pair.source, pair.target, place, depth)
    assert depth_of(source, pair.target, place) == pytest.approx(depth, rel=0.1)
    alike = cv2.dilate((pair.source != pair.target).any(axis=2).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    assert alike.mean() > 0.5
    np.testing.assert_array_equal(source[alike], pair.target[alike])


def test_what_is_no_shadow_is_not_made_one() -> None:
    pair, place = shaded_pair(0.0)
    np.testing.assert_array_equal(at_depth(pair.target, pair.target, place, 0.3), pair.target)
    np.testing.assert_array_equal(at_depth(pair.source, pair.target, np.zeros_like(place), 0.3), pair.source)
    faint, place = shaded_pair(0.03)
    grown = at_depth(faint.source, faint.target, place, 1.0)
    assert depth_of(grown, faint.target, place) < 7 * depth_of(faint.source, faint.target, place), "at most six times as deep"


def test_depths_are_drawn_for_each_item_and_epoch_and_leave_the_target() -> None:
    pair, _ = shaded_pair(0.15)
    rule = replace(PLAIN, size=150, shadow_depth=(0.05, 0.4))
    plain = [augment_pair(pair, replace(rule, shadow_depth=None), seed=3, epoch=epoch) for epoch in range(6)]
    drawn = [augment_pair(pair, rule, seed=3, epoch=epoch) for epoch in range(6)]
    for before, after in zip(plain, drawn, strict=True):
        np.testing.assert_array_equal(after.target, before.target)
        np.testing.assert_array_equal(after.mask, before.mask)
    shadows = [(item.effect_mask > 0) & (item.mask == 0) for item in drawn]  # type: ignore[operator]
    depths = [depth_of(item.source, item.target, shadow) for item, shadow in zip(drawn, shadows, strict=True)]
    assert all(0.04 < depth < 0.45 for depth in depths), depths
    assert max(depths) > 2 * min(depths), depths
    again = augment_pair(pair, rule, seed=3, epoch=2)
    np.testing.assert_array_equal(again.source, drawn[2].source)


def test_the_effect_mask_is_never_grown() -> None:
    grown = augment_pair(made_pair(), replace(PLAIN, mask=HAND_DRAWN), seed=0, epoch=0)
    plain = augment_pair(made_pair(), PLAIN, seed=0, epoch=0)
    assert grown.effect_mask is not None
    assert plain.effect_mask is not None
    np.testing.assert_array_equal(grown.effect_mask, plain.effect_mask)
    assert (grown.id, grown.score, grown.verdict) == ("x", 0.5, "accepted")


def test_masks_become_small_as_they_do_at_inference() -> None:
    pair = sample("barn")
    crop = make_crop(pair.source, pair.mask, CropRule(size=128, feather_px=0))
    window = Window(crop.x, crop.y, crop.side)
    np.testing.assert_array_equal(mask_view(pair.mask, window, (128, 128)), crop.mask)
    np.testing.assert_array_equal(picture_view(pair.source, window, (128, 128)), crop.pixels)
    dot = np.zeros((4000, 4000), np.uint8)
    dot[1999, 1999] = 255
    assert np.count_nonzero(mask_view(dot, Window(0, 0, 4000), (64, 64))) == 1


def test_real_samples_stay_whole() -> None:
    for path in sorted((SAMPLES / "target").iterdir())[:4]:
        out = augment_pair(sample(path.stem), PairAugmentation(size=128, mask=HAND_DRAWN), seed=0, epoch=0)
        assert out.source.shape == (128, 128, 3)
        assert out.mask.any()
        assert not out.mask.all()
        assert out.effect_mask is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 4}, "size of training pictures is 4"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"blank": -0.1}, "blank is -0.1"),
        ({"contrast": 1.0}, "contrast is 1.0"),
        ({"hue": 129}, "hue is 129"),
        ({"shadow_depth": (0.0, 0.3)}, "two numbers above 0"),
        ({"shadow_depth": (0.1,)}, "two numbers above 0"),
        ({"shadow_depth": (0.4, 0.3)}, "the smaller one first"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PairAugmentation(**values)


def test_empty_masks_are_refused() -> None:
    with pytest.raises(UsageError, match="mask is empty"):
        augment_pair(replace(made_pair(), mask=np.zeros((150, 200), np.uint8)), PLAIN, seed=0, epoch=0)
