"""S3 when things go wrong: every definite error is one line that names what to correct; passing ones are repeated until a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core import storage
from core.errors import Conflict, ObjectMissing, StorageError, StorageUnavailable
from core.s3 import S3Storage
from tests.conftest import S3
from tests.faulty_s3 import FaultyS3

STORE = S3Storage()
OPERATIONS: dict[str, Callable[[str], object]] = {
    "read": STORE.read,
    "range": lambda uri: STORE.read_range(uri, 0, 3),
    "list": lambda uri: list(STORE.list(uri)),
    "write": lambda uri: STORE.write(uri, b"x"),
}


@pytest.fixture
def fresh(s3: S3, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:  # noqa: ARG001 - sets the variables that are changed here
    """Clients made in this test read the variables as the test sets them."""
    monkeypatch.setattr("core.s3._clients", {})
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    return monkeypatch


def one_line(error: BaseException, *words: str) -> None:
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize("operation", ["read", "range", "list"])
def test_a_missing_bucket_is_named(s3: S3, operation: str) -> None:  # noqa: ARG001 - the server is there, the bucket is not
    with pytest.raises(StorageError) as caught:
        OPERATIONS[operation]("s3://never-made/x")
    assert not isinstance(caught.value, StorageUnavailable | ObjectMissing)
    one_line(caught.value, "never-made", "NoSuchBucket", "create it", "AWS_ENDPOINT_URL")


@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("AWS_ACCESS_KEY_ID", "stranger", "AWS_ACCESS_KEY_ID"), ("AWS_SECRET_ACCESS_KEY", "wrong", "AWS_SECRET_ACCESS_KEY")],
)
def test_wrong_credentials_are_named(s3: S3, fresh: pytest.MonkeyPatch, operation: str, name: str, value: str, says: str) -> None:
    bucket = s3.bucket("locked")
    fresh.setattr("core.s3._clients", {})
    fresh.setenv(name, value)
    with pytest.raises(StorageError) as caught:
        OPERATIONS[operation](f"{bucket}/x")
    assert not isinstance(caught.value, StorageUnavailable)
    one_line(caught.value, bucket, says)
    assert "wrong" not in str(caught.value)


def test_a_size_that_may_not_be_asked_for_is_no_missing_object(s3: S3, fresh: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket("locked")
    fresh.setattr("core.s3._clients", {})
    fresh.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="credentials") as caught:
        storage.exists(f"{bucket}/x")
    assert not isinstance(caught.value, ObjectMissing)


@pytest.mark.parametrize(
    ("absent", "says"), [(["ACCESS_KEY_ID", "SECRET_ACCESS_KEY"], "no credentials"), (["SECRET_ACCESS_KEY"], "artial")]
)
def test_absent_credentials_are_named(fresh: pytest.MonkeyPatch, absent: list[str], says: str) -> None:
    for name in absent:
        fresh.delenv(f"AWS_{name}")
    with pytest.raises(StorageError) as caught:
        STORE.read("s3://some-bucket/x")
    one_line(caught.value, "s3://some-bucket/x", says)


@pytest.mark.parametrize(("name", "value", "says"), [("AWS_PROFILE", "nobody", "nobody"), ("AWS_ENDPOINT_URL", "not a url", "not a url")])
def test_wrong_settings_are_named(fresh: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    fresh.setenv(name, value)
    with pytest.raises(StorageError) as caught:
        STORE.read("s3://some-bucket/x")
    one_line(caught.value, says)


def test_an_impossible_bucket_name_is_named(s3: S3) -> None:  # noqa: ARG001
    with pytest.raises(StorageError) as caught:
        STORE.read("s3://No Bucket!/x")
    one_line(caught.value, "No Bucket!")


def test_a_paused_server_is_waited_for(s3: S3) -> None:
    bucket = s3.bucket("paused")
    STORE.write(f"{bucket}/x", b"kept")
    s3.store.pause()
    timer = threading.Timer(3.0, s3.store.resume)
    timer.start()
    began = time.monotonic()
    try:
        assert STORE.read(f"{bucket}/x") == b"kept"
    finally:
        timer.join()
    assert time.monotonic() - began > 2.5


@pytest.mark.slow
def test_a_server_that_is_stopped_and_started_is_waited_for(s3: S3) -> None:
    bucket = s3.bucket("stopped")
    STORE.write(f"{bucket}/x", b"kept")
    s3.store.kill()
    starter = threading.Timer(2.0, s3.store.start)
    starter.start()
    try:
        assert STORE.read(f"{bucket}/x") == b"kept"
    finally:
        starter.join()


class Scripted:
    """An HTTP server that answers by a list of scripts, one a request, and repeats the last one."""

    def __init__(self, port: int = 0) -> None:
        self.answers: list[tuple[int, bytes, int]] = []
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body, sent = outer.answers[min(outer.requests, len(outer.answers) - 1)]
                outer.requests += 1
                if status == 0:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:sent])
                self.close_connection = True

            do_PUT = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, status: int, body: bytes = b"", sent: int | None = None) -> Scripted:
        self.answers.append((status, body, len(body) if sent is None else sent))
        return self


def error_body(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told so</Message></Error>".encode()


@pytest.fixture
def scripted(fresh: pytest.MonkeyPatch) -> Iterator[Scripted]:
    server = Scripted()
    fresh.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_passing_errors_are_repeated(scripted: Scripted) -> None:
    scripted.answer(503, error_body("SlowDown")).answer(500).answer(0).answer(200, b"whole body", sent=4).answer(200, b"whole body")
    assert STORE.read("s3://bucket/x") == b"whole body"
    assert scripted.requests == 5


@pytest.mark.parametrize(("status", "code"), [(429, "TooMany"), (400, "RequestTimeout"), (409, "ConditionalRequestConflict")])
def test_passing_errors_with_the_status_of_definite_ones_are_repeated(scripted: Scripted, status: int, code: str) -> None:
    scripted.answer(status, error_body(code)).answer(200)
    STORE.write("s3://bucket/x", b"", if_absent=True)
    assert scripted.requests == 2


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (403, "AccessDenied", StorageError, "no permission"),
        (403, "ExpiredToken", StorageError, "renew the credentials"),
        (412, "PreconditionFailed", Conflict, "exists already"),
        (404, "NoSuchKey", ObjectMissing, "s3://bucket/x"),
        (418, "Teapot", StorageError, "told so"),
    ],
)
def test_definite_errors_are_not_repeated(scripted: Scripted, status: int, code: str, kind: type[StorageError], says: str) -> None:
    scripted.answer(status, error_body(code))
    with pytest.raises(kind) as caught:
        STORE.read("s3://bucket/x")
    assert type(caught.value) is kind
    one_line(caught.value, "s3://bucket/x", says)
    assert scripted.requests == 1


def test_after_the_deadline_the_store_is_unavailable(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.5)
    scripted.answer(503)
    began = time.monotonic()
    with pytest.raises(StorageUnavailable) as caught:
        STORE.read("s3://bucket/x")
    assert 0.2 < time.monotonic() - began < 5
    assert scripted.requests >= 2
    one_line(caught.value, "s3://bucket/x", f"127.0.0.1:{scripted.port}", "503", "run the same command again")


def test_a_server_that_comes_late_is_waited_for(fresh: pytest.MonkeyPatch) -> None:
    early = Scripted()
    early.server.shutdown()
    early.server.server_close()
    fresh.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{early.port}")
    late: list[Scripted] = []
    timer = threading.Timer(1.0, lambda: late.append(Scripted(early.port).answer(200, b"here")))
    timer.start()
    assert STORE.read("s3://bucket/x") == b"here"
    timer.join()
    late[0].server.shutdown()
    late[0].server.server_close()


@pytest.mark.parametrize("how", ["write", "create"])
def test_a_writer_that_is_killed_before_the_body_leaves_no_empty_object(s3: S3, fresh: pytest.MonkeyPatch, how: str) -> None:
    uri = f"{s3.bucket('killed')}/shard"

    def put() -> None:
        if how == "write":
            STORE.write(uri, b"x" * 1000)
        else:
            with STORE.create(uri) as file:
                file.write(b"x" * 1000)

    proxy = FaultyS3(s3.store.endpoint)
    try:
        fresh.setattr("core.s3._clients", {})
        fresh.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        fresh.setattr(storage, "RETRY_SECONDS", 1.0)
        proxy.rates = {"killed": 1.0}
        with pytest.raises(StorageUnavailable):
            put()
        proxy.calm()
        time.sleep(1)  # the store notices that nobody is there
        assert proxy.met["killed"]
        assert list(STORE.list(uri.rpartition("/")[0])) == []
        put()
        assert STORE.read(uri) == b"x" * 1000
    finally:
        proxy.close()
