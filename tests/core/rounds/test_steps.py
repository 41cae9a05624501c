"""The list of steps: each after those that it follows; what a change of an input touches; the table of the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.rounds.ledger import Entry, StepLedger, data_fingerprint, digest
from core.rounds.promotion import decide
from core.rounds.settings import (
    AutomaticSettings,
    EvaluationSettings,
    HumanSettings,
    RoundsSettings,
    TrainingSettings,
    TrainingsSettings,
)
from core.rounds.steps import steps_of
from core.rounds.table import as_dict, table_of, words
from tests.pictures import put


def settings(**changes: Any) -> RoundsSettings:
    values: dict[str, Any] = {
        "folder": "/run",
        "collections": ("/photos",),
        "initial": ("/rord",),
        "final": ("/div2k",),
        "evaluation": EvaluationSettings(sets={"public": "/public"}, judged=10),
        "train": TrainingsSettings(lcm=TrainingSettings(recipe="lcm")),
        "human": HumanSettings(items=(10_000, 10_000, 10_000)),
        "automatic": AutomaticSettings(items=(30_000, 80_000, 95_204)),
    }
    return RoundsSettings(**(values | changes))


@pytest.mark.parametrize(
    "changes",
    [{}, {"initial": ()}, {"final": ()}, {"evaluation": EvaluationSettings()}, {"train": TrainingsSettings(after_people=False)}],
)
def test_every_step_stands_after_those_that_it_follows(changes: dict[str, Any]) -> None:
    seen: set[str] = set()
    for step in steps_of(settings(**changes)):
        assert set(step.follows.values()) <= seen, step.name
        assert step.name not in seen
        seen.add(step.name)


def test_a_rounds_data_hold_all_that_was_accepted_before_and_samples_are_a_chain() -> None:
    steps = {step.name: step for step in steps_of(settings())}
    assert set(steps["round-2-people-data"].follows.values()) == {
        "initial-data",
        "round-1-people-erase",
        "round-1-people-labels",
        "round-1-automatic-erase",
        "round-1-automatic-labels",
        "round-1-threshold",
        "round-2-people-erase",
        "round-2-people-labels",
    }
    assert steps["round-1-automatic-erase"].follows["remover"] == "round-1-people-promotion"
    assert steps["round-2-people-erase"].follows["discriminator"] == "round-1-discriminator"
    samples = [step for step in steps.values() if step.kind == "sample"]
    assert [step.count for step in samples] == [10_000, 30_000, 10_000, 80_000, 10_000, 95_204]
    assert [step.follows.get("after") for step in samples] == [None, *(step.name for step in samples[:-1])]


def test_a_remover_is_compared_with_the_best_before_it_and_the_first_with_the_base() -> None:
    steps = {step.name: step for step in steps_of(settings())}
    assert steps["initial-remover"].follows == {"data": "initial-data"}
    assert steps["initial-promotion"].follows == {"new": "initial-remover", "evaluation": "initial-evaluation", "base": "base-evaluation"}
    assert steps["round-1-people-promotion"].follows["before"] == "initial-promotion"
    assert steps["round-1-people-remover"].follows["remover"] == "initial-promotion"
    assert steps["lcm"].follows["remover"] == "final-promotion"
    for unguarded in (EvaluationSettings(sets={"public": "/public"}, guard="none"), EvaluationSettings()):
        steps = {step.name: step for step in steps_of(settings(evaluation=unguarded))}
        assert not any(step.kind == "promotion" for step in steps.values())
        assert steps["round-1-people-remover"].follows["remover"] == "initial-remover"


def test_a_remover_that_is_surely_worse_is_refused() -> None:
    best = {str(item): 0.5 + item % 3 * 0.1 for item in range(60)}
    better = decide(best, {item: value + 0.01 for item, value in best.items()})
    assert (better.promoted, better.better) == (True, True)
    worse = decide(best, {item: value - 0.01 for item, value in best.items()})
    assert (worse.promoted, worse.better) == (False, False)
    unsure = decide(best, {item: value + (0.1 if int(item) % 2 else -0.11) for item, value in best.items()})
    assert (unsure.promoted, unsure.better) == (True, False)
    assert decide(best, best) == decide(best, best | {"another": 0.0})
    assert decide(best, {"another": 0.0}).difference is None


def test_a_slope_of_steps_that_are_too_small_to_be_sure_of_ends() -> None:
    """Compared with the last one alone each step would pass for ever."""
    rng = np.random.default_rng(0)
    best = dict(zip(map(str, range(80)), rng.normal(0.6, 0.1, 80), strict=True))
    decisions = []
    for number in range(1, 12):
        noise = rng.normal(0, 0.1, 80)
        found = decide(best, {item: value - 0.01 * number + noise[int(item)] for item, value in best.items()})
        assert not found.better
        decisions.append(found.promoted)
    assert decisions[0]
    assert not decisions[-1]


def test_without_an_automatic_stage_people_still_teach() -> None:
    steps = [step.name for step in steps_of(settings(automatic=AutomaticSettings(items=0)))]
    assert "round-1-discriminator" in steps
    assert not any("automatic" in name for name in steps)


def entry(step: str, result: dict[str, Any], outside: str = "") -> Entry:
    return Entry(step=step, fingerprint=digest(step), inputs={}, settings={}, output=f"steps/{step}", result=result, outside=outside)


def test_the_ledger_gives_back_what_was_written_on_disk_and_in_a_bucket(folder: str) -> None:
    ledger = StepLedger(folder)
    assert (ledger.read("guard"), ledger.entries()) == (None, {})
    written = entry("guard", {"photos": 3, "nested": {"low": 0.25, "none": None}}, outside="people")
    ledger.write(written)
    assert ledger.read("guard") == written
    assert ledger.entries() == {"guard": written}
    assert written.outcome != entry("guard", {}).outcome == digest("guard")


def test_data_fingerprints_change_with_the_data(folder: str) -> None:
    put(folder, {"source/a.png": b"one", "mask/a.png": b"two"})
    first = data_fingerprint(folder)
    assert data_fingerprint(folder) == first
    put(folder, {".cleanplate/state": b"x"})
    assert data_fingerprint(folder) == first
    put(folder, {"source/b.png": b"three"})
    assert data_fingerprint(folder) != first
    with pytest.raises(Exception, match="there is nothing at"):
        data_fingerprint(f"{folder}/elsewhere")


def test_the_papers_table_comes_out_of_its_numbers() -> None:
    """RORem, table 1: round 1."""
    chosen = settings(rounds=3)
    share = {"mean": 0.556, "low": 0.51, "high": 0.6, "count": 500}
    entries = {
        one.step: one
        for one in (
            entry("initial-data", {"read": 61_565, "items": 61_565}),
            entry("round-1-people-labels", {"labels": 10_000, "accepted": 4_182, "measured": {}}),
            entry("round-1-people-data", {"items": 65_747}),
            entry("round-1-threshold", {"run": 30_000, "kept": 20_634, "threshold": 0.9, "measured": {"precision": share}}),
            entry("round-1-automatic-data", {"items": 86_381}),
            entry("round-1-automatic-evaluation", {"public": {"psnr": 28.6, "success_rate": share}}),
            entry("round-1-automatic-evaluation-labels", {"success_rate": share}),
        )
    }
    rows = [as_dict(row) for row in table_of(chosen, steps_of(chosen), entries)]
    printed = {row["stage"]: words(row) for row in rows}
    assert list(printed)[:3] == ["initialisation", "people, round 1", "automatic, round 1"]
    assert printed["people, round 1"][1:5] == ["10,000", "4,182", "41.8%", "65,747"]
    said = "55.6% [51.0%, 60.0%] of 500"
    assert printed["automatic, round 1"][1:] == ["30,000", "20,634", "68.8%", "86,381", "0.9", said, said, said, "28.60", "-"]
    assert printed["people, round 3"][1:] == ["-"] * 10
