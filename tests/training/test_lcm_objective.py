"""Distillation: loss and gradients equal the formulas written out; the teacher is the untouched remover; the file merges exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, StableDiffusionXLInpaintPipeline

from core.diffusion import DiffusionEraser
from core.eraser import EraserSettings
from core.errors import UsageError
from core.lora import merge_lora
from core.model_card import ModelCard
from tests.random_models import SCHEDULE, random_batch, random_object_token, random_prompt, random_unet, random_vae
from training.lcm import LcmObjective, LcmSettings
from training.objective import Batch, LoraSettings, Objective
from training.remover_parts import RemoverParts, save_model

STREAM = 0x5DEECE66D
LORA = LoraSettings(rank=4, alpha=6.0)


def items(count: int, first_seed: int = 100) -> Batch:
    source, mask = random_batch(count)
    target = source.clone()
    target[mask > 0] = 128
    return Batch(source, target, mask, seeds_B=torch.arange(first_seed, first_seed + count))


def parts(prediction: str = "epsilon", *, token: bool = False) -> RemoverParts:
    return RemoverParts(
        unet=random_unet(),
        vae=random_vae(),
        scheduler=EulerDiscreteScheduler.from_config({**SCHEDULE, "prediction_type": prediction}),
        prompt=random_prompt(),
        card=ModelCard(size=64, object_token="frame" if token else "none", conditioning="full"),
        null_prompt=random_prompt(9),
        object_token=random_object_token() if token else None,
    )


def made(settings: LcmSettings | None = None, prediction: str = "epsilon", *, token: bool = False, **named: Any) -> LcmObjective:
    """One whose adapter does something: its second factor starts at 0."""
    objective = LcmObjective(parts(prediction, token=token), settings or LcmSettings(lora=LORA), **named)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in objective.parts.unet.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return objective


def gradients(objective: LcmObjective, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = objective.networks().trained_parameters()
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-4
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) < 1e-5, name


def by_formula(objective: LcmObjective, batch: Batch, teacher_prompt: Any = None) -> torch.Tensor:
    """LCM, item by item; the teacher is another network, which never had an adapter, and its branches are two calls."""
    made, chosen = objective.parts, objective.settings
    velocity = made.scheduler.config.prediction_type == "v_prediction"
    teacher, teacher_prompt = random_unet(), teacher_prompt or made.prompt
    betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, dim=0)

    def split(unet: Any, z: torch.Tensor, t: int, prompt: Any) -> tuple[torch.Tensor, torch.Tensor]:
        added = {"text_embeds": prompt.pooled_1P, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
        sample = torch.cat([z, small, seen], dim=1)
        out = unet(sample, t, encoder_hidden_states=prompt.tokens_1TD, added_cond_kwargs=added).sample
        alpha, sigma = kept[t].sqrt(), (1 - kept[t]).sqrt()
        if velocity:
            return alpha * z - sigma * out, sigma * z + alpha * out
        return (z - sigma * out) / alpha, out

    def consistent(z: torch.Tensor, t: int) -> torch.Tensor:
        s = 10.0 * t
        return 0.25 / (s**2 + 0.25) * z + s / (s**2 + 0.25) ** 0.5 * split(made.unet, z, t, made.prompt)[0]

    losses = []
    for index, seed in enumerate(batch.seeds_B.tolist()):
        source, target = (pixels[index].permute(2, 0, 1)[None].float() / 127.5 - 1 for pixels in (batch.source_BHW3, batch.target_BHW3))
        seen, clean = (made.vae.encode(picture).latent_dist.mean * 0.13025 for picture in (source, target))
        small = (batch.mask_BHW[index] > 127).float()[None, None, ::8, ::8]
        draws = {stream: torch.Generator().manual_seed(seed ^ (stream * STREAM)) for stream in (0, 1, 3)}
        noise = torch.randn(clean.shape[1:], generator=draws[0])[None]
        t = 20 * int(torch.randint(0, 50, (1,), generator=draws[1])) + 19
        s = max(t - 20, 0)
        z = kept[t].sqrt() * clean + (1 - kept[t]).sqrt() * noise
        with torch.no_grad():
            x, e = split(teacher, z, t, teacher_prompt)
            if chosen.guidance:
                low, high = chosen.guidance
                w = low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=draws[3]))
                x_null, e_null = split(teacher, z, t, made.null_prompt)
                x, e = x + w * (x - x_null), e + w * (e - e_null)
            goal = consistent(kept[s].sqrt() * x + (1 - kept[s]).sqrt() * e, s)
        d = consistent(z, t) - goal
        losses.append((d**2).mean() if chosen.loss == "l2" else ((d**2 + 0.001**2) ** 0.5 - 0.001).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("loss", "guidance"), [("huber", None), ("l2", None), ("huber", (3.0, 10.0))])
def test_loss_and_gradients_equal_the_formula(prediction: str, loss: Any, guidance: Any) -> None:
    objective, batch = made(LcmSettings(lora=LORA, loss=loss, guidance=guidance), prediction), items(3)
    found, expected = objective.loss(batch), by_formula(objective, batch)
    assert found.count == 3
    assert float((found.total - expected).abs().detach()) < 1e-5 * max(1.0, float(expected.detach()))
    mine, hers = gradients(objective, found.total), gradients(objective, expected)
    assert_equal(mine, hers)


def test_a_teachers_own_prompt_is_used() -> None:
    praise, batch = random_prompt(5), items(2)
    objective = made(LcmSettings(lora=LORA, guidance=(3.0, 3.0)), teacher_prompt=praise)
    found = float(objective.loss(batch).total.detach())
    assert found == pytest.approx(float(by_formula(objective, batch, praise).detach()), abs=1e-5)
    assert abs(found - float(by_formula(objective, batch).detach())) > 1e-4


def test_the_range_of_guidance_is_honoured() -> None:
    """With one w the loss is that w's; a range lies between, and is not the fixed 3 to 10 of the reference."""
    batch = items(1)
    losses = {w: float(made(LcmSettings(lora=LORA, guidance=w)).loss(batch).total.detach()) for w in ((0.0, 0.0), (1.0, 1.0), (1.0, 1.5))}
    plain = float(made(LcmSettings(lora=LORA)).loss(batch).total.detach())
    assert losses[(0.0, 0.0)] == pytest.approx(plain, abs=1e-6)
    assert len({round(value, 6) for value in losses.values()}) == 3


