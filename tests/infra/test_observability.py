"""Dashboards and alerts ask for series that the code writes, and every alert stands in the runbook."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import job_metrics
from jobs.monitor import Tally
from tests.jobs.support import ROOT
from training import training_metrics

SERIES = re.compile(r"\bray_cleanplate_[a-z_]+")
ALERTS = ROOT / "infra" / "alerts" / "cleanplate.yaml"
DASHBOARDS = sorted((ROOT / "infra" / "dashboards").glob("*.json"))
SUFFIXES = ("_bucket", "_sum", "_count")


def written() -> set[str]:
    """Names that stand in the code as the first argument of a metric."""
    constructed = re.compile(r"(?:Counter|Gauge|Histogram)\(\s*\"(cleanplate_[a-z_]+)\"")
    sources = [path.read_text() for folder in ("jobs", "serving", "training") for path in (ROOT / folder).rglob("*.py")]
    return {name for text in sources for name in constructed.findall(text)} | set(job_metrics.NAMES) | set(training_metrics.NAMES)


def asked(queries: list[str]) -> set[str]:
    names = {name.removeprefix("ray_") for query in queries for name in SERIES.findall(query)}
    return {next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name) for name in names}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def test_alerts_ask_for_series_that_are_written_and_stand_in_the_runbook() -> None:
    assert asked([rule["expr"] for rule in rules()]) <= written()
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert sorted(rule["alert"] for rule in rules()) == sorted(headings)
    for rule in rules():
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["expr"].count("(") == rule["expr"].count(")")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_dashboards_ask_for_series_that_are_written(path: Path) -> None:
    board = json.loads(path.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert queries
    assert asked(queries) <= written()
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert all(query.count("(") == query.count(")") for query in queries)


def test_one_scheme_of_names() -> None:
    for name in written():
        assert re.fullmatch(r"cleanplate_[a-z]+(_[a-z]+)*", name), name


def test_a_retried_task_counts_once_and_a_crash_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[tuple[str, str]] = Counter()

    class Recorder:
        def __init__(self, name: str, *_: object, **__: object) -> None:
            self.name = name

        def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
            seen[self.name, *(tags or {"": ""}).values()] += int(value)  # type: ignore[index]

        def set(self, value: float) -> None:
            seen[self.name, ""] = int(value)

    monkeypatch.setattr(job_metrics, "Counter", Recorder)
    monkeypatch.setattr(job_metrics, "Gauge", Recorder)
    monitor = job_metrics.MeasuredMonitor(Tally(), 0.05)
    tally = Tally(Counter(accepted=7, rejected=2), Counter(truncated=1))
    for _ in range(2):
        monitor.wrote(3, tally)
    assert seen[job_metrics.JOB_ITEMS, "accepted"] == 7
    assert seen[job_metrics.JOB_FAILURES, "truncated"] == 1
    monitor.begin("first", ["a"], [])
    monitor.begin("second", ["a"], [])
    assert seen[job_metrics.JOB_CRASHES, ""] == 1
    monitor.wrote(4, Tally(Counter(), Counter(truncated=300)))
    assert seen[job_metrics.JOB_STOPPED, ""] == 1


def test_a_training_shows_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, float] = {}
    tags: dict[str, dict[str, str]] = {}

    class Recorder:
        def __init__(self, name: str, *_: object, **__: object) -> None:
            self.name = name

        def set_default_tags(self, values: dict[str, str]) -> None:
            tags[self.name] = values

        def set(self, value: float) -> None:
            seen[self.name] = value

    monkeypatch.setattr(training_metrics, "Gauge", Recorder)
    gauges = training_metrics.TrainingGauges("lcm")
    gauges.show({"step": 3, "steps": 9, "loss": 0.5, "validation_loss": None, "epoch": 0})
    assert seen == {"cleanplate_training_step": 3.0, "cleanplate_training_steps": 9.0, "cleanplate_training_loss": 0.5}
    assert set(map(str, tags)) == set(training_metrics.NAMES)
    assert all(value == {"objective": "lcm"} for value in tags.values())
