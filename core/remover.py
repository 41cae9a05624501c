"""The remover: from pictures and masks on a device to pictures without what the masks cover, as one batch.

RORem's network and ObjectClear's run here, and whatever is trained in their layouts; the model's card says which parts take part. The
start is pure noise at the schedule's first step, so that ``steps`` network calls are made, no fewer, and nothing of the object leaks into
the first latents (the reference's strength of 0.99 does both).

Legend for shape suffixes: B batch, L latent channels, H W picture sides in pixels, h w latent sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.attention import AttentionCapture, cross_attention_layers
from core.conditioning import (
    Conditioning,
    build_conditioning,
    decode_latents,
    image_batch,
    mask_batch,
    pixel_batch,
)
from core.crops import Fill
from core.errors import UsageError
from core.fusion import attention_soft_mask
from core.model_card import ModelCard
from core.object_token import TOKEN_INDEX, ObjectToken
from core.prompts import PromptEmbeddings
from core.reference import reference_inpaint
from core.relighting import LIGHT_GAIN
from core.sampler import Guidance, PromptBatch, Reinjection, Sampled, item_generators, normal_noise, sample, terminal_start


@dataclass(frozen=True, slots=True)
class Erased:
    """What came of a batch, all of it on the remover's device.

    Attributes:
        pixels_BHW3: uint8 RGB.
        soft_BHW: float32 in [0, 1]: what may enter the photo beyond the mask; None where that is the mask's business alone.
        latents_BLhw: the scaled latents behind ``pixels_BHW3``.
        calls: how many times the network ran for each picture; a call of both branches of guidance counts once.
    """

    pixels_BHW3: torch.Tensor
    soft_BHW: torch.Tensor | None
    latents_BLhw: torch.Tensor
    calls: int

    def fills(self) -> list[Fill]:
        """What ``core.crops.paste`` takes, one a picture, in the machine's memory."""
        pictures = list(self.pixels_BHW3.cpu().numpy())
        softs = [None] * len(pictures) if self.soft_BHW is None else list(self.soft_BHW.cpu().numpy())
        return [Fill(picture, soft) for picture, soft in zip(pictures, softs, strict=True)]


