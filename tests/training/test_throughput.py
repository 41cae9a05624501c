"""Counted operations are those of the formulas, and the meter's figures follow from its clock."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.errors import UsageError
from training.throughput import Meter, count_flops, peak_flops, peak_flops_of_card


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_forward_and_backward_of_a_matrix_product_are_counted() -> None:
    layer = nn.Linear(7, 5, bias=False)
    inputs = torch.randn(3, 7, requires_grad=True)
    product = 2 * 3 * 7 * 5
    assert count_flops(lambda: layer(inputs)) == product
    assert count_flops(lambda: layer(inputs).sum().backward()) == 3 * product


def test_what_checkpointing_computes_again_is_counted() -> None:
    layers = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
    inputs = torch.randn(4, 6, requires_grad=True)
    product = 2 * 4 * 6 * 6
    plain = count_flops(lambda: layers(inputs).sum().backward())
    again = count_flops(lambda: checkpoint(layers, inputs, use_reentrant=False).sum().backward())
    assert plain == 2 * 3 * product
    # the last product need not be made again: nothing of its output is kept
    assert again in (plain + product, plain + 2 * product)


def test_a_convolution_is_counted() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    assert count_flops(lambda: layer(torch.randn(2, 3, 8, 8))) == 2 * 2 * 64 * 4 * 3 * 9


def test_attention_is_counted_on_this_device() -> None:
    query = torch.randn(1, 2, 16, 8, requires_grad=True)
    key, value = torch.randn(1, 2, 12, 8, requires_grad=True), torch.randn(1, 2, 12, 8, requires_grad=True)
    product = 2 * 2 * 16 * 12 * 8
    assert count_flops(lambda: nn.functional.scaled_dot_product_attention(query, key, value)) == 2 * product
    # forward 2 products; backward 4, and the scores once more
    found = count_flops(lambda: nn.functional.scaled_dot_product_attention(query, key, value).sum().backward())
    assert found == 7 * product


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H200", torch.bfloat16, 989.4e12),
        ("NVIDIA H200", torch.float32, 67e12),
        ("NVIDIA H200 NVL", torch.bfloat16, 835.5e12),
        ("NVIDIA H100 80GB HBM3", torch.float16, 989.4e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
        ("NVIDIA A100-PCIE-40GB", torch.float32, 19.5e12),
        ("NVIDIA L40S", torch.bfloat16, 362.05e12),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2e12),
        ("Tesla V100-SXM2-16GB", torch.float16, 125e12),
        ("Tesla V100-SXM2-16GB", torch.bfloat16, None),
        ("Tesla V100-PCIE-16GB", torch.float16, None),
        ("NVIDIA A10G", torch.bfloat16, None),
        ("NVIDIA GH200 480GB", torch.bfloat16, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16, None),
        ("NVIDIA GeForce RTX 4090 D", torch.bfloat16, None),
        ("NVIDIA H200", torch.int8, None),
        ("Another card", torch.bfloat16, None),
    ],
)
def test_peaks_are_those_of_the_card_and_of_no_other(name: str, dtype: torch.dtype, peak: float | None) -> None:
    assert peak_flops_of_card(name, dtype) == (None if peak is None else pytest.approx(peak))


def test_a_cpu_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu"), torch.float32) is None


def test_the_meter_averages_over_its_window() -> None:
    clock = Clock()
    meter = Meter(peak=100e12, window=2, clock=clock)
    for seconds, waited, images in ((50.0, 50.0, 1), (2.0, 0.5, 8), (3.0, 1.0, 12)):
        with meter.waiting():
            clock.now += waited
        clock.now += seconds - waited
        meter.step(images, flops=images * 10e12)
    assert meter.snapshot() == pytest.approx(
        {"step_seconds": 2.5, "images_per_second": 4.0, "data_wait_share": 0.3, "tflops_per_second": 40.0, "mfu": 0.4}
    )


def test_pauses_are_no_part_of_a_step() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    clock.now += 1
    with meter.paused():
        clock.now += 60
    clock.now += 1
    meter.step(4)
    found = meter.snapshot()
    assert (found["step_seconds"], found["images_per_second"]) == (2.0, 2.0)


def test_what_is_not_known_is_none() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    assert set(meter.snapshot().values()) == {None}
    clock.now += 1
    meter.step(4, flops=1e12)
    assert (meter.snapshot()["tflops_per_second"], meter.snapshot()["mfu"]) == (1.0, None)
    clock.now += 1
    meter.step(4)
    assert meter.snapshot()["tflops_per_second"] is None
    with pytest.raises(UsageError, match="window"):
        Meter(window=0)
