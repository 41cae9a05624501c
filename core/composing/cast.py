"""What a lifted object casts: the shadow, light or mirror image that came with it from its own photo, put down beside it on another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np

from core.composing.light import Plane, blur, to_linear
from core.composing.recipe import read_recipe, with_recipe
from core.errors import UsageError
from core.images import Pixels, encode_image
from core.masks import mask_box

LIFTED_FOLDER: Final = "cutouts"
"""Where ``effects --lift-cutouts`` puts objects, below its dataset."""
_KEY: Final = "lifted"
_OPAQUE: Final = 255
_SMALLEST: Final = 2
"""Alpha from which a pixel is part of the effect: less is no level of any photo."""


@dataclass(frozen=True, slots=True, eq=False)
class Cast:
    """The effects of a cut-out.

    Attributes:
        pixels: (H, W, 3) uint8 sRGB.
        alpha: (H, W) uint8, 0 on the object itself.
        x, y: the upper left pixel, seen from the upper left pixel of the cut-out; may be negative.
        width: of the cut-out, in pixels.
        height: of the cut-out, in pixels.
    """

    pixels: Pixels
    alpha: Pixels
    x: int
    y: int
    width: int
    height: int


def encode_lifted(colours: Pixels, alpha: Pixels, object_mask: Pixels, how: dict[str, Any]) -> bytes:
    """A lifted object as PNG: alpha 255 is the object, 1 to 254 its effects; ``how``, ready for JSON, says where it is from.

    Args:
        colours: (H, W, 3) uint8 sRGB, not multiplied.
        alpha: (H, W) uint8.
        object_mask: (H, W) uint8, non-zero = object.

    Raises:
        UsageError: arrays of different sizes.
    """
    if colours.shape[:2] != alpha.shape or object_mask.shape != alpha.shape:
        raise UsageError(f"colours, alpha and mask are of one size, got {colours.shape}, {alpha.shape} and {object_mask.shape}")
    stored = np.where(object_mask > 0, _OPAQUE, np.minimum(alpha, _OPAQUE - 1)).astype(np.uint8)
    return with_recipe(encode_image(colours, stored), {_KEY: how})


def read_lifted(data: bytes) -> dict[str, Any] | None:
    """The ``how`` of a PNG that ``encode_lifted`` made; None for any other picture."""
    how = (read_recipe(data) or {}).get(_KEY) if data.startswith(b"\x89PNG") else None
    return how if isinstance(how, dict) else None


def split_lifted(pixels: Pixels, alpha: Pixels) -> tuple[Pixels, Cast | None]:
    """(H, W) uint8 alpha of the object alone, and its effects; None where it has none."""
    solid = np.where(alpha == _OPAQUE, _OPAQUE, 0).astype(np.uint8)
    rest = np.where((solid == 0) & (alpha >= _SMALLEST), alpha, 0).astype(np.uint8)
    if not rest.any():
        return solid, None
    ox0, oy0, ox1, oy1 = mask_box(solid)
    x0, y0, x1, y1 = mask_box(rest)
    part = (slice(y0, y1), slice(x0, x1))
    return solid, Cast(pixels[part].copy(), rest[part].copy(), x0 - ox0, y0 - oy0, ox1 - ox0, oy1 - oy0)


def place_cast(
    cast: Cast, corner: tuple[int, int], size: tuple[int, int], picture: int, *, mirrored: bool, gain: tuple[float, float, float]
) -> tuple[Plane, Plane]:
    """The effects in a square picture: ((S, S, 3) linear light times alpha, (S, S) alpha), both float32.

    Args:
        corner: (x, y) in the picture of the upper left pixel of the cut-out, as it was resized.
        size: (width, height) to which the cut-out was resized.
        picture: S.
        mirrored: the cut-out was turned over its vertical middle line.
        gain: factors of R, G and B that the cut-out got.
    """
    across, down = size[0] / cast.width, size[1] / cast.height
    opacity = cast.alpha.astype(np.float32) * np.float32(1 / 255)
    layers = np.dstack([to_linear(cast.pixels) * opacity[..., None], opacity])
    # room for the blur; and smoothed before it is made smaller, or fine parts would come and go
    room = 4
    layers = np.asarray(cv2.copyMakeBorder(layers, room, room, room, room, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0)), np.float32)
    layers = blur(layers, 0.5 * max(0.0, 1 / min(across, down) - 1))
    left, top = cast.x - room, cast.y - room
    # centres of pixels go to centres of pixels
    shift_x, shift_y = corner[0] + (left + 0.5) * across - 0.5, corner[1] + (top + 0.5) * down - 0.5
    matrix = np.array([[across, 0, shift_x], [0, down, shift_y]], np.float64)
    if mirrored:
        matrix[0] = (-across, 0, 2 * corner[0] + size[0] - 1 - shift_x)
    placed = np.asarray(cv2.warpAffine(layers, matrix, (picture, picture), flags=cv2.INTER_LINEAR), np.float32)
    alpha = np.ascontiguousarray(placed[..., 3])
    light = np.minimum(placed[..., :3] * np.asarray(gain, np.float32), alpha[..., None])
    return np.asarray(light, np.float32), alpha
