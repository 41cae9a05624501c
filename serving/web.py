"""The FastAPI application: routes, the page, limits, keys, errors. It runs in a replica of the ingress, or anywhere else."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import image_routes, openai_routes, problems, routes
from serving.body import BoundedBody
from serving.problems import Problem, answer
from serving.service import Service

PAGE: Final = Path(__file__).parent / "page"

_PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "RFC 9457",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {"type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"}, "detail": {"type": "string"}},
}

_SECURITY: Final = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


def make_app(service: Service) -> FastAPI:
    """The application around a service."""
    settings = service.settings
    app = FastAPI(title="cleanplate", version=_version(), description="Takes objects out of photos.", docs_url=None, redoc_url=None)
    app.state.service = service
    # before the routes of /v1/images/{id}, which would take "edits" for an id
    for part in (openai_routes, routes, image_routes):
        app.include_router(part.router)
    if service.desk is not None:
        from serving.review.router import review_router

        app.include_router(review_router(service.desk), responses=routes.PROBLEMS)
    problems.install(app)
    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]
    if (PAGE / "index.html").is_file():
        app.mount("/page", StaticFiles(directory=PAGE), name="page")

        @app.get("/", include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(PAGE / "index.html")

    app.add_middleware(BoundedBody, max_bytes=settings.max_upload_bytes, timeout_s=settings.body_timeout_s)
    app.add_middleware(Gate, service=service)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "x-api-key", "content-type"],
            expose_headers=["location", "retry-after", "x-cleanplate-id", "x-cleanplate-seed", "x-cleanplate-score", "x-cleanplate-model"],
        )
    return app


class Gate:
    """ASGI middleware: keys and rates before a byte of the body is read, safe headers, and a count of every answer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((name, value) for name, value in _SECURITY.items() if name not in present)]
                route = getattr(scope.get("route"), "path", "other")
                self._service.metrics.observe_answer(route, message["status"])
            await send(message)

        path = scope["path"]
        # annotators have keys of their own, which the desk checks
        if (path.startswith("/v1/") and not path.startswith("/v1/review/")) or (path == "/" and self._service.access.has_keys):
            try:
                client = scope.get("client") or ("", 0)
                self._service.access.check(Headers(scope=scope), client[0])
            except Problem as problem:
                await answer(problem, Request(scope))(scope, receive, counted)
                return
        await self._app(scope, receive, counted)


def _schema(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        found.setdefault("components", {}).setdefault("schemas", {})["Problem"] = _PROBLEM_SCHEMA
        for path in found["paths"].values():
            for operation in path.values():
                # FastAPI writes its own form of 422 beside ours
                content = operation["responses"].get("422", {}).get("content", {})
                content.pop("application/json", None)
        app.openapi_schema = found
    return app.openapi_schema


def _version() -> str:
    try:
        return version("cleanplate")
    except PackageNotFoundError:
        return "0"
