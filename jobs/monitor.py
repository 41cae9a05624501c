"""The monitor of a running job: one small actor that counts what was written, and knows which items were in work when a process died.

It holds no result and may die itself: what is done stands in the output, and a new monitor starts with empty hands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

CRASHES_TO_QUARANTINE: Final = 2
RATE_HOLDS_FROM: Final = 200


@dataclass(slots=True)
class Tally:
    """Counts of written rows: results by verdict, failures by reason, warnings by kind."""

    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        return self.verdicts.total() + self.errors.total()

    def add(self, other: Tally) -> None:
        self.verdicts.update(other.verdicts)
        self.errors.update(other.errors)
        self.warnings.update(other.warnings)


def too_many_failures(tally: Tally, max_rate: float) -> str | None:
    """Why the job must stop, with the reasons counted; None while it may go on (contract: more than the rate, from 200 rows on)."""
    failed = tally.errors.total()
    if tally.rows < RATE_HOLDS_FROM or failed <= max_rate * tally.rows:
        return None
    reasons = ", ".join(f"{reason} {count}" for reason, count in tally.errors.most_common())
    return (
        f"{failed} of {tally.rows} items failed, more than --max-failure-rate {max_rate:g}: {reasons}. What is written stays; "
        "look at failures/, then raise the rate, or mend the input and use --retry-failed"
    )


class MonitorState:
    """What the monitor actor keeps; plain Python, so that it can be tested without Ray."""

    def __init__(self, before: Tally, max_failure_rate: float) -> None:
        self._before, self._rate = before, max_failure_rate
        self._tasks: dict[int, Tally] = {}
        self._sum = Tally()
        self._in_work: dict[str, str] = {}
        self._crashes: Counter[str] = Counter()
        self._stop: str | None = None

    def begin(self, worker: str, ids: Sequence[str], done: Sequence[str]) -> dict[str, int]:
        """Note that ``worker`` takes up ``ids`` and is through with ``done``; returns the crash counts of those that have any.

        An item that another worker was at when it is taken up again has outlived that worker.
        """
        for item in done:
            if self._in_work.get(item) == worker:
                del self._in_work[item]
                self._crashes.pop(item, None)
        for item in ids:
            other = self._in_work.get(item)
            if other is not None and other != worker:
                self._crashes[item] += 1
            self._in_work[item] = worker
        return {item: self._crashes[item] for item in ids if item in self._crashes}

    def suspects(self, worker: str, ids: Sequence[str]) -> dict[str, int]:
        """Crash counts, this time included, of those ``ids`` that another worker was at; nothing is taken up."""
        found = {}
        for item in ids:
            other = self._in_work.get(item)
            count = self._crashes[item] + (1 if other is not None and other != worker else 0)
            if count:
                found[item] = count
        return found

    def wrote(self, task: int, tally: Tally) -> str | None:
        """Count the rows of a write task, once however often it is retried; returns why the job must stop, or None."""
        if task not in self._tasks:
            self._tasks[task] = tally
            self._sum.add(tally)
        everything = Tally()
        everything.add(self._before)
        everything.add(self._sum)
        self._stop = self._stop or too_many_failures(everything, self._rate)
        return self._stop

    def has_counted(self, task: int) -> bool:
        """Whether the rows of a write task are counted already."""
        return task in self._tasks

    def progress(self) -> tuple[Tally, str | None]:
        """What this run has written so far, and why it must stop, if it must."""
        return self._sum, self._stop
