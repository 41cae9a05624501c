"""The discriminator's network has the published sizes, counted without memory; its adapters start at nothing and merge exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.gpu import FULL
from core.discriminator_config import DiscriminatorConfig
from core.discriminator_network import DiscriminatorNetwork, Trunk, make_head
from core.errors import UsageError
from core.prompts import PromptEmbeddings

SDXL = FULL.unet
SMALL = {
    **SDXL,
    "block_out_channels": [32, 32, 64],
    "attention_head_dim": [1, 2, 4],
    "transformer_layers_per_block": 1,
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}


def count(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)


def test_parameter_counts_are_the_published_ones() -> None:
    """RORem: UNet 2,567.48 M; head 78.66 M (157.3 MB in half precision); rank-4 adapters 2.85 M (11.4 MB in float32)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SDXL)
        network = DiscriminatorNetwork(unet, DiscriminatorConfig(), 8)
    assert count(unet.parameters()) == 2_567_478_084
    assert count(network.head.parameters()) == 78_656_001
    adapters = {name: value for name, value in network.named_parameters() if ".lora_" in name}
    assert count(adapters.values()) == 2_850_816
    # down 1 and 2 and the mid block: 4 + 20 + 10 transformer layers, of 2 attentions, 4 projections, and 2 matrices each
    assert len(adapters) == (4 + 20 + 10) * 2 * 4 * 2
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == set(network.trained_state())
    assert count(network.trained_state().values()) == 78_656_001 + 2_850_816


def small(**changes: Any) -> tuple[Any, DiscriminatorNetwork, tuple[Any, ...]]:
    """A UNet, the network on it (f = 2, 64 pixels), and an input."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(SMALL)
    network = DiscriminatorNetwork(unet, DiscriminatorConfig(size=64, **changes), 2).eval()
    prompt = PromptEmbeddings(torch.randn(1, 7, 16), torch.randn(1, 16))
    return unet, network, (torch.randn(2, 4, 32, 32), (torch.rand(2, 1, 32, 32) > 0.5).float(), torch.randn(2, 4, 32, 32), prompt)


@torch.no_grad()
def test_trunk_equals_the_mid_block_of_diffusers_own_forward() -> None:
    unet, network, (edited, mask, source, prompt) = small()
    seen: list[torch.Tensor] = []
    unet.mid_block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    unet(
        torch.cat([edited, mask, source], dim=1), 0, encoder_hidden_states=prompt.tokens_1TD.expand(2, -1, -1),
        added_cond_kwargs={"text_embeds": prompt.pooled_1P.expand(2, -1), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)},
    )  # fmt: skip
    torch.testing.assert_close(network(edited, mask, source, prompt).logits_B, network.head(seen[0]).flatten())


@torch.no_grad()
def test_merged_adapters_give_the_same_and_the_remover_is_untouched() -> None:
    unet, network, inputs = small()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    plain = network(*inputs).logits_B
    for name, value in network.named_parameters():
        if ".lora_B" in name:
            value.normal_(0, 0.05)
    adapted = network(*inputs).logits_B
    assert (adapted - plain).abs().min() > 1e-4
    network.merge()
    torch.testing.assert_close(network(*inputs).logits_B, adapted)
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in before.items())


def test_a_trunk_that_is_not_copied_takes_the_unets_own_parts() -> None:
    unet, _, _ = small()
    assert Trunk(unet, copied=False).mid_block is unet.mid_block
    assert Trunk(unet).mid_block is not unet.mid_block


def test_only_what_is_trained_has_gradients() -> None:
    _, network, inputs = small(trained_parts=("conv_in",), head_channels=96)
    network(*inputs).logits_B.sum().backward()
    with_gradient = {name for name, value in network.named_parameters() if value.grad is not None}
    assert with_gradient == set(network.trained_state())
    assert {"trunk.conv_in.weight", "head.0.weight"} <= with_gradient
    assert network.head[0].weight.shape == (96, 64, 4, 4)


def test_head_has_the_published_shape() -> None:
    """RORem at 512 pixels: three 4x4 convolutions 16 -> 8 -> 4 -> 1 and one 1x1, at places 0, 3, 6 and 9."""
    head = make_head(32, 64, 16)
    convolutions = {place: layer.stride[0] for place, layer in enumerate(head) if isinstance(layer, torch.nn.Conv2d)}
    assert convolutions == {0: 2, 3: 2, 6: 4, 9: 1}
    assert head(torch.zeros(2, 32, 16, 16)).shape == (2, 1, 1, 1)
    for side in (0, 2, 6):
        with pytest.raises(UsageError, match=f"{side} x {side}"):
            make_head(32, 64, side)
    for width in (0, 32, 80):
        with pytest.raises(UsageError, match=f"{width} channels"):
            make_head(32, width, 16)


def test_other_unets_are_refused() -> None:
    plain = {**SMALL, "addition_embed_type": None}
    with torch.device("meta"), pytest.raises(UsageError, match="no add_time_proj"):
        Trunk(UNet2DConditionModel.from_config(plain))
