"""Decoding and encoding of pictures: round trips, exact rounding, limits, threads, and independence from other code's settings."""

from __future__ import annotations

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from core.errors import ItemError, UsageError
from core.images import Photo, decode_photo, encode_image, image_size, is_web_image, storable_source
from tests.malformed import HEIGHT, WIDTH, exif, malformed_corpus, noise, picture, png, png_rows, save, tiff, unusual_but_valid

SIDES = st.integers(8, 40)
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def images(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray | None]:
    height, width = draw(SIDES), draw(SIDES)
    pixels = draw(hnp.arrays(np.uint8, (height, width, 3)))
    alpha = draw(st.none() | hnp.arrays(np.uint8, (height, width)))
    return pixels, alpha


@QUICK
@given(images(), st.sampled_from(["png", "webp"]))
def test_encoded_images_come_back_bit_for_bit(image: tuple[np.ndarray, np.ndarray | None], kind: str) -> None:
    pixels, alpha = image
    data = encode_image(pixels, alpha, kind)
    photo = decode_photo(data)
    assert photo.format == kind
    np.testing.assert_array_equal(photo.pixels, pixels)
    # WebP leaves an alpha away that is 255 everywhere.
    if alpha is None or photo.alpha is None:
        assert photo.alpha is None
        assert alpha is None or (kind == "webp" and (alpha == 255).all())
    else:
        np.testing.assert_array_equal(photo.alpha, alpha)
    assert encode_image(pixels, alpha, kind) == data
    assert image_size(data) == (photo.width, photo.height) == (pixels.shape[1], pixels.shape[0])


def outcome(data: bytes) -> Photo | ItemError:
    """The photo or its error; any other exception fails the test."""
    try:
        return decode_photo(data, max_megapixels=1)
    except ItemError as error:
        return error


BEGINNINGS = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF\x40\0\0\0WEBPVP8 "]


@QUICK
@given(st.binary(max_size=400), st.sampled_from(BEGINNINGS))
def test_any_bytes_give_a_picture_or_an_item_error(tail: bytes, magic: bytes) -> None:
    result = outcome(magic + tail)
    if isinstance(result, ItemError):
        assert result.stage == "decode"
        assert result.message.startswith("the photo ")
        assert len(result.message) < 300
    else:
        assert result.pixels.shape == (result.height, result.width, 3)


@QUICK
@given(st.integers(0, 10_000), st.integers(0, 7), st.sampled_from(["PNG", "WEBP", "TIFF", "GIF"]))
def test_one_flipped_bit_never_escapes_as_another_error(place: int, bit: int, kind: str) -> None:
    data = bytearray(save(noise(), kind))
    data[place % len(data)] ^= 1 << bit
    result = outcome(bytes(data))
    if isinstance(result, ItemError):
        assert result.code in {"truncated", "corrupt", "unsupported_format", "not_an_image", "too_large", "too_small", "animated"}
    else:
        assert result.pixels.dtype == np.uint8


def test_every_prefix_of_a_jpeg_and_a_png_is_refused() -> None:
    for kind in ("JPEG", "PNG"):
        data = save(noise()[:16, :16], kind)
        codes = set()
        for size in range(2, len(data)):
            with pytest.raises(ItemError) as caught:
                decode_photo(data[:size])
            codes.add(caught.value.code)
        assert codes == {"truncated"}


def test_a_closed_up_jpeg_is_refused_wherever_it_was_cut() -> None:
    data = save(noise(), "JPEG", quality=90)
    start = data.index(b"\xff\xda") + 14
    for size in range(start + 20, int(len(data) * 0.8), 97):
        with pytest.raises(ItemError, match="cut off"):
            decode_photo(data[:size].rstrip(b"\xff") + b"\xff\xd9")


