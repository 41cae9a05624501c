"""Bounds on a request's body: how large it may be, and how long it may take to arrive."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import Problem, answer


class BoundedBody:
    """ASGI middleware: 413 above a number of bytes (before they are read where the length is declared), 408 where they come too slowly."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app, self._max_bytes, self._timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await answer(self._too_large(), Request(scope))(scope, receive, send)
            return
        received, complete, started = 0, False, time.monotonic()

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:  # what follows is the client going away, for which a route may wait as long as it likes
                return await receive()
            left = self._timeout_s - (time.monotonic() - started)
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except TimeoutError:
                raise Problem(
                    408, "slow_body", f"the body did not arrive within {self._timeout_s:g} s ({received:,} bytes did); send it faster",
                    {"Connection": "close"},
                ) from None  # fmt: skip
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > self._max_bytes:
                    raise self._too_large()
            return message

        await self._app(scope, bounded, send)

    def _too_large(self) -> Problem:
        return Problem(
            413, "body_too_large", f"the body has more than {self._max_bytes / 2**20:g} MiB; make it smaller, or raise max_upload_mb"
        )
