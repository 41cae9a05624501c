"""Prompt embeddings as constants: computed once, stored beside the weights, so that no text encoder is in memory while erasing.

Object removal uses one prompt for every image (RORem: the empty one), so its embeddings belong to the model like a weight does.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from core.checkpoints import HALF_MARK, cache_folder, fingerprint
from core.errors import UsageError
from core.weights import weight_files

FILE_NAME: Final = "prompt_embeds.safetensors"


@dataclass(frozen=True, slots=True)
class PromptEmbeddings:
    """One prompt as SDXL takes it: ``tokens_1TD`` (1, tokens, cross-attention width) and ``pooled_1P`` (1, pooled width), float32."""

    tokens_1TD: torch.Tensor
    pooled_1P: torch.Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> PromptEmbeddings:
        return PromptEmbeddings(self.tokens_1TD.to(device, dtype), self.pooled_1P.to(device, dtype))


def load_prompt(folder: Path, prompt: str = "", *, own: bool = True) -> PromptEmbeddings:
    """The embeddings of ``prompt`` for the model in ``folder``.

    The file beside the weights is taken where it says that it holds this prompt, or says nothing and ``prompt`` is the model's ``own``.
    Else a cached one is, else the folder's text encoders compute it once and the result is cached.

    Raises:
        UsageError: there is neither such a file nor a pair of text encoders.
    """
    stored = folder / FILE_NAME
    if stored.is_file():
        says = stored_prompt(stored)
        if says == prompt or (says is None and own):
            return _read(stored)
    key = hashlib.blake2b(f"{fingerprint(folder)}\0{prompt}".encode(), digest_size=8).hexdigest()
    cached = cache_folder() / "prompts" / f"{key}.safetensors"
    if not cached.is_file():
        if not (folder / "text_encoder").is_dir() or not (folder / "text_encoder_2").is_dir():
            other = f" for {prompt!r}" if stored.is_file() else ""
            raise UsageError(
                f"{folder} has neither {FILE_NAME}{other} nor text_encoder/ and text_encoder_2/: add one of them, the prompt cannot be "
                "embedded"
            )
        cached.parent.mkdir(parents=True, exist_ok=True)
        save_prompt(cached, encode_prompt(folder, prompt), prompt)
    return _read(cached)


def stored_prompt(path: Path) -> str | None:
    """The prompt whose embeddings a file holds; None where it does not say.

    Raises:
        UsageError: the file is broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("prompt")
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {path} ({error}); fetch the model again") from error


def save_prompt(path: Path, embeddings: PromptEmbeddings, prompt: str | None = None) -> None:
    """Write a prompt file atomically: many actors may do so at once."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    tensors = {"prompt_embeds": embeddings.tokens_1TD.contiguous(), "pooled_prompt_embeds": embeddings.pooled_1P.contiguous()}
    save_file(tensors, temporary, metadata=None if prompt is None else {"prompt": prompt})
    temporary.replace(path)


def _read(path: Path) -> PromptEmbeddings:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UsageError(f"cannot read {path} ({error}); fetch the model again") from error
    missing = {"prompt_embeds", "pooled_prompt_embeds"} - set(tensors)
    if missing:
        raise UsageError(f"{path} lacks {', '.join(sorted(missing))}; found {', '.join(sorted(tensors))}")
    return PromptEmbeddings(tensors["prompt_embeds"].float(), tensors["pooled_prompt_embeds"].float())


@torch.no_grad()
def encode_prompt(folder: Path, prompt: str) -> PromptEmbeddings:
    """Embed a prompt as SDXL does: the last hidden state but one of both text encoders side by side; pooled output of the second."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    states: list[torch.Tensor] = []
    pooled: torch.Tensor | None = None
    parts: list[tuple[str, str, Any]] = [
        ("tokenizer", "text_encoder", CLIPTextModel),
        ("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection),
    ]
    for tokenizer_name, encoder_name, encoder_class in parts:
        tokenizer = CLIPTokenizer.from_pretrained(folder / tokenizer_name)
        half = all(HALF_MARK in path.name for path in weight_files(folder / encoder_name, "model"))
        encoder = encoder_class.from_pretrained(folder / encoder_name, dtype=torch.float32, variant="fp16" if half else None)
        length = tokenizer.model_max_length
        ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        output = encoder(ids, output_hidden_states=True)
        states.append(output.hidden_states[-2])
        pooled = output[0]
    # that SDXL says force_zeros_for_empty_prompt concerns a missing negative prompt only, never the prompt
    if pooled is None or pooled.ndim != 2:
        raise UsageError(f"{folder}/text_encoder_2 gives no pooled embedding; it must be a CLIPTextModelWithProjection")
    return PromptEmbeddings(torch.cat(states, dim=-1), pooled)
