"""Masks: which pixels are to be removed, 255 = remove; made larger, made soft, read from any picture and written as PNG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import ItemError, UsageError
from core.images import DEFAULT_MAX_MEGAPIXELS, Photo, Pixels, decode_picture

THRESHOLD: Final = 127
ASPECT_TOLERANCE_PERCENT: Final = 2

Box = tuple[int, int, int, int]


def mask_box(pixels: Pixels) -> Box:
    """The smallest (x0, y0, x1, y1) around all non-zero pixels of (H, W) uint8, x1 and y1 exclusive; (0, 0, 0, 0) where there are none."""
    x, y, width, height = cv2.boundingRect(pixels)
    return int(x), int(y), int(x + width), int(y + height)


@dataclass(frozen=True, slots=True)
class Mask:
    """What to remove from a photo.

    Attributes:
        pixels: (H, W) uint8, 0 or 255 and nothing else; 255 = remove; H and W of the photo.
        resized: the file had another size than the photo (callers count that as a warning).
    """

    pixels: Pixels
    resized: bool = False

    @property
    def area(self) -> int:
        """How many pixels are removed."""
        return int(cv2.countNonZero(self.pixels))

    @property
    def box(self) -> Box:
        """See ``mask_box``."""
        return mask_box(self.pixels)


def _grey(photo: Photo) -> Pixels:
    """(H, W) uint8: the luminance, or alpha where one single colour is all that the picture has (a brush stroke on a clear layer)."""
    if photo.alpha is not None and (photo.pixels == photo.pixels[0, 0]).all() and (photo.alpha != photo.alpha[0, 0]).any():
        return photo.alpha
    return cv2.cvtColor(photo.pixels, cv2.COLOR_RGB2GRAY).astype(np.uint8, copy=False)


def decode_mask(data: bytes, size: tuple[int, int], *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Mask:
    """Decode a mask drawn on the upright photo. Safe to call from many threads.

    The mask is the luminance of the picture (of a palette: of its colours), or its alpha where all colours are equal and alpha is not;
    over 127 means remove. The file's own EXIF orientation is applied, as for a photo.

    Args:
        data: the whole file, any format and mode that ``decode_photo`` takes.
        size: (width, height) of the upright photo; a mask of another size and the same shape is brought to it by nearest neighbour.
        max_megapixels: as in ``decode_photo``.

    Raises:
        ItemError: stage ``decode``, code ``empty_mask`` (nothing to remove), ``full_mask`` (nothing would be left),
            ``mask_size_mismatch`` (aspect ratios differ by more than 2 %), or a code of ``decode_photo`` with ``mask_`` before it.
    """
    photo = decode_picture(data, noun="mask", prefix="mask_", max_megapixels=max_megapixels)
    grey = _grey(photo)
    width, height = size
    resized = (photo.width, photo.height) != (width, height)
    mine, its = photo.width * height, photo.height * width  # whole numbers: a quotient would be a hair over 2 % at exactly 2 %
    if resized and abs(mine - its) * 100 > its * ASPECT_TOLERANCE_PERCENT:
        raise ItemError(
            "decode",
            "mask_size_mismatch",
            f"the mask is {photo.width} x {photo.height} and the photo {width} x {height} pixels; "
            f"allowed are shapes within {ASPECT_TOLERANCE_PERCENT} %: draw the mask on this photo, turned upright",
        )
    pixels = np.where(grey > THRESHOLD, 255, 0).astype(np.uint8)
    if resized:
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)
    check_area(pixels, brightest=int(grey.max()))
    return Mask(pixels, resized)


def binary_mask(photo: Photo) -> Pixels:
    """(H, W) uint8, 0 or 255, of a decoded mask file of any mode: what ``decode_mask`` sees in it before it has a photo's size."""
    return np.where(_grey(photo) > THRESHOLD, 255, 0).astype(np.uint8)


