"""Judged items: what the verdict says is what the pictures show, edits stay where they belong, and an item's draws are its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ItemError, UsageError
from core.masks import dilate
from training.edit_scene import FEATHER, REFERENCE_SIDE, changed_region, hole_error
from training.negatives import JudgedItem, NegativeSettings, judged_pair
from training.pair_augmentation import PairAugmentation, augment_pair
from training.triplets import TrainingPair

KINDS = tuple(NegativeSettings().shares)
FINISHES = ("clean", "jpeg", "softened", "grain", "tone")
GOOD = NegativeSettings(accepted=1)


def only(kind: str, **changes: Any) -> NegativeSettings:
    return NegativeSettings(accepted=0, **{**dict.fromkeys(KINDS, 0.0), kind: 1.0}, **changes)


def photo(height: int, width: int, seed: int = 0, contrast: float = 40) -> np.ndarray:
    """Smooth shapes with some grain."""
    rng = np.random.default_rng(seed)
    values = cv2.resize(rng.normal(0, 1, (6, 8, 3)), (width, height), interpolation=cv2.INTER_CUBIC) * contrast
    return np.clip(128 + values + rng.normal(0, contrast / 10, (height, width, 1)), 0, 255).astype(np.uint8)


def made_pair(height: int = 160, width: int = 200, item_id: str = "x", *, effect: bool = True, contrast: float = 40) -> TrainingPair:
    """A red object with a shadow to its right."""
    target = photo(height, width, contrast=contrast)
    mask, shadow = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (80, 75), (22, 30), 0, 0, 360, 255, -1)
    cv2.ellipse(shadow, (115, 100), (35, 12), 0, 0, 360, 255, -1)
    source = np.where(shadow[..., None] > 0, target * 0.45, target).astype(np.uint8)
    source[mask > 0] = (200, 20, 30)
    known = np.maximum(mask, shadow) if effect else None
    return TrainingPair(id=item_id, source=source, target=target, mask=mask, effect_mask=known, score=0.5)


def blue_pair() -> TrainingPair:
    """One with another object, in a photo of another size."""
    pair = made_pair(120, 300, "blue")
    source = pair.source.copy()
    source[pair.mask > 0] = (10, 30, 240)
    return replace(pair, source=source)


def judged(item: JudgedItem) -> tuple[str, str | None]:
    return item.kind, item.pair.verdict


def reach(pair: TrainingPair) -> np.ndarray:
    """Where an edit may be: (H, W) bool."""
    feather = FEATHER * min(pair.mask.shape) / REFERENCE_SIDE
    return dilate(changed_region(pair), int(np.ceil(feather))) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_of_every_kind_is_seen_and_stays_in_its_place(kind: str) -> None:
    pair = made_pair()
    found = [judged_pair(pair, blue_pair(), only(kind), seed=seed, epoch=0) for seed in range(6)]
    assert {item.kind for item in found} == {kind}
    verdicts = [item.pair.verdict for item in found]
    assert set(verdicts) <= {"rejected", None}
    assert verdicts.count("rejected") >= (2 if kind in {"classical", "blurred", "seam", "displaced"} else 6)
    for item in found:
        edited = item.pair.target
        assert edited.dtype == np.uint8
        assert np.array_equal(edited[~reach(pair)], pair.source[~reach(pair)])
        assert np.array_equal(item.pair.source, pair.source)
        assert item.pair.score is None
        assert item.pair.mask is pair.mask
        assert item.pair.effect_mask is pair.effect_mask
        if item.pair.verdict == "rejected":
            assert not np.array_equal(edited[pair.effect_mask > 0], pair.target[pair.effect_mask > 0])


def test_a_success_is_near_the_clean_plate_and_has_every_finish() -> None:
    pair = made_pair()
    found = [judged_pair(pair, None, GOOD, seed=seed, epoch=0) for seed in range(40)]
    assert {item.pair.verdict for item in found} == {"accepted"}
    assert {item.kind for item in found} == set(FINISHES)
    inside = pair.effect_mask > 0
    for item in found:
        assert hole_error(item.pair.target, pair.target, inside) < 0.1
        assert np.abs(item.pair.target[inside].astype(int) - pair.target[inside]).mean() < 8
        assert np.array_equal(item.pair.target[~reach(pair)], pair.source[~reach(pair)])
        assert np.array_equal(item.pair.target[inside], pair.target[inside]) == (item.kind == "clean")


def test_the_finish_says_nothing_of_the_verdict() -> None:
    """Of as many failures as successes the fill is bit for bit what it was made of."""
    pair, exact = made_pair(), Counter()
    inside = pair.mask > 0
    for seed in range(60):
        good = judged_pair(pair, None, GOOD, seed=seed, epoch=0).pair.target
        bad = judged_pair(pair, None, only("unchanged"), seed=seed, epoch=0).pair.target
        exact["good"] += np.array_equal(good[inside], pair.target[inside])
        exact["bad"] += np.array_equal(bad[inside], pair.source[inside])
    assert exact["good"] == exact["bad"]
    assert 12 <= exact["good"] <= 36


def test_an_item_is_a_function_of_its_id_seed_and_epoch() -> None:
    pair, other, chosen = made_pair(), blue_pair(), NegativeSettings()
    first = judged_pair(pair, other, chosen, seed=3, epoch=1)
    judged_pair(other, pair, chosen, seed=9, epoch=0)
    again = judged_pair(made_pair(), blue_pair(), chosen, seed=3, epoch=1)
    assert judged(first) == judged(again)
    assert np.array_equal(first.pair.target, again.pair.target)
    others = [
        judged_pair(pair, other, chosen, seed=4, epoch=1),
        judged_pair(pair, other, chosen, seed=3, epoch=2),
        judged_pair(replace(pair, id="y"), other, chosen, seed=3, epoch=1),
    ]
    assert all(not np.array_equal(first.pair.target, item.pair.target) for item in others)


def test_half_of_the_items_are_successes_and_all_kinds_occur() -> None:
    pair, other = made_pair(), blue_pair()
    found = Counter(judged(judged_pair(pair, other, NegativeSettings(), seed=seed, epoch=0)) for seed in range(250))
    assert {kind for kind, _ in found} == {*KINDS, *FINISHES}
    assert {verdict for _, verdict in found} == {"accepted", "rejected"}
    assert 95 <= sum(count for (_, verdict), count in found.items() if verdict == "accepted") <= 155


def test_what_nobody_could_see_is_not_judged() -> None:
    """On a plain background inpainting, a smear of it, one colour and displacement are as good as the truth."""
    plain = np.full((120, 160, 3), 130, np.uint8)
    source, mask = plain.copy(), np.zeros((120, 160), np.uint8)
    cv2.circle(mask, (80, 60), 25, 255, -1)
    source[mask > 0] = (220, 30, 30)
    pair = TrainingPair(id="sky", source=source, target=plain, mask=mask)
    for kind in ("classical", "displaced"):
        for seed in range(4):
            assert judged(judged_pair(pair, None, only(kind, finish=0), seed=seed, epoch=0)) == (kind, None)
    for kind in ("blurred", "flat"):
        verdicts = set()
        for seed in range(12):
            item = judged_pair(pair, None, only(kind, finish=0), seed=seed, epoch=0)
            error = hole_error(item.pair.target, plain, mask)
            assert (item.pair.verdict == "rejected") == (error > 0.3), (kind, seed, error)
            verdicts.add(item.pair.verdict)
        assert verdicts == {None, "rejected"}
    empty = replace(pair, source=plain)
    assert judged(judged_pair(empty, None, only("unchanged"), seed=0, epoch=0)) == ("unchanged", None)
    assert judged_pair(empty, None, NegativeSettings(accepted=0), seed=0, epoch=0).pair.verdict == "rejected"


def test_a_blur_of_texture_is_a_failure_though_its_tones_are_right() -> None:
    rng = np.random.default_rng(0)
    grain = np.clip(128 + rng.normal(0, 30, (160, 200, 1)), 0, 255).astype(np.uint8).repeat(3, axis=2)
    whole = made_pair()
    pair = replace(whole, target=grain, source=np.where(whole.mask[..., None] > 0, whole.source, grain), effect_mask=whole.mask)
    smears = [judged_pair(pair, None, only("blurred", finish=0), seed=seed, epoch=0).pair for seed in range(8)]
    right = [smear for smear in smears if hole_error(smear.target, grain, pair.effect_mask) < 0.35]
    assert right
    assert {smear.verdict for smear in smears} == {"rejected"}


def test_a_shadow_is_left_and_its_object_is_not() -> None:
    pair = made_pair()
    item = judged_pair(pair, None, only("shadow", finish=0), seed=0, epoch=0)
    assert judged(item) == ("shadow", "rejected")
    assert np.array_equal(item.pair.target[pair.mask > 0], pair.target[pair.mask > 0])
    left = (pair.effect_mask > 0) & (dilate(pair.mask, 4) == 0)
    assert np.array_equal(item.pair.target[left], pair.source[left])
    without = replace(pair, effect_mask=pair.mask)
    assert judged_pair(without, None, only("shadow"), seed=0, epoch=0).pair.verdict is None


def test_another_items_object_is_put_in_or_a_copy_of_its_own() -> None:
    pair = made_pair()

    def colours(other: TrainingPair | None) -> Counter[str]:
        found: Counter[str] = Counter()
        for seed in range(4):
            edited = judged_pair(pair, other, only("inserted", finish=0), seed=seed, epoch=0).pair.target.astype(int)
            found["blue"] += int((np.abs(edited - (10, 30, 240)).max(axis=2) < 4)[pair.mask > 0].sum() > 30)
            found["red"] += int((np.abs(edited - (200, 20, 30)).max(axis=2) < 4)[pair.mask > 0].sum() > 30)
        return found

    assert colours(blue_pair()) == {"blue": 4, "red": 0}
    nothing = replace(blue_pair(), mask=np.zeros((120, 300), np.uint8), effect_mask=None)
    for other in (None, pair, nothing):
        assert colours(other) == {"blue": 0, "red": 4}


def test_effects_are_found_where_nobody_has_marked_them() -> None:
    pair = made_pair(effect=False)
    known = made_pair().effect_mask > 0
    found = changed_region(pair) > 0
    assert found[known].mean() > 0.9
    assert found[~(dilate(made_pair().effect_mask, 4) > 0)].mean() < 0.01
    brighter = replace(pair, target=np.clip(pair.target.astype(int) + 40, 0, 255).astype(np.uint8))
    assert np.array_equal(changed_region(brighter), pair.mask)
    item = judged_pair(pair, None, replace(GOOD, finish=0), seed=0, epoch=0)
    assert np.array_equal(item.pair.target[found], pair.target[found])


def test_a_clean_plate_of_another_exposure_is_pasted_without_a_step() -> None:
    pair = made_pair(effect=False)
    truth = replace(pair, source=np.where(pair.mask[..., None] > 0, pair.source, pair.target), target=pair.target)
    darker = replace(truth, target=np.clip(truth.target.astype(int) - 30, 0, 255).astype(np.uint8))
    edited = judged_pair(darker, None, replace(GOOD, finish=0), seed=0, epoch=0).pair.target
    assert hole_error(darker.target, truth.target, pair.mask) > 0.35
    assert hole_error(edited, truth.target, pair.mask) < 0.1


def test_an_erasers_own_result_passes_through() -> None:
    for verdict in ("accepted", "rejected"):
        pair = replace(made_pair(), verdict=verdict)
        item = judged_pair(pair, None, NegativeSettings(), seed=0, epoch=0)
        assert item.pair is pair
        assert item.kind == "eraser"
    uncertain = replace(made_pair(), verdict="uncertain")
    assert judged_pair(uncertain, None, GOOD, seed=0, epoch=0).pair.verdict == "accepted"


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    box=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_any_size_and_mask(size: tuple[int, int], box: tuple[float, ...], kind: str, seed: int) -> None:
    height, width = size
    mask = np.zeros(size, np.uint8)
    top, left = int(box[0] * (height - 1)), int(box[1] * (width - 1))
    mask[top : top + 1 + int(box[2] * height), left : left + 1 + int(box[3] * width)] = 255
    pair = TrainingPair(id="any", source=photo(height, width, 1), target=photo(height, width, 2), mask=mask, effect_mask=mask)
    for chosen in (only(kind), GOOD):
        item = judged_pair(pair, blue_pair(), chosen, seed=seed, epoch=0)
        assert item.pair.target.shape == (height, width, 3)
        assert np.array_equal(item.pair.target[~reach(pair)], pair.source[~reach(pair)])


def test_judged_items_are_augmented_like_all_others() -> None:
    item = judged_pair(made_pair(), None, only("unchanged", finish=0), seed=0, epoch=0)
    seen = augment_pair(item.pair, PairAugmentation(size=64), seed=0, epoch=0)
    assert seen.label == 0.0
    assert np.array_equal(seen.source, seen.target)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="accepted is 2; a probability is 0 to 1"):
        NegativeSettings(accepted=2)
    with pytest.raises(UsageError, match=r"seam is -1\.0; allowed are 0"):
        NegativeSettings(seam=-1)
    with pytest.raises(UsageError, match="all failures are 0"):
        NegativeSettings(**dict.fromkeys(KINDS, 0.0))
    assert NegativeSettings(accepted=1, **dict.fromkeys(KINDS, 0.0)).accepted == 1
    with pytest.raises(UsageError, match="epochs count from 0"):
        judged_pair(made_pair(), None, GOOD, seed=0, epoch=-1)
    empty = replace(made_pair(), mask=np.zeros((160, 200), np.uint8))
    with pytest.raises(ItemError, match="its mask is empty"):
        judged_pair(empty, None, GOOD, seed=0, epoch=0)
