"""Sampling: from noise to latents, with every network call counted.

Legend for shape suffixes: B batch, L latent channels, h w latent sides, T D tokens and width of the prompt, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from core.attention import AttentionCapture
from core.conditioning import Conditioning
from core.prompts import PromptEmbeddings


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """A prompt for every item: tokens (B, T, D) and pooled embeddings (B, P)."""

    tokens_BTD: torch.Tensor
    pooled_BP: torch.Tensor

    @classmethod
    def of(cls, prompt: PromptEmbeddings, batch: int) -> PromptBatch:
        """One prompt for all items, without a copy."""
        return cls(prompt.tokens_1TD.expand(batch, -1, -1), prompt.pooled_1P.expand(batch, -1))


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance: prediction = null + scale * (prompt - null). Both branches run as one network call of twice the batch."""

    scale: float
    null: PromptEmbeddings


@dataclass(frozen=True, slots=True)
class Reinjection:
    """ObjectClear's step-0 rule: after the first step, what lies outside the object is the source's latents at the next noise level.

    It keeps the background's colours while the object itself starts from pure noise and leaves no trace. Each item has its own mask; where
    there is one step only there is no next level, and nothing is done.
    """

    source_BLhw: torch.Tensor
    noise_BLhw: torch.Tensor
    mask_B1hw: torch.Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """The latents (B, L, h, w), and how many times the network was called for them."""

    latents_BLhw: torch.Tensor
    calls: int


def terminal_start(scheduler: Any, steps: int, noise_BLhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pure noise at the first of exactly ``steps`` time steps: (latents, timesteps). ``noise_BLhw`` is standard normal."""
    scheduler.set_timesteps(steps)
    return noise_BLhw * float(scheduler.init_noise_sigma), scheduler.timesteps


def sample(
    unet: Any,
    scheduler: Any,
    latents_BLhw: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: Conditioning,
    prompt: PromptBatch,
    *,
    generators: Sequence[torch.Generator],
    guidance: Guidance | None = None,
    reinjection: Reinjection | None = None,
    capture: AttentionCapture | None = None,
) -> Sampled:
    """Denoise from ``latents_BLhw``, one network call for every entry of ``timesteps``.

    Args:
        latents_BLhw: where to start, in the scheduler's scale.
        timesteps: a run of the scheduler's own timesteps, on the CPU; the scheduler has been set to them.
        generators: one an item, for schedulers that add noise while they sample (LCM).
        capture: its layers are captured during the last call.
    """
    batch, dtype, device = len(latents_BLhw), latents_BLhw.dtype, latents_BLhw.device
    extra = {"generator": list(generators)} if "generator" in scheduler.step.__code__.co_varnames else {}
    tokens_BTD, pooled_BP, fixed_BChw, ids_B6 = _network_inputs(unet, conditioning, prompt, guidance)
    added = {"text_embeds": pooled_BP, "time_ids": ids_B6}
    # moved once: the network takes them from the device, the scheduler from the CPU, and no step waits for a copy
    on_device = timesteps.to(device)
    calls = 0
    for index, timestep in enumerate(timesteps):
        scaled_BLhw = scheduler.scale_model_input(latents_BLhw, timestep).to(fixed_BChw.dtype)
        if guidance is not None:
            scaled_BLhw = torch.cat([scaled_BLhw, scaled_BLhw])
        last = index == len(timesteps) - 1
        with capture.armed() if capture is not None and last else nullcontext():
            prediction = unet(
                torch.cat([scaled_BLhw, fixed_BChw], dim=1),
                on_device[index],
                encoder_hidden_states=tokens_BTD,
                added_cond_kwargs=added,
                return_dict=False,
            )[0].to(dtype)
        calls += 1
        if guidance is not None:
            null_BLhw, prompted_BLhw = prediction[:batch], prediction[batch:]
            prediction = null_BLhw + guidance.scale * (prompted_BLhw - null_BLhw)
        latents_BLhw = scheduler.step(prediction, timestep, latents_BLhw, return_dict=False, **extra)[0].to(dtype)
        if reinjection is not None and index == 0 and not last:
            latents_BLhw = _reinjected(scheduler, latents_BLhw, reinjection, timesteps[1])
    return Sampled(latents_BLhw, calls)


def _network_inputs(
    unet: Any, conditioning: Conditioning, prompt: PromptBatch, guidance: Guidance | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, pooled embeddings, the constant channels (mask, source latents) and time ids; the null branch first where there is one."""
    tokens_BTD, pooled_BP = prompt.tokens_BTD, prompt.pooled_BP
    dtype = unet.dtype  # asked once: diffusers looks through all modules for it
    fixed_BChw = torch.cat([conditioning.mask_B1hw.to(dtype), conditioning.source_latents_BLhw.to(dtype)], dim=1)
    ids_B6 = conditioning.time_ids_B6.to(pooled_BP.dtype)
    if guidance is None:
        return tokens_BTD, pooled_BP, fixed_BChw, ids_B6
    null = PromptBatch.of(guidance.null, len(tokens_BTD))
    return (
        torch.cat([null.tokens_BTD, tokens_BTD]),
        torch.cat([null.pooled_BP, pooled_BP]),
        torch.cat([fixed_BChw, fixed_BChw]),
        torch.cat([ids_B6, ids_B6]),
    )


def _reinjected(scheduler: Any, latents_BLhw: torch.Tensor, given: Reinjection, timestep: torch.Tensor) -> torch.Tensor:
    dtype = latents_BLhw.dtype
    noised = scheduler.add_noise(given.source_BLhw.to(dtype), given.noise_BLhw.to(dtype), timestep.expand(len(latents_BLhw)))
    mask = given.mask_B1hw.to(dtype)
    return noised * (1 - mask) + latents_BLhw * mask


def item_generators(seeds: Sequence[int], stream: int = 0) -> list[torch.Generator]:
    """One CPU generator an item, so that its noise depends on nothing but its seed; ``stream`` tells several uses of one seed apart."""
    return [torch.Generator().manual_seed((seed ^ (stream * 0x5DEECE66D)) & (2**63 - 1)) for seed in seeds]


def normal_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Standard normal noise (B, \\*shape) float32 on the CPU, each item's from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
