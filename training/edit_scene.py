"""Where a pair is edited on purpose: the part of it around its object, with what an edit there is measured by."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from core.images import Pixels
from core.masks import dilate, mask_box, soft_mask
from core.tone import match_tone
from training.triplets import TrainingPair

Values = NDArray[np.float32]

REFERENCE_SIDE: Final = 512
"""Shorter side in pixels of the photo for which lengths are given; they grow with it."""
FEATHER: Final = 6.0
"""Widest seam outside the region, in these pixels."""
FAILED_FROM: Final = 0.35
"""Error (see ``hole_error``) from which an edit made on purpose is a failure."""
VISIBLE_SHARE: Final = 0.4
"""Share of a defect that has to show where it is judged pixel by pixel."""
LEAST_DEFECT: Final = 0.05
"""Share of the object's area that a defect has to have."""


def hole_error(edited: Pixels, clean: Pixels, where: NDArray[Any], *, side: int | None = None) -> float:
    """How far a fill is from the truth, as a share of the truth's own contrast; 0 is equal, above about 0.5 anybody sees it.

    Both are blurred first, so that other grain of the same tone is no error; the mean absolute difference is divided by 8 levels plus the
    standard deviation of the clean picture around.

    Args:
        edited, clean: (H, W, 3) uint8 RGB.
        where: (H, W), non-zero = judged; at least one pixel.
        side: shorter side of the photo that these are a part of; the blur is 1/128 of it, the surroundings 1/32. None: of the pictures.
    """
    side = side or min(where.shape)
    inside = where > 0
    near = dilate(inside.astype(np.uint8) * np.uint8(255), max(2, round(side / 32))) > 0
    one, two = (cv2.GaussianBlur(picture.astype(np.float32), (0, 0), max(0.8, side / 128)) for picture in (edited, clean))
    contrast = 8.0 + float(clean[near].astype(np.float32).std(axis=0).mean())
    return float(np.abs(one - two)[inside].mean()) / contrast


def changed_region(pair: TrainingPair) -> Pixels:
    """(H, W) uint8, 255 = the object and its effects: mask and effect mask; without the latter, where source and target differ beside it.

    Where most of the photo differs (two shots at two exposures), nothing can be told from that, and it is the mask alone.
    """
    if pair.effect_mask is not None:
        return np.maximum(pair.mask, pair.effect_mask)
    unit = _unit(pair.mask)
    one, two = (cv2.GaussianBlur(picture, (0, 0), max(0.8, 2 * unit)) for picture in (pair.source, pair.target))
    change = cv2.split(cv2.absdiff(one, two))
    differs = np.maximum(np.maximum(change[0], change[1]), change[2]) > 10
    count, labels = cv2.connectedComponents(differs.astype(np.uint8))
    shade = np.zeros(count, np.uint8)
    shade[labels[dilate(pair.mask, max(1, round(4 * unit))) > 0]] = 255
    shade[0] = 0
    region = shade[labels] | pair.mask
    return pair.mask if cv2.countNonZero(region) > 0.6 * region.size else region


def _unit(mask: Pixels) -> float:
    return min(mask.shape) / REFERENCE_SIDE


