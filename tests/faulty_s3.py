"""A proxy before a real S3 server that breaks some of its answers: errors, throttling, resets, cut bodies, slow reads, old listings."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KINDS = ("500", "503", "reset", "truncated", "slow")
_BODIES = {
    "500": (500, b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"),
    "503": (503, b"<Error><Code>SlowDown</Code><Message>reduce your request rate</Message></Error>"),
}


class FaultyS3:
    """Forwards everything to ``endpoint``; a share ``rates[kind]`` of the requests for objects and listings meets that fault.

    Attributes:
        rates: share of each kind of fault of ``KINDS`` or ``killed`` (the writer, before the body), 0 to 1.
        stale: listings are answered as they were when this was set to True.
        met: how often each fault was met.
    """

    def __init__(self, endpoint: str, seed: int = 0) -> None:
        self.rates: dict[str, float] = {}
        self.met: Counter[str] = Counter()
        self._stale = False
        self._listings: dict[str, tuple[int, bytes]] = {}
        self._random, self._lock = random.Random(seed), threading.Lock()
        target = urlsplit(endpoint)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # else each body waits 40 ms for the acknowledgement of its headers, which no store does
            disable_nagle_algorithm = True
            wbufsize = -1

            def forward(self) -> None:
                outer._answer(self, str(target.hostname), int(target.port or 80))

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A client that is gone is no news here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def stale(self) -> bool:
        return self._stale

    @stale.setter
    def stale(self, value: bool) -> None:
        with self._lock:
            self._stale = value

    def calm(self) -> None:
        """No faults from here on."""
        self.rates, self.stale = {}, False

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _draw(self) -> str | None:
        with self._lock:
            dice = self._random.random()
            for kind, rate in self.rates.items():
                if dice < rate:
                    self.met[kind] += 1
                    return kind
                dice -= rate
        return None

    def _answer(self, handler: BaseHTTPRequestHandler, host: str, port: int) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        kind = self._draw()
        if kind in _BODIES:
            status, text = _BODIES[kind]
            self._send(handler, status, [("Content-Type", "application/xml")], b"" if handler.command == "HEAD" else text)
            return
        if kind == "reset":
            # a close that answers with RST, as a load balancer that gives up does
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.connection.close()
            return
        if kind == "slow":
            time.sleep(0.2)
        listing = handler.command == "GET" and "list-type=2" in handler.path
        if listing and self._stale and (old := self._listings.get(handler.path)) is not None:
            self.met["stale"] += 1
            self._send(handler, old[0], [("Content-Type", "application/xml")], old[1])
            return
        if kind == "killed":
            self._head_alone(handler, host, port)
            handler.close_connection = True
            handler.connection.close()
            return
        status, headers, data = self._real(handler, body, host, port)
        if listing and not self._stale:
            self._listings[handler.path] = (status, data)
        if kind == "truncated" and handler.command == "GET" and status in {200, 206} and len(data) > 1:
            self._send(handler, status, headers, data, sent=len(data) // 2)
            handler.close_connection = True
            return
        self._send(handler, status, headers, data)

    @staticmethod
    def _head_alone(handler: BaseHTTPRequestHandler, host: str, port: int) -> None:
        """What the store gets of a writer that is killed between the head of its request and the body."""
        with socket.create_connection((host, port)) as connection:
            lines = [f"{handler.command} {handler.path} HTTP/1.1", *(f"{name}: {value}" for name, value in handler.headers.items())]
            connection.sendall("\r\n".join([*(line for line in lines if not line.lower().startswith("expect:")), "", ""]).encode())

    def _real(self, handler: BaseHTTPRequestHandler, body: bytes, host: str, port: int) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        try:
            # the signature covers the host that the client named
            connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() not in {"connection", "expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], data: bytes, sent: int | None = None) -> None:
        handler.send_response_only(status)
        length: Any = len(data)
        for name, value in headers:
            if name.lower() == "content-length" and handler.command == "HEAD":
                length = value
            elif name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                handler.send_header(name, value)
        if status not in {204, 304}:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(data[:sent] if sent is not None else data)
