"""Shadows and reflections of sprites on the ground, as planes of the picture, all in linear light.

A shadow takes a share of the light from the ground: out = ground * (1 - opacity * tint * shade), shade 0 to 1. Cast shadows of one lamp
cover one another and do not add up; contact shadows (light of the whole sky kept off) multiply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from core.composing.cutout import Sprite
from core.composing.light import Plane, blur
from core.composing.scene import Place

_PAD: Final = 48
"""Pixels around the picture in which shades are made, too, so that what comes in from outside has no edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamp:
    """The light of a picture; one for all its objects.

    Attributes:
        sunny: a sun with a sharp shadow; else an overcast sky.
        azimuth_rad: where shadows point on the ground: 0 away from the camera, pi / 2 to the right.
        length: shadow length over object height on flat ground.
        softness: growth of the penumbra: Gaussian sigma over the distance from what casts the shadow.
        cast, contact: opacities, 0 to 1.
        tint: share of the opacity that red, green and blue lose; blue least, since the sky lights shadows.
    """

    sunny: bool
    azimuth_rad: float
    length: float
    softness: float
    cast: float
    contact: float
    tint: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Shades:
    """(H, W) float32 planes, 0 (lit) to 1: ``cast`` of lamps, ``contact`` where things touch."""

    cast: Plane
    contact: Plane

    @staticmethod
    def none(size: int) -> Shades:
        """No shadow anywhere in a square picture."""
        return Shades(np.zeros((size, size), np.float32), np.zeros((size, size), np.float32))

    def with_(self, other: Shades) -> Shades:
        """Both: casts by the darker one, contacts multiplied."""
        return Shades(np.maximum(self.cast, other.cast), 1 - (1 - self.contact) * (1 - other.contact))


def draw_lamp(light: str, azimuth_deg: float | None, brightness: float, rng: np.random.Generator, *, top: bool) -> Lamp:
    """A lamp for a photo of ``light`` (sun, soft, any); ``brightness`` is its 95th percentile of luminance: at night shadows are soft."""
    sunny = light == "sun" or (light == "any" and rng.random() < 0.5)
    if light == "any" and brightness < 0.2:
        sunny = False
    away = rng.random() < 0.6
    azimuth = float(rng.uniform(-1.15, 1.15)) + (0.0 if away else math.pi)
    if top:
        azimuth = float(rng.uniform(0, 2 * math.pi))
    if azimuth_deg is not None:
        azimuth = math.radians(azimuth_deg)
    elevation = math.radians(rng.uniform(30, 62) if sunny else rng.uniform(48, 75))
    blue = float(rng.uniform(0.82, 0.95))
    return Lamp(
        sunny=sunny,
        azimuth_rad=azimuth,
        length=1 / math.tan(elevation),
        softness=float(rng.uniform(0.012, 0.035) if sunny else rng.uniform(0.07, 0.15)),
        cast=float(rng.uniform(0.5, 0.75) if sunny else rng.uniform(0.44, 0.62)),
        contact=float(rng.uniform(0.6, 0.8)),
        tint=(1.0, (1 + blue) / 2, blue),
    )


def shaded(ground: Plane, shades: Shades, lamp: Lamp) -> Plane:
    """(H, W, 3) linear light of the ground with its shadows: ground * (1 - opacity * tint * cast) * (1 - opacity * contact)."""
    contact = 1 - np.float32(lamp.contact) * shades.contact
    out = np.empty_like(ground)
    for channel, tint in enumerate(lamp.tint):
        np.multiply(ground[..., channel], (1 - np.float32(lamp.cast * tint) * shades.cast) * contact, out=out[..., channel])
    return out


def cast_matrix(lamp: Lamp, place: Place, ground: tuple[float, float]) -> NDArray[np.float64]:
    """2 x 3 matrix from a point of an upright object to its shadow on the ground, both in picture pixels.

    A point z above the line y = a + b x has its shadow z * length * sin(azimuth) to the right and z * length * cos(azimuth) * pitch up.
    """
    a, b = ground
    side = lamp.length * math.sin(lamp.azimuth_rad)
    up = rise(lamp, place)
    return np.array([[1 + side * b, -side, side * a], [(1 - up) * b, up, (1 - up) * a]])


