"""The discriminator's trunk: a folder that is whole, and what is released scores as what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.discriminator import Discriminator
from core.discriminator_config import DiscriminatorConfig
from core.model_check import check_model
from core.model_files import find_model
from core.scoring import score_results
from tests.random_models import random_batch, random_vae
from training.discriminator import DiscriminatorObjective
from training.remover_parts import load_parts
from training.remover_settings import RemoverSettings
from training.settings import load_recipe
from training.tiny_base import write_base
from training.tiny_release import main as release
from training.tiny_trunk import TRUNK_CARD, main, new_trunk


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trunk") / "trunk"
    assert main(["--output", str(folder)]) == 0
    return folder


def test_the_folder_is_a_whole_model_and_the_seed_decides_its_weights(trunk: Path) -> None:
    assert [report.fault for report in check_model(find_model(str(trunk))) if not report.ok] == []
    stored = load_file(trunk / "unet" / "diffusion_pytorch_model.safetensors")
    same, other = (new_trunk(seed).unet.state_dict() for seed in (0, 1))
    assert all(torch.equal(value, same[name]) for name, value in stored.items())
    assert any(not torch.equal(value, other[name]) for name, value in stored.items())


def test_what_is_released_scores_as_what_was_trained_and_holds_the_trunk_once(trunk: Path, tmp_path: Path) -> None:
    recipe = load_recipe("tiny-discriminator", "discriminator")
    shape = recipe.discriminator
    config = DiscriminatorConfig(
        size=TRUNK_CARD.size, head_channels=shape.head_channels, trained_parts=shape.trained_parts, base=str(trunk)
    )
    objective = DiscriminatorObjective(load_parts(str(trunk), RemoverSettings(conditioning="full", latent_mask="max")), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in objective.networks().trained_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    trained = tmp_path / "discriminator"
    objective.save(trained)
    random_vae(latent_channels=4).save_pretrained(tmp_path / "vae")
    remover = write_base(tmp_path / "vae", tmp_path / "remover")
    output = tmp_path / "tiny"
    call = ["--remover", str(remover), "--discriminator", str(trained), "--output", str(output)]
    assert release([*call, "--trunk", str(remover)]) == 2, "another model than it was trained on"
    assert not output.exists()
    assert release([*call, "--trunk", str(trunk)]) == 0
    told = json.loads((output / "discriminator" / "config.json").read_text())
    assert (told["base"], told["trained_parts"]) == ("base", [])
    assert all(name.startswith("head.") or ".lora_" in name for name in load_file(output / "discriminator" / "model.safetensors"))
    assert str(tmp_path) not in "".join(path.read_text() for path in output.rglob("*.json"))
    pictures_BHW3, masks_BHW = random_batch(3, 96)
    photo, mask, results = pictures_BHW3[0].numpy(), masks_BHW[0].numpy(), list(pictures_BHW3.numpy())
    before, after = (score_results(Discriminator(folder, device="cpu"), photo, mask, results) for folder in (trained, output))
    assert np.ptp(before) > 0.01, "all results score alike, which shows nothing"
    np.testing.assert_allclose(after, before, atol=0.01)
