"""``cleanplate rounds``: RORem's loop as a list of steps, each done once (``core.rounds``).

One command at a time works on a run's folder. It takes every step whose inputs are there, and passes over those that wait for people, and
those that follow them: it ends when nothing can be done, or waits with ``--watch``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from core import storage
from core.lease import Lease
from core.rounds.ledger import Entry, StepLedger, digest
from core.rounds.settings import RoundsSettings
from core.rounds.steps import Step, steps_of
from core.rounds.table import HEADINGS, as_dict, table_of, words
from jobs.cluster import ray_cluster
from jobs.rounds_config import RoundsConfig, settings_of
from jobs.rounds_steps import WITHOUT_CLUSTER, Call, RoundsSteps, WaitingForPeople

log = logging.getLogger(__name__)

_LEAST_COLUMNS = 170


@dataclass(slots=True)
class Advance:
    """What one pass over the steps came to.

    Attributes:
        entries: of all steps that are done, by name.
        done: steps that this pass has done, in order.
        waiting: for whom.
        blocked: steps that follow one that is not done.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    waiting: list[WaitingForPeople] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


def run(config: RoundsConfig) -> int:
    """Take the steps, or show the table."""
    _show(config, status(config) if config.action == "status" else rounds(config))
    return 0


def rounds(config: RoundsConfig) -> dict[str, Any]:
    """Take every step that can be taken; with ``config.watch``, until all are done.

    Returns:
        ``done`` (steps that this call has done), ``waiting`` (``queue``, ``have``, ``wanted``, ``dataset``, ``words`` of each), ``left``
        (steps that are not done), ``table`` (a row a stage; ``core.rounds.table``).

    Raises:
        CleanplateError: a step failed; what is done stays, and the same call goes on.
    """
    settings = settings_of(config)
    steps = steps_of(settings)
    work = RoundsSteps(settings)
    ledger = StepLedger(settings.folder)
    lease = Lease.acquire(storage.join(ledger.folder, "lease"))
    try:
        done: list[str] = []
        while True:
            found = advance(steps, ledger, work, config.address)
            done += found.done
            if not (found.waiting and config.watch):
                break
            if not found.done:
                for waiting in found.waiting:
                    log.info("%s", waiting)
            time.sleep(config.poll)
    finally:
        lease.release()
    return _answer(settings, steps, found.entries, done, found.waiting)


def status(config: RoundsConfig) -> dict[str, Any]:
    """What the ledger says, as ``rounds`` returns it; nothing is done, and ``waiting`` is empty."""
    settings = settings_of(config)
    return _answer(settings, steps_of(settings), StepLedger(settings.folder).entries(), [], [])


def advance(steps: Sequence[Step], ledger: StepLedger, work: RoundsSteps, address: str | None) -> Advance:
    """One pass over the steps; the cluster is connected from the first step that needs it to the end of the pass."""
    found = Advance()
    with ExitStack() as stack:
        connected = False
        for step in steps:
            follows = {part: found.entries[name] for part, name in step.follows.items() if name in found.entries}
            if len(follows) < len(step.follows):
                found.blocked.append(step.name)
                continue
            inputs, settings = {part: entry.outcome for part, entry in follows.items()}, work.settings_for(step)
            fingerprint = digest([step.name, settings, inputs])
            entry = ledger.read(step.name)
            if entry is not None and entry.fingerprint == fingerprint:
                found.entries[step.name] = entry
                continue
            output = ledger.output(step.name, fingerprint)
            if step.kind not in WITHOUT_CLUSTER and not connected:
                stack.enter_context(ray_cluster(address))
                connected = True
            started = time.monotonic()
            log.info("%s ...", step.name)
            try:
                outcome = work.perform(Call(step, storage.join(ledger.folder, output), follows))
            except WaitingForPeople as waiting:
                found.waiting.append(waiting)
                continue
            entry = Entry(
                step=step.name,
                fingerprint=fingerprint,
                inputs=inputs,
                settings=settings,
                output=output,
                result=outcome.result,
                outside=outcome.outside,
            )
            ledger.write(entry)
            log.info("%s: done in %.1f s", step.name, time.monotonic() - started)
            found.entries[step.name] = entry
            found.done.append(step.name)
    return found


def _answer(
    settings: RoundsSettings, steps: Sequence[Step], entries: Mapping[str, Entry], done: list[str], waiting: Sequence[WaitingForPeople]
) -> dict[str, Any]:
    rows = table_of(settings, steps, entries)
    return {
        "done": done,
        "waiting": [{name: getattr(one, name) for name in ("queue", "have", "wanted", "dataset", "words")} for one in waiting],
        "left": [step.name for step in steps if step.name not in entries],
        "table": [as_dict(row) for row in rows],
    }


def _show(config: RoundsConfig, found: Mapping[str, Any]) -> None:
    if config.json:
        print(json.dumps(found))
        return
    table = Table(title=f"rounds in {storage.normalize_uri(config.folder)}", title_justify="left")
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in found["table"]:
        table.add_row(*words(row))
    Console(width=max(Console().width, _LEAST_COLUMNS), soft_wrap=True).print(table)
    for one in found["waiting"]:
        print(f"waiting for {one['wanted'] - one['have']:,} of {one['wanted']:,} labels of {one['queue']}: {one['words']}")
    if not found["left"]:
        print("all steps are done")
    elif config.action == "status":
        print(f"{len(found['left'])} steps are left, the next is {found['left'][0]}")
