"""The crop around a mask that a network sees, and the way back into the photo.

Only the crop passes the network, at the network's own size; everything outside the soft mask stays as it came in, bit for bit.
Coordinates are pixels of the photo, x to the right and y down; boxes are (x0, y0, x1, y1) with x1, y1 exclusive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np

from core.exemplar import complete
from core.masks import dilate, mask_at_size, mask_box, soft_mask
from core.relighting import lit, relit
from core.tone import continue_tone, match_tone

Texture = Literal["network", "photo", "light"]
"""``network``: the fill is what the network draws. ``photo``: it is copied from around the hole (``core.exemplar``) before the network sees
the crop, and of the network's picture only light and colour are taken. ``light``: so it is, and the network's picture is nothing but the
light that must change (``core.relighting``)."""

EDGE_FADE: Final = 1 / 16
"""Share of the crop's side over which a fill's own soft mask fades out at an edge inside the photo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CropRule:
    """How large a crop is, and what of it may change."""

    size: int | None
    """Side in pixels that the network works at; None: the crop is not resized."""
    context: float = 2.0
    """Side of the square crop over the longer side of the mask's box; 1 or more."""
    dilate_px: int = 0
    """Growth of the mask before erasing, in pixels of the network's size (of the photo where ``size`` is None)."""
    feather_px: int = 6
    """Width of the soft seam outside the mask, in the same pixels; 0 is a hard edge."""
    least_side: int = 64
    """Smallest side of a crop in photo pixels where ``size`` is None; else the smallest side is ``size``, so that nothing is enlarged."""
    match_tone: bool = False
    """Whether the fill takes its tone from the photo around it (``core.tone``): shifted smoothly so that it meets the photo's colours in
    the seam, or, where texture is the photo's, brought to that of what was never in the object's shadow."""
    texture: Texture = "network"
    """Where the texture of a fill comes from."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A square view of a photo.

    Attributes:
        pixels: (S, S, 3) uint8 RGB at the network's size; beyond the photo's edge it is mirrored.
        mask: (S, S) uint8, 255 = remove, dilated by the rule.
        soft: (side, side) float32 in [0, 1] at the photo's scale: how much of the fill is pasted.
        x, y: where the crop's corner lies in the photo; negative where it is padded.
        side: side of the crop in photo pixels.
        match_tone: as in the rule.
        plate: (side, side, 3) uint8 at the photo's scale, where the rule takes texture from the photo: the photo with its hole filled.
        texture: as in the rule.
    """

    pixels: np.ndarray
    mask: np.ndarray
    soft: np.ndarray
    x: int
    y: int
    side: int
    match_tone: bool = False
    plate: np.ndarray | None = None
    texture: Texture = "network"


@dataclass(frozen=True, slots=True)
class Fill:
    """What a network made of a crop.

    Attributes:
        pixels: (S, S, 3) uint8 RGB.
        soft: (S, S) float32 in [0, 1], or None: what may enter the photo beyond the crop's own soft mask (a shadow, say).
    """

    pixels: np.ndarray
    soft: np.ndarray | None = None


def crop_square(box: tuple[int, int, int, int], width: int, height: int, rule: CropRule) -> tuple[int, int, int]:
    """Corner x, y and side of the square for a mask's box: centred on it, moved inside the photo where it fits."""
    x0, y0, x1, y1 = box
    side = max(math.ceil(max(x1 - x0, y1 - y0) * rule.context), rule.size or rule.least_side)
    # a square larger than the whole photo shows only mirror images of it
    side = min(side, max(width, height))
    return _place(x0, x1, side, width), _place(y0, y1, side, height), side


def _place(low: int, high: int, side: int, extent: int) -> int:
    start = (low + high - side) // 2
    return (extent - side) // 2 if side > extent else min(max(start, 0), extent - side)


def take(pixels: np.ndarray, x: int, y: int, side: int) -> np.ndarray:
    """The (side, side[, C]) square at x, y; beyond the edge mirrored."""
    height, width = pixels.shape[:2]
    inside = pixels[max(y, 0) : min(y + side, height), max(x, 0) : min(x + side, width)]
    top, left = max(-y, 0), max(-x, 0)
    bottom, right = side - inside.shape[0] - top, side - inside.shape[1] - left
    if not (top or left or bottom or right):
        return inside
    return cv2.copyMakeBorder(inside, top, bottom, left, right, cv2.BORDER_REFLECT_101)


