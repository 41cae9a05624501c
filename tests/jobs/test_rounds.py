"""``cleanplate rounds``: one small round with a scripted annotator; steps that are done again come to the same ledger.

Every job and training of a round starts workers that load the networks, which is most of its time: the round of the default test does
without evaluations, and the slow one has them all.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.rounds import Annotator, answer, ledger_of
from core.errors import UsageError
from core.ledger import list_parts
from core.rounds.ledger import Entry, StepLedger
from core.rounds.steps import Step, steps_of
from jobs.main import main
from jobs.rounds import advance, rounds, status
from jobs.rounds_config import RoundsConfig, settings_of
from jobs.rounds_steps import Call, RoundsSteps
from tests.jobs.support import ROOT, environment
from tests.training.support import write_triplets

SMALL: dict[str, Any] = {"data.batch_size": 2, "data.sizes": [64], "loop.steps": 2, "loop.checkpoint_every": 1, "loop.validate_every": 0}
JUDGE = SMALL | {"data.sizes": [128], "data.synthetic": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    public = write_triplets(str(folder / "public"), 3, category="public")
    # the first three photos of the collection are those of the public set
    return {"public": public, "collection": write_triplets(str(folder / "collection"), 21, category="disc")}


def config_for(folder: Path, data: dict[str, str], /, **changes: Any) -> RoundsConfig:
    values: dict[str, Any] = {
        "action": "run",
        "folder": str(folder),
        "collections": [data["collection"]],
        "model": "tiny",
        "rounds": 1,
        "human": {"items": 6},
        "automatic": {"items": 6, "audit": 0.5},
        "threshold": {"usual": 0.2},
        "labels": {"overlap": 0.5},
        "train": {
            "remover": {"recipe": "smoke", "changes": SMALL},
            "discriminator": {"recipe": "smoke", "changes": JUDGE},
            "after_people": False,
        },
        "clean": {"max_actors": 1},
    }
    return RoundsConfig(**(values | changes))


def play(folder: Path, data: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What every call says, with people in between, until nothing is left."""
    annotator = Annotator([data["collection"]], limit=0.6)
    while True:
        found = rounds(config_for(folder, data))
        yield found
        if not found["waiting"]:
            return
        for waiting in found["waiting"]:
            assert waiting["wanted"] - waiting["have"] > 0
            assert answer(waiting, annotator, database=f"sqlite:///{folder}/review.sqlite") >= waiting["wanted"]


