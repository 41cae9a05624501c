"""Cut-outs: pictures of one object with alpha, and the sprites that are made of them at the size and place of a scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import cv2
import numpy as np

from core.composing.cast import Cast, read_lifted, split_lifted
from core.composing.light import Plane, to_linear
from core.errors import ItemError
from core.images import DEFAULT_MAX_MEGAPIXELS, Pixels, decode_picture
from core.masks import mask_box

LEAST_SIDE: Final = 16
LEAST_AREA: Final = 200
OPAQUE: Final = 128
SPRITE_RIM_PX: Final = 3
"""Clear pixels around a sprite: room for a soft edge."""
_FRINGE_PX: Final = 2


@dataclass(frozen=True, slots=True)
class Cutout:
    """An object, cut to the box of its alpha.

    Attributes:
        pixels: (H, W, 3) uint8 sRGB; at the edge the object's own colours, not those it was cut from.
        alpha: (H, W) uint8.
        cast: the effects that a lifted object brings along; None: they are to be computed.
        how: where a lifted object is from (``id``, ``category``, ``origin``); empty for others.
    """

    pixels: Pixels
    alpha: Pixels
    cast: Cast | None = None
    how: Mapping[str, Any] = field(default_factory=dict)

    @property
    def aspect(self) -> float:
        """Width over height."""
        return float(self.pixels.shape[1] / self.pixels.shape[0])

    @property
    def nbytes(self) -> int:
        """Memory that its pixels take."""
        own = self.pixels.nbytes + self.alpha.nbytes
        return own if self.cast is None else own + self.cast.pixels.nbytes + self.cast.alpha.nbytes


@dataclass(frozen=True, slots=True)
class Sprite:
    """An object at its final size, placed.

    Attributes:
        light: (h, w, 3) float32, linear light times alpha.
        alpha: (h, w) float32, 0 to 1.
        x, y: where its upper left pixel is in the picture; may be outside.
        ground: (a, b) of the line y = a + b x, in pixels of the picture, on which it stands.
    """

    light: Plane
    alpha: Plane
    x: int
    y: int
    ground: tuple[float, float]

    @property
    def height(self) -> int:
        return int(self.alpha.shape[0])

    @property
    def width(self) -> int:
        return int(self.alpha.shape[1])


def decode_cutout(data: bytes, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Cutout:
    """A cut-out from the bytes of a picture with alpha, its fringe cleaned; the effects of a lifted one are kept apart.

    Raises:
        ItemError: stage ``decode``, code ``cutout_no_alpha``, ``cutout_empty`` (too small, or hardly anything opaque), or one of
            ``core.images.decode_photo`` with ``cutout_`` before it.
    """
    photo = decode_picture(data, noun="cut-out", prefix="cutout_", max_megapixels=max_megapixels)
    if photo.alpha is None or int(photo.alpha.min()) > 250:
        raise ItemError("decode", "cutout_no_alpha", "the cut-out has no transparent pixel; give a PNG or WebP with alpha")
    how = read_lifted(data)
    whole, cast = (photo.alpha, None) if how is None else split_lifted(photo.pixels, photo.alpha)
    solid = np.where(whole >= OPAQUE, 255, 0).astype(np.uint8)
    x0, y0, x1, y1 = mask_box(solid)
    area = cv2.countNonZero(solid)
    if min(x1 - x0, y1 - y0) < LEAST_SIDE or area < LEAST_AREA:
        raise ItemError(
            "decode",
            "cutout_empty",
            f"the cut-out has {area} opaque pixels in {x1 - x0} x {y1 - y0}; it needs {LEAST_AREA} and sides of {LEAST_SIDE}",
        )
    alpha = whole[y0:y1, x0:x1].copy()
    alpha[alpha < 8] = 0
    return Cutout(_without_fringe(np.ascontiguousarray(photo.pixels[y0:y1, x0:x1]), alpha), alpha, cast, how or {})


def _without_fringe(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Colours of the rim taken from the nearest inside: what an object was cut from shines through its last pixels."""
    kernel = np.ones((2 * _FRINGE_PX + 1, 2 * _FRINGE_PX + 1), np.uint8)
    inside = cv2.erode(np.where(alpha >= 250, 255, 0).astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    weight = (inside > 0).astype(np.float32)
    reach = (6 * _FRINGE_PX + 1, 6 * _FRINGE_PX + 1)
    near = cv2.GaussianBlur(weight, reach, 2.0 * _FRINGE_PX)
    colours = cv2.GaussianBlur(pixels * weight[..., None], reach, 2.0 * _FRINGE_PX) / np.maximum(near, 1e-4)[..., None]
    rim = (inside == 0) & (near > 0.02)  # of thin parts, hairs and twigs, there is no inside: they stay
    cleaned = pixels.copy()
    cleaned[rim] = np.clip(colours[rim] + 0.5, 0, 255).astype(np.uint8)
    return cleaned


def make_sprite(
    cutout: Cutout, height: float, *, mirrored: bool = False, turned_deg: float = 0.0, width: float | None = None
) -> tuple[Plane, Plane]:
    """The cut-out ``height`` pixels high (and ``width`` wide; the default keeps its shape), as (linear light times alpha, alpha), float32.

    ``turned_deg`` turns it about its middle; the planes grow to hold it.
    """
    wide = max(2, round(height * cutout.aspect if width is None else width))
    high = max(2, round(height))
    pixels, alpha = cutout.pixels, cutout.alpha
    while pixels.shape[0] >= 4 * high and pixels.shape[1] >= 4 * wide:  # most of a strong reduction in bytes: four times as fast
        half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels, alpha = (np.asarray(cv2.resize(plane, half, interpolation=cv2.INTER_AREA), np.uint8) for plane in (pixels, alpha))
    opacity = alpha.astype(np.float32) * np.float32(1 / 255)
    layers = np.dstack([to_linear(pixels) * opacity[..., None], opacity])
    down = pixels.shape[0] >= high
    layers = cv2.resize(layers, (wide, high), interpolation=cv2.INTER_AREA if down else cv2.INTER_LINEAR)
    if mirrored:
        layers = cv2.flip(layers, 1)
    if turned_deg:
        matrix = cv2.getRotationMatrix2D((wide / 2, high / 2), turned_deg, 1.0)
        cosine, sine = abs(matrix[0, 0]), abs(matrix[0, 1])
        size = (int(high * sine + wide * cosine) + 3, int(high * cosine + wide * sine) + 3)
        matrix[0, 2] += size[0] / 2 - wide / 2
        matrix[1, 2] += size[1] / 2 - high / 2
        layers = cv2.warpAffine(layers, matrix, size, flags=cv2.INTER_LINEAR)
    rim = SPRITE_RIM_PX
    layers = cv2.copyMakeBorder(layers, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    layers = np.clip(layers, 0, 1, dtype=np.float32)
    return np.ascontiguousarray(layers[..., :3]), np.ascontiguousarray(layers[..., 3])


def ground_line(alpha: Plane) -> tuple[float, float]:
    """(a, b) of the line y = a + b x below the lowest points of (h, w) alpha, in its own pixels: hind feet stand higher than fore feet."""
    solid = alpha > 0.5
    rows = np.arange(alpha.shape[0], dtype=np.float32)[:, None]
    lowest = np.where(solid, rows, -1).max(axis=0)
    bottom = float(lowest.max())
    if bottom < 0:
        return float(alpha.shape[0] - 1), 0.0
    columns = np.flatnonzero(lowest >= bottom - 0.16 * alpha.shape[0])
    span = int(columns[-1] - columns[0])
    slope = 0.0
    if span > 0.35 * alpha.shape[1]:
        bins = np.minimum((columns - columns[0]) * 6 // (span + 1), 5)
        best = [columns[bins == index][np.argmax(lowest[columns[bins == index]])] for index in np.unique(bins)]
        slope = float(np.clip(np.polyfit(best, lowest[best], 1)[0], -0.2, 0.2))
    return float((lowest[columns] - slope * columns).max()), slope
