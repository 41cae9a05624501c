"""Where networks run, and in which number format."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from core.errors import UsageError


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is float32 on a CPU and bfloat16 on a GPU."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in known:
        raise UsageError(f"no dtype {dtype!r}; give auto, {' or '.join(known)}")
    return known[dtype]


@cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has arithmetic for bfloat16: a GPU, or a processor with AVX-512 or AMX for it. Others imitate it, slowly."""
    return device.type != "cpu" or any(has and name.endswith("bf16") for name, has in torch.cpu.get_capabilities().items())


def pick_device(device: str) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: a GPU is asked for and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device} was asked for, but torch {torch.__version__} sees no GPU; use --device cpu or auto")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"no device {device!r}; give auto, cpu, cuda or cuda:N") from error


def placed(network: Any, device: torch.device | str, dtype: torch.dtype, *, channels_last: bool = True) -> Any:
    """The network on ``device`` in ``dtype``; convolutions with channels last, as tensor cores want them."""
    nn.Module.to(network, device, dtype)  # diffusers' own to() warns at every change of number format
    return network.to(memory_format=torch.channels_last) if channels_last else network
