"""The embedded model's starting folder: it is whole, it erases, it trains, and it is as small as it must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLInpaintPipeline, UNet2DConditionModel

from core.attention import cross_attention_layers
from core.components import load_scheduler
from core.diffusion import DiffusionEraser
from core.eraser import EraserSettings
from core.errors import UsageError
from core.model_card import read_card
from core.model_check import check_model
from core.model_files import find_model
from core.sampler import terminal_start
from tests.random_models import random_batch, random_vae
from training import tiny_base
from training.objective import Batch
from training.remover import RemoverObjective
from training.remover_parts import load_parts
from training.remover_settings import RemoverSettings
from training.settings import load_recipe
from training.tiny_base import CARD, contrastive_loss, new_parts, train_encoder, write_base
from training.written_vae import colour_vae

SETTINGS = RemoverSettings(conditioning="full", latent_mask="max", object_token="box", attention_weight=0.01, condition_dropout=0.1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A starting folder around a random autoencoder of sixteen latent channels."""
    folder = tmp_path_factory.mktemp("base")
    random_vae(latent_channels=16).half().save_pretrained(folder / "vae")
    return write_base(folder / "vae", folder / "model")


def items(count: int = 2, side: int = 64) -> Batch:
    pictures_BHW3, masks_BHW = random_batch(count, side)
    return Batch(pictures_BHW3, pictures_BHW3.flip(2), masks_BHW, effect_mask_BHW=masks_BHW, seeds_B=torch.arange(count))


def cutouts() -> list[np.ndarray]:
    """Twelve discs of twelve colours."""
    colours = np.random.default_rng(0).integers(0, 256, (12, 3))
    rows, columns = np.mgrid[:40, :30]
    disc = ((rows - 20) ** 2 / 360 + (columns - 15) ** 2 / 200 < 1) * 255
    return [np.dstack([np.broadcast_to(colour, (40, 30, 3)), disc]).astype(np.uint8) for colour in colours]


def test_the_folder_is_a_whole_model_of_objectclears_kind(base: Path) -> None:
    files = find_model(str(base))
    assert files.kind == "objectclear"
    assert [report.fault for report in check_model(files) if not report.ok] == []
    assert read_card(base) == CARD


def test_it_erases_with_attention_fusion(base: Path) -> None:
    eraser = DiffusionEraser(str(base), EraserSettings(steps=2))
    eraser.rule = replace(eraser.rule, size=128, dilate_px=2)
    assert eraser.rule.texture == "light"
    assert eraser.card.fusion == "attention"
    pictures_BHW3, masks_BHW = random_batch(1, 160)
    erased_HW3 = eraser.erase(pictures_BHW3[0].numpy(), masks_BHW[0].numpy(), seed=1)
    assert erased_HW3.shape == (160, 160, 3)
    assert (erased_HW3 != pictures_BHW3[0].numpy())[masks_BHW[0].numpy() > 0].any()
    np.testing.assert_array_equal(erased_HW3, eraser.erase(pictures_BHW3[0].numpy(), masks_BHW[0].numpy(), seed=1))


def test_the_map_that_steers_the_fusion_is_the_one_that_training_is_about() -> None:
    layers = cross_attention_layers(new_parts(random_vae()).unet)
    (trained,) = load_recipe("tiny-remover", "remover").remover.attention_layers
    assert layers[CARD.attention_layer] == trained
    assert trained.startswith("up_blocks.2."), "the finest with attention of the way up"


def test_plain_diffusers_loads_it(base: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(base / "unet", local_files_only=True)
    vae = AutoencoderKL.from_pretrained(base / "vae", local_files_only=True)
    assert unet.config["in_channels"] == 2 * vae.config["latent_channels"] + 1 == 33
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(base, local_files_only=True, add_watermarker=False)
    assert isinstance(pipeline.scheduler, DDIMScheduler)


def test_sampling_starts_from_pure_noise_at_the_last_timestep(base: Path) -> None:
    scheduler = load_scheduler(base)
    assert float(scheduler.alphas_cumprod[-1]) < 1e-8
    _, timesteps = terminal_start(scheduler, 4, torch.zeros(1))
    assert timesteps.tolist() == [999, 749, 499, 249]


def test_it_trains(base: Path) -> None:
    parts = load_parts(str(base), SETTINGS)
    objective = RemoverObjective(parts, SETTINGS)
    result = objective.loss(items())
    result.total.backward()
    assert torch.isfinite(result.total)
    assert set(result.parts) == {"denoising", "attention"}
    gradients = {name: parameter.grad for name, parameter in objective.networks().trained_parameters().items()}
    assert [name for name, gradient in gradients.items() if gradient is None or not torch.isfinite(gradient).all()] == []
    assert gradients["fuse_module.mlp1.fc1.weight"].abs().max() > 0
    assert gradients["unet.conv_in.weight"].abs().max() > 0


def test_what_was_trained_is_a_model_of_the_same_kind(base: Path, tmp_path: Path) -> None:
    objective = RemoverObjective(load_parts(str(base), SETTINGS), SETTINGS)
    objective.save(tmp_path / "out")
    assert find_model(str(tmp_path / "out")).kind == "objectclear"
    card = read_card(tmp_path / "out")
    assert (card.conditioning, card.object_token, card.fusion, card.size, card.null_branch) == ("full", "box", "attention", CARD.size, True)
    load_parts(str(tmp_path / "out"), SETTINGS)


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (new_parts(random_vae(), seed) for seed in (0, 0, 1))
    for name, value in first.unet.state_dict().items():
        assert torch.equal(value, again.unet.state_dict()[name])
    assert torch.equal(first.prompt.tokens_1TD, again.prompt.tokens_1TD)
    assert not torch.equal(first.unet.conv_in.weight, other.unet.conv_in.weight)


def test_there_is_room_for_the_lora_and_the_discriminator() -> None:
    parts = new_parts(colour_vae())
    assert parts.object_token is not None
    networks = (parts.unet, parts.vae, parts.object_token.encoder, parts.object_token.fuse)
    count = sum(parameter.numel() for network in networks for parameter in network.parameters())
    assert 2 * count <= 50_000_000


def test_the_encoder_learns_to_tell_objects_apart() -> None:
    def rank(encoder: torch.nn.Module) -> float:
        rng = np.random.default_rng(9)
        with torch.no_grad():
            views_R3SS = torch.cat([tiny_base._view(cutout, rng) for cutout in (*cutouts(), *cutouts())])
            return float(contrastive_loss(encoder(views_R3SS).image_embeds))

    token = new_parts(random_vae(), seed=1).object_token
    assert token is not None
    before = rank(token.encoder)
    train_encoder(token.encoder, cutouts(), steps=25)
    assert before > np.log(2 * 12 - 1) - 0.4
    assert rank(token.encoder) < before - 0.5
    assert not any(parameter.requires_grad for parameter in token.encoder.parameters())


def test_one_cutout_is_too_few() -> None:
    token = new_parts(random_vae()).object_token
    assert token is not None
    with pytest.raises(UsageError, match="at least two"):
        train_encoder(token.encoder, cutouts()[:1], steps=1)


def test_a_folder_without_an_autoencoder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert tiny_base.main(["--vae", str(tmp_path / "empty"), "--output", str(tmp_path / "out")]) == UsageError.exit_status
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()
