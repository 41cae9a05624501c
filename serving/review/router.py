"""The routes of the desk: the page at ``/review``, and below ``/v1/review`` what it asks for. All but the page need an annotator's key."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from core.errors import ItemError, UsageError
from core.labels import REASONS
from serving.review.desk import Desk
from serving.review.entries import Decision, QueueItem
from serving.review.hand_out import MOST_AT_ONCE

PAGE: Final = Path(__file__).with_name("page")
_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
MOST_DECISIONS: Final = 500

Id = Annotated[str, Field(min_length=1, max_length=1024)]


class Ask(BaseModel):
    """What the page asks for: more items."""

    model_config = ConfigDict(extra="forbid")

    count: int = Field(16, ge=0, le=MOST_AT_ONCE)
    holding: list[Id] = Field(default_factory=list, max_length=500)
    mode: Literal["single", "grid"] = "single"


class Sent(BaseModel):
    """One decision as the page sends it; the annotator is whoever has the key."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=64)
    item: Id
    kind: Literal["verdict", "reason", "undo"] = "verdict"
    verdict: Literal["accepted", "rejected", "unsure"] | None = None
    reason: str | None = Field(None, max_length=64)
    about: str | None = Field(None, max_length=64)
    milliseconds: int | None = Field(None, ge=0, le=2**53)
    decided_at: float = Field(0.0, ge=0, le=1e11)
    session: str = Field("", max_length=64)
    sequence: int = Field(0, ge=0, le=2**53)
    mode: Literal["single", "grid"] = "single"
    picture: str | None = Field(None, max_length=128)


class Batch(BaseModel):
    """Decisions in the order in which they were made."""

    model_config = ConfigDict(extra="forbid")

    decisions: list[Sent] = Field(min_length=1, max_length=MOST_DECISIONS)


def review_router(desk: Desk) -> APIRouter:
    """The routes of one desk, for any FastAPI application."""
    router = APIRouter(tags=["review"])

    def annotator(authorization: Annotated[str | None, Header()] = None) -> str:
        scheme, _, token = (authorization or "").partition(" ")
        name = desk.annotators.who(token.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise HTTPException(
                401, "no annotator has this key; open the link that cleanplate review printed for you", {"www-authenticate": "Bearer"}
            )
        return name

    @router.get("/review", include_in_schema=False)
    def page() -> Response:
        return _file("index.html")

    @router.get("/review/{name}", include_in_schema=False)
    def page_file(name: str) -> Response:
        return _file(name)

    @router.get("/v1/review/me")
    def me(name: str = Depends(annotator)) -> dict[str, Any]:
        """Who the key belongs to, which queue this is, and how far it is."""
        return {"annotator": name, "queue": desk.queue, "reasons": REASONS, "progress": asdict(desk.store.progress(desk.queue))}

    @router.post("/v1/review/next")
    def next_items(ask: Ask, name: str = Depends(annotator)) -> dict[str, Any]:
        """The next items for this annotator, leased to them."""
        handed = desk.next_items(name, ask.count, ask.holding, grid=ask.mode == "grid")
        return {
            "items": [_shown(item, grid=ask.mode == "grid") for item in handed.items],
            "left": handed.left,
            "progress": asdict(desk.store.progress(desk.queue)),
        }

    @router.get("/v1/review/pictures/{role}", dependencies=[Depends(annotator)])
    def picture(
        role: Literal["source", "mask", "erased"],
        item: Annotated[str, Query(min_length=1, max_length=1024)],
        request: Request,
    ) -> Response:
        """A picture of an item, as it is stored; the ETag is a hash of its bytes."""
        try:
            found = desk.picture(item, role)
        except (UsageError, ItemError) as error:
            raise HTTPException(404, str(error)) from error
        headers = {**_HEADERS, "etag": f'"{found.digest}"', "cache-control": "private, max-age=3600", "vary": "authorization"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(found.data, media_type=found.media_type, headers=headers)

    @router.post("/v1/review/decisions")
    def decide(batch: Batch, name: str = Depends(annotator)) -> dict[str, Any]:
        """Add decisions to the log, each once, however often it is sent; ``refused`` ones will never be taken."""
        refused, rows = {}, []
        for sent in batch.decisions:
            try:
                rows.append(Decision(queue=desk.queue, annotator=name, **sent.model_dump()))
            except UsageError as error:
                refused[sent.id] = str(error)
        refused.update({row.id: why for row, why in zip(rows, desk.store.record_all(rows), strict=True) if why})
        return {
            "stored": [sent.id for sent in batch.decisions if sent.id not in refused],
            "refused": [{"id": name, "why": why} for name, why in refused.items()],
            "progress": asdict(desk.store.progress(desk.queue)),
        }

    return router


def _file(name: str) -> Response:
    path = PAGE / name
    if path.parent != PAGE or path.suffix not in _TYPES or not path.is_file():
        raise HTTPException(404, f"the desk has no file {name}")
    # no-cache: asked for anew, so that a page never runs with parts of an older one
    return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers={**_HEADERS, "cache-control": "no-cache"})


def _shown(item: QueueItem, *, grid: bool) -> dict[str, Any]:
    """What the page may know: not the discriminator's opinion, but in the grid, and never what is gold or shown again."""
    shown: dict[str, Any] = {"id": item.id, "width": item.width, "height": item.height, "category": item.category}
    if grid:
        shown["preset"] = "accepted" if (item.score or 0.0) > 0.5 else "rejected"
    return shown
