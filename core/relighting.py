"""Light: what an erasure changes of a photo beside its texture, as a factor by which each place becomes brighter or darker.

A shadow is such a factor, so it goes, and the contrast under it comes back, by dividing. A network says it in one of two ways: by a picture
of the scene as it should be, whose quotient with what it was shown is the light (``relit``), or by a picture of the light itself, in which
grey means that nothing changes (``light_picture``, ``lit``). The second spares it to draw a scene that is known, and weighs a shadow on
dark ground as much as one on bright ground.

Legend for shape suffixes: B batch, H W picture sides in pixels.
"""

from __future__ import annotations

import math
from typing import Any, Final

import cv2
import numpy as np

RELIGHT_BLUR: Final = 1 / 64
"""Sigma, as a share of the crop's side, below which the network's picture of the scene has no say."""
RELIGHT_RANGE: Final = 4.0
"""How much brighter or darker it may make a place, as a factor."""
LIGHT_BLUR: Final = 1 / 128
"""The same sigma for a picture of the light."""
TINT_BLUR: Final = 1 / 32
"""The same for its colour: a shadow has one tint, and what is finer is noise that the network has left, seen as iridescent streaks."""
LIGHT_RANGE: Final = 3.0
"""The factor that white stands for; black is its reciprocal."""
GREY: Final = 128
LIGHT_GAIN: Final = 4.0
"""What latents of a picture of the light are multiplied with. Most of it is grey: as it is its latents deviate by a tenth to a fifth, and
noise, which deviates by one, would hide in every step but the first what the steps before it found."""


def relit(plate: np.ndarray, seen: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """The plate in the light of the network's picture, (side, side, 3) uint8.

    Args:
        plate: (side, side, 3) uint8 at the photo's scale.
        seen: (S, S, 3) uint8, the plate as the network was shown it.
        filled: (S, S, 3) uint8, what it made of it.

    The quotient is taken of blurred pictures: whatever is finer stays the plate's.
    """
    sigma = max(0.5, seen.shape[0] * RELIGHT_BLUR)
    ours, theirs = (cv2.GaussianBlur(picture.astype(np.float32) + 1.0, (0, 0), sigma) for picture in (filled, seen))
    return multiplied(plate, np.clip(ours / theirs, 1 / RELIGHT_RANGE, RELIGHT_RANGE))


def lit(plate: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The plate in another light, (side, side, 3) uint8.

    Args:
        plate: (side, side, 3) uint8 at the photo's scale.
        light: (S, S, 3) uint8 as ``light_picture`` gives it: 128 = as it is.
    """
    logarithm = (light.astype(np.float32) - GREY) * (math.log(LIGHT_RANGE) / 127.5)
    grey = logarithm.mean(axis=2, keepdims=True)
    side = light.shape[0]
    tint = cv2.GaussianBlur(logarithm - grey, (0, 0), max(0.5, side * TINT_BLUR))
    return multiplied(plate, np.exp(cv2.GaussianBlur(grey, (0, 0), max(0.5, side * LIGHT_BLUR))[..., None] + tint))


def multiplied(plate: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The plate (side, side, 3), of levels 0 to 255, times a factor of its light (S, S, 3) float32, as uint8; black counts as one level."""
    side = plate.shape[0]
    if factor.shape[0] != side:
        factor = cv2.resize(factor, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.clip(np.rint((plate + 1.0) * factor - 1.0), 0, 255).astype(np.uint8)


def light_picture(source_B3HW: Any, target_B3HW: Any) -> Any:
    """The light that makes the target of the source, as pictures (B, 3, H, W) in [-1, 1]: 0 = as it is.

    Args:
        source_B3HW, target_B3HW: tensors in [-1, 1]; they differ by light and hardly by texture.
    """
    import torch.nn.functional as F  # only here: the classical erasers start without

    ours_B3HW, theirs_B3HW = (
        F.avg_pool2d((image_B3HW.float() + 1) * 127.5 + 1, 3, stride=1, padding=1, count_include_pad=False)
        for image_B3HW in (target_B3HW, source_B3HW)
    )
    return ((ours_B3HW / theirs_B3HW).log() / math.log(LIGHT_RANGE)).clamp(-1, 1)
