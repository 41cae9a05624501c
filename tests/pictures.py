"""Small synthetic photos and masks, and folders of them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from core import storage
from core.images import encode_image
from core.masks import encode_mask

Pixels = NDArray[np.uint8]


def gradient(width: int = 64, height: int = 48, seed: int = 0) -> Pixels:
    """(height, width, 3): a smooth ramp, another for every seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    low, right, down = rng.uniform(40, 90, 3), rng.uniform(20, 70, 3), rng.uniform(20, 70, 3)
    return np.rint(low + right * columns + down * rows).astype(np.uint8)


def box_mask(width: int, height: int, box: tuple[int, int, int, int]) -> Pixels:
    """(height, width): 255 inside (x0, y0, x1, y1)."""
    mask = np.zeros((height, width), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    return mask


def with_object(clean: Pixels, mask: Pixels) -> Pixels:
    """The photo with something bright and striped on the mask."""
    stripes = np.where(np.indices(mask.shape).sum(axis=0)[..., None] // 3 % 2 == 0, [250, 30, 20], [20, 30, 250])
    return np.where(mask[..., None] > 0, stripes, clean).astype(np.uint8)


def random_mask(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """(height, width): one to three boxes and discs, some across the border; never all and never nothing."""
    while True:
        mask = np.zeros((height, width), np.uint8)
        for _ in range(rng.integers(1, 4)):
            x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
            size = int(rng.integers(1, max(2, max(width, height) // 2)))
            if rng.random() < 0.5:
                cv2.circle(mask, (x, y), size // 2, 255, -1)
            else:
                cv2.rectangle(mask, (x, y), (x + size, y + size // 2), 255, -1)
        if 0 < cv2.countNonZero(mask) < mask.size:
            return mask


def png(seed: int = 0, width: int = 64, height: int = 48) -> bytes:
    """A photo with an object where ``png_mask`` is, as PNG."""
    mask = box_mask(width, height, (20, 14, 34, 28))
    return encode_image(with_object(gradient(width, height, seed), mask))


def png_mask(width: int = 64, height: int = 48) -> bytes:
    """The mask of ``png``."""
    return encode_mask(box_mask(width, height, (20, 14, 34, 28)))


def put(folder: str, files: dict[str, bytes]) -> None:
    """Write files, given by their names below the folder."""
    for name, data in files.items():
        storage.storage_for(folder).write(storage.join(folder, name), data)
