"""Peak memory of a running job on this machine: the driver, Ray's worker processes, the object store."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(slots=True)
class Peaks:
    """Largest values seen, in MiB: anonymous memory of this process, of all Ray workers together, and what is in shared memory."""

    driver: float = 0.0
    workers: float = 0.0
    object_store: float = 0.0


class MemoryWatch:
    """Samples once a second between ``__enter__`` and ``__exit__``; the result is in ``peaks``."""

    def __init__(self) -> None:
        self.peaks = Peaks()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._shared_before = _shared_mib()

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self.peaks.driver = max(self.peaks.driver, _anonymous_mib(Path(f"/proc/{os.getpid()}")))
            self.peaks.workers = max(self.peaks.workers, sum(_anonymous_mib(entry) for entry in _ray_workers()))
            self.peaks.object_store = max(self.peaks.object_store, _shared_mib() - self._shared_before)


def _ray_workers() -> list[Path]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::"):
                found.append(entry)
        except OSError:
            continue
    return found


def _anonymous_mib(entry: Path) -> float:
    try:
        lines = (entry / "status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def _shared_mib() -> float:
    space = os.statvfs("/dev/shm")
    return (space.f_blocks - space.f_bfree) * space.f_frsize / 2**20
