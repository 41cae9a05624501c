"""Autoencoders whose weights are written down and not learnt, for models that are too small to draw.

Both are of SDXL's class (``AutoencoderKL``, without attention), and cost next to nothing. ``pixel_vae`` divides sides by four and loses
nothing: its latents are the pixels of a cell, for a discriminator, which must see texture. ``colour_vae`` divides them by two, keeps a
cell's mean colour and decodes to it, for a remover that takes its texture from the photo and has only light to say.

Two things must be got around. The last activation is a SiLU: every value stands beside its negative, and silu(x) - silu(-x) = x. And the
norm before it takes out a picture's mean and scale: for ``pixel_vae`` that is welcome; in ``colour_vae`` two constant channels beside the
values are so large that they alone decide the scale.

Legend for shape suffixes: B batch, H W picture sides in pixels.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

CHANNELS: Final = 3
PIXEL_FACTOR: Final = 4
PIXEL_LATENTS: Final = CHANNELS * PIXEL_FACTOR**2
COLOUR_FACTOR: Final = 2
CONSTANT: Final = 200.0
"""The constant channels; a picture's own values, at most 1, change the scale by a thousandth of a per cent."""
CERTAIN: Final = -30.0
"""Log variance of every latent: there is nothing to draw."""


def _vae_config(channels: tuple[int, ...], latents: int, groups: int, scale: float) -> dict[str, Any]:
    return {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "latent_channels": latents,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "block_out_channels": list(channels),
        "layers_per_block": 1,
        "norm_num_groups": groups,
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "sample_size": 128,
        "scaling_factor": scale,
        "force_upcast": False,
    }


@torch.no_grad()
def pixel_vae() -> Any:
    """Latents that are the pixels: (B, 48, H / 4, W / 4), a picture's over its own standard deviation from its mean.

    A halving puts each pixel of a 2 x 2 cell in a channel of its own. The decoder gives grey pictures.
    """
    # each halving needs four times the channels; the last block has every value beside its negative, in norm groups of their own
    vae = _passing(_vae_config((CHANNELS * 4, PIXEL_LATENTS, 2 * PIXEL_LATENTS), PIXEL_LATENTS, groups=2, scale=1.0))
    encoder: Any = vae.encoder
    channels = CHANNELS
    for block in encoder.down_blocks[:-1]:
        halved = block.downsamplers[0].conv.weight
        for channel in range(channels):
            for place in range(4):
                halved[4 * channel + place, channel, place // 2, place % 2] = 1.0
        channels *= 4
    _pair(encoder.down_blocks[-1].resnets[0].conv_shortcut.weight[:, :, 0, 0], PIXEL_LATENTS)
    encoder.conv_norm_out.weight.fill_(1.0)
    _join(encoder.conv_out, PIXEL_LATENTS)
    return vae.eval()


@torch.no_grad()
def colour_vae() -> Any:
    """Latents that are mean colours: (B, 3, H / 2, W / 2), of a cell's 2 x 2 pixels in [-1, 1], of deviation about 1 once they are scaled.

    Decoded, each cell is of its colour: what is encoded again is the same.
    """
    width = 2 * CHANNELS + 2  # values, their negatives, and a constant with its negative
    vae = _passing(_vae_config((width,) * 2, CHANNELS, groups=1, scale=2.0))
    for block in vae.encoder.down_blocks[:-1]:
        convolution = block.downsamplers[0].conv
        for channel in range(width):
            convolution.weight[channel, channel, :2, :2] = 0.25
    for block in vae.decoder.up_blocks[:-1]:
        _pass_on(block.upsamplers[0].conv)
    for half in (vae.encoder, vae.decoder):
        _pair(half.conv_in.weight[:, :, 1, 1], CHANNELS)
        half.conv_in.bias[-2:] = torch.tensor([CONSTANT, -CONSTANT])
        # all values have a mean of 0, and this mean square
        half.conv_norm_out.weight.fill_(CONSTANT * (2 / width) ** 0.5)
        _join(half.conv_out, CHANNELS)
    return vae.eval()


def _passing(config: dict[str, Any]) -> Any:
    """An autoencoder whose residual blocks and middle pass on what they get, as the last factor of what they add is 0."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_config(config)
    for name, parameter in vae.named_parameters():
        parameter.copy_(torch.ones_like(parameter) if ".norm" in name and name.endswith("weight") else torch.zeros_like(parameter))
    _pass_on(vae.encoder.conv_in)
    for half in (vae.encoder.down_blocks, vae.decoder.up_blocks):
        for block in half:
            if block.resnets[0].conv_shortcut is not None:
                _pass_on(block.resnets[0].conv_shortcut)
    return vae


def _pass_on(convolution: nn.Conv2d) -> None:
    """Channels go through as they are; those that come out beyond are 0."""
    centre = convolution.kernel_size[0] // 2
    for channel in range(min(convolution.in_channels, convolution.out_channels)):
        convolution.weight[channel, channel, centre, centre] = 1.0


def _pair(weight_OI: torch.Tensor, count: int) -> None:
    """The first ``count`` channels as they are, and behind them their negatives."""
    for channel in range(count):
        weight_OI[channel, channel] = 1.0
        weight_OI[count + channel, channel] = -1.0


def _join(convolution: nn.Conv2d, count: int) -> None:
    """Of activated pairs their difference; what an encoder gives behind these are log variances."""
    for channel in range(count):
        convolution.weight[channel, channel, 1, 1] = 1.0
        convolution.weight[channel, count + channel, 1, 1] = -1.0
    if convolution.bias is not None:
        convolution.bias[count:] = CERTAIN
