"""Who may call, and how often: keys compared in constant time, and a token bucket for every caller."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from core.errors import UsageError
from serving.problems import Problem, busy
from serving.settings import ServingSettings

MIN_KEY: Final = 16
_MOST_CALLERS: Final = 10_000


def read_keys(settings: ServingSettings) -> tuple[str, ...]:
    """Keys of ``keys_file`` (one a line, ``#`` begins a comment) and of ``CLEANPLATE_API_KEYS`` (separated by commas).

    Raises:
        UsageError: the file cannot be read or holds no key, or a key has fewer than 16 characters.
    """
    lines = os.environ.get("CLEANPLATE_API_KEYS", "").split(",")
    if settings.keys_file:
        try:
            lines += Path(settings.keys_file).expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read keys_file {settings.keys_file} ({error}); write one key a line into it") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if settings.keys_file and not keys:
        raise UsageError(f"keys_file {settings.keys_file} holds no key; write one a line, or leave keys_file away to let everyone call")
    if any(len(key) < MIN_KEY for key in keys):
        raise UsageError(f"a key has fewer than {MIN_KEY} characters; make it of random ones")
    return keys


class Access:
    """Checks the key of a request, and counts."""

    def __init__(self, keys: tuple[str, ...], requests_per_minute: float) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._rate = requests_per_minute / 60
        self._burst = max(1.0, requests_per_minute / 6)
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    @property
    def has_keys(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Mapping[str, str], address: str, *, now: float | None = None) -> None:
        """Raises Problem 401 without a right key, 429 where the caller asks too often.

        A key comes as ``Authorization: Bearer KEY``, as ``X-API-Key``, or as the password of Basic, for which browsers ask by themselves.
        """
        caller = address.encode()
        if self._digests:
            caller = hashlib.sha256(_given_key(headers)).digest()
            # every key is compared, and digests have one length: neither which key nor how much of it was right shows in the time
            matches = [hmac.compare_digest(caller, digest) for digest in self._digests]
            if not any(matches):
                raise Problem(
                    401,
                    "no_key",
                    "the key is missing or wrong; send it as Authorization: Bearer KEY",
                    {"WWW-Authenticate": 'Bearer realm="cleanplate", Basic realm="cleanplate"'},
                )
        if self._rate:
            self._take(caller, time.monotonic() if now is None else now)

    def _take(self, caller: bytes, now: float) -> None:
        tokens, since = self._buckets.pop(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        while len(self._buckets) > _MOST_CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            detail = f"more than {self._rate * 60:g} requests a minute; wait, and spread them"
            raise busy(detail, status=429, after_s=(1 - tokens) / self._rate)


def _given_key(headers: Mapping[str, str]) -> bytes:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return headers.get("x-api-key", "").encode()
