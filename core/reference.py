"""diffusers' ``StableDiffusionXLInpaintPipeline`` step by step, faults included: what RORem's scripts call, to compare with.

Strength below 1 cuts the first steps off (0.99 of 4 leaves 3 network calls) and starts from the noised source, so that the object's trace
is in the first latents; latents are samples of the autoencoder's posterior. The eraser does none of that. It is here so that a test can
hold both networks and schedules against the library, and a benchmark can time the same work as the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from core.conditioning import Conditioning, decode_latents, downsampling_factor, time_ids
from core.prompts import PromptEmbeddings
from core.sampler import Guidance, PromptBatch, Sampled, normal_noise, sample


def reference_timesteps(scheduler: Any, steps: int, strength: float) -> torch.Tensor:
    """The timesteps that are left of ``steps`` at a strength in (0, 1]; the scheduler is set to them.

    Raises:
        ValueError: none is left.
    """
    scheduler.set_timesteps(steps)
    first = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
    if first >= len(scheduler.timesteps):
        raise ValueError(f"strength {strength} leaves none of {steps} steps; give a larger one")
    scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


@torch.inference_mode()
def reference_inpaint(
    unet: Any,
    vae: Any,
    scheduler: Any,
    prompt: PromptEmbeddings,
    source_B3HW: torch.Tensor,
    mask_B1HW: torch.Tensor,
    *,
    steps: int,
    strength: float,
    generators: Sequence[torch.Generator],
    guidance: Guidance | None = None,
) -> tuple[torch.Tensor, Sampled]:
    """Pictures (B, 3, H, W) in about [-1, 1] and the sampling behind them.

    Args:
        source_B3HW: in [-1, 1], of sides that the autoencoder's factor divides.
        mask_B1HW: 1 = remove.
        generators: one an item; the pipeline, given the same list, draws the same numbers in the same order.
    """
    factor = downsampling_factor(vae)
    batch, _, height, width = source_B3HW.shape
    timesteps = reference_timesteps(scheduler, steps, strength)
    binary_B1HW = (mask_B1HW >= 0.5).to(source_B3HW.dtype)
    shape = (int(vae.config.latent_channels), height // factor, width // factor)
    image_latents = None if strength == 1.0 else _posterior_sample(vae, source_B3HW, generators)
    noise_BLhw = normal_noise(shape, generators).to(source_B3HW)
    if image_latents is None:
        latents_BLhw = noise_BLhw * float(scheduler.init_noise_sigma)
    else:
        latents_BLhw = scheduler.add_noise(image_latents, noise_BLhw, timesteps[:1].expand(batch))
    conditioning = Conditioning(
        mask_B1hw=F.interpolate(binary_B1HW, size=shape[1:]),
        source_latents_BLhw=_posterior_sample(vae, source_B3HW * (binary_B1HW < 0.5), generators),
        time_ids_B6=time_ids(batch, height, width, source_B3HW.device),
    )
    sampled = sample(
        unet,
        scheduler,
        latents_BLhw,
        timesteps,
        conditioning,
        PromptBatch.of(prompt, batch),
        generators=generators,
        guidance=guidance,
    )
    return decode_latents(vae, sampled.latents_BLhw), sampled


def _posterior_sample(vae: Any, picture_B3HW: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Scaled samples of the posterior, drawn (as the pipeline does for a list of generators) one item at a time."""
    latents = [
        vae.encode(picture[None].to(vae.dtype)).latent_dist.sample(generator)
        for picture, generator in zip(picture_B3HW, generators, strict=True)
    ]
    return torch.cat(latents).to(picture_B3HW.dtype) * vae.config.scaling_factor
