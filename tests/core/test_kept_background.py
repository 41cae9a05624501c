"""What is not erased comes out as it came in, sample for sample, whatever kind of file it was: from the bytes in to the bytes out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.crops import Crop, CropRule, Fill, make_crop, paste_mask
from core.eraser import Eraser
from core.images import decode_photo, encode_edited, encode_image
from core.masks import encode_mask
from core.workload import RawItem, Workload, WorkSettings

WIDTH, HEIGHT = 90, 60


class Inverter(Eraser):
    """Changes every pixel of its crop, and lets a spot of its own into the photo."""

    name, fingerprint = "inverter", "1"
    rule = CropRule(size=48, context=1.5, feather_px=3)

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[Fill]:  # noqa: ARG002
        spot = np.zeros((48, 48), np.float32)
        spot[10:14, 20:30] = 1
        return [Fill(255 - crop.pixels, spot) for crop in crops]


def written(stored: np.ndarray, kind: str = ".png") -> bytes:
    done, data = cv2.imencode(kind, stored)
    assert done
    return data.tobytes()


def source(kind: str) -> bytes:
    rng = np.random.default_rng(5)
    deep = rng.integers(0, 65536, (HEIGHT, WIDTH, 4), dtype=np.uint16)
    shallow = (deep >> 8).astype(np.uint8)
    if kind.startswith("jpeg"):
        image, buffer = Image.fromarray(shallow[..., :3]), io.BytesIO()
        if kind == "jpeg":
            image.save(buffer, "JPEG", quality=95)
        else:
            exif = Image.Exif()
            exif[0x0112] = int(kind.removeprefix("jpeg"))
            image.save(buffer, "JPEG", quality=95, exif=exif)
        return buffer.getvalue()
    return {
        "png": lambda: written(shallow[..., :3]),
        "png_alpha": lambda: written(shallow),
        "png16": lambda: written(deep[..., :3]),
        "png16_alpha": lambda: written(deep),
        "png16_grey": lambda: written(deep[..., 0]),
        "tiff16": lambda: written(deep[..., :3], ".tiff"),
    }[kind]()


def erased(data: bytes, mask: np.ndarray) -> np.ndarray:
    """The erased picture as stored, in OpenCV's order."""
    work = Workload(Inverter(), WorkSettings(threads=1))
    item = RawItem(id="a", source=data, mask=encode_mask(mask), origin="test")
    (outcome,) = work.run([("a", None, partial(lambda: item))])
    work.close()
    assert outcome.record is not None, outcome.failure
    return cv2.imdecode(np.frombuffer(outcome.record["erased"]["bytes"], np.uint8), cv2.IMREAD_UNCHANGED)


def whole(data: bytes) -> np.ndarray:
    """The upright source as the erased picture should store it: RGB or RGBA, all its bits, in OpenCV's order."""
    photo = decode_photo(data)
    planes = photo.deep if photo.deep is not None else photo.pixels if photo.alpha is None else np.dstack([photo.pixels, photo.alpha])
    return cv2.cvtColor(planes, cv2.COLOR_RGBA2BGRA if planes.shape[2] == 4 else cv2.COLOR_RGB2BGR)


