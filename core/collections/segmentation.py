"""COCO's three ways to write a mask: polygons, run lengths, and run lengths packed into text.

Reference: the COCO data format (cocodataset.org, "format-data") and its mask API. Runs count down the columns of the picture, of zeros and
ones in turn, zeros first. A packed run is written in groups of 5 bits, lowest first, as characters from 48 on; bit 5 says that another
group follows, the last group's bit 4 is the sign, and from the fourth run on the difference to the run two before is what is written.

The decoder is ours, since COCO's own library trusts its input: it reads and writes where a damaged file tells it to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import cv2
import numpy as np

from core.errors import ItemError
from core.images import Pixels

MOST_PIXELS: Final = 200_000_000
"""Run lengths of a few characters can claim any number of pixels."""
_SHIFT: Final = 8
"""Fractional bits of a polygon's corners."""


def unpack_runs(text: str) -> list[int]:
    """The run lengths in COCO's packed text.

    Raises:
        ItemError: stage ``decode``, code ``bad_annotation``: a character that the encoding has not, or a run that breaks off.
    """
    runs: list[int] = []
    value = bits = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or bits > 60:
            raise _bad(f"packed run lengths have a wrong character {character!r}")
        value |= (group & 31) << bits
        bits += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << bits
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = bits = 0
    if bits:
        raise _bad("packed run lengths break off")
    return runs


def mask_from_runs(runs: Sequence[int], height: int, width: int) -> Pixels:
    """(height, width) uint8, 0 or 255.

    Raises:
        ItemError: stage ``decode``, code ``bad_annotation``: the runs do not fill the picture exactly.
    """
    _check_size(height, width)
    lengths = [_whole(run) for run in runs]
    if any(length < 0 for length in lengths) or sum(lengths) != height * width:
        raise _bad(f"run lengths cover {sum(lengths):,} pixels of {width} x {height}")
    values = np.zeros(len(lengths), np.uint8)
    values[1::2] = 255
    return np.ascontiguousarray(np.repeat(values, lengths).reshape(width, height).T)


def mask_from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Pixels:
    """(height, width) uint8, 255 inside any of the polygons and on their border; a polygon is x, y, x, y, ... in pixels.

    COCO's corners count from the upper left corner of the picture, so the centre of the first pixel is at 0.5, 0.5.

    Raises:
        ItemError: stage ``decode``, code ``bad_annotation``: an odd number of coordinates, fewer than three corners, or no number.
    """
    _check_size(height, width)
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_number, polygon)):
            raise _bad("a polygon is no list of at least three x, y pairs")
        corners = np.array(polygon, np.float64).reshape(-1, 2)
        # far outside is as good as just outside, and OpenCV's integers end at 2 ** 31
        corners = np.clip(corners - 0.5, -2 * max(width, height), 4 * max(width, height))
        # each polygon alone: where two overlap, both count
        cv2.fillPoly(mask, [np.rint(corners * (1 << _SHIFT)).astype(np.int32)], 255, cv2.LINE_8, _SHIFT)
    return mask


def decode_segmentation(segmentation: object, height: int, width: int) -> Pixels:
    """The mask of an annotation's ``segmentation``: polygons, ``{"counts": [...]}`` or ``{"counts": "..."}``.

    Args:
        segmentation: as JSON gives it; run lengths may name their own ``size`` (height, width), which then holds.
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Returns:
        (height, width) uint8, 0 or 255.

    Raises:
        ItemError: stage ``decode``, code ``bad_annotation``.
    """
    if isinstance(segmentation, Mapping):
        counts, size = segmentation.get("counts"), segmentation.get("size", [height, width])
        if not isinstance(size, list | tuple) or len(size) != 2:
            raise _bad(f"the size of run lengths is {size!r}, not [height, width]")
        rows, columns = (_whole(side) for side in size)
        if isinstance(counts, str):
            return mask_from_runs(unpack_runs(counts), rows, columns)
        if isinstance(counts, list | tuple):
            return mask_from_runs(counts, rows, columns)
        raise _bad("run lengths have no counts")
    if isinstance(segmentation, list | tuple):
        return mask_from_polygons(segmentation, _whole(height), _whole(width))
    raise _bad(f"the segmentation is a {type(segmentation).__name__}")


def runs_of(mask: Pixels) -> list[int]:
    """The run lengths of a mask, (H, W), non-zero = inside: zeros first, down the columns."""
    flat = (mask.T.reshape(-1) > 0).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = [int(run) for run in np.diff([0, *edges.tolist(), flat.size])]
    return [0, *lengths] if flat.size and flat[0] else lengths


def pack_runs(runs: Sequence[int]) -> str:
    """Run lengths as COCO's packed text; the inverse of ``unpack_runs``."""
    text = []
    for index, run in enumerate(runs):
        value = int(run) - (int(runs[index - 2]) if index > 2 else 0)
        while True:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text.append(chr(48 + group + (32 if more else 0)))
            if not more:
                break
    return "".join(text)


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise _bad(f"its size is {width} x {height}")


def _whole(value: Any) -> int:
    if not _is_number(value) or value != int(value):
        raise _bad(f"{value!r} is no whole number")
    return int(value)


def _is_number(value: object) -> bool:
    """Whether it is one that a picture can have; neither NaN nor endless, nor a whole number that no float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 53


def _bad(why: str) -> ItemError:
    return ItemError("decode", "bad_annotation", f"the annotation cannot be drawn: {why}; correct it, or leave it out")
