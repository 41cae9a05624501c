"""Results as files: the box that changed, and the whole picture in the upload's format with its EXIF and colour profile."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import PurePath
from typing import Final

import cv2
import numpy as np
from PIL import Image

from core.images import MIN_SIDE, Photo, encode_edited, encode_image
from core.masks import Box, mask_box

MEDIA_TYPES: Final = {
    "jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "tiff": "image/tiff", "bmp": "image/bmp", "gif": "image/gif",
}  # fmt: skip
EXTENSIONS: Final = {"jpeg": "jpg", "png": "png", "webp": "webp", "tiff": "tif", "bmp": "bmp"}
JPEG_QUALITY: Final = 95
_ORIENTATION: Final = 274


def changed_box(before: np.ndarray, after: np.ndarray, within: Box) -> Box:
    """The smallest box (x0, y0, x1, y1) of pixels that differ, at least 8 pixels wide and high, which decoders need.

    Args:
        before, after: (H, W, 3) uint8.
        within: no pixel outside of it differs.
    """
    x0, y0, x1, y1 = within
    differs = (before[y0:y1, x0:x1] != after[y0:y1, x0:x1]).any(axis=2).astype(np.uint8)
    left, top, right, bottom = mask_box(differs)
    height, width = before.shape[:2]
    left, right = _at_least(x0 + left, x0 + right, width)
    top, bottom = _at_least(y0 + top, y0 + bottom, height)
    return left, top, right, bottom


def _at_least(low: int, high: int, extent: int) -> tuple[int, int]:
    high = max(high, low + MIN_SIDE)
    shift = max(0, high - extent)
    return low - shift, high - shift


def encode_patch(photo: Photo, result: np.ndarray, box: Box, profile: bytes = b"") -> bytes:
    """PNG of the result in the box, with the photo's alpha where it has one: it replaces what it is painted on.

    Args:
        profile: the photo's ``rgb_profile``, without which a patch on a photo of wide gamut would show other colours than it.
    """
    x0, y0, x1, y1 = box
    alpha = None if photo.alpha is None else np.ascontiguousarray(photo.alpha[y0:y1, x0:x1])
    return _with_chunks(encode_image(np.ascontiguousarray(result[y0:y1, x0:x1]), alpha), b"", profile)


def encode_result(source: bytes, photo: Photo, result: np.ndarray, image_format: str) -> bytes:
    """The whole result as a file of ``image_format``, with EXIF (orientation 1: the pixels are upright) and profile of ``source``.

    PNG and WebP are without loss; of 16 bits a sample PNG keeps all.
    """
    exif, profile = _metadata(source)
    if image_format == "png":
        return _with_chunks(encode_edited(photo, result), exif, profile)
    alpha = photo.alpha if image_format in ("webp", "tiff") else None
    image = Image.fromarray(result if alpha is None else np.dstack([result, alpha]))
    options: dict[str, object] = {
        "jpeg": {"quality": JPEG_QUALITY, "subsampling": 0, "optimize": False},
        "webp": {"lossless": True, "exact": True, "quality": 0, "method": 0},
        "tiff": {"compression": "tiff_lzw"},
        "bmp": {},
    }[image_format]  # type: ignore[assignment]
    if image_format != "bmp":
        if exif:
            options["exif"] = exif
        if profile:
            options["icc_profile"] = profile
    buffer = io.BytesIO()
    image.save(buffer, image_format.upper(), **options)
    return buffer.getvalue()


def rgb_profile(source: bytes) -> bytes:
    """The ICC profile of a photo's bytes where it is one of RGB; else empty."""
    return _metadata(source)[1]


def _metadata(source: bytes) -> tuple[bytes, bytes]:
    """EXIF with the orientation set upright, and the profile where it is one of RGB; empty where there is none or it is broken."""
    try:
        with Image.open(io.BytesIO(source)) as image:
            profile = image.info.get("icc_profile") or b""
            exif = image.getexif()
            if image.format == "TIFF":  # its "EXIF" is the file's own layout
                exif = Image.Exif()
            if _ORIENTATION in exif:
                exif[_ORIENTATION] = 1
            data = exif.tobytes() if len(exif) else b""
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):
        return b"", b""
    return data, bytes(profile) if bytes(profile[16:20]) == b"RGB " else b""


def _with_chunks(png: bytes, exif: bytes, profile: bytes) -> bytes:
    """PNG bytes with eXIf and iCCP after the header chunk."""
    chunks = b""
    if profile:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    if exif:
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return png[:33] + chunks + png[33:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def download_format(wanted: str | None, own: str) -> str:
    """The format of a download: what is wanted, else the upload's; a GIF's 256 colours do not hold a result, so that is a PNG."""
    return wanted or (own if own in EXTENSIONS else "png")


def download_name(name: str, image_format: str) -> str:
    """``<name>_erased.<ext>`` for a header: without folders, quotes or control characters."""
    stem = PurePath(name.replace("\\", "/")).stem
    stem = re.sub(r'[\x00-\x1f\x7f"/\\:*?<>|]', "", stem).strip(". ")[:150] or "photo"
    own = PurePath(name).suffix.lower().lstrip(".")
    extension = own if image_format == "jpeg" and own in ("jpg", "jpeg") else EXTENSIONS[image_format]
    return f"{stem}_erased.{extension}"


def resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: by area when shrinking, cubically when enlarging."""
    method = cv2.INTER_AREA if width < pixels.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=method), np.uint8)
