"""The folder that the embedded model's training starts from: ``python -m training.tiny_base --help``.

ObjectClear's parts at a hundredth of the size, and of the same classes: a UNet that takes the full source beside the noise, an autoencoder,
a CLIP image encoder and the fuse module of the object token. From here on ``cleanplate train remover`` does the work, as for any model.

A network as small as this cannot learn to draw. So its card takes texture from the photo (``core.exemplar``), and what is left for it to
learn is light: where the object's shadow is, and what is under it. For that the latents are colours (``training.written_vae``), and
``training.exemplar_triplets`` makes the data.

The schedule ends in pure noise (Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", sections 3.1 to 3.3: zero
terminal SNR, v prediction, trailing steps), for sampling starts there.

Legend for shape suffixes: B batch, S side of the image encoder's pictures, E width of the image embedding, R rows of a batch of pairs.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from core.conditioning import image_batch
from core.errors import UsageError
from core.model_card import ModelCard
from core.object_token import FuseModule, ObjectToken, object_pixels
from core.prompts import PromptEmbeddings
from training.cutouts import Cutout, read_cutouts
from training.objective import published
from training.remover_parts import RemoverParts, save_model
from training.script import exit_status
from training.written_vae import colour_vae

logger = logging.getLogger(__name__)

TOKENS: Final = 8
WIDTH: Final = 128
POOLED: Final = 64
TIME_WIDTH: Final = 32

UNET_CONFIG: Final[dict[str, Any]] = {
    "sample_size": 64,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    # half of the work is at the two finest levels, where thin shadows are seen and light needs little
    "block_out_channels": [16, 32, 96, 128, 192],
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    # the number of heads, whatever diffusers calls it: 32 channels each
    "attention_head_dim": [1, 1, 3, 4, 6],
    "cross_attention_dim": WIDTH,
    "use_linear_projection": True,
    "norm_num_groups": 8,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_WIDTH,
    "projection_class_embeddings_input_dim": POOLED + 6 * TIME_WIDTH,
}
"""Less the channels in and out, which are the autoencoder's affair."""
ENCODER_CONFIG: Final[dict[str, Any]] = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 64,
    "patch_size": 8,
    "projection_dim": 64,
}
SCHEDULER_CONFIG: Final[dict[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
CARD: Final = ModelCard(
    conditioning="full",
    latent_mask="max",
    # of light, a picture of this size says enough: with the right answer, the shadow that is left is the same at 128 as at 256 pixels
    size=128,
    steps=4,
    object_token="box",
    fusion="attention",
    # the last one of the way up (behind it is only the middle's): eight pixels a cell, and it has seen the whole picture
    attention_layer=-2,
    mask_dilate_px=1,
    context=3.0,
    match_tone=True,
    texture="light",
)
"""Its prompt is the empty one, and so is the negative prompt: the null branch is the prompt without an object at token 5."""

PAIRS: Final = 32
TEMPERATURE: Final = 0.2
ENCODER_RATE: Final = 1e-3


def new_parts(vae: Any, seed: int = 0) -> RemoverParts:
    """The parts of the untrained model around an autoencoder; the same seed gives the same weights.

    Args:
        vae: ``AutoencoderKL`` with scaled latents of about mean 0 and variance 1.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    channels = int(vae.config.latent_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config({**UNET_CONFIG, "in_channels": 2 * channels + 1, "out_channels": channels})
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**ENCODER_CONFIG))
        fuse = FuseModule(WIDTH, ENCODER_CONFIG["projection_dim"])
        # as large as the fuse module's token, which is layer-normalised
        prompt = PromptEmbeddings(torch.randn(1, TOKENS, WIDTH), torch.randn(1, POOLED))
    return RemoverParts(
        unet=unet,
        vae=vae,
        scheduler=DDIMScheduler.from_config(SCHEDULER_CONFIG),
        prompt=prompt,
        card=CARD,
        object_token=ObjectToken(encoder.eval().requires_grad_(False), fuse, crop_box=CARD.object_token == "box"),
    )


def train_encoder(encoder: Any, cutouts: Sequence[Cutout], steps: int, seed: int = 0) -> float:
    """Teaches the image encoder to tell objects apart: two views of one cut-out get near embeddings, views of others far ones.

    The contrastive loss of SimCLR (Chen et al. 2020, section 2.1) on what the object token shows the encoder: the object on black. Without
    it the encoder is frozen at random weights, and all objects look alike to the fuse module.

    Args:
        cutouts: uint8 RGBA pictures (h, w, 4), at least two.

    Returns:
        The mean loss of the last tenth of the steps; chance is log(2 * pairs - 1).

    Raises:
        UsageError: there are fewer than two cut-outs.
    """
    if len(cutouts) < 2:
        raise UsageError(f"{len(cutouts)} cut-outs were given to train the image encoder; at least two are needed (PNG with transparency)")
    rng = np.random.default_rng(seed)
    count = min(PAIRS, len(cutouts))
    encoder.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=ENCODER_RATE, weight_decay=0.01)
    losses = []
    for step in range(steps):
        drawn = [cutouts[i] for i in rng.choice(len(cutouts), count, replace=False)]
        views_R3SS = torch.cat([_view(cutout, rng) for cutout in (*drawn, *drawn)])
        for group in optimizer.param_groups:
            group["lr"] = ENCODER_RATE * min(1.0, (step + 1) / 20) * (1 - step / steps)
        loss = contrastive_loss(encoder(views_R3SS).image_embeds)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    encoder.eval().requires_grad_(False)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def contrastive_loss(embeddings_RE: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of finding each row's other view, ``R / 2`` rows away, among all other rows by cosine similarity."""
    unit_RE = F.normalize(embeddings_RE, dim=-1)
    rows = len(unit_RE)
    scores_RR = (unit_RE @ unit_RE.T / TEMPERATURE).masked_fill(torch.eye(rows, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(scores_RR, (torch.arange(rows) + rows // 2) % rows)


def _view(cutout: Cutout, rng: np.random.Generator) -> torch.Tensor:
    """One augmented view (1, 3, S, S) of a cut-out, as the object token shows it: cropped a little, turned, mirrored, in other light."""
    height, width = cutout.shape[:2]
    keep = float(rng.uniform(0.7, 1.0))
    top, left = (int(rng.integers(int(side * (1 - keep)) + 1)) for side in (height, width))
    part = cutout[top : top + max(8, int(height * keep)), left : left + max(8, int(width * keep))]
    # large pictures are shrunk before they are turned, which is most of the work
    scale = min(1.0, 160 / max(part.shape[:2]))
    columns, rows = (max(4, int(side * scale)) for side in part.shape[1::-1])
    small = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
    side = int(1.3 * max(rows, columns))
    turn = cv2.getRotationMatrix2D((columns / 2, rows / 2), float(rng.normal(0, 12)), 1.0)
    turn[0, 2] += (side - columns) / 2
    turn[1, 2] += (side - rows) / 2
    turned = cv2.warpAffine(small, turn, (side, side))
    if rng.random() < 0.5:
        turned = turned[:, ::-1]
    lit = np.clip(turned[..., :3] * (rng.uniform(0.6, 1.3) * rng.uniform(0.9, 1.1, 3)), 0, 255).round().astype(np.uint8)
    mask_11HW = torch.from_numpy((turned[..., 3] > 127).astype(np.float32))[None, None]
    return object_pixels(image_batch(torch.from_numpy(lit)[None]), mask_11HW, int(ENCODER_CONFIG["image_size"]), crop_box=True)


def write_base(vae: Path | None, output: Path, *, cutouts: Sequence[Cutout] = (), encoder_steps: int = 300, seed: int = 0) -> Path:
    """Writes the starting folder: a whole model in diffusers layout, in float32.

    Args:
        vae: folder of a trained autoencoder; None: ``training.written_vae.colour_vae``.
        output: where to; parts of an earlier one there are replaced.
        cutouts: what the image encoder learns from (``train_encoder``); none: it keeps random weights.

    Raises:
        UsageError: the autoencoder cannot be loaded.
    """
    from core.components import load_network

    parts = new_parts(colour_vae() if vae is None else load_network(vae, "vae", torch.float32), seed)
    if cutouts and encoder_steps > 0 and parts.object_token is not None:
        loss = train_encoder(parts.object_token.encoder, cutouts, encoder_steps, seed)
        logger.info("image encoder: contrastive loss %.2f of %.2f", loss, np.log(2 * min(PAIRS, len(cutouts)) - 1))
    with published(output) as fresh:
        save_model(parts, fresh)
    networks = {"unet": parts.unet, "vae": parts.vae}
    logger.info("%s: %s", output, ", ".join(f"{name} {_millions(network)}" for name, network in networks.items()))
    return output


def _millions(network: Any) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f} M parameters"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m training.tiny_base", description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--vae", type=Path, help="folder of another autoencoder than training.written_vae's of colours")
    parser.add_argument("--output", type=Path, required=True, help="gets the model")
    parser.add_argument("--cutouts", type=Path, help="folder with cut-outs (PNG with transparency), at any depth, for the image encoder")
    parser.add_argument("--encoder-steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    return exit_status(partial(_run, options))


def _run(options: argparse.Namespace) -> None:
    cutouts = read_cutouts(options.cutouts) if options.cutouts is not None else ()
    write_base(options.vae, options.output, cutouts=cutouts, encoder_steps=options.encoder_steps, seed=options.seed)


if __name__ == "__main__":
    raise SystemExit(main())
