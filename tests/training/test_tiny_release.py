"""What is shipped: the trained networks in half precision, whole, and the same to what was trained as half precision lets it be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.discriminator import Discriminator
from core.eraser import EraserSettings, load_eraser
from core.model_card import read_card
from core.model_check import check_model
from core.model_files import find_model
from core.scoring import score_results
from tests.random_models import random_batch, random_vae
from training.discriminator import DiscriminatorObjective
from training.lcm import LcmObjective
from training.remover_parts import load_parts
from training.remover_settings import RemoverSettings
from training.tiny_base import write_base
from training.tiny_release import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of an (untrained) remover and of a discriminator on it, as trainings leave them."""
    from core.discriminator_config import DiscriminatorConfig

    folder = tmp_path_factory.mktemp("trained")
    random_vae(latent_channels=16).save_pretrained(folder / "vae")
    remover = write_base(folder / "vae", folder / "remover")
    (remover / "README.md").write_text("of the training")
    (remover / "training").mkdir()
    (remover / "training" / "state.pt").write_bytes(b"large")
    parts = load_parts(str(remover), RemoverSettings(conditioning="full"))
    DiscriminatorObjective(parts, DiscriminatorConfig(size=512, base=str(remover))).save(folder / "discriminator")
    return remover, folder / "discriminator"


def test_the_release_is_half_as_large_and_does_the_same(trained: tuple[Path, Path], tmp_path: Path) -> None:
    remover, discriminator = trained
    output = tmp_path / "tiny"
    output.mkdir()
    (output / "README.md").write_text("our own words")
    assert main(["--remover", str(remover), "--discriminator", str(discriminator), "--output", str(output)]) == 0
    assert (output / "README.md").read_text() == "our own words"
    assert not (output / "training").exists()
    assert str(remover.parent) not in "".join(path.read_text() for path in output.rglob("*.json")), "a folder of this machine is told"
    assert all(tensor.dtype.itemsize <= 2 for tensor in load_file(output / "unet" / "diffusion_pytorch_model.safetensors").values())
    assert [report.fault for report in check_model(find_model(str(output))) if not report.ok] == []
    assert read_card(output) == read_card(remover)
    assert json.loads((output / "cleanplate.json").read_text())["licence"] == "Apache-2.0"
    assert "base" not in json.loads((output / "discriminator" / "config.json").read_text())
    pictures_BHW3, masks_BHW = random_batch(1, 96)
    picture, mask = pictures_BHW3[0].numpy(), masks_BHW[0].numpy()
    ours, theirs = (load_eraser(str(model), EraserSettings(device="cpu", steps=1)).erase(picture, mask, 3) for model in (output, remover))
    assert float(np.abs(ours.astype(int) - theirs).mean()) < 1.0
    scores = [score_results(Discriminator(folder, device="cpu"), picture, mask, [ours])[0] for folder in (output, discriminator)]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


def test_the_adapter_for_4_steps_comes_along(trained: tuple[Path, Path], tmp_path: Path) -> None:
    remover, discriminator = trained
    distilled = LcmObjective(load_parts(str(remover), RemoverSettings(conditioning="full", object_token="box")))
    generator = torch.Generator().manual_seed(4)
    for name, parameter in distilled.parts.unet.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    distilled.save(tmp_path / "lcm")
    output = tmp_path / "tiny"
    call = ["--remover", str(remover), "--discriminator", str(discriminator), "--output", str(output)]
    assert main([*call, "--lcm", str(tmp_path / "nothing")]) == 2
    assert main([*call, "--lcm", str(tmp_path / "lcm")]) == 0
    pictures_BHW3, masks_BHW = random_batch(1, 96)
    picture, mask = pictures_BHW3[0].numpy(), masks_BHW[0].numpy()
    own, given, without = (
        load_eraser(str(output), EraserSettings(device="cpu", steps=1, lcm_lora=lora)).erase(picture, mask, 3)
        for lora in (str(output), str(tmp_path / "lcm"), None)
    )
    assert float(np.abs(own.astype(int) - given).mean()) < 1.0
    assert not np.array_equal(own, without)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--remover", str(tmp_path), "--discriminator", str(trained[1]), "--output", str(tmp_path / "out")]) == 2
    assert "has no model_index.json" in capsys.readouterr().err
