"""Bringing the photo without the object onto the photo with it: the camera's small shift and turn, and its exposure.

The shift is found by ECC (Evangelidis and Psarakis, PAMI 2008) from a start by phase correlation, both on what is outside the object;
exposure is a gain for each channel in linear light. What is left over is noise, or a reason to refuse the pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from core.composing.light import Plane, blur, to_linear
from core.errors import ItemError, UsageError
from core.images import Pixels
from core.masks import dilate

Flags = NDArray[np.bool_]

LARGEST_SHIFT: Final = 0.006
LEAST_SHIFT_ALLOWED_PX: Final = 3.0
"""A corner of the picture may move by this share of the longer side, or by this many pixels where that is more."""
LARGEST_GAIN: Final = 1.6
LARGEST_RESIDUAL: Final = 0.05
"""Of the background in square roots of linear light: 13 of 255 levels in mid grey, more than the noise of any usable photo."""
_WORKING_SIDE: Final = 640
NEGLIGIBLE_PX: Final = 0.1
_GROWN: Final = 0.02
_LEAST_BACKGROUND: Final = 0.05
_MAD: Final = 1.4826


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """A pair brought together.

    Attributes:
        before: (H, W, 3) float32 linear light, the photo with the object, as it was.
        after: (H, W, 3) float32 linear light, 0 to 1: the photo without it, in the place and the exposure of ``before``.
        known: (H, W) bool, where ``after`` shows what ``before`` shows; False on a rim that the shift brought in.
        shift_px: how far the picture's corners moved at most.
        gain: by which R, G and B of the photo without the object were multiplied.
        residual: robust standard deviation of the difference of the background, in square roots of linear light.
    """

    before: Plane
    after: Plane
    known: Flags
    shift_px: float
    gain: tuple[float, float, float]
    residual: float

    @property
    def resampled(self) -> bool:
        """Whether ``after`` was moved at all: a shift that nobody sees is left, since resampling blurs."""
        return self.shift_px > NEGLIGIBLE_PX


def check_pair(before: Pixels, after: Pixels, mask: Pixels) -> None:
    """Raises UsageError unless two (H, W, 3) uint8 pictures and an (H, W) uint8 mask are of one size."""
    if before.dtype != np.uint8 or before.ndim != 3 or before.shape[2] != 3:
        raise UsageError(f"the photo with the object is (H, W, 3) uint8, got {before.shape} {before.dtype}")
    if after.shape != before.shape or after.dtype != np.uint8:
        raise UsageError(f"the photo without the object is {before.shape} uint8 like the one with it, got {after.shape} {after.dtype}")
    if mask.shape != before.shape[:2] or mask.dtype != np.uint8:
        raise UsageError(f"the object mask is {before.shape[:2]} uint8 like its photo, got {mask.shape} {mask.dtype}")


def background(mask: Pixels) -> Flags:
    """(H, W) bool: what lies outside the object mask grown by 2 % of the longer side.

    Raises:
        ItemError: code ``no_background``: under 5 % of the picture are left to compare.
    """
    outside = dilate(mask, 2 + round(_GROWN * max(mask.shape))) == 0
    if outside.mean() < _LEAST_BACKGROUND:
        raise ItemError(
            "effects",
            "no_background",
            f"{outside.mean():.0%} of the picture are clear of the object; {_LEAST_BACKGROUND:.0%} are needed to compare the pair: "
            "use a photo that shows more of the place",
        )
    return outside


def register(before: Pixels, after: Pixels, object_mask: Pixels) -> Registered:
    """Bring ``after`` onto ``before``.

    Args:
        before: (H, W, 3) uint8 sRGB, with the object.
        after: the same size, without it.
        object_mask: (H, W) uint8, non-zero = object.

    Raises:
        ItemError: stage ``effects``; code ``no_background``, ``background_moved`` (the camera moved too far, or the backgrounds do not
            fit each other anywhere near) or ``light_changed`` (one is much brighter or of another tint).
        UsageError: arrays of another shape or dtype.
    """
    check_pair(before, after, object_mask)
    outside = background(object_mask)
    matrix = _camera(before, after, outside)
    shift = _corner_shift(matrix, before.shape[1], before.shape[0])
    allowed = max(LEAST_SHIFT_ALLOWED_PX, LARGEST_SHIFT * max(before.shape[:2]))
    if shift > allowed:
        raise ItemError(
            "effects",
            "background_moved",
            f"the background moved by {shift:.1f} pixels; allowed are {allowed:.1f}: take both photos from a tripod, or align them first",
        )
    light, moved, known = to_linear(before), to_linear(after), np.ones(outside.shape, np.bool_)
    if shift > NEGLIGIBLE_PX:
        moved, known = _warped(moved, matrix)
    gain = _exposure(light, moved, outside & known)
    if max(gain) > LARGEST_GAIN or min(gain) < 1 / LARGEST_GAIN:
        raise ItemError(
            "effects",
            "light_changed",
            f"the photo without the object has to be multiplied by {', '.join(f'{value:.2f}' for value in gain)} (R, G, B); allowed are "
            f"{1 / LARGEST_GAIN:.2f} to {LARGEST_GAIN:.2f}: take both with one exposure in one light",
        )
    matched = np.minimum(moved * np.asarray(gain, np.float32), np.float32(1))
    # what is overexposed in the photo without the object may be anything from there up
    unknown = (moved >= 0.98) & (light > matched)
    matched = np.where(unknown, light, matched)
    residual = robust_deviation((np.sqrt(light) - np.sqrt(matched)).mean(axis=2)[outside & known])
    if residual > LARGEST_RESIDUAL:
        raise ItemError(
            "effects",
            "background_moved",
            f"the backgrounds differ by {255 * residual:.0f} of 255 levels; allowed are {255 * LARGEST_RESIDUAL:.0f}: "
            "the pair must show one place, with nothing else that moves",
        )
    return Registered(light, matched, known, shift, gain, residual)


def robust_deviation(values: NDArray[np.float32]) -> float:
    """The standard deviation that the median of the absolute values stands for; 0 for none."""
    return _MAD * float(np.median(np.abs(values))) if values.size else 0.0


def _camera(before: Pixels, after: Pixels, outside: Flags) -> NDArray[np.float32]:
    """(2, 3) float32: where a pixel of ``after`` is in ``before``; the identity where there is nothing to hold on to."""
    height, width = outside.shape
    scale = min(1.0, _WORKING_SIDE / max(height, width))
    size = max(8, round(width * scale)), max(8, round(height * scale))
    one, other = (_grey(pixels, size) for pixels in (before, after))
    clear = np.asarray(cv2.resize(outside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST), np.uint8)
    identity = np.eye(2, 3, dtype=np.float32)
    start = identity.copy()
    window = cv2.createHanningWindow(size, cv2.CV_32F) * cv2.GaussianBlur(clear.astype(np.float32), (0, 0), 3)
    fine = [grey - cv2.GaussianBlur(grey, (0, 0), 4) for grey in (one, other)]
    start[:, 2] = cv2.phaseCorrelate(fine[1] * window, fine[0] * window)[0]
    best = min((identity, start), key=lambda matrix: _misfit(one, other, clear, matrix))
    found = _ecc(one, other, clear, best)
    # once more without what differs: shadows would pull the picture along
    difference = np.abs(one - _moved(other, found))
    differing = difference > 6 * max(_MAD * float(np.median(difference[clear > 0])), 1 / 255)
    alike = cv2.erode(np.where(differing, 0, 1).astype(np.uint8), np.ones((5, 5), np.uint8))
    still = np.asarray(clear * alike, np.uint8)
    if still.mean() > _LEAST_BACKGROUND:
        found = _ecc(one, other, still, found)
    if _misfit(one, other, clear, found) >= _misfit(one, other, clear, identity):
        found = identity
    matrix = found.copy()
    matrix[0, 2] *= width / size[0]
    matrix[1, 2] *= height / size[1]
    return matrix


def _grey(pixels: Pixels, size: tuple[int, int]) -> Plane:
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32) / np.float32(255)


def _ecc(one: Plane, other: Plane, clear: Pixels, start: NDArray[np.float32]) -> NDArray[np.float32]:
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-5)
    try:
        _, found = cv2.findTransformECC(other, one, start.copy(), cv2.MOTION_EUCLIDEAN, criteria, clear, 5)
    except cv2.error:  # it does not converge on flat ground, where there is also nothing to align
        return start
    return np.asarray(found, np.float32) if np.isfinite(found).all() else start


def _moved(grey: Plane, matrix: NDArray[np.float32]) -> Plane:
    height, width = grey.shape
    return np.asarray(cv2.warpAffine(grey, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE), np.float32)


def _misfit(one: Plane, other: Plane, clear: Pixels, matrix: NDArray[np.float32]) -> float:
    moved = _moved(other, matrix)[clear > 0]
    seen = one[clear > 0]
    return float(np.mean(np.abs(seen - np.median(seen) - moved + np.median(moved))))


def _corner_shift(matrix: NDArray[np.float32], width: int, height: int) -> float:
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float32)
    return float(np.linalg.norm(corners @ matrix.T - corners[:, :2], axis=1).max())


def _warped(light: Plane, matrix: NDArray[np.float32]) -> tuple[Plane, Flags]:
    height, width = light.shape[:2]
    # in square roots, where the filter's overshoot at edges is small
    root = cv2.warpAffine(np.sqrt(light), matrix, (width, height), flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
    inside = cv2.warpAffine(np.ones((height, width), np.float32), matrix, (width, height), flags=cv2.INTER_LINEAR)
    # the filter reaches 4 pixels
    known = cv2.erode((inside > 0.999).astype(np.uint8), np.ones((9, 9), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1)
    return np.square(np.clip(root, 0, 1)).astype(np.float32), known > 0


def _exposure(before: Plane, after: Plane, where: Flags) -> tuple[float, float, float]:
    """The gain of each channel: the median of the ratios, and again of those near it; 1 where nothing is well exposed."""
    one, other = blur(before, 2.0), blur(after, 2.0)
    gains = []
    for channel in range(3):
        usable = where & (after[..., channel] < 0.95) & (before[..., channel] < 0.95)
        usable &= (other[..., channel] > 0.01) & (one[..., channel] > 0.001)
        if usable.sum() < 64:
            gains.append(1.0)
            continue
        ratios = np.log(one[..., channel][usable] / other[..., channel][usable])
        centre = float(np.median(ratios))
        for _ in range(3):
            near = np.abs(ratios - centre) <= 3 * max(_MAD * float(np.median(np.abs(ratios - centre))), 0.005)
            centre = float(np.median(ratios[near]))
        gains.append(float(np.exp(centre)))
    return gains[0], gains[1], gains[2]
