"""The desk as an application of its own: routes, errors as problem details (RFC 9457), a limit on what is sent."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import CleanplateError, StorageUnavailable
from serving.review.desk import Desk
from serving.review.router import review_router

LARGEST_BODY: Final = 1 << 20
log = logging.getLogger(__name__)


def make_app(desk: Desk) -> FastAPI:
    """The application of one desk."""
    app = FastAPI(title="cleanplate review", docs_url=None, redoc_url=None)
    app.include_router(review_router(desk))
    app.add_middleware(_LimitBody)

    @app.get("/", include_in_schema=False)
    def front() -> RedirectResponse:
        return RedirectResponse("review")

    @app.get("/healthz")
    def healthy() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.exception_handler(HTTPException)
    def refused(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(StorageUnavailable)
    def busy(_: Request, error: StorageUnavailable) -> JSONResponse:
        log.warning("%s", error)
        return problem(503, "the database does not answer; try again", {"retry-after": "2"})

    @app.exception_handler(CleanplateError)
    def failed(_: Request, error: CleanplateError) -> JSONResponse:
        log.warning("%s", error)
        return problem(500, str(error))

    return app


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as ``application/problem+json``."""
    body: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


class _LimitBody:
    """Refuses what is larger than ``LARGEST_BODY`` before it is read, and what does not say how large it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            length = dict(scope["headers"]).get(b"content-length")
            if length is None or not length.isdigit() or int(length) > LARGEST_BODY:
                status = 411 if length is None else 413
                answer = problem(status, f"a request says its length, at most {LARGEST_BODY} bytes")
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)
