"""One real ``cleanplate serve`` for all tests of serving, on a free port, and the same application without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from fastapi.testclient import TestClient

from serving.graph import LocalGraph
from serving.review.desk import Desk
from serving.service import Service
from serving.settings import ServingSettings
from serving.store import ImageStore
from serving.web import make_app
from tests.jobs.support import ROOT, command, environment

START_S = 300.0


# the kernel tells the command when its parent dies, however it dies; exec keeps that
_WITH_PARENT: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def with_parent(line: list[str]) -> list[str]:
    """A command that gets SIGTERM when this process dies."""
    return [sys.executable, "-c", _WITH_PARENT, str(os.getpid()), *line]


def start_server(*flags: str, log: Path, **extra: str) -> subprocess.Popen[bytes]:
    """Start ``cleanplate serve`` on a free port, on a Ray of its own; where this process dies, however it dies, the command ends, too."""
    line = with_parent(command("serve", "--port", "0", "--json", *flags))
    values = environment(**{"RAY_ADDRESS": "local", **extra})
    with log.open("ab") as out:
        return subprocess.Popen(line, stdout=out, stderr=out, env=values, cwd=ROOT, start_new_session=True)


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
    process = start_server("--store", str(folder / "uploads"), log=log)
    try:
        yield wait_for_url(process, log)
    finally:
        end(process)


def make_client(folder: Path, keys: tuple[str, ...] = (), desk: Desk | None = None, **values: object) -> TestClient:
    """The application in this process, with an eraser that takes no time."""
    settings = ServingSettings.of({"models": ["opencv"], "discriminator": "none", **values})
    store = ImageStore(str(folder / "store"), int(settings.store_mb * 2**20), settings.expires_s)
    return TestClient(make_app(Service(settings, LocalGraph(settings, None), store, keys, desk)), raise_server_exceptions=False)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return make_client(tmp_path)
