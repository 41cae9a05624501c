"""The running average is its formula, and standing in for the trained weights it leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.errors import UsageError
from training.averaging import WeightAverage


def weights(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return {name: nn.Parameter(torch.randn(2, size, generator=generator).to(dtype)) for name, size in (("a", 3), ("b", 5))}


def change(parameters: dict[str, nn.Parameter], step: int) -> None:
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)).to(parameter.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_its_formula(dtype: torch.dtype, warmup: bool) -> None:
    parameters = weights(dtype)
    average = WeightAverage(parameters, 0.3, warmup)
    wanted = {name: parameter.detach().double() for name, parameter in parameters.items()}
    for step in range(6):
        change(parameters, step)
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step)) if warmup else 0.3
        wanted = {name: decay * before + (1 - decay) * parameters[name].detach().double() for name, before in wanted.items()}
    for name, found in average.state_dict().items():
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applied_swaps_and_puts_back_bit_for_bit(dtype: torch.dtype) -> None:
    parameters = weights(dtype)
    average = WeightAverage(parameters, 0.9)
    change(parameters, 0)
    with torch.no_grad():
        parameters["a"][0, 0] = float("nan")
        parameters["a"][0, 1] = -0.0
    average.update(0)
    trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    averages = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    places = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    bits = torch.int32 if dtype == torch.float32 else torch.int16

    def leave_by_an_error() -> None:
        with average.applied():
            for name, parameter in parameters.items():
                assert torch.equal(parameter.detach().view(bits), averages[name].to(dtype).view(bits))
            raise KeyError("in the block")

    with pytest.raises(KeyError):
        leave_by_an_error()
    for name, parameter in parameters.items():
        assert torch.equal(parameter.detach().view(bits), trained[name].view(bits))
        assert parameter.data_ptr() == places[name]
        assert torch.equal(average.state_dict()[name].view(torch.int32), averages[name].view(torch.int32))


def test_a_loaded_average_goes_on_as_the_saved_one() -> None:
    one, other = weights(), weights()
    first, second = WeightAverage(one, 0.9), WeightAverage(other, 0.9)
    change(one, 0)
    change(other, 0)
    first.update(0)
    second.load_state_dict(first.state_dict())
    for step in (1, 2):
        change(one, step)
        change(other, step)
        first.update(step)
        second.update(step)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_the_averages_share_no_memory_with_the_weights() -> None:
    parameters = weights()
    average = WeightAverage(parameters, 0.9)
    before = average.state_dict()["a"].clone()
    change(parameters, 0)
    assert torch.equal(average.state_dict()["a"], before)


def test_what_cannot_be_done_inside_applied_is_refused() -> None:
    average = WeightAverage(weights(), 0.9)
    with average.applied():
        with pytest.raises(UsageError, match="update"):
            average.update(0)
        with pytest.raises(UsageError, match="save"):
            average.state_dict()
        with pytest.raises(UsageError, match="load"):
            average.load_state_dict({})
        with pytest.raises(UsageError, match="apply"), average.applied():
            pass
    average.update(0)


def test_wrong_decays_and_states_are_refused() -> None:
    with pytest.raises(UsageError, match="0 to below 1"):
        WeightAverage(weights(), 1.0)
    with pytest.raises(UsageError, match="missing b"):
        WeightAverage(weights(), 0.9).load_state_dict({"a": torch.zeros(2, 3)})
