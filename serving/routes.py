"""The routes of programs: erase, score, segment, models, health, metrics."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from core.erasing import Erasure
from core.errors import UsageError
from core.masks import decode_mask, encode_mask
from core.record import verdict_for
from core.scoring import make_views
from serving import metrics
from serving.forms import (
    BoxText,
    Candidates,
    Fit,
    ItemId,
    ModelName,
    OptionalPicture,
    Picture,
    Points,
    Seed,
    Served,
    Steps,
    mask_for,
    megapixels_of,
    options,
    parse_prompt,
)
from serving.problems import Problem

router = APIRouter()
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status, text in {
        400: "a broken file", 401: "no key", 404: "unknown or expired", 408: "the body came too slowly", 413: "too large",
        415: "not an image", 422: "wrong values", 429: "too many requests", 503: "busy",
    }.items()
}  # fmt: skip
PNG: dict[str, Any] = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}


@router.post("/v1/erase", response_class=Response, responses={200: {**PNG, "description": "The photo without the object"}, **PROBLEMS})
async def erase(
    request: Request,
    service: Served,
    image: Picture,
    mask: OptionalPicture = None,
    points: Points = None,
    box: BoxText = None,
    candidates: Candidates = 1,
    steps: Steps = None,
    seed: Seed = 0,
    fit: Fit = "crop",
    model: ModelName = None,
    item: ItemId = None,
) -> Response:
    """Take the object under the mask (or under points and box) out of the photo. ``accept: application/json`` gives all candidates."""
    async with service.admitted():
        data = await image.read()
        size = megapixels_of(data, service.settings.max_megapixels)
        async with service.room_for(size * (candidates + 2)):
            source = await service.opened(data)
            chosen = await mask_for(service, source.photo, mask, points, box)
            wanted = options(item, seed, candidates, steps, model, fit)
            as_json = "application/json" in request.headers.get("accept", "")
            found = await service.erase(source, chosen, wanted, Erasure.encode, best_only=not as_json)
            if not as_json:
                return Response(found.encoded[0], media_type="image/png", headers=found.headers)
            results = [
                {"score": one.score, "seed": one.seed, "image": {"type": "image/png", "data": base64.b64encode(picture).decode()}}
                for one, picture in zip(found.candidates, found.encoded, strict=True)
            ]
            body = {"id": found.item, "model": found.label, "results": results, "timings_ms": found.timings_ms}
            return JSONResponse(body, headers=found.headers)


@router.post("/v1/score", responses=PROBLEMS)
async def score(service: Served, image: Picture, mask: Picture, edited: Picture) -> dict[str, Any]:
    """How probable it is that the erasure succeeded, 0 to 1, for a photo, its mask and what someone made of it."""
    async with service.admitted():
        size = await service.graph.scorer_size()
        if size is None:
            raise UsageError("this service has no discriminator; set one to score")
        files = [await part.read() for part in (image, mask, edited)]
        limit = service.settings.max_megapixels
        megapixels = sum(megapixels_of(data, limit, noun) for data, noun in zip(files, ("photo", "mask", "edited photo"), strict=True))
        async with service.room_for(megapixels):
            photo, result = await service.decode(files[0]), await service.decode(files[2])
            if result.pixels.shape != photo.pixels.shape:
                raise UsageError(
                    f"the edited photo is {result.width} x {result.height}, the photo {photo.width} x {photo.height}; they have one size"
                )
            chosen = await service.run(decode_mask, files[1], (photo.width, photo.height), max_megapixels=limit)
            views = await service.run(make_views, size, photo.pixels, chosen.pixels, [result.pixels])
            (found,) = await service.graph.score(views)
    return {"score": found, "verdict": verdict_for(found, accept_above=0.9, uncertain_from=0.5)}


@router.post("/v1/segment", response_class=Response, responses={200: {**PNG, "description": "The mask, 255 = the object"}, **PROBLEMS})
async def segment(
    service: Served,
    image: OptionalPicture = None,
    image_id: Annotated[str | None, Form(max_length=64)] = None,
    base: Annotated[str | None, Form(max_length=64)] = None,
    points: Points = None,
    box: BoxText = None,
) -> Response:
    """The mask of the object that points and box mean, on a photo that is sent or uploaded before."""
    prompt = parse_prompt(points, box)
    if prompt is None:
        raise Problem(422, "wrong_value", "there is neither points nor box; mark the object")
    if (image is None) == (not image_id):
        raise Problem(422, "wrong_value", "send either an image or an image_id")
    async with service.admitted():
        if image is not None:
            data = await image.read()
            size = megapixels_of(data, service.settings.max_megapixels)
            async with service.room_for(size * 2):
                found = await service.segment(await service.decode(data), prompt)
        else:
            found = await service.segment((await service.kept(image_id or "", base or "")).photo, prompt)
        png = await service.run(encode_mask, found.mask)
    return Response(png, media_type="image/png", headers={"X-Cleanplate-Score": f"{found.score:.6f}"})


@router.get("/v1/models", responses=PROBLEMS)
async def models(service: Served) -> dict[str, Any]:
    """The models that requests may name; the first is the default. The form is OpenAI's."""
    return {
        "object": "list",
        "data": [{"id": model.name, "object": "model", "created": 0, "owned_by": "cleanplate"} for model in service.settings.models],
    }


@router.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> str:
    """Whether a replica of the ingress answers."""
    return "ok"


@router.get("/metrics", response_class=PlainTextResponse)
async def scrape(service: Served) -> PlainTextResponse:
    """Series of the graph in Prometheus' text form, of all nodes; new values take some seconds to arrive."""
    return PlainTextResponse(await service.run(metrics.gather), media_type="text/plain; version=0.0.4; charset=utf-8")
