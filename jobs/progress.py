"""What a person sees while a job runs: a live line on a terminal, log lines elsewhere; and the table at the end."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jobs.monitor import Tally

log = logging.getLogger(__name__)
LOG_SECONDS = 10.0


class ProgressDisplay:
    """Polls the monitor in a thread from ``__enter__`` to ``__exit__``; ``before`` is what earlier runs have done of ``total`` items."""

    def __init__(self, monitor: Any, before: Tally, total: int) -> None:
        self._monitor, self._before, self._total = monitor, before, total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> ProgressDisplay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        if not sys.stderr.isatty():
            self._poll(LOG_SECONDS, self._log)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=60) as progress:
            bar = progress.add_task("erasing", total=self._total, completed=self._before.rows, rate="")

            def show(tally: Tally, seconds: float) -> None:
                progress.update(bar, completed=self._before.rows + tally.rows, rate=self._words(tally, seconds))

            self._poll(1.0, show)

    def _poll(self, interval: float, show: Any) -> None:
        start = time.monotonic()
        while not self._stop.wait(interval):
            try:
                tally, _ = ray.get(self._monitor.progress.remote(), timeout=5)
            except (ray.exceptions.RayError, TimeoutError):
                continue
            show(tally, time.monotonic() - start)

    def _words(self, tally: Tally, seconds: float) -> str:
        everything = Tally()
        everything.add(self._before)
        everything.add(tally)
        accepted, failed = everything.verdicts["accepted"], everything.errors.total()
        return f"{tally.rows / seconds:.1f} images/s, {accepted} accepted, {failed} failed"

    def _log(self, tally: Tally, seconds: float) -> None:
        done = self._before.rows + tally.rows
        rate = tally.rows / seconds
        left = f", about {(self._total - done) / rate:.0f} s left" if rate else ""
        log.info("%d of %d: %s%s", done, self._total, self._words(tally, seconds), left)


def print_table(title: str, rows: dict[str, Any]) -> None:
    """Two columns on standard output: what, and how much."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    Console(soft_wrap=True).print(table)
