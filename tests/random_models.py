"""Small networks with random weights, of the same classes and layouts as the published ones."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, LCMScheduler, UNet2DConditionModel

from core.object_token import FuseModule, ObjectToken
from core.prompts import PromptEmbeddings

TOKENS, WIDTH, POOLED, TIME_WIDTH, IMAGE_WIDTH = 7, 32, 16, 8, 24
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
SCHEDULERS: dict[str, Any] = {"euler": EulerDiscreteScheduler, "lcm": LCMScheduler, "ddpm": DDPMScheduler}


def random_unet(seed: int = 0, latent_channels: int = 4) -> UNet2DConditionModel:
    """An SDXL-inpainting UNet with two levels, the inner one with cross-attention."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        in_channels=2 * latent_channels + 1,
        out_channels=latent_channels,
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_WIDTH + POOLED,
        use_linear_projection=True,
    )
    return unet.eval().requires_grad_(False)


def random_vae(seed: int = 0, latent_channels: int = 4) -> AutoencoderKL:
    """An autoencoder that divides sides by 8."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.13025,
    )
    return vae.eval().requires_grad_(False)


def scheduler(name: str) -> Any:
    """SDXL's noise schedule in the class ``name`` of ``SCHEDULERS``."""
    return SCHEDULERS[name].from_config(SCHEDULE)


def random_prompt(seed: int = 0) -> PromptEmbeddings:
    """Embeddings of no prompt in particular."""
    generator = torch.Generator().manual_seed(seed)
    return PromptEmbeddings(torch.randn(1, TOKENS, WIDTH, generator=generator), torch.randn(1, POOLED, generator=generator))


def random_object_token(seed: int = 0, *, crop_box: bool = False) -> ObjectToken:
    """A CLIP vision tower of one layer and its fuse module."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=IMAGE_WIDTH,
    )
    encoder = CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
    return ObjectToken(encoder, FuseModule(WIDTH, IMAGE_WIDTH).eval().requires_grad_(False), crop_box=crop_box)


def random_batch(count: int, side: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, side, side, 3) uint8, smooth with an object in them, and its masks (B, side, side) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 255
    pictures = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 255)
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    for index in range(count):
        top, left = (int(value) for value in torch.randint(4, side // 2, (2,), generator=generator))
        masks[index, top : top + side // 3, left : left + side // 4] = 255
    pictures = torch.where(masks[:, None] > 0, 255 - pictures, pictures)
    return pictures.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous(), masks

