"""Captured attention equals a softmax worked out by hand, and capturing changes nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.attention import FUSION_LAYER, AttentionCapture, cross_attention_layers
from core.conditioning import time_ids
from tests.random_models import POOLED, TOKENS, WIDTH, random_unet

TOKEN = 5


def call(unet: Any, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return unet(
        torch.randn(batch, 9, 8, 16, generator=generator),
        torch.tensor(500),
        encoder_hidden_states=torch.randn(batch, TOKENS, WIDTH, generator=generator),
        added_cond_kwargs={"text_embeds": torch.randn(batch, POOLED, generator=generator), "time_ids": time_ids(batch, 64, 128)},
        return_dict=False,
    )[0]


def softmax_by_hand(attention: Any, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(B, A, N): loops over batch, heads and positions, in float64."""
    heads, width = attention.heads, attention.to_q.out_features // attention.heads
    queries, keys = (hidden.double() @ attention.to_q.weight.double().T), (tokens.double() @ attention.to_k.weight.double().T)
    maps = torch.zeros(len(hidden), heads, hidden.shape[1], dtype=torch.float64)
    for item in range(len(hidden)):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for position in range(hidden.shape[1]):
                scores = torch.stack([(queries[item, position, part] * key[part]).sum() / width**0.5 for key in keys[item]])
                weights = (scores - scores.max()).exp()
                maps[item, head, position] = weights[TOKEN] / weights.sum()
    return maps


def test_the_map_equals_a_softmax_by_hand() -> None:
    unet = random_unet()
    layer = cross_attention_layers(unet)[0]
    seen: dict[str, torch.Tensor] = {}

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["hidden"], seen["tokens"] = args[0] if args else kwargs["hidden_states"], kwargs["encoder_hidden_states"]

    attention = dict(unet.named_modules())[layer]
    attention.register_forward_pre_hook(keep, with_kwargs=True)
    capture = AttentionCapture(unet, [layer], TOKEN)
    with capture.armed():
        call(unet)
    (found,) = capture.maps().values()
    expected = softmax_by_hand(attention, seen["hidden"], seen["tokens"])
    assert found.shape == (2, attention.heads, 4 * 8)
    assert found.dtype == torch.float32
    assert float((found.double() - expected).abs().max()) < 1e-6
    assert float(expected.std()) > 1e-4


def test_capturing_changes_no_bit_of_the_output() -> None:
    plain = call(random_unet())
    unet = random_unet()
    capture = AttentionCapture(unet, cross_attention_layers(unet), TOKEN)
    idle = call(unet)
    with capture.armed():
        armed = call(unet)
    assert torch.equal(plain, idle)
    assert torch.equal(plain, armed)
    assert len(capture.maps()) == len(cross_attention_layers(unet))
    assert len({map_.data_ptr() for map_ in capture.maps().values()}) == len(capture.maps())


def test_only_chosen_layers_are_touched() -> None:
    unet = random_unet()
    before = unet.attn_processors
    layer = cross_attention_layers(unet)[1]
    AttentionCapture(unet, [layer], TOKEN)
    after = unet.attn_processors
    assert [name for name in after if after[name] is not before[name]] == [f"{layer}.processor"]


def test_nothing_is_captured_outside_the_block() -> None:
    unet = random_unet()
    capture = AttentionCapture(unet, cross_attention_layers(unet)[:1], TOKEN)
    call(unet)
    with pytest.raises(RuntimeError, match="inside armed"):
        capture.maps()
    with capture.armed(on=False):
        call(unet)
    with pytest.raises(RuntimeError, match="inside armed"):
        capture.maps()
    with capture.armed():
        call(unet)
    capture.maps()
    capture.clear()
    with pytest.raises(RuntimeError, match="inside armed"):
        capture.maps()


def test_gradients_flow_through_the_map() -> None:
    unet = random_unet().requires_grad_(True)
    layer = cross_attention_layers(unet)[0]
    capture = AttentionCapture(unet, [layer], TOKEN)
    with capture.armed():
        call(unet)
    capture.maps()[layer].mean().backward()
    gradient = dict(unet.named_modules())[layer].to_k.weight.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("layers", [[], ["down_blocks.9.attn2"], ["conv_in"]])
def test_layers_that_are_none_are_named(layers: list[str]) -> None:
    with pytest.raises(ValueError, match=r"no cross-attention layer .*this UNet has"):
        AttentionCapture(random_unet(), layers, TOKEN)


def test_the_reference_layer_is_sdxls_first_cross_attention(sdxl_unet: Any) -> None:
    layers = cross_attention_layers(sdxl_unet)
    assert layers[0] == FUSION_LAYER
    assert len(layers) == 70
