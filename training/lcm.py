"""Consistency distillation: an adapter that lets a remover erase in four network calls (RORem, section 3.3).

Latent consistency models with a LoRA (Luo et al. 2023, "Latent Consistency Models", section 4, and "LCM-LoRA", section 3). The frozen
remover, as teacher, takes one DDIM step over 1 / 50 of the schedule, from t to s, on noised latents of the target; the student's answer at
t is to equal its own answer at s, which has no gradient. There is no averaged copy and no embedding of the guidance scale.

Unlike the reference, the teacher's guidance scale is drawn from the range that is asked for (its options are never read), or the teacher is
not guided (as the paper says); both of its branches run as one network call.

Legend for shape suffixes: B batch, L latent channels, h w latent sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from core.conditioning import Conditioning
from core.errors import UsageError
from core.lora import FILE_NAME
from core.prompts import PromptEmbeddings
from core.sampler import PromptBatch, item_generators, normal_noise
from training.objective import (
    Batch,
    LoraSettings,
    LossResult,
    Networks,
    add_lora,
    call_unet,
    fill_trained,
    lora_tensors,
    prediction_type,
    published,
    uniform_draws,
    whole_draws,
)
from training.remover import encoded_items, item_prompts
from training.remover_parts import RemoverParts, object_token

LossKind = Literal["huber", "l2"]

NOISE, POINT, SCALE = 0, 1, 3
"""Streams of an item's seed (2 is the remover's condition dropout)."""
TIMESTEPS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class LcmSettings:
    """How a remover is distilled. The model's card says what it is conditioned on.

    Raises:
        UsageError: a value is out of its range.
    """

    points: int = 50
    """Steps of the teacher's DDIM schedule; a jump is 1000 / points timesteps."""
    loss: LossKind = "huber"
    """``huber``: sqrt(d^2 + c^2) - c; ``l2``: d^2 (RORem's script)."""
    huber_c: float = 0.001
    guidance: tuple[float, float] | None = None
    """Lowest and highest w of the teacher's guidance x_c + w (x_c - x_u), drawn uniformly for each item; None: an unguided teacher. RORem's
    code draws from 3 to 10."""
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0
    """Of the boundary scalings; diffusers' ``LCMScheduler`` samples with these two values."""
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        low, high = self.guidance or (0.0, 0.0)
        rules = (
            ("points", self.points, f"a divisor of {TIMESTEPS}", self.points >= 1 and TIMESTEPS % self.points == 0),
            ("loss", self.loss, "huber or l2", self.loss in {"huber", "l2"}),
            ("huber_c", self.huber_c, "above 0", self.huber_c > 0),
            ("guidance", self.guidance, "two numbers from 0, the lower one first, or null", 0 <= low <= high),
            ("sigma_data", self.sigma_data, "above 0", self.sigma_data > 0),
            ("timestep_scaling", self.timestep_scaling, "above 0", self.timestep_scaling > 0),
        )
        wrong = [f"{name} is {value}, which must be {allowed}" for name, value, allowed, right in rules if not right]
        if wrong:
            raise UsageError(f"lcm: {'; '.join(wrong)}")


