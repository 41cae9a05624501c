"""``cleanplate doctor``: what is wrong with this machine, and what to do about it. Exit status 1 where something is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain

from rich.console import Console
from rich.markup import escape

from jobs import checks
from jobs.checks import Finding
from jobs.operations_config import DoctorConfig
from jobs.storage_check import check_storage

_MARKS = {"ok": "[green]ok      [/]", "warning": "[yellow]warning [/]", "problem": "[red]problem [/]"}


def run(config: DoctorConfig) -> int:
    """Look at everything, print as it is found."""
    findings = []
    console = Console(soft_wrap=True)
    for finding in examine(config):
        findings.append(finding)
        if not config.json:
            console.print(f"{_MARKS[finding.status]}{escape(finding.name)}: {escape(finding.found)}")
            if finding.todo:
                console.print(f"        to do: {escape(finding.todo)}")
    counts = {status: sum(finding.status == status for finding in findings) for status in _MARKS}
    if config.json:
        print(json.dumps({"ok": not counts["problem"], "counts": counts, "findings": [asdict(finding) for finding in findings]}))
    else:
        console.print(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['problem']} problems")
    return 1 if counts["problem"] else 0


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """All findings, the quick ones first."""
    yield from chain(checks.check_python(), checks.check_machine(), checks.check_space(), checks.check_demo())
    if config.ports:
        yield from checks.check_ports()
    yield from checks.check_gpu()
    yield from check_storage(_names(config.storage))
    yield from checks.check_models(_names(config.model))
    yield from checks.check_ray(config.address)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
