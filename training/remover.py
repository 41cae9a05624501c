"""The remover's objective: to predict the noise in latents of the picture without the object (RORem, section 3; ObjectClear, section 4).

The target's latents are noised at a timestep, uniform unless the settings say otherwise; the network sees them with the mask and the
latents of the masked (RORem) or full (ObjectClear) source, built by the very functions of inference. The loss is the mean squared error
over the whole latent. ObjectClear adds 0.01 of the attention-mask loss, and trains the fuse module of its object token beside the UNet.

Unlike the references: latents are posterior means; masks at latent size are binary, as in inference; the autoencoder stays in its own
number format (float32) under autocast; and with condition dropout there is a trained null branch for guidance to lead away from.

Legend for shape suffixes: B batch, L latent channels, H W picture sides in pixels, h w latent sides, T D tokens and width of the prompt,
P pooled width.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.conditioning import (
    Conditioning,
    ConditioningKind,
    LatentMaskRule,
    build_conditioning,
    encode_latents,
    image_batch,
    latent_mask,
    mask_batch,
)
from core.crops import Texture
from core.errors import UsageError
from core.latent_encoding import moment_conditioning, moment_latents
from core.lora import FILE_NAME as LORA_FILE
from core.object_token import TOKEN_INDEX, ObjectToken
from core.prompts import PromptEmbeddings
from core.relighting import LIGHT_GAIN, light_picture
from core.sampler import PromptBatch, item_generators, normal_noise
from training.attention_loss import TrainingCapture, attention_loss
from training.objective import (
    Batch,
    LossResult,
    Networks,
    add_lora,
    call_unet,
    fill_trained,
    lora_tensors,
    merged_unet,
    prediction_type,
    published,
    uniform_draws,
    whole_draws,
)
from training.remover_parts import RemoverParts, object_token, save_model
from training.remover_settings import ROREM, RemoverSettings

NOISE, TIMESTEP, DROPOUT = 0, 1, 2
"""Streams of an item's seed."""


