"""The diffusion eraser: a ``Remover`` behind the interface that jobs and serving know, with its model's files."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from core.acceleration import compile_network, settle_vae
from core.checkpoints import locate
from core.components import load_network, load_object_token, load_scheduler
from core.crops import Crop, CropRule, Fill
from core.device import pick_device, pick_dtype, placed
from core.eraser import Eraser, EraserSettings
from core.errors import UsageError
from core.lora import lora_file, lora_fingerprint, merge_lora
from core.model_card import OBJECTCLEAR, ModelCard, read_card, resolve_card
from core.model_files import ModelFiles, find_model
from core.prompts import load_prompt
from core.remover import Remover

log = logging.getLogger(__name__)


def card_of(files: ModelFiles, settings: EraserSettings) -> ModelCard:
    """The card of a model, with its kind's defaults below it and the caller's choices above it.

    Raises:
        UsageError: a choice that the model has not the parts or the training for.
    """
    return resolve_card(read_card(files.root, OBJECTCLEAR if files.kind == "objectclear" else None), files.model, settings)


def crop_rule(card: ModelCard) -> CropRule:
    """How crops for this model are made."""
    return CropRule(
        size=card.size,
        context=card.context,
        dilate_px=card.mask_dilate_px,
        feather_px=max(4, card.size // 64),
        match_tone=card.match_tone,
        texture=card.texture,
    )


def load_remover(files: ModelFiles, card: ModelCard, settings: EraserSettings) -> Remover:
    """The networks of a model on the device and in the number format that the settings ask for.

    Raises:
        UsageError: a file is missing or broken, or does not fit the others.
    """
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    unet = load_network(files.unet, "unet", torch.float32 if settings.lcm_lora else dtype)
    if settings.lcm_lora:
        merge_lora(unet, locate_lora(settings.lcm_lora))
    unet = placed(unet, device, dtype)
    vae, psnr = settle_vae(load_network(files.vae, "vae", torch.float32).to(device), dtype)
    if vae.dtype != dtype:
        log.info("the autoencoder stays in float32: in %s it reconstructs with %.1f dB", dtype, psnr)
    prompt = load_prompt(files.prompt, card.prompt).to(device, dtype)
    null_prompt = load_prompt(files.prompt, card.negative_prompt, own=False).to(device, dtype) if card.guidance_scale > 1.0 else None
    token = None
    if card.object_token != "none":
        if files.image_encoder is None or files.fuse_module is None:
            raise UsageError(f"{files.root}: its card asks for an object token, but it has no image encoder and fuse module")
        token = load_object_token(files.image_encoder, files.fuse_module, device, dtype, crop_box=card.object_token == "box")
    return Remover(
        compile_network(unet, settings.compile),
        vae.to(memory_format=torch.channels_last),
        load_scheduler(files.scheduler, card.scheduler, card.timestep_spacing),
        prompt,
        card,
        null_prompt=null_prompt,
        object_token=token,
    )


def locate_lora(name: str) -> Path:
    """The local file of a LoRA: a file, or a folder, ``s3://`` folder or hub id that holds one."""
    path = Path(name).expanduser()
    return lora_file(path if path.is_file() else locate(name))


class DiffusionEraser(Eraser):
    """Erases by denoising the crop's latents.

    On a CPU crops pass the network one at a time; on a GPU in batches of one fixed size, padded, so that the kernels, and with them the
    bytes of an item, do not depend on how many items are there.
    """

    loads_files = True
    reads_soft = False

    def __init__(self, model: str, settings: EraserSettings) -> None:
        files = find_model(model)
        self.card = card_of(files, settings)
        self.device = pick_device(settings.device)
        self.name = files.model
        self.fingerprint = _fingerprint(files, settings)
        self.rule = crop_rule(self.card)
        self.batch_size = 1 if self.device.type == "cpu" else settings.batch_size
        self.remover = load_remover(files, self.card, settings)

    def with_steps(self, steps: int) -> DiffusionEraser:
        other = copy.copy(self)
        other.card = replace(self.card, steps=steps)
        other.remover = copy.copy(self.remover)
        other.remover.card = other.card
        return other

    @classmethod
    def identity(cls, model: str, settings: EraserSettings) -> dict[str, object]:
        files = find_model(model)
        card = card_of(files, settings)
        return {
            "model": files.model,
            "fingerprint": _fingerprint(files, settings),
            "lcm_lora": settings.lcm_lora,
            **asdict(card),
            "feather_px": crop_rule(card).feather_px,
            "dtype": settings.dtype,
        }

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[Fill]:
        filled: list[Fill] = []
        for start in range(0, len(crops), self.batch_size):
            part, part_seeds = list(crops[start : start + self.batch_size]), list(seeds[start : start + self.batch_size])
            padding = self.batch_size - len(part)
            fills = self._fill_batch(part + part[-1:] * padding, part_seeds + part_seeds[-1:] * padding)
            filled.extend(fills[: len(part)])
        return filled

    def _fill_batch(self, crops: list[Crop], seeds: list[int]) -> list[Fill]:
        source_BHW3, mask_BHW = (self._on_device([getattr(crop, name) for crop in crops]) for name in ("pixels", "mask"))
        return self.remover.erase(source_BHW3, mask_BHW, seeds).fills()

    def _on_device(self, arrays: list[np.ndarray]) -> torch.Tensor:
        """One uint8 batch on the device: a quarter of the bytes of float32, copied from pinned memory without waiting."""
        batch = torch.from_numpy(np.stack(arrays))
        return batch if self.device.type == "cpu" else batch.pin_memory().to(self.device, non_blocking=True)


def _fingerprint(files: ModelFiles, settings: EraserSettings) -> str:
    """Of the model's files and, where there is one, of the LoRA that is merged in."""
    own = files.fingerprint()
    return f"{own}-{lora_fingerprint(locate_lora(settings.lcm_lora))}" if settings.lcm_lora else own
