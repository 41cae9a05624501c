"""Small datasets of erasures, and the desk as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from core import storage
from core.images import encode_image
from core.ledger import write_shard
from core.record import RECORD_SCHEMA, empty_record, image_value
from tests.jobs.support import ROOT, environment
from tests.pictures import box_mask, encode_mask, gradient, with_object

SECONDS = 180
"""How long anything may take before it counts as never."""


def record(number: int, *, score: float | None = None, width: int = 96, height: int = 64, **values: Any) -> dict[str, Any]:
    """A record whose erasure is as good as its number is even; every one has pictures of its own."""
    mask = box_mask(width, height, (30, 20, 50, 40))
    clean = gradient(width, height, number)
    source = with_object(clean, mask)
    erased = clean if number % 2 == 0 else np.where(np.indices(mask.shape)[1][..., None] < 40, clean, source).astype(np.uint8)
    return empty_record(
        **{
            "id": f"item-{number:03}",
            "source": image_value(encode_image(source)),
            "mask": image_value(encode_mask(mask)),
            "erased": image_value(encode_image(erased)),
            "origin": "test",
            "width": width,
            "height": height,
            "score": score,
            "model": "tiny",
            "seed": 7,
            **values,
        }
    )


def write_dataset(folder: str | Path, records: list[dict[str, Any]], shard_rows: int = 20) -> str:
    """Write records as a dataset of several shards."""
    uri = storage.normalize_uri(str(folder))
    for number, start in enumerate(range(0, len(records), shard_rows)):
        table = pa.Table.from_pylist(records[start : start + shard_rows], RECORD_SCHEMA)
        write_shard(storage.join(uri, f"part-0000-{number:06}.parquet"), table)
    return uri


def scored(count: int, **values: Any) -> list[dict[str, Any]]:
    """Records with scores spread over 0 to 1."""
    return [record(number, score=(number * 37 % count + 0.5) / count, **values) for number in range(count)]


class DeskProcess:
    """``cleanplate review`` as a process, on a port that it keeps over restarts."""

    def __init__(self, dataset: str, log: Path, *flags: str) -> None:
        self._command = [sys.executable, "-m", "jobs.main", "review", "--input", dataset, "--json", *flags]
        self._log = log
        self.port = 0
        self.process: subprocess.Popen[str] | None = None
        self.info: dict[str, Any] = {}

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        deadline = time.monotonic() + SECONDS
        while True:
            with self._log.open("a") as errors:
                self.process = subprocess.Popen(
                    [*self._command, "--port", str(self.port)],
                    stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment(), start_new_session=True,
                )  # fmt: skip
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            if line:
                self.info = json.loads(line)
                self.port = int(self.info["url"].split(":")[2].split("/")[0])
                return
            self.stop()
            # someone else may have the port for a moment
            assert time.monotonic() < deadline, self._log.read_text()[-2000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ctrl+C; returns its exit status."""
        return self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


@contextmanager
def open_desk(dataset: str, log: Path, *flags: str) -> Iterator[DeskProcess]:
    """A running desk, gone at the end."""
    desk = DeskProcess(dataset, log, *flags)
    try:
        desk.start()
        yield desk
    finally:
        desk.kill()
