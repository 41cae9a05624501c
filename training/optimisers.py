"""Optimisers by name, the learning rate as a function of the step, and clipping of the gradients that the optimiser uses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from core.errors import UsageError
from training.muon import Muon

OptimiserName = Literal["adamw", "adamw8bit", "adafactor", "sgd", "muon"]
Schedule = Literal["constant", "cosine", "linear"]
NAMES: Final = ("adamw", "adamw8bit", "adafactor", "sgd", "muon")
SCHEDULES: Final = ("constant", "cosine", "linear")
_FUSED: Final = ("adamw", "sgd")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserSettings:
    """How trained tensors follow their gradients.

    Raises:
        UsageError: a value out of its range.
    """

    name: OptimiserName = "adamw"
    """adamw (Loshchilov and Hutter 2019, arXiv:1711.05101); adamw8bit: the same with its two averages in 8 bits (Dettmers et al. 2022,
    arXiv:2110.02861); adafactor (Shazeer and Stern 2018, arXiv:1804.04235), whose rate is relative to the root mean square of each tensor;
    sgd with momentum ``betas[0]``; muon (``training.muon``), whose rate fits where adamw's does and may be a few times as high."""
    learning_rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    """Of adamw, adamw8bit and muon; adafactor keeps the paper's two."""
    weight_decay: float = 1e-2
    """On all trained tensors, biases and norms too, as the reference trainers do."""
    fused: bool | None = None
    """One kernel for all tensors (adamw and sgd); None: on CUDA."""
    clip_norm: float | None = 1.0
    """Gradients whose norm, over all trained tensors together, is above this are scaled down to it; None: they are not."""
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    """Steps over which the rate rises in equal parts to the full one, before every schedule."""
    final_share: float = 0.0
    """Of the full rate, at the end of cosine and linear."""
    rate_scales: dict[str, float] = field(default_factory=dict)
    """Factor of the learning rate by the first whole words of a parameter's name (``unet.down_blocks.1`` is not also
    ``unet.down_blocks.10``); the longest that fits counts."""

    def __post_init__(self) -> None:
        _check("name", self.name, " or ".join(NAMES), self.name in NAMES)
        _check("schedule", self.schedule, " or ".join(SCHEDULES), self.schedule in SCHEDULES)
        _check("learning_rate", self.learning_rate, "above 0", _finite(self.learning_rate) and self.learning_rate > 0)
        _check("betas", self.betas, "two numbers from 0 to below 1", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas))
        _check("eps", self.eps, "above 0", _finite(self.eps) and self.eps > 0)
        _check("weight_decay", self.weight_decay, "0 or more", _finite(self.weight_decay) and self.weight_decay >= 0)
        _check("clip_norm", self.clip_norm, "above 0, or null", self.clip_norm is None or self.clip_norm > 0)
        _check("warmup_steps", self.warmup_steps, "0 or more", self.warmup_steps >= 0)
        _check("final_share", self.final_share, "0 to 1", 0 <= self.final_share <= 1)
        for prefix, factor in self.rate_scales.items():
            right = bool(prefix) and _finite(factor) and factor >= 0
            _check(f"rate_scales[{prefix!r}]", factor, "0 or more, for a name that is not empty", right)
        if self.fused and self.name not in _FUSED:
            raise UsageError(f"optimiser.fused is true, but {self.name} has no fused form; leave it out, or use {' or '.join(_FUSED)}")


def learning_rate_at(settings: OptimiserSettings, step: int, total_steps: int) -> float:
    """The rate of one step, which depends on nothing but its number; so a resumed run goes on with the very rates of the unbroken one.

    Warm-up: ``(step + 1) / warmup_steps`` of the full rate, so no step is made with rate 0. Then constant, or falling from the full rate
    to ``final_share`` of it, which would be reached at ``total_steps``. A warm-up that is longer than the run never gets to the full rate.

    Args:
        step: the one about to be made, from 0; steps after the last have the last rate.
        total_steps: of the whole run, warm-up included.

    Raises:
        UsageError: ``step`` is below 0, or ``total_steps`` below 1.
    """
    if step < 0 or total_steps < 1:
        raise UsageError(f"there is no step {step} of {total_steps}; steps count from 0, and a run has at least one")
    full, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return full * (step + 1) / warmup
    if settings.schedule == "constant":
        return full
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return full * (settings.final_share + (1 - settings.final_share) * left)


