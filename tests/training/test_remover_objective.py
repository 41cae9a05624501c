"""The remover's loss and gradients equal the papers' formulas written out here, and depend on nothing but each item and its seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UsageError
from core.model_card import ModelCard
from tests.random_models import SCHEDULE, random_batch, random_object_token, random_prompt, random_unet, random_vae
from training.objective import Batch, LoraSettings, LossModule, Objective
from training.remover import RemoverObjective
from training.remover_parts import RemoverParts
from training.remover_settings import OBJECTCLEAR, ROREM, RemoverSettings

STREAM = 0x5DEECE66D
LORA = LoraSettings(rank=4, alpha=8.0)


def items(count: int, first_seed: int = 100) -> Batch:
    """Items whose effect masks reach below their objects."""
    source, mask = random_batch(count)
    effect = torch.maximum(mask, mask.roll(10, dims=1))
    target = source.clone()
    target[mask > 0] = 128
    return Batch(source, target, mask, effect, seeds_B=torch.arange(first_seed, first_seed + count))


def parts(prediction: str = "epsilon", *, token: bool = False, null: bool = False) -> RemoverParts:
    return RemoverParts(
        unet=random_unet(),
        vae=random_vae(),
        scheduler=EulerDiscreteScheduler.from_config({**SCHEDULE, "prediction_type": prediction}),
        prompt=random_prompt(),
        card=ModelCard(size=64, steps=2),
        null_prompt=random_prompt(9) if null else None,
        object_token=random_object_token() if token else None,
    )


def gradients(objective: RemoverObjective, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = objective.networks().trained_parameters()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(named[name]) if value is None else value for name, value in zip(named, found, strict=True)}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) < tolerance, name


def draws(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed ^ (stream * STREAM))


def reference(
    made: RemoverParts, batch: Batch, *, kind: str, tokens: torch.Tensor, pooled: torch.Tensor, gain: float = 1.0
) -> dict[str, torch.Tensor]:
    """RORem, section 3, item by item: predictions, goals, masks at latent size, and alpha bar. The target's latents are times ``gain``."""
    betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    rows: list[tuple[torch.Tensor, ...]] = []
    for index, seed in enumerate(batch.seeds_B.tolist()):
        source, target = (pixels[index].permute(2, 0, 1)[None].float() / 127.5 - 1 for pixels in (batch.source_BHW3, batch.target_BHW3))
        mask = (batch.mask_BHW[index] > 127).float()[None, None]
        seen = source * (1 - mask) if kind == "masked" else source
        mean = {name: made.vae.encode(picture).latent_dist.mean * 0.13025 for name, picture in (("seen", seen), ("target", target))}
        mean["target"] = mean["target"] * gain
        small = mask[..., ::8, ::8]
        noise = torch.randn(mean["target"].shape[1:], generator=draws(seed, 0))[None]
        t = torch.randint(0, 1000, (1,), generator=draws(seed, 1))
        a = kept[t].view(1, 1, 1, 1)
        noisy = a.sqrt() * mean["target"] + (1 - a).sqrt() * noise
        goal = noise if made.scheduler.config.prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * mean["target"]
        added = {"text_embeds": pooled[index : index + 1], "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
        sample = torch.cat([noisy, small, mean["seen"]], dim=1)
        predicted = made.unet(sample, t, encoder_hidden_states=tokens[index : index + 1], added_cond_kwargs=added).sample
        rows.append((predicted, goal, small, a))
    return dict(zip(("predicted", "goal", "mask", "kept"), (torch.cat(column) for column in zip(*rows, strict=True)), strict=True))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["masked", "full"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_equal_the_formula(prediction: str, kind: Any, weighted: bool) -> None:
    made, batch = parts(prediction), items(3)
    chosen = RemoverSettings(conditioning=kind, min_snr_gamma=2.0 if weighted else None, mask_weight=3.0 if weighted else 1.0)
    objective = RemoverObjective(made, chosen)
    found = objective.loss(batch)
    prompt = made.prompt.tokens_1TD.expand(3, -1, -1), made.prompt.pooled_1P.expand(3, -1)
    by_hand = reference(made, batch, kind=kind, tokens=prompt[0], pooled=prompt[1])
    squared = (by_hand["predicted"] - by_hand["goal"]) ** 2
    if weighted:
        cells = torch.where(by_hand["mask"] > 0, 3.0, 1.0).expand_as(squared)
        ratio = (by_hand["kept"] / (1 - by_hand["kept"])).flatten()
        over = ratio if prediction == "epsilon" else ratio + 1
        weight = torch.minimum(ratio, torch.tensor(2.0)) / over
        expected = ((squared * cells).sum(dim=(1, 2, 3)) / cells.sum(dim=(1, 2, 3)) * weight).mean()
    else:
        expected = squared.mean()
    assert found.count == 3
    assert float((found.total - expected).abs().detach()) < 1e-5
    assert float(found.parts["denoising"]) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert_equal(gradients(objective, found.total), gradients(objective, expected))


def test_cells_under_the_effect_mask_may_count_more() -> None:
    made = parts("v_prediction")
    batch = items(3)
    effect_BHW = batch.mask_BHW.clone()
    effect_BHW[:, 40:56, 20:60] = 255
    batch = replace(batch, effect_mask_BHW=effect_BHW)
    objective = RemoverObjective(made, RemoverSettings(mask_weight=30.0, effect_weight=20.0))
    found = objective.loss(batch)
    prompt = made.prompt.tokens_1TD.expand(3, -1, -1), made.prompt.pooled_1P.expand(3, -1)
    by_hand = reference(made, batch, kind="masked", tokens=prompt[0], pooled=prompt[1])
    squared = (by_hand["predicted"] - by_hand["goal"]) ** 2
    effect = F.max_pool2d((effect_BHW > 127).float()[:, None], 8)
    cells = torch.where(by_hand["mask"] > 0, 30.0, torch.where(effect > 0, 20.0, 1.0)).expand_as(squared)
    expected = ((squared * cells).sum(dim=(1, 2, 3)) / cells.sum(dim=(1, 2, 3))).mean()
    assert float((found.total - expected).abs().detach()) < 1e-5
    without = replace(batch, effect_mask_BHW=None)
    plain = RemoverObjective(made, RemoverSettings(mask_weight=30.0)).loss(without).total
    assert torch.equal(objective.loss(without).total, plain)


def test_objectclears_loss_and_gradients_equal_the_formula() -> None:
    """Noise, plus 0.01 of the attention loss of methods.md's form, with the object's token at place 5; UNet and fuse module."""
    made, batch = parts(token=True), items(3)
    objective = RemoverObjective(made, OBJECTCLEAR)
    found = objective.loss(batch)
    pixels = (batch.source_BHW3.permute(0, 3, 1, 2).float() / 255) * (batch.mask_BHW > 127)[:, None].float()
    small = F.interpolate(pixels, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    normal = (small - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    embedding = made.object_token.encoder(normal).image_embeds
    fuse = made.object_token.fuse
    first = fuse.mlp1.fc2(F.gelu(fuse.mlp1.fc1(fuse.mlp1.layernorm(embedding))))
    second = first + fuse.mlp2.fc2(F.gelu(fuse.mlp2.fc1(fuse.mlp2.layernorm(first))))
    object_tokens = fuse.layer_norm(second)
    plain = made.prompt.tokens_1TD.expand(3, -1, -1)
    tokens = torch.cat([plain[:, :5], object_tokens[:, None], plain[:, 6:]], dim=1)
    layers = {name: module for name, module in made.unet.named_modules() if name.endswith(".attn2")}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen[name].append(
                _probabilities(module, args[0] if args else kwargs["hidden_states"], kwargs["encoder_hidden_states"])
            ),
            with_kwargs=True,
        )
        for name, module in layers.items()
    ]
    by_hand = reference(made, batch, kind="full", tokens=tokens, pooled=made.prompt.pooled_1P.expand(3, -1))
    for hook in hooks:
        hook.remove()
    terms: list[torch.Tensor] = []
    for maps in seen.values():
        side = int(torch.cat(maps).shape[-1] ** 0.5)
        effect = (batch.effect_mask_BHW > 127).float()[:, None]
        inside = F.interpolate(effect, size=(side, side), mode="bilinear", antialias=True, align_corners=False)[:, 0].flatten(1) > 0.1
        terms += [(head[~here].mean() - head[here].mean() + 1) for item, here in zip(torch.cat(maps), inside, strict=True) for head in item]
    # every layer has as many heads and items here, so that one mean is the mean over layers
    assert len(layers) > 3
    attention = torch.stack(terms).mean()
    expected = ((by_hand["predicted"] - by_hand["goal"]) ** 2).mean() + 0.01 * attention
    assert float((found.total - expected).abs().detach()) < 1e-5
    assert float(found.parts["attention"]) == pytest.approx(float(attention.detach()), abs=1e-5)
    mine, hers = gradients(objective, found.total), gradients(objective, expected)
    assert_equal(mine, hers)
    assert float(max(value.abs().max() for name, value in mine.items() if name.startswith("fuse_module."))) > 1e-5


def _probabilities(module: Any, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(B, heads, N): softmax of q k / sqrt(width), key 5."""
    query, key = (x.unflatten(-1, (module.heads, -1)).transpose(1, 2) for x in (module.to_q(hidden), module.to_k(tokens)))
    return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)[..., 5]


@pytest.mark.parametrize("chosen", [ROREM, replace(OBJECTCLEAR, condition_dropout=0.5), RemoverSettings(lora=LORA)])
def test_a_batch_is_the_mean_of_its_items(chosen: RemoverSettings) -> None:
    batch = items(4)
    batch.mask_BHW[2] = 0
    objective = RemoverObjective(parts(token=True, null=True), chosen)
    together = objective.loss(batch)
    singles = [objective.loss(batch.part(slice(place, place + 1))) for place in range(4)]
    mean = torch.stack([single.total for single in singles]).mean()
    assert len({round(float(single.total.detach()), 6) for single in singles}) == 4
    assert float((together.total - mean).abs().detach()) < 1e-5
    assert_equal(gradients(objective, together.total), gradients(objective, mean))
    for name, value in together.parts.items():
        assert float(value) == pytest.approx(sum(float(single.parts[name]) for single in singles) / 4, abs=1e-5)


def test_seeds_are_all_the_randomness_there_is() -> None:
    objective = RemoverObjective(parts(token=True, null=True), replace(OBJECTCLEAR, condition_dropout=0.3))
    batch = items(2)
    torch.manual_seed(1)
    first = float(objective.loss(batch).total.detach())
    torch.manual_seed(2)
    assert float(objective.loss(batch, torch.Generator().manual_seed(5)).total.detach()) == first
    assert float(objective.loss(replace(batch, seeds_B=batch.seeds_B + 7)).total.detach()) != first
    unseeded = replace(batch, seeds_B=None)
    drawn = [float(objective.loss(unseeded, torch.Generator().manual_seed(seed)).total.detach()) for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(UsageError, match="no seeds_B, and no generator"):
        objective.loss(unseeded)


@pytest.mark.parametrize(
    ("chosen", "networks"), [(ROREM, {"unet"}), (OBJECTCLEAR, {"unet", "fuse_module"}), (RemoverSettings(lora=LORA), {"unet"})]
)
def test_gradient_reaches_what_is_trained_and_nothing_else(chosen: RemoverSettings, networks: set[str]) -> None:
    objective = RemoverObjective(parts(token=True), chosen)
    if chosen.lora:
        shake(objective)
    objective.loss(items(2)).total.backward()
    named = objective.networks()
    assert set(named.trained) == networks
    assert isinstance(objective, Objective)
    for network in named.frozen.values():
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    trained = named.trained_parameters()
    assert set(objective.trained_state()) == set(trained)
    # of cross-attention's and mid blocks' biases some have a zero gradient by nature, but none is left out
    assert all(parameter.grad is not None for parameter in trained.values())
    assert sum(float(parameter.grad.abs().max()) > 0 for parameter in trained.values()) > 0.95 * len(trained)
    if chosen.lora:
        assert all(".lora_" in name for name in trained)
        assert all(parameter.grad is None for name, parameter in objective.parts.unet.named_parameters() if ".lora_" not in name)


def shake(objective: RemoverObjective) -> None:
    """Adapters that do something: their second factor starts at 0."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in objective.parts.unet.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05


@pytest.mark.parametrize("chosen", [ROREM, OBJECTCLEAR, RemoverSettings(lora=LORA)])
def test_a_step_lowers_the_loss(chosen: RemoverSettings) -> None:
    objective, batch = RemoverObjective(parts(token=True), chosen), items(2)
    optimizer = torch.optim.SGD(objective.networks().trained_parameters().values(), lr=1e-2)
    before = objective.loss(batch).total
    before.backward()
    optimizer.step()
    assert float(objective.loss(batch).total.detach()) < float(before.detach()) - 1e-4


def test_a_dropped_condition_is_the_null_prompt_with_the_source() -> None:
    made, batch = parts(token=True, null=True), items(2)
    always = RemoverObjective(made, replace(OBJECTCLEAR, condition_dropout=1 - 1e-9))
    dropped = always.loss(batch)
    other = parts(token=True, null=True)
    expected = RemoverObjective(replace(other, prompt=other.null_prompt), RemoverSettings(conditioning="full")).loss(batch)
    assert float(dropped.parts["denoising"]) == pytest.approx(float(expected.total.detach()), abs=1e-6)
    assert float(dropped.parts["attention"]) == 0, "an object that is not named is not attended to"
    assert float((dropped.total - RemoverObjective(parts(token=True), OBJECTCLEAR).loss(batch).total).abs().detach()) > 1e-4
    changed = replace(batch, source_BHW3=255 - batch.source_BHW3)
    assert float((always.loss(changed).total - dropped.total).abs().detach()) > 1e-4


@settings(max_examples=5, deadline=None)
@given(st.sampled_from([0.1, 0.5, 0.9]))
def test_as_many_are_dropped_as_was_asked_for(share: float) -> None:
    from training.objective import uniform_draws

    seeds = list(range(1000))
    assert float((uniform_draws(seeds, 2) < share).float().mean()) == pytest.approx(share, abs=0.05)


def test_under_bfloat16_the_loss_and_the_autoencoder_stay_in_float32() -> None:
    objective, batch = RemoverObjective(parts(token=True), OBJECTCLEAR), items(2)
    exact = objective.loss(batch)
    seen: list[torch.dtype] = []
    hook = objective.parts.vae.encoder.conv_out.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        half = objective.loss(batch)
    hook.remove()
    assert set(seen) == {torch.float32}
    assert half.total.dtype == half.parts["attention"].dtype == torch.float32
    assert float(half.total.detach()) == pytest.approx(float(exact.total.detach()), rel=2e-2)
    half.total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in objective.networks().trained_parameters().values())


def test_a_checkpoint_comes_back_or_is_refused() -> None:
    batch = items(2)
    one = RemoverObjective(parts(), RemoverSettings(lora=LORA))
    shake(one)
    state = {name: value.clone() for name, value in one.trained_state().items()}
    other = RemoverObjective(parts(), RemoverSettings(lora=LORA))
    assert float((other.loss(batch).total - one.loss(batch).total).abs().detach()) > 1e-5
    other.load_trained_state(state)
    assert torch.equal(other.loss(batch).total, one.loss(batch).total)
    with pytest.raises(UsageError, match="the checkpoint is of another objective or network: missing unet") as caught:
        RemoverObjective(parts(), ROREM).load_trained_state(state)
    assert "\n" not in str(caught.value)


def test_a_module_for_ddp_has_the_same_gradients() -> None:
    objective, batch = RemoverObjective(parts(), ROREM), items(2)
    module = LossModule(objective)
    assert {id(p) for p in module.parameters()} == {id(p) for p in objective.networks().trained_parameters().values()}
    assert torch.equal(module(batch).total, objective.loss(batch).total)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mask_BHW": torch.zeros(2, 64, 32, dtype=torch.uint8)}, r"mask_BHW is uint8 \(2, 64, 32\); this batch needs uint8 \(2, 64, 64\)"),
        ({"target_BHW3": torch.zeros(2, 64, 64, 3)}, "target_BHW3 is float32"),
        ({"label_B": torch.tensor([0.5, 1.5])}, "labels go from 0"),
        ({"seeds_B": torch.tensor([-1, 2])}, "seeds are int64 from 0"),
        ({"source_BHW3": torch.zeros(2, 64, 64, dtype=torch.uint8)}, r"a batch needs \(B, H, W, 3\)"),
    ],
)
def test_batches_that_cannot_be_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        replace(items(2), **change)


def test_parts_that_cannot_work_are_refused() -> None:
    with pytest.raises(UsageError, match="no null prompt"):
        RemoverObjective(parts(), RemoverSettings(condition_dropout=0.1))
    with pytest.raises(UsageError, match="no image encoder and fuse module"):
        RemoverObjective(parts(), OBJECTCLEAR)
    with pytest.raises(UsageError, match="prediction_type is sample"):
        RemoverObjective(parts("sample"), ROREM)
    with pytest.raises(UsageError, match="needs effect_mask_BHW"):
        RemoverObjective(parts(token=True), OBJECTCLEAR).loss(replace(items(1), effect_mask_BHW=None))
    odd = items(1)
    cut = Batch(odd.source_BHW3[:, :60], odd.target_BHW3[:, :60], odd.mask_BHW[:, :60], seeds_B=odd.seeds_B)
    with pytest.raises(UsageError, match="both sides must be multiples of 8"):
        RemoverObjective(parts(), ROREM).loss(cut)
    with pytest.raises(UsageError, match="give targets that this UNet has"):
        RemoverObjective(parts(), RemoverSettings(lora=LoraSettings(targets=("nothing",))))
