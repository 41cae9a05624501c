"""``cleanplate train`` on two workers of Ray Train: what comes out loads everywhere, and a killed training ends as a whole one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from ray.train import UserCallback
from safetensors.torch import load_file

from jobs.main import main
from tests.jobs.support import SAMPLES, command, environment, kill, processes, start_command
from tests.models import write_pipeline
from tests.training.support import write_triplets
from training.local import train_locally
from training.settings import load_recipe

STEPS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_triplets(str(tmp_path_factory.mktemp("triplets")), 24, width=160, height=144)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_pipeline(tmp_path_factory.mktemp("small"), prompt_file=True))


def lines(output: Path) -> list[dict[str, Any]]:
    try:
        text = (output / "training" / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(output: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines(output)]


def smoke(objective: str, data: str, output: Path, *more: str) -> dict[str, Any]:
    arguments = ["train", objective, "--data", data, "--output", str(output), "--recipe", "smoke", "--workers", "2", "--json", *more]
    assert main(arguments) == 0
    finished: dict[str, Any] = json.loads((output / "training" / "finished.json").read_text())
    return finished


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_workers_train_a_remover_that_clean_loads(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remover = tmp_path / "remover"
    summary = smoke("remover", data, remover)
    assert (summary["workers"], summary["steps"], len(lines(remover))) == (2, 6, 6)
    assert json.loads(capsys.readouterr().out)["already_finished"] is False
    call = ["clean", "--input", str(SAMPLES), "--output", str(tmp_path / "cleaned"), "--model", str(remover), "--discriminator", "none"]
    assert main([*call, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["in"], summary["out"]) == (12, 12)
    # the same command again does nothing
    smoke("remover", data, remover)
    assert json.loads(capsys.readouterr().out)["already_finished"] is True


@pytest.mark.usefixtures("cluster")
def test_two_workers_train_all_three_and_clean_and_diffusers_load_what_comes_out(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remover, discriminator, lcm = (tmp_path / name for name in ("remover", "discriminator", "lcm"))
    for name, folder in (("remover", remover), ("discriminator", discriminator), ("lcm", lcm)):
        summary = smoke(name, data, folder)
        assert (summary["workers"], summary["steps"]) == (2, 6)
        assert len(lines(folder)) == 6
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["already_finished"] is False
    before = load_file(SAMPLES.parent / "tiny" / "unet" / "diffusion_pytorch_model.safetensors")
    trained = UNet2DConditionModel.from_pretrained(remover / "unet").state_dict()
    assert trained.keys() == before.keys()
    assert any(not torch.equal(trained[name], before[name].float()) for name in before)
    AutoencoderKL.from_pretrained(remover / "vae")
    trained_adapter = load_file(lcm / "pytorch_lora_weights.safetensors")
    assert any(name.endswith("lora_B.weight") and value.abs().max() > 0 for name, value in trained_adapter.items())
    unet = UNet2DConditionModel.from_pretrained(remover / "unet")
    unet.load_lora_adapter(trained_adapter, prefix="unet")
    cleaned = tmp_path / "cleaned"
    call = ["clean", "--input", str(SAMPLES), "--output", str(cleaned), "--model", str(remover), "--lcm-lora", str(lcm)]
    assert main([*call, "--discriminator", str(discriminator), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["in"], summary["out"], summary["unscored"]) == (12, 12, 0)
    # the same command again does nothing
    smoke("lcm", data, lcm)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["already_finished"] is True


class Noting(UserCallback):
    """Writes down what it is told."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        # Ray calls it in a process of its own
        with Path(run_context.train_loop_config["output"], "notes").open("a") as file:
            file.write(json.dumps([one["step"] for one in metrics]) + "\n")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_workers_compute_what_one_process_does_and_callbacks_hear_of_it(
    data: str, small_model: str, tmp_path: Path
) -> None:
    smoke("remover", data, tmp_path / "two", "--model", small_model, "--size", "64", "--callback", "tests.jobs.test_train:Noting")
    assert (tmp_path / "two" / "notes").read_text().splitlines() == ["[3, 3]", "[6, 6]"]
    settings = load_recipe("smoke", "remover", {"model": small_model, "data.sizes": [64]})
    train_locally(settings, data, str(tmp_path / "one"), device="cpu")
    for two, one in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    name = "unet/diffusion_pytorch_model.safetensors"
    two_weights, one_weights = load_file(tmp_path / "two" / name), load_file(tmp_path / "one" / name)
    for key, value in one_weights.items():
        torch.testing.assert_close(two_weights[key], value, rtol=1e-3, atol=2e-4)


@pytest.mark.usefixtures("cluster")
def test_a_call_that_is_wrong_is_one_line(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out")
    for arguments, says in (
        (["train", "remover", "--data", data, "--output", output, "--recipe", "nonsense"], "there is no recipe nonsense; the recipes are"),
        (["train", "remover", "--data", data, "--output", output, "--recipe", "lcm"], "recipe lcm is for the lcm"),
        (["train", "painter", "--data", data, "--output", output], "objective is 'painter'"),
        (["train", "remover", "--data", str(tmp_path / "nothing"), "--output", output, "--recipe", "smoke"], "nothing"),
        (["train", "remover", "--data", data, "--output", output, "--recipe", "smoke", "--batch-size", "99"], "a batch takes 99 items"),
        (["train", "remover", "--data", data, "--output", output, "--recipe", "smoke", "--workers", "5"], "5 workers share a batch of 4"),
        (["train", "remover", "--data", data, "--output", output, "--recipe", "smoke", "--model", "opencv"], "opencv"),
        (["train", "remover", "--data", data, "--output", output, "--recipe", "smoke", "--callback", "json:dumps"], "UserCallback"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert says in error
        assert "Traceback" not in error
        # a call that was wrong does not stand in the way of the right one
        assert not list(tmp_path.glob("out/**/settings.json"))


def wait_for_lines(output: Path, count: int, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while len(lines(output)) < count:
        assert time.monotonic() < deadline, f"only {len(lines(output))} steps were made"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_and_a_killed_driver_change_no_loss(data: str, small_model: str, tmp_path: Path) -> None:
    """Workers come back by themselves, and a new driver goes on: step by step the curve of the uninterrupted training, bit for bit."""
    settings = ["--model", small_model, "--size", "64", "--steps", str(STEPS), "--checkpoint-every", "4", "--workers", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def arguments(output: Path) -> list[str]:
        return ["train", "remover", "--data", data, "--output", str(output), "--recipe", "smoke", *settings]

    assert main(arguments(whole)) == 0
    job = start_command(*arguments(killed), log=tmp_path / "log")
    try:
        wait_for_lines(killed, 6)
        workers = processes("RayTrainWorker", job.pid)
        assert len(workers) == 2
        kill(workers[int(np.random.default_rng(0).integers(2))])
        wait_for_lines(killed, 13)
        assert job.poll() is None, (tmp_path / "log").read_text()
    finally:
        kill(job.pid)
        job.wait()
    again = start_command(*arguments(killed), log=tmp_path / "log")
    assert again.wait(timeout=400) == 0, (tmp_path / "log").read_text()
    assert losses(killed) == losses(whole)
    name = "unet/diffusion_pytorch_model.safetensors"
    expected, found = load_file(whole / name), load_file(killed / name)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_help_names_every_objective() -> None:
    import subprocess

    done = subprocess.run(command("train", "--help"), capture_output=True, text=True, env=environment(), check=True, timeout=300)
    assert "remover,discriminator,lcm" in done.stdout.replace(" ", "")