@dataclass(frozen=True, slots=True)
class EditScene:
    """The part of a pair around its object: all edits happen in it.

    Attributes:
        place: where it lies in the photo.
        source, clean: (h, w, 3) uint8, in one tone beside the region.
        mask, region: (h, w) uint8, 255 = the object, and the object with its effects.
        soft: (h, w, 1) float32, how much of a fill is pasted: 1 in the region, 0 outside it and its seam.
        unit: pixels of this photo for one of a photo of ``REFERENCE_SIDE``.
        extent: square root of the object's area, pixels.
        other, other_mask: an object to put in, (a, b, 3) and (a, b) uint8.
    """

    place: tuple[slice, slice]
    source: Pixels
    clean: Pixels
    mask: Pixels
    region: Pixels
    soft: Values
    unit: float
    extent: float
    other: Pixels
    other_mask: Pixels

    @classmethod
    def of(cls, pair: TrainingPair, other: TrainingPair | None, feather: float) -> EditScene:
        """The scene of a pair whose mask is not empty; ``feather`` is the width of the seam, at most ``FEATHER``."""
        region, unit = changed_region(pair), _unit(pair.mask)
        x0, y0, x1, y1 = mask_box(region)
        margin = round(max(24 * unit, 0.3 * max(x1 - x0, y1 - y0))) + math.ceil(FEATHER * unit) + 2
        place = slice(max(0, y0 - margin), y1 + margin), slice(max(0, x0 - margin), x1 + margin)
        inside, near = (soft_mask(region[place], width * FEATHER * unit) > 0 for width in (1.5, 4))
        clean = _met(pair.source[place], pair.target[place], inside, near)
        giver = other if other is not None and other.id != pair.id and other.mask.any() else pair
        left, top, right, bottom = mask_box(giver.mask)
        return cls(
            place,
            pair.source[place],
            clean,
            pair.mask[place],
            region[place],
            soft_mask(region[place], feather * unit)[..., None],
            unit,
            math.sqrt(cv2.countNonZero(pair.mask)),
            giver.source[top:bottom, left:right],
            giver.mask[top:bottom, left:right],
        )

    def mixed(self, fill: Values) -> Pixels:
        """The source with a fill (h, w, 3) in it, equal to the source where ``soft`` is 0."""
        values = np.clip(np.rint(fill * self.soft + self.source * (1 - self.soft)), 0, 255).astype(np.uint8)
        return np.where(self.soft > 0, values, self.source)

    def judged(self, pair: TrainingPair, edited: Pixels, verdict: str | None) -> TrainingPair:
        """The pair whose target is the photo with ``edited`` (h, w, 3) in this part of it."""
        whole = pair.source.copy()
        whole[self.place] = edited
        return replace(pair, target=whole, clean=pair.target, verdict=verdict, score=None)

    def failed(self, edited: Pixels, defect: NDArray[np.bool_]) -> bool:
        """Whether anybody would see that ``edited`` is wrong within ``defect`` (h, w).

        That is: the tones are others there, over its whole or over much of it where the picture is too plain to hide a step; or texture is
        lost, or added.
        """
        if not defect.any():
            return False
        side, sigma = round(self.unit * REFERENCE_SIDE), max(0.8, 2 * self.unit)
        if hole_error(edited, self.clean, defect, side=side) >= FAILED_FROM:
            return True
        if float((_visible_step(edited, self.clean, sigma)[defect] >= 1).mean()) >= VISIBLE_SHARE:
            return True
        wanted, found = (_detail(picture, defect, sigma) for picture in (self.clean, edited))
        return (wanted >= 3 and found < 0.4 * wanted) or found > 2.5 * wanted + 4

    def holds(self, seen: NDArray[np.bool_]) -> bool:
        """Whether what is seen (h, w) is large enough to be a defect."""
        return int(seen.sum()) >= max(4, LEAST_DEFECT * cv2.countNonZero(self.mask))

    def around(self) -> NDArray[np.float32]:
        """Mean colour (3,) of what surrounds the region."""
        ring = (dilate(self.region, max(2, round(12 * self.unit))) > 0) & (self.region == 0)
        seen = self.clean[ring] if ring.any() else self.clean.reshape(-1, 3)
        return np.asarray(seen.mean(axis=0), dtype=np.float32)


def _met(source: Pixels, clean: Pixels, inside: NDArray[np.bool_], near: NDArray[np.bool_]) -> Pixels:
    """The clean plate (h, w, 3) in the source's tone: two shots may differ in exposure, and it is to be pasted without a step.

    Compared where both show the same, in ``near`` but not ``inside``, clear of a shadow's faint rim; less than 3 levels are left
    alone.
    """
    seam = near & ~inside
    if not seam.any() or np.abs((source[seam].astype(np.float32) - clean[seam]).mean(axis=0)).max() < 3:
        return clean
    return match_tone(source, clean, np.where(inside, np.float32(1), np.where(seam, np.float32(0.5), np.float32(0))))


def _visible_step(edited: Pixels, clean: Pixels, sigma: float) -> Values:
    """(h, w): the change of tone over 6 levels plus twice the clean picture's own deviation around; from 1 on it shows."""
    one, two = (cv2.GaussianBlur(picture.astype(np.float32), (0, 0), sigma) for picture in (edited, clean))
    grey = cv2.cvtColor(clean, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean, square = (cv2.GaussianBlur(values, (0, 0), 3 * sigma) for values in (grey, grey * grey))
    around = np.sqrt(np.maximum(square - mean * mean, 0))
    red, green, blue = cv2.split(np.abs(one - two))
    return np.asarray((red + green + blue) / (18 + 6 * around), dtype=np.float32)


def _detail(picture: Pixels, where: NDArray[np.bool_], sigma: float) -> float:
    """Mean distance, in levels, of the grey picture from its blur."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), sigma))[where].mean())
