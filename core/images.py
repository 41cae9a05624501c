"""Pictures: from the bytes of a file to upright RGB pixels, and back to lossless bytes.

One decoder per kind of file, always the same, so that a result depends on the bytes alone: OpenCV for JPEG, PNG and 16-bit TIFF,
Pillow for CMYK JPEG, WebP, TIFF, BMP and GIF. ``core.headers`` looks at the file before either of them does.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin as _bmp_plugin  # noqa: F401  imported for their registration: Pillow's own lazy one is not thread-safe
from PIL import GifImagePlugin as _gif_plugin  # noqa: F401
from PIL import Image, ImageChops, UnidentifiedImageError
from PIL import JpegImagePlugin as _jpeg_plugin  # noqa: F401
from PIL import TiffImagePlugin as _tiff_plugin  # noqa: F401
from PIL import WebPImagePlugin as _webp_plugin  # noqa: F401

from core.errors import ItemError, UsageError
from core.headers import Header, Rejected, corrupt, cut_off, read_header, unsupported

Pixels = NDArray[np.uint8]
DeepPixels = NDArray[np.uint16]
Sample = TypeVar("Sample", np.uint8, np.uint16)

DEFAULT_MAX_MEGAPIXELS: Final = 200.0
MIN_SIDE: Final = 8
WEBP_MAX_SIDE: Final = 16383

# Pillow's own limit is a process-wide number that warns below twice its value; ours is an argument and is checked earlier.
Image.MAX_IMAGE_PIXELS = None

# Everything that Pillow and OpenCV were seen to raise on broken files. Warning is here for programs that turn warnings into errors.
_DECODER_ERRORS: Final = (
    OSError, ValueError, SyntaxError, EOFError, OverflowError, LookupError, TypeError, ZeroDivisionError, NotImplementedError, Warning,
    struct.error, zlib.error, cv2.error, Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded picture, upright.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, contiguous; the EXIF orientation is applied, a colour profile is not.
        alpha: (H, W) uint8, 255 = opaque, or None where the file has no transparency. ``pixels`` keeps the colours under it.
        format: what the file was: ``jpeg``, ``png``, ``webp``, ``tiff``, ``bmp`` or ``gif``.
        deep: (H, W, 3) or, with alpha in the file, (H, W, 4) uint16, RGB(A), where samples have 16 bits: what ``pixels`` is rounded from.
    """

    pixels: Pixels
    alpha: Pixels | None
    format: str
    deep: DeepPixels | None = None

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])


_ROUND_16_TO_8: Final[Pixels] = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257


def _opencv(data: bytes, flags: int, head: Header) -> NDArray[Any]:
    pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise corrupt(head.format.upper(), "its picture data cannot be decoded")
    return pixels


class _Decoded(NamedTuple):
    """As in ``Photo``, not yet upright."""

    pixels: Pixels
    alpha: Pixels | None = None
    deep: DeepPixels | None = None


def _split(stored: NDArray[Any]) -> _Decoded:
    """RGB and alpha of OpenCV's grey, BGR or BGRA in 8 or 16 bits."""
    codes = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    colours = cv2.cvtColor(stored, codes[1 if stored.ndim == 2 else stored.shape[2]])
    deep = colours.astype(np.uint16, copy=False) if stored.dtype == np.uint16 else None
    rounded = (_ROUND_16_TO_8[colours] if deep is not None else colours).astype(np.uint8, copy=False)
    alpha = np.ascontiguousarray(rounded[..., 3]) if rounded.shape[2] == 4 else None
    return _Decoded(np.ascontiguousarray(rounded[..., :3]), alpha, deep)


def _decode_jpeg(data: bytes, head: Header) -> _Decoded:
    end = data.find(b"\xff\xd9", head.body)  # inside picture data 0xFF is always escaped: this is the end marker or nothing is
    if end < 0:
        raise cut_off("JPEG", len(data))
    if head.channels == 4:
        return _decode_pillow(data, head)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = _opencv(data, flags, head)
    if (pixels[-8:, -8:] == 128).all():
        # libjpeg fills what is missing with exactly this grey and says so to nobody. Bytes put in before the end marker change the
        # picture only if picture data were missing there, so a photo that really ends in this grey passes.
        more = cv2.imdecode(np.frombuffer(data[:end] + bytes(range(1, 250, 7)) * 20 + data[end:], np.uint8), flags)
        if more is not None and not np.array_equal(more, pixels):
            raise cut_off("JPEG", end)
    return _Decoded(pixels.astype(np.uint8, copy=False))