def rise(lamp: Lamp, place: Place) -> float:
    """How far up in the picture (down if negative) a shadow goes, over the object's height; never so flat that nothing is seen."""
    up = lamp.length * math.cos(lamp.azimuth_rad) * place.pitch
    return math.copysign(max(abs(up), 0.11), up)


def standing_shades(sprite: Sprite, place: Place, lamp: Lamp, size: int, altitude: float) -> Shades:
    """Shades of an upright object: its outline laid on the ground, and the dark line where it touches it.

    ``altitude`` in picture pixels lifts the object: the shadow is apart from it and softer, and nothing touches.
    """
    shades = Shades.none(size)
    a, b = sprite.ground
    ground = (a + altitude, b)
    up = rise(lamp, place)
    squeeze = max(2, math.ceil(sprite.height * min(1.0, 1.2 * abs(up))))
    outline = np.asarray(cv2.resize(sprite.alpha, (sprite.width, squeeze), interpolation=cv2.INTER_AREA), np.float32)
    to_picture = np.array([[1.0, 0, sprite.x], [0, sprite.height / squeeze, sprite.y + 0.5 * (sprite.height / squeeze - 1)], [0, 0, 1]])
    matrix = cast_matrix(lamp, place, ground) @ to_picture
    widest = lamp.softness * (sprite.height + altitude) + 1
    flat = float(np.clip(1.6 * place.pitch, 0.25, 1))
    found = _warped(outline, matrix, size, 3 * widest)
    if found is not None:
        plane, left, top = found
        rows = np.arange(top, top + plane.shape[0], dtype=np.float32)[:, None]
        columns = np.arange(left, left + plane.shape[1], dtype=np.float32)[None, :]
        distance = np.clip((ground[0] + b * columns - rows) / (up * (sprite.height + altitude)), 0, 1).astype(np.float32)
        _put(shades.cast, _penumbra(plane, distance, widest, flat) * (1 - np.float32(0.3) * distance), left, top)
    if not altitude:
        _touch(shades.contact, sprite, place, lamp)
    return shades


def _penumbra(plane: Plane, distance: Plane, widest: float, flat: float) -> Plane:
    """The shade blurred the more the farther it is from its foot: three blurs, mixed by the distance 0 to 1."""
    near, middle, far = (blur(plane, sigma, flat) for sigma in (max(0.6, 0.06 * widest), 0.5 * widest, widest))
    first = np.clip(2 * distance, 0, 1)
    second = np.clip(2 * distance - 1, 0, 1)
    return near + (middle - near) * first + (far - middle) * second


def _touch(contact: Plane, sprite: Sprite, place: Place, lamp: Lamp) -> None:
    """The line of contact: below each column whose lowest point is near the ground a short dark stroke, narrow and wide."""
    high = sprite.height
    solid = sprite.alpha > 0.5
    rows = np.arange(high, dtype=np.float32)[:, None]
    lowest = np.where(solid, rows, -1e6).max(axis=0)
    a, b = sprite.ground
    gap = a + b * (np.arange(sprite.width, dtype=np.float32) + sprite.x) - (lowest + sprite.y)
    weight = np.clip(1 - gap / max(2.0, 0.05 * high), 0, 1).astype(np.float32)
    reach = max(1.2, 0.012 * min(high, 2 * sprite.width))
    wide = max(3.0, 0.05 * min(high, 2 * sprite.width)) * (1.0 if lamp.sunny else 1.5)
    pad = math.ceil(3 * wide)
    top = max(0, int(np.where(weight > 0, lowest, high).min() - 4 * reach))
    band = np.arange(top, high, dtype=np.float32)[:, None] - lowest[None, :]
    stroke = np.where((band > -3 * reach) & (band <= reach), weight[None, :], 0).astype(np.float32)
    stroke = np.asarray(cv2.copyMakeBorder(stroke, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0), np.float32)
    flat = float(np.clip(2.2 * place.pitch, 0.3, 0.7))
    tight = cv2.GaussianBlur(stroke, (0, 0), reach, sigmaY=max(0.5, reach * 0.8))
    loose = cv2.GaussianBlur(stroke, (0, 0), wide, sigmaY=wide * flat)
    loose = loose * np.float32(0.7 / max(0.35, float(loose.max())))
    _put(contact, np.clip(np.maximum(tight, 1.3 * loose), 0, 1), sprite.x - pad, sprite.y + top - pad)


