"""Errors as ``application/problem+json`` (RFC 9457), and which of cleanplate's errors becomes which status."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from core.errors import ItemError, StorageUnavailable, UsageError
from serving.networks import ModelChanged

log = logging.getLogger("ray.serve")

BUSY_RETRY_S: Final = 1

_STATUS: Final = {"too_large": 413, "not_an_image": 415, "unsupported_format": 415, "animated": 415, "empty_file": 400,
                  "truncated": 400, "corrupt": 400, "too_small": 422, "empty_mask": 422, "full_mask": 422}  # fmt: skip


class Problem(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        detail: what was got, what is allowed, what to do.
        kind: a short stable word; ``type`` is ``urn:cleanplate:<kind>``.
        headers: further ones, ``Retry-After`` for instance.
    """

    def __init__(self, status: int, kind: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.headers = headers or {}


def busy(detail: str, *, status: int = 503, after_s: float = BUSY_RETRY_S) -> Problem:
    """Too much at a time: 503 (the service) or 429 (this caller), with the seconds after which to try again."""
    return Problem(status, "busy" if status == 503 else "too_many_requests", detail, {"Retry-After": str(max(1, math.ceil(after_s)))})


def problem_of(error: ItemError | UsageError) -> Problem:
    """The answer to an error of core: 400 a bad file, 413 too large, 415 not an image, 422 wrong values, 500 our own fault."""
    if isinstance(error, UsageError):
        return Problem(422, "wrong_value", str(error))
    plain = error.code.removeprefix("mask_")
    if error.stage not in ("decode", "segment"):
        return Problem(500, error.code, error.message)
    return Problem(_STATUS.get(plain, 422), error.code, error.message)


def answer(problem: Problem, request: Request | None = None) -> Response:
    """The response; OpenAI's routes get OpenAI's ``error`` object as well, from which its client makes its messages."""
    body: dict[str, Any] = {
        "type": f"urn:cleanplate:{problem.kind}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    if request is not None and request.url.path.startswith("/v1/images/edits"):
        kind = "invalid_request_error" if problem.status < 500 else "server_error"
        body["error"] = {"message": problem.detail, "type": kind, "param": None, "code": problem.kind}
    return JSONResponse(body, problem.status, headers=problem.headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Handlers for everything that a route may raise."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> Response:
        return answer(error, request)

    @app.exception_handler(ItemError)
    async def _item(request: Request, error: ItemError) -> Response:
        return answer(problem_of(error), request)

    @app.exception_handler(UsageError)
    async def _usage(request: Request, error: UsageError) -> Response:
        return answer(problem_of(error), request)

    @app.exception_handler(ModelChanged)
    async def _changed(request: Request, _: ModelChanged) -> Response:
        request.app.state.service.graph.forget()
        return answer(busy("a new version is rolling out; try again"), request)

    @app.exception_handler(StorageUnavailable)
    async def _away(request: Request, error: StorageUnavailable) -> Response:
        log.warning("%s", error)
        return answer(busy("the storage does not answer; try again", after_s=5), request)

    @app.exception_handler(RequestValidationError)
    async def _values(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0] if error.errors() else {}
        where = ".".join(str(part) for part in first.get("loc", ())[1:]) or "request"
        return answer(Problem(422, "wrong_value", f"{where}: {first.get('msg', 'wrong value')}"), request)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, Problem):  # raised while a form was being read
            return answer(error.__cause__, request)
        kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return answer(Problem(error.status_code, kind, str(error.detail), dict(error.headers or {})), request)

    @app.exception_handler(Exception)
    async def _fault(request: Request, error: Exception) -> Response:
        log.exception("request failed: %s", type(error).__name__)
        return answer(Problem(500, "internal", "something failed here; the log has more under the X-Request-ID of this answer"), request)
