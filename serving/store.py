"""Uploads and their results, kept for a while.

They lie in a folder, local or ``s3://``, and not in a replica or an actor: any ingress replica can answer for any upload, and a replica
that dies, or a new version that rolls out, costs nobody their work. On several machines the folder has to be one that all of them see.
An id begins with the second in which it was made, so that it tells by itself when it expires, on every store alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from core import storage
from core.errors import ObjectMissing
from serving.problems import Problem, busy

_ID: Final = re.compile(r"[0-9a-f]{32}")
_RESULT: Final = re.compile(r"[0-9a-f]{24}")
_SWEEP_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file: ``name`` is the caller's, for downloads; width and height are after orientation."""

    id: str
    data: bytes
    name: str
    format: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Result:
    """One erasure of an upload: PNG ``patch`` with its corner at x, y, to be painted on ``base`` (another result; empty: the upload)."""

    id: str
    patch: bytes
    base: str
    x: int
    y: int
    item: str
    seed: int
    score: float | None
    model: str


class ImageStore:
    """See the module. Safe to use from many threads and processes at once.

    Args:
        folder: local or ``s3://``.
        max_bytes: above it the oldest uploads are removed, with their results; several processes may exceed it by what they put at once.
        expires_s: age at which an upload is gone.
    """

    def __init__(self, folder: str, max_bytes: int, expires_s: float) -> None:
        self._folder = storage.normalize_uri(folder)
        self._storage = storage.storage_for(self._folder)
        self._max_bytes, self._expires_s = max_bytes, expires_s
        self._lock = threading.Lock()
        self._swept = 0.0
        self._bytes = 0

    def put(self, data: bytes, name: str, image_format: str, width: int, height: int) -> Upload:
        """Keep an upload. Raises Problem 503 where it alone is more than may be kept."""
        upload = Upload(f"{int(time.time()):08x}{secrets.token_hex(12)}", data, name, image_format, width, height)
        self._make_room(len(data))
        self._write(upload.id, "source", {**asdict(upload), "data": None}, data)
        return upload

    def get(self, image_id: str) -> Upload:
        """Raises Problem 404 where it is unknown or expired."""
        values, data = self._read(image_id, "source")
        return Upload(**{**values, "data": data})

    def remove(self, image_id: str) -> None:
        """Remove an upload and its results. Raises Problem 404 as ``get``."""
        self.check(image_id)
        names = [found.uri for found in self._storage.list(storage.join(self._folder, image_id))]
        for uri in names:
            self._storage.delete(uri)

    def put_result(self, image_id: str, result: Result) -> None:
        """Keep a result; the same one again changes nothing. Raises Problem 404 where the upload is gone."""
        self.check(image_id)
        self._make_room(len(result.patch))
        self._write(image_id, result.id, {**asdict(result), "patch": None}, result.patch)

    def get_result(self, image_id: str, result_id: str) -> Result:
        """Raises Problem 404 where upload or result are unknown or expired."""
        if not _RESULT.fullmatch(result_id):
            raise _unknown(result_id, "result")
        values, patch = self._read(image_id, result_id)
        return Result(**{**values, "patch": patch})

    def chain(self, image_id: str, result_id: str) -> list[Result]:
        """The result and all that it was made on, the first first."""
        found: list[Result] = []
        while result_id:
            found.append(self.get_result(image_id, result_id))
            result_id = found[-1].base
        return found[::-1]

    def check(self, image_id: str) -> None:
        """Raises Problem 404 where there is no such upload (any more)."""
        self._check(image_id)
        try:
            self._storage.size(storage.join(self._folder, image_id, "source"))
        except ObjectMissing:
            raise _unknown(image_id) from None

    def expires_in(self, image_id: str) -> int:
        """Seconds that are left, 0 and more."""
        return max(0, int(int(image_id[:8], 16) + self._expires_s - time.time()))

    def _check(self, image_id: str) -> None:
        if not _ID.fullmatch(image_id) or int(image_id[:8], 16) + self._expires_s <= time.time():
            raise _unknown(image_id)

    def _read(self, image_id: str, name: str) -> tuple[dict[str, Any], bytes]:
        self._check(image_id)
        try:
            whole = self._storage.read(storage.join(self._folder, image_id, name))
        except ObjectMissing:
            raise _unknown(image_id if name == "source" else name, "image" if name == "source" else "result") from None
        size = int.from_bytes(whole[:4], "big")
        return json.loads(whole[4 : 4 + size]), whole[4 + size :]

    def _write(self, image_id: str, name: str, values: dict[str, object], data: bytes) -> None:
        head = json.dumps(values).encode()
        self._storage.write(storage.join(self._folder, image_id, name), len(head).to_bytes(4, "big") + head + data)
        with self._lock:
            self._bytes += len(data)

    def _make_room(self, more: int) -> None:
        if more > self._max_bytes:
            raise busy(f"uploads may take {self._max_bytes / 2**20:g} MiB together, this one is larger; raise store_mb", after_s=60)
        with self._lock:
            if time.monotonic() - self._swept < _SWEEP_S and self._bytes + more <= self._max_bytes:
                return
            self._sweep(more)
            self._swept = time.monotonic()

    def _sweep(self, more: int) -> None:
        """Remove what is expired, and the oldest as far as room is needed. Two replicas may do it at once: removing twice is no error."""
        groups: dict[str, list[storage.ObjectInfo]] = {}
        for found in self._storage.list(self._folder):
            groups.setdefault(storage.relative(self._folder, found.uri).split("/")[0], []).append(found)
        self._bytes = sum(found.size for group in groups.values() for found in group)
        oldest_living = f"{max(0, int(time.time() - self._expires_s)):08x}"
        for name in sorted(name for name in groups if _ID.fullmatch(name)):
            if name >= oldest_living and self._bytes + more <= self._max_bytes:
                break
            for found in groups[name]:
                self._storage.delete(found.uri)
                self._bytes -= found.size
            if not storage.is_s3(self._folder):
                with contextlib.suppress(OSError):
                    Path(storage.join(self._folder, name)).rmdir()


def result_id(*parts: object) -> str:
    """The id of a result: a hash of all that decides it, so that a request that is sent again gives the same one."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=12).hexdigest()


def _unknown(name: str, noun: str = "image") -> Problem:
    shown = name if re.fullmatch(r"[0-9A-Za-z_-]{1,64}", name) else "that"
    return Problem(404, f"no_{noun}", f"there is no {noun} {shown}: it never was, or has expired; upload the photo again")
