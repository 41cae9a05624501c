"""Fixtures of all tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings

from core.s3 import s3_client
from infra.object_store import LocalObjectStore

# a cluster that somebody has started on this machine is not the tests' to use, nor to wait for
os.environ["RAY_ADDRESS"] = "local"
# an example takes what a busy machine takes: no test assumes a speed
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


class S3:
    """A real S3 server on this machine, to which the AWS variables of the session point."""

    def __init__(self, store: LocalObjectStore) -> None:
        self.store = store

    def bucket(self, name: str) -> str:
        """The URI of a new, empty bucket whose name begins with ``name``."""
        full = f"{name}-{uuid.uuid4().hex[:8]}"
        s3_client().create_bucket(Bucket=full)
        return f"s3://{full}"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    store = LocalObjectStore(tmp_path_factory.mktemp("s3"))
    store.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in store.environment.items():
            patch.setenv(name, value)
        patch.setattr("core.s3._clients", {})
        yield S3(store)
    store.kill()


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest) -> str:
    """An empty folder: once on the local disk, once in a bucket."""
    if request.param == "disk":
        return str(request.getfixturevalue("tmp_path"))
    return f"{request.getfixturevalue('s3').bucket('folder')}/below"
