"""A composed triplet as a record: both pictures through the same encoder, masks without loss, the recipe in the mask's file."""

from __future__ import annotations

from typing import Any, Final, Literal

import cv2

from core import record
from core.composing.composer import Composition
from core.composing.recipe import with_recipe
from core.errors import ItemError
from core.images import Pixels, encode_image
from core.masks import encode_mask

ORIGIN: Final = "compose"
JPEG_QUALITY: Final = 95

PictureFormat = Literal["jpeg", "png"]


def encode_picture(pixels: Pixels, format: PictureFormat) -> bytes:
    """(H, W, 3) uint8 RGB as lossless PNG, or as JPEG of quality 95 with full colour resolution (4:4:4)."""
    if format == "png":
        return encode_image(pixels)
    flags = (
        cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    )  # fmt: skip
    done, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)
    if not done:
        raise ItemError("encode", "encode_failed", f"a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels cannot be written as JPEG")
    return data.tobytes()


def encode_record(made: Composition, item_id: str, *, seed: int, model: str, format: PictureFormat) -> dict[str, Any]:
    """All columns of the record; ``model`` names what it was made of, ``seed`` is the run's."""
    target = encode_picture(made.target, format)
    negative = bool(made.recipe["negative"])
    return record.empty_record(
        id=item_id,
        source=record.image_value(target if negative else encode_picture(made.source, format)),
        mask=record.image_value(with_recipe(encode_mask(made.mask), made.recipe)),
        target=record.image_value(target),
        effect_mask=record.image_value(encode_mask(made.effect_mask)),
        category=made.category,
        origin=ORIGIN,
        width=int(made.source.shape[1]),
        height=int(made.source.shape[0]),
        seed=seed,
        model=model,
    )
