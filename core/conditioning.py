"""From (source, mask) to the network's input: the one preprocessing path of training, batch jobs and serving.

Legend for shape suffixes: B batch, C image channels (3), L latent channels, H W picture sides in pixels, h w latent sides
(H / f, W / f with f the down-sampling factor of the autoencoder).

The input of the SDXL-inpainting UNet is, in this order, noisy latents (L), mask (1), latents of the conditioning picture (L)
(RORem, section 3, after SDXL-inpainting; ObjectClear, section 4). RORem conditions on the *masked* source, ObjectClear on the *full* one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F

AVERAGING_STEPS: Final = 8

ConditioningKind = Literal["masked", "full", "prefilled"]
LatentMaskRule = Literal["nearest", "max"]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the UNet sees beside the noisy latents.

    Attributes:
        mask_B1hw: 1 where the object is, else 0; binary, in the latents' dtype.
        source_latents_BLhw: scaled latents of the conditioning picture.
        time_ids_B6: SDXL micro-conditioning (original height and width, crop top and left, target height and width) in pixels.
    """

    mask_B1hw: torch.Tensor
    source_latents_BLhw: torch.Tensor
    time_ids_B6: torch.Tensor


def image_tensor(pixels_HWC: np.ndarray) -> torch.Tensor:
    """uint8 RGB (H, W, 3) as float32 (1, 3, H, W) in [-1, 1]."""
    return image_batch(torch.from_numpy(np.ascontiguousarray(pixels_HWC))[None])


def image_batch(pixels_BHWC: torch.Tensor) -> torch.Tensor:
    """uint8 RGB (B, H, W, 3) on any device as float32 (B, 3, H, W) in [-1, 1] on the same."""
    return pixels_BHWC.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)


def image_pixels(image_1CHW: torch.Tensor) -> np.ndarray:
    """float (1, 3, H, W) in [-1, 1] as uint8 RGB (H, W, 3), rounded to nearest."""
    return pixel_batch(image_1CHW)[0].cpu().numpy()