def make_crop(pixels: np.ndarray, mask: np.ndarray, rule: CropRule) -> Crop:
    """The crop of a photo (H, W, 3) uint8 around its mask (H, W) uint8 (255 = remove, at least one pixel)."""
    x, y, side = crop_square(mask_box(mask), pixels.shape[1], pixels.shape[0], rule)
    view = take(pixels, x, y, side)
    scale = side / rule.size if rule.size else 1.0
    # mirrored like the photo, or the object's mirror image beyond the edge would be taken for background
    region = dilate(take(mask, x, y, side), round(rule.dilate_px * scale))
    soft = soft_mask(region, round(rule.feather_px * scale))
    plate = None
    if rule.texture != "network":
        # the seam is not filled: there plate and photo are one, and only their light is blended
        view = plate = complete(np.ascontiguousarray(view), region > 0)
    if rule.size and rule.size != side:
        view = at_size(view, rule.size)
        region = mask_at_size(region, (rule.size, rule.size))
    return Crop(np.ascontiguousarray(view), np.ascontiguousarray(region), soft, x, y, side, rule.match_tone, plate, rule.texture)


def paste(pixels: np.ndarray, crop: Crop, filled: np.ndarray | Fill) -> np.ndarray:
    """The photo with the fill (S, S, 3) uint8 blended in by the soft mask; a new array, equal to ``pixels`` wherever that mask is 0."""
    height, width = pixels.shape[:2]
    fill = filled if isinstance(filled, Fill) else Fill(filled)
    soft_side, new = paste_mask(crop, fill, width, height), fill.pixels
    if crop.plate is not None:
        new = lit(crop.plate, new) if crop.texture == "light" else relit(crop.plate, crop.pixels, new)
    elif new.shape[0] != crop.side:
        new = cv2.resize(new, (crop.side, crop.side), interpolation=cv2.INTER_CUBIC)
    if crop.match_tone and crop.plate is None:
        new = match_tone(take(pixels, crop.x, crop.y, crop.side), new, soft_side)
    x0, y0 = max(crop.x, 0), max(crop.y, 0)
    x1, y1 = min(crop.x + crop.side, width), min(crop.y + crop.side, height)
    window = np.s_[y0 - crop.y : y1 - crop.y, x0 - crop.x : x1 - crop.x]
    soft, new = soft_side[window][..., None], new[window]
    result = pixels.copy()
    old = result[y0:y1, x0:x1]
    blended = np.rint(old * (1.0 - soft) + new * soft).astype(np.uint8)
    result[y0:y1, x0:x1] = np.where(soft > 0, blended, old)
    if crop.match_tone and crop.plate is not None:
        # only now it is known what was in the object's shadow
        after, before = (np.ascontiguousarray(take(photo, crop.x, crop.y, crop.side)) for photo in (result, pixels))
        toned = continue_tone(after, crop.soft == 1, before)
        result[y0:y1, x0:x1] = toned[window]
    return result


def paste_mask(crop: Crop, fill: Fill, width: int, height: int) -> np.ndarray:
    """How much of the fill is pasted into a photo of that size: (side, side) float32 in [0, 1].

    It is the crop's soft mask, or the fill's where that is larger. The fill's fades out towards those edges of the crop beyond which the
    photo goes on, so that no straight seam shows there.
    """
    if fill.soft is None:
        return crop.soft
    soft: np.ndarray = fill.soft.astype(np.float32)
    if soft.shape[0] != crop.side:
        soft = cv2.resize(soft, (crop.side, crop.side), interpolation=cv2.INTER_LINEAR)
    ramp = np.clip(np.arange(crop.side, dtype=np.float32) / max(1.0, crop.side * EDGE_FADE), 0, 1)
    whole = np.ones(crop.side, np.float32)
    columns = (ramp if crop.x > 0 else whole) * (ramp[::-1] if crop.x + crop.side < width else whole)
    rows = (ramp if crop.y > 0 else whole) * (ramp[::-1] if crop.y + crop.side < height else whole)
    return np.maximum(crop.soft, np.clip(soft, 0, 1) * rows[:, None] * columns)


def view_of(pixels: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """Another picture of the same photo through the same square, (size, size, 3) uint8."""
    return np.ascontiguousarray(at_size(take(pixels, crop.x, crop.y, crop.side), size))


def at_size(view: np.ndarray, size: int) -> np.ndarray:
    """A square view at the network's size: (size, size[, C]); itself where it has that size."""
    side = view.shape[0]
    return view if side == size else cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
