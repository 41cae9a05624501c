"""How fast a training goes, and how much of the device that is: images and floating-point operations a second, and time lost on data."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from core.errors import UsageError

# Dense operations a second in units of 10^12, from NVIDIA's data sheets and architecture white papers (figures for sparse matrices
# halved): 16-bit with float32 sums on the matrix units, float32 outside them (TF32 off). The first that fits counts; None: no such unit.
_PEAKS: Final[tuple[tuple[str, float | None, float | None, float], ...]] = (
    # name of the card, bfloat16, float16, float32
    ("B200", 2250, 2250, 75),  # HGX B200 data sheet, an eighth
    ("H200 NVL", 835.5, 835.5, 60),  # H200 data sheet
    ("H200", 989.4, 989.4, 67),  # H200 data sheet
    ("H100 PCIe", 756, 756, 51),  # H100 data sheet of 2022
    ("H100 NVL", 835.5, 835.5, 60),  # H100 data sheet
    ("H100 80GB HBM3", 989.4, 989.4, 67),  # H100 data sheet, SXM
    ("A100", 312, 312, 19.5),  # A100 data sheet
    ("A40", 149.7, 149.7, 37.4),  # A40 data sheet
    ("A10", 125, 125, 31.2),  # A10 data sheet
    ("L40S", 362.05, 362.05, 91.6),  # L40S data sheet
    ("L40", 181.05, 181.05, 90.5),  # L40 data sheet
    ("L4", 121, 121, 30.3),  # L4 data sheet
    ("RTX 6000 Ada", 364.2, 364.2, 91.1),  # RTX 6000 Ada data sheet
    ("RTX A6000", 154.8, 154.8, 38.7),  # RTX A6000 data sheet
    ("RTX 5090", 209.5, 209.5, 104.8),  # RTX Blackwell white paper
    ("RTX 4090", 165.2, 165.2, 82.6),  # Ada white paper
    ("RTX 4080", 97.5, 97.5, 48.7),  # Ada white paper
    ("RTX 3090", 71, 71, 35.6),  # Ampere GA102 white paper
    ("V100", None, 125, 15.7),  # V100 data sheet, SXM2
    ("T4", None, 65, 8.1),  # T4 data sheet
)
_OTHER_CARD: Final = re.compile(r"\b(MIG|Laptop|Max-Q|Ti|SUPER|D|PCIE)\b")
"""Words that make another card of the same name (a part of one, a smaller one), which the table does not list."""


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in ``call``, an addition and a multiplication being two.

    Backward passes inside the call count, and so does what gradient checkpointing computes again: for a share of the peak that compares
    with others' (MFU) count without checkpointing. Count before ``torch.compile``, whose kernels cannot be looked into. The call is really
    made: gradients that it adds up are the caller's to clear.
    """
    # torch's own table lacks the CPU's attention kernel
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    with FlopCounterMode(display=False, custom_mapping={attention: _attention, backward: _attention_backward}) as counter:
        call()
    return int(counter.get_total_flops())


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Dense floating-point operations a second that a device can do at best; None on a CPU, and for a card or format that is not listed."""
    if device.type != "cuda":
        return None
    return peak_flops_of_card(torch.cuda.get_device_name(device), dtype)


def peak_flops_of_card(name: str, dtype: torch.dtype) -> float | None:
    """As ``peak_flops``, by the name that the driver gives a card (``NVIDIA H200``)."""
    for card, bfloat16, float16, float32 in _PEAKS:
        found = re.search(rf"(?<![\w-]){re.escape(card)}(?!\w)", name)
        if found is None:
            continue
        other = _OTHER_CARD.search(name[: found.start()] + name[found.end() :])
        if other is not None and not (card == "A100" and other.group() == "PCIE"):
            return None
        peak = {torch.bfloat16: bfloat16, torch.float16: float16, torch.float32: float32}.get(dtype)
        return None if peak is None else peak * 1e12
    return None


@dataclass(frozen=True, slots=True)
class _Step:
    seconds: float
    waited: float
    images: int
    flops: float | None


class Meter:
    """Averages over the last steps. All figures are of what the meter is told, so of one worker or of all, as its owner likes.

    On a GPU the owner waits for the device before it ends a step (reading the loss does), or the figures are those of the launches.
    """

    def __init__(self, peak: float | None = None, window: int = 50, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begins the first step now.

        Args:
            peak: floating-point operations a second that the device (or all of them) can do; None: not known.
            window: steps that are averaged over.
            clock: seconds that only go forward.

        Raises:
            UsageError: ``window`` is below 1.
        """
        if window < 1:
            raise UsageError(f"a meter's window is {window} steps, which must be 1 or more")
        self._peak = peak
        self._clock = clock
        self._steps: deque[_Step] = deque(maxlen=window)
        self._waited = 0.0
        self._left_out = 0.0
        self._begin = clock()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in the block is waiting for data, and part of the step."""
        begin = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in the block (a validation, a checkpoint) is no part of any step."""
        begin = self._clock()
        try:
            yield
        finally:
            self._left_out += self._clock() - begin

    def step(self, images: int, flops: float | None = None) -> None:
        """Ends a step, and begins the next.

        Args:
            images: items of the step.
            flops: floating-point operations of the step; None: not known.
        """
        now = self._clock()
        self._steps.append(_Step(now - self._begin - self._left_out, self._waited, images, flops))
        self._begin, self._waited, self._left_out = now, 0.0, 0.0

    def snapshot(self) -> dict[str, float | None]:
        """Averages over the window; None where there is nothing to say.

        Returns:
            ``step_seconds``, ``images_per_second``, ``data_wait_share`` (0 to 1, of the time), ``tflops_per_second`` (10^12), and ``mfu``
            (0 to 1): the share of the device's peak that is used (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
        """
        seconds = sum(step.seconds for step in self._steps)
        if seconds <= 0:
            return dict.fromkeys(("step_seconds", "images_per_second", "data_wait_share", "tflops_per_second", "mfu"))
        known = [step.flops for step in self._steps if step.flops is not None]
        rate = sum(known) / seconds if len(known) == len(self._steps) else None
        return {
            "step_seconds": seconds / len(self._steps),
            "images_per_second": sum(step.images for step in self._steps) / seconds,
            "data_wait_share": sum(step.waited for step in self._steps) / seconds,
            "tflops_per_second": None if rate is None else rate / 1e12,
            "mfu": None if rate is None or self._peak is None else rate / self._peak,
        }