def _decode_png(data: bytes, head: Header) -> _Decoded:
    at, view, kind = 8, memoryview(data), b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + size
        if kind[:1].isupper() and zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise corrupt("PNG", f"wrong checksum in {kind.decode('ascii', 'replace')} at byte {at:,}")
        at = end + 4
    stored = _opencv(data, cv2.IMREAD_UNCHANGED, head)
    found = _split(stored)
    if head.colour_key is not None and stored.ndim == 2:  # OpenCV keeps a transparent colour but drops a transparent grey
        scale = 1 if head.depth == 16 else 255 // ((1 << head.depth) - 1)
        return found._replace(alpha=np.where(stored == head.colour_key * scale, 0, 255).astype(np.uint8))
    return found


def _decode_pillow(data: bytes, head: Header) -> _Decoded:
    with Image.open(io.BytesIO(data), formats=(head.format.upper(),)) as image:
        if image.width * image.height != head.width * head.height:  # the limit was checked on our reading of the header
            raise corrupt(head.format.upper(), f"its header says both {image.size} and {(head.width, head.height)}")
        image.load()
        picture: Image.Image = image
        if head.format == "jpeg" and not head.adobe:  # Pillow takes every CMYK JPEG as inverted; only Adobe's are
            picture = ImageChops.invert(image)
        if picture.has_transparency_data:
            rgba = np.asarray(picture.convert("RGBA"))
            return _Decoded(np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3]))
        return _Decoded(np.array(picture.convert("RGB")))


def _decode_tiff(data: bytes, head: Header) -> _Decoded:
    """Both libraries apply a TIFF's orientation themselves."""
    head.orientation = 1
    if head.depth < 16:
        return _decode_pillow(data, head)
    stored = _opencv(data, cv2.IMREAD_UNCHANGED, head)
    return _split(~stored if head.min_is_white else stored)


def _upright(pixels: NDArray[Sample], orientation: int) -> NDArray[Sample]:
    kind = pixels.dtype
    if orientation >= 5:
        pixels = np.ascontiguousarray(cv2.transpose(pixels), dtype=kind)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else np.ascontiguousarray(cv2.flip(pixels, flip), dtype=kind)


def _decode(data: bytes, max_megapixels: float) -> Photo:
    head = read_header(data)
    megapixels = head.width * head.height / 1e6
    if megapixels > max_megapixels:
        raise Rejected(
            "too_large",
            f"has {megapixels:,.1f} megapixels ({head.width} x {head.height}); allowed are {max_megapixels:g}: "
            "make it smaller or raise --max-megapixels",
        )
    if head.flaw:
        raise head.flaw
    if min(head.width, head.height) < MIN_SIDE:
        raise Rejected("too_small", f"is {head.width} x {head.height} pixels; allowed are sides of {MIN_SIDE} and more: use a larger one")
    decoders = {"jpeg": _decode_jpeg, "png": _decode_png, "tiff": _decode_tiff}
    try:
        found = decoders.get(head.format, _decode_pillow)(data, head)
    except _DECODER_ERRORS as error:
        if head.format == "tiff" and isinstance(error, UnidentifiedImageError):
            raise unsupported("a TIFF of a kind that cannot be read") from error
        if "truncated" in str(error).lower():
            raise cut_off(head.format.upper(), len(data)) from error
        raise corrupt(head.format.upper(), error) from error
    alpha = None if found.alpha is None else _upright(found.alpha, head.orientation)
    deep = None if found.deep is None else _upright(found.deep, head.orientation)
    return Photo(_upright(found.pixels, head.orientation), alpha, head.format, deep)


