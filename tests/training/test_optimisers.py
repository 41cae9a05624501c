"""Optimisers do the arithmetic of their papers, rates follow the step, and clipping sees every gradient however it is given."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import UsageError
from training.optimisers import OptimiserSettings, clip_gradients, learning_rate_at, make_optimiser, set_learning_rate

CPU = torch.device("cpu")


def parameters(**sizes: int) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name.replace("__", "."): nn.Parameter(torch.randn(size, generator=generator)) for name, size in sizes.items()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "adam"},
        {"schedule": "sine"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
        {"weight_decay": -0.1},
        {"clip_norm": 0.0},
        {"warmup_steps": -1},
        {"final_share": 1.5},
        {"rate_scales": {"unet": -1.0}},
        {"rate_scales": {"": 1.0}},
        {"name": "adafactor", "fused": True},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)) if len(wrong) == 1 else "fused"):
        OptimiserSettings(**wrong)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_every_schedule_warms_up(schedule: Any) -> None:
    settings = OptimiserSettings(learning_rate=2.0, schedule=schedule, warmup_steps=4, final_share=0.1)
    rates = [learning_rate_at(settings, step, 20) for step in range(20)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert all(rate > 0 for rate in rates)
    if schedule == "constant":
        assert set(rates[4:]) == {2.0}
    else:
        assert all(later < earlier for earlier, later in pairwise(rates[4:]))


def test_schedules_are_their_formulas() -> None:
    cosine = OptimiserSettings(learning_rate=3.0, schedule="cosine", warmup_steps=10, final_share=0.2)
    linear = OptimiserSettings(learning_rate=3.0, schedule="linear", warmup_steps=10, final_share=0.2)
    for step in (10, 30, 60, 85, 110, 500):
        done = min(1.0, (step - 10) / 100)
        assert learning_rate_at(cosine, step, 110) == pytest.approx(0.6 + 2.4 * (1 + math.cos(math.pi * done)) / 2)
        assert learning_rate_at(linear, step, 110) == pytest.approx(0.6 + 2.4 * (1 - done))


def test_a_warm_up_longer_than_the_run_is_no_error() -> None:
    settings = OptimiserSettings(learning_rate=1.0, schedule="cosine", warmup_steps=1000)
    assert [learning_rate_at(settings, step, 2) for step in range(2)] == [0.001, 0.002]


@pytest.mark.parametrize(("step", "total"), [(-1, 10), (0, 0)])
def test_steps_that_are_none_are_refused(step: int, total: int) -> None:
    with pytest.raises(UsageError, match="no step"):
        learning_rate_at(OptimiserSettings(), step, total)


def test_adamw_is_its_formula() -> None:
    settings = OptimiserSettings(learning_rate=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.5, warmup_steps=2)
    (weight,) = made = list(parameters(a=5).values())
    optimiser = make_optimiser({"a": made[0]}, settings, CPU)
    wanted = weight.detach().double().clone()
    first = second = torch.zeros(5, dtype=torch.float64)
    for step in range(3):
        gradient = torch.randn(5, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        rate = set_learning_rate(optimiser, settings, step, 3)
        optimiser.step()
        assert rate == pytest.approx(0.1 * min(1, (step + 1) / 2))
        first = 0.8 * first + 0.2 * gradient.double()
        second = 0.95 * second + 0.05 * gradient.double() ** 2
        change = first / (1 - 0.8 ** (step + 1)) / ((second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-3)
        wanted = wanted * (1 - rate * 0.5) - rate * change
    torch.testing.assert_close(weight.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_adafactor_is_its_paper() -> None:
    """One step on a matrix by the algorithm of section 7 (numbers 4 and 5) of arXiv:1804.04235."""
    settings = OptimiserSettings(name="adafactor", learning_rate=0.02, weight_decay=0.0)
    weight = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    weight.grad = gradient.clone()
    optimiser = make_optimiser({"a": weight}, settings, CPU)
    set_learning_rate(optimiser, settings, 0, 10)
    optimiser.step()
    squares = gradient**2
    change = gradient / (squares.mean(1, keepdim=True) @ squares.mean(0, keepdim=True) / squares.mean()).sqrt()
    change = change / max(1.0, float(change.square().mean().sqrt()))
    wanted = before - 0.02 * max(1e-3, float(before.square().mean().sqrt())) * change
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-4, atol=1e-6)


def distance(weights: dict[str, nn.Parameter]) -> float:
    return sum(float((weight.detach() - 1).square().sum()) for weight in weights.values())


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_every_optimiser_learns_and_resumes_exactly(name: Any) -> None:
    settings = OptimiserSettings(name=name, learning_rate=0.05, schedule="cosine", weight_decay=0.0)

    def run(weights: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimiser.zero_grad()
            torch.stack([(weight - 1).square().sum() for weight in weights.values()]).sum().backward()
            set_learning_rate(optimiser, settings, step, 40)
            optimiser.step()

    whole = parameters(a=4, b=3)
    start = distance(whole)
    optimiser = make_optimiser(whole, settings, CPU)
    run(whole, optimiser, range(20))
    resumed = {key: nn.Parameter(weight.detach().clone()) for key, weight in whole.items()}
    second = make_optimiser(resumed, settings, CPU)
    # a loaded state shares its tensors with the one that it is loaded from
    second.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    run(whole, optimiser, range(20, 40))
    run(resumed, second, range(20, 40))
    assert distance(whole) < start
    for key, weight in whole.items():
        assert torch.equal(weight, resumed[key])


def test_rates_are_scaled_by_the_longest_name_that_fits() -> None:
    named = parameters(unet__down__1__w=2, unet__down__10__w=2, unet__up__w=2, head__w=2, header__w=2)
    settings = OptimiserSettings(learning_rate=1.0, rate_scales={"unet": 0.5, "unet.down.1": 0.1, "head.": 3.0}, schedule="linear")
    optimiser = make_optimiser(named, settings, CPU)
    assert set_learning_rate(optimiser, settings, 5, 10) == 0.5
    rates = {id(parameter): group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in named.items()}
    assert found == {"unet.down.1.w": 0.05, "unet.down.10.w": 0.25, "unet.up.w": 0.25, "head.w": 1.5, "header.w": 0.5}


def test_a_scale_for_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unet\.dwon"):
        make_optimiser(parameters(unet__down=2), OptimiserSettings(rate_scales={"unet.dwon": 0.5}), CPU)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to train"):
        make_optimiser({}, OptimiserSettings(), CPU)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="pip install bitsandbytes"):
        make_optimiser(parameters(a=2), OptimiserSettings(name="adamw8bit"), CPU)


@pytest.mark.parametrize("kind", [list, iter, lambda values: filter(lambda value: value.requires_grad, values)])
def test_clipping_clips_whatever_iterable_it_is_given(kind: Any) -> None:
    named = parameters(a=3, b=2, unused=4)
    named["a"].grad, named["b"].grad = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0])
    assert clip_gradients(kind(named.values()), OptimiserSettings(clip_norm=0.5)) == pytest.approx(5.0)
    torch.testing.assert_close(named["a"].grad, torch.tensor([0.3, 0.0, 0.0]))
    torch.testing.assert_close(named["b"].grad, torch.tensor([0.0, 0.4]))


@pytest.mark.parametrize(("clip_norm", "gradient"), [(None, [3.0, 4.0]), (5.5, [3.0, 4.0]), (1.0, [math.inf, 1.0]), (1.0, [math.nan, 1.0])])
def test_gradients_that_are_not_to_be_clipped_are_untouched(clip_norm: float | None, gradient: list[float]) -> None:
    named = parameters(a=2)
    named["a"].grad = torch.tensor(gradient)
    norm = clip_gradients(named.values(), OptimiserSettings(clip_norm=clip_norm))
    assert norm == pytest.approx(math.hypot(*gradient), nan_ok=True)
    assert torch.equal(named["a"].grad.nan_to_num(7.0), torch.tensor(gradient).nan_to_num(7.0))


def test_no_gradients_have_no_norm() -> None:
    assert clip_gradients(parameters(a=2).values(), OptimiserSettings()) == 0.0


def test_a_sharded_network_is_trained_clipped_and_averaged_like_a_whole_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.sharded"]
    workers = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path / "meet")], cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        messages = [worker.communicate(timeout=300)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(messages)
