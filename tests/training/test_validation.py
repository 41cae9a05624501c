"""Validation: means over items, judgements against formulas, pictures as the product makes them, and nothing changed afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch import nn

from core.calibration import expected_calibration_error, fit_temperature, sigmoid
from core.crops import Crop, paste
from core.diffusion import DiffusionEraser
from core.discriminator_config import DiscriminatorConfig
from core.eraser import EraserSettings
from core.errors import UsageError
from core.masks import dilate, soft_mask
from core.model_card import ModelCard
from tests.random_models import SCHEDULE, random_batch, random_object_token, random_prompt, random_unet, random_vae
from training.contact_sheet import GAP, contact_sheet, marked
from training.discriminator import DiscriminatorObjective
from training.lcm import LcmObjective, LcmSettings
from training.objective import Batch, LoraSettings, Objective
from training.remover import RemoverObjective
from training.remover_parts import RemoverParts, save_model
from training.remover_settings import OBJECTCLEAR, ROREM, RemoverSettings
from training.validation import auroc, calibrate, evaluating, judgement, pictures, validate

LORA = LoraSettings(rank=4, alpha=6.0)


def items(count: int, first: int = 0, *, judged: bool = False) -> Batch:
    source, mask = random_batch(count, seed=first)
    effect = torch.maximum(mask, mask.roll(10, dims=1))
    target = source.clone()
    target[mask > 0] = 128
    label = torch.tensor([1.0, 0.0, 0.75, 0.25] * count)[first % 4 : first % 4 + count] if judged else None
    return Batch(source, target, mask, effect, label_B=label, seeds_B=torch.arange(first, first + count))


def parts(**changes: Any) -> RemoverParts:
    card = ModelCard(size=64, steps=2, mask_dilate_px=3, match_tone=True)
    made = RemoverParts(random_unet(), random_vae(), EulerDiscreteScheduler.from_config(SCHEDULE), random_prompt(), card, model="the base")
    return replace(made, **changes)


def remover(settings: RemoverSettings = ROREM, **changes: Any) -> RemoverObjective:
    return RemoverObjective(parts(**changes), settings)


def objectclear() -> RemoverObjective:
    card = ModelCard(size=64, steps=2, object_token="frame", conditioning="full", fusion="attention", reinject_background=True)
    return remover(replace(OBJECTCLEAR, attention_weight=0.1), card=card, object_token=random_object_token())


def lcm() -> LcmObjective:
    objective = LcmObjective(parts(), LcmSettings(lora=LORA))
    return stirred(objective, objective.parts.unet)


def discriminator() -> DiscriminatorObjective:
    objective = DiscriminatorObjective(parts(), DiscriminatorConfig(size=64, head_channels=256))
    return stirred(objective, objective.network)


def stirred(objective: Any, network: nn.Module) -> Any:
    """With adapters that do something: their second factor starts at 0."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in network.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return objective


def modes(objective: Objective) -> list[bool]:
    networks = objective.networks()
    return [module.training for network in (networks.trained | networks.frozen).values() for module in network.modules()]


