"""Whether a folder or bucket is fit for jobs: it answers, can be read and written, and refuses the second of two conditional writes."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Final

from core import s3, storage
from core.errors import CleanplateError, Conflict, StorageError
from jobs.checks import Finding

PATIENCE_SECONDS: Final = 5.0
MOST_SKEW_SECONDS: Final = 300.0
"""S3 refuses requests whose clock is 15 minutes off."""


def check_storage(uris: list[str]) -> Iterator[Finding]:
    """A finding for every folder, and one for the clock where it is in a bucket."""
    for uri in uris:
        with _patience(PATIENCE_SECONDS):
            yield from _check(uri)


def _check(uri: str) -> Iterator[Finding]:
    name = f"storage {uri}"
    try:
        folder = storage.normalize_uri(uri)
        store = storage.storage_for(folder)
        listed = len(list(islice(store.list(folder), 1000)))
        probe = storage.join(folder, f".cleanplate-doctor-{uuid.uuid4().hex}")
        started = time.monotonic()
        try:
            store.write(probe, b"probe", if_absent=True)
            if store.read(probe) != b"probe":
                yield Finding(name, "problem", "an object comes back other than it was written", "use another store")
                return
            milliseconds = (time.monotonic() - started) * 1000 / 2
            conditional = _refuses_second(store, probe)
        finally:
            with contextlib.suppress(StorageError):
                store.delete(probe)
    except CleanplateError as error:
        yield Finding(name, "problem", str(error), "see the message; jobs read their input there and write their output there")
        return
    found = f"readable ({listed if listed < 1000 else 'over 1000'} objects), writable, {milliseconds:.0f} ms a request"
    if conditional:
        yield Finding(name, "ok", found)
    else:
        todo = "it ignores If-None-Match: two jobs could write to one output at once; use a store that knows it"
        yield Finding(name, "problem", f"{found}; a conditional write that had to fail did not", todo)
    if storage.is_s3(folder):
        yield from _clock(folder)


def _refuses_second(store: storage.Storage, probe: str) -> bool:
    try:
        store.write(probe, b"second", if_absent=True)
    except Conflict:
        return True
    return False


def _clock(folder: str) -> Iterator[Finding]:
    """The store's clock against ours, from the date of its answer."""
    bucket, _ = s3.split(folder)
    try:
        answer = s3.s3_client().list_objects_v2(Bucket=bucket, MaxKeys=1)
        written = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    except Exception as error:  # noqa: BLE001 - the store has answered before; whatever this is, it is worth a line and no more
        yield Finding("clock", "warning", f"the store's clock is not known ({type(error).__name__})", "compare the clocks by hand")
        return
    if not written:
        return
    skew = (datetime.now(UTC) - parsedate_to_datetime(written)).total_seconds()
    if abs(skew) > MOST_SKEW_SECONDS:
        yield Finding("clock", "problem", f"{skew:+.0f} s off the store's", "set this machine's clock: S3 refuses requests 15 minutes off")
    else:
        yield Finding("clock", "ok", f"{abs(skew):.0f} s off the store's")


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """A store that does not answer is said so soon; a job would wait for a minute."""
    before, storage.RETRY_SECONDS = storage.RETRY_SECONDS, min(seconds, storage.RETRY_SECONDS)
    try:
        yield
    finally:
        storage.RETRY_SECONDS = before
