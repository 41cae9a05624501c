"""From settings to an objective on a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core.checkpoints import locate
from core.errors import UsageError
from core.model_card import OBJECTCLEAR as OBJECTCLEAR_CARD
from core.model_card import read_card
from core.model_files import find_model
from training.discriminator import DiscriminatorObjective
from training.lcm import LcmObjective
from training.objective import Objective
from training.remover import RemoverObjective
from training.remover_parts import load_parts
from training.remover_settings import RemoverSettings
from training.settings import TrainSettings


def build_objective(settings: TrainSettings, device: torch.device | str = "cpu") -> Objective:
    """The networks of ``settings.model`` as the objective trains them, in float32 on ``device``; first weights follow from the seed.

    Raises:
        UsageError: the model cannot be found, lacks a part, or does not fit the settings.
    """
    parts = load_parts(settings.model, _loaded_as(settings), device, image_encoder=_encoder(settings))
    if settings.loop.gradient_checkpointing:
        # before a discriminator copies the trunk
        parts.unet.enable_gradient_checkpointing()
    side = settings.data.sizes[0]
    if settings.data.augmentation.shadow_depth is not None and parts.card.texture == "network":
        raise UsageError(
            f"data.augmentation.shadow_depth is set, for data whose holes are filled already, and the card of {settings.model} has "
            "texture network, which is trained on photos with their objects: set it to null"
        )
    if settings.objective == "discriminator":
        weight = settings.discriminator.defect_weight
        return DiscriminatorObjective(parts, discriminator_config(settings), copied=False, seed=settings.loop.seed, defect_weight=weight)
    if settings.objective == "lcm":
        return LcmObjective(parts, settings.lcm)
    # a model is used at the size that it was trained at; of several, at the first
    parts = replace(parts, card=replace(parts.card, size=side))
    return RemoverObjective(parts, settings.remover)


def discriminator_config(settings: TrainSettings) -> Any:
    """The configuration that a discriminator of these settings starts with."""
    from core.discriminator_config import DiscriminatorConfig

    shape = settings.discriminator
    return DiscriminatorConfig(
        size=settings.data.sizes[0],
        lora_rank=shape.lora_rank,
        lora_alpha=shape.lora_alpha,
        head_channels=shape.head_channels,
        trained_parts=shape.trained_parts,
        threshold=shape.threshold,
    )


def _encoder(settings: TrainSettings) -> Path | None:
    # a CLIP model's files are at the top of its folder
    return locate(settings.image_encoder, parts=()) if settings.image_encoder is not None else None


def _loaded_as(settings: TrainSettings) -> RemoverSettings:
    """Which parts are loaded: a remover's own choice; for the others what the model's card says."""
    if settings.objective == "remover":
        return settings.remover
    files = find_model(settings.model)
    card = read_card(files.root, OBJECTCLEAR_CARD if files.kind == "objectclear" else None)
    guided = settings.objective == "lcm" and settings.lcm.guidance is not None
    if settings.objective == "discriminator":
        # the trunk sees pictures and mask alone
        return RemoverSettings(conditioning=card.conditioning, latent_mask=card.latent_mask)
    return RemoverSettings(
        conditioning=card.conditioning,
        latent_mask=card.latent_mask,
        object_token=card.object_token,
        # which loads the null prompt
        condition_dropout=0.1 if guided else 0.0,
    )
