"""What a photo looks like, in 480 bytes: perceptual hashes of the whole and of the crops that it may have come from or become.

The hash is imagehash's ``phash`` (signs of the lowest 16 x 16 frequencies). One hash survives another size and another encoder, and not a
crop: with 5 % cut off, 31 of 156 photos' hashes differ by more than a quarter of their bits. So each photo has a hash for each of
``WINDOWS``, and two photos are near where the whole of one is like a window of the other.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.errors import UsageError
from core.images import Pixels

Words = NDArray[np.uint64]

HASH_SIDE: Final = 16
BITS: Final = HASH_SIDE * HASH_SIDE
WORDS: Final = BITS // 64
_SMALL_SIDE: Final = 256
_CUT: Final = 0.05


def _windows() -> tuple[tuple[float, float, float, float], ...]:
    steps = (0.0, _CUT / 2, _CUT)
    inner = [(x, y, x + 1 - _CUT, y + 1 - _CUT) for x in steps for y in steps]
    sides = [(_CUT, 0.0, 1.0, 1.0), (0.0, 0.0, 1 - _CUT, 1.0), (0.0, _CUT, 1.0, 1.0), (0.0, 0.0, 1.0, 1 - _CUT)]
    return ((0.0, 0.0, 1.0, 1.0), *inner, *sides, (_CUT, _CUT, 1 - _CUT, 1 - _CUT))


WINDOWS: Final = _windows()
"""Parts (x0, y0, x1, y1) of a photo in fractions of its sides: the whole first; then 5 % less of both sides, of one side, of all four."""

SIGNATURE_BYTES: Final = len(WINDOWS) * WORDS * 8


def signature(pixels: Pixels) -> Words:
    """The signature of a photo.

    Args:
        pixels: (H, W, 3) uint8 RGB, or (H, W) grey.

    Returns:
        (15, 4) uint64: for each of ``WINDOWS`` 256 bits, lowest frequencies in the first word. A function of the pixels alone.

    Raises:
        UsageError: another shape or dtype; or imagehash is not installed.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size:
        raise UsageError(f"a photo to hash is (H, W, 3) or (H, W) uint8, got {pixels.shape} {pixels.dtype}")
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    scale = _SMALL_SIDE / max(grey.shape)
    if scale < 1:
        size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    picture = Image.fromarray(grey)
    bits = np.empty((len(WINDOWS), BITS), np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(WINDOWS):
        part = picture.crop((round(x0 * picture.width), round(y0 * picture.height), round(x1 * picture.width), round(y1 * picture.height)))
        bits[number] = _phash()(part, hash_size=HASH_SIDE).hash.ravel()[_ORDER]
    return np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def to_bytes(found: Words) -> bytes:
    """A signature as ``SIGNATURE_BYTES`` bytes, the same on every machine."""
    return found.astype("<u8").tobytes()


def from_bytes(data: bytes | NDArray[np.uint8]) -> Words:
    """(N, 15, 4) uint64 of N signatures' bytes one after the other.

    Raises:
        UsageError: no whole number of signatures.
    """
    raw = np.frombuffer(data, np.uint8)
    if raw.size % SIGNATURE_BYTES:
        raise UsageError(f"signatures have {SIGNATURE_BYTES} bytes each, got {raw.size} bytes; measure the photos again")
    return raw.view("<u8").astype(np.uint64, copy=False).reshape(-1, len(WINDOWS), WORDS)


def _order() -> NDArray[np.intp]:
    """Bits from low to high frequency; the mean's bit, which is nearly always set, stands last."""
    down, across = np.indices((HASH_SIDE, HASH_SIDE)).reshape(2, -1)
    order = np.lexsort((np.maximum(down, across), down + across))
    return np.concatenate([order[1:], order[:1]])


_ORDER: Final = _order()


@functools.cache
def _phash() -> Any:
    try:
        import imagehash
    except ImportError as error:
        raise UsageError("perceptual hashes need imagehash; install cleanplate[curate]") from error
    return imagehash.phash
