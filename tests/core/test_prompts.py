"""Prompt embeddings equal those of diffusers' own pipeline, are computed once, and are missed with a clear word."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from core import prompts
from core.errors import UsageError
from core.prompts import FILE_NAME, PromptEmbeddings, encode_prompt, load_prompt, save_prompt

PROMPTS = ["", "a cat", "cat " * 40]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small random text encoders of different width and padding, as SDXL has them."""
    folder = tmp_path_factory.mktemp("model")
    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "at</w>", "cat</w>", "<|startoftext|>", "<|endoftext|>", "!"]
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionXLInpaintPipeline", "force_zeros_for_empty_prompt": True})
    )
    torch.manual_seed(0)
    for index, (suffix, kind, width) in enumerate([("", CLIPTextModel, 16), ("_2", CLIPTextModelWithProjection, 24)]):
        source = folder / f"words{suffix}"
        source.mkdir()
        (source / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
        (source / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
        tokenizer = CLIPTokenizer(
            str(source / "vocab.json"), str(source / "merges.txt"), model_max_length=12, pad_token=["<|endoftext|>", "!"][index]
        )
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        ends: dict[str, Any] = {
            "bos_token_id": words.index("<|startoftext|>"),
            "eos_token_id": words.index("<|endoftext|>"),
            "pad_token_id": 1,
        }
        config: Any = CLIPTextConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=12, projection_dim=20, hidden_act="gelu", **ends,
        )  # fmt: skip
        kind(config).eval().save_pretrained(folder / f"text_encoder{suffix}")
    return folder


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Any:
    return StableDiffusionXLPipeline(
        vae=None, unet=None, scheduler=None,
        text_encoder=CLIPTextModel.from_pretrained(model / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(model / "text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(model / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(model / "tokenizer_2"),
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLEANPLATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(one: PromptEmbeddings, other: PromptEmbeddings) -> bool:
    return torch.equal(one.tokens_1TD, other.tokens_1TD) and torch.equal(one.pooled_1P, other.pooled_1P)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_embeddings_equal_those_of_diffusers(model: Path, pipeline: Any, prompt: str) -> None:
    with torch.no_grad():
        expected, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    found = encode_prompt(model, prompt)
    assert found.tokens_1TD.shape == (1, 12, 40)
    assert found.pooled_1P.shape == (1, 20)
    torch.testing.assert_close(found.tokens_1TD, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled_1P, pooled, rtol=0, atol=1e-6)


def test_different_prompts_are_told_apart(model: Path) -> None:
    found = [encode_prompt(model, prompt) for prompt in PROMPTS]
    assert not any(same(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_embeddings_are_computed_once(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_prompt(model, "a cat")
    assert same(first, encode_prompt(model, "a cat"))
    monkeypatch.setattr(prompts, "encode_prompt", None)
    assert same(load_prompt(model, "a cat"), first)
    assert len(list((cache / "prompts").iterdir())) == 1


def test_the_file_beside_the_weights_comes_first(model: Path, tmp_path: Path) -> None:
    made = PromptEmbeddings(torch.ones(1, 3, 4), torch.zeros(1, 5))
    save_prompt(tmp_path / FILE_NAME, made)
    assert same(load_prompt(tmp_path), made)
    assert same(load_prompt(model), encode_prompt(model, ""))


def test_a_file_that_names_its_prompt_is_used_for_that_one_only(tmp_path: Path) -> None:
    made = PromptEmbeddings(torch.ones(1, 3, 4), torch.zeros(1, 5))
    save_prompt(tmp_path / FILE_NAME, made, "a dog")
    assert same(load_prompt(tmp_path, "a dog"), made)
    assert same(load_prompt(tmp_path, "a dog", own=False), made)
    with pytest.raises(UsageError, match="for 'a cat' nor"):
        load_prompt(tmp_path, "a cat")


def test_a_file_that_names_none_holds_the_models_own(tmp_path: Path) -> None:
    made = PromptEmbeddings(torch.ones(1, 3, 4), torch.zeros(1, 5))
    save_prompt(tmp_path / FILE_NAME, made)
    assert same(load_prompt(tmp_path, "remove the instance of object"), made)
    with pytest.raises(UsageError, match="neither"):
        load_prompt(tmp_path, "", own=False)


def test_half_precision_encoders_are_read(model: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    shutil.copytree(model, tmp_path / "half")
    for name, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        encoder = kind.from_pretrained(model / name).half()
        (tmp_path / "half" / name / "model.safetensors").unlink()
        encoder.save_pretrained(tmp_path / "half" / name, variant="fp16")
    found, expected = (encode_prompt(folder, "a cat") for folder in (tmp_path / "half", model))
    assert float((found.tokens_1TD - expected.tokens_1TD).abs().max()) < 1e-2


def test_many_may_save_at_once(tmp_path: Path) -> None:
    made = PromptEmbeddings(torch.ones(1, 3, 4), torch.zeros(1, 5))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: save_prompt(tmp_path / FILE_NAME, made), range(40)))
    assert os.listdir(tmp_path) == [FILE_NAME]  # noqa: PTH208 - hidden files count
    assert same(load_prompt(tmp_path), made)


def test_neither_file_nor_encoders_is_said(tmp_path: Path) -> None:
    for prompt in ("", "a cat"):
        with pytest.raises(UsageError, match=r"neither prompt_embeds\.safetensors nor text_encoder/"):
            load_prompt(tmp_path, prompt)


def test_a_broken_file_is_said(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"prompt_embeds": torch.zeros(1)}, tmp_path / FILE_NAME)
    with pytest.raises(UsageError, match="lacks pooled_prompt_embeds; found prompt_embeds"):
        load_prompt(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"\x09\0\0\0\0\0\0\0{")
    with pytest.raises(UsageError, match=r"cannot read .*fetch the model again"):
        load_prompt(tmp_path)
