"""``cleanplate doctor``: right where all is well, and says what is wrong and what to do where it is not."""

from __future__ import annotations

import json
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from core import storage
from jobs import checks, storage_check
from jobs.checks import Finding
from jobs.main import main
from tests.conftest import S3

Usage = namedtuple("Usage", "total used free")


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


@pytest.mark.usefixtures("cluster")
def test_it_ends_with_0_where_nothing_is_wrong_and_1_where_something_is(s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = f"{tmp_path},{s3.bucket('doctor')}/below"
    assert main(["doctor", "--storage", places, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"]
    names = [finding["name"] for finding in answer["findings"]]
    for name in ("Python", "packages", "cores", "shared memory", "ports", "model tiny", "Ray", "clock", f"storage {tmp_path}"):
        assert name in names
    assert list(tmp_path.iterdir()) == [], "a probe was left behind"
    assert main(["doctor", "--storage", "s3://never-made/x", "--model", "tiny,./no-model"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "NoSuchBucket" in text
    assert "cleanplate models pull ./no-model" in text
    assert "2 problems" in text


def test_a_store_that_ignores_conditions_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage.LocalStorage.write

    def unconditional(self: Any, uri: str, data: bytes, *, if_absent: bool = False) -> None:  # noqa: ARG001 - that is the fault
        write(self, uri, data)

    monkeypatch.setattr(storage.LocalStorage, "write", unconditional)
    found = only(list(storage_check.check_storage([str(tmp_path)])))
    assert (found.status, "two jobs could write" in found.todo) == ("problem", True)


def test_a_store_that_is_away_is_said_soon_and_patience_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr("core.s3._clients", {})
    monkeypatch.setattr(storage_check, "PATIENCE_SECONDS", 0.2)
    before = storage.RETRY_SECONDS
    found = only(list(storage_check.check_storage(["s3://bucket/x"])))
    assert found.status == "problem"
    assert "127.0.0.1:9" in found.found
    assert before == storage.RETRY_SECONDS


def test_a_read_only_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert only(list(storage_check.check_storage([str(tmp_path / "file" / "below")]))).status == "problem"


def test_python_and_space() -> None:
    assert next(checks.check_python((3, 10))).status == "problem"
    assert next(checks.check_python((3, 14))).status == "problem"
    assert next(checks.check_python((3, 12))).status == "ok"
    assert next(checks.check_space(Path("/no/such/folder"))).status == "warning"


def test_little_shared_memory_and_a_full_disk_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: Usage(100 * 2**30, 99 * 2**30, 2**30))
    shared, *disks = list(checks.check_space(tmp_path, total_memory=64 * 2**30))
    assert shared.status == "warning"
    assert "--shm-size" in shared.todo
    assert [disk.status for disk in disks] == ["warning", "warning"]
    assert "95 %" in disks[0].todo


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = only(list(checks.check_ports({port: "somebody"})))
    assert (found.status, f"{port} (somebody)" in found.found) == ("warning", True)


def test_no_cluster_at_the_address_is_a_problem_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("jobs.cluster._connect", lambda _: (_ for _ in ()).throw(ConnectionError("nobody there")))
    found = only(list(checks.check_ray("192.0.2.1:6379")))
    assert found.status == "problem"
    assert "ray start --head" in found.todo
    assert "token" in found.todo