class RemoverObjective:
    """Loss and trained parts of a remover.

    Args:
        parts: the model; its UNet (and fuse module) is trained in place.
        settings: what it is trained for.

    Raises:
        UsageError: the model lacks a part that the settings ask for, or predicts something else than noise or velocity.
    """

    def __init__(self, parts: RemoverParts, settings: RemoverSettings = ROREM) -> None:
        from diffusers import DDPMScheduler

        if settings.object_token != "none" and parts.object_token is None:
            raise UsageError(f"object_token is {settings.object_token}, and the model has no image encoder and fuse module")
        if settings.condition_dropout > 0 and parts.null_prompt is None:
            raise UsageError("condition_dropout is above 0, and there is no null prompt to put in the prompt's place")
        self.parts, self.settings = parts, settings
        self.schedule = DDPMScheduler.from_config(parts.scheduler.config)
        self.prediction = prediction_type(parts.scheduler)
        if settings.lora is not None:
            add_lora(parts.unet, settings.lora)
        else:
            parts.unet.requires_grad_(True)
        parts.vae.requires_grad_(False)
        self.token = object_token(parts, settings.object_token)
        if self.token is not None:
            self.token.encoder.requires_grad_(False)
            self.token.fuse.requires_grad_(True)
        # adapters come first: they rename layers
        self.capture = TrainingCapture(parts.unet, settings.attention_layers, TOKEN_INDEX) if settings.attention_weight > 0 else None

    def networks(self) -> Networks:
        """UNet and fuse module are trained, autoencoder and image encoder frozen."""
        trained: dict[str, nn.Module] = {"unet": self.parts.unet}
        frozen: dict[str, nn.Module] = {"vae": self.parts.vae}
        if self.token is not None:
            trained["fuse_module"] = self.token.fuse
            frozen["image_encoder"] = self.token.encoder
        return Networks(trained, frozen)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> LossResult:
        """Mean over the items; parts ``denoising`` and, where it takes part, ``attention``.

        Raises:
            UsageError: the attention loss is on and the batch has no effect masks; or there are no random numbers.
        """
        if self.capture is not None and batch.effect_mask_BHW is None:
            raise UsageError("the attention loss needs effect_mask_BHW, and the batch has none: add it, or set attention_weight 0")
        seeds = batch.item_seeds(generator)
        clean_BLhw, conditioning = encoded_items(
            self.parts.vae, batch, self.settings.conditioning, self.settings.latent_mask, self.parts.card.texture
        )
        noise_BLhw = normal_noise(clean_BLhw.shape[1:], item_generators(seeds, NOISE)).to(clean_BLhw.device)
        count = int(self.schedule.config["num_train_timesteps"])
        timesteps_B = whole_draws(seeds, TIMESTEP, count, self.settings.timestep_bias).to(clean_BLhw.device)
        noisy_BLhw = self.schedule.add_noise(clean_BLhw, noise_BLhw, timesteps_B)
        velocity = self.prediction == "v_prediction"
        goal_BLhw = self.schedule.get_velocity(clean_BLhw, noise_BLhw, timesteps_B) if velocity else noise_BLhw
        dropped_B = (uniform_draws(seeds, DROPOUT) < self.settings.condition_dropout).to(clean_BLhw.device)
        prompt = self._prompt(batch, dropped_B)
        with self.capture.armed() if self.capture is not None else nullcontext():
            predicted_BLhw = call_unet(self.parts.unet, noisy_BLhw, timesteps_B, conditioning, prompt)
        losses_B = self._denoising(predicted_BLhw - goal_BLhw, timesteps_B, self._cell_weights(batch, conditioning))
        total, parts = losses_B.mean(), {"denoising": losses_B.detach().mean()}
        if self.capture is not None and batch.effect_mask_BHW is not None:
            named_B = ~dropped_B & (batch.mask_BHW > 127).flatten(1).any(dim=1)
            if batch.has_effect_B is not None:
                named_B = named_B & batch.has_effect_B.to(named_B.device)
            height, width = clean_BLhw.shape[-2:]
            attention_B = attention_loss(
                self.capture.maps_with_gradient(),
                mask_batch(batch.effect_mask_BHW),
                (height, width),
                background_weight=self.settings.attention_background_weight,
                named_B=named_B,
            )
            total = total + self.settings.attention_weight * attention_B.mean()
            parts["attention"] = attention_B.detach().mean()
        return LossResult(total, parts, len(batch))

    def _prompt(self, batch: Batch, dropped_B: torch.Tensor) -> PromptBatch:
        prompt = item_prompts(self.parts.prompt, self.token, batch)
        if self.parts.null_prompt is None:
            return prompt
        null = PromptBatch.of(self.parts.null_prompt, len(batch))
        return PromptBatch(
            torch.where(dropped_B[:, None, None], null.tokens_BTD, prompt.tokens_BTD),
            torch.where(dropped_B[:, None], null.pooled_BP, prompt.pooled_BP),
        )

    def _cell_weights(self, batch: Batch, conditioning: Conditioning) -> torch.Tensor:
        """What each cell counts, (B, 1, h, w) float32 with mean 1 for every item."""
        weight_B1hw = 1 + (self.settings.mask_weight - 1) * conditioning.mask_B1hw.float()
        if self.settings.effect_weight != 1.0 and batch.effect_mask_BHW is not None:
            factor = batch.effect_mask_BHW.shape[-1] // weight_B1hw.shape[-1]
            effect_B1hw = latent_mask(mask_batch(batch.effect_mask_BHW), factor, "max")
            weight_B1hw = torch.maximum(weight_B1hw, 1 + (self.settings.effect_weight - 1) * effect_B1hw)
        return weight_B1hw / weight_B1hw.mean(dim=(1, 2, 3), keepdim=True)

    def _denoising(self, error_BLhw: torch.Tensor, timesteps_B: torch.Tensor, weight_B1hw: torch.Tensor) -> torch.Tensor:
        """Weighted mean of the squared error of every item, (B,) float32."""
        losses_B = (error_BLhw.square() * weight_B1hw).mean(dim=(1, 2, 3))
        gamma = self.settings.min_snr_gamma
        if gamma is None:
            return losses_B
        signal_B = self.schedule.alphas_cumprod.to(losses_B.device)[timesteps_B].float()
        ratio_B = signal_B / (1 - signal_B)
        weight_B = ratio_B.clamp(max=gamma) / (ratio_B + 1) if self.prediction == "v_prediction" else (gamma / ratio_B).clamp(max=1)
        return losses_B * weight_B

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Trained tensors by ``unet.<name>`` and ``fuse_module.<name>``."""
        return {name: parameter.detach() for name, parameter in self.networks().trained_parameters().items()}

    def load_trained_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts back what ``trained_state`` gave.

        Raises:
            UsageError: names or shapes differ.
        """
        fill_trained(self.trained_state(), state)

    def save(self, folder: Path) -> None:
        """A whole model in diffusers layout, with an adapter merged in; the adapter alone is beside it in ``lora/``."""
        null_branch = self.settings.condition_dropout > 0 or self.parts.card.null_branch
        card = replace(self.settings.on_card(self.parts.card), null_branch=null_branch)
        with published(folder) as fresh:
            save_model(replace(self.parts, unet=merged_unet(self.parts.unet), object_token=self.token, card=card), fresh)
            if self.settings.lora is not None:
                from safetensors.torch import save_file

                (fresh / "lora").mkdir()
                save_file(lora_tensors(self.parts.unet), fresh / "lora" / LORA_FILE)


