"""Prometheus series of jobs through Ray's own metrics; ``ray_cleanplate_job_*`` where they are read.

They are written in the monitor of a job, where the numbers are anyway: once a shard, never once an image, so that they cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import ray
from ray.util.metrics import Counter, Gauge

from jobs.monitor import MonitorState, Tally

JOB_ITEMS: Final = "cleanplate_job_items_total"
JOB_FAILURES: Final = "cleanplate_job_failures_total"
JOB_CRASHES: Final = "cleanplate_job_crashes_total"
JOB_STOPPED: Final = "cleanplate_job_stopped"
NAMES: Final = (JOB_ITEMS, JOB_FAILURES, JOB_CRASHES, JOB_STOPPED)


class MeasuredMonitor(MonitorState):
    """The monitor of a job, which also counts for Prometheus."""

    def __init__(self, before: Tally, max_failure_rate: float) -> None:
        super().__init__(before, max_failure_rate)
        self._items = Counter(JOB_ITEMS, "Items written, by verdict.", tag_keys=("verdict",))
        self._failures = Counter(JOB_FAILURES, "Items that became failure rows, by reason.", tag_keys=("error",))
        self._died = Counter(JOB_CRASHES, "Items that outlived the process that worked on them.")
        self._stopped = Gauge(JOB_STOPPED, "1 where the job was stopped for too many failures.")
        self._stopped.set(0)

    def wrote(self, task: int, tally: Tally) -> str | None:
        new = not self.has_counted(task)
        reason = super().wrote(task, tally)
        if new:
            _count(self._items, "verdict", tally.verdicts)
            _count(self._failures, "error", tally.errors)
        self._stopped.set(float(reason is not None))
        return reason

    def begin(self, worker: str, ids: Sequence[str], done: Sequence[str]) -> dict[str, int]:
        crashes = super().begin(worker, ids, done)
        if crashes:
            self._died.inc(len(crashes))
        return crashes


def start_monitor(before: Tally, max_failure_rate: float) -> Any:
    """Start the actor and return its handle; it needs no CPU of its own and comes back after a crash."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(MeasuredMonitor)
    return actor.remote(before, max_failure_rate)


def _count(counter: Any, tag: str, counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        if count:
            counter.inc(count, {tag: name})
