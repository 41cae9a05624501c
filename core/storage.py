"""Objects by URI, on a local disk or in any S3 store, with the few operations that the rest needs.

Writes are atomic: a reader sees the whole object or none. Writes on condition that there is no such object are what leases are made of.
Reads and writes that fail in passing are repeated with exponential back-off for ``RETRY_SECONDS``; only then is ``StorageUnavailable``
raised, which stops a job (and never counts against an item). S3 endpoint and credentials come from the standard AWS variables and files
(``AWS_ENDPOINT_URL``, ``AWS_PROFILE``, ...), read by boto3.
"""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from core.errors import Conflict, ObjectMissing, ObjectTooLarge, StorageError, UsageError

RETRY_SECONDS = float(os.environ.get("CLEANPLATE_STORAGE_RETRY_SECONDS", "60"))


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object: its full URI, its size in bytes, and something that changes whenever it is written anew (ETag or time)."""

    uri: str
    size: int
    version: str = ""


class Storage(Protocol):
    """What a store can do. URIs are whole (``/data/x.png``, ``s3://bucket/x.png``)."""

    def read(self, uri: str, limit: int | None = None) -> bytes:
        """All bytes. Raises ObjectMissing, StorageError, StorageUnavailable; ObjectTooLarge, before reading, above ``limit`` bytes."""

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start`` on (fewer at the end of the object)."""

    def size(self, uri: str) -> int:
        """Bytes of the object. Raises ObjectMissing."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the folder ``prefix``; nothing where there is no such folder.

        The order is the store's own: not all sort alike.
        """

    def write(self, uri: str, data: bytes, *, if_absent: bool = False) -> None:
        """Put the object atomically. With ``if_absent`` exactly one of many writers succeeds; Conflict is raised for the others."""

    def create(self, uri: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A file to write into, which becomes the object, atomically, when the block ends; an error in the block leaves no object.

        For large objects: nothing of them is held in memory.
        """

    def delete(self, uri: str) -> None:
        """Remove the object; no error where there is none."""


class LocalStorage:
    """Files. An atomic write is a rename of a hidden temporary file in the same folder."""

    def read(self, uri: str, limit: int | None = None) -> bytes:
        with _local_errors(uri):
            path = Path(uri)
            if limit is not None and not path.is_dir():
                check_size(uri, path.stat().st_size, limit)
            return path.read_bytes()

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        with _local_errors(uri), Path(uri).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def size(self, uri: str) -> int:
        with _local_errors(uri):
            return Path(uri).stat().st_size

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if Path(prefix).is_dir():
            yield from _walk(str(Path(prefix)))

    def write(self, uri: str, data: bytes, *, if_absent: bool = False) -> None:
        with self._placed(uri, if_absent) as file:
            file.write(data)

    def create(self, uri: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return self._placed(uri, if_absent=False)

    @contextlib.contextmanager
    def _placed(self, uri: str, if_absent: bool) -> Iterator[BinaryIO]:
        path = Path(uri)
        with _local_errors(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
            try:
                with temporary.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                if if_absent:
                    try:
                        os.link(temporary, path)
                    except FileExistsError as error:
                        raise Conflict(f"{uri} exists already") from error
                else:
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def delete(self, uri: str) -> None:
        with _local_errors(uri):
            Path(uri).unlink(missing_ok=True)


_TEMPORARY = ".cleanplate-tmp-"


def _walk(folder: str) -> Iterator[ObjectInfo]:
    """Files below a folder in the order of their names; links are followed, and what may not be read is an error."""
    with _local_errors(folder), os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: f"{entry.name}/" if entry.is_dir() else entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path)
        elif not entry.name.startswith(_TEMPORARY):
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat()
                yield ObjectInfo(entry.path, found.st_size, str(found.st_mtime_ns))


@contextlib.contextmanager
def _local_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing(f"no such file: {uri}") from error
    except PermissionError as error:
        raise StorageError(f"no permission for {error.filename or uri}; allow it for this user, or name another path") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise StorageError(f"{uri} is not a file ({error.strerror}); name a file") from error
    except OSError as error:
        raise StorageError(f"cannot use {uri}: {error.strerror or error}") from error


class ObjectReader(io.RawIOBase):
    """A seekable read-only file over ranged reads, for Parquet footers and single columns of large objects."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage = storage
        self._uri = uri
        self._size = storage.size(uri)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        data = self._storage.read_range(self._uri, self._position, length) if length else b""
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def check_size(uri: str, size: int, limit: int | None) -> None:
    """Raises ObjectTooLarge where ``size`` bytes are above ``limit``."""
    if limit is not None and size > limit:
        raise ObjectTooLarge(f"{uri} has {size / 2**20:.0f} MiB; at most {limit / 2**20:.0f} MiB are read; is it a picture?")


def is_s3(uri: str) -> bool:
    """Whether the URI names an object (or folder) in an S3 store."""
    return uri.startswith("s3://")


def storage_for(uri: str) -> Storage:
    """The store that holds ``uri``: a local path, ``file://`` or ``s3://``.

    Raises:
        UsageError: the scheme is none of these, or an ``s3://`` URI names no bucket.
    """
    if is_s3(uri):
        from core.s3 import S3Storage  # boto3 takes 0.3 s to import; local work needs none of it

        return S3Storage()
    scheme, separator, _ = uri.partition("://")
    if separator:
        raise UsageError(f"cannot use {uri}: scheme {scheme}:// is not supported; give a local path or s3://bucket/path")
    return LocalStorage()


def normalize_uri(uri: str) -> str:
    """A URI as the rest uses it: no trailing slash, ``file://`` and ``~`` resolved, local paths absolute.

    Raises:
        UsageError: it is empty, of an unknown scheme, or an ``s3://`` URI without a bucket.
    """
    if not uri:
        raise UsageError("an empty path was given; give a local path or s3://bucket/path")
    if is_s3(uri):
        if not uri.removeprefix("s3://").split("/", 1)[0]:
            raise UsageError(f"{uri} names no bucket; write s3://bucket/path")
        return uri.rstrip("/")
    local = uri.removeprefix("file://")
    storage_for(local)
    return str(Path(local).expanduser().absolute())


def join(uri: str, *names: str) -> str:
    """``uri`` with names below it, joined by single slashes."""
    return "/".join([uri.rstrip("/"), *(name.strip("/") for name in names)])


def resolve(base: str, uri: str) -> str:
    """``uri`` as it is if whole (absolute path or with a scheme), else relative to the folder ``base``."""
    if "://" in uri or uri.startswith("/"):
        return normalize_uri(uri)
    return join(base, uri)


def relative(base: str, uri: str) -> str:
    """``uri`` relative to the folder ``base`` that contains it."""
    return uri.removeprefix(base.rstrip("/") + "/")


def parent(uri: str) -> str:
    """The folder that holds ``uri``."""
    return uri.rstrip("/").rsplit("/", 1)[0] or "/"


def exists(uri: str) -> bool:
    """Whether there is an object at exactly this URI."""
    try:
        storage_for(uri).size(uri)
    except ObjectMissing:
        return False
    return True