def check_area(pixels: Pixels, *, brightest: int = 255) -> None:
    """Raises ItemError ``empty_mask`` or ``full_mask`` as ``decode_mask``, for (H, W) uint8 of 0 and 255.

    ``brightest`` is the largest value in the file, for the message.
    """
    height, width = pixels.shape
    area = cv2.countNonZero(pixels)
    if area == 0:
        raise ItemError(
            "decode",
            "empty_mask",
            f"the mask removes nothing: its brightest value is {brightest}, 128 to 255 mean remove: paint the object white"
            if brightest <= THRESHOLD
            else f"the mask removes nothing once it has the photo's {width} x {height} pixels: draw the object larger",
        )
    if area == pixels.size:
        raise ItemError("decode", "full_mask", f"the mask removes all {area:,} pixels; some have to be left: paint what stays black")


# Measured on 104 masks: 3 ms of one core per megapixel and 1.1 kB each; OpenCV's default 2 ms and 2.1 kB.
_PNG_MASK: Final = (cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)


def encode_mask(pixels: Pixels) -> bytes:
    """(H, W) uint8 as PNG with one 8-bit channel; whatever is over 127 is written as 255, the rest as 0.

    Raises:
        UsageError: wrong shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
        raise UsageError(f"a mask to encode is (H, W) uint8, got {pixels.shape} {pixels.dtype}")
    done, data = cv2.imencode(".png", np.where(pixels > THRESHOLD, 255, 0).astype(np.uint8), _PNG_MASK)
    if not done:
        raise ItemError("encode", "encode_failed", f"a mask of {pixels.shape[1]} x {pixels.shape[0]} pixels cannot be written as PNG")
    return data.tobytes()


def _around(mask: Pixels, margin: int) -> tuple[slice, slice]:
    """The rows and columns within ``margin`` of the mask: objects are small, and nothing changes farther out."""
    x0, y0, x1, y1 = mask_box(mask)
    return slice(max(y0 - margin, 0), y1 + margin), slice(max(x0 - margin, 0), x1 + margin)


def dilate(mask: Pixels, radius_px: int) -> Pixels:
    """The mask grown by an ellipse of ``radius_px`` (OpenCV's); a larger radius never covers less.

    Args:
        mask: (H, W) uint8, 0 or 255.
        radius_px: 0 and more; the time grows with its square.

    Returns:
        A new (H, W) uint8, 0 or 255.

    Raises:
        UsageError: a negative radius.
    """
    if radius_px < 0:
        raise UsageError(f"a mask is dilated by 0 pixels or more, got {radius_px}")
    grown = mask.copy()
    if radius_px and mask.any():
        part = _around(mask, radius_px)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
        grown[part] = cv2.dilate(mask[part], kernel)
    return grown


def mask_at_size(mask: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """A mask (H, W), not 0 = set, made ``sides`` (width, height) large: uint8, 0 and 255.

    A cell is set as soon as any of its pixels is: no rim of the object may stay visible to the network.
    """
    # in floating point, since the share of a cell that one pixel takes may round to nothing in 8 bits
    share = cv2.resize((mask > 0).astype(np.float32), sides, interpolation=cv2.INTER_AREA)
    return ((share > 0) * np.uint8(255)).astype(np.uint8)


def soft_mask(mask: Pixels, feather_px: float) -> NDArray[np.float32]:
    """The mask with a smooth edge on its outside.

    Args:
        mask: (H, W) uint8; non-zero = remove.
        feather_px: 0 and more; how far the edge reaches, 0 for none.

    Returns:
        (H, W) float32: exactly 1.0 on the mask, falling without a kink, exactly 0.0 at ``feather_px`` from it and beyond.

    Raises:
        UsageError: a negative or endless feather.
    """
    if not 0 <= feather_px < math.inf:
        raise UsageError(f"a mask is feathered by 0 pixels or more, got {feather_px}")
    soft = (mask > 0).astype(np.float32)
    if feather_px and soft.any():
        part = _around(mask, math.ceil(feather_px))
        outside = np.equal(mask[part], 0).astype(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float32, copy=False)
        ramp = np.clip(np.float32(1) - distance / np.float32(feather_px), 0, 1)
        soft[part] = ramp * ramp * (np.float32(3) - np.float32(2) * ramp)
    return soft
