"""What routes take: the fields of forms, with their ranges, and uploaded files within the limits."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Depends, File, Form, Query, Request, UploadFile

from core.errors import UsageError
from core.headers import Rejected, read_header
from core.images import Photo
from core.masks import Mask, decode_mask, encode_mask
from core.perception.segmentation import Click, Prompt
from serving.problems import Problem
from serving.service import EraseOptions, Service
from serving.settings import MAX_CANDIDATES, MAX_SEED, MAX_STEPS

ID_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]{1,256}$"


def service_of(request: Request) -> Service:
    """The replica's ``Service``."""
    found: Service = request.app.state.service
    return found


Served = Annotated[Service, Depends(service_of)]
Candidates = Annotated[int, Form(ge=1, le=MAX_CANDIDATES, description="Erasures with different noise, of which the best by score wins.")]
Steps = Annotated[int | None, Form(ge=1, le=MAX_STEPS, description="Network calls; the default is the model's.")]
Seed = Annotated[int, Form(ge=0, le=MAX_SEED, description="Seed of the noise, with the item's id.")]
ItemId = Annotated[str | None, Form(alias="id", pattern=ID_PATTERN, description="The item's id; by default a hash of photo and mask.")]
ModelName = Annotated[str | None, Form(max_length=256, description="One of /v1/models.")]
Fit = Annotated[str, Form(pattern="^(crop|whole)$", description="What passes the network: the mask's surroundings or the whole photo.")]
Points = Annotated[str | None, Form(max_length=20_000, description="JSON [[x, y, label], ...]; label 1 is the object, 0 is not.")]
BoxText = Annotated[str | None, Form(max_length=200, description="JSON [x0, y0, x1, y1] in pixels.")]
Picture = Annotated[UploadFile, File(description="JPEG, PNG, WebP, TIFF, BMP or GIF.")]
OptionalPicture = Annotated[UploadFile | None, File(description="JPEG, PNG, WebP, TIFF, BMP or GIF.")]
DownloadFormat = Annotated[str | None, Query(alias="format", pattern="^(png|jpeg|webp)$")]


def options(item: str | None, seed: int, candidates: int, steps: int | None, model: str | None, fit: str = "crop") -> EraseOptions:
    """The options of an erasure."""
    return EraseOptions(item=item, seed=seed, candidates=candidates, steps=steps, model=model or None, fit=fit)


def megapixels_of(data: bytes, limit: float, noun: str = "photo") -> float:
    """Megapixels by the header alone, before anything is decoded. Raises Problem 413 above ``limit``, ItemError-like 400 or 415."""
    try:
        head = read_header(data)
    except Rejected as reason:
        status = 415 if reason.code in ("not_an_image", "unsupported_format") else 400
        raise Problem(status, reason.code, f"the {noun} {reason.text}") from reason
    found = head.width * head.height / 1e6
    if found > limit:
        raise Problem(
            413,
            "too_large",
            f"the {noun} has {found:,.1f} megapixels ({head.width} x {head.height}); allowed are {limit:g}: make it smaller",
        )
    return found


def parse_prompt(points: str | None, box: str | None) -> Prompt | None:
    """Clicks and box from their JSON; None where neither is given. Raises Problem 422."""
    if not points and not box:
        return None
    clicks = []
    for entry in _json("points", points) if points else []:
        if not _numbers(entry, (2, 3)):
            raise Problem(422, "wrong_value", "points must be JSON [[x, y, label], ...] of numbers; label 1 is the object, 0 is not")
        clicks.append(Click(float(entry[0]), float(entry[1]), bool(entry[2]) if len(entry) > 2 else True))
    if len(clicks) > 256:
        raise Problem(422, "wrong_value", f"{len(clicks)} points were given; at most 256 are allowed")
    corners = _json("box", box) if box else None
    if corners is not None and not _numbers(corners, (4,)):
        raise Problem(422, "wrong_value", "box must be JSON [x0, y0, x1, y1] of numbers")
    return Prompt(None if corners is None else tuple(float(value) for value in corners), tuple(clicks))  # type: ignore[arg-type]


def _json(name: str, text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise Problem(422, "wrong_value", f"{name} is not a JSON list")
    return found


def _numbers(values: Any, lengths: tuple[int, ...]) -> bool:
    return (
        isinstance(values, list)
        and len(values) in lengths
        # in this order: a whole number of a thousand digits is no float
        and all(isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 for value in values)
    )


async def mask_for(service: Service, photo: Photo, mask: UploadFile | None, points: str | None, box: str | None) -> Mask:
    """The mask that was sent, or that of what clicks and box mean. Raises Problem, ItemError or UsageError."""
    if mask is not None:
        data = await mask.read()
        megapixels_of(data, service.settings.max_megapixels, "mask")
        return await service.run(decode_mask, data, (photo.width, photo.height), max_megapixels=service.settings.max_megapixels)
    prompt = parse_prompt(points, box)
    if prompt is None:
        raise UsageError("there is no mask; send one, or points or a box of the object")
    found = await service.segment(photo, prompt)
    return await service.run(decode_mask, encode_mask(found.mask), (photo.width, photo.height), max_megapixels=1e5)