class Remover:
    """The networks of one model on one device. Not to be shared among threads.

    Args:
        unet: ``UNet2DConditionModel`` with 2L + 1 input channels.
        vae: ``AutoencoderKL``; may be of another dtype than the UNet.
        scheduler: any of diffusers' that the network was trained for.
        prompt: the model's one prompt, on the device.
        card: how the model is used.
        null_prompt: what guidance leads away from; needed where the card's guidance scale is above 1.
        object_token: needed where the card asks for one.

    Raises:
        UsageError: parts are missing, or do not fit each other.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        scheduler: Any,
        prompt: PromptEmbeddings,
        card: ModelCard,
        *,
        null_prompt: PromptEmbeddings | None = None,
        object_token: ObjectToken | None = None,
    ) -> None:
        channels = int(vae.config.latent_channels)
        if unet.config.in_channels != 2 * channels + 1:
            raise UsageError(
                f"the UNet takes {unet.config.in_channels} channels; an inpainting UNet for {channels} latent channels takes "
                f"{2 * channels + 1}"
            )
        if card.object_token != "none" and object_token is None:
            raise UsageError("the model's card asks for an object token, but its folder has no image encoder and fuse module")
        if card.guidance_scale > 1.0 and null_prompt is None:
            raise UsageError(f"guidance {card.guidance_scale} needs an embedded negative prompt, and there is none")
        self.unet, self.vae, self.scheduler, self.prompt, self.card = unet, vae, scheduler, prompt, card
        self._guidance = Guidance(card.guidance_scale, null_prompt) if card.guidance_scale > 1.0 and null_prompt is not None else None
        self._object_token = object_token if card.object_token != "none" else None
        self._capture = None
        if card.fusion == "attention":
            layers = cross_attention_layers(unet)
            if not -len(layers) <= card.attention_layer < len(layers):
                raise UsageError(f"attention_layer is {card.attention_layer}; the network has {len(layers)} cross-attention layers")
            self._capture = AttentionCapture(unet, [layers[card.attention_layer]], TOKEN_INDEX)

    @torch.inference_mode()
    def erase(self, source_BHW3: torch.Tensor, mask_BHW: torch.Tensor, seeds: Sequence[int]) -> Erased:
        """Erase a batch.

        Args:
            source_BHW3: uint8 RGB on the device, of sides that the autoencoder's factor divides.
            mask_BHW: uint8 on the device, 255 = remove.
            seeds: one an item; the noise comes from nothing else.
        """
        source_B3HW, mask_B1HW = image_batch(source_BHW3), mask_batch(mask_BHW)
        source_B3HW = source_B3HW.contiguous(memory_format=torch.channels_last)
        conditioning = build_conditioning(
            self.vae, source_B3HW, mask_B1HW, kind=self.card.conditioning, mask_rule=self.card.latent_mask
        )
        sampled = self._sample(source_B3HW, mask_B1HW, conditioning, seeds)
        latents_BLhw = sampled.latents_BLhw / LIGHT_GAIN if self.card.texture == "light" else sampled.latents_BLhw
        pictures_B3HW = decode_latents(self.vae, latents_BLhw)
        if self.card.texture == "photo":
            # what the autoencoder loses of the source, it loses of the result: only what differs is the network's
            pictures_B3HW = source_B3HW + (pictures_B3HW - decode_latents(self.vae, conditioning.source_latents_BLhw)).float()
        return Erased(
            pixel_batch(pictures_B3HW),
            self._soft_mask(mask_BHW),
            sampled.latents_BLhw,
            sampled.calls,
        )

    @torch.inference_mode()
    def reference(self, source_BHW3: torch.Tensor, mask_BHW: torch.Tensor, seeds: Sequence[int], *, strength: float = 0.99) -> Erased:
        """The batch as diffusers' ``StableDiffusionXLInpaintPipeline`` does it at this ``strength``, its cut steps included.

        For comparisons: ObjectClear's additions have no part in it, and ``calls`` may be fewer than the card's steps.
        """
        pictures, sampled = reference_inpaint(
            self.unet,
            self.vae,
            self.scheduler,
            self.prompt,
            image_batch(source_BHW3),
            mask_batch(mask_BHW),
            steps=self.card.steps,
            strength=strength,
            generators=item_generators(seeds),
            guidance=self._guidance,
        )
        return Erased(pixel_batch(pictures), None, sampled.latents_BLhw, sampled.calls)

    def _sample(
        self, source_B3HW: torch.Tensor, mask_B1HW: torch.Tensor, conditioning: Conditioning, seeds: Sequence[int]
    ) -> Sampled:
        noise_BLhw = normal_noise(conditioning.source_latents_BLhw.shape[1:], item_generators(seeds)).to(source_B3HW.device)
        latents_BLhw, timesteps = terminal_start(self.scheduler, self.card.steps, noise_BLhw)
        prompt = PromptBatch.of(self.prompt, len(seeds))
        if self._object_token is not None:
            prompt = PromptBatch(self._object_token.tokens(prompt.tokens_BTD, source_B3HW, mask_B1HW), prompt.pooled_BP)
        reinjection = None
        if self.card.reinject_background:
            # with the full source as condition its latents are there already: one encode does for both
            reinjection = Reinjection(conditioning.source_latents_BLhw, noise_BLhw, conditioning.mask_B1hw)
        return sample(
            self.unet,
            self.scheduler,
            latents_BLhw,
            timesteps,
            conditioning,
            prompt,
            generators=item_generators(seeds, stream=1),
            guidance=self._guidance,
            reinjection=reinjection,
            capture=self._capture,
        )

    def _soft_mask(self, mask_BHW: torch.Tensor) -> torch.Tensor | None:
        if self.card.fusion == "none":
            return torch.ones(mask_BHW.shape, device=mask_BHW.device)
        if self._capture is None:
            return None
        (map_BAN,) = self._capture.maps().values()
        self._capture.clear()
        # with guidance the prompted branch is the second half
        return attention_soft_mask(map_BAN[-len(mask_BHW) :], *mask_BHW.shape[1:])