def test_the_teacher_takes_one_call_of_two_branches_and_has_no_adapter() -> None:
    objective = made(LcmSettings(lora=LORA, guidance=(3.0, 10.0)))
    seen: list[tuple[int, bool]] = []
    layer = next(module for module in objective.parts.unet.modules() if hasattr(module, "lora_A"))
    objective.parts.unet.register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), layer.disable_adapters)))
    objective.loss(items(3))
    assert seen == [(6, True), (3, False), (3, False)]


def test_schedule_and_scalings_are_those_of_the_samplers() -> None:
    """The teacher's step is diffusers' DDIM step, and the answer is what LCM's scheduler denoises to."""
    objective = made()
    kind = LCMScheduler.from_config(SCHEDULE)
    for timestep in (0, 19, 999):
        skip, out = kind.get_scalings_for_boundary_condition_discrete(timestep)
        scaled = timestep * objective.settings.timestep_scaling
        assert float(skip) == pytest.approx(0.25 / (scaled**2 + 0.25))
        assert float(out) == pytest.approx(scaled / (scaled**2 + 0.25) ** 0.5)
    ddim = DDIMScheduler.from_config({**SCHEDULE, "clip_sample": False, "set_alpha_to_one": False})
    ddim.set_timesteps(50)
    generator = torch.Generator().manual_seed(0)
    z, e = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    start = torch.tensor([519, 519])
    picture, noise = objective._split(z, start, e)
    signal, sigma = objective._levels(start - 20)
    assert float((ddim.step(e, 519, z).prev_sample - (signal * picture + sigma * noise)).abs().max()) < 1e-5


@pytest.mark.parametrize("token", [False, True])
def test_a_batch_is_the_mean_of_its_items(token: bool) -> None:
    """With networks in float64: in float32 some processors round a batch so differently that late timesteps show it."""
    objective, batch = made(LcmSettings(lora=LORA, guidance=(1.0, 2.0)), token=token), items(4)
    for network in (objective.parts.unet, objective.parts.vae):
        network.double()
    if objective.parts.object_token is not None:
        objective.parts.object_token.encoder.double()
        objective.parts.object_token.fuse.double()
    together = objective.loss(batch)
    singles = [objective.loss(batch.part(slice(place, place + 1))).total for place in range(4)]
    assert len({round(float(single.detach()), 5) for single in singles}) == 4
    assert float((together.total - torch.stack(singles).mean()).abs().detach()) < 1e-5
    assert_equal(gradients(objective, together.total), gradients(objective, torch.stack(singles).mean()))


