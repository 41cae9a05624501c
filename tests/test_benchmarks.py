"""The GPU and training benchmarks run small on a CPU, and count the operations that the performance notes counted for the full networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, training, training_plan


def test_the_small_benchmark_prints_a_row_for_every_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "record.md"
    gpu.main(["--small", "--seconds", "0.01", "--long-steps", "5", "--batches", "2", "--record", str(record)])
    text = capsys.readouterr().out
    assert record.read_text() in text
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("| ")][2:]
    assert [line[0] for line in lines] == ["4 steps", "5 steps", "discriminator", "clean step (4 steps + score)"]
    for line in lines:
        assert (line[1], line[2]) == ("128", "2")
        assert float(line[3]) > 0
    rates = {line[0]: float(line[3]) for line in lines}
    assert rates["clean step (4 steps + score)"] < rates["4 steps"]
    assert all(float(line[9]) > 0 for line in lines[:2]), "the plain pipeline was not timed beside ours"


def test_full_size_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu.main(["--device", "cpu"])
    assert caught.value.code == 2
    assert "say how much of the table a CPU shall do" in capsys.readouterr().err


def test_counted_operations_of_the_full_networks() -> None:
    """RORem's networks at 512 pixels, in TFLOP an image: UNet 1.589, encode 1.117, decode 2.515, discriminator 0.690 + 0.0042."""
    counts = gpu.count_tflop(gpu.FULL, 512)
    assert counts["unet"] == pytest.approx(1.589, abs=0.001)
    assert counts["encode"] == pytest.approx(1.117, abs=0.001)
    assert counts["decode"] == pytest.approx(2.515, abs=0.001)
    assert counts["discriminator"] == pytest.approx(0.694, abs=0.002)


def test_the_training_benchmark_runs_without_ray_and_writes_what_it_prints(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    small = ["--model", "small", "--size", "128", "--photos", "160", "--batch", "2", "--steps", "1", "--warmup", "1", "--device", "cpu"]
    small += ["--objectives", "discriminator", "lcm"]
    code = f"import sys; sys.modules['ray'] = None; from benchmarks.training import main; main({[*small, '--record', str(record)]!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    written = json.loads(record.read_text())
    assert [line[0] for line in lines] == [row["objective"] for row in written["rows"]] == ["discriminator", "lcm"]
    for line, row in zip(lines, written["rows"], strict=True):
        assert float(line[2]) == pytest.approx(2 / row["seconds"], abs=0.006)
        assert 0 <= row["data_wait_share"] < 1
        assert row["feed_images_per_second"] > 0
    tflop = {row["objective"]: row["tflop"] for row in written["rows"]}
    assert tflop["discriminator"] < tflop["lcm"], "down and mid blocks cost less than teacher and student"


def test_the_bare_loop_of_the_training_benchmark_does_the_same_work(tmp_path: Path) -> None:
    data = training_plan.write_triplets(str(tmp_path), 8, 96)
    plan = training_plan.Plan(
        model="small", device=torch.device("cpu"), size=64, precision="float32", checkpointing=True, data=data, threads=1, steps=2, warmup=1
    )
    pairs = list(training.overhead(plan, "remover", 2, 2))
    assert len(pairs[0].loop.losses) == 3
    for pair in pairs:
        assert pair.loop.losses == pytest.approx(pair.bare.losses, rel=1e-4)
        assert pair.loop.losses == pytest.approx(pairs[0].loop.losses, rel=1e-4), "a pair did not begin with the first weights"
        assert min(pair.ratio, pair.cpu_ratio) > 0
    settings = plan.settings("remover", 2)
    share = next(iter(plan.feed(settings).shares(0, 1, 0, 1)))
    plain = replace(plan, checkpointing=False)
    counts = [training.count_tflop(one, one.objective(one.settings("remover", 2)), share) for one in (plan, plain)]
    assert counts[0] == counts[1] > 0, "what checkpointing does again is no part of MFU"


def test_the_full_networks_are_not_trained_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        training.main(["--device", "cpu", "--model", "sdxl"])
    assert caught.value.code == 2
    assert "full-size networks need a GPU" in capsys.readouterr().err
