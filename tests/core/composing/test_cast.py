"""Lifted objects as cut-outs: what they cast comes along, at their scale and on their side, and their own photo is given back."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from core.composing.cast import encode_lifted, place_cast, read_lifted
from core.composing.composer import Composer, ComposeSettings
from core.composing.cutout import decode_cutout, make_sprite
from core.composing.light import to_linear, to_srgb
from core.errors import UsageError
from core.images import decode_photo, encode_image
from core.masks import encode_mask
from tests.core.composing.collections import open_collection, photo, write_collection

SIZE = (140, 200)
HOW = {"id": "a/é", "category": "kettle", "origin": "pairs"}


def parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours, alpha and mask of a box with a shadow to its lower right and an orange glow on its left."""
    mask, shade, glow = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    mask[30:100, 70:110] = 255
    shade[85:110, 110:160], glow[70:100, 50:70] = 0.6, 0.3
    shade, glow = cv2.GaussianBlur(shade, (0, 0), 2), cv2.GaussianBlur(glow, (0, 0), 2)
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[glow > shade] = (255, 160, 60)
    colours[mask > 0] = (40, 90, 200)
    return colours, np.where(mask > 0, 255, np.round(255 * np.maximum(shade, glow))).astype(np.uint8), mask


def lifted() -> bytes:
    return encode_lifted(*parts(), HOW)


def test_the_object_and_its_effects_are_told_apart() -> None:
    data = lifted()
    assert read_lifted(data) == HOW
    cutout = decode_cutout(data)
    assert (cutout.pixels.shape, dict(cutout.how)) == ((70, 40, 3), HOW)
    assert (cutout.alpha == 255).all(), "the shadow is no part of the object"
    cast = cutout.cast
    assert cast is not None
    assert cast.x < 0 < cast.y
    assert cast.x + cast.alpha.shape[1] > 85, "as far as the shadow goes"
    # a shadow as dark as can be is not taken for the object
    colours, alpha, mask = parts()
    again = decode_cutout(encode_lifted(colours, np.where(alpha > 100, 255, alpha).astype(np.uint8), mask, HOW))
    assert again.pixels.shape == (70, 40, 3)


def test_other_pictures_and_objects_without_effects_are_plain_cutouts() -> None:
    colours, alpha, mask = parts()
    for data in (encode_image(colours, alpha), encode_mask(mask), b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"):
        assert read_lifted(data) is None
    plain = decode_cutout(encode_image(colours, alpha))
    assert plain.cast is None
    assert plain.pixels.shape[1] > 60, "alpha above one half is the object"
    assert decode_cutout(encode_lifted(colours, mask, mask, HOW)).cast is None
    with pytest.raises(UsageError, match="of one size"):
        encode_lifted(colours, alpha, mask[:50], HOW)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5, 1.5])
def test_effects_lie_where_the_object_puts_them(mirrored: bool, scale: float) -> None:
    """The cast beside a resized object is the whole picture resized, turned over or not."""
    cutout = decode_cutout(lifted())
    assert cutout.cast is not None
    _, alpha = make_sprite(cutout, 70 * scale, mirrored=mirrored)
    width, height = alpha.shape[1] - 6, alpha.shape[0] - 6
    corner = (round(80 * scale), round(30 * scale))
    light, shade = place_cast(cutout.cast, corner, (width, height), 320, mirrored=mirrored, gain=(1.0, 1.0, 1.0))
    colours, opacity, mask = parts()
    effect = np.where(mask > 0, 0, opacity).astype(np.float32) / 255
    layers = np.dstack([to_linear(colours) * effect[..., None], effect])
    whole = cv2.resize(
        layers, (round(SIZE[1] * scale), round(SIZE[0] * scale)), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    if mirrored:
        whole = whole[:, ::-1]
    left = round(70 * scale) if not mirrored else whole.shape[1] - round(110 * scale)
    top = round(30 * scale)
    canvas = np.zeros((900, 900, 4), np.float32)
    canvas[300 + corner[1] - top :, 300 + corner[0] - left :][: whole.shape[0], : whole.shape[1]] = whole
    expected = canvas[300:620, 300:620]
    assert np.abs(shade - expected[..., 3]).max() < 0.12
    assert np.abs(shade - expected[..., 3]).mean() < 0.002
    assert np.abs(light - expected[..., :3]).mean() < 0.002
    assert (light <= shade[..., None] + 1e-6).all()


def test_composed_pictures_take_the_shadow_along_and_add_none(tmp_path: Path) -> None:
    folder = write_collection(tmp_path)
    for path in (folder / "cutouts").iterdir():
        path.unlink()
    (folder / "cutouts" / "x.png").write_bytes(lifted())
    composer = Composer(open_collection(folder, "none"), ComposeSettings(size=160, negatives=0.0, max_objects=1))
    looked_at = 0
    for number in range(6):
        made = composer.compose(f"lifted-{number}")
        assert made.category == "kettle"
        how = made.recipe["target"]
        assert how["lifted"] == HOW
        x0, y0, x1, y1 = how["box"]
        scale = (y1 - y0 - 6) / 70
        light = [to_linear(pixels).mean(axis=2) for pixels in (made.source, made.target)]
        # the shadow is right of the object and the glow left of it, or the other way round
        row = round(y0 + 3 + 65 * scale)
        columns = [round(x1 - 3 + 25 * scale), round(x0 + 3 - 10 * scale)]
        if how["mirrored"]:
            columns = [round(x0 + 3 - 25 * scale), round(x1 - 3 + 10 * scale)]
        for column, darker in zip(columns, (True, False), strict=True):
            if 2 <= column < 158 and row < 158:
                change = light[0][row - 1 : row + 2, column - 1 : column + 2] / light[1][row - 1 : row + 2, column - 1 : column + 2]
                assert (change < 0.75).all() if darker else (change > 1.02).all(), (number, change)
                looked_at += 1
        above = made.effect_mask[: max(0, y0 - 4)]
        assert not above.any(), "no computed shadow: it would fall behind the object"
    assert looked_at >= 6


def test_on_its_own_background_the_file_gives_the_photo_back(tmp_path: Path) -> None:
    colours, alpha, mask = parts()
    plate = cv2.resize(photo(3), SIZE[::-1])
    share = alpha[..., None].astype(np.float32) / 255
    source = to_srgb(to_linear(plate) * (1 - share) + to_linear(colours) * share)
    path = tmp_path / "lifted.png"
    path.write_bytes(encode_lifted(colours, alpha, mask, HOW))
    assert Image.open(path).size == SIZE[::-1]
    read = decode_photo(path.read_bytes())
    assert read.alpha is not None
    share = read.alpha[..., None].astype(np.float32) / 255
    again = to_srgb(to_linear(plate) * (1 - share) + to_linear(read.pixels) * share)
    assert np.abs(again.astype(int) - source).max() <= 2
