"""A running average of the trained weights, which is often the better network at the end (Polyak and Juditsky 1992; Karras et al. 2024,
arXiv:2312.02696)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.distributed.tensor import DTensor

from core.errors import UsageError
from training.objective import fill_trained


class WeightAverage:
    """An exponential moving average: after each step ``average = decay * average + (1 - decay) * weights``.

    It is float32 whatever the weights are (in bfloat16 a change of 1 in 10,000 would be rounded away), on the weights' device, and of
    sharded weights every worker averages its own share.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float, warmup: bool = True) -> None:
        """Starts with the weights as they are.

        Args:
            parameters: the trained tensors by name; the very objects, which ``applied`` changes in place.
            decay: from 0 (no average: the last weights) to below 1.
            warmup: step n (from 0) uses at most ``(1 + n) / (10 + n)``, so that the first weights are soon forgotten.

        Raises:
            UsageError: ``decay`` is out of its range.
        """
        if not 0 <= decay < 1:
            raise UsageError(f"the decay of a weight average is {decay}, which must be 0 to below 1")
        self._parameters = dict(parameters)
        self._decay = decay
        self._warmup = warmup
        self._averages = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in self._parameters.items()}
        self._applied = False

    def decay_at(self, step: int) -> float:
        """The decay that is used after a step, counted from 0."""
        return min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights as they are after a step.

        Args:
            step: the one just made, from 0.

        Raises:
            UsageError: the averaged values stand in the weights (``applied``).
        """
        self._check_not_applied("update")
        averages = [_own(tensor) for tensor in self._averages.values()]
        weights = [_own(tensor).float() for tensor in self._parameters.values()]
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - self.decay_at(step))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages by name, float32, not copied.

        Raises:
            UsageError: inside ``applied``.
        """
        self._check_not_applied("save")
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts back what ``state_dict`` gave.

        Raises:
            UsageError: names or shapes are of other weights, or inside ``applied``.
        """
        self._check_not_applied("load")
        fill_trained(self._averages, state)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged values stand in the weights during the block; afterwards, also after an error, the trained ones do, bit for bit.

        Raises:
            UsageError: one such block inside another.
        """
        self._check_not_applied("apply")
        kept: dict[str, torch.Tensor] = {}
        self._applied = True
        try:
            with torch.no_grad():
                for name, weight in self._parameters.items():
                    kept[name] = _exchange(weight, self._averages[name])
            yield
        finally:
            with torch.no_grad():
                for name, before in kept.items():
                    _restore(self._parameters[name], self._averages[name], before)
            self._applied = False

    def _check_not_applied(self, action: str) -> None:
        if self._applied:
            raise UsageError(f"cannot {action} a weight average while it stands in the weights; leave the block of applied() first")


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """This worker's share of a sharded tensor; any other as it is. Both are the memory itself."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def _exchange(weight: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Puts the average into a weight, and returns what ``_restore`` needs.

    Float32 weights go where the average was, so that one tensor at a time is held twice and not the whole network.
    """
    own, other = _own(weight), _own(average)
    before = own.clone()
    own.copy_(other)
    if own.dtype != other.dtype:
        return before
    other.copy_(before)
    return other


def _restore(weight: torch.Tensor, average: torch.Tensor, before: torch.Tensor) -> None:
    own, other = _own(weight), _own(average)
    if own.dtype != other.dtype:
        own.copy_(before)
        return
    averaged = own.clone()
    own.copy_(before)
    other.copy_(averaged)
