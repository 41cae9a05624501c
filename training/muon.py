"""Muon: momentum whose matrices are made orthogonal before they are followed (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A step goes equally far in every direction that a gradient has, where Adam's goes furthest along the few strongest. On the embedded remover
one of its steps did the work of more than one and a half of AdamW's, and took half as long again on a processor (docs/training.md).
PyTorch's ``torch.optim.Muon`` takes tensors of two dimensions alone; most of a UNet are convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from core.device import has_bfloat16

MOMENTUM: Final = 0.95
STEPS: Final = 5
COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration; Jordan et al. chose them so that it is fast and not exact: singular values end between 0.7 and 1.2."""
UPDATE_RMS: Final = 0.2
"""Root mean square of an update, which is about AdamW's, so that its learning rates and weight decay fit (Liu et al. 2025,
arXiv:2502.16982, section 2.2)."""
LEAST_SIDE: Final = 4
"""What has fewer rows or columns, an output of three channels say, is no matrix to make orthogonal."""


def orthogonal(matrix_RC: torch.Tensor) -> torch.Tensor:
    """About U V' for a matrix U S V', (R, C) float32, computed in bfloat16 where the device has it; zeros stay zeros."""
    a, b, c = COEFFICIENTS
    tall = matrix_RC.shape[0] > matrix_RC.shape[1]
    # where bfloat16 is imitated, a step of the embedded remover took five times as long
    values = (matrix_RC.T if tall else matrix_RC).to(torch.bfloat16 if has_bfloat16(matrix_RC.device) else torch.float32)
    values = values / values.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        square = values @ values.T
        values = torch.addmm(values, torch.addmm(square, square, square, beta=b, alpha=c), values, beta=a)
    return (values.T if tall else values).float()


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum for weights of two and more dimensions, convolutions as (out, in x height x width); AdamW for the rest.

    Args:
        params: tensors, or groups of them.
        lr: of both.
        betas, eps: of AdamW.
        weight_decay: decoupled, of both.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step along the gradients; tensors without one stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                follow = self._follow_matrix if _is_matrix(parameter) else self._follow_values
                follow(parameter, parameter.grad.float(), group)
        return loss

    def _follow_matrix(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(gradient)
        state["average"].lerp_(gradient, 1 - MOMENTUM)
        update_RC = gradient.lerp(state["average"], MOMENTUM).flatten(1)
        rate = group["lr"] * UPDATE_RMS * max(update_RC.shape) ** 0.5
        parameter.add_(orthogonal(update_RC).reshape(parameter.shape).to(parameter.dtype), alpha=-rate)

    def _follow_values(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["average"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        count = float(state["step"])
        state["average"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        scale = (state["square"] / (1 - second**count)).sqrt_().add_(group["eps"])
        parameter.sub_((group["lr"] * state["average"] / (1 - first**count) / scale).to(parameter.dtype))


def _is_matrix(parameter: torch.Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= LEAST_SIDE
