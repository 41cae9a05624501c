"""``cleanplate rounds``: one small round with a scripted annotator; steps that are done again come to the same ledger."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.rounds import Annotator, answer, ledger_of
from core.errors import UsageError
from core.ledger import list_parts
from core.rounds.ledger import StepLedger
from jobs.main import main
from jobs.rounds import rounds, status
from jobs.rounds_config import RoundsConfig
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
        "evaluation": {"sets": {"public": data["public"]}},
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

    # photos of the public set are in the collection and never in the data
    taken = sum(entries[name].result["near_duplicates"] for name in entries if name.endswith("-sample"))
    sampled = [
        row["id"]
        for name in entries
        if name.endswith("-sample")
        for row in pq.read_table(whole / entries[name].output / "sample.parquet").to_pylist()
    ]
    public = {f"item-{number:04d}" for number in range(3)}
    assert len(sampled) == len(set(sampled)) == 12
    assert not public & set(sampled)
    assert taken <= 3

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
        for name, count in (("initial", 16), ("collection", 60), ("public", 6))
    )
    command = [sys.executable, "-m", "benchmarks.rounds", "--initial", initial, "--collection", collection, "--public", public]
    command += ["--output", str(tmp_path / "out"), "--human", "10", "--automatic", "12", "--steps", "4", "--judge-steps", "4", "--lcm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=environment(), cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "entries that differ: none" in done.stdout
    assert "automatic, round 2" in done.stdout