def test_gradient_reaches_the_adapter_and_nothing_else() -> None:
    objective = made(LcmSettings(lora=LORA, guidance=(1.0, 2.0)), token=True)
    objective.loss(items(2)).total.backward()
    assert isinstance(objective, Objective)
    trained = objective.networks().trained_parameters()
    assert all(".lora_" in name for name in trained)
    assert all(parameter.grad is not None for parameter in trained.values())
    assert sum(float(parameter.grad.abs().max()) > 0 for parameter in trained.values()) > 0.95 * len(trained)
    assert all(parameter.grad is None for name, parameter in objective.parts.unet.named_parameters() if ".lora_" not in name)
    for network in objective.networks().frozen.values():
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradient_checkpointing_changes_no_gradient(checkpointed: bool) -> None:
    """The adapter is off and on again between the student's passes; the backward pass must run it with the adapter."""
    objective, batch = made(), items(2)
    objective.parts.unet.train()
    if checkpointed:
        objective.parts.unet.enable_gradient_checkpointing()
    expected = by_formula(made(), batch)
    reference = made()
    assert float((objective.loss(batch).total - expected).abs().detach()) < 1e-5
    assert_equal(gradients(objective, objective.loss(batch).total), gradients(reference, by_formula(reference, batch)))


def test_a_step_lowers_the_loss() -> None:
    objective, batch = made(LcmSettings(lora=LORA, loss="l2")), items(2)
    optimizer = torch.optim.SGD(objective.networks().trained_parameters().values(), lr=1e-2)
    before = objective.loss(batch).total
    before.backward()
    optimizer.step()
    assert float(objective.loss(batch).total.detach()) < float(before.detach()) * 0.999


def test_the_merged_file_equals_the_live_adapter(tmp_path: Path) -> None:
    """Also with alpha unlike the rank, for which the file has no place; in core's loader, in the eraser and in diffusers."""
    objective = made()
    objective.save(tmp_path / "lora")
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]
    prompt = random_prompt()
    call = {
        "sample": torch.randn(1, 9, 8, 8, generator=torch.Generator().manual_seed(0)),
        "timestep": 500,
        "encoder_hidden_states": prompt.tokens_1TD,
        "added_cond_kwargs": {"text_embeds": prompt.pooled_1P, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])},
    }
    live = objective.parts.unet(**call).sample.detach()
    merged = random_unet()
    before = merged(**call).sample
    layers = merge_lora(merged, tmp_path / "lora")
    assert layers == len(objective.networks().trained_parameters()) / 2 > 40
    assert float((merged(**call).sample - live).abs().max()) < 1e-5 < 1e-2 < float((before - live).abs().max())
    save_model(parts(), tmp_path / "base")
    eraser = DiffusionEraser(str(tmp_path / "base"), EraserSettings(device="cpu", lcm_lora=str(tmp_path / "lora")))
    assert float((eraser.remover.unet(**call).sample - live).abs().max()) < 1e-5
    source, mask = random_batch(1)
    assert eraser.remover.erase(source, mask, [0]).calls == 4
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(tmp_path / "base", local_files_only=True)
    pipeline.load_lora_weights(tmp_path / "lora", local_files_only=True)
    assert float((pipeline.unet(**call).sample - live).abs().max().detach()) < 1e-5


def test_a_checkpoint_comes_back() -> None:
    one, batch = made(), items(2)
    other = LcmObjective(parts(), LcmSettings(lora=LORA))
    assert not torch.equal(one.loss(batch).total, other.loss(batch).total)
    other.load_trained_state({name: value.clone() for name, value in one.trained_state().items()})
    assert torch.equal(one.loss(batch).total, other.loss(batch).total)
    with pytest.raises(UsageError, match="another objective or network"):
        other.load_trained_state({})


def test_under_bfloat16_the_loss_stays_in_float32() -> None:
    objective, batch = made(), items(2)
    exact = float(objective.loss(batch).total.detach())
    with torch.autocast("cpu", torch.bfloat16):
        half = objective.loss(batch).total
    assert half.dtype == torch.float32
    assert float(half.detach()) == pytest.approx(exact, rel=5e-2)


def test_what_cannot_be_distilled_is_refused() -> None:
    with pytest.raises(UsageError, match=r"points is 30, which must be a divisor of 1000"):
        LcmSettings(points=30)
    with pytest.raises(UsageError, match="the lower one first"):
        LcmSettings(guidance=(3.0, 1.0))
    with pytest.raises(UsageError, match="no null prompt to lead it away from"):
        LcmObjective(replace(parts(), null_prompt=None), LcmSettings(guidance=(1.0, 2.0)))
    with pytest.raises(UsageError, match="asks for an object token"):
        LcmObjective(replace(parts(token=True), object_token=None))
    zero = {**SCHEDULE, "rescale_betas_zero_snr": True}
    with pytest.raises(UsageError, match="nothing can be distilled there; use v_prediction"):
        LcmObjective(replace(parts(), scheduler=DDIMScheduler.from_config(zero)))
    velocity = DDIMScheduler.from_config({**zero, "prediction_type": "v_prediction"})
    objective = LcmObjective(replace(parts(), scheduler=velocity))
    assert torch.isfinite(objective.loss(items(4)).total)
