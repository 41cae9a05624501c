"""The local object store: it starts, listens on loopback alone, keeps its data over a restart, and is gone after stop."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from core.errors import CleanplateError
from infra.object_store import LocalObjectStore


def client(store: LocalObjectStore, secret: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=secret or store.secret_key,
        region_name="us-east-1",
    )


def test_data_outlives_a_restart_and_only_the_key_opens_it(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    store.start()
    try:
        client(store).create_bucket(Bucket="kept")
        client(store).put_object(Bucket="kept", Key="a/b", Body=b"bytes")
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client(store, "wrong").get_object(Bucket="kept", Key="a/b")
        store.stop()
        with pytest.raises(EndpointConnectionError):
            client(store).get_object(Bucket="kept", Key="a/b")
        store.start()
        assert client(store).get_object(Bucket="kept", Key="a/b")["Body"].read() == b"bytes"
        port = int(store.endpoint.rsplit(":", 1)[1])
        with socket.socket() as probe:
            assert probe.connect_ex((socket.gethostbyname(socket.gethostname()), port)) != 0 or socket.gethostbyname(
                socket.gethostname()
            ).startswith("127.")
    finally:
        store.kill()


def test_a_port_that_is_taken_is_not_the_end_and_one_clear_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalObjectStore(tmp_path)
    monkeypatch.setattr("infra.object_store.START_SECONDS", 3.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(store.endpoint.rsplit(":", 1)[1])))
        taken.listen()
        with pytest.raises(CleanplateError, match=r"did not start in 3 attempts; its log .*weed\.log ends: .*"):
            store.start()
    monkeypatch.undo()
    store.start()
    store.kill()
