"""The folder that the embedded discriminator's training starts from: ``python -m training.tiny_trunk --help``.

It is a base of its own, since the remover's will not do: that one's latents are mean colours, in which grass and a smear of grass are the
same. The autoencoder here loses nothing (``training.written_vae``). The UNet is fresh, and without attention at its finer levels, where
convolutions see texture for half the time. Nothing here can erase.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from core.model_card import ModelCard
from core.prompts import PromptEmbeddings
from training.objective import published
from training.remover_parts import RemoverParts, save_model
from training.script import exit_status
from training.tiny_base import CARD, POOLED, SCHEDULER_CONFIG, TOKENS, UNET_CONFIG, WIDTH
from training.written_vae import PIXEL_LATENTS, pixel_vae

logger = logging.getLogger(__name__)

BLOCKS: Final = (64, 128, 192, 224)
TRUNK_CONFIG: Final[dict[str, Any]] = {
    **UNET_CONFIG,
    "down_block_types": ["DownBlock2D"] * len(BLOCKS),
    "up_block_types": ["UpBlock2D"] * len(BLOCKS),
    "block_out_channels": list(BLOCKS),
    "attention_head_dim": [channels // 32 for channels in BLOCKS],
    "in_channels": 2 * PIXEL_LATENTS + 1,
    "out_channels": PIXEL_LATENTS,
}
TRUNK_CARD: Final = ModelCard(conditioning="full", latent_mask="max", size=CARD.size, steps=1)


def new_trunk(seed: int = 0) -> RemoverParts:
    """The base's parts; the same seed gives the same weights."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config(TRUNK_CONFIG)
        prompt = PromptEmbeddings(torch.randn(1, TOKENS, WIDTH), torch.randn(1, POOLED))
    scheduler = DDIMScheduler.from_config(SCHEDULER_CONFIG)
    return RemoverParts(unet=unet, vae=pixel_vae(), scheduler=scheduler, prompt=prompt, card=TRUNK_CARD)


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
