"""DDP and FSDP2 over several processes compute what one process does, and go on from each other's number of workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.errors import UsageError
from tests.jobs.support import ROOT, environment
from tests.models import write_pipeline
from tests.training.support import write_triplets
from training.build import build_objective
from training.local import LocalSession, train_locally
from training.parallelism import spread
from training.settings import load_recipe

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_triplets(str(tmp_path_factory.mktemp("data")), 24)


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = write_pipeline(tmp_path_factory.mktemp("model"), prompt_file=True)
    return {"model": str(model), "data.sizes": [64], "loop.steps": 5, "loop.checkpoint_every": 2, "loop.picture_items": 0}


@pytest.fixture(scope="module")
def alone(data: str, changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process."""
    output = tmp_path_factory.mktemp("alone") / "out"
    train_locally(load_recipe("smoke", "remover", changes), data, str(output), device="cpu")
    return output


def run_workers(world: int, changes: dict[str, Any], data: str, output: Path) -> None:
    file = output.parent / f"store-{world}-{changes['loop.steps']}"
    calls = [
        [sys.executable, "-m", "tests.training.workers", str(rank), str(world), str(file), json.dumps(changes), data, str(output)]
        for rank in range(world)
    ]
    started = [subprocess.Popen(call, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True) for call in calls]
    for process in started:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-3000:]


def losses(output: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (output / "training" / "metrics.jsonl").read_text().splitlines()]
    return [*((line["step"], line["loss"], line["gradient_norm"]) for line in lines), (lines[-1]["validation_loss"],)]


def assert_alike(found: Path, expected: Path) -> None:
    for one, other in zip(losses(found), losses(expected), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    weights = load_file(found / WEIGHTS)
    for name, value in load_file(expected / WEIGHTS).items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_workers_compute_what_one_process_does_and_their_number_may_change(
    strategy: str, data: str, changes: dict[str, Any], alone: Path, tmp_path: Path
) -> None:
    given = {**changes, "loop.strategy": strategy}
    run_workers(2, {**given, "loop.steps": 2}, data, tmp_path / "out")
    # three workers share a batch of four unevenly
    run_workers(3, given, data, tmp_path / "out")
    assert_alike(tmp_path / "out", alone)


def test_fsdp_alone_and_fsdp_of_an_adapter_are_refused() -> None:
    settings = load_recipe("smoke", "remover", {"loop.strategy": "fsdp"})
    with pytest.raises(UsageError, match="several workers"):
        spread(build_objective(settings), LocalSession("cpu"), "fsdp", "float32")
    with pytest.raises(UsageError, match="use ddp"):
        load_recipe("smoke", "lcm", {"loop.strategy": "fsdp"})
