"""One erasure against the truth, in every figure at once; jobs and benchmarks take their columns from here."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

import cv2
import numpy as np

from core.images import Pixels
from core.masks import soft_mask
from core.metrics.fidelity import decibels, region_decibels, region_mean, resize_to, squared_error, ssim_map
from core.metrics.perceptual import Lpips
from core.metrics.seam import seam_excess
from core.metrics.shadow import shadow_residual

GROWTH_PX: Final = 9
"""Side of the square by which the effect mask is dilated to the effect region, where an eraser may work; all else is background."""
FEATHER_PX: Final = 6
"""Width of the soft edge with which background is pasted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of one erasure; None where one has no meaning for this item, or was not asked for."""

    psnr: float
    """dB, whole picture; higher is better."""
    psnr_mask: float | None
    """dB over the object mask."""
    psnr_effect: float | None
    """dB over the effect region."""
    psnr_background: float | None
    """dB over all else."""
    ssim: float
    """-1 to 1, whole picture; higher is better."""
    ssim_effect: float | None
    """The same over the effect region."""
    lpips: float | None
    """0 and more, whole picture, AlexNet 0.1; lower is better."""
    shadow_residual: float | None
    """0 = the shadow is gone, 1 = it is as in the source."""
    seam: float | None
    """Levels of 255 across the worst border around the object, or object and effects, above the truth's; 0 = no seam."""

    def with_lpips(self, distance: float | None) -> Figures:
        """The same figures with an LPIPS that was taken apart."""
        return replace(self, lpips=distance)


FIGURES: Final = tuple(field.name for field in fields(Figures))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A photo whose clean plate is known: pictures (H, W, 3) uint8 RGB and masks (H, W) uint8, 0 or 255, all of the truth's size.

    ``effect_mask`` is None where nobody knows how far the object's shadow and reflection go; the object mask stands in for it.
    """

    source: Pixels
    truth: Pixels
    mask: Pixels
    effect_mask: Pixels | None = None

    @property
    def region(self) -> Pixels:
        """(H, W) uint8, 0 or 255: the effect region, which is object and effects, dilated by a square of ``GROWTH_PX``."""
        return cv2.dilate(self._all, np.ones((GROWTH_PX, GROWTH_PX), np.uint8)).astype(np.uint8, copy=False)

    def paste(self, output: Pixels) -> Pixels:
        """The output (H, W, 3) uint8 within the soft mask of object and effects, the source's own pixels outside of it.

        What is left in the background is then the source's for every method alike, so that copying it well wins nothing.
        """
        soft = soft_mask(self._all, FEATHER_PX)[..., None]
        return np.rint(soft * output + (1 - soft) * self.source).astype(np.uint8)

    @property
    def _all(self) -> Pixels:
        return self.mask if self.effect_mask is None else np.maximum(self.mask, self.effect_mask)

    def compare(self, output: Pixels, lpips: Lpips | None = None) -> Figures:
        """All figures of an erasure (h, w, 3) uint8, which is resized to the truth where it has another size.

        Raises:
            ItemError: the erasure has another shape than the truth.
            UsageError: the case's own pictures are not of one size.
        """
        output = resize_to(output, self.truth.shape[0], self.truth.shape[1], "erasure")
        region = self.region
        error, similarity = squared_error(output, self.truth), ssim_map(output, self.truth)
        effects = self.effect_mask
        borders = [self.mask] if effects is None else [self.mask, self._all]
        seams = [seam for border in borders if (seam := seam_excess(output, self.truth, border)) is not None]
        return Figures(
            psnr=decibels(float(error.mean())),
            psnr_mask=region_decibels(error, self.mask),
            psnr_effect=region_decibels(error, region),
            psnr_background=region_decibels(error, region == 0),
            ssim=float(similarity.mean()),
            ssim_effect=region_mean(similarity, region),
            lpips=None if lpips is None else lpips.distance(output, self.truth),
            shadow_residual=None if effects is None else shadow_residual(output, self.truth, self.source, self.mask, effects),
            seam=max(seams) if seams else None,
        )

