"""One real ``cleanplate serve`` for all tests of serving, on a free port, and the same application without Ray."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.graph import LocalGraph
from serving.service import Service
from serving.settings import ServingSettings
from serving.store import ImageStore
from serving.web import make_app
from tests.jobs.support import start_command

START_S = 300.0


def wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address that ``cleanplate serve --json`` prints when it answers."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith('{"url"'):
                return str(json.loads(line)["url"])
        time.sleep(0.2)
    raise AssertionError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End what was started, kindly at first."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a served graph with the embedded model."""
    folder = tmp_path_factory.mktemp("serve")
    log = folder / "log"
    process = start_command("serve", "--port", "0", "--json", "--store", str(folder / "uploads"), log=log, RAY_ADDRESS="")
    try:
        yield wait_for_url(process, log)
    finally:
        end(process)


def make_client(folder: Path, keys: tuple[str, ...] = (), **values: object) -> TestClient:
    """The application in this process, with an eraser that takes no time."""
    settings = ServingSettings.of({"model": "opencv", "discriminator": "none", **values})
    store = ImageStore(str(folder / "store"), int(settings.store_mb * 2**20), settings.expires_s)
    return TestClient(make_app(Service(settings, LocalGraph(settings, None), store, keys)), raise_server_exceptions=False)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return make_client(tmp_path)