@pytest.mark.usefixtures("cluster")
def test_a_round_from_photos_to_a_remover_and_steps_that_are_lost_come_to_the_same_again(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    calls = list(play(whole, data))
    assert [len(call["waiting"]) for call in calls] == [1, 1, 0]
    assert calls[0]["waiting"][0]["wanted"] == 6
    assert calls[0]["left"][0] == "round-1-people-labels"
    assert calls[-1]["left"] == []
    entries = StepLedger(str(whole)).entries()

    # what entered the data is what people accepted, and what scored above the threshold where nobody was asked
    chosen = entries["round-1-threshold"].result
    assert (chosen["reason"], chosen["threshold"], chosen["run"]) == ("few_labels", 0.2, 6)
    accepted = entries["round-1-people-labels"].result["accepted"]
    merged = entries["round-1-automatic-data"]
    rows = [row for part in list_parts(str(whole / merged.output)) for row in pq.read_table(part).to_pylist()]
    assert merged.result["items"] == len(rows) == accepted + chosen["kept"]
    assert {row["verdict"] for row in rows} == {"accepted"}
    assert all(row["erased"] is None and row["target"]["bytes"] for row in rows)

    # a second call does nothing
    again = rounds(config_for(whole, data))
    assert (again["done"], again["left"]) == ([], [])
    assert again["table"] == calls[-1]["table"]

    # killed between the last byte of a step's output and its entry: the step goes on, and comes to the same
    before = ledger_of(str(whole))
    lost = random.Random(7).sample(sorted(entries), 3)
    for name in lost:
        (whole / "ledger" / f"{name}.json").unlink()
    assert sorted(rounds(config_for(whole, data))["done"]) == sorted(lost)
    assert ledger_of(str(whole)) == before

    file = tmp_path / "rounds.yaml"
    file.write_text(yaml.safe_dump(given(config_for(whole, data))))
    assert main(["rounds", "status", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "people, round 1" in printed
    assert "all steps are done" in printed
    assert main(["rounds", "status", "--config", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == status(config_for(whole, data))


@pytest.mark.usefixtures("cluster")
def test_no_item_is_taken_twice_and_no_photo_of_an_evaluation_set_at_all(data: dict[str, str], tmp_path: Path) -> None:
    settings = settings_of(config_for(tmp_path, data, rounds=2, evaluation={"sets": {"public": data["public"]}}))
    steps = [step for step in steps_of(settings) if step.kind in ("guard", "sample")]
    ledger = StepLedger(settings.folder)
    with pytest.raises(UsageError, match="round-2-automatic-sample: the collections have no items left"):
        advance(steps, ledger, RoundsSteps(settings), None)
    entries = ledger.entries()
    assert list(entries) == ["guard", "round-1-automatic-sample", "round-1-people-sample", "round-2-people-sample"]
    outputs = [tmp_path / entry.output / "sample.parquet" for name, entry in entries.items() if name != "guard"]
    rows = [row for output in outputs for row in pq.read_table(output).to_pylist()]
    # of 21 items three are photos of the set; a clean plate that a collection has is kept from the eraser
    assert sorted(row["id"] for row in rows) == [f"item-{number:04d}" for number in range(3, 21)]
    assert all(row["target"] is None for row in rows)
    assert 0 < sum(entry.result.get("near_duplicates", 0) for entry in entries.values()) <= 3


def test_a_worse_remover_does_not_take_the_place_of_the_one_before(data: dict[str, str], tmp_path: Path) -> None:
    settings = settings_of(
        config_for(tmp_path, data, evaluation={"sets": {"public": data["public"]}, "threshold": 0.5, "guard": "success"})
    )
    steps, work, ledger = {step.name: step for step in steps_of(settings)}, RoundsSteps(settings), StepLedger(settings.folder)
    step = steps["round-1-automatic-promotion"]
    kinds = {"base": "evaluate", "evaluation": "evaluate", "new": "remover"}
    follows = {part: entry_of(steps[name], kinds[part]) for part, name in step.follows.items()}
    scores = {"base": [0.6] * 8 + [0.4] * 2, "evaluation": [0.6] * 9 + [0.4]}

    def decided(follows: dict[str, Entry]) -> dict[str, Any]:
        for part, values in scores.items():
            folder = tmp_path / f"steps/{step.follows[part]}" / "metrics-0"
            folder.mkdir(parents=True, exist_ok=True)
            table = {"id": [str(number) for number in range(len(values))], "score": values}
            pq.write_table(pa.table(table), folder / "metrics.parquet")
        entry = Entry(step=step.name, fingerprint="", inputs={}, settings=work.settings_for(step), output="steps/x",
                      result=work.perform(Call(step, f"{tmp_path}/steps/x", follows)).result)  # fmt: skip
        ledger.write(entry)
        return dict(entry.result)

    found = decided(follows)
    assert (found["promoted"], found["stands"]) == (True, "steps/round-1-automatic-remover")
    assert found["best"] == "steps/round-1-automatic-evaluation"
    scores["evaluation"] = [0.4] * 9 + [0.6]
    found = decided(follows)
    assert (found["promoted"], found["stands"], found["best"]) == (False, None, "steps/base-evaluation")
    assert found["difference"]["mean"] == pytest.approx(-0.7 + 0.0)
    refused = ledger.read(step.name)
    assert refused is not None
    # what follows takes the model that stood: here that of the start
    assert work.remover_of({"remover": refused}) == "tiny"
    before = Entry(step="before", fingerprint="", inputs={}, settings={"kind": "promotion"}, output="",
                   result={"stands": "steps/earlier", "best": "steps/base-evaluation"})  # fmt: skip
    found = decided({"new": follows["new"], "evaluation": follows["evaluation"], "before": before})
    assert (found["promoted"], found["stands"]) == (False, "steps/earlier")
    assert work.remover_of({"remover": before}) == f"{tmp_path}/steps/earlier"
    assert work.remover_of({"remover": follows["new"]}) == f"{tmp_path}/steps/round-1-automatic-remover"


def entry_of(step: Step, kind: str) -> Entry:
    return Entry(step=step.name, fingerprint="", inputs={}, settings={"kind": kind}, output=f"steps/{step.name}")


def given(config: RoundsConfig) -> dict[str, Any]:
    """What a file must say to give the same configuration."""
    return {name: value for name in RoundsConfig.__slots__ if name != "action" and (value := getattr(config, name)) is not None}


def test_a_wrong_call_says_what_is_wrong(tmp_path: Path, data: dict[str, str]) -> None:
    for changes, says in (
        ({"human": {"itemz": 3}}, "human.itemz"),
        ({"rounds": 0}, "rounds is 0"),
        ({"human": {"items": [1, 2]}, "rounds": 3}, "human.items has 2 numbers for 3 rounds"),
        ({"collections": None}, "collections"),
        ({"collections": [str(tmp_path / "run" / "inside")]}, "inside the run's own folder"),
        ({"clean": {"stepz": 4}}, "stepz"),
        ({"clean": {"model": "opencv"}}, "model is what the rounds themselves set"),
        ({"labels": {"database": "sqlite://", "folder": "x"}}, "labels come from one place"),
        ({"automatic": {"audit": 0.0}}, "automatic.audit is 0.0"),
        ({"folder": "s3://bucket/run"}, "where no database can be"),
    ):
        config = config_for(tmp_path / "run", data, **changes)
        with pytest.raises(UsageError, match=says):
            rounds(config)


@pytest.mark.slow
def test_two_rounds_killed_at_random_three_times(tmp_path: Path) -> None:
    """The benchmark's own scenario, small: real processes, killed."""
    initial, collection, public = (
        write_triplets(str(tmp_path / name), count, width=128, height=128)
        for name, count in (("initial", 8), ("collection", 40), ("public", 4))
    )
    command = [sys.executable, "-m", "benchmarks.rounds", "--initial", initial, "--collection", collection, "--public", public]
    command += ["--output", str(tmp_path / "out"), "--human", "6", "--automatic", "8", "--steps", "2", "--judge-steps", "2", "--side", "64"]
    done = subprocess.run([*command, "--lcm"], capture_output=True, text=True, timeout=3600, env=environment(), cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "entries that differ: none" in done.stdout
    assert "automatic, round 2" in done.stdout
