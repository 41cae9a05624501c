"""What a segmenter is asked: a box, clicks, or both on one photo; and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from core.errors import ItemError, UsageError
from core.images import Pixels

FloatBox = tuple[float, float, float, float]

MIN_BOX_SIDE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Click:
    """A point on the photo.

    Attributes:
        x, y: pixels from the left and from the top, 0 <= x < W, 0 <= y < H; pixel i reaches from i to i + 1.
        positive: True: this is the object; False: this is not.
    """

    x: float
    y: float
    positive: bool = True


@dataclass(frozen=True, slots=True)
class Prompt:
    """Which object is meant.

    Attributes:
        box: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, or None.
        clicks: in the order in which they were made; with no box at least one is positive.
    """

    box: FloatBox | None = None
    clicks: tuple[Click, ...] = ()


@dataclass(frozen=True, slots=True)
class Segmentation:
    """An object cut out.

    Attributes:
        mask: (H, W) uint8, 0 or 255, 255 = the object.
        score: 0 to 1, how much the segmenter trusts the mask; comparable between masks of one segmenter only.
    """

    mask: Pixels
    score: float


def check_photo(photo: Pixels) -> None:
    """Raises UsageError unless ``photo`` is (H, W, 3) uint8 with at least one pixel."""
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        raise UsageError(f"a photo is (H, W, 3) uint8 RGB, got {photo.shape} {photo.dtype}")


def fit_prompt(prompt: Prompt, width: int, height: int) -> Prompt:
    """The prompt with its box clipped to a photo of ``width`` x ``height`` pixels.

    Raises:
        UsageError: nothing is asked, a number is not finite, the box is empty or outside the photo, a click is outside the photo, or one
            pixel is clicked as object and as background.
    """
    if prompt.box is None and not any(click.positive for click in prompt.clicks):
        raise UsageError("a segmentation needs a box or a positive click; got neither: mark the object")
    signs: dict[tuple[int, int], bool] = {}
    for click in prompt.clicks:
        if not (0 <= click.x < width and 0 <= click.y < height):
            raise UsageError(f"click ({click.x:g}, {click.y:g}) is outside the photo; allowed are 0 <= x < {width} and 0 <= y < {height}")
        pixel = int(click.x), int(click.y)
        if signs.setdefault(pixel, click.positive) != click.positive:
            raise UsageError(f"pixel {pixel} is clicked as object and as background; keep one of the two clicks")
    if prompt.box is None:
        return prompt
    x0, y0, x1, y1 = prompt.box
    if not all(math.isfinite(side) for side in prompt.box) or x1 - x0 < MIN_BOX_SIDE or y1 - y0 < MIN_BOX_SIDE:
        raise UsageError(f"box {prompt.box} is no box; give x0, y0, x1, y1 in pixels with sides of {MIN_BOX_SIDE:g} and more")
    clipped = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if clipped[2] - clipped[0] < MIN_BOX_SIDE or clipped[3] - clipped[1] < MIN_BOX_SIDE:
        raise UsageError(f"box {prompt.box} is outside the photo of {width} x {height} pixels; give it in pixels of the photo")
    return Prompt(clipped, prompt.clicks)


def check_mask(mask: Pixels, segmenter: str) -> Pixels:
    """``mask``, (H, W) uint8, as it came.

    Raises:
        ItemError: stage ``segment``: the mask is empty (code ``empty_mask``) or covers the whole photo (``full_mask``).
    """
    if not mask.any():
        raise ItemError("segment", "empty_mask", f"{segmenter} found no object there; draw a box around it or click on another part")
    if mask.all():
        raise ItemError("segment", "full_mask", f"{segmenter} took the whole photo as the object; add a negative click on the background")
    return mask