def make_optimiser(parameters: Mapping[str, nn.Parameter], settings: OptimiserSettings, device: torch.device) -> torch.optim.Optimizer:
    """An optimiser of named parameters, one group for each factor of the learning rate.

    The rate is that of step 0 of a constant schedule without warm-up; ``set_learning_rate`` is called before each step.

    Args:
        parameters: as ``Networks.trained_parameters`` gives them; their order is that of the optimiser's state.
        device: where they are.

    Raises:
        UsageError: there are no parameters, a name in ``rate_scales`` fits none, or the optimiser's package is missing.
    """
    if not parameters:
        raise UsageError("there is nothing to train: no parameter requires a gradient")
    groups = _groups(parameters, settings)
    common: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    fused = device.type == "cuda" if settings.fused is None else settings.fused
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps, fused=fused, **common)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, momentum=settings.betas[0], fused=fused, **common)
    if settings.name == "muon":
        return Muon(groups, betas=settings.betas, eps=settings.eps, **common)
    if settings.name == "adafactor":
        return torch.optim.Adafactor(groups, **common)
    try:
        import bitsandbytes
    except ImportError as error:
        raise UsageError("optimiser adamw8bit needs bitsandbytes: pip install bitsandbytes, or use adamw or adafactor") from error
    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, betas=settings.betas, eps=settings.eps, **common)
    return made


def set_learning_rate(optimiser: torch.optim.Optimizer, settings: OptimiserSettings, step: int, total_steps: int) -> float:
    """Gives every group the rate of a step (times its factor), and returns it (without a factor)."""
    rate = learning_rate_at(settings, step, total_steps)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate_scale"]
    return rate


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], settings: OptimiserSettings) -> float:
    """Scales gradients in place so that their norm together is at most ``clip_norm``; returns the norm that they had.

    Where that is not finite, gradients are left as they are: the caller sees it, and decides.

    Args:
        parameters: any iterable; it is gone through once. Those without a gradient are passed over. With parameters that are sharded over
            workers (FSDP2) the norm is that of the whole, and all workers must call.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded: list[torch.Tensor] = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    # torch refuses to mix the two kinds in one operation
    squares = [_norm(part) ** 2 for part in (sharded, whole) if part]
    norm = math.sqrt(sum(squares))
    if settings.clip_norm is not None and math.isfinite(norm) and norm > settings.clip_norm:
        own = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
        torch._foreach_mul_(own, settings.clip_norm / norm)
    return norm


def _norm(gradients: list[torch.Tensor]) -> float:
    norm = nn.utils.get_total_norm(gradients)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _groups(parameters: Mapping[str, nn.Parameter], settings: OptimiserSettings) -> list[dict[str, Any]]:
    used: set[str] = set()
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        fitting = [prefix for prefix in settings.rate_scales if f"{name}.".startswith(f"{prefix.rstrip('.')}.")]
        used.update(fitting)
        factor = settings.rate_scales[max(fitting, key=len)] if fitting else 1.0
        groups.setdefault(factor, []).append(parameter)
    unknown = sorted(set(settings.rate_scales) - used)
    if unknown:
        some = ", ".join(list(parameters)[:3])
        raise UsageError(f"optimiser.rate_scales names {', '.join(unknown)}, but no trained parameter begins so; they are {some}, ...")
    return [{"params": members, "rate_scale": factor} for factor, members in groups.items()]


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _check(name: str, value: object, allowed: str, right: bool) -> None:
    if not right:
        raise UsageError(f"optimiser.{name} is {value}, which must be {allowed}")
