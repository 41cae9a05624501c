"""Lifting an object with its effects: one alpha and one colour a pixel, ready to be put on another photo.

OBER's alpha (ObjectClear, arXiv 2505.22636, section 3) is (after - before) / after with a black layer: it darkens only. Here alpha is the
smallest one for which some colour from black to white explains the change in every channel, so that highlights, mirror images and light
thrown back by the object are lifted too; where all channels become darker by one factor it is OBER's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from core.composing.light import Plane, to_srgb
from core.effects.region import EffectRegion
from core.errors import UsageError
from core.images import Pixels

_EPSILON: Final = np.float32(1e-6)


@dataclass(frozen=True, slots=True, eq=False)
class Lifted:
    """An object with its effects.

    Attributes:
        light: (H, W, 3) float32 linear light, multiplied by ``alpha``: from 0 to ``alpha``.
        alpha: (H, W) float32, 1 on the object, 0 to 1 on its effects, 0 elsewhere.
    """

    light: Plane
    alpha: Plane

    def over(self, ground: Plane) -> Plane:
        """The object on a ground of the same size, both in linear light; a new (H, W, 3) float32.

        Raises:
            UsageError: the ground has another size.
        """
        if ground.shape != self.light.shape:
            raise UsageError(f"the ground is {self.light.shape} like what is put on it, got {ground.shape}")
        return np.asarray(ground * (1 - self.alpha[..., None]) + self.light, np.float32)

    def cutout(self) -> tuple[Pixels, Pixels]:
        """(H, W, 3) uint8 sRGB colours, not multiplied, and (H, W) uint8 alpha: the form of a PNG."""
        colour = self.light / np.maximum(self.alpha, _EPSILON)[..., None]
        return to_srgb(np.where(self.alpha[..., None] > 0, colour, np.float32(0))), np.round(255 * self.alpha).astype(np.uint8)


def lift(region: EffectRegion) -> Lifted:
    """The object with its effects, such that ``over`` the photo without it gives the photo with it, exactly inside the region."""
    before, after = region.pair.before, region.pair.after
    darker = (after - before) / np.maximum(after, _EPSILON)
    lighter = (before - after) / np.maximum(1 - after, _EPSILON)
    alpha = np.clip(np.maximum(darker, lighter).max(axis=2), 0, 1).astype(np.float32)
    alpha = np.where(region.effect > 0, alpha, np.where(region.whole > 0, np.float32(1), np.float32(0)))
    light = np.clip(before - after * (1 - alpha[..., None]), 0, alpha[..., None])
    return Lifted(np.asarray(light * (region.whole[..., None] > 0), np.float32), alpha)
