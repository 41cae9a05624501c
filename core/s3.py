"""S3 through boto3: atomic and conditional puts, ranged reads, paginated listing, and errors that name bucket, key and remedy."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, TypeVar

import boto3
import botocore.config
import botocore.exceptions as boto_errors
from boto3.s3.transfer import TransferConfig

from core import storage
from core.errors import Conflict, ObjectMissing, StorageError, StorageUnavailable
from core.storage import ObjectInfo

T = TypeVar("T")
PART = 1 << 26
"""Bytes of a part of a large object."""

_TRANSIENT_CODES = {
    "InternalError",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "RequestTimeout",
    "ServerError",
    "ExpiredTokenException",
    "BadDigest",  # the body changed, or was cut, on its way
    "IncompleteBody",
    "ConditionalRequestConflict",  # two conditional writes at once; asked again, S3 knows who was first
}
_TRANSIENT_ERRORS = (
    boto_errors.EndpointConnectionError,
    boto_errors.ConnectionClosedError,
    boto_errors.ConnectTimeoutError,
    boto_errors.ReadTimeoutError,
    boto_errors.ResponseStreamingError,
    boto_errors.IncompleteReadError,
    boto_errors.HTTPClientError,
    boto_errors.ConnectionError,
    ConnectionError,
    TimeoutError,
)
_REMEDIES = {
    "NoSuchBucket": "there is no such bucket at this endpoint; create it, or correct the name or AWS_ENDPOINT_URL",
    "InvalidAccessKeyId": "the access key is unknown there; check AWS_ACCESS_KEY_ID or the profile",
    "SignatureDoesNotMatch": "the secret key does not fit the access key; check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "no permission; allow this key to read, list and write there",
    "403": "no permission, or a wrong key; check the credentials and the bucket's policy",
    "ExpiredToken": "the session token has expired; renew the credentials",
    "InvalidBucketName": "the bucket's name is not valid; bucket names have 3 to 63 small letters, digits, dots and hyphens",
    "PermanentRedirect": "the bucket lives in another region; set AWS_REGION to it",
}

_clients: dict[int, Any] = {}
_clients_lock = threading.Lock()


def s3_client() -> Any:
    """The boto3 client of this process (clients are safe to share among threads, not across a fork).

    botocore's own retries are off: ours repeat until a deadline.
    """
    with _clients_lock:
        client = _clients.get(os.getpid())
        if client is None:
            client = _clients[os.getpid()] = _new_client()
        return client


def _new_client() -> Any:
    own_endpoint = bool(os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"))
    session = boto3.session.Session()
    config = botocore.config.Config(
        retries={"total_max_attempts": 1},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=64,
        s3={"addressing_style": "path"} if own_endpoint else {},
        # checksums in trailers are newer than many S3-compatible servers
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # a store of one's own needs some region name for signing even where none is configured
    region = session.region_name or ("us-east-1" if own_endpoint else None)
    return session.client("s3", config=config, region_name=region)


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an ``s3://`` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


class S3Storage:
    """The Storage protocol on one S3 endpoint."""

    def read(self, uri: str, limit: int | None = None) -> bytes:
        bucket, key = split(uri)

        def get() -> bytes:
            response = s3_client().get_object(Bucket=bucket, Key=key)
            storage.check_size(uri, int(response["ContentLength"]), limit)
            return bytes(response["Body"].read())

        return _call(uri, get)

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        if length <= 0:
            return b""  # an empty range is none at all to S3, which answers with the whole object
        bucket, key = split(uri)
        span = f"bytes={start}-{start + length - 1}"
        return _call(uri, lambda: s3_client().get_object(Bucket=bucket, Key=key, Range=span)["Body"].read())

    def size(self, uri: str) -> int:
        bucket, key = split(uri)
        return int(_call(uri, lambda: s3_client().head_object(Bucket=bucket, Key=key)["ContentLength"]))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        bucket, key = split(prefix)
        token: str | None = None
        while True:
            arguments = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
            if token:
                arguments["ContinuationToken"] = token
            page = _call(prefix, partial(_page, arguments))
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    version = str(entry.get("ETag") or entry.get("LastModified"))
                    yield ObjectInfo(f"s3://{bucket}/{entry['Key']}", int(entry["Size"]), version)
            token = page.get("NextContinuationToken")
            if not token:
                return

    def write(self, uri: str, data: bytes, *, if_absent: bool = False) -> None:
        bucket, key = split(uri)
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        digest = content_md5(hashlib.md5(data, usedforsecurity=False))
        _call(uri, lambda: s3_client().put_object(Bucket=bucket, Key=key, Body=data, ContentMD5=digest, **condition))

    @contextlib.contextmanager
    def create(self, uri: str) -> Iterator[BinaryIO]:
        bucket, key = split(uri)
        with tempfile.TemporaryFile() as file:
            yield file

            file.flush()
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = content_md5(hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False))) if size <= PART else ""

            def put() -> None:
                # boto3 closes the file that it is given, and a retry needs it again
                with os.fdopen(os.dup(file.fileno()), "rb") as own:
                    own.seek(0)
                    if digest:
                        s3_client().put_object(Bucket=bucket, Key=key, Body=own, ContentMD5=digest)
                    else:  # one request carries at most 5 GB; parts that did not arrive whole never become an object
                        config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART)
                        s3_client().upload_fileobj(own, bucket, key, Config=config)

            _call(uri, put)

    def delete(self, uri: str) -> None:
        bucket, key = split(uri)
        _call(uri, lambda: s3_client().delete_object(Bucket=bucket, Key=key))


def content_md5(digest: hashlib._Hash) -> str:
    """The header by which a store knows that it has the whole body.

    Some (SeaweedFS) otherwise keep an empty object of a writer that was killed between the head of its request and the body.
    """
    return base64.b64encode(digest.digest()).decode()


def _page(arguments: dict[str, str]) -> Any:
    return s3_client().list_objects_v2(**arguments)


def _call(uri: str, operation: Callable[[], T]) -> T:
    """Run one request; repeat it while the failure is passing, up to the deadline; turn the rest into one clear error."""
    deadline = time.monotonic() + storage.RETRY_SECONDS
    delay = 0.1
    while True:
        try:
            return operation()
        except boto_errors.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if status < 500 and status != 429 and code not in _TRANSIENT_CODES:
                raise _definite(uri, code, status, str(error)) from error
            reason = f"{code or status}"
        except boto_errors.NoCredentialsError as error:
            raise StorageError(
                f"no credentials for {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
                "or run where a role is attached"
            ) from error
        except boto_errors.NoRegionError as error:
            raise StorageError(f"no region for {uri}: set AWS_REGION, or AWS_ENDPOINT_URL for a store of your own") from error
        except _TRANSIENT_ERRORS as error:
            reason = type(error).__name__
        except (boto_errors.BotoCoreError, ValueError) as error:
            raise StorageError(f"cannot use {uri}: {' '.join(str(error).split())[:200]}") from error
        if time.monotonic() + delay > deadline:
            raise StorageUnavailable(
                f"{uri}: no answer from {s3_client().meta.endpoint_url} within {storage.RETRY_SECONDS:.0f} s ({reason}); "
                "check that the store is up, then run the same command again"
            )
        time.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(5.0, delay * 2)


def _definite(uri: str, code: str, status: int, text: str) -> StorageError:
    bucket, _ = split(uri)
    if code in {"NoSuchKey", "404", "NotFound"} or (status == 404 and code != "NoSuchBucket"):
        return ObjectMissing(f"no such object: {uri}")
    if code == "PreconditionFailed" or status in {409, 412}:
        return Conflict(f"{uri} exists already")
    if code == "InvalidRange" or status == 416:
        return StorageError(f"{uri} is shorter than expected; it changed while it was read")
    remedy = _REMEDIES.get(code) or _REMEDIES.get(str(status)) or text
    return StorageError(f"cannot use {uri} (bucket {bucket}, {code or status}): {remedy}")
