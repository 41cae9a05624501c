"""The folder that the embedded discriminator's training starts from: ``python -m training.tiny_trunk --help``.

It is a base of its own, since the remover's will not do: at 128 pixels the embedded autoencoder makes the same picture of grass and of a
smear of grass. The autoencoder here loses nothing. It is of SDXL's class (``AutoencoderKL``), but its weights are written down and not
learnt: a cell's latents are its 4 x 4 pixels, of mean 0 and variance 1 over the picture. The UNet is fresh, and without attention at its
finer levels, where convolutions see texture for half the time. Nothing here can erase.

Legend for shape suffixes: B batch, H W picture sides in pixels, L latent channels, h w latent sides.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from core.model_card import ModelCard
from core.prompts import PromptEmbeddings
from training.objective import published
from training.remover_parts import RemoverParts, save_model
from training.script import exit_status
from training.tiny_base import CARD, POOLED, SCHEDULER_CONFIG, TOKENS, UNET_CONFIG, WIDTH

logger = logging.getLogger(__name__)

CHANNELS: Final = 3
FACTOR: Final = 4
LATENTS: Final = CHANNELS * FACTOR**2
VAE_CONFIG: Final[dict[str, Any]] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "latent_channels": LATENTS,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    # each halving of the sides needs four times the channels; the last has every value twice, see new_vae
    "block_out_channels": [CHANNELS * 4, LATENTS, 2 * LATENTS],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 128,
    "scaling_factor": 1.0,
    "force_upcast": False,
}
CERTAIN: Final = -30.0
"""Log variance of every latent: there is nothing to draw."""
BLOCKS: Final = (64, 128, 192, 224)
TRUNK_CONFIG: Final[dict[str, Any]] = {
    **UNET_CONFIG,
    "down_block_types": ["DownBlock2D"] * len(BLOCKS),
    "up_block_types": ["UpBlock2D"] * len(BLOCKS),
    "block_out_channels": list(BLOCKS),
    "attention_head_dim": [channels // 32 for channels in BLOCKS],
    "in_channels": 2 * LATENTS + 1,
    "out_channels": LATENTS,
}
TRUNK_CARD: Final = ModelCard(conditioning="full", latent_mask="max", size=CARD.size, steps=1)


@torch.no_grad()
def new_vae() -> Any:
    """An ``AutoencoderKL`` whose latents are the pixels: (B, 48, H / 4, W / 4), a picture's over its own standard deviation from its mean.

    Residual blocks and the middle pass on what they get, as the last factor of what they add is 0. A halving puts each of a 2 x 2 cell's
    pixels in a channel of its own. Before the last norm every value stands beside its negative, in a group of their own, so that behind
    the activation the difference of the two is the value: silu(x) - silu(-x) = x. The decoder gives grey pictures.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_config(VAE_CONFIG)
    for name, parameter in vae.named_parameters():
        parameter.copy_(torch.ones_like(parameter) if ".norm" in name and name.endswith("weight") else torch.zeros_like(parameter))
    encoder: Any = vae.encoder
    _pass_on(encoder.conv_in)
    channels = CHANNELS
    for block in encoder.down_blocks:
        if block.resnets[0].conv_shortcut is not None:
            _pass_on(block.resnets[0].conv_shortcut)
        if block.downsamplers is not None:
            halved = block.downsamplers[0].conv.weight
            for channel in range(channels):
                for place in range(4):  # of the 3 x 3 kernel, those that belong to the cell
                    halved[4 * channel + place, channel, place // 2, place % 2] = 1.0
            channels *= 4
    beside = encoder.down_blocks[-1].resnets[0].conv_shortcut.weight
    for channel in range(LATENTS):
        beside[LATENTS + channel, channel] = -1.0
        encoder.conv_out.weight[channel, channel, 1, 1] = 1.0
        encoder.conv_out.weight[channel, LATENTS + channel, 1, 1] = -1.0
    encoder.conv_norm_out.weight.fill_(1.0)
    encoder.conv_out.bias[LATENTS:] = CERTAIN
    return vae.eval()


def _pass_on(convolution: nn.Conv2d) -> None:
    """Channels go through as they are; those that come out beyond are 0."""
    centre = convolution.kernel_size[0] // 2
    for channel in range(convolution.in_channels):
        convolution.weight[channel, channel, centre, centre] = 1.0


def new_trunk(seed: int = 0) -> RemoverParts:
    """The base's parts; the same seed gives the same weights."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config(TRUNK_CONFIG)
        prompt = PromptEmbeddings(torch.randn(1, TOKENS, WIDTH), torch.randn(1, POOLED))
    scheduler = DDIMScheduler.from_config(SCHEDULER_CONFIG)
    return RemoverParts(unet=unet, vae=new_vae(), scheduler=scheduler, prompt=prompt, card=TRUNK_CARD)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m training.tiny_trunk", description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--output", type=Path, required=True, help="gets the model; parts of an earlier one there are replaced")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    return exit_status(partial(_run, options))


def _run(options: argparse.Namespace) -> None:
    with published(options.output) as fresh:
        save_model(new_trunk(options.seed), fresh)
    logger.info("%s: train the discriminator on it with --model", options.output)


if __name__ == "__main__":
    raise SystemExit(main())
