"""The embedded autoencoder: both phases train what they should, latents are white and stay as they are, and a run can be taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from core.errors import UsageError
from tests.training.photo_folder import write_photos
from training import tiny_vae
from training.tiny_vae import Training, judge, laplacian_pyramid, new_vae, picture_loss, reconstruct, reconstruction, train, whiten


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


def pictures(count: int = 2, side: int = 32, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bilinear")


def encoder_state(vae: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vae.state_dict().items() if name.startswith(("encoder", "quant_conv"))}


def test_a_pyramid_adds_up_to_the_picture() -> None:
    *details, small = laplacian_pyramid(pictures())
    for detail in reversed(details):
        small = F.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False) + detail
    torch.testing.assert_close(small, pictures())


def test_the_loss_of_a_picture_against_itself_is_nothing_and_a_blur_costs_more_than_its_mean_error() -> None:
    sharp = pictures(side=64)
    assert float(picture_loss(sharp, sharp)) == 0.0
    blurred = F.avg_pool2d(F.pad(sharp, (2, 2, 2, 2), mode="reflect"), 5, 1)
    assert float(picture_loss(blurred, sharp)) > 1.5 * float(F.l1_loss(blurred, sharp))


@pytest.mark.parametrize("halved", [False, True])
def test_everything_has_a_gradient_in_the_first_phase(halved: bool) -> None:
    torch.manual_seed(0)
    vae = new_vae()
    picture, kl = reconstruction(vae, pictures(), halved=halved)
    (picture + kl).backward()
    assert [name for name, value in vae.named_parameters() if value.grad is None or not bool(value.grad.abs().sum() > 0)] == []


def test_whitening_changes_latents_and_not_pictures() -> None:
    torch.manual_seed(0)
    vae, sample = new_vae().eval().requires_grad_(False), pictures(12)
    before = reconstruct(vae, sample)
    deviation = vae.encode(sample).latent_dist.std / vae.encode(sample).latent_dist.mean.std(dim=(0, 2, 3), keepdim=True)
    whiten(vae, sample)
    latents_BLhw = vae.encode(sample).latent_dist.mode()
    torch.testing.assert_close(latents_BLhw.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents_BLhw.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.encode(sample).latent_dist.std, deviation, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(reconstruct(vae, sample), before, atol=1e-4, rtol=0)


def test_judging() -> None:
    photos_B3HW = pictures(4)
    assert judge(photos_B3HW, photos_B3HW).sharpness == pytest.approx(1.0)
    assert judge(photos_B3HW + 0.2, photos_B3HW).psnr == pytest.approx(20.0, abs=1e-3)
    grain_B3HW = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert judge(F.avg_pool2d(grain_B3HW, 3, 1, 1), grain_B3HW).sharpness < 0.5


def test_the_first_phase_learns_and_the_second_leaves_the_latents_alone(tmp_path: Path) -> None:
    training = Training(tmp_path, minutes=1.0)
    batch = pictures(4)
    losses = [training.train_step(batch)["picture"] for _ in range(12)]
    assert losses[-3] < losses[1]
    training.freeze(batch)
    frozen, decoder = encoder_state(training.vae), training.vae.decoder.conv_out.weight.detach().clone()
    judge_before = training.discriminator.layers[-1].weight.detach().clone()
    found = training.train_step(batch)
    assert {"picture", "fooled", "weight", "discriminator"} == set(found)
    assert all(torch.equal(value, frozen[name]) for name, value in encoder_state(training.vae).items())
    assert not torch.equal(training.vae.decoder.conv_out.weight, decoder)
    assert not torch.equal(training.discriminator.layers[-1].weight, judge_before)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_that_was_taken_up_again_goes_on_as_if_nothing_had_happened(tmp_path: Path, frozen: bool) -> None:
    training = Training(tmp_path, minutes=1.0)
    training.train_step(pictures())
    if frozen:
        training.freeze(pictures(8))
    training.train_step(pictures())
    training.save()
    again = Training(tmp_path, minutes=1.0)
    assert (again.step, again.frozen) == (2, frozen)
    ours, theirs = (run.train_step(pictures(seed=1)) for run in (training, again))
    assert ours == pytest.approx(theirs)
    for name, value in training.average.items():
        torch.testing.assert_close(again.average[name], value)


def test_the_rate_rises_and_falls_in_both_phases(tmp_path: Path) -> None:
    training = Training(tmp_path, minutes=1.0, joint_share=0.5)
    assert training.phase_rate() < 0.01
    training.step = 10_000
    rates = []
    for seconds, frozen in ((0, False), (17, False), (29.9, False), (30, True), (47, True), (60, True)):
        training.seconds, training.frozen = float(seconds), frozen
        rates.append(training.phase_rate())
    assert rates == pytest.approx([1.0, 1.0, 0.05, 0.5, 0.5, 0.025])


def test_a_run_writes_an_autoencoder_that_diffusers_loads(photos: Path, tmp_path: Path) -> None:
    quality = train(photos, Training(tmp_path, minutes=0.01), crop=32, batch=2, judged=64)
    assert 0 < quality.psnr < 40
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae", local_files_only=True)
    assert (vae.config["latent_channels"], vae.config["scaling_factor"]) == (4, 1.0)
    assert (tmp_path / "reconstructions.png").is_file()
    resumed = Training(tmp_path, minutes=0.01)
    assert resumed.progress == 1.0
    assert resumed.step > 0


@pytest.mark.parametrize("wrong", [["--joint-share", "1"], ["--minutes", "0"]])
def test_wrong_numbers_are_one_line(photos: Path, tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny_vae.main(["--photos", str(photos), "--output", str(tmp_path / "out"), *wrong]) == UsageError.exit_status
    assert capsys.readouterr().err.startswith(f"error: {wrong[0]} is ")
