"""Two Ray nodes on this machine: the job uses both, and ends right when one is taken away in the middle."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from core.ledger import list_output
from jobs.clean import clean
from jobs.config import CleanConfig, VerifyConfig
from jobs.verify import verify
from tests.jobs.support import kill, read_rows, start_command, write_pairs
from tests.models import write_pipeline
from tests.training.support import write_triplets
from training.local import train_locally
from training.settings import load_recipe

COUNT = 200


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, Any]]:
    """A cluster of two nodes with two CPUs each, to which this process is connected; the second node may be removed."""
    ray.shutdown()
    (tmp_path / "nodes").mkdir()
    monkeypatch.setenv("TEST_NODES", str(tmp_path / "nodes"))
    monkeypatch.setenv("TEST_ERASER_SECONDS", "0.05")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


def run(source: Path, output: Path, **settings: Any) -> dict[str, Any]:
    names = {"model": "tests.erasers:Located", "discriminator": "none", "origin": "nodes", "shard_mb": 0.0, "block_rows": 5}
    return clean(CleanConfig(input=str(source), output=str(output), **{**names, **settings}))


def wait_until_one_is_left() -> None:
    """Ray notices a dead node after some seconds; until then it lists it as alive, and may still hand work to it."""
    deadline = time.monotonic() + 400
    while len([node for node in ray.nodes() if node["Alive"]]) > 1:
        assert time.monotonic() < deadline, "Ray has not noticed that the node went"
        time.sleep(0.2)


@pytest.mark.slow
def test_both_nodes_work_and_one_may_go(two_nodes: tuple[Cluster, Any], tmp_path: Path) -> None:
    cluster, second = two_nodes
    pairs = write_pairs(tmp_path / "in", COUNT)
    summary = run(pairs, tmp_path / "whole", min_actors=4, max_actors=4)
    assert (summary["in"], summary["out"]) == (COUNT, COUNT)
    assert {path.name for path in (tmp_path / "nodes").iterdir()} == {node["NodeID"] for node in ray.nodes()}

    def remove() -> None:
        deadline = time.monotonic() + 400
        while len(list_output(str(tmp_path / "torn"))[0]) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        left.append(COUNT - 5 * len(list_output(str(tmp_path / "torn"))[0]))
        cluster.remove_node(second, allow_graceful=False)

    left: list[int] = []
    remover = threading.Thread(target=remove)
    remover.start()
    summary = run(pairs, tmp_path / "torn", min_actors=1, max_actors=4)
    remover.join()
    assert left[0] > 0, "the node went after the work was done: the test shows nothing"
    assert (summary["in"], summary["out"], summary["failed"]) == (COUNT, COUNT, 0)
    wait_until_one_is_left()
    whole, torn = read_rows(str(tmp_path / "whole"))[0], read_rows(str(tmp_path / "torn"))[0]
    assert whole == torn
    assert verify(VerifyConfig(input=str(tmp_path / "torn")))["status"] == "finished"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_training_goes_on_with_fewer_workers_when_a_node_goes_and_with_more_when_one_comes(
    two_nodes: tuple[Cluster, Any], tmp_path: Path
) -> None:
    """And its curve is that of one process throughout: what a step takes does not depend on the number of workers."""
    cluster, second = two_nodes
    data = write_triplets(str(tmp_path / "data"), 24)
    model = str(write_pipeline(tmp_path / "model", prompt_file=True))
    output, steps = tmp_path / "out", 700
    arguments = ["--model", model, "--size", "64", "--steps", str(steps), "--checkpoint-every", "20"]

    def lines() -> list[dict[str, Any]]:
        path = output / "training" / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 300
        while len(lines()) < count:
            assert job.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, f"only {len(lines())} steps were made"
            time.sleep(0.1)

    call = ["train", "remover", "--data", data, "--output", str(output), "--recipe", "smoke", *arguments]
    # more than half of a node each, so that two workers take two nodes
    elastic = ["--workers", "1", "--max-workers", "2", "--worker-cpus", "1.5", "--json", "--address", cluster.address]
    job = start_command(*call, *elastic, log=tmp_path / "log")
    try:
        wait_for(40)
        cluster.remove_node(second, allow_graceful=False)
        wait_for(120)
        cluster.add_node(num_cpus=2)
        assert job.wait(timeout=1000) == 0, (tmp_path / "log").read_text()
    finally:
        kill(job.pid)
    finished = json.loads((output / "training" / "finished.json").read_text())
    assert finished["workers"] == 2, "the second node came, and nobody used it"
    assert [line["step"] for line in lines()] == list(range(steps))
    changes = {"model": model, "data.sizes": [64], "loop.steps": steps, "loop.checkpoint_every": 20}
    train_locally(load_recipe("smoke", "remover", changes), data, str(tmp_path / "alone"), device="cpu")
    alone = [json.loads(line) for line in (tmp_path / "alone" / "training" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines()] == pytest.approx([line["loss"] for line in alone], rel=0.02)
    assert [line["loss"] for line in lines()[:60]] == pytest.approx([line["loss"] for line in alone[:60]], rel=1e-3)
