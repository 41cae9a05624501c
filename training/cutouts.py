"""Objects without a background: what the embedded model's image encoder learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from core.errors import UsageError

Picture = npt.NDArray[Any]
Cutout = npt.NDArray[np.uint8]
"""(H, W, 4) RGBA."""


def read_cutouts(root: Path) -> list[Cutout]:
    """The PNG files with transparency in a folder, at any depth, in the order of their names.

    Raises:
        UsageError: a PNG file cannot be read, or fewer than two have transparency.
    """
    pictures = [_read(path) for path in sorted(root.rglob("*")) if path.suffix.lower() == ".png"]
    found = [np.asarray(cv2.cvtColor(each, cv2.COLOR_BGRA2RGBA), np.uint8) for each in pictures if _is_cutout(each)]
    if len(found) < 2:
        raise UsageError(f"{root} holds {len(found)} cut-outs; at least two are needed (PNG files of 8 bits with transparency)")
    return found


def _is_cutout(picture: Picture) -> bool:
    return picture.ndim == 3 and picture.shape[2] == 4 and picture.dtype == np.uint8


def _read(path: Path) -> Picture:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise UsageError(f"{path} is no picture that OpenCV can read; remove it or write it anew")
    return picture
