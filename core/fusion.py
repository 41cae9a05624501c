"""Fusion: which pixels of the network's output may enter the photo, beside the mask that was given.

ObjectClear's attention says where the object's shadow and reflection are (section 4.3, attention-guided fusion, AGF). Here it is a soft
mask for the paste: what lies outside stays the photo's, bit for bit. The reference mixes low frequencies of the output into the kept
background instead, so that nothing of it stays as it was. Everything runs as tensor operations for a whole batch on the batch's device.

Legend for shape suffixes: B batch, A attention heads, N positions, h w sides of the attention map, H W picture sides in pixels.
"""

from __future__ import annotations

import math
from typing import Final

import cv2
import torch
import torch.nn.functional as F

THRESHOLD: Final = 128 / 255
LEAST_CONTRAST: Final = 0.05
"""Range of a map over its mean below which it says nothing: stretching it would make a mask of noise."""
REFERENCE_SIDE: Final = 512
"""Side in pixels of the pictures that the reference's kernels are for; on others they are as large in proportion."""
DILATION: Final = 21
BLUR: Final = 9
BLUR_SIGMA: Final = 2.0


def attention_map(probabilities_BAN: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The mean over heads as a picture (B, 1, h, w), for a network input of latent sides in the proportion ``height`` : ``width``.

    Raises:
        ValueError: the positions do not form such a picture.
    """
    positions = probabilities_BAN.shape[-1]
    rows = round(math.sqrt(positions * height / width))
    if rows < 1 or positions % rows or rows * width != positions // rows * height:
        raise ValueError(f"{positions} positions are no picture of {height} : {width}")
    return probabilities_BAN.float().mean(dim=1).view(len(probabilities_BAN), 1, rows, positions // rows)


def hard_mask(attention_B1hw: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Where attention is above the middle of its range: binary (B, 1, H, W) float32.

    As in the reference the map is enlarged by two, stretched to [0, 1] per item, cut at 128 / 255 and enlarged to pixels by nearest
    neighbours; a map without contrast gives an empty mask.
    """
    twice = F.interpolate(attention_B1hw, scale_factor=2.0, mode="bilinear", align_corners=False)
    low, high = twice.amin(dim=(1, 2, 3), keepdim=True), twice.amax(dim=(1, 2, 3), keepdim=True)
    speaks = (high - low) > LEAST_CONTRAST * twice.mean(dim=(1, 2, 3), keepdim=True)
    stretched = (twice - low) / (high - low).clamp_min(1e-12)
    return F.interpolate(((stretched > THRESHOLD) & speaks).float(), size=(height, width), mode="nearest")


def soften(hard_B1HW: torch.Tensor) -> torch.Tensor:
    """The mask grown by a 21-pixel ellipse and blurred (9 pixels, sigma 2), at least itself: (B, 1, H, W) float32 in [0, 1].

    These are pixels of a picture with a shorter side of ``REFERENCE_SIDE``.
    """
    height, width = hard_B1HW.shape[-2:]
    scale = min(height, width) / REFERENCE_SIDE
    growth, blur = _odd(DILATION * scale), _odd(BLUR * scale)
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (growth, growth))
    kernel = torch.from_numpy(ellipse).to(hard_B1HW.device, torch.float32)[None, None]
    grown_B1HW = (F.conv2d(hard_B1HW, kernel, padding=growth // 2) > 0.5).float()
    # sums of shifted pictures, not a convolution: its kernels, and with them the last bit, differ from one batch size to another
    weights = [float(weight) for weight in cv2.getGaussianKernel(blur, BLUR_SIGMA * scale).ravel()]
    padded = F.pad(grown_B1HW, [blur // 2] * 4, mode="reflect")
    nothing = torch.zeros((), device=padded.device)
    rows = sum((padded[:, :, shift : shift + height] * weight for shift, weight in enumerate(weights)), nothing)
    blurred = sum((rows[..., shift : shift + width] * weight for shift, weight in enumerate(weights)), nothing)
    return torch.maximum(blurred, hard_B1HW).clamp(0, 1)


def _odd(size: float) -> int:
    """The odd number that is nearest, at least 3."""
    return max(3, 2 * round((size - 1) / 2) + 1)


def attention_soft_mask(probabilities_BAN: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The soft mask (B, H, W) float32 in [0, 1] that attention to the object token gives, for pictures of H x W pixels."""
    return soften(hard_mask(attention_map(probabilities_BAN, height, width), height, width))[:, 0]
