"""The tone of a fill: what its surroundings say of its light and colour, carried over the hole.

A fill may be right in texture and wrong in tone, since it was drawn by a network or copied from elsewhere in the photo.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from core.masks import mask_at_size

AVERAGING_STEPS: Final = 4
TONE_SIDE: Final = 256
"""Longest side in pixels at which ``continue_tone`` works: tone has nothing finer."""
TONE_BLUR: Final = 0.03
"""Sigma, as a share of the side, below which everything stays the fill's."""
STRANGER: Final = 0.35
"""Log of the ratio by which a place outside may differ from the fill beside it and still say what tone the fill should have; beyond that it
is another thing, such as a leg in front of the road, and not the same in another light."""
RELIT: Final = 0.03
"""Log of the change of light from which on a place counts as one that lay in the object's shadow."""
RELIT_BLUR: Final = 1.5
"""Sigma in pixels at which that change is looked at: what is finer is rounding."""
STRUCTURE: Final = 0.5
"""Log of a correction from which on it is taken for the fill's structure, a horizon for one, and dropped."""


def match_tone(around: np.ndarray, filled: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """The fill plus a smooth offset with which it equals the photo in the seam, (S, S, 3) uint8.

    In the seam (``soft`` between 0 and 1) the photo is known and the network has redrawn it: what differs there is a shift of tone, of the
    autoencoder's or the network's making. It is carried over the hole by a pyramid of weighted means, a membrane as in Poisson image
    editing (Perez et al. 2003, section 2) at a fraction of the cost. Texture is untouched.
    """
    seam = ((soft > 0) & (soft < 1)).astype(np.float32)
    if not seam.any():
        return filled
    difference = (around.astype(np.float32) - filled) * seam[..., None]
    return np.clip(np.rint(filled + _spread(difference, seam)), 0, 255).astype(np.uint8)


def continue_tone(picture: np.ndarray, hole: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The picture with the tone of its filled hole drawn from around it: (H, W, 3) uint8, equal to ``picture`` outside the hole.

    The colours around the hole are carried over it as a membrane, and the low frequencies of the fill are multiplied towards it. Three
    things keep that from making halos, fog and shadows. Places that differ much from the fill beside them have no say (``STRANGER``); nor
    have those that were relit, where some of the shadow may be left (``RELIT``). Where the correction is large it fades (``STRUCTURE``).

    Args:
        picture: uint8 RGB, the hole filled.
        hole: (H, W) bool, True where it was filled.
        before: (H, W, 3) uint8, the photo as it came in, object included. Where the object differs from the fill, the blur carries that
            over the rim of the hole, so that the rim, where the shadow of a contact is darkest, mostly counts as relit, too.
    """
    height, width = hole.shape
    scale = min(1.0, TONE_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    values, old = (cv2.resize(each, size, interpolation=cv2.INTER_AREA).astype(np.float32) + 1.0 for each in (picture, before))
    inside = mask_at_size(hole, size) > 0
    if not inside.any():
        return picture
    sigma = max(1.0, TONE_BLUR * max(size))
    known = (~inside).astype(np.float32)
    # both carried over to the other: what would be outside if the fill went on, and what is there, of the outside alone
    fill_outwards = _spread(values * inside[..., None], inside.astype(np.float32))
    around = _blurred(values * known[..., None], sigma) / np.maximum(_blurred(known, sigma), 1e-4)[..., None]
    alike = np.abs(np.log(np.maximum(around, 1.0) / fill_outwards)).max(axis=2) < STRANGER
    relit = np.abs(np.log(_blurred(values, RELIT_BLUR) / _blurred(old, RELIT_BLUR))).max(axis=2) > RELIT
    known = known * (alike & ~relit)
    if not known.any():
        return picture
    membrane = _spread(values * known[..., None], known)
    # strangers must not darken the fill's own low frequencies, either
    own = np.where((known > 0)[..., None] | inside[..., None], values, membrane)
    change = np.log(_blurred(membrane, sigma) / _blurred(own, sigma))
    change *= np.exp(-((np.abs(change).max(axis=2, keepdims=True) / STRUCTURE) ** 2))
    factor = np.exp(cv2.resize(change, (width, height), interpolation=cv2.INTER_LINEAR))
    toned = np.clip(np.rint((picture + 1.0) * factor - 1.0), 0, 255).astype(np.uint8)
    return np.where(hole[..., None], toned, picture)


def _blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma))


def _spread(weighted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Values (H, W, 3) float32, given as sums and weights, carried to where the weight is 0: from coarse to fine."""
    height, width = weight.shape
    own = weighted / np.maximum(weight, 1e-6)[..., None]
    known = weight[..., None] > 0
    if min(height, width) <= 2:
        total = max(float(weight.sum()), 1e-6)
        return np.where(known, own, weighted.sum(axis=(0, 1)) / total).astype(np.float32)
    half = ((width + 1) // 2, (height + 1) // 2)
    coarse = _spread(cv2.resize(weighted, half, interpolation=cv2.INTER_AREA), cv2.resize(weight, half, interpolation=cv2.INTER_AREA))
    filled = np.where(known, own, cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))
    for _ in range(AVERAGING_STEPS):
        filled = np.where(known, own, cv2.blur(filled, (3, 3)))
    return filled
