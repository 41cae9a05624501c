"""Which part of a photo an object changes: itself (M_o), its shadow and its reflection (M_e), from a pair with and without it.

After OBER (ObjectClear, arXiv 2505.22636, section 3), which takes the thresholded difference of such a pair and says no more of how. Here
the difference is measured in units of its own noise, at two scales, with two thresholds; and a change that is not the object's is a
reason to refuse the pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from core.composing.light import Plane, blur, luminance
from core.effects.registration import Flags, Registered, background, register, robust_deviation
from core.errors import ItemError, UsageError
from core.images import Pixels
from core.masks import dilate

REFERENCE_SIDE: Final = 512
"""Lengths are given for a longer side of this many pixels and grow with the picture."""
FINE_PX: Final = 1.0
COARSE_PX: Final = 4.0
TOUCH_PX: Final = 6.0
LEAST_NOISE: Final = 1.2 / 255
"""Below this, in square roots of linear light, differences are rounding."""
_SLACK_PX: Final = 0.15
"""What a resampled picture may be off, besides what is seen in most places."""
_GRADIENT_BINS: Final = 12
_SMALL: Final = 1e-4
_LARGE: Final = 5e-4
"""Shares of the picture: smaller parts are dropped; detached ones are the object's or a fault from the second on."""
_LARGEST_DROPPED: Final = 0.01
_LARGEST_DETACHED: Final = 0.15
_LARGEST_REGION: Final = 0.6
_SMOOTH: Final = 0.35
_ONE_SIDED: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSettings:
    """Thresholds in units of the local noise: a part needs ``high`` somewhere and reaches as far as ``low``."""

    low: float = 3.0
    high: float = 6.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise UsageError(f"thresholds are low {self.low} and high {self.high}; allowed are 0 < low <= high")


@dataclass(frozen=True, slots=True, eq=False)
class EffectRegion:
    """What belongs to the object.

    Attributes:
        whole: (H, W) uint8, 255 on the object and all that it changes (M_fg); holds the object mask.
        effect: (H, W) uint8, 255 on ``whole`` without the object mask (M_e).
        pair: the registered pair.
    """

    whole: Pixels
    effect: Pixels
    pair: Registered


def effect_region(before: Pixels, after: Pixels, object_mask: Pixels, settings: RegionSettings | None = None) -> EffectRegion:
    """The object with its effects.

    Args:
        before: (H, W, 3) uint8 sRGB, with the object.
        after: the same size, without it; a shift of a few pixels and another exposure are taken out first.
        object_mask: (H, W) uint8, non-zero = object.

    Raises:
        ItemError: as ``register``; ``background_moved`` also where something else changed, and ``light_changed`` where the light did in
            part of the picture.
        UsageError: arrays of another shape or dtype.
    """
    settings = settings or RegionSettings()
    pair = register(before, after, object_mask)
    outside = background(object_mask) & pair.known
    inside = object_mask > 0
    unit = max(1.0, max(object_mask.shape) / REFERENCE_SIDE)
    difference = np.where((pair.known & ~inside)[..., None], np.sqrt(pair.before) - np.sqrt(pair.after), np.float32(0))
    fine = _fine_scores(difference, pair, outside, FINE_PX * unit)
    found = _parts(fine, settings, int(_SMALL * inside.size))
    coarse = _coarse_scores(difference, pair.known & ~inside & ~found, outside, COARSE_PX * unit)
    found |= _parts(coarse, settings, int(_LARGE * inside.size))
    found &= ~inside
    kept = _kept(found, found & (np.maximum(fine, coarse) > settings.high), object_mask, pair, unit)
    largest = int(_LARGE * inside.size)
    seen_through = _filled(inside, largest) & ~inside & ~kept
    whole = np.where(_filled(kept | inside, largest) & ~seen_through, 255, 0).astype(np.uint8)
    return EffectRegion(whole, np.where(inside, 0, whole).astype(np.uint8), pair)


def _fine_scores(difference: Plane, pair: Registered, outside: Flags, sigma_px: float) -> Plane:
    """(H, W) float32: the largest difference of a channel, or of their mean, in units of its noise at places of this much detail."""
    detail = _detail(pair, sigma_px)
    smooth = blur(difference, sigma_px)
    views = [smooth.mean(axis=2), *(smooth[..., channel] for channel in range(3))]
    slack = np.float32(_SLACK_PX if pair.resampled else 0) * detail
    return np.asarray(np.max([np.abs(view) / np.hypot(_noise(view, detail, outside), slack) for view in views], axis=0), np.float32)


def _detail(pair: Registered, sigma_px: float) -> Plane:
    """(H, W) float32: how steep the picture is there, a pixel: what is left of a shift, and JPEG's errors, go with it."""
    grey = blur(np.sqrt(luminance(pair.after)), sigma_px)
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8)
    return np.asarray(cv2.dilate(cv2.magnitude(across, down), np.ones((3, 3), np.uint8)), np.float32)


