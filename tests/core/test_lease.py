"""The lease: one holder at a time, the dead are replaced at once, the living never."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from core import lease, storage
from core.errors import Conflict, StorageError
from core.lease import Lease, LeaseHeld, current_run, is_held

HOLDER = """
import sys, time
from core.lease import Lease
print(Lease.acquire(sys.argv[1]).run, flush=True)
time.sleep(600)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(lease, "TTL_SECONDS", 1.0)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    return monkeypatch


@pytest.fixture
def holder(folder: str) -> Iterator[subprocess.Popen[str]]:
    """Another process on this machine that holds the lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "1"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.usefixtures("quick")
def test_one_of_eight_gets_the_lease(folder: str) -> None:
    for turn in (1, 2):
        barrier = threading.Barrier(8)

        def acquire(_: int, barrier: threading.Barrier = barrier) -> Lease | None:
            barrier.wait()
            try:
                return Lease.acquire(folder)
            except LeaseHeld:
                return None

        with ThreadPoolExecutor(8) as pool:
            winners = [held for held in pool.map(acquire, range(8)) if held]
        assert [held.run for held in winners] == [turn]
        assert current_run(folder) == turn
        assert is_held(folder)
        winners[0].release()
        assert not is_held(folder)


def test_runs_are_counted(folder: str) -> None:
    assert current_run(folder) == 0
    assert not is_held(folder)
    for number in (1, 2, 3):
        held = Lease.acquire(folder)
        assert (held.run, current_run(folder)) == (number, number)
        held.release()


def test_a_living_process_keeps_the_lease(folder: str, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LeaseHeld, match=rf"process {holder.pid} on .*--output") as caught:
        Lease.acquire(folder)
    assert folder in str(caught.value)
    assert current_run(folder) == 1


def test_a_killed_process_is_replaced_at_once(folder: str, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    began = time.monotonic()
    while holder.poll() is None:  # as a zombie it is dead as well, but that is another test
        time.sleep(0.01)
    assert not is_held(folder)
    held = Lease.acquire(folder)
    assert time.monotonic() - began < 3
    assert held.run == 2
    held.release()


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert lease._start_of(process.pid) > 0
    process.kill()
    deadline = time.monotonic() + 120
    while lease._start_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lease._start_of(process.pid) == 0
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def test_a_number_that_is_used_again_is_another_process(tmp_path: object) -> None:
    held = Lease.acquire(str(tmp_path))
    uri = storage.join(str(tmp_path), "run-000001.json")
    values = json.loads(storage.storage_for(uri).read(uri))
    assert values["pid"] == os.getpid()
    storage.storage_for(uri).write(uri, json.dumps({**values, "process_start": values["process_start"] - 1}).encode())
    assert not is_held(str(tmp_path))
    held.release()


def test_another_machine_is_watched(folder: str, quick: pytest.MonkeyPatch) -> None:
    held = Lease.acquire(folder)
    quick.setattr(lease, "_machine", lambda: "elsewhere")
    with pytest.raises(LeaseHeld, match=f"process {os.getpid()}"):
        Lease.acquire(folder)
    assert is_held(folder)
    held._stop.set()  # its machine loses power
    held._thread.join()
    began = time.monotonic()
    heir = Lease.acquire(folder)
    assert time.monotonic() - began >= 0.9
    assert (heir.run, current_run(folder)) == (2, 2)
    heir.release()


@pytest.mark.usefixtures("quick")
def test_a_release_is_seen_while_watching(folder: str, quick: pytest.MonkeyPatch) -> None:
    quick.setattr(lease, "TTL_SECONDS", 20.0)
    quick.setattr(lease, "BEAT_SECONDS", 30.0)
    held = Lease.acquire(folder)
    quick.setattr(lease, "_machine", lambda: "elsewhere")
    threading.Timer(0.5, held.release).start()
    began = time.monotonic()
    Lease.acquire(folder).release()
    assert time.monotonic() - began < 10


def test_a_repeated_request_meets_its_own_first_try(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage.LocalStorage.write

    def lost_answer(self: storage.LocalStorage, uri: str, data: bytes, *, if_absent: bool = False) -> None:
        write(self, uri, data, if_absent=if_absent)
        if if_absent:
            raise Conflict(f"{uri} exists already")

    monkeypatch.setattr(storage.LocalStorage, "write", lost_answer)
    held = Lease.acquire(str(tmp_path))
    assert held.run == 1
    held.release()


def test_a_beat_that_fails_is_tried_again(tmp_path: object, quick: pytest.MonkeyPatch) -> None:
    held = Lease.acquire(str(tmp_path))
    write = storage.LocalStorage.write

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    quick.setattr(storage.LocalStorage, "write", full)
    time.sleep(0.5)
    quick.setattr(storage.LocalStorage, "write", write)
    time.sleep(0.5)
    assert storage.exists(f"{tmp_path}/run-000001.beat")
    held.release()


def test_where_processes_cannot_be_seen_each_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(*_: object) -> str:
        raise OSError("no /proc")

    monkeypatch.setattr("pathlib.Path.read_text", no_proc)
    mine = lease._machine()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert lease._machine() != mine
