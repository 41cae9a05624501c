"""The attention-mask loss by loops, on square and other grids, for items without an object, and under gradient checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from core.attention import cross_attention_layers
from core.conditioning import time_ids
from core.errors import UsageError
from tests.random_models import POOLED, TOKENS, WIDTH, random_unet
from training.attention_loss import TrainingCapture, attention_loss, foreground, layer_grid


def box(count: int, height: int, width: int, top: int, left: int, rows: int, columns: int) -> torch.Tensor:
    mask = torch.zeros(count, 1, height, width)
    mask[..., top : top + rows, left : left + columns] = 1
    return mask


def by_hand(maps: dict[str, torch.Tensor], grids: dict[str, tuple[int, int]], mask: torch.Tensor, weight: float) -> torch.Tensor:
    """ObjectClear's loss as a number, by loops over layers, items, heads and cells."""
    layers = []
    for name, found in maps.items():
        rows, columns = grids[name]
        small = F.interpolate(mask, size=(rows, columns), mode="bilinear", antialias=True)
        terms = []
        for item in range(len(found)):
            for head in range(found.shape[1]):
                inside, outside = [], []
                for place in range(rows * columns):
                    here = float(small[item, 0, place // columns, place % columns]) > 0.1
                    (inside if here else outside).append(found[item, head, place])
                terms.append(weight * sum(outside) / len(outside) - sum(inside) / len(inside) + 1)
        layers.append(sum(terms) / len(terms))
    return torch.as_tensor(sum(layers) / len(layers))


@settings(max_examples=15, deadline=None)
@given(
    sides=st.sampled_from([(8, 8), (8, 16), (9, 7), (12, 5)]),
    weight=st.sampled_from([1.0, 0.5]),
    place=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 1000),
)
def test_the_loss_equals_loops(sides: tuple[int, int], weight: float, place: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    height, width = sides
    grids = {"a": sides, "b": ((height + 1) // 2, (width + 1) // 2), "c": sides}
    maps = {name: torch.rand(2, 1 + (name == "b"), rows * columns, generator=generator) for name, (rows, columns) in grids.items()}
    mask = box(2, 8 * height, 8 * width, *place, 21, 17)
    leaves = [value.requires_grad_() for value in maps.values()]
    found = attention_loss(maps, mask, sides, background_weight=weight).mean()
    expected = by_hand(maps, grids, mask, weight)
    assert float((found - expected).abs().detach()) < 1e-5
    pairs = zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True)
    assert all(float((mine - hers).abs().max()) < 1e-5 for mine, hers in pairs)


def test_perfect_attention_is_0_and_its_opposite_2() -> None:
    mask = box(1, 64, 64, 16, 16, 32, 32)
    inside = foreground(mask, 8, 8)[:, None]
    assert float(attention_loss({"a": inside}, mask, (8, 8))) == 0
    assert float(attention_loss({"a": 1 - inside}, mask, (8, 8))) == 2


def test_a_cell_counts_from_a_tenth() -> None:
    """On a grid of one cell the antialiased filter is a weighted mean: little of it is background, more is foreground."""
    assert foreground(box(1, 64, 64, 0, 0, 64, 4), 1, 1).tolist() == [[0.0]]
    assert foreground(box(1, 64, 64, 0, 0, 64, 32), 1, 1).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("positions", "sides", "grid"),
    [(4096, (64, 64), (64, 64)), (256, (64, 64), (16, 16)), (512, (64, 128), (16, 32)), (17 * 23, (67, 90), (17, 23)), (1, (5, 9), (1, 1))],
)
def test_the_grid_of_a_layer(positions: int, sides: tuple[int, int], grid: tuple[int, int]) -> None:
    assert layer_grid(positions, *sides) == grid


def test_positions_of_no_level_are_refused() -> None:
    with pytest.raises(ValueError, match="60 positions are no level of a UNet whose input is 8 x 8"):
        layer_grid(60, 8, 8)
    with pytest.raises(UsageError, match="at least one layer"):
        attention_loss({}, box(1, 8, 8, 0, 0, 4, 4), (1, 1))


def test_items_without_an_object_are_left_out_and_change_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = {"a": torch.rand(3, 2, 64, generator=generator), "b": torch.rand(3, 2, 16, generator=generator)}
    mask = box(3, 64, 64, 8, 8, 24, 24)
    everywhere = attention_loss(maps, mask, (8, 8))
    mask[1] = 0
    leaves = [value.requires_grad_() for value in maps.values()]
    losses = attention_loss(maps, mask, (8, 8), named_B=torch.tensor([True, True, False]))
    assert losses.tolist() == [pytest.approx(float(everywhere[0].detach())), 0.0, 0.0]
    for gradient in torch.autograd.grad(losses.sum(), leaves):
        assert torch.isfinite(gradient).all()
        assert gradient[1:].count_nonzero() == 0
        assert gradient[0].count_nonzero() > 0


def test_a_coarse_layer_that_does_not_see_the_object_has_no_say() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = {"fine": torch.rand(1, 2, 64, generator=generator), "coarse": torch.rand(1, 2, 1, generator=generator)}
    mask = box(1, 64, 64, 8, 8, 8, 8)
    assert foreground(mask, 1, 1).sum() == 0
    assert torch.equal(attention_loss(maps, mask, (8, 8)), attention_loss({"fine": maps["fine"]}, mask, (8, 8)))
    full = attention_loss({"fine": maps["fine"]}, torch.ones(1, 1, 64, 64), (8, 8))
    assert float(full) == pytest.approx(1 - float(maps["fine"].mean()), abs=1e-6), "no background: its mean is 0"


def call(unet: Any, sides: tuple[int, int] = (8, 16)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return unet(
        torch.randn(2, 9, *sides, generator=generator),
        torch.tensor(500),
        encoder_hidden_states=torch.randn(2, TOKENS, WIDTH, generator=generator),
        added_cond_kwargs={"text_embeds": torch.randn(2, POOLED, generator=generator), "time_ids": time_ids(2, 64, 128)},
        return_dict=False,
    )[0]


def run(unet: Any, capture: TrainingCapture) -> torch.Tensor:
    """A loss of both the prediction and the maps."""
    with capture.armed():
        prediction = call(unet)
    maps = capture.maps_with_gradient()
    assert len(maps) == len(cross_attention_layers(unet))
    return prediction.square().mean() + attention_loss(maps, box(2, 64, 128, 8, 40, 32, 48), (8, 16)).mean()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    """The maps' gradient alone, and together with the prediction's; and nothing of the second run is kept."""
    found: list[dict[str, torch.Tensor]] = []
    for checkpointed in (False, True):
        unet = random_unet().requires_grad_(True).train()
        if checkpointed:
            unet.enable_gradient_checkpointing()
        capture = TrainingCapture(unet, (), 5)
        seen: list[int] = []
        layer = dict(unet.named_modules())[cross_attention_layers(unet)[0]]
        layer.register_forward_pre_hook(lambda *_args, seen=seen: seen.append(1))
        run(unet, capture).backward()
        assert len(seen) == (2 if checkpointed else 1), "the layer runs again in the backward pass"
        assert all(processor.captured_BAN is None for processor in capture.processors.values())
        found.append({name: value.grad.clone() for name, value in unet.named_parameters() if value.grad is not None})
        unet.zero_grad()
        with capture.armed():
            call(unet)
        attention_loss(capture.maps_with_gradient(), box(2, 64, 128, 8, 40, 32, 48), (8, 16)).mean().backward()
        found[-1] |= {f"attention.{name}": value.grad for name, value in unet.named_parameters() if value.grad is not None}
    plain, saved = found
    assert plain.keys() == saved.keys()
    assert all(float((plain[name] - saved[name]).abs().max()) < 1e-5 for name in plain)
    ends = ("attention.", "attn2.to_k.weight")
    keys = [float(value.abs().max()) for name, value in saved.items() if name.startswith(ends[0]) and name.endswith(ends[1])]
    assert len(keys) == len(cross_attention_layers(random_unet()))
    assert min(keys) > 1e-6


def test_reentrant_checkpointing_is_refused_and_not_silent() -> None:
    unet = random_unet().requires_grad_(True).train()
    unet.enable_gradient_checkpointing(lambda module, *inputs: checkpoint(module.__call__, *inputs, use_reentrant=True))
    capture = TrainingCapture(unet, (), 5)
    with capture.armed():
        call(unet)
    with pytest.raises(RuntimeError, match="has no gradient"):
        capture.maps_with_gradient()


def test_without_gradients_nothing_is_captured_unarmed() -> None:
    unet = random_unet()
    capture = TrainingCapture(unet, (), 5)
    with torch.no_grad():
        call(unet)
        assert all(processor.captured_BAN is None for processor in capture.processors.values())
        with capture.armed():
            call(unet)
        assert not any(map_.requires_grad for map_ in capture.maps_with_gradient().values())
