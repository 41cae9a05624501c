"""One objective on many workers: DDP, where each holds all weights, and FSDP2, where each holds its share.

Either way a step's gradient is that of the whole batch's mean loss, and states are whole tensors on the CPU, so that a checkpoint does not
know how many workers made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from core.errors import UsageError
from training.objective import Batch, LossModule, LossResult, Objective


class Session(Protocol):
    """The worker that a loop runs in.

    Attributes:
        rank, world_size: which of how many.
        device: of the networks.
    """

    rank: int
    world_size: int
    device: torch.device

    def progress(self, values: dict[str, Any]) -> None:
        """Tells whoever watches where the training stands; called by rank 0 now and then."""
        ...

    def report(self, values: dict[str, Any]) -> None:
        """Called by all workers at every checkpoint, with the figures of the first."""
        ...


class Parallel(Protocol):
    """An objective spread over the workers."""

    def loss(self, batch: Batch) -> LossResult:
        """The loss of a micro-batch."""
        ...

    def held_back(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward pass of a micro-batch: gradients are exchanged with the last one of a step."""
        ...

    def whole(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Trained tensors (or tensors like them) whole, on the CPU, copied. All workers must call it."""
        ...

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimiser's state with whole tensors on the CPU. All workers must call it."""
        ...

    def load_optimiser_state(self, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Puts it back. All workers must call it."""
        ...

    def load(self, parameters: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
        """Copies whole tensors into trained ones, or tensors like them."""
        ...


class DataParallel:
    """DDP, or a single worker without it."""

    def __init__(self, objective: Objective, session: Session) -> None:
        self.module: Any = LossModule(objective)
        if session.world_size > 1:
            self.module = nn.parallel.DistributedDataParallel(
                self.module,
                device_ids=[session.device] if session.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def loss(self, batch: Batch) -> LossResult:
        result: LossResult = self.module(batch)
        return result

    def held_back(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last or not hasattr(self.module, "no_sync") else self.module.no_sync()

    def whole(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        return _on_cpu(optimiser.state_dict())

    def load_optimiser_state(self, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        optimiser.load_state_dict(state)

    def load(self, parameters: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])


class ShardedDataParallel:
    """FSDP2 (``fully_shard``): blocks of the trained networks are gathered when their turn comes.

    Raises:
        UsageError: there is no process group to shard over.
    """

    def __init__(self, objective: Objective, session: Session, precision: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if not dist.is_initialized():
            raise UsageError("strategy fsdp needs several workers; use ddp for one")
        self.mesh = init_device_mesh(session.device.type, (session.world_size,))
        half = torch.bfloat16 if precision == "bfloat16" else None
        # what is outside the blocks (time embedding, prompt) is given in float32, as in DDP under autocast
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
        self.networks = nn.ModuleDict(objective.networks().trained)
        for network in self.networks.values():
            for block in _blocks(network):
                fully_shard(block, mesh=self.mesh, mp_policy=policy)
            # the root, too, lets go what it has gathered: after a validation with averaged weights it would go on with those
            fully_shard(network, mesh=self.mesh, mp_policy=policy, reshard_after_forward=True)
        self.objective = objective

    def loss(self, batch: Batch) -> LossResult:
        return self.objective.loss(batch)

    @contextmanager
    def held_back(self, *, last: bool) -> Iterator[None]:
        for network in self.networks.values():
            network.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def whole(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: _full(tensor.detach()).to("cpu", copy=True) for name, tensor in tensors.items()}

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        state = optimiser.state_dict()
        moments = {
            key: {name: _full(value) if isinstance(value, torch.Tensor) else value for name, value in values.items()}
            for key, values in state["state"].items()
        }
        return _on_cpu({**state, "state": moments})

    def load_optimiser_state(self, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        shared = {
            key: {name: self._as(value, parameters[int(key)]) for name, value in values.items()} for key, values in state["state"].items()
        }
        optimiser.load_state_dict({**state, "state": shared})

    def load(self, parameters: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self._as(state[name], parameter))

    def _as(self, value: Any, like: torch.Tensor) -> Any:
        """A whole tensor as a share like the parameter's; what has another shape (a step count) stays."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(value, torch.Tensor) or not isinstance(like, DTensor) or value.shape != like.shape:
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def spread(objective: Objective, session: Session, strategy: str, precision: str) -> Parallel:
    """The objective as ``loop.strategy`` says."""
    return ShardedDataParallel(objective, session, precision) if strategy == "fsdp" else DataParallel(objective, session)


def added_up(values: list[float], session: Session) -> list[float]:
    """Sums over all workers."""
    if session.world_size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=session.device if session.device.type == "cuda" else "cpu")
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def wait_for_all(session: Session) -> None:
    """Returns when every worker is here."""
    if session.world_size > 1:
        dist.barrier()


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The parts of a UNet that are gathered one at a time: its down, mid and up blocks, and the transformer layers in them."""
    named = dict(network.named_modules())
    layers = [module for name, module in named.items() if type(module).__name__ == "BasicTransformerBlock" and name]
    outer = [module for kind in ("down_blocks", "up_blocks") for module in getattr(network, kind, [])]
    middle = getattr(network, "mid_block", None)
    return [*layers, *outer, *([middle] if isinstance(middle, nn.Module) else [])]


def _full(tensor: torch.Tensor) -> torch.Tensor:
    gather: Callable[[], torch.Tensor] | None = getattr(tensor, "full_tensor", None)
    return gather() if gather is not None else tensor


def _on_cpu(value: Any) -> Any:
    """A copy of nested dictionaries and lists with all tensors on the CPU, which later steps do not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _on_cpu(inner) for name, inner in value.items()}
    return [_on_cpu(inner) for inner in value] if isinstance(value, list) else value