def decode_picture(data: bytes, *, noun: str, prefix: str = "", max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Photo:
    """``decode_photo`` for a picture that messages call ``noun``; ``prefix`` goes before the error codes."""
    try:
        return _decode(data, max_megapixels)
    except Rejected as reason:
        raise ItemError("decode", prefix + reason.code, f"the {noun} {reason.text}") from reason


def decode_photo(data: bytes, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Photo:
    """Decode the bytes of a JPEG (MPO: its first picture), PNG, WebP, TIFF, BMP or GIF file. Safe to call from many threads.

    Args:
        data: the whole file.
        max_megapixels: width * height / 1e6 may not be more; compared before anything is decoded.

    Returns:
        The upright photo; 16-bit samples are rounded to 8 bits, grey, palette and CMYK become RGB.

    Raises:
        ItemError: stage ``decode``, code ``empty_file``, ``not_an_image``, ``unsupported_format``, ``truncated``, ``corrupt``,
            ``too_large``, ``too_small`` (a side under 8 pixels) or ``animated`` (more than one frame or page).
    """
    return decode_picture(data, noun="photo", max_megapixels=max_megapixels)


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) after orientation, from the header alone: nothing is decoded and the end of the file is not looked at.

    Raises:
        ItemError: as ``decode_photo``, where there is no header with a size in it.
    """
    try:
        head = read_header(data)
    except Rejected as reason:
        raise ItemError("decode", reason.code, f"the photo {reason.text}") from reason
    return (head.height, head.width) if head.orientation >= 5 else (head.width, head.height)


# Measured on 104 photos of 512 x 512, milliseconds of one core and bytes per pixel: this 39 and 1.55; OpenCV's default (Sub, run
# lengths) 33 and 1.83; Pillow at level 1 69 and 1.52.
_PNG_PHOTO: Final = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)


def encode_image(pixels: Pixels, alpha: Pixels | None = None, format: Literal["png", "webp"] = "png") -> bytes:
    """Lossless bytes, a pure function of the arguments; colours under transparency survive.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        alpha: (H, W) uint8 or None.
        format: ``webp`` is a third smaller and takes twice the time; a side over 16383 falls back to PNG, as WebP cannot hold it.

    Raises:
        UsageError: wrong shape, dtype or format.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError(f"an image to encode is (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != pixels.shape[:2]):
        raise UsageError(f"alpha is {pixels.shape[:2]} uint8 like its image, got {alpha.shape} {alpha.dtype}")
    if format not in ("png", "webp"):
        raise UsageError(f"images are encoded as png or webp, got {format!r}")
    if format == "webp" and max(pixels.shape[:2]) <= WEBP_MAX_SIDE:
        buffer = io.BytesIO()
        image = Image.fromarray(pixels if alpha is None else np.dstack([pixels, alpha]))
        image.save(buffer, "WEBP", lossless=True, exact=True, method=0, quality=0)
        return buffer.getvalue()
    stored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if alpha is None else np.dstack([pixels[..., ::-1], alpha])
    return _png(stored)


def _png(stored: NDArray[Any]) -> bytes:
    done, data = cv2.imencode(".png", stored, _PNG_PHOTO)
    if not done:
        raise ItemError("encode", "encode_failed", f"an image of {stored.shape[1]} x {stored.shape[0]} pixels cannot be written as PNG")
    return data.tobytes()


def encode_edited(photo: Photo, pixels: Pixels, format: Literal["png", "webp"] = "png") -> bytes:
    """Lossless bytes of ``pixels`` (H, W, 3) uint8, which came of editing ``photo``, with the photo's alpha and depth.

    A photo of 16 bits a sample stays one (as PNG): every pixel that was not changed keeps all its bits, changed ones are scaled by 257.
    """
    if photo.deep is None:
        return encode_image(pixels, photo.alpha, format)
    if pixels.shape != photo.pixels.shape or pixels.dtype != np.uint8:
        raise UsageError(f"an edited photo is {photo.pixels.shape} uint8, got {pixels.shape} {pixels.dtype}")
    changed = (pixels != photo.pixels).any(axis=2)
    deep = photo.deep.copy()
    deep[..., :3][changed] = pixels[changed].astype(np.uint16) * 257
    if deep.shape[2] == 4:
        return _png(cv2.cvtColor(deep, cv2.COLOR_RGBA2BGRA))
    if photo.alpha is not None:  # a transparent colour of the file, no channel
        return _png(np.dstack([deep[..., ::-1], photo.alpha.astype(np.uint16) * 257]))
    return _png(cv2.cvtColor(deep, cv2.COLOR_RGB2BGR))


def is_web_image(data: bytes) -> bool:
    """Whether the bytes are a JPEG or a PNG by their first bytes: what a dataset stores as it came."""
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def storable_source(data: bytes, photo: Photo) -> bytes:
    """The bytes for the ``source`` column: ``data`` itself for JPEG and PNG, otherwise ``photo`` (decoded from it) as lossless PNG."""
    return data if is_web_image(data) else encode_edited(photo, photo.pixels)