def pasted(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Where the soft mask of the paste is above 0, (H, W) bool."""
    crop = make_crop(pixels, mask, Inverter.rule)
    soft = paste_mask(crop, Inverter().fill([crop], [0])[0], pixels.shape[1], pixels.shape[0])
    rows, columns = (np.arange(extent) for extent in mask.shape)
    inside = ((rows >= crop.y) & (rows < crop.y + crop.side))[:, None] & ((columns >= crop.x) & (columns < crop.x + crop.side))
    found = np.zeros(mask.shape, bool)
    found[inside] = soft[np.clip(rows - crop.y, 0, crop.side - 1)][:, np.clip(columns - crop.x, 0, crop.side - 1)][inside] > 0
    return found


KINDS = ["jpeg", *(f"jpeg{orientation}" for orientation in range(2, 9)), "png", "png_alpha", "png16", "png16_alpha", "png16_grey", "tiff16"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(x=st.integers(0, 50), y=st.integers(0, 50), width=st.integers(1, 30), height=st.integers(1, 30))
def test_what_lies_outside_the_soft_mask_keeps_every_sample(kind: str, x: int, y: int, width: int, height: int) -> None:
    data = source(kind)
    before = whole(data)
    mask = np.zeros(before.shape[:2], np.uint8)
    mask[y : y + height, x : x + width] = 255
    after = erased(data, mask)
    assert (after.shape, after.dtype) == (before.shape, before.dtype)
    same = (after == before).all(axis=2)
    assert same[~pasted(decode_photo(data).pixels, mask)].all()
    assert not same[mask > 0].all()
    if before.shape[2] == 4:
        np.testing.assert_array_equal(after[..., 3], before[..., 3])


@pytest.mark.parametrize("kind", KINDS)
def test_the_hole_is_the_erasers(kind: str) -> None:
    data = source(kind)
    before = whole(data)
    mask = np.zeros(before.shape[:2], np.uint8)
    mask[20:30, 20:40] = 255
    after = erased(data, mask).astype(int)
    top = 257 if before.dtype == np.uint16 else 1
    rounded = decode_photo(data).pixels[..., ::-1].astype(int)
    np.testing.assert_array_equal(after[20:30, 20:40, :3], (255 - rounded[20:30, 20:40]) * top)


def test_sixteen_bits_survive_where_nothing_changed() -> None:
    photo = decode_photo(source("png16_alpha"))
    unchanged = cv2.imdecode(np.frombuffer(encode_edited(photo, photo.pixels), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(unchanged, cv2.imdecode(np.frombuffer(source("png16_alpha"), np.uint8), cv2.IMREAD_UNCHANGED))


def test_a_transparent_colour_of_a_16_bit_file_becomes_a_channel() -> None:
    photo = replace(decode_photo(source("png16")), alpha=np.full((HEIGHT, WIDTH), 7, np.uint8))
    stored = cv2.imdecode(np.frombuffer(encode_edited(photo, photo.pixels), np.uint8), cv2.IMREAD_UNCHANGED)
    assert stored.shape == (HEIGHT, WIDTH, 4)
    assert (stored[..., 3] == 7 * 257).all()


def test_shallow_photos_are_encoded_as_ever() -> None:
    photo = decode_photo(source("png_alpha"))
    assert encode_edited(photo, photo.pixels, "webp") == encode_image(photo.pixels, photo.alpha, "webp")


def test_a_photo_of_24_megapixels_keeps_its_detail() -> None:
    """Only the crop around the object passes the eraser; noise everywhere else is still there, sample for sample."""
    pixels = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), dtype=np.uint8)
    mask = np.zeros((4000, 6000), np.uint8)
    mask[1900:2000, 3000:3300] = 255
    eraser = Inverter()
    crop = make_crop(pixels, mask, eraser.rule)
    assert crop.side == 450
    assert crop.pixels.shape == (48, 48, 3)
    result = eraser.erase(pixels, mask, 0)
    changed = (result != pixels).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert rows.min() >= crop.y
    assert rows.max() < crop.y + crop.side
    assert columns.min() >= crop.x
    assert columns.max() < crop.x + crop.side
    assert changed[mask > 0].mean() > 0.99


def test_context_grows_with_the_object() -> None:
    pixels = np.zeros((4000, 6000, 3), np.uint8)
    sides = []
    for extent in (20, 200, 1000):
        mask = np.zeros((4000, 6000), np.uint8)
        mask[2000 : 2000 + extent, 3000 : 3000 + extent // 2] = 255
        sides.append(make_crop(pixels, mask, CropRule(size=512, context=2.0)).side)
    assert sides == [512, 512, 2000]
