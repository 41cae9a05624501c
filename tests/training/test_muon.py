"""Muon is PyTorch's on matrices, goes with convolutions as matrices, and is AdamW for the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training import muon
from training.muon import Muon, orthogonal

SETTINGS = {"lr": 0.02, "weight_decay": 0.1}


def stepped(optimiser: torch.optim.Optimizer, parameter: nn.Parameter, steps: int = 4) -> torch.Tensor:
    """The parameter after steps along gradients that depend on it and on the step."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        noise = torch.randn(parameter.numel(), generator=generator).reshape(parameter.shape)
        parameter.grad = parameter.detach() + noise
        optimiser.step()
    return parameter.detach()


def start(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", [(6, 6), (8, 20), (20, 8)])
def test_matrices_step_as_with_pytorchs_muon(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: True)  # PyTorch's is in bfloat16 everywhere
    ours, theirs = start(*shape), start(*shape)
    reference = torch.optim.Muon([theirs], **SETTINGS, adjust_lr_fn="match_rms_adamw")
    torch.testing.assert_close(stepped(Muon([ours], **SETTINGS), ours), stepped(reference, theirs))


def test_a_convolution_steps_as_the_matrix_of_its_filters() -> None:
    filters, matrix = start(8, 5, 3, 3), nn.Parameter(start(8, 5, 3, 3).detach().flatten(1))
    found = stepped(Muon([filters], **SETTINGS), filters)
    torch.testing.assert_close(found.flatten(1), stepped(Muon([matrix], **SETTINGS), matrix))


@pytest.mark.parametrize("shape", [(7,), (3, 5, 3, 3), (9, 2)])
def test_what_is_no_matrix_steps_as_with_adamw(shape: tuple[int, ...]) -> None:
    ours, theirs = start(*shape), start(*shape)
    reference = torch.optim.AdamW([theirs], **SETTINGS)
    torch.testing.assert_close(stepped(Muon([ours], **SETTINGS), ours), stepped(reference, theirs))


@pytest.mark.parametrize("has", [True, False])
def test_singular_values_become_about_one(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At first they differ by a factor of a hundred."""
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: has)
    rows, columns = (torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(seed)))[0] for seed in (2, 3))
    matrix = rows @ torch.diag(torch.logspace(0, -2, 12)) @ columns
    found = torch.linalg.svdvals(orthogonal(matrix))
    assert float(found.min()) > 0.5
    assert float(found.max()) < 1.3
    assert not orthogonal(torch.zeros(5, 7)).any()


def test_without_bfloat16_the_direction_is_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = start(9, 14).detach()
    found = []
    for has in (True, False):
        monkeypatch.setattr(muon, "has_bfloat16", lambda _, has=has: has)
        found.append(orthogonal(matrix))
    assert not torch.equal(*found)
    torch.testing.assert_close(*found, atol=0.02, rtol=0.05)


def test_a_restored_state_goes_on_as_if_it_had_not_stopped() -> None:
    pair = [start(6, 9), start(5)]
    other = copy.deepcopy(pair)
    ours, theirs = Muon(pair, **SETTINGS), Muon(other, **SETTINGS)
    for parameters, optimiser in ((pair, ours), (other, theirs)):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
    fresh = Muon(other, **SETTINGS)
    fresh.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for parameters, optimiser in ((pair, ours), (other, fresh)):
        for parameter in parameters:
            parameter.grad = parameter.detach().clone()
        optimiser.step()
    for one, two in zip(pair, other, strict=True):
        assert torch.equal(one, two)


def test_a_tensor_without_a_gradient_stays() -> None:
    still, moved = start(4, 4), start(5, 5)
    moved.grad = torch.ones_like(moved)
    optimiser = Muon([still, moved], **SETTINGS)
    optimiser.step()
    assert torch.equal(still, start(4, 4))
    assert not torch.equal(moved, start(5, 5))
