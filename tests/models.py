"""Small random checkpoints on disk, in the layouts and key names of the published ones, written by the real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
from diffusers import StableDiffusionXLInpaintPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from core.object_token import FuseModule
from core.prompts import save_prompt
from tests.random_models import IMAGE_WIDTH, POOLED, WIDTH, random_prompt, random_unet, random_vae, scheduler

LETTERS = [chr(code) for code in range(97, 123)]
WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>", "!"]


def write_pipeline(folder: Path, *, prompt_file: bool = False, variant: str | None = None, class_name: str | None = None) -> Path:
    """An SDXL-inpainting pipeline folder; with ``prompt_file`` without text encoders, as ``tiny`` is; ``variant`` is ``fp16`` or None."""
    half = (lambda network: network.half()) if variant else (lambda network: network)
    half(random_unet()).save_pretrained(folder / "unet", variant=variant)
    half(random_vae()).save_pretrained(folder / "vae", variant=variant)
    scheduler("euler").save_pretrained(folder / "scheduler")
    if prompt_file:
        save_prompt(folder / "prompt_embeds.safetensors", random_prompt())
    else:
        write_text_encoders(folder, variant)
    index = {
        "_class_name": class_name or "StableDiffusionXLInpaintPipeline",
        "_diffusers_version": "0.21.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": True,
    }
    parts = {name: value for name, value in index.items() if not prompt_file or not name.startswith(("text", "token"))}
    (folder / "model_index.json").write_text(json.dumps(parts))
    return folder


def write_text_encoders(folder: Path, variant: str | None = None) -> None:
    """``text_encoder/`` and ``text_encoder_2/`` whose widths make the random UNet's, with their tokenizers."""
    torch.manual_seed(0)
    for suffix, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
        source = folder / f"tokenizer{suffix}"
        source.mkdir(parents=True)
        (source / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
        (source / "merges.txt").write_text("#version: 0.2\n")
        CLIPTokenizer(str(source / "vocab.json"), str(source / "merges.txt"), model_max_length=12).save_pretrained(source)
        config: Any = CLIPTextConfig(
            vocab_size=len(WORDS), hidden_size=WIDTH // 2, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=12, projection_dim=POOLED, bos_token_id=52, eos_token_id=53, pad_token_id=53,
        )  # fmt: skip
        encoder = kind(config)
        (encoder.half() if variant else encoder).save_pretrained(folder / f"text_encoder{suffix}", variant=variant)


def write_lone_unet(folder: Path, *, shard_size: str | None = None, base: str | None = None) -> Path:
    """A UNet's own folder, as RORem published its; in shards where ``shard_size`` (``200KB``) says so."""
    random_unet(seed=1).save_pretrained(folder, **({"max_shard_size": shard_size} if shard_size else {}))
    if base is not None:
        (folder / "cleanplate.json").write_text(json.dumps({"base": base}))
    return folder


def write_objectclear(folder: Path, *, prompt_file: bool = False) -> Path:
    """ObjectClear's pipeline folder: SDXL's parts, a whole CLIP model, and the fuse module."""
    write_pipeline(folder, prompt_file=prompt_file, class_name="ObjectClearPipeline")
    torch.manual_seed(0)
    common: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config: Any = CLIPConfig(
        text_config={**common, "vocab_size": 50},
        vision_config={**common, "image_size": 32, "patch_size": 8, "projection_dim": IMAGE_WIDTH},
        projection_dim=IMAGE_WIDTH,
    )
    CLIPModel(config).save_pretrained(folder / "image_prompt_encoder")
    write_fuse_module(folder / "postfuse_module")
    return folder


def write_fuse_module(folder: Path) -> None:
    """``postfuse_module/`` with ObjectClear's configuration keys."""
    folder.mkdir()
    torch.manual_seed(0)
    config = {"_class_name": "PostfuseModule", "_diffusers_version": "0.30.0", "embed_dim": WIDTH, "embed_dim_img": IMAGE_WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in FuseModule(WIDTH, IMAGE_WIDTH).state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def write_lora(folder: Path, targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")) -> Path:
    """``pytorch_lora_weights.safetensors``, as training scripts of diffusers write it."""
    unet = random_unet()
    unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=list(targets)))
    state = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(unet))
    StableDiffusionXLInpaintPipeline.save_lora_weights(folder, unet_lora_layers=state)
    return folder


def write_published_discriminator(folder: Path) -> Path:
    """RORem's discriminator: a LoRA and the head's state as a pickle of tensors."""
    write_lora(folder)
    torch.save({"cls_pred_branch.0.weight": torch.zeros(1, 1, 4, 4)}, folder / "cls_pred_branch.pt")
    return folder


def truncate(path: Path, keep: float = 0.5) -> None:
    """Cut a file off after a part of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
