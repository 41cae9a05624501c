"""Scoring an eraser's latents: what it does to the score is measured against the honest way, on the real eraser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks.latent_scoring import SAMPLES, Comparison, compare, table
from core.checkpoints import EMBEDDED
from core.conditioning import downsampling_factor
from core.diffusion import DiffusionEraser
from core.discriminator import Discriminator
from core.discriminator_config import DiscriminatorConfig
from core.discriminator_files import save_discriminator
from core.discriminator_network import DiscriminatorNetwork
from core.eraser import EraserSettings
from core.errors import UsageError
from core.model_card import FILE_NAME


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the shipped samples alone."""
    folder = tmp_path_factory.mktemp("sample")
    for role, name in (("source", "barn.jpg"), ("mask", "barn.png")):
        (folder / role).mkdir()
        shutil.copy(SAMPLES / role / name, folder / role / name)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained discriminator on the embedded remover, whose own has a trunk with another autoencoder."""
    config = DiscriminatorConfig(size=128, base=str(EMBEDDED["tiny"]))
    factor = downsampling_factor(AutoencoderKL.from_pretrained(EMBEDDED["tiny"] / "vae"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiscriminatorNetwork(UNet2DConditionModel.from_pretrained(EMBEDDED["tiny"] / "unet"), config, factor)
    where = tmp_path_factory.mktemp("discriminator")
    save_discriminator(where, network, config, torch.float32)
    return where


@pytest.fixture(scope="module")
def parts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DiffusionEraser, Discriminator]:
    """The embedded remover taken for one that draws pictures."""
    model = tmp_path_factory.mktemp("model") / "drawing"
    shutil.copytree(EMBEDDED["tiny"], model, ignore=shutil.ignore_patterns("discriminator", "lcm"))
    card = json.loads((model / FILE_NAME).read_text())
    (model / FILE_NAME).write_text(json.dumps({**card, "texture": "network"}))
    return DiffusionEraser(str(model), EraserSettings(device="cpu")), Discriminator(folder, device="cpu")


def test_latents_score_near_the_picture_that_they_become(parts: tuple[DiffusionEraser, Discriminator], sample: Path) -> None:
    found = list(compare(*parts, sample, seeds=2))
    assert found == list(compare(*parts, sample, seeds=2))
    assert len(found) == 2
    assert found[0] != found[1]
    for item in found:
        assert item.latents not in (item.honest, item.decoded)  # another input, and so another score
        assert item.latents == pytest.approx(item.decoded, abs=0.1)
        assert item.latents == pytest.approx(item.honest, abs=0.2)


def test_other_autoencoders_and_empty_folders_are_refused(
    parts: tuple[DiffusionEraser, Discriminator], folder: Path, sample: Path, tmp_path: Path
) -> None:
    eraser, discriminator = parts
    with pytest.raises(UsageError, match="draws light and no picture"):
        next(compare(DiffusionEraser("tiny", EraserSettings(device="cpu")), discriminator, sample, 1))
    with pytest.raises(UsageError, match="no source"):
        next(compare(eraser, discriminator, tmp_path, 1))
    other = Discriminator(folder, device="cpu")
    with torch.no_grad():
        next(other.vae.parameters()).add_(1e-3)
    with pytest.raises(UsageError, match="different autoencoders"):
        next(compare(eraser, other, sample, 1))


def test_table_by_hand() -> None:
    lines = table([Comparison(0.5, 0.6, 0.95), Comparison(0.91, 0.91, 0.81)], 0.9).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["decoded, not pasted", "+0.0500", "0.0500", "0.1000", "0 of 2"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["latents", "+0.1750", "0.2750", "0.4500", "2 of 2"]
    assert len({line.count("|") for line in lines}) == 1