def _noise(view: Plane, detail: Plane, outside: Flags) -> Plane:
    """(H, W) float32: the noise of ``view`` as a growing function of ``detail``, learned on the background."""
    seen, values = detail[outside], view[outside]
    edges = np.unique(np.quantile(seen, np.linspace(0, 1, _GRADIENT_BINS + 1)))
    if len(edges) < 3:
        return np.full(view.shape, max(robust_deviation(values), LEAST_NOISE), np.float32)
    places = np.clip(np.searchsorted(edges, seen, side="right") - 1, 0, len(edges) - 2)
    measured = [robust_deviation(values[places == place]) for place in range(len(edges) - 1)]
    levels = np.maximum(np.maximum.accumulate(measured), LEAST_NOISE)
    return np.interp(detail, (edges[:-1] + edges[1:]) / 2, levels).astype(np.float32)


def _coarse_scores(difference: Plane, usable: Flags, outside: Flags, sigma_px: float) -> Plane:
    """As ``_fine_scores`` for faint wide shadows: a mean over more pixels, without those that were found already (they would spread)."""
    weight = usable.astype(np.float32)
    share = blur(weight, sigma_px)
    mean = difference.mean(axis=2, dtype=np.float32)
    wide: Plane = np.asarray(blur(mean * weight, sigma_px) / np.maximum(share, np.float32(0.05)), np.float32)
    noise = max(robust_deviation(wide[outside & usable]), LEAST_NOISE / 2)
    return np.where(usable & (share > 0.3), np.abs(wide) / np.float32(noise), np.float32(0)).astype(np.float32)


def _parts(scores: Plane, settings: RegionSettings, least: int) -> Flags:
    """Hysteresis: parts above ``low`` of at least ``least`` pixels that hold one above ``high``."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((scores > settings.low).astype(np.uint8), connectivity=8)
    keep = np.zeros(len(stats), np.bool_)
    keep[np.unique(labels[scores > settings.high])] = True
    keep &= stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    return np.asarray(keep[labels], np.bool_)


def _kept(found: Flags, strong: Flags, object_mask: Pixels, pair: Registered, unit: float) -> Flags:
    """The parts that are the object's: those that touch it, and large ones that look like its shadow. ``strong`` is above ``high``."""
    near = dilate(object_mask, round(TOUCH_PX * unit)) > 0
    # parts a hair apart are one
    joined = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    _, labels, stats, centres = cv2.connectedComponentsWithStats(joined, connectivity=8)
    touching = np.zeros(len(stats), np.bool_)
    touching[np.unique(labels[near & (joined > 0)])] = True
    touching[0] = False
    kept, dropped, detached, background_size = touching[labels], 0, 0, int((object_mask == 0).sum())
    for label in np.flatnonzero(~touching):
        area = int(stats[label, cv2.CC_STAT_AREA])
        if label == 0:
            continue
        part = labels == label
        if int((part & strong).sum()) < _LARGE * found.size:
            dropped += area
            continue
        smooth, darker = _like_shading(part & found, pair, unit)
        if not smooth or not darker:
            x, y = centres[label]
            code = "light_changed" if smooth else "background_moved"
            what = "is lit differently" if smooth else "is not the same"
            raise ItemError(
                "effects",
                code,
                f"a part of {area:,} pixels around ({x:.0f}, {y:.0f}), away from the object, {what} in the two photos; only the object and "
                "what it casts may differ: mask what else was taken away, or leave the pair out",
            )
        kept |= part
        detached += area
    if dropped > _LARGEST_DROPPED * background_size:
        raise ItemError(
            "effects",
            "background_moved",
            f"small parts that differ make up {dropped / background_size:.1%} of the background; allowed are {_LARGEST_DROPPED:.0%}: "
            "wind in leaves or water; take the pair in still air, or leave it out",
        )
    covered = int((kept & (object_mask == 0)).sum())
    for share, limit in ((detached / background_size, _LARGEST_DETACHED), (covered / background_size, _LARGEST_REGION)):
        if share > limit:
            raise ItemError(
                "effects",
                "light_changed",
                f"{share:.0%} of the background differ; allowed are {limit:.0%}: the light changed between the photos, leave the pair out",
            )
    return np.asarray(kept & (found | (joined > 0)), np.bool_)


def _like_shading(part: Flags, pair: Registered, unit: float) -> tuple[bool, bool]:
    """Whether a smooth factor explains the change of a part (its texture stays), and whether nearly all of it became darker."""
    grey = [np.sqrt(luminance(light)) for light in (pair.before, pair.after)]
    level = np.float32(1e-3)
    weight = part.astype(np.float32)
    wide = [blur(plane * weight, 1.5 * unit) + level for plane in grey]
    left = grey[0] - grey[1] * (wide[0] / wide[1])
    change: NDArray[np.float32] = (grey[0] - grey[1])[part]
    noise = max(pair.residual, LEAST_NOISE)
    energy = float(np.mean(change**2))
    rest = max(0.0, float(np.mean(left[part] ** 2)) - 2 * noise**2)
    return rest <= _SMOOTH**2 * energy, float((change < 0).mean()) >= _ONE_SIDED


def _filled(region: Flags, largest: int) -> Flags:
    """The region with its holes of up to ``largest`` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~region).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= largest
    small[0] = True
    return np.asarray(small[labels], np.bool_)