@torch.no_grad()
def encoded_items(
    vae: Any, batch: Batch, kind: ConditioningKind, rule: LatentMaskRule, texture: Texture = "network"
) -> tuple[torch.Tensor, Conditioning]:
    """Latents of the targets, (B, L, h, w) float32, and the conditioning, in the autoencoder's own number format under autocast, too; from
    cached moments where the batch has them. Where the card's texture is ``light``, they are of a picture of the light
    (``core.relighting``), times ``LIGHT_GAIN``.

    Raises:
        UsageError: sides that the autoencoder does not divide, or cached moments for a card with light.
    """
    with torch.autocast(batch.source_BHW3.device.type, enabled=False):
        mask_B1HW = mask_batch(batch.mask_BHW)
        try:
            if batch.source_moments_B2Lhw is not None:
                conditioning = moment_conditioning(vae, batch.source_moments_B2Lhw, mask_B1HW, mask_rule=rule)
            else:
                conditioning = build_conditioning(vae, image_batch(batch.source_BHW3), mask_B1HW, kind=kind, mask_rule=rule)
        except ValueError as error:
            raise UsageError(f"batch: {error}") from error
        if batch.target_moments_B2Lhw is not None:
            if texture == "light":
                raise UsageError("the card's texture is light, and cached latents are of pictures: train on pictures, without a cache")
            return moment_latents(vae, batch.target_moments_B2Lhw), conditioning
        target_B3HW = image_batch(batch.target_BHW3)
        if texture == "light":
            light_B3HW = light_picture(image_batch(batch.source_BHW3), target_B3HW)
            return encode_latents(vae, light_B3HW).float() * LIGHT_GAIN, conditioning
        return encode_latents(vae, target_B3HW).float(), conditioning


def item_prompts(prompt: PromptEmbeddings, token: ObjectToken | None, batch: Batch) -> PromptBatch:
    """The prompt of every item, with its object at token 5 where there is an object token."""
    prompts = PromptBatch.of(prompt, len(batch))
    if token is None:
        return prompts
    tokens_BTD = token.tokens(prompts.tokens_BTD, image_batch(batch.source_BHW3), mask_batch(batch.mask_BHW))
    return PromptBatch(tokens_BTD, prompts.pooled_BP)
