"""What a training of a remover saves is a model: it loads, weights and all, erases, and is what was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from core.diffusion import DiffusionEraser
from core.eraser import EraserSettings
from core.errors import UsageError
from core.lora import merge_lora
from core.model_files import find_model
from core.object_token import PROMPT
from tests.random_models import random_batch, random_prompt, random_unet
from tests.training.test_remover_objective import LORA, assert_equal, items, parts, shake
from training.remover import RemoverObjective
from training.remover_parts import load_parts, save_model
from training.remover_settings import OBJECTCLEAR, RemoverSettings


def test_a_fine_tuned_model_loads_and_erases(tmp_path: Path) -> None:
    made = parts()
    objective = RemoverObjective(made, RemoverSettings(conditioning="full", lora=LORA))
    shake(objective)
    objective.save(tmp_path / "out")
    objective.save(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    files = find_model(str(tmp_path / "out"))
    assert files.kind == "remover"
    eraser = DiffusionEraser(str(tmp_path / "out"), EraserSettings(device="cpu"))
    assert (eraser.card.conditioning, eraser.card.size, eraser.card.steps) == ("full", 64, 2)
    call = _inputs()
    live, merged = (unet(**call).sample.detach() for unet in (made.unet, eraser.remover.unet))
    assert float((merged - live).abs().max()) < 1e-5
    assert float((merged - random_unet()(**call).sample).abs().max()) > 1e-3
    alone = random_unet()
    merge_lora(alone, tmp_path / "out" / "lora")
    assert float((alone(**call).sample - live).abs().max()) < 1e-5
    source, mask = random_batch(1)
    erased = eraser.remover.erase(source, mask, [0])
    assert erased.calls == 2
    assert np.isfinite(erased.latents_BLhw.numpy()).all()
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert float((pipeline.unet(**call).sample - live).abs().max().detach()) < 1e-5


def _inputs() -> dict[str, Any]:
    prompt = random_prompt()
    added = {"text_embeds": prompt.pooled_1P, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    sample = torch.randn(1, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"sample": sample, "timestep": 500, "encoder_hidden_states": prompt.tokens_1TD, "added_cond_kwargs": added}


def test_objectclear_is_trained_from_a_plain_model_and_a_clip(tmp_path: Path) -> None:
    """A base without object token gets one; what is saved is of ObjectClear's kind and loads, weights and all."""
    base = parts()
    (tmp_path / "base").mkdir()
    save_model(replace(base, card=replace(base.card, prompt=PROMPT)), tmp_path / "base")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8, projection_dim=24
    )
    CLIPVisionModelWithProjection(vision).save_pretrained(tmp_path / "clip")
    with pytest.raises(UsageError, match="has no image encoder: give the folder of a CLIP model"):
        load_parts(str(tmp_path / "base"), OBJECTCLEAR)
    made = load_parts(str(tmp_path / "base"), OBJECTCLEAR, image_encoder=tmp_path / "clip")
    objective = RemoverObjective(made, OBJECTCLEAR)
    optimizer = torch.optim.SGD(objective.networks().trained_parameters().values(), lr=1e-2)
    objective.loss(items(2)).total.backward()
    optimizer.step()
    objective.save(tmp_path / "out")
    files = find_model(str(tmp_path / "out"))
    assert files.kind == "objectclear"
    again = RemoverObjective(load_parts(str(tmp_path / "out"), OBJECTCLEAR), OBJECTCLEAR)
    assert_equal(again.trained_state(), objective.trained_state(), 1e-7)
    eraser = DiffusionEraser(str(tmp_path / "out"), EraserSettings(device="cpu"))
    assert (eraser.card.object_token, eraser.card.conditioning, eraser.card.prompt) == ("frame", "full", PROMPT)
    source, mask = random_batch(1)
    assert eraser.remover.erase(source, mask, [0]).soft_BHW is not None
