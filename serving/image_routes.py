"""The page's fast path: a photo is uploaded once, mask crops go up, and patches come down."""

from __future__ import annotations

import base64
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile

from core.erasing import Erasure
from core.images import decode_picture
from core.masks import Box, Mask, binary_mask, check_area
from serving.forms import Candidates, DownloadFormat, Fit, ItemId, ModelName, Picture, Seed, Served, Steps, megapixels_of, options
from serving.pictures import MEDIA_TYPES, changed_box, download_format, download_name, encode_patch, encode_result
from serving.problems import Problem
from serving.routes import PROBLEMS
from serving.service import Erased, Service
from serving.store import Result, result_id

router = APIRouter()

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["image"], "properties": {"image": {"type": "string", "format": "binary"}}}
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post("/v1/images", status_code=201, responses=PROBLEMS, openapi_extra=_BODY)
async def upload(request: Request, service: Served) -> JSONResponse:
    """Keep a photo for a while: as the multipart field ``image``, or as the body itself with its content type."""
    async with service.admitted():
        data, name = await _uploaded(request)
        megapixels = megapixels_of(data, service.settings.max_megapixels)
        async with service.room_for(megapixels):
            photo = await service.decode(data)
        kept = await service.run(service.store.put, data, name, photo.format, photo.width, photo.height)
    body = {
        "id": kept.id,
        "width": kept.width,
        "height": kept.height,
        "format": kept.format,
        "expires_in_s": service.store.expires_in(kept.id),
    }
    return JSONResponse(body, 201, headers={"Location": f"/v1/images/{kept.id}"})


async def _uploaded(request: Request) -> tuple[bytes, str]:
    """The file and its name. Raises Problem 415 or 422 where there is none."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await request.body(), "photo"
    if kind != "multipart/form-data":
        raise Problem(415, "unsupported_media_type", f"the content type is {kind[:80]!r}; send multipart/form-data or the bytes as image/*")
    form = await request.form(max_files=4, max_fields=16)
    part = form.get("image")
    if not isinstance(part, UploadFile):
        raise Problem(422, "wrong_value", "image: there is no file of that name in the form")
    return await part.read(), (part.filename or "photo")[:255]


@router.get(
    "/v1/images/{image_id}",
    response_class=Response,
    responses={200: {"description": "The bytes as they came", "content": {"image/*": {}}}, **PROBLEMS},
)
async def download(image_id: str, service: Served) -> Response:
    """The photo as it was uploaded."""
    found = await service.run(service.store.get, image_id)
    return Response(found.data, media_type=MEDIA_TYPES[found.format])


@router.delete("/v1/images/{image_id}", status_code=204, response_class=Response, responses=PROBLEMS)
async def remove(image_id: str, service: Served) -> Response:
    """Forget a photo and its results before they expire."""
    await service.run(service.store.remove, image_id)
    service.forget(image_id)
    return Response(status_code=204)


@router.post("/v1/images/{image_id}/erase", responses=PROBLEMS)
async def erase(
    image_id: str,
    service: Served,
    mask: Picture,
    x: Annotated[int, Form(description="Where the mask's left edge lies on the photo.")] = 0,
    y: Annotated[int, Form(description="Where the mask's top edge lies on the photo.")] = 0,
    candidates: Candidates = 1,
    steps: Steps = None,
    seed: Seed = 0,
    base: Annotated[str | None, Form(max_length=64, description="An earlier result to work on; by default the photo.")] = None,
    fit: Fit = "crop",
    model: ModelName = None,
    item: ItemId = None,
) -> JSONResponse:
    """Erase on an uploaded photo, or on an earlier result; answers the boxes of pixels that change."""
    async with service.admitted():
        data = await mask.read()
        megapixels_of(data, service.settings.max_megapixels, "mask")
        source = await service.kept(image_id, base or "")
        async with service.room_for(source.photo.pixels.size / 3e6 * (candidates + 1)):
            chosen = await service.run(placed_mask, data, x, y, source.photo.width, source.photo.height, service.settings.max_megapixels)
            wanted = options(item, seed, candidates, steps, model, fit)
            found = await service.erase(source, chosen, wanted, partial(_patch, source.profile))
            results = [await _kept_result(service, image_id, base or "", found, steps, place) for place in range(len(found.candidates))]
    body = {
        "image": image_id,
        "id": found.item,
        "model": found.label,
        "calls": steps or found.model.calls,
        "results": results,
        "timings_ms": found.timings_ms,
    }
    return JSONResponse(body, headers=found.headers)


async def _kept_result(
    service: Service, image_id: str, base: str, found: Erased[tuple[Box, bytes]], steps: int | None, place: int
) -> dict[str, Any]:
    one, (box, patch) = found.candidates[place], found.encoded[place]
    name = result_id(image_id, base, found.item, found.label, one.seed, steps, patch.hex())
    kept = Result(name, patch, base, box[0], box[1], found.item, one.seed, one.score, found.label)
    await service.run(service.store.put_result, image_id, kept)
    return {
        "id": name,
        "score": one.score,
        "seed": one.seed,
        "patch": {
            "x": box[0],
            "y": box[1],
            "width": box[2] - box[0],
            "height": box[3] - box[1],
            "type": "image/png",
            "data": base64.b64encode(patch).decode(),
        },
    }


def _patch(profile: bytes, erasure: Erasure, pixels: np.ndarray) -> tuple[Box, bytes]:
    """The box of pixels that changed, and a PNG of them."""
    photo, crop = erasure.photo, erasure.crop
    inside = (max(crop.x, 0), max(crop.y, 0), min(crop.x + crop.side, photo.width), min(crop.y + crop.side, photo.height))
    box = changed_box(photo.pixels, pixels, inside)
    return box, encode_patch(photo, pixels, box, profile)


def placed_mask(data: bytes, x: int, y: int, width: int, height: int, max_megapixels: float) -> Mask:
    """A mask crop put on a mask of the photo's size; what reaches beyond the photo is cut off.

    Raises:
        ItemError: the file is broken, or nothing, or everything, would be removed.
    """
    grey = binary_mask(decode_picture(data, noun="mask", prefix="mask_", max_megapixels=max_megapixels))
    pixels = np.zeros((height, width), np.uint8)
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + grey.shape[1], width), min(y + grey.shape[0], height)
    if x0 < x1 and y0 < y1:
        pixels[y0:y1, x0:x1] = grey[y0 - y : y1 - y, x0 - x : x1 - x]
    check_area(pixels)
    return Mask(pixels)


@router.get(
    "/v1/images/{image_id}/results/{result}",
    response_class=Response,
    responses={200: {"description": "The whole picture", "content": {"image/*": {}}}, **PROBLEMS},
)
async def result(image_id: str, result: str, service: Served, format: DownloadFormat = None) -> Response:
    """The whole picture of a result: by default in the upload's format, with its EXIF, colour profile and name."""
    async with service.admitted():
        upload_ = await service.run(service.store.get, image_id)
        source = await service.kept(image_id, result)
        async with service.room_for(source.photo.pixels.size / 3e6):
            chosen = download_format(format, upload_.format)
            original = await service.kept(image_id)
            data = await service.run(encode_result, upload_.data, original.photo, source.photo.pixels, chosen)
    name = download_name(upload_.name, chosen)
    plain = name.encode("ascii", "replace").decode().replace("?", "_")
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"
    return Response(data, media_type=MEDIA_TYPES[chosen], headers={"Content-Disposition": disposition})
