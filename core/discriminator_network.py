"""The discriminator's network: trunk, adapters and head (RORem, sections 1.3 and 3).

Trunk: the remover's own UNet without its up path, frozen, with low-rank adapters on the attention of the down and mid blocks. Head: 4x4
convolutions down to 1x1 and one logit. On SDXL at 512 pixels the head has 78,656,001 parameters and the rank-4 adapters 2,850,816.

Legend for shape suffixes: B batch, L latent channels, h w latent sides, T D tokens and width of the prompt, P pooled width.
"""

from __future__ import annotations

import copy
from typing import Any, Final, NamedTuple

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from core.conditioning import time_ids
from core.discriminator_config import DiscriminatorConfig
from core.errors import UsageError
from core.prompts import PromptEmbeddings

LORA_TARGETS: Final = ["to_q", "to_k", "to_v", "to_out.0"]
NORM_GROUPS: Final = 32
_PARTS: Final = ("conv_in", "time_proj", "time_embedding", "add_time_proj", "add_embedding", "down_blocks", "mid_block")


class Trunk(nn.Module):
    """Input convolution, embeddings, down blocks and mid block of an SDXL UNet.

    Args:
        unet: ``UNet2DConditionModel``, on any device, ``meta`` included.
        copied: whether the parts are copies, so that adapters do not touch the remover; False takes the UNet's own, which is then spent.

    Raises:
        UsageError: it is not an SDXL UNet.
    """

    conv_in: Any
    time_proj: Any
    time_embedding: Any
    add_time_proj: Any
    add_embedding: Any
    down_blocks: Any
    mid_block: Any

    def __init__(self, unet: Any, *, copied: bool = True) -> None:
        super().__init__()
        for name in _PARTS:
            part = getattr(unet, name, None)
            if part is None:
                raise UsageError(f"the discriminator needs an SDXL UNet (addition_embed_type text_time); this one has no {name}")
            setattr(self, name, copy.deepcopy(part) if copied else part)

    def forward(self, sample_BChw: torch.Tensor, prompt: PromptEmbeddings, time_ids_B6: torch.Tensor) -> list[torch.Tensor]:
        """Features of a (B, 2L + 1, h, w) input at timestep 0: of every down block, and last (B, mid channels, h / 2^k, w / 2^k)."""
        batch, dtype = len(sample_BChw), sample_BChw.dtype
        timestep_B = torch.zeros(batch, device=sample_BChw.device)
        embedding = self.time_embedding(self.time_proj(timestep_B).to(dtype))
        sizes = self.add_time_proj(time_ids_B6.flatten()).reshape(batch, -1).to(dtype)
        embedding = embedding + self.add_embedding(torch.cat([prompt.pooled_1P.to(dtype).expand(batch, -1), sizes], dim=-1))
        tokens_BTD = prompt.tokens_1TD.to(dtype).expand(batch, -1, -1)
        feature = self.conv_in(sample_BChw)
        features = []
        for block in self.down_blocks:
            if getattr(block, "has_cross_attention", False):
                feature, _ = block(hidden_states=feature, temb=embedding, encoder_hidden_states=tokens_BTD)
            else:
                feature, _ = block(hidden_states=feature, temb=embedding)
            features.append(feature)
        return [*features, self.mid_block(feature, embedding, encoder_hidden_states=tokens_BTD)]


class Judgement(NamedTuple):
    """What the network says: logits (B,) float32, and the trunk's features that it says so by, as ``Trunk`` gives them."""

    logits_B: torch.Tensor
    features: list[torch.Tensor]


class DiscriminatorNetwork(nn.Module):
    """Trunk with adapters, and head. Only adapters and head (and the config's trained parts) have gradients; they are what is saved.

    Args:
        unet: the remover (``UNet2DConditionModel``).
        config: shape of the adapters and the head.
        factor: pixels per latent cell of the autoencoder.
        copied: see ``Trunk``.

    Raises:
        UsageError: the UNet is not of SDXL's kind, or the head does not fit the configured size.
    """

    def __init__(self, unet: Any, config: DiscriminatorConfig, factor: int, *, copied: bool = True) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(unet, copied=copied).requires_grad_(False)
        lora = peft.LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, init_lora_weights="gaussian", target_modules=LORA_TARGETS)
        peft.inject_adapter_in_model(lora, self.trunk)
        for name, parameter in self.trunk.named_parameters():
            if self._is_trained_part(name):
                parameter.requires_grad_(True)
        channels = list(unet.config.block_out_channels)
        mid_side = config.size // factor // 2 ** (len(channels) - 1)
        self.feature_channels: list[int] = [*channels, channels[-1]]
        self.head = make_head(int(channels[-1]), config.head_channels or int(channels[-1]), mid_side)

    def forward(
        self, edited_BLhw: torch.Tensor, mask_B1hw: torch.Tensor, source_BLhw: torch.Tensor, prompt: PromptEmbeddings
    ) -> Judgement:
        """Latents are scaled posterior means; the source is unmasked; the mask is binary at latent size."""
        sample = torch.cat([edited_BLhw, mask_B1hw.to(edited_BLhw.dtype), source_BLhw], dim=1)
        ids_B6 = time_ids(len(sample), self.config.size, self.config.size, sample.device)
        features = self.trunk(sample, prompt, ids_B6)
        return Judgement(self.head(features[-1]).flatten().float(), features)

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Tensors of adapters, head and trained parts of the trunk by their names in this module."""
        state = self.state_dict()
        parts = (name for name in state if name.startswith("trunk.") and self._is_trained_part(name.removeprefix("trunk.")))
        trained = {*parts, *(name for name in state if name.startswith("head.") or ".lora_" in name)}
        return {name: value for name, value in state.items() if name in trained}

    def _is_trained_part(self, name: str) -> bool:
        return any(name.startswith(f"{part}.") for part in self.config.trained_parts)

    def merge(self) -> None:
        """Adds the adapters to the trunk's weights, so that they cost nothing while scoring."""
        for module in self.trunk.modules():
            if isinstance(module, LoraLayer):
                module.merge()


def make_head(channels_in: int, channels: int, side: int) -> nn.Sequential:
    """Head for a (B, channels_in, side, side) feature: 4x4 stride-2 convolutions down to 4x4, one 4x4 stride-4, one 1x1 to the logit.

    Group norm and SiLU follow all but the last (RORem's code: 16 -> 8 -> 4 -> 1 at 512 pixels).

    Raises:
        UsageError: ``side`` is not 4, 8, 16, ..., or ``channels`` not 64, 96, 128, ...
    """
    if side < 4 or side & (side - 1):
        raise UsageError(f"the mid feature is {side} x {side}; the discriminator's head needs 4, 8, 16, ...: change its size")
    # with one channel a group, the norm of the last 1x1 feature would have nothing to tell apart
    if channels % NORM_GROUPS or channels < 2 * NORM_GROUPS:
        raise UsageError(f"the head is {channels} channels wide; its norms of {NORM_GROUPS} groups need 64, 96, ...: set head_channels")
    layers: list[nn.Module] = []
    while side >= 4:
        stride, padding = (2, 1) if side > 4 else (4, 0)
        layers += [nn.Conv2d(channels_in, channels, 4, stride, padding), nn.GroupNorm(NORM_GROUPS, channels), nn.SiLU()]
        channels_in, side = channels, side // stride
    return nn.Sequential(*layers, nn.Conv2d(channels_in, 1, 1))