def pixel_batch(images_BCHW: torch.Tensor) -> torch.Tensor:
    """float (B, 3, H, W) in [-1, 1] as uint8 RGB (B, H, W, 3) on the same device, rounded to nearest."""
    scaled = images_BCHW.to(torch.float32).add(1.0).mul(127.5).clamp(0, 255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def mask_tensor(mask_HW: np.ndarray) -> torch.Tensor:
    """uint8 (H, W) with 255 = remove as float32 (1, 1, H, W) of 0 and 1."""
    return mask_batch(torch.from_numpy(mask_HW)[None])


def mask_batch(masks_BHW: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W) with 255 = remove as float32 (B, 1, H, W) of 0 and 1, on the same device."""
    return (masks_BHW > 127).to(torch.float32)[:, None]


def latent_mask(mask_B1HW: torch.Tensor, factor: int, rule: LatentMaskRule = "nearest") -> torch.Tensor:
    """The mask at latent size: binary (B, 1, h, w).

    ``nearest`` is what the published weights were trained with; ``max`` marks a cell as soon as one of its pixels is masked. Either way
    the result is binarised in training and inference alike (the reference feeds soft values in training only).
    """
    if rule == "max":
        return F.max_pool2d(mask_B1HW, factor)
    height, width = mask_B1HW.shape[-2] // factor, mask_B1HW.shape[-1] // factor
    return (F.interpolate(mask_B1HW, size=(height, width), mode="nearest") >= 0.5).to(mask_B1HW.dtype)


def downsampling_factor(vae: Any) -> int:
    """Pixels per latent cell along a side: 2 to the number of down-samplings of the autoencoder."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def prefill(image_B3HW: torch.Tensor, mask_B1HW: torch.Tensor) -> torch.Tensor:
    """The picture with its hole (mask 1) filled smoothly from what is around it.

    A pyramid of weighted means, from coarse to fine, with some steps of averaging over neighbours at each level: near the membrane that
    spans the hole (Laplace's equation).
    """
    return image_B3HW * (1 - mask_B1HW) + _spread(image_B3HW * (1 - mask_B1HW), 1 - mask_B1HW) * mask_B1HW


def _spread(sums_B3HW: torch.Tensor, weight_B1HW: torch.Tensor) -> torch.Tensor:
    own = sums_B3HW / weight_B1HW.clamp_min(1e-6)
    height, width = weight_B1HW.shape[-2:]
    if min(height, width) <= 2:
        mean = sums_B3HW.sum(dim=(2, 3), keepdim=True) / weight_B1HW.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        return torch.where(weight_B1HW > 0, own, mean)
    halves = [F.avg_pool2d(values, 2, ceil_mode=True) for values in (sums_B3HW, weight_B1HW)]
    filled = F.interpolate(_spread(*halves), size=(height, width), mode="bilinear", align_corners=False)
    known = weight_B1HW > 0
    filled = torch.where(known, own, filled)
    for _ in range(AVERAGING_STEPS):
        filled = torch.where(known, own, F.avg_pool2d(filled, 3, stride=1, padding=1, count_include_pad=False))
    return filled


def encode_latents(vae: Any, image_B3HW: torch.Tensor) -> torch.Tensor:
    """Scaled posterior-mean latents of pictures in [-1, 1]; the mean and not a sample, so that they are a function of the picture."""
    return vae.encode(image_B3HW.to(vae.dtype)).latent_dist.mode() * vae.config.scaling_factor


def decode_latents(vae: Any, latents_BLhw: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W), about [-1, 1], from scaled latents."""
    return vae.decode(latents_BLhw.to(vae.dtype) / vae.config.scaling_factor).sample


def time_ids(batch: int, height: int, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """SDXL micro-conditioning (B, 6) for an uncropped picture shown at its own size, in pixels."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=device).expand(batch, -1)


def build_conditioning(
    vae: Any, source_B3HW: torch.Tensor, mask_B1HW: torch.Tensor, *, kind: ConditioningKind, mask_rule: LatentMaskRule = "nearest"
) -> Conditioning:
    """Conditioning for sources in [-1, 1] and masks in {0, 1} of one size.

    ``masked`` sets pixels under the mask to 0, mid-grey, before encoding (RORem; equals diffusers' inpainting pipeline); ``full`` keeps
    them, so that the network sees the object's shadow and reflection in context (ObjectClear, section 4.1); ``prefilled`` puts a smooth
    fill in their place, so that a small network starts from the right tone.

    Raises:
        ValueError: the sides are no multiple of the autoencoder's factor, or source and mask differ in size.
    """
    factor = downsampling_factor(vae)
    height, width = source_B3HW.shape[-2:]
    if mask_B1HW.shape[-2:] != (height, width):
        raise ValueError(f"mask is {tuple(mask_B1HW.shape[-2:])}, source is {(height, width)}: they must have one size")
    if height % factor or width % factor:
        raise ValueError(f"picture is {height} x {width}: both sides must be multiples of {factor}")
    binary = (mask_B1HW >= 0.5).to(source_B3HW.dtype)
    picture = source_B3HW
    if kind == "masked":
        picture = source_B3HW * (1 - binary)
    elif kind == "prefilled":
        picture = prefill(source_B3HW, binary)
    return Conditioning(
        mask_B1hw=latent_mask(binary, factor, mask_rule).to(vae.dtype),
        source_latents_BLhw=encode_latents(vae, picture),
        time_ids_B6=time_ids(len(source_B3HW), height, width, source_B3HW.device),
    )


def unet_input(latents_BLhw: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """(B, 2L + 1, h, w): noisy latents, mask, conditioning latents, in the order of SDXL-inpainting."""
    return torch.cat(
        [latents_BLhw, conditioning.mask_B1hw.to(latents_BLhw.dtype), conditioning.source_latents_BLhw.to(latents_BLhw.dtype)], dim=1
    )