class LcmObjective:
    """Loss and adapter of a distillation.

    Args:
        parts: the remover: teacher, and with the adapter student; its UNet gets the adapter in place.
        settings: how it is distilled.
        teacher_prompt: what the teacher is given in place of the model's prompt (RORem's code: a fixed one that praises quality).

    Raises:
        UsageError: a guided teacher has no null prompt; or the schedule is not of 1000 timesteps, or predicts something else than noise or
            velocity, or noise where none of the picture is left to subtract it from.
    """

    def __init__(
        self, parts: RemoverParts, settings: LcmSettings | None = None, *, teacher_prompt: PromptEmbeddings | None = None
    ) -> None:
        from diffusers import DDPMScheduler

        settings = settings or LcmSettings()
        if settings.guidance is not None and parts.null_prompt is None:
            raise UsageError("the teacher is to be guided, and there is no null prompt to lead it away from")
        if parts.card.object_token != "none" and parts.object_token is None:
            raise UsageError("the model's card asks for an object token, and it has no image encoder and fuse module")
        schedule = DDPMScheduler.from_config(parts.scheduler.config)
        kept = schedule.alphas_cumprod.float()
        if len(kept) != TIMESTEPS:
            raise UsageError(f"the schedule has {len(kept)} timesteps; distillation is for {TIMESTEPS}")
        self.prediction = prediction_type(parts.scheduler)
        if self.prediction == "epsilon" and float(kept[-1]) < 1e-8:
            raise UsageError("the schedule ends in pure noise and the model predicts it: nothing can be distilled there; use v_prediction")
        self.parts, self.settings, self.teacher_prompt = parts, settings, teacher_prompt or parts.prompt
        self._jump = TIMESTEPS // settings.points
        self._kept = kept.to(parts.vae.device)
        self.token = object_token(parts, parts.card.object_token)
        for network in (parts.vae, *((self.token.encoder, self.token.fuse) if self.token is not None else ())):
            network.requires_grad_(False)
        add_lora(parts.unet, settings.lora)

    def networks(self) -> Networks:
        """The UNet's adapter is trained; autoencoder and object token are frozen."""
        frozen: dict[str, nn.Module] = {"vae": self.parts.vae}
        if self.token is not None:
            frozen |= {"image_encoder": self.token.encoder, "fuse_module": self.token.fuse}
        return Networks({"unet": self.parts.unet}, frozen)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> LossResult:
        """Mean over the items of their mean over the latent; part ``consistency``.

        Raises:
            UsageError: there are no random numbers, or the pictures' sides do not fit the autoencoder.
        """
        seeds, card = batch.item_seeds(generator), self.parts.card
        clean_BLhw, conditioning = encoded_items(self.parts.vae, batch, card.conditioning, card.latent_mask, card.texture)
        noise_BLhw = normal_noise(clean_BLhw.shape[1:], item_generators(seeds, NOISE)).to(clean_BLhw.device)
        start_B = ((whole_draws(seeds, POINT, self.settings.points) + 1) * self._jump - 1).to(clean_BLhw.device)
        end_B = (start_B - self._jump).clamp(min=0)
        signal, sigma = self._levels(start_B)
        noisy_BLhw = signal * clean_BLhw + sigma * noise_BLhw
        prompt = item_prompts(self.parts.prompt, self.token, batch)
        # first, while nothing waits for the backward pass: taking the adapter off and on sets what requires a gradient
        with torch.no_grad(), _without_adapter(self.parts.unet):
            stepped_BLhw = self._teacher_step(batch, noisy_BLhw, start_B, end_B, conditioning, seeds)
        answer_BLhw = self._answer(noisy_BLhw, start_B, conditioning, prompt)
        with torch.no_grad():
            goal_BLhw = self._answer(stepped_BLhw, end_B, conditioning, prompt)
        squared_BLhw = (answer_BLhw - goal_BLhw).square()
        if self.settings.loss == "huber":
            c = self.settings.huber_c
            squared_BLhw = (squared_BLhw + c**2).sqrt() - c
        total = squared_BLhw.mean(dim=(1, 2, 3)).mean()
        return LossResult(total, {"consistency": total.detach()}, len(batch))

    def _teacher_step(
        self,
        batch: Batch,
        noisy_BLhw: torch.Tensor,
        start_B: torch.Tensor,
        end_B: torch.Tensor,
        conditioning: Conditioning,
        seeds: list[int],
    ) -> torch.Tensor:
        """One DDIM step of the (guided) teacher, (B, L, h, w): both branches in one call of 2B items."""
        prompt = item_prompts(self.teacher_prompt, self.token, batch)
        if self.settings.guidance is None or self.parts.null_prompt is None:
            picture, noise = self._split(noisy_BLhw, start_B, call_unet(self.parts.unet, noisy_BLhw, start_B, conditioning, prompt))
        else:
            null = PromptBatch.of(self.parts.null_prompt, len(batch))
            both = PromptBatch(torch.cat([prompt.tokens_BTD, null.tokens_BTD]), torch.cat([prompt.pooled_BP, null.pooled_BP]))
            latents, timesteps = torch.cat([noisy_BLhw, noisy_BLhw]), torch.cat([start_B, start_B])
            predicted = call_unet(self.parts.unet, latents, timesteps, _doubled(conditioning), both)
            pictures, noises = self._split(latents, timesteps, predicted)
            low, high = self.settings.guidance
            scale_B111 = (low + (high - low) * uniform_draws(seeds, SCALE)).float().to(noisy_BLhw.device).view(-1, 1, 1, 1)
            picture, noise = (
                prompted + scale_B111 * (prompted - unprompted) for prompted, unprompted in (pictures.chunk(2), noises.chunk(2))
            )
        signal, sigma = self._levels(end_B)
        return signal * picture + sigma * noise

    def _answer(
        self, latents_BLhw: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning, prompt: PromptBatch
    ) -> torch.Tensor:
        """The consistency function: the picture's latents that the network sees behind noisy ones; at timestep 0 these themselves."""
        predicted = call_unet(self.parts.unet, latents_BLhw, timesteps_B, conditioning, prompt)
        picture, _ = self._split(latents_BLhw, timesteps_B, predicted)
        scaled = (timesteps_B.float() * self.settings.timestep_scaling).view(-1, 1, 1, 1)
        total = scaled.square() + self.settings.sigma_data**2
        return self.settings.sigma_data**2 / total * latents_BLhw + scaled / total.sqrt() * picture

    def _split(
        self, latents: torch.Tensor, timesteps: torch.Tensor, predicted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Picture and noise that a prediction takes noisy latents to be made of."""
        signal, sigma = self._levels(timesteps)
        if self.prediction == "v_prediction":
            return signal * latents - sigma * predicted, signal * predicted + sigma * latents
        return (latents - sigma * predicted) / signal, predicted

    def _levels(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shares of picture and noise, (B, 1, 1, 1) float32 each; their squares add up to 1."""
        kept = self._kept.to(timesteps.device)[timesteps].view(-1, 1, 1, 1)
        return kept.sqrt(), (1 - kept).sqrt()

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors by ``unet.<name>``."""
        return {name: parameter.detach() for name, parameter in self.networks().trained_parameters().items()}

    def load_trained_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts back what ``trained_state`` gave.

        Raises:
            UsageError: names or shapes differ.
        """
        fill_trained(self.trained_state(), state)

    def save(self, folder: Path) -> None:
        """``pytorch_lora_weights.safetensors``, which ``--lcm-lora`` and diffusers' ``load_lora_weights`` read; alpha / rank is in it."""
        from safetensors.torch import save_file

        with published(folder) as fresh:
            save_file(lora_tensors(self.parts.unet), fresh / FILE_NAME, {"format": "pt"})


def _doubled(conditioning: Conditioning) -> Conditioning:
    values = (conditioning.mask_B1hw, conditioning.source_latents_BLhw, conditioning.time_ids_B6)
    return Conditioning(*(torch.cat([value, value]) for value in values))


@contextmanager
def _without_adapter(unet: Any) -> Iterator[None]:
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()