@pytest.mark.parametrize("container", ["png", "tiff"])
def test_sixteen_bits_are_rounded_exactly(container: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = png(256, 256, 16, 0, png_rows(values)) if container == "png" else tiff(values)
    expected = (values.astype(np.int64) * 255 + 32767) // 65535  # round to nearest; 65535 is odd, so there is never a tie
    np.testing.assert_array_equal(decode_photo(data).pixels[..., 1], expected)


def test_sixteen_bits_keep_their_alpha() -> None:
    deep = np.random.default_rng(3).integers(0, 65536, (9, 11, 4), dtype=np.uint16)
    photo = decode_photo(png(11, 9, 16, 6, png_rows(deep)))
    expected = np.rint(deep / 257).astype(np.uint8)
    np.testing.assert_array_equal(photo.pixels, expected[..., :3])
    np.testing.assert_array_equal(photo.alpha, expected[..., 3])


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_small_depths_and_their_transparent_grey(depth: int) -> None:
    top = (1 << depth) - 1
    values = np.random.default_rng(depth).integers(0, top + 1, (8, 16), dtype=np.uint8)
    bits = np.packbits((values[..., None] >> np.arange(depth - 1, -1, -1) & 1).reshape(8, -1).astype(np.uint8), axis=1)
    clear = b"\0\0\0\2tRNS\0\1"
    data = png(16, 8, depth, 0, png_rows(bits), clear + zlib.crc32(clear[4:]).to_bytes(4, "big"))
    photo = decode_photo(data)
    np.testing.assert_array_equal(photo.pixels[..., 0], values * (255 // top))
    np.testing.assert_array_equal(photo.alpha, np.where(values == 1, 0, 255))


def test_the_limit_is_the_one_given() -> None:
    data = save(picture(), "PNG")
    limit = WIDTH * HEIGHT / 1e6
    assert decode_photo(data, max_megapixels=limit).width == WIDTH
    with pytest.raises(ItemError, match=r"has 0\.0 megapixels \(64 x 48\); allowed are 0\.003: .*--max-megapixels") as caught:
        decode_photo(data, max_megapixels=0.003)
    assert caught.value.code == "too_large"


def test_a_bomb_says_its_size_and_the_limit() -> None:
    bomb = next(case.source for case in malformed_corpus() if case.name == "png bomb in its header")
    assert bomb is not None
    with pytest.raises(ItemError, match=r"3,600\.0 megapixels \(60000 x 60000\); allowed are 200"):
        decode_photo(bomb)
    assert image_size(bomb) == (60000, 60000)


@pytest.fixture
def careless_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other libraries set for the whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


@pytest.mark.usefixtures("careless_pillow")
def test_truncation_is_found_whatever_others_told_pillow() -> None:
    cases = [case for case in malformed_corpus() if case.code == "truncated"]
    assert len(cases) > 20
    for case in cases:
        assert case.source is not None
        with pytest.raises(ItemError) as caught:
            decode_photo(case.source)
        assert caught.value.code == "truncated", case.name


def test_size_needs_the_header_only() -> None:
    data = save(np.ascontiguousarray(noise()), "JPEG", exif=exif(6), quality=90)
    assert image_size(data) == (HEIGHT, WIDTH)
    assert image_size(data[: data.index(b"\xff\xda") + 14]) == (HEIGHT, WIDTH)
    with pytest.raises(ItemError) as caught:
        image_size(data[:20])
    assert caught.value.code == "truncated"


def test_many_threads_get_what_one_gets() -> None:
    cases = unusual_but_valid() * 3
    alone = [decode_photo(case.source).pixels for case in cases]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda case: decode_photo(case.source).pixels, cases))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_the_two_libraries_agree_on_jpeg() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}):
        data = save(noise(1), "JPEG", quality=85, **options)
        np.testing.assert_array_equal(decode_photo(data).pixels, np.array(Image.open(io.BytesIO(data))))


def test_long_sides_fall_back_to_png() -> None:
    wide = np.zeros((8, 16384, 3), np.uint8)
    assert encode_image(wide, format="webp").startswith(b"\x89PNG")
    assert encode_image(wide[:, :16383], format="webp")[8:12] == b"WEBP"


@pytest.mark.parametrize(
    ("pixels", "alpha", "kind", "says"),
    [
        (np.zeros((8, 8), np.uint8), None, "png", "(H, W, 3)"),
        (np.zeros((8, 8, 3), np.float32), None, "png", "float32"),
        (np.zeros((0, 8, 3), np.uint8), None, "png", "(0, 8, 3)"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9), np.uint8), "png", "(8, 9)"),
        (np.zeros((8, 8, 3), np.uint8), None, "gif", "'gif'"),
    ],
)
def test_wrong_calls_of_encode_say_what_they_got(pixels: np.ndarray, alpha: np.ndarray | None, kind: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        encode_image(pixels, alpha, kind)
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG"])
def test_web_sources_are_stored_as_they_came(kind: str) -> None:
    data = save(Image.fromarray(picture()), kind) + b"behind"
    assert is_web_image(data)
    assert storable_source(data, decode_photo(data)) is data


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP", "GIF"])
def test_other_sources_are_stored_as_png_with_the_same_pixels(kind: str) -> None:
    data = save(Image.fromarray(picture()).quantize(16), kind)
    photo = decode_photo(data)
    stored = storable_source(data, photo)
    assert not is_web_image(data)
    assert is_web_image(stored)
    np.testing.assert_array_equal(decode_photo(stored).pixels, photo.pixels)


def test_a_photo_cannot_be_changed_by_accident() -> None:
    photo = Photo(picture(), None, "png")
    with pytest.raises(FrozenInstanceError):
        photo.format = "jpeg"  # type: ignore[misc]
    assert (photo.width, photo.height) == (WIDTH, HEIGHT)


def test_encoding_does_not_depend_on_the_number_of_threads() -> None:
    large = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = encode_image(large)
        cv2.setNumThreads(4)
        assert encode_image(large) == one
    finally:
        cv2.setNumThreads(before)
