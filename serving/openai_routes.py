"""``POST /v1/images/edits`` as OpenAI has it: the official client works unchanged. Transparent pixels of the mask are removed."""

from __future__ import annotations

import base64
import re
import time
from functools import partial
from typing import Annotated, Final

import numpy as np
from fastapi import APIRouter, File, Form, UploadFile
from fastapi.responses import JSONResponse

from core.erasing import Erasure
from core.errors import UsageError
from core.images import MIN_SIDE, Photo, encode_image
from core.masks import Mask, decode_mask, encode_mask
from serving.forms import ItemId, ModelName, Seed, Served, Steps, megapixels_of, options
from serving.pictures import resized
from serving.problems import Problem
from serving.routes import PROBLEMS
from serving.service import Service
from serving.settings import MAX_CANDIDATES

router = APIRouter()

_OTHERS: Final = re.compile(r"^(dall-e|gpt-image|chatgpt-image)")
"""Models that a client of OpenAI's names by itself: they mean the default one here."""
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})")
_MAX_SIDE: Final = 4096
_OPAQUE_FROM: Final = 128


@router.post("/v1/images/edits", responses=PROBLEMS)
async def edit(
    service: Served,
    image: Annotated[list[UploadFile] | None, File(description="The photo; without a mask its own transparent pixels are removed.")] = None,
    images: Annotated[list[UploadFile] | None, File(alias="image[]", description="As image.")] = None,
    mask: Annotated[UploadFile | None, File(description="A picture whose transparent pixels are removed.")] = None,
    prompt: Annotated[str | None, Form(max_length=32_000, description="Taken and of no effect: objects are removed.")] = None,  # noqa: ARG001
    n: Annotated[int, Form(ge=1, le=MAX_CANDIDATES)] = 1,
    size: Annotated[str, Form(max_length=20, description="auto is the photo's; WIDTHxHEIGHT another one of the same shape.")] = "auto",
    response_format: Annotated[str, Form(pattern="^(b64_json|url)$", description="url gives a data: URL.")] = "b64_json",
    model: ModelName = None,
    seed: Seed = 0,
    steps: Steps = None,
    item: ItemId = None,
) -> JSONResponse:
    """Take out of the photo what the mask leaves transparent; ``n`` results, best first."""
    photos = [*(image or []), *(images or [])]
    if len(photos) != 1:
        raise Problem(422, "wrong_value", f"image: {len(photos)} photos were sent; send one")
    async with service.admitted():
        data = await photos[0].read()
        megapixels = megapixels_of(data, service.settings.max_megapixels)
        async with service.room_for(megapixels * (n + 2)):
            source = await service.opened(data)
            wanted = _wanted_size(size, source.photo)
            chosen = await _mask(service, source.photo, mask)
            name = None if model and _OTHERS.match(model) else model
            found = await service.erase(source, chosen, options(item, seed, n, steps, name), partial(_picture, wanted))
    answers = [
        {**_answer(picture, response_format), "seed": one.seed, "score": one.score}
        for one, picture in zip(found.candidates, found.encoded, strict=True)
    ]
    body = {"created": int(time.time()), "data": answers, "output_format": "png", "model": found.label}
    return JSONResponse(body, headers=found.headers)


async def _mask(service: Service, photo: Photo, part: UploadFile | None) -> Mask:
    """What is transparent in the mask, or in the photo where there is none."""
    limit = service.settings.max_megapixels
    if part is None:
        alpha = photo.alpha
        if alpha is None:
            raise UsageError("there is no mask, and the photo has no transparent pixels; send a mask that is transparent over the object")
    else:
        data = await part.read()
        megapixels_of(data, limit, "mask")
        alpha = (await service.decode(data)).alpha
        if alpha is None:
            raise UsageError("the mask has no transparency; send an RGBA PNG that is transparent over the object")
    png = await service.run(encode_mask, np.where(alpha < _OPAQUE_FROM, 255, 0).astype(np.uint8))
    return await service.run(decode_mask, png, (photo.width, photo.height), max_megapixels=limit)


def _wanted_size(text: str, photo: Photo) -> tuple[int, int] | None:
    """(width, height), or None for the photo's own. Raises UsageError where it is none, or of another shape."""
    if text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (MIN_SIDE <= width <= _MAX_SIDE and MIN_SIDE <= height <= _MAX_SIDE):
        raise UsageError(f"size is {text!r}; it must be auto or WIDTHxHEIGHT with sides of {MIN_SIDE} to {_MAX_SIDE}")
    mine, its = width * photo.height, photo.width * height
    if abs(mine - its) * 100 > its * 2:
        raise UsageError(f"size is {text}, the photo is {photo.width} x {photo.height}: use auto, or a size of its shape")
    return None if (width, height) == (photo.width, photo.height) else (width, height)


def _picture(wanted: tuple[int, int] | None, erasure: Erasure, pixels: np.ndarray) -> str:
    """A result of the wanted size as base64 of a PNG."""
    if wanted is None:
        png = erasure.encode(pixels)
    else:
        alpha = erasure.photo.alpha
        png = encode_image(resized(pixels, *wanted), None if alpha is None else resized(alpha, *wanted))
    return base64.b64encode(png).decode()


def _answer(picture: str, response_format: str) -> dict[str, str]:
    return {"b64_json": picture} if response_format == "b64_json" else {"url": f"data:image/png;base64,{picture}"}
