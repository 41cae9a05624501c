"""Fidelity: PSNR and SSIM of an erasure against the clean plate, of the whole picture or of a region.

PSNR is taken per picture and then averaged over pictures; a region's squared error is divided by the region's own pixels, never by the
picture's, which would add decibels for every pixel that is not looked at. The output is brought to the truth's size, the truth never to
the output's.

Legend for shapes: H W sides of the truth in pixels.
"""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import ItemError, UsageError
from core.images import Pixels
from core.masks import ASPECT_TOLERANCE_PERCENT

CEILING_DB: Final = 100.0
"""PSNR of equal pictures, and the most that any pair gets: an infinite one would be every mean's value."""
WINDOW: Final = 11
SIGMA: Final = 1.5
_C1: Final = 0.01**2
_C2: Final = 0.03**2


def resize_to(pixels: Pixels, height: int, width: int, noun: str) -> Pixels:
    """The picture (h, w, 3) uint8 at the truth's size (``height``, ``width``, 3): by area when it shrinks, cubically when it grows.

    Raises:
        ItemError: stage ``evaluate``, code ``size_mismatch``: the shapes differ by more than 2 %, so that it is another cut of the photo.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    mine, its = pixels.shape[1] * height, pixels.shape[0] * width
    if abs(mine - its) * 100 > its * ASPECT_TOLERANCE_PERCENT:
        raise ItemError(
            "evaluate",
            "size_mismatch",
            f"the {noun} is {pixels.shape[1]} x {pixels.shape[0]} and the target {width} x {height} pixels; allowed are shapes within "
            f"{ASPECT_TOLERANCE_PERCENT} %: give pictures of the same cut",
        )
    rule = cv2.INTER_AREA if pixels.shape[0] * pixels.shape[1] > height * width else cv2.INTER_CUBIC
    return cv2.resize(pixels, (width, height), interpolation=rule).astype(np.uint8, copy=False)


def squared_error(output: Pixels, truth: Pixels) -> NDArray[np.float64]:
    """(H, W) float64 in [0, 1]: per pixel, the mean over RGB of the squared difference of (H, W, 3) uint8 pictures read as [0, 1].

    Raises:
        UsageError: the pictures are not (H, W, 3) uint8 of one size.
    """
    check_pair(output, truth)
    difference = (output.astype(np.float64) - truth) / 255.0
    return np.asarray(np.square(difference).mean(axis=2))


def psnr(output: Pixels, truth: Pixels) -> float:
    """PSNR in dB over the whole picture, at most ``CEILING_DB``; (H, W, 3) uint8. Raises UsageError as ``squared_error``."""
    return decibels(float(squared_error(output, truth).mean()))


def region_psnr(output: Pixels, truth: Pixels, region: Pixels | NDArray[np.bool_]) -> float | None:
    """PSNR in dB over the pixels where ``region`` (H, W) is not zero, at most ``CEILING_DB``; None where there are none.

    Raises:
        UsageError: as ``squared_error``, or the region has another size.
    """
    return region_decibels(squared_error(output, truth), region)


def region_decibels(error: NDArray[np.float64], region: Pixels | NDArray[np.bool_]) -> float | None:
    """``region_psnr`` from what ``squared_error`` gave, for several regions of one pair."""
    mean = region_mean(error, region)
    return None if mean is None else decibels(mean)


def decibels(mean_squared_error: float) -> float:
    """10 log10(1 / error) for an error in [0, 1], at most ``CEILING_DB``."""
    return min(CEILING_DB, -10.0 * math.log10(mean_squared_error)) if mean_squared_error > 0 else CEILING_DB


def ssim_map(output: Pixels, truth: Pixels) -> NDArray[np.float64]:
    """(H, W) float64 in [-1, 1]: SSIM (Wang et al. 2004, equation 13) at every pixel, mean over RGB.

    Gaussian window of 11 pixels and sigma 1.5, data range 1, population covariance; the picture is mirrored at its edges, so that every
    pixel counts. Wang's mean over whole windows is that of the map without 5 pixels at each edge.

    Raises:
        UsageError: as ``squared_error``.
    """
    check_pair(output, truth)
    x, y = output.astype(np.float64) / 255.0, truth.astype(np.float64) / 255.0
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x, variance_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    below = (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    return np.asarray((above / below).mean(axis=2))


def ssim(output: Pixels, truth: Pixels) -> float:
    """The mean of ``ssim_map``. Raises UsageError as ``squared_error``."""
    return float(ssim_map(output, truth).mean())


def region_mean(values: NDArray[np.float64], region: Pixels | NDArray[np.bool_]) -> float | None:
    """The mean of a map (H, W), as ``ssim_map`` gives it, over the pixels where ``region`` (H, W) is not zero; None where there are none.

    Raises:
        UsageError: the region is not of the picture's size.
    """
    _check_region(region, values.shape)
    inside = values[region > 0]
    return float(inside.mean()) if inside.size else None


def luminance(pixels: Pixels) -> NDArray[np.float32]:
    """(H, W) float32 in [0, 255]: Rec. 601 luma of (H, W, 3) uint8 RGB."""
    return cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2GRAY).astype(np.float32, copy=False)


def check_pair(output: Pixels, truth: Pixels) -> None:
    """Raises UsageError where the pictures are not (H, W, 3) uint8 of one size."""
    for name, pixels in (("output", output), ("truth", truth)):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise UsageError(f"the {name} is {pixels.shape} {pixels.dtype}; a picture to compare is (H, W, 3) uint8")
    if output.shape != truth.shape:
        raise UsageError(f"the output is {output.shape[:2]} and the truth {truth.shape[:2]} pixels; bring it to that size with resize_to")


def _windowed(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cv2.GaussianBlur(picture, (WINDOW, WINDOW), SIGMA, borderType=cv2.BORDER_REFLECT_101), np.float64)


def _check_region(region: np.ndarray, shape: tuple[int, ...]) -> None:
    if region.shape != shape:
        raise UsageError(f"the region is {region.shape} and the picture {shape} pixels; they must be equal")
