"""Light, cut-outs, scenes, annotations and recipes, each by itself."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.composing.annotations import ObjectNote, PhotoNote, category_of, parse_annotations
from core.composing.collection import list_pictures, read_annotations
from core.composing.cutout import Sprite, decode_cutout, ground_line, make_sprite
from core.composing.encoding import encode_picture
from core.composing.light import blur, luminance, to_linear, to_srgb
from core.composing.matching import match_to, sharpness
from core.composing.recipe import read_recipe, with_recipe
from core.composing.scene import Scene
from core.errors import ItemError, UsageError
from core.masks import encode_mask
from tests.core.composing.collections import NOTES, cutout, open_collection, photo, write_collection


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_byte_survives_linear_light() -> None:
    levels = np.arange(256, dtype=np.uint8)[None].repeat(3, 0)
    assert np.array_equal(to_srgb(to_linear(levels)), levels)
    assert to_linear(np.array([[188]], np.uint8))[0, 0] == pytest.approx(((188 / 255 + 0.055) / 1.055) ** 2.4)
    assert to_srgb(np.array([[-1.0, 2.0]], np.float32)).tolist() == [[0, 255]]


@pytest.mark.parametrize("sigma", [0.0, 0.7, 3.0, 9.0])
def test_blurring_keeps_the_sum(sigma: float) -> None:
    plane = np.zeros((128, 128), np.float32)
    plane[60:70, 55:75] = 1
    assert blur(plane, sigma).sum() == pytest.approx(200, rel=0.02)


def test_a_cut_out_is_cut_to_its_alpha_and_loses_its_fringe() -> None:
    pixels = np.zeros((80, 90, 4), np.uint8)
    pixels[..., :3] = (0, 0, 255)  # what it was cut from
    pixels[20:60, 30:70] = (200, 40, 40, 255)
    pixels[20:60, 28:30] = (100, 20, 150, 128)
    found = decode_cutout(png(pixels))
    assert found.alpha.shape == (40, 42)
    assert np.abs(found.pixels[5:-5, :3].astype(int) - [200, 40, 40]).max() <= 2
    light, alpha = make_sprite(found, 20.0)
    seen = alpha > 0.05
    assert (light[seen] / alpha[seen][:, None])[:, 2].max() < 0.05, "no blue halo"


@pytest.mark.parametrize(
    ("pixels", "code"),
    [
        (np.full((40, 40, 3), 9, np.uint8), "cutout_no_alpha"),
        (np.full((40, 40, 4), 255, np.uint8), "cutout_no_alpha"),
        (np.zeros((40, 40, 4), np.uint8), "cutout_empty"),
        (np.pad(np.full((6, 20, 4), 255, np.uint8), ((9, 9), (9, 9), (0, 0))), "cutout_empty"),
    ],
)
def test_what_is_no_cut_out_is_refused(pixels: np.ndarray, code: str) -> None:
    with pytest.raises(ItemError) as caught:
        decode_cutout(png(pixels))
    assert caught.value.code == code


@given(height=st.floats(8, 300), turned=st.sampled_from([0.0, 33.0, 90.0]), mirrored=st.booleans())
def test_sprites_are_premultiplied_and_keep_their_area(height: float, turned: float, mirrored: bool) -> None:
    found = decode_cutout(png(cutout(1)))
    light, alpha = make_sprite(found, height, mirrored=mirrored, turned_deg=turned)
    assert light.shape == (*alpha.shape, 3)
    assert light.dtype == alpha.dtype == np.float32
    assert float((light - alpha[..., None]).max()) < 1e-4
    assert not alpha[0].any()
    assert not alpha[:, 0].any()
    wide = max(2, round(height * found.aspect))
    expected = float((found.alpha / 255).mean()) * round(height) * wide
    assert float(alpha.sum()) == pytest.approx(expected, rel=0.06, abs=6)


def test_the_ground_line_runs_below_fore_and_hind_feet() -> None:
    alpha = np.zeros((60, 100), np.float32)
    alpha[5:40, 10:90] = 1
    alpha[40:50, 12:20] = 1
    alpha[40:56, 80:88] = 1
    a, b = ground_line(alpha)
    assert b == pytest.approx(6 / 68, abs=0.03)
    assert a + b * 16 == pytest.approx(49, abs=2)
    assert a + b * 84 == pytest.approx(55, abs=2)


def test_the_scale_is_that_of_a_pinhole_camera() -> None:
    note = PhotoNote(kind="ground", horizon=0.4, rect=(0, 1, 0.5, 1), camera_m=1.6)
    scene = Scene(note, 800, 600)
    assert scene.object_height(ObjectNote(height_m=1.8), 0.9 * 600) == pytest.approx(1.8 * (0.9 - 0.4) * 600 / 1.6)
    assert scene.object_height(ObjectNote(height_m=1.8), 0.3 * 600) == 0
    assert scene.mirrored().mirrored() == scene
    unknown = Scene(PhotoNote(), 800, 600)
    sizes = [unknown.object_height(ObjectNote(), row * 600) for row in (0.7, 0.8, 0.95)]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0


def test_matching_takes_over_a_share_of_colour_and_blur() -> None:
    found = decode_cutout(png(cutout(2)))
    light, alpha = make_sprite(found, 100.0)
    sprite = Sprite(light, alpha, 40, 60, (160.0, 0.0))
    sharp = to_linear(photo(3, 256, 256))
    dark = (sharp * 0.05).astype(np.float32)
    soft = blur(sharp, 3.0)
    same, _ = match_to(sprite, sharp, binary=False, white=0.6)
    night, how = match_to(sprite, dark, binary=False, white=0.03)
    smooth, blurred = match_to(sprite, soft, binary=False, white=0.6)
    assert luminance(night.light).sum() < 0.6 * luminance(same.light).sum()
    assert max(how.gain) < 0.6
    assert blurred.blur_px >= 1.0
    assert sharpness(np.sqrt(luminance(smooth.light))) < sharpness(np.sqrt(luminance(same.light)))
    for item in (same, night, smooth):
        assert float((item.light - item.alpha[..., None]).max()) < 1e-4


def test_a_recipe_travels_in_the_mask() -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8] = 255
    plain = encode_mask(mask)
    recipe = {"background": "grüß.jpg", "box": [1, 2, 3, 4], "negative": False}
    carried = with_recipe(plain, recipe)
    assert read_recipe(carried) == recipe
    assert read_recipe(plain) is None
    image = Image.open(io.BytesIO(carried))
    image.load()
    assert np.array_equal(np.asarray(image), mask)
    assert json.loads(image.text["recipe"]) == recipe  # type: ignore[attr-defined]


def test_jpeg_keeps_full_colour_resolution() -> None:
    pixels = photo(1, 64, 64)
    image = Image.open(io.BytesIO(encode_picture(pixels, "jpeg")))
    assert image.format == "JPEG"
    assert {(layer[1], layer[2]) for layer in image.layer} == {(1, 1)}  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_picture(pixels, "png")))), pixels)


@pytest.mark.parametrize(
    ("name", "category"),
    [("a/000_Brown_slug.png", "brown slug"), ("033_rhinoceros@erase.png", "rhinoceros"), ("cow1.png", "cow"), ("42.png", "42")],
)
def test_categories_from_names(name: str, category: str) -> None:
    assert category_of(name) == category


def test_annotations_are_found_by_file_name(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "c")
    found = open_collection(folder)
    assert [found.photo_note(number).kind for number in range(4)] == ["ground", "sky", "top", "scene"]
    assert found.object_note(2).category == "bird"
    assert found.object_note(0).height_m == 0.7
    drawn = [found.draw_photo(chance) for chance in np.linspace(0, 0.999, 400)]
    assert drawn.count(3) < 40 < drawn.count(0)


def test_listings_change_with_what_they_hold(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "c") / "photos"
    before = list_pictures(str(folder), "photos")
    assert before.names == ("ground.png", "sky.png", "top.png", "unknown.png")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.txt").write_bytes(b"x")
    assert list_pictures(str(folder), "photos") == before
    (folder / "more.png").write_bytes(b"x")
    assert list_pictures(str(folder), "photos").fingerprint != before.fingerprint
    with pytest.raises(UsageError, match="holds no photos"):
        list_pictures(str(tmp_path / "nothing"), "photos")


def _changed(**values: Any) -> bytes:
    return json.dumps({"bgs": [{**NOTES["bgs"][0], **values}], "objs": NOTES["objs"]}).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[1]", "is no annotation file"),
        (b"{", "is no annotation file"),
        (b'{"bgs": [{"kind": "top"}]}', "without a file"),
        (_changed(kind="floor"), "must be one of ground"),
        (_changed(light="moon"), "must be one of sun"),
        (_changed(rect=[0, 1, 2]), r"it is \[x0, x1, y0, y1\]"),
        (_changed(rect=[0.5, 0.5, 0.1, 1]), "x0 must be below x1"),
        (_changed(hz=0.8), "not above its ground"),
        (_changed(cam=0), "must be a number from 0.05"),
        (_changed(hz="low"), "must be a number"),
        (b'{"bgs": [{"file": "a.jpg", "kind": "ground"}]}', "lacks hz, rect or cam"),
        (b'{"objs": [{"file": "a.png", "pose": "x"}]}', "it is made of g"),
        (b'{"objs": [{"file": "a.png", "h": -1}]}', "must be a number from 0.001"),
    ],
)
def test_wrong_annotations_are_named(data: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_annotations(data, "notes.json")


def test_a_missing_annotation_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no annotation file"):
        read_annotations(str(tmp_path / "none.json"))
