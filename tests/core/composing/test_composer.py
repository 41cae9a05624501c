"""Composed triplets: what the two pictures share, what the masks cover, and that an item is a function of its id alone."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.composing.collection import Collection
from core.composing.composer import Composer, ComposeSettings, Composition
from core.composing.light import luminance, to_linear
from core.errors import ItemError, UsageError
from tests.core.composing.collections import NOTES, open_collection, photo, write_collection

PHOTOS = ("ground", "top", "sky", "unknown")
IDS = [f"compose-0-{number}" for number in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("collection"))


def make(folder: Path, **values: float) -> Composer:
    return Composer(open_collection(folder), ComposeSettings(**{"size": 128, "negatives": 0.0, **values}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Composition]:
    composer = make(folder)
    return {name: composer.compose(name) for name in IDS}


def same(one: Composition, other: Composition) -> bool:
    pictures = ("source", "target", "mask", "effect_mask")
    return one.recipe == other.recipe and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in pictures)


def test_an_item_does_not_depend_on_what_was_made_before(folder: Path, made: dict[str, Composition]) -> None:
    backwards = make(folder)
    for name in reversed(IDS):
        assert same(backwards.compose(name), made[name]), name
    assert same(make(folder).compose(IDS[7]), made[IDS[7]])
    assert not same(make(folder, seed=1).compose(IDS[7]), made[IDS[7]])


def test_every_kind_of_scene_is_made(made: dict[str, Composition]) -> None:
    assert {item.recipe["kind"] for item in made.values()} == {"ground", "top", "sky", "scene"}
    assert {item.category for item in made.values()} == {"red bin", "ball", "bird"}
    assert any(item.recipe["others"] for item in made.values())
    assert {item.recipe["flipped"] for item in made.values()} == {True, False}


def test_pictures_are_equal_outside_the_effect_mask_and_differ_inside(made: dict[str, Composition]) -> None:
    for name, item in made.items():
        assert set(np.unique(item.mask)) == set(np.unique(item.effect_mask)) == {0, 255}, name
        assert not (item.mask[item.effect_mask == 0]).any(), "the effect mask holds the object mask"
        outside = item.effect_mask == 0
        assert np.array_equal(item.source[outside], item.target[outside]), name
        differs = (item.source != item.target).any(axis=2)
        assert differs[item.effect_mask > 0].mean() > 0.8, name


def test_the_ring_of_the_effect_is_a_shadow(made: dict[str, Composition]) -> None:
    for name, item in made.items():
        if item.recipe["kind"] == "sky":
            continue
        ring = (item.effect_mask > 0) & (item.mask == 0)
        assert ring.sum() > 20, name
        before, after = luminance(to_linear(item.source)), luminance(to_linear(item.target))
        assert before[ring].mean() < after[ring].mean(), name


def test_objects_in_the_sky_have_no_shadow(made: dict[str, Composition]) -> None:
    flying = [item for item in made.values() if item.recipe["kind"] == "sky"]
    assert flying
    for item in flying:
        assert not item.effect_mask[cv2.dilate(item.mask, np.ones((11, 11), np.uint8)) == 0].any()


def test_others_stay_in_both_pictures_and_out_of_the_mask(folder: Path, made: dict[str, Composition]) -> None:
    alone = make(folder, max_objects=1)
    found = 0
    for name, item in made.items():
        if not item.recipe["others"]:
            continue
        bare = alone.compose(name)
        if bare.recipe["window"] != item.recipe["window"]:
            continue
        found += 1
        for other in item.recipe["others"]:
            x0, y0, x1, y1 = other["box"]
            part = slice(max(y0, 0), max(y1, 0)), slice(max(x0, 0), max(x1, 0))
            assert (item.target[part] != bare.target[part]).any(axis=2).mean() > 0.2, "the other is in the clean plate"
        assert int((item.mask > 0).sum()) <= int((bare.mask > 0).sum()) + 8, "what hides the target is not part of its mask"
    assert found >= 3


def test_negatives_have_a_mask_on_an_unchanged_place(folder: Path) -> None:
    composer = make(folder, negatives=1.0)
    for name in IDS[:8]:
        item = composer.compose(name)
        assert item.recipe["negative"]
        assert np.array_equal(item.source, item.target)
        assert item.mask.any()
        assert np.array_equal(item.mask, item.effect_mask)


def test_the_share_of_negatives(folder: Path) -> None:
    composer = make(folder, negatives=0.3, size=64)
    share = np.mean([composer.compose(f"n-{number}").recipe["negative"] for number in range(150)])
    assert 0.18 < share < 0.42


def test_recipes_are_json_and_name_what_was_used(made: dict[str, Composition]) -> None:
    for item in made.values():
        recipe = json.loads(json.dumps(item.recipe))
        assert recipe["background"].removesuffix(".png") in {"ground", "top", "sky", "unknown"}
        assert recipe["target"]["cutout"].endswith(".png")
        if recipe["kind"] == "ground":
            assert recipe["background_licence"] == "CC0"


def test_one_light_for_a_photo(made: dict[str, Composition]) -> None:
    lights: dict[str, set[str]] = {}
    for item in made.values():
        light = dict(item.recipe["light"], azimuth_deg=0)
        lights.setdefault(item.recipe["background"], set()).add(json.dumps(light, sort_keys=True))
    assert all(len(found) == 1 for found in lights.values())


def test_without_annotations_all_photos_with_ground_are_used_and_feet_stand_on_it(folder: Path) -> None:
    collection = open_collection(folder, "none")
    grounds = {name: collection.support(number) for number, name in enumerate(collection.photos.names)}
    composer = Composer(collection, ComposeSettings(size=96, negatives=0.0))
    items = [composer.compose(name) for name in IDS]
    assert {item.recipe["kind"] for item in items} == {"scene"}
    assert {item.recipe["background"] for item in items} == {name for name, ground in grounds.items() if ground is not None}
    assert any("photo_without_ground" in item.warnings for item in items)
    for item in items:
        ground = grounds[item.recipe["background"]]
        assert ground is not None
        for how in (item.recipe["target"], *item.recipe["others"]):
            if how["altitude_px"] == 0:
                x0, _, x1, foot = how["box"]
                left, top, side = item.recipe["window"]
                across, down = (left + (x0 + x1) / 2 * side / 96) / 240, (top + (foot - 4) * side / 96) / 180
                assert ground.holds(1 - across if item.recipe["flipped"] else across, down, 0)


def test_where_nothing_has_ground_annotations_are_asked_for(folder: Path) -> None:
    collection = open_collection(folder, "none")
    nowhere = Collection(collection.photos, collection.cutouts, collection.annotations, find_support=lambda _: None)
    with pytest.raises(ItemError, match="photo_without_ground") as caught:
        Composer(nowhere, ComposeSettings(size=96)).compose(IDS[0])
    assert caught.value.code == "nothing_fits"


def test_a_smooth_floor_mirrors_and_a_given_light_turns_with_the_photo(folder: Path, tmp_path: Path) -> None:
    notes = {"bgs": [{**NOTES["bgs"][0], "file": f"{name}.png", "smooth": True, "azimuth": 60} for name in PHOTOS], "objs": NOTES["objs"]}
    (tmp_path / "notes.json").write_text(json.dumps(notes))
    collection = open_collection(folder, str(tmp_path / "notes.json"))
    mirroring = Composer(collection, ComposeSettings(size=128, negatives=0.0, reflections=1.0, max_objects=1))
    dull = Composer(collection, ComposeSettings(size=128, negatives=0.0, reflections=0.0, max_objects=1))
    larger = 0
    for name in IDS[:12]:
        item, plain = mirroring.compose(name), dull.compose(name)
        assert item.recipe["reflection"] > 0
        assert plain.recipe["reflection"] == 0
        assert np.array_equal(item.mask, plain.mask)
        assert item.recipe["light"]["azimuth_deg"] == pytest.approx(-60 if item.recipe["flipped"] else 60, abs=0.01)
        if not item.recipe["target"]["altitude_px"]:
            foot = min(127, item.recipe["target"]["box"][3])
            larger += int((item.effect_mask[foot:] > 0).sum()) > int((plain.effect_mask[foot:] > 0).sum())
    assert larger >= 6, "the mirror image is below the foot"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(64, 200), count=st.integers(1, 4), number=st.integers(0, 10**6))
def test_any_size(folder: Path, size: int, count: int, number: int) -> None:
    item = make(folder, size=size, max_objects=count).compose(f"any-{number}")
    assert item.source.shape == item.target.shape == (size, size, 3)
    assert item.mask.shape == item.effect_mask.shape == (size, size)
    assert len(item.recipe["others"]) < count
    assert (item.mask > 0).mean() >= 0.002
    assert np.array_equal(item.source[item.effect_mask == 0], item.target[item.effect_mask == 0])


def test_what_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "mixed")
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    Image.fromarray(photo(9, 40, 30)).save(folder / "photos" / "small.png")
    Image.fromarray(np.zeros((60, 60, 4), np.uint8)).save(folder / "cutouts" / "empty.png")
    Image.fromarray(photo(9, 60, 60)).save(folder / "cutouts" / "opaque.png")
    composer = Composer(open_collection(folder, "none"), ComposeSettings(size=128))
    items = [composer.compose(f"w-{number}") for number in range(40)]
    warnings = {warning for item in items for warning in item.warnings}
    assert {"photo_too_small", "cutout_empty", "cutout_no_alpha"} <= warnings
    assert any(warning.startswith("photo_") and warning != "photo_too_small" for warning in warnings)
    assert {item.recipe["background"] for item in items}.isdisjoint({"broken.jpg", "small.png"})


def test_a_collection_in_which_nothing_fits_fails_the_item(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "tiny")
    for path in (folder / "photos").iterdir():
        Image.fromarray(photo(1, 40, 30)).save(path)
    with pytest.raises(ItemError, match="photo_too_small") as caught:
        make(folder).compose("x")
    assert caught.value.code == "nothing_fits"


@pytest.mark.parametrize("wrong", [{"size": 10}, {"negatives": 1.5}, {"max_objects": 0}, {"reflections": -0.1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be from"):
        ComposeSettings(**wrong)  # type: ignore[arg-type]
