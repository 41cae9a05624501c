"""One Ray for all tests of a file: a job runs in the cluster at hand, so each costs seconds and not a start of Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from infra.object_store import LocalObjectStore
from tests.conftest import S3
from tests.jobs.support import write_pairs


@pytest.fixture(scope="module")
def cluster(s3: S3) -> Iterator[None]:  # noqa: ARG001 - workers inherit the AWS variables that it sets
    """A Ray of two CPUs in this process."""
    ray.shutdown()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", address="local")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small photos with masks."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), 40)


@pytest.fixture
def own_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A server that a test may stop, start and break."""
    store = LocalObjectStore(tmp_path / "own-s3")
    store.start()
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("core.s3._clients", {})
    yield S3(store)
    store.stop()
