"""Photos and cut-outs held in memory, and random crops of them: what the embedded model's autoencoder is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from core.errors import UsageError

Image = npt.NDArray[np.uint8]
HELD_OUT_EVERY: Final = 12
MOST_SHRINKING: Final = 4.0
PASTED_SHARE: Final = 0.3
RETONED_SHARE: Final = 0.4
_SUFFIXES: Final = {".jpg", ".jpeg", ".png"}


class PhotoPool:
    """Photos (H, W, 3) uint8 RGB and cut-outs (h, w, 4) uint8 RGBA; every twelfth of each is held out and never trained on.

    Args:
        root: folder of JPEG and PNG files, at any depth; those with an alpha channel are cut-outs.
        held_out: True takes the held-out files only, False all others.

    Raises:
        UsageError: there are too few photos, or a file is not readable.
    """

    def __init__(self, root: Path, *, held_out: bool = False) -> None:
        images = [read_image(path) for path in sorted(root.rglob("*")) if path.suffix.lower() in _SUFFIXES]
        photos = [image for image in images if image.shape[2] == 3]
        cutouts = [image for image in images if image.shape[2] == 4]
        if len(photos) < 2:
            raise UsageError(f"{root} holds {len(photos)} photos; at least two are needed (JPEG or PNG, without transparency)")
        self.photos, self.cutouts = _part(photos, held_out), _part(cutouts, held_out)
        weights = np.sqrt([photo.shape[0] * photo.shape[1] for photo in self.photos])
        self._weights = weights / weights.sum()

    def batch(self, size: int, count: int, seed: tuple[int, ...], *, plain: bool = False) -> Image:
        """Random square crops (count, size, size, 3), some with a cut-out pasted in, some of another tone; ``plain`` has neither."""
        rng = np.random.default_rng(seed)
        return np.stack([self._crop(size, rng, plain) for _ in range(count)])

    def _crop(self, size: int, rng: np.random.Generator, plain: bool) -> Image:
        photo = self.photos[int(rng.choice(len(self.photos), p=self._weights))]
        height, width = photo.shape[:2]
        limit = min(height, width)
        low, high = min(size, limit), min(limit, int(size * MOST_SHRINKING))
        side = min(max(int(np.exp(rng.uniform(np.log(low), np.log(max(high, low) + 0.5)))), 1), limit)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        crop = _resized(photo[top : top + side, left : left + side], size, size)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if not plain and self.cutouts and rng.random() < PASTED_SHARE:
            crop = self._with_cutout(crop, rng)
        if not plain and rng.random() < RETONED_SHARE:
            crop = _retoned(crop, rng)
        return np.ascontiguousarray(crop, dtype=np.uint8)

    def _with_cutout(self, crop: Image, rng: np.random.Generator) -> Image:
        """A cut-out somewhere in the crop, maybe cut by its edge."""
        size = len(crop)
        cutout = self.cutouts[int(rng.integers(len(self.cutouts)))]
        height, width = cutout.shape[:2]
        factor = size * float(np.exp(rng.uniform(np.log(0.4), np.log(2.0)))) / max(height, width)
        height, width = max(4, int(height * factor)), max(4, int(width * factor))
        cutout = _resized(cutout, width, height)
        top, left = int(rng.integers(-height // 2, size - height // 2)), int(rng.integers(-width // 2, size - width // 2))
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + height, size), min(left + width, size)
        part = cutout[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.float32)
        alpha = part[..., 3:] / 255
        pasted = crop.copy()
        pasted[y0:y1, x0:x1] = np.round(part[..., :3] * alpha + pasted[y0:y1, x0:x1] * (1 - alpha)).astype(np.uint8)
        return pasted


def read_image(path: Path) -> Image:
    """A file as uint8 RGB, or RGBA where it has transparency.

    Raises:
        UsageError: it is no picture that OpenCV can read.
    """
    data = cv2.imread(str(path), cv2.IMREAD_UNCHANGED if path.suffix.lower() == ".png" else cv2.IMREAD_COLOR)
    if data is not None and (data.dtype != np.uint8 or data.ndim != 3):
        data = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if data is None:
        raise UsageError(f"{path} is no picture that OpenCV can read; remove it or convert it to JPEG or PNG")
    return np.asarray(cv2.cvtColor(data, cv2.COLOR_BGRA2RGBA if data.shape[2] == 4 else cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _part(images: list[Image], held_out: bool) -> list[Image]:
    return [image for i, image in enumerate(images) if (i % HELD_OUT_EVERY == 0) == held_out]


def _resized(picture: Image, width: int, height: int) -> Image:
    smaller = width * height < picture.shape[0] * picture.shape[1]
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC), dtype=np.uint8)


def _retoned(crop: Image, rng: np.random.Generator) -> Image:
    """Other brightness, contrast and colour cast, as shade and other light would give it."""
    gain = rng.uniform(0.45, 1.1) * rng.uniform(0.85, 1.15, 3)
    gamma = float(rng.uniform(0.75, 1.3))
    return np.round(255 * np.clip((crop / 255.0) ** gamma * gain, 0, 1)).astype(np.uint8)
