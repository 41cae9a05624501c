"""A model as training takes it, apart: what it is made of, how it is loaded and how it is written."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from core.checkpoints import TEXT_PARTS
from core.errors import UsageError
from core.model_card import FILE_NAME as CARD_FILE
from core.model_card import OBJECTCLEAR as OBJECTCLEAR_CARD
from core.model_card import ModelCard, ObjectTokenKind, read_card
from core.model_files import INDEX_FILE, PROMPT_FILE, find_model
from core.object_token import ObjectToken, new_fuse_module, save_fuse_module
from core.prompts import PromptEmbeddings, load_prompt, save_prompt
from training.remover_settings import RemoverSettings


@dataclass(frozen=True, slots=True)
class RemoverParts:
    """What a model is made of, as training takes it.

    Attributes:
        unet: ``UNet2DConditionModel``; the objective trains this very network.
        vae: ``AutoencoderKL``, frozen; float32 (SDXL's overflows in half precision).
        scheduler: the checkpoint's; its schedule and prediction type are trained for.
        prompt: of every item.
        card: how the model is used; ``save`` writes it with what training changes in it.
        null_prompt: what the prompt is replaced by where the condition is dropped.
        object_token: frozen image encoder and fuse module.
        texts: folder with text encoders and tokenizers, which ``save`` copies; None where there are none.
        model: name of the model that this is.
    """

    unet: Any
    vae: Any
    scheduler: Any
    prompt: PromptEmbeddings
    card: ModelCard = field(default_factory=ModelCard)
    null_prompt: PromptEmbeddings | None = None
    object_token: ObjectToken | None = None
    texts: Path | None = None
    model: str | None = None


def load_parts(
    model: str, settings: RemoverSettings, device: torch.device | str = "cpu", *, image_encoder: Path | None = None
) -> RemoverParts:
    """The parts of a model in float32, all frozen.

    Args:
        model: as ``core.model_files.find_model`` takes it.
        image_encoder: folder of a CLIP model, for an object token on a base model that has none; the fuse module is then a new one.

    Raises:
        UsageError: a part is missing, broken, or does not fit the others.
    """
    from core.components import load_network, load_object_token, load_scheduler

    files = find_model(model)
    with_token = settings.object_token != "none"
    base = read_card(files.root, OBJECTCLEAR_CARD if files.kind == "objectclear" else None)
    # a plain model with an object token becomes one of ObjectClear's kind
    becomes = with_token and files.kind != "objectclear"
    card = replace(OBJECTCLEAR_CARD, size=base.size, steps=base.steps) if becomes else base
    prompt = load_prompt(files.prompt, card.prompt, own=card.prompt == base.prompt)
    null_prompt = load_prompt(files.prompt, card.negative_prompt, own=False) if settings.condition_dropout > 0 else None
    token, target, crop_box = None, torch.device(device), settings.object_token == "box"
    if with_token and files.image_encoder is not None and files.fuse_module is not None:
        token = load_object_token(files.image_encoder, files.fuse_module, target, torch.float32, crop_box=crop_box)
    elif with_token:
        if image_encoder is None:
            raise UsageError(f"object_token is {settings.object_token}, and {model} has no image encoder: give the folder of a CLIP model")
        with tempfile.TemporaryDirectory() as fresh:
            save_fuse_module(new_fuse_module(image_encoder, prompt.tokens_1TD.shape[-1]), Path(fresh))
            token = load_object_token(image_encoder, Path(fresh), target, torch.float32, crop_box=crop_box)
    return RemoverParts(
        unet=load_network(files.unet, "unet", torch.float32).to(target),
        vae=load_network(files.vae, "vae", torch.float32).to(target),
        scheduler=load_scheduler(files.scheduler),
        prompt=prompt.to(target, torch.float32),
        card=card,
        null_prompt=None if null_prompt is None else null_prompt.to(target, torch.float32),
        object_token=token,
        texts=files.prompt if all((files.prompt / name).is_dir() for name in TEXT_PARTS) else None,
        model=model,
    )


def object_token(parts: RemoverParts, kind: ObjectTokenKind) -> ObjectToken | None:
    """The model's object token, seen as ``kind`` says; None for ``none``."""
    if kind == "none" or parts.object_token is None:
        return None
    return replace(parts.object_token, crop_box=kind == "box")


def save_model(parts: RemoverParts, folder: Path) -> None:
    """Writes a model in diffusers layout into an empty folder, with its card; text encoders are copied where it has them."""
    import diffusers

    parts.unet.save_pretrained(folder / "unet")
    parts.vae.save_pretrained(folder / "vae")
    parts.scheduler.save_pretrained(folder / "scheduler")
    save_prompt(folder / PROMPT_FILE, parts.prompt.to("cpu", torch.float32), parts.card.prompt)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLInpaintPipeline",
        "_diffusers_version": diffusers.__version__,
        "force_zeros_for_empty_prompt": True,
        "requires_aesthetics_score": False,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", type(parts.scheduler).__name__],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    for name in TEXT_PARTS:
        if parts.texts is not None:
            shutil.copytree(parts.texts / name, folder / name)
        else:
            index[name] = [None, None]
    if parts.object_token is not None:
        parts.object_token.encoder.save_pretrained(folder / "image_prompt_encoder")
        save_fuse_module(parts.object_token.fuse, folder / "postfuse_module")
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    (folder / CARD_FILE).write_text(json.dumps(asdict(parts.card), indent=2) + "\n")