@pytest.mark.parametrize("make", [remover, objectclear, lcm, discriminator])
def test_losses_are_means_over_items_whatever_the_batches(make: Any) -> None:
    objective = make()
    whole = items(4, judged=True)
    apart = validate(objective, iter([whole.part(slice(0, 3)), whole.part(slice(3, 4))]))
    assert apart == validate(objective, [whole.part(slice(0, 3)), whole.part(slice(3, 4))])
    with torch.no_grad():
        expected = objective.loss(whole)
    assert apart["loss"] == pytest.approx(float(expected.total), rel=1e-5)
    assert len(expected.parts) >= 1
    for name, value in expected.parts.items():
        assert apart[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert all(parameter.grad is None for parameter in objective.networks().trained_parameters().values())


@pytest.mark.parametrize("make", [remover, lcm, discriminator])
def test_networks_are_evaluated_and_as_before_afterwards(make: Any) -> None:
    objective = make()
    networks = objective.networks()
    for network in networks.trained.values():
        network.train()
        list(network.modules())[3].eval()
    needs = {name: parameter.requires_grad for name, network in networks.trained.items() for name, parameter in network.named_parameters()}
    before = modes(objective)
    assert 0 < sum(before) < len(before)
    with evaluating(objective):
        assert not any(modes(objective))
    validate(objective, [items(2, judged=True)])
    pictures(objective, items(1))
    assert modes(objective) == before
    assert needs == {n: p.requires_grad for name, network in networks.trained.items() for n, p in network.named_parameters()}
    with pytest.raises(UsageError), evaluating(objective):
        raise UsageError("broken")
    assert modes(objective) == before


def test_nothing_to_validate_on_is_refused() -> None:
    for objective in (remover(), discriminator()):
        with pytest.raises(UsageError, match="nothing to validate on: hold out"):
            validate(objective, [])
    with pytest.raises(UsageError, match="no label_B"):
        validate(discriminator(), [items(2)])


def test_auroc_counts_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    scores, good = rng.integers(0, 12, 60).astype(float), rng.random(60) < 0.4
    wins = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
    assert auroc(scores, good) == pytest.approx(np.mean(wins))
    assert auroc(np.array([3.0, 1, 2]), np.array([True, False, False])) == 1
    with pytest.raises(UsageError, match="some of both"):
        auroc(scores, np.ones(60, bool))


def test_calibrated_figures_judge_no_item_by_a_map_that_knows_it() -> None:
    objective, rng = discriminator(), np.random.default_rng(1)
    labels = (rng.random(300) < 0.5).astype(float)
    logits = (labels - 0.5) * 2 + rng.normal(0, 1, 300)
    overconfident = logits * 6
    found = judgement(objective, overconfident, labels)
    probability = np.zeros(300)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        others = slice(1 - half.start, None, 2)
        probability[half] = sigmoid(overconfident[half] / fit_temperature(overconfident[others], labels[others]).temperature)
    chosen = probability > 0.9
    assert found["precision"] == pytest.approx(labels[chosen].mean())
    assert found["accepted_share"] == pytest.approx(chosen.mean())
    assert found["calibrated_calibration_error"] == pytest.approx(expected_calibration_error(probability, labels))
    assert found["calibrated_calibration_error"] < 0.1 < found["calibration_error"]
    assert found["accuracy"] == np.mean((overconfident > 0) == (labels > 0.5))
    assert found["auroc"] == pytest.approx(auroc(logits, labels > 0.5))
    assert set(found) == {
        *("loss", "cross_entropy", "accuracy", "calibration_error", "auroc", "accepted_share", "precision", "calibrated_calibration_error")
    }
    alike = judgement(objective, np.full(4, -9.0), np.zeros(4))
    assert alike["accepted_share"] == 0
    assert not {"auroc", "precision"} & set(alike)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_calibrate_fits_the_map_that_is_saved(kind: Any) -> None:
    objective, batches = discriminator(), [items(4, judged=True), items(3, first=4, judged=True)]
    assert objective.config.calibration is None
    found = calibrate(objective, batches, kind)
    assert objective.config.calibration.to_json()["kind"] == kind
    assert found["calibrated_cross_entropy"] <= found["cross_entropy"] + 1e-9
    assert found["loss"] == validate(objective, batches)["loss"]


def test_items_that_are_judged_alike_leave_the_discriminator_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    objective, batch = discriminator(), items(3, judged=True)
    found = calibrate(objective, [replace(batch, label_B=torch.ones(3))])
    assert objective.config.calibration is None
    assert "judged alike" in caplog.text
    assert "calibrated_cross_entropy" not in found
    assert "loss" in found


def results_of(sheet: np.ndarray, column: int, count: int, side: int = 64) -> list[np.ndarray]:
    starts = [(GAP + row * (side + GAP), GAP + column * (side + GAP)) for row in range(count)]
    return [sheet[y : y + side, x : x + side] for y, x in starts]


def by_the_product(eraser: DiffusionEraser, batch: Batch, seeds: list[int]) -> list[np.ndarray]:
    made = []
    for source, mask, seed in zip(batch.source_BHW3.numpy(), batch.mask_BHW.numpy(), seeds, strict=True):
        grown = dilate(mask, eraser.rule.dilate_px)
        plate = None if eraser.rule.texture == "network" else source
        soft = soft_mask(grown, eraser.rule.feather_px)
        crop = Crop(source, grown, soft, 0, 0, 64, eraser.rule.match_tone, plate, eraser.rule.texture)
        made.append(paste(source, crop, eraser.fill([crop], [seed])[0]))
    return made


@pytest.mark.parametrize("make", [remover, objectclear])
def test_pictures_are_those_of_the_saved_model(make: Any, tmp_path: Path) -> None:
    objective, batch = make(), items(2, first=7)
    sheet = pictures(objective, batch)
    objective.save(tmp_path / "model")
    expected = by_the_product(DiffusionEraser(str(tmp_path / "model"), EraserSettings(device="cpu")), batch, [7, 8])
    found = results_of(sheet.pixels, 2, 2)
    for index in range(2):
        assert np.abs(found[index].astype(int) - expected[index]).max() <= 1
        assert not np.array_equal(found[index], batch.source_BHW3[index].numpy())
    for index, source in enumerate(results_of(sheet.pixels, 0, 2)):
        assert np.array_equal(source, batch.source_BHW3[index].numpy())
    for index, target in enumerate(results_of(sheet.pixels, 3, 2)):
        assert np.array_equal(target, batch.target_BHW3[index].numpy())
    for name, masks in (("psnr_mask", batch.mask_BHW), ("psnr_effect", batch.effect_mask_BHW)):
        decibels = []
        for result, target, mask in zip(found, batch.target_BHW3.numpy(), masks.numpy(), strict=True):
            error = ((result / 255 - target / 255) ** 2)[mask > 127].mean()
            decibels.append(10 * np.log10(1 / error))
        assert sheet.metrics[name] == pytest.approx(np.mean(decibels))
    again = pictures(objective, batch)
    assert np.array_equal(again.pixels, sheet.pixels)
    assert not np.array_equal(pictures(objective, batch, [1, 2]).pixels, sheet.pixels)


def test_a_distilled_remover_is_shown_at_four_steps_with_its_adapter(tmp_path: Path) -> None:
    objective, batch = lcm(), items(1, first=3)
    calls: list[int] = []
    hook = objective.parts.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    sheet = pictures(objective, batch)
    hook.remove()
    assert len(calls) == 4
    objective.save(tmp_path / "lora")
    save_model(parts(), tmp_path / "base")
    expected = {}
    for name, lora in (("with", str(tmp_path / "lora")), ("without", None)):
        eraser = DiffusionEraser(str(tmp_path / "base"), EraserSettings(device="cpu", lcm_lora=lora))
        expected[name] = by_the_product(eraser, batch, [3])[0].astype(int)
    (found,) = results_of(sheet.pixels, 2, 1)
    assert np.abs(found - expected["with"]).max() <= 1 < np.abs(found - expected["without"]).max()


@pytest.mark.parametrize("make", [objectclear, lcm])
def test_training_goes_on_as_if_no_picture_had_been_made(make: Any) -> None:
    """With the attention that is captured, gradient checkpointing and train mode; the sampler captures a layer of its own."""

    def gradients(objective: Any, batch: Batch) -> list[torch.Tensor]:
        named = objective.networks().trained_parameters()
        return list(torch.autograd.grad(objective.loss(batch).total, list(named.values()), allow_unused=True))

    found = []
    for looked in (False, True):
        objective, batch = make(), items(2)
        unet = objective.parts.unet
        unet.train()
        unet.enable_gradient_checkpointing()
        processors = [module.processor for module in unet.modules() if hasattr(module, "set_processor")]
        timesteps = objective.parts.scheduler.timesteps.clone()
        if looked:
            pictures(objective, batch)
            validate(objective, [batch])
        assert [module.processor for module in unet.modules() if hasattr(module, "set_processor")] == processors
        assert torch.equal(objective.parts.scheduler.timesteps, timesteps)
        assert unet.is_gradient_checkpointing
        found.append(gradients(objective, batch))
    for before, after in zip(*found, strict=True):
        assert (before is None) == (after is None)
        assert before is None or torch.equal(before, after)


def test_a_guided_model_is_guided_only_where_the_null_prompt_is_at_hand() -> None:
    card = ModelCard(size=64, steps=2, guidance_scale=3.0, null_branch=True)
    batch = items(1)
    plain, unknown, guided = (
        pictures(remover(card=chosen, null_prompt=null), batch).pixels
        for chosen, null in ((replace(card, guidance_scale=1.0), None), (card, None), (card, random_prompt(9)))
    )
    assert np.array_equal(plain, unknown)
    assert not np.array_equal(plain, guided)


def test_what_has_no_pictures() -> None:
    assert pictures(discriminator(), items(1)) is None
    square = items(2)
    broad = Batch(*(getattr(square, name)[:, :32] for name in ("source_BHW3", "target_BHW3", "mask_BHW")), seeds_B=square.seeds_B)
    with pytest.raises(UsageError, match="32 x 64; a sheet is made of squares"):
        pictures(remover(), broad)
    with pytest.raises(UsageError, match="no seeds_B"):
        pictures(remover(), replace(square, seeds_B=None))
    blank = replace(items(1), mask_BHW=torch.zeros(1, 64, 64, dtype=torch.uint8), effect_mask_BHW=None)
    assert pictures(remover(), blank).metrics == {}
    equal = replace(items(1), target_BHW3=items(1).source_BHW3, has_effect_B=torch.tensor([False]))
    assert set(pictures(remover(), equal).metrics) == {"psnr_mask"}


def test_a_contact_sheet_is_a_grid_on_white() -> None:
    rows = [[np.full((5, 7, 3), 10 * row + column, np.uint8) for column in range(3)] for row in range(2)]
    sheet = contact_sheet(rows)
    assert sheet.shape == (2 * 5 + 3 * GAP, 3 * 7 + 4 * GAP, 3)
    assert np.array_equal(sheet[GAP : GAP + 5, GAP + 7 + GAP : 2 * (GAP + 7)], rows[0][1])
    assert (sheet == 255).sum() == sheet.size - 6 * 5 * 7 * 3
    for wrong in ([], [[]], [rows[0], rows[1][:2]], [[rows[0][0], rows[0][0][:4]]]):
        with pytest.raises(UsageError, match="one size"):
            contact_sheet(wrong)
    photo, mask = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = 255
    shown = marked(photo, mask)
    assert np.array_equal(shown.any(axis=2), mask > 0)
    assert tuple(shown[2, 2]) == (228, 40, 48)
    assert tuple(shown[4, 4]) == (114, 20, 24)


@pytest.mark.parametrize("texture", ["photo", "light"])
def test_with_the_photos_texture_pictures_are_relit_and_not_redrawn(texture: Any, tmp_path: Path) -> None:
    """The fill is pasted as at inference: of the network's picture light and colour alone."""
    drawn = pictures(remover(), items(2, first=7)).pixels
    objective, batch = remover(), items(2, first=7)
    objective.parts = replace(objective.parts, card=replace(objective.parts.card, texture=texture))
    sheet = pictures(objective, batch)
    objective.save(tmp_path / "model")
    eraser = DiffusionEraser(str(tmp_path / "model"), EraserSettings(device="cpu"))
    assert eraser.rule.texture == texture
    for found, expected in zip(results_of(sheet.pixels, 2, 2), by_the_product(eraser, batch, [7, 8]), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(sheet.pixels, drawn)
