"""The lease: one job at a time writes to an output.

Every run of a job on an output has a number. Run n holds the output from the moment at which it created ``run-n.json``; that object is
put on condition that there is none, so of two jobs that start at once exactly one gets the number, on a disk and in a bucket alike (no
other conditional operation is used: some S3 servers do not make compare-and-swap atomic). The holder rewrites ``run-n.beat`` every few
seconds, and ``run-n.end`` says that it has left.

A holder is dead when its process is gone (seen at once on the same machine), or when its beat has not changed while another job watched it
for ``TTL_SECONDS``; no clocks of two machines are compared. Whoever finds run n dead or ended may become run n + 1.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from core import storage
from core.errors import CleanplateError, Conflict, ObjectMissing, StorageError

TTL_SECONDS: Final = 30.0
BEAT_SECONDS: Final = 6.0
_RUN: Final = re.compile(r"run-(\d{6})\.json")


class LeaseHeld(CleanplateError):
    """Another job writes to this output."""


class LeaseLost(CleanplateError):
    """Another job has taken the output over; this one must stop."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a run: a process (number and start time) on a machine, and a token that no other has."""

    token: str
    host: str
    machine: str
    pid: int
    process_start: int


class Lease:
    """Holds an output from ``acquire`` to ``release``, with a thread that beats."""

    def __init__(self, folder: str, run: int) -> None:
        self.folder, self.run = folder, run
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, folder: str) -> Lease:
        """Take the lease that lives in ``folder``; watches for up to ``TTL_SECONDS`` where the last holder was on another machine.

        Raises:
            LeaseHeld: a living job holds it; the message says which.
        """
        last = current_run(folder)
        if last:
            _wait_for_end(folder, last)
        mine = Holder(uuid.uuid4().hex, socket.gethostname(), _machine(), os.getpid(), _start_of(os.getpid()))
        uri = _object(folder, last + 1, "json")
        try:
            storage.storage_for(folder).write(uri, json.dumps(asdict(mine)).encode(), if_absent=True)
        except Conflict as error:
            # a request that was repeated after a lost answer meets its own first try
            if _holder(folder, last + 1) != mine:
                raise LeaseHeld(
                    f"another job started on this output at the same moment ({folder}); wait for it, or give another --output"
                ) from error
        return cls(folder, last + 1)

    def release(self) -> None:
        """Leave the output to others."""
        self._stop.set()
        self._thread.join(timeout=BEAT_SECONDS)
        storage.storage_for(self.folder).write(_object(self.folder, self.run, "end"), b"")

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(BEAT_SECONDS):
            count += 1
            try:
                storage.storage_for(self.folder).write(_object(self.folder, self.run, "beat"), str(count).encode())
            except StorageError:  # a full disk or an expired token may pass; without a beat the output is lost to others
                continue


def current_run(folder: str) -> int:
    """The number of the run that holds, or held last, the lease in ``folder``; 0 where there never was one.

    Write tasks compare it with their own: a task of a run that was replaced writes nothing.
    """
    names = (storage.relative(folder, entry.uri) for entry in storage.storage_for(folder).list(folder))
    return max((int(match[1]) for name in names if (match := _RUN.fullmatch(name))), default=0)


def is_held(folder: str) -> bool:
    """Whether a job that is not known to be dead holds the lease."""
    run = current_run(folder)
    return bool(run) and not _ended(folder, run)


def _wait_for_end(folder: str, run: int) -> None:
    if _ended(folder, run):
        return
    holder = _holder(folder, run)
    if holder.machine != _machine():
        seen = _last_beat(folder, run)
        deadline = time.monotonic() + TTL_SECONDS
        while time.monotonic() < deadline and _last_beat(folder, run) == seen:
            if _ended(folder, run):
                return
            time.sleep(min(1.0, TTL_SECONDS / 10))
        if _last_beat(folder, run) == seen:
            return
    raise LeaseHeld(
        f"another job (process {holder.pid} on {holder.host}) is writing to this output ({folder}); wait for it, stop it, "
        "or give another --output"
    )


def _ended(folder: str, run: int) -> bool:
    holder = _holder(folder, run)
    dead = holder.machine == _machine() and _start_of(holder.pid) != holder.process_start
    return dead or storage.exists(_object(folder, run, "end"))


def _holder(folder: str, run: int) -> Holder:
    return Holder(**json.loads(storage.storage_for(folder).read(_object(folder, run, "json"))))


def _last_beat(folder: str, run: int) -> bytes:
    try:
        return storage.storage_for(folder).read(_object(folder, run, "beat"))
    except ObjectMissing:
        return b""


def _object(folder: str, run: int, kind: str) -> str:
    return storage.join(folder, f"run-{run:06d}.{kind}")


def _machine() -> str:
    """This machine and process namespace: process numbers mean something only within one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        # where processes cannot be asked whether they live, each is a machine of its own, so that its beat is watched
        return f"{socket.gethostname()}:{uuid.getnode()}:{os.getpid()}"
    return f"{socket.gethostname()}:{boot}:{namespace}"


def _start_of(pid: int) -> int:
    """When a process started, in clock ticks after boot; 0 for one that is dead. Guards against process numbers that are used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])
