"""What ``benchmarks.training`` trains: objectives on the networks of a model or of a configuration, their settings and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import pyarrow as pa
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

from benchmarks.gpu import FULL, SCHEDULE, SMALL, Shapes
from core import storage
from core.images import encode_image
from core.ledger import write_shard
from core.masks import encode_mask
from core.model_card import ModelCard
from core.prompts import PromptEmbeddings
from core.record import RECORD_SCHEMA, empty_record, image_value
from training.build import build_objective, discriminator_config
from training.discriminator import DiscriminatorObjective
from training.feed import Feed
from training.lcm import LcmObjective
from training.objective import Objective
from training.preparation import read_items, thread_feed
from training.remover import RemoverObjective
from training.remover_parts import RemoverParts
from training.settings import ObjectiveName, TrainSettings, load_recipe

RANDOM: Final = {"sdxl": FULL, "small": SMALL}
"""Models that are built from their configurations."""
PAPERS: Final = {"remover": "rorem", "discriminator": "discriminator", "lcm": "lcm"}
SHARDS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, and on what."""

    model: str
    device: torch.device
    size: int
    precision: str
    checkpointing: bool
    data: str
    threads: int
    steps: int
    warmup: int

    def settings(self, objective: ObjectiveName, batch: int, changes: dict[str, Any] | None = None) -> TrainSettings:
        """Those of the recipe, for one micro-batch a step and nothing beside the steps."""
        shapes = RANDOM.get(self.model)
        heads = {"discriminator.head_channels": shapes.head_channels} if shapes is not None else {}
        loop = {
            # one more than there are shares: the last step is the one that writes a checkpoint
            "steps": self.warmup + self.steps + 1,
            "checkpoint_every": self.warmup + self.steps + 1,
            "micro_batch_size": batch,
            "precision": self.precision,
            "gradient_checkpointing": self.checkpointing,
            "validate_every": 0,
            "log_every": 10,
        }
        recipe = "smoke" if self.model in {"tiny", "small"} else PAPERS[objective]
        data = {"data.sizes": [self.size], "data.batch_size": batch, "data.validation_share": 0.0, "model": self.model}
        named = {f"loop.{name}": value for name, value in loop.items()}
        return load_recipe(recipe, objective, {**data, **heads, **named, **(changes or {})})

    def objective(self, settings: TrainSettings) -> Objective:
        """The networks on the device, in float32, as ``training.build`` makes them."""
        shapes = RANDOM.get(self.model)
        if shapes is None:
            return build_objective(settings, self.device)
        parts = random_parts(shapes, self.device, self.size)
        if settings.loop.gradient_checkpointing:
            parts.unet.enable_gradient_checkpointing()
        if settings.objective == "discriminator":
            return DiscriminatorObjective(parts, discriminator_config(settings), copied=False, seed=settings.loop.seed)
        return LcmObjective(parts, settings.lcm) if settings.objective == "lcm" else RemoverObjective(parts, settings.remover)

    def feed(self, settings: TrainSettings) -> Feed:
        """Threads of this process, as in ``training.local``."""
        return thread_feed(settings, read_items(settings, self.data, None)[0], self.threads)

    def autocast(self) -> torch.autocast:
        """As the loop has it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def wait(self) -> None:
        """Returns when the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def random_parts(shapes: Shapes, device: torch.device, size: int) -> RemoverParts:
    """A remover of these shapes with random weights and random prompts, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        unet, vae = UNet2DConditionModel.from_config(shapes.unet), AutoencoderKL.from_config(shapes.vae)
        prompts = [PromptEmbeddings(torch.randn(1, *shapes.tokens), torch.randn(1, shapes.pooled)) for _ in range(2)]
    return RemoverParts(
        unet=unet.eval().requires_grad_(False),
        vae=vae.eval().requires_grad_(False),
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULE),
        prompt=prompts[0],
        card=ModelCard(size=size),
        null_prompt=prompts[1],
    )


def write_triplets(folder: str, count: int, side: int) -> str:
    """``count`` photos of ``side`` pixels with grain, an ellipse as object and a shadow beside it, as a dataset; returns ``folder``."""
    for shard in range(SHARDS):
        rows = [_triplet(number, side) for number in range(shard * count // SHARDS, (shard + 1) * count // SHARDS)]
        write_shard(storage.join(folder, f"part-000001-{shard:06d}.parquet"), pa.Table.from_pylist(rows, RECORD_SCHEMA))
    return folder


def _triplet(number: int, side: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    soft = cv2.resize(rng.integers(40, 216, (9, 9, 3)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    target = np.clip(soft + rng.normal(0, 4, (side, side, 1)), 0, 255).astype(np.uint8)
    mask, shadow = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    x, y = (int(place) for place in rng.integers(side // 3, 2 * side // 3, 2))
    axes = (side // int(rng.integers(6, 12)), side // int(rng.integers(5, 9)))
    cv2.ellipse(mask, (x, y), axes, 0, 0, 360, 255, -1)
    cv2.ellipse(shadow, (x + axes[0], y + axes[1]), (axes[0], axes[1] // 3), 0, 0, 360, 255, -1)
    source = target.copy()
    source[shadow > 0] = source[shadow > 0] // 2
    source[mask > 0] = np.roll(target, side // 3, axis=0)[mask > 0] ^ 0x55
    pictures = {"source": encode_image(source), "target": encode_image(target)}
    masks = {"mask": encode_mask(mask), "effect_mask": encode_mask(mask | shadow)}
    columns = {name: image_value(data) for name, data in (pictures | masks).items()}
    return empty_record(id=f"synthetic-{number:05d}", origin="synthetic", width=side, height=side, **columns)
