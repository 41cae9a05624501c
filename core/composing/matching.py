"""Making an object look taken by the photo's camera: colour, exposure and sharpness, each in a mild share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np

from core.composing.cutout import Sprite
from core.composing.light import LUMINANCE, Plane, blur, luminance

_EXPOSURE_SHARE: Final = 0.25
_COLOUR_SHARE: Final = 0.2
_CONTRAST_SHARE: Final = 0.15
_WHITE: Final = 0.6
"""95th percentile of luminance of a well exposed photo."""
_BLURS: Final = (0.0, 0.45, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What an object went through: factors of red, green and blue, contrast about its mean, and sigma of the blur in pixels."""

    gain: tuple[float, float, float]
    contrast: float
    blur_px: float


def white_level(light: Plane) -> float:
    """95th percentile of the luminance of (H, W, 3) linear light, on a sparse grid."""
    return float(np.percentile(luminance(np.ascontiguousarray(light[::4, ::4])), 95))


def match_to(sprite: Sprite, ground: Plane, *, binary: bool, white: float, only_ground: bool = False) -> tuple[Sprite, Match]:
    """The sprite with the colours, exposure and sharpness of its place in ``ground`` (H, W, 3 linear light), and what was done.

    The statistics are Reinhard's (mean and deviation), of the object and of the ground around it, each taken over by a share only: a black
    dog stays black. ``white`` is the photo's white level: at night objects are dark. ``only_ground`` says that nothing but ground is to be
    seen, so that a dark picture may be of dark ground. ``binary`` says that the cut-out's alpha was hard.
    """
    mass = max(float(sprite.alpha.sum()), 1.0)
    own = sprite.light.reshape(-1, 3).sum(axis=0) / mass + 0.01
    near = _around(sprite, ground)
    there = near.reshape(-1, 3).mean(axis=0) + 0.01
    weights = np.array(LUMINANCE, np.float32)
    own_y, there_y = float(own @ weights), float(there @ weights)
    exposure = float(np.clip((there_y / own_y) ** _EXPOSURE_SHARE, 0.65, 1.3))
    white = (white * white_level(near)) ** 0.5  # at dusk the sky is bright, and what stands before it is not
    exposure = float(np.clip(exposure * min(1.0, (white / _WHITE) ** 0.6), 0.6 if only_ground else 0.25, 1.3))
    colour = np.clip((there / there_y / (own / own_y)) ** _COLOUR_SHARE, 0.85, 1.18)
    gain = exposure * colour
    spread = luminance(sprite.light)
    deviation = float(np.sqrt(max(float((spread * spread).sum()) / mass - (float(spread.sum()) / mass) ** 2, 1e-6)))
    contrast = float(np.clip((float(luminance(near).std()) / deviation / exposure + 0.05) ** _CONTRAST_SHARE, 0.85, 1.08))
    mean = (own - 0.01).astype(np.float32)
    middle = mean * sprite.alpha[..., None]
    light = ((sprite.light - middle) * np.float32(contrast) + middle) * gain.astype(np.float32)
    light = np.clip(light, 0, sprite.alpha[..., None])
    sigma = max(_matching_blur(light, sprite.alpha, near), 0.55 if binary else 0.0)
    matched = replace(sprite, light=blur(light, sigma), alpha=blur(sprite.alpha, sigma))
    return matched, Match(gain=(float(gain[0]), float(gain[1]), float(gain[2])), contrast=contrast, blur_px=sigma)


def _around(sprite: Sprite, ground: Plane) -> Plane:
    """The ground around the sprite, its lower part first, as that is as far away as the object; 320 x 256 pixels at most."""
    size = ground.shape[0]
    reach = max(24, max(sprite.height, sprite.width) // 2)
    bottom, middle = min(size, sprite.y + sprite.height + reach // 2), sprite.x + sprite.width // 2
    half = min(reach + sprite.width // 2, 160)
    part = ground[max(0, bottom - min(sprite.height + reach, 256)) : bottom, max(0, middle - half) : max(0, middle + half)]
    return np.ascontiguousarray(part) if min(part.shape[:2]) >= 8 else ground


def sharpness(grey: Plane) -> float:
    """Energy of the finest details over that of details twice as large; about 1 in a sharp photo, under 0.5 in a blurred one."""
    fine = cv2.GaussianBlur(grey, (0, 0), 0.8)
    coarse = cv2.GaussianBlur(grey, (0, 0), 1.6)
    return float(np.abs(grey - fine).mean() / (np.abs(fine - coarse).mean() + 1e-4))


def _matching_blur(light: Plane, alpha: Plane, near: Plane) -> float:
    """Sigma that makes the object as sharp as the ground; 0 where it is not sharper."""
    y0, x0 = (max(0, length // 2 - 96) for length in alpha.shape)
    part = np.sqrt(np.ascontiguousarray(luminance(np.ascontiguousarray(light[y0 : y0 + 192, x0 : x0 + 192]))))
    wanted = sharpness(np.sqrt(luminance(near))) * 1.1
    for sigma in _BLURS:
        if sharpness(blur(part, sigma)) <= wanted:
            return sigma
    return _BLURS[-1]