def lying_shades(sprite: Sprite, lamp: Lamp, size: int, thickness: float) -> Shades:
    """Shades of something ``thickness`` pixels high that lies on ground seen from above: swept along the light, and dark at its rim."""
    shades = Shades.none(size)
    reach = thickness * min(lamp.length, 1.6)
    dx, dy = reach * math.sin(lamp.azimuth_rad), -reach * math.cos(lamp.azimuth_rad)
    widest = max(1.0, (3 * lamp.softness + 0.08) * reach)
    pad = math.ceil(reach + 3 * widest)
    alpha = np.asarray(cv2.copyMakeBorder(sprite.alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0), np.float32)
    height, width = alpha.shape
    swept = alpha
    for step in (0.33, 0.66, 1.0):
        moved = cv2.warpAffine(alpha, np.array([[1, 0, dx * step], [0, 1, dy * step]]), (width, height))
        swept = np.maximum(swept, np.asarray(moved, np.float32))
    _put(shades.cast, np.clip(blur(swept, widest), 0, 1), sprite.x - pad, sprite.y - pad)
    rim = np.clip(1.2 * blur(alpha, max(1.0, 0.12 * thickness)), 0, 1)
    _put(shades.contact, rim, sprite.x - pad, sprite.y - pad)
    return shades


def reflection(sprite: Sprite, strength: float, size: int) -> tuple[Plane, Plane]:
    """The mirror image below the ground line, fading with the distance: ((H, W, 3) light times alpha, (H, W) alpha), both float32."""
    a, b = sprite.ground
    light, alpha = np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32)
    layers = np.dstack([sprite.light, sprite.alpha])
    matrix = np.array([[1.0, 0, 0], [2 * b, -1, 2 * a]]) @ np.array([[1.0, 0, sprite.x], [0, 1, sprite.y], [0, 0, 1]])
    found = _warped(layers, matrix, size, 6)
    if found is None:
        return light, alpha
    plane, left, top = found
    plane = blur(plane, max(0.8, 0.008 * sprite.height))
    rows = np.arange(top, top + plane.shape[0], dtype=np.float32)[:, None]
    columns = np.arange(left, left + plane.shape[1], dtype=np.float32)[None, :]
    fade = np.clip(1 - (rows - a - b * columns) / (0.75 * sprite.height), 0, 1) * np.float32(strength)
    plane = plane * fade[..., None].astype(np.float32)
    _put(light, plane[..., :3], left, top)
    _put(alpha, plane[..., 3], left, top)
    return light, alpha


def _warped(plane: Plane, matrix: NDArray[np.float64], size: int, margin: float) -> tuple[Plane, int, int] | None:
    """``plane`` under ``matrix`` with ``margin`` around it, and where its corner is; None where nothing of it is in or near the picture."""
    height, width = plane.shape[:2]
    corners = matrix @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]], np.float64)
    limit = (-_PAD, size + _PAD)
    left, right = (int(np.clip(edge, *limit)) for edge in (corners[0].min() - margin, corners[0].max() + margin + 1))
    top, bottom = (int(np.clip(edge, *limit)) for edge in (corners[1].min() - margin, corners[1].max() + margin + 1))
    if right - left < 2 or bottom - top < 2:
        return None
    shifted = matrix.copy()
    shifted[:, 2] -= (left, top)
    return np.asarray(cv2.warpAffine(plane, shifted, (right - left, bottom - top), flags=cv2.INTER_LINEAR), np.float32), left, top


def _put(picture: Plane, plane: Plane, left: int, top: int) -> None:
    """Copy what of ``plane`` lies in ``picture``."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + plane.shape[1], width), min(top + plane.shape[0], height)
    if x0 < x1 and y0 < y1:
        picture[y0:y1, x0:x1] = plane[y0 - top : y1 - top, x0 - left : x1 - left]
