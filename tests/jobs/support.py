"""Shared by the tests of jobs: small collections, the command as a process, and reading what a job wrote."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from core import storage
from core.ledger import list_output
from core.readers import parquet_source
from tests.erasers import POISON

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "assets" / "samples"


def write_pairs(folder: Path, count: int, *, poison: tuple[int, ...] = (), side: int = 64) -> Path:
    """A source/ mask/ folder of ``count`` different small photos; those numbered in ``poison`` carry the mark of tests.erasers."""
    for name in ("source", "mask"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        pixels = np.full((side, side, 3), generator.integers(0, 200, 3), np.uint8)
        pixels[::4] //= 2
        if number in poison:
            pixels[:] = POISON
        mask = np.zeros((side, side), np.uint8)
        corner = int(generator.integers(10, 30))
        mask[corner : corner + 16, corner : corner + 20] = 255
        Image.fromarray(pixels).save(folder / "source" / f"item-{number:05d}.png")
        Image.fromarray(mask).save(folder / "mask" / f"item-{number:05d}.png")
    return folder


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.main", *arguments]


def run_command(*arguments: str, timeout: float = 300, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run ``cleanplate`` to its end."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**extra),
        cwd=ROOT,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def start_command(*arguments: str, log: Path, answer: Path | None = None, **extra: str) -> subprocess.Popen[bytes]:
    """Start ``cleanplate`` in a process group of its own; what it answers goes to a file of its own, or to the log, too."""
    with log.open("ab") as err, (answer or log).open("ab") as out:
        return subprocess.Popen(command(*arguments), stdout=out, stderr=err, env=environment(**extra), cwd=ROOT, start_new_session=True)


def summary_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON summary that ``--json`` printed."""
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def read_rows(output: str) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Results and failures of an output by id; an id that stands twice is an error."""
    found: list[dict[str, dict[str, Any]]] = []
    for uris in list_output(storage.normalize_uri(output)):
        rows = [row for uri in uris for row in pq.read_table(parquet_source(uri), partitioning=None).to_pylist()]
        by_id = {row["id"]: row for row in rows}
        assert len(by_id) == len(rows), "an id stands twice"
        found.append(by_id)
    results, failures = found
    assert not results.keys() & failures.keys(), "an id is a result and a failure"
    return results, failures


def picture(value: dict[str, Any]) -> np.ndarray:
    """The pixels of one image value."""
    return np.asarray(Image.open(io.BytesIO(value["bytes"])))


def processes(words: str, below: int) -> list[int]:
    """Numbers of living processes whose command line holds ``words``, among the children of process ``below`` and theirs.

    Somebody else's Ray may run on this machine; its processes have the same names.
    """
    found, parents = [], {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            parents[int(entry.name)] = int(parent)
            if words in line and state != "Z":
                found.append(int(entry.name))
    return [pid for pid in found if below in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    found = []
    while pid in parents:
        pid = parents[pid]
        found.append(pid)
    return found


def kill(pid: int) -> None:
    """SIGKILL, whether or not it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
