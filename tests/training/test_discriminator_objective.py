"""The discriminator's loss and gradients equal cross-entropy written out; what is saved scores as what was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.calibration import Isotonic, Temperature
from core.discriminator import Discriminator
from core.discriminator_config import DiscriminatorConfig
from core.errors import UsageError
from core.model_card import ModelCard
from tests.random_models import random_batch, random_prompt, random_unet, random_vae, scheduler
from training.discriminator import DiscriminatorObjective
from training.objective import Batch, Objective
from training.remover_parts import RemoverParts, save_model

CONFIG = DiscriminatorConfig(size=64, head_channels=256)
"""Eight channels a group: with two, the norm of the 1x1 feature makes much of rounding."""


def parts(**changes: Any) -> RemoverParts:
    card = ModelCard(size=64, latent_mask="max")
    made = RemoverParts(random_unet(), random_vae(), scheduler("euler"), random_prompt(), card, model="the base")
    return replace(made, **changes)


def items(count: int, *, clean: torch.Tensor | None = None) -> Batch:
    """Judged items; ``clean`` says of which the clean plate, a flat grey, is known."""
    source, mask = random_batch(count)
    edited = source.clone()
    for index in range(count):
        edited[index][mask[index] > 0] = 60 * index % 255
    plates = {} if clean is None else {"clean_BHW3": torch.full_like(source, 128), "has_clean_B": clean}
    return Batch(source, edited, mask, label_B=torch.tensor([0.0, 1.0, 1 / 3, 1.0][:count]), **plates)


def made(*, defect_weight: float = 0.0, **changes: Any) -> DiscriminatorObjective:
    """One whose adapters do something: their second factor starts at 0."""
    objective = DiscriminatorObjective(parts(), replace(CONFIG, **changes), defect_weight=defect_weight)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in objective.network.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return objective


def gradients(objective: DiscriminatorObjective, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = objective.networks().trained_parameters()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(named[name]) if value is None else value for name, value in zip(named, found, strict=True)}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) < 1e-5, name


@pytest.mark.parametrize("trained_parts", [(), ("conv_in", "down_blocks.0")])
def test_loss_and_gradients_equal_the_formula(trained_parts: tuple[str, ...]) -> None:
    objective, batch = made(trained_parts=trained_parts), items(4)
    found = objective.loss(batch)
    terms = []
    for index in range(4):
        edited, source = (pixels[index].permute(2, 0, 1)[None].float() / 127.5 - 1 for pixels in (batch.target_BHW3, batch.source_BHW3))
        small = torch.tensor(
            [[float((batch.mask_BHW[index, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] > 127).any()) for x in range(8)] for y in range(8)]
        )
        latents = [objective.parts.vae.encode(picture).latent_dist.mean * 0.13025 for picture in (edited, source)]
        logit = objective.network(latents[0], small[None, None], latents[1], objective.parts.prompt).logits_B[0]
        probability, label = 1 / (1 + torch.exp(-logit)), batch.label_B[index]
        terms.append(-(label * torch.log(probability) + (1 - label) * torch.log(1 - probability)))
    expected = torch.stack(terms).mean()
    assert found.count == 4
    assert float((found.total - expected).abs().detach()) < 1e-5
    assert_equal(gradients(objective, found.total), gradients(objective, expected))


def test_a_batch_is_the_mean_of_its_items() -> None:
    objective, batch = made(), items(4)
    together = objective.loss(batch)
    mean = torch.stack([objective.loss(batch.part(slice(place, place + 1))).total for place in range(4)]).mean()
    assert float((together.total - mean).abs().detach()) < 1e-5
    assert_equal(gradients(objective, together.total), gradients(objective, mean))
    assert torch.equal(objective.loss(batch).total, together.total), "nothing is random"


@pytest.mark.parametrize("trained_parts", [(), ("conv_in",)])
def test_gradient_reaches_what_is_trained_and_nothing_else(trained_parts: tuple[str, ...]) -> None:
    objective = made(trained_parts=trained_parts)
    objective.loss(items(2)).total.backward()
    trained = objective.networks().trained_parameters()
    assert isinstance(objective, Objective)
    assert set(trained) == {f"discriminator.{name}" for name in objective.network.trained_state()}
    assert all(parameter.grad is not None for parameter in trained.values())
    reached = {f"discriminator.{name}" for name, value in objective.network.named_parameters() if value.grad is not None}
    assert reached == set(trained)
    assert any("conv_in" in name for name in reached) == bool(trained_parts)
    for network in (objective.parts.unet, objective.parts.vae):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())


def test_a_step_lowers_the_loss() -> None:
    objective, batch = made(), items(3)
    optimizer = torch.optim.SGD(objective.networks().trained_parameters().values(), lr=1e-2)
    before = objective.loss(batch).total
    before.backward()
    optimizer.step()
    assert float(objective.loss(batch).total.detach()) < float(before.detach()) - 1e-4


def test_first_weights_come_from_the_seed() -> None:
    states = [DiscriminatorObjective(parts(), CONFIG, seed=seed).trained_state() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_calibration_is_fitted_on_held_out_logits_and_stored(tmp_path: Path, kind: Any) -> None:
    save_model(parts(), tmp_path / "base")
    objective = DiscriminatorObjective(parts(model=str(tmp_path / "base")), CONFIG)
    rng = np.random.default_rng(0)
    true = rng.normal(size=2000)
    labels = (rng.uniform(size=2000) < 1 / (1 + np.exp(-true))).astype(np.float64)
    report = objective.calibrate(3 * true, labels, kind)
    assert report["calibrated_cross_entropy"] < report["cross_entropy"] - 0.05
    assert report["calibrated_calibration_error"] < 0.03 < report["calibration_error"]
    stored = objective.config.calibration
    if kind == "temperature":
        assert isinstance(stored, Temperature)
        assert stored.temperature == pytest.approx(3, rel=0.15)
    else:
        assert isinstance(stored, Isotonic)
    batch = items(3)
    objective.save(tmp_path / "own")
    loaded = Discriminator(tmp_path / "own", device="cpu")
    with torch.no_grad():
        logits = objective.logits(batch).numpy()
    judged = loaded.judge(list(batch.target_BHW3.numpy()), list(batch.source_BHW3.numpy()), list(batch.mask_BHW.numpy()))
    np.testing.assert_allclose([item.logit for item in judged], logits, atol=1e-4)
    np.testing.assert_allclose([item.probability for item in judged], stored(logits), atol=1e-4)
    assert loaded.calibrated


def test_what_is_saved_after_a_step_scores_the_same(tmp_path: Path) -> None:
    save_model(parts(), tmp_path)
    objective, batch = made(trained_parts=("conv_in",)), items(3)
    objective.config = replace(objective.config, base=None)
    objective.loss(batch).total.backward()
    torch.optim.SGD(objective.networks().trained_parameters().values(), lr=1e-2).step()
    objective.save(tmp_path / "discriminator")
    with torch.no_grad():
        logits = objective.logits(batch).numpy()
    judged = Discriminator(tmp_path, device="cpu").judge(*(list(x.numpy()) for x in (batch.target_BHW3, batch.source_BHW3, batch.mask_BHW)))
    np.testing.assert_allclose([item.logit for item in judged], logits, atol=1e-4)


def test_a_checkpoint_comes_back_or_is_refused() -> None:
    one, other = made(), DiscriminatorObjective(parts(), CONFIG)
    state = {name: value.clone() for name, value in one.trained_state().items()}
    other.load_trained_state(state)
    assert torch.equal(one.loss(items(2)).total, other.loss(items(2)).total)
    state.popitem()
    with pytest.raises(UsageError, match="another objective or network: missing discriminator"):
        other.load_trained_state(state)


def test_under_bfloat16_the_loss_stays_in_float32() -> None:
    objective, batch = made(), items(2)
    exact = objective.loss(batch).total
    with torch.autocast("cpu", torch.bfloat16):
        half = objective.loss(batch).total
    assert half.dtype == torch.float32
    assert float(half.detach()) == pytest.approx(float(exact.detach()), rel=5e-2)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(UsageError, match="activation is softplus"):
        DiscriminatorObjective(parts(), replace(CONFIG, activation="softplus"))
    with pytest.raises(UsageError, match="the batch has no label_B"):
        made().loss(replace(items(1), label_B=None))
    small = items(1)
    with pytest.raises(UsageError, match="pictures are 32 x 64; this discriminator looks at 64 x 64"):
        made().loss(Batch(small.source_BHW3[:, :32], small.target_BHW3[:, :32], small.mask_BHW[:, :32], label_B=small.label_B))
