"""The steps of one erasure, the same for a job's worker and for the served graph: open, crop, fill, paste, encode.

``core.workload`` strings them together for a block of items in one process, ``serving`` for one request across processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.crops import Crop, CropRule, Fill, make_crop, paste
from core.eraser import Eraser
from core.errors import ItemError
from core.images import Photo, decode_photo, encode_edited
from core.masks import Mask, decode_mask
from core.record import item_seed


@dataclass(frozen=True, slots=True)
class Erasure:
    """One photo with one mask, and the crop of it that a network sees."""

    photo: Photo
    mask: Mask
    crop: Crop

    @classmethod
    def of(cls, photo: Photo, mask: Mask, rule: CropRule) -> Erasure:
        """The erasure of a photo and mask that are decoded already."""
        return cls(photo, mask, make_crop(photo.pixels, mask.pixels, rule))

    @classmethod
    def open(cls, source: bytes, mask: bytes, rule: CropRule, max_megapixels: float) -> Erasure:
        """Decode both files and crop. Raises ItemError as ``decode_photo`` and ``decode_mask``."""
        photo = decode_photo(source, max_megapixels=max_megapixels)
        return cls.of(photo, decode_mask(mask, (photo.width, photo.height), max_megapixels=max_megapixels), rule)

    def results(self, fills: Sequence[Fill]) -> list[np.ndarray]:
        """The whole photo (H, W, 3) uint8 with each fill pasted in."""
        return [paste(self.photo.pixels, self.crop, fill) for fill in fills]

    def encode(self, result: np.ndarray, image_format: str = "png") -> bytes:
        """Lossless bytes of one result, with the photo's alpha and depth."""
        return encode_edited(self.photo, result, format=image_format)  # type: ignore[arg-type]


def candidate_seeds(item_id: str, seed: int, candidates: int) -> list[int]:
    """The noise seed of every candidate of an item; see ``core.record.item_seed``."""
    return [item_seed(item_id, seed, candidate) for candidate in range(candidates)]


def fill_crops(eraser: Eraser, crops: Sequence[Crop], seeds: Sequence[int]) -> list[Fill]:
    """What the eraser makes of crops, one fill a crop.

    Raises:
        ItemError: stage ``erase``, code ``bad_fill``: an eraser of one's own gave another number, shape or type.
    """
    fills = [fill if isinstance(fill, Fill) else Fill(fill) for fill in eraser.fill(crops, seeds)]
    if len(fills) != len(crops) or any(
        fill.pixels.shape != crop.pixels.shape or fill.pixels.dtype != np.uint8 for fill, crop in zip(fills, crops, strict=False)
    ):
        raise ItemError("erase", "bad_fill", f"model {eraser.name} gave pictures of the wrong number, shape or type; fix its fill()")
    return fills
