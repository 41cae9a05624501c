"""A contact sheet: pictures of several items side by side, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np

from core.errors import UsageError
from core.images import Pixels

GAP: Final = 4
"""Width in pixels of the white lines between pictures and around them."""
_RED: Final = (228, 40, 48)


def contact_sheet(rows: Sequence[Sequence[Pixels]]) -> Pixels:
    """One picture (H', W', 3) uint8 RGB of rows of pictures of one size (H, W, 3) uint8, on white.

    Raises:
        UsageError: there is no picture, or they differ in size, or rows in length.
    """
    shapes = {picture.shape for row in rows for picture in row}
    lengths = {len(row) for row in rows}
    if len(shapes) != 1 or len(lengths) != 1:
        raise UsageError(f"a contact sheet needs pictures of one size in rows of one length, got {sorted(shapes)} in {sorted(lengths)}")
    ((height, width, _),), (columns,) = shapes, lengths
    sheet = np.full((len(rows) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            y, x = GAP + down * (height + GAP), GAP + across * (width + GAP)
            sheet[y : y + height, x : x + width] = picture
    return sheet


def marked(photo: Pixels, mask: Pixels) -> Pixels:
    """The photo (H, W, 3) uint8 with the mask (H, W) uint8, above 127 = set, in translucent red and outlined."""
    inside = mask > 127
    mixed = np.where(inside[..., None], np.rint(photo * 0.5 + np.array(_RED) * 0.5), photo).astype(np.uint8)
    outline, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(mixed, outline, -1, _RED, 1)
    return mixed
