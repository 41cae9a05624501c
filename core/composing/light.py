"""Linear light: what shadows and reflections are computed in. sRGB bytes in, sRGB bytes out, and back without loss."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from core.images import Pixels

Plane = NDArray[np.float32]
"""(H, W) or (H, W, 3) float32 in linear light, 0 to 1."""

_LEVELS: Final = np.arange(256, dtype=np.float64) / 255
_TO_LINEAR: Final[Plane] = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)
_STEPS: Final = 65535  # the smallest distance of two bytes is 20 of them
_CODES: Final = np.arange(_STEPS + 1, dtype=np.float64) / _STEPS
_TO_SRGB: Final[Pixels] = np.round(255 * np.where(_CODES <= 0.0031308, _CODES * 12.92, 1.055 * _CODES ** (1 / 2.4) - 0.055)).astype(
    np.uint8
)

LUMINANCE: Final = (0.2126, 0.7152, 0.0722)
"""Weights of linear R, G and B (ITU-R BT.709)."""


def to_linear(pixels: Pixels) -> Plane:
    """sRGB bytes, uint8 of any shape, as linear light 0 to 1 of the same shape (IEC 61966-2-1)."""
    return np.asarray(cv2.LUT(pixels, _TO_LINEAR), dtype=np.float32).reshape(pixels.shape)


def to_srgb(light: Plane) -> Pixels:
    """Linear light as the nearest sRGB bytes, uint8 of the same shape; values outside 0 to 1 are clipped."""
    codes = np.clip(light * np.float32(_STEPS) + np.float32(0.5), 0, _STEPS).astype(np.uint16)
    return np.take(_TO_SRGB, codes)


def luminance(light: Plane) -> Plane:
    """(H, W) float32: the luminance of (H, W, 3) linear light."""
    return np.asarray(cv2.transform(light, np.array([LUMINANCE], np.float32)), dtype=np.float32)


def blur(plane: Plane, sigma_px: float, flat: float = 1.0) -> Plane:
    """Gaussian blur of (H, W) or (H, W, C) float32; ``flat`` is the vertical over the horizontal sigma (ground is seen foreshortened).

    A wide one is made on a smaller copy, since nothing fine is left of it.
    """
    if sigma_px < 0.2:
        return plane
    vertical = max(0.3, sigma_px * flat)
    factor = int(min(sigma_px, vertical) / 2)
    height, width = plane.shape[:2]
    if factor < 2 or min(height, width) < 4 * factor:
        return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma_px, sigmaY=vertical, borderType=cv2.BORDER_REPLICATE), dtype=np.float32)
    small = cv2.resize(plane, (-(-width // factor), -(-height // factor)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma_px / factor, sigmaY=vertical / factor, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
