"""A worker process of test_optimisers.py and test_averaging.py: a network sharded by FSDP2 over gloo must do what a whole one does.

Run as ``python -m tests.training.sharded RANK WORLD FILE``; ends with status 0 where it does.
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.training.process_group import gloo_group
from training.averaging import WeightAverage
from training.optimisers import OptimiserSettings, clip_gradients, make_optimiser, set_learning_rate

STEPS = 3


def main(rank: int, world: int, file: str) -> None:
    with gloo_group(rank, world, file):
        _compare(rank, world)


def _compare(rank: int, world: int) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    sharded = copy.deepcopy(whole)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (world,)))
    settings = OptimiserSettings(learning_rate=0.05, clip_norm=0.3, rate_scales={"2": 0.5})
    runs = []
    for network in (whole, sharded):
        parameters = dict(network.named_parameters())
        runs.append((network, parameters, make_optimiser(parameters, settings, torch.device("cpu")), WeightAverage(parameters, 0.9)))
    inputs = torch.randn(STEPS, world, 4, 6)
    for step in range(STEPS):
        norms = []
        for network, parameters, optimiser, average in runs:
            optimiser.zero_grad()
            given = inputs[step].flatten(0, 1) if network is whole else inputs[step, rank]
            (10 * network(given).square().mean()).backward()
            norms.append(clip_gradients(parameters.values(), settings))
            set_learning_rate(optimiser, settings, step, STEPS)
            optimiser.step()
            average.update(step)
        assert norms[0] > settings.clip_norm  # type: ignore[operator]
        torch.testing.assert_close(norms[0], norms[1])
    (_, wanted, _, wanted_average), (_, found, _, found_average) = runs
    before = {name: tensor.to_local().clone() for name, tensor in found.items()}
    for name, tensor in found.items():
        assert isinstance(tensor, DTensor)
        torch.testing.assert_close(tensor.full_tensor(), wanted[name])
        torch.testing.assert_close(found_average.state_dict()[name].full_tensor(), wanted_average.state_dict()[name])
    averages = wanted_average.state_dict()
    with found_average.applied():
        for name, tensor in found.items():
            torch.testing.assert_close(tensor.full_tensor(), averages[name])
    for name, tensor in found.items():
        assert torch.equal(tensor.to_local(), before[name])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
