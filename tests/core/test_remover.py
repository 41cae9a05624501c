"""The remover: exact numbers of network calls from pure noise, items that do not know of each other, and ObjectClear's additions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from core.conditioning import build_conditioning, encode_latents, image_batch, mask_batch
from core.errors import UsageError
from core.model_card import OBJECTCLEAR, ModelCard
from core.remover import Erased, Remover
from core.sampler import Sampled, item_generators, normal_noise
from tests.core.test_reference import pipeline
from tests.random_models import random_batch, random_object_token, random_prompt, random_unet, random_vae, scheduler

RORSTEPS = ModelCard(steps=3)
CLEAR = replace(OBJECTCLEAR, steps=3)


def remover(card: ModelCard, name: str = "euler", **parts: Any) -> Remover:
    token = random_object_token() if card.object_token != "none" else None
    return Remover(random_unet(), random_vae(), scheduler(name), random_prompt(), card, **{"object_token": token, **parts})


def counted(made: Remover) -> list[torch.Tensor]:
    """The first argument of every call of the network from now on."""
    calls: list[torch.Tensor] = []
    made.unet.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    return calls


@pytest.mark.parametrize(("name", "steps"), [("lcm", 1), ("lcm", 4), ("lcm", 5), ("euler", 4), ("euler", 50), ("ddpm", 7)])
def test_steps_are_network_calls(name: str, steps: int) -> None:
    made = remover(ModelCard(steps=steps), name)
    calls = counted(made)
    result = made.erase(*random_batch(1), [5])
    assert len(calls) == result.calls == steps


@pytest.mark.parametrize("name", ["lcm", "euler"])
def test_the_start_is_pure_noise(name: str) -> None:
    """The first call's latents are the noise alone: the source, and with it the object, is not in them."""
    made = remover(RORSTEPS, name)
    calls = counted(made)
    made.erase(*random_batch(1), [5])
    noise = normal_noise((4, 8, 8), item_generators([5])) * made.scheduler.init_noise_sigma
    made.scheduler.set_timesteps(3)
    expected = made.scheduler.scale_model_input(noise, made.scheduler.timesteps[0])
    assert torch.equal(calls[0][:, :4], expected)
    if name == "lcm":
        assert made.scheduler.timesteps[0] == 999


@pytest.mark.parametrize("card", [RORSTEPS, CLEAR, replace(CLEAR, object_token="box"), replace(RORSTEPS, fusion="none")])
@pytest.mark.parametrize("name", ["lcm", "euler"])
def test_a_batch_of_8_equals_8_singles_in_any_order(card: ModelCard, name: str) -> None:
    made = remover(card, name)
    pictures, masks = random_batch(8)
    seeds = [1000 + index for index in range(8)]
    together = made.erase(pictures, masks, seeds)
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    turned = made.erase(pictures[order], masks[order], [seeds[index] for index in order])
    singles = [made.erase(pictures[[index]], masks[[index]], [seeds[index]]) for index in range(8)]
    for index in range(8):
        for other in (singles[index].latents_BLhw[0], turned.latents_BLhw[order.index(index)]):
            assert float((together.latents_BLhw[index] - other).abs().max()) < 1e-4
        off = (together.pixels_BHW3[index].int() - singles[index].pixels_BHW3[0].int()).abs()
        assert int(off.max()) <= 1
        if together.soft_BHW is not None:
            assert torch.equal(together.soft_BHW[index], singles[index].soft_BHW[0])
    assert len({tuple(item.flatten().tolist()[:4]) for item in together.latents_BLhw}) == 8


def test_a_result_is_a_function_of_item_and_seed() -> None:
    made = remover(RORSTEPS, "lcm")
    pictures, masks = random_batch(1)
    first, again, other = (made.erase(pictures, masks, [seed]) for seed in (1, 1, 2))
    assert torch.equal(first.pixels_BHW3, again.pixels_BHW3)
    assert not torch.equal(first.pixels_BHW3, other.pixels_BHW3)


def test_masked_conditioning_does_not_see_the_object_and_full_does() -> None:
    pictures, masks = random_batch(1)
    changed = torch.where(masks[..., None] > 0, 255 - pictures, pictures)
    masked = remover(RORSTEPS)
    assert torch.equal(masked.erase(pictures, masks, [1]).latents_BLhw, masked.erase(changed, masks, [1]).latents_BLhw)
    full = remover(replace(RORSTEPS, conditioning="full"))
    assert not torch.equal(full.erase(pictures, masks, [1]).latents_BLhw, full.erase(changed, masks, [1]).latents_BLhw)


@pytest.mark.parametrize("channels", [4, 8, 16])
def test_any_number_of_latent_channels(channels: int) -> None:
    unet, vae = random_unet(latent_channels=channels), random_vae(latent_channels=channels)
    result = Remover(unet, vae, scheduler("euler"), random_prompt(), RORSTEPS).erase(*random_batch(2), [1, 2])
    assert result.latents_BLhw.shape == (2, channels, 8, 8)
    assert result.pixels_BHW3.shape == (2, 64, 64, 3)


def test_one_encode_does_for_condition_and_reinjection() -> None:
    made = remover(CLEAR)
    encodes: list[int] = []
    made.vae.encoder.register_forward_pre_hook(lambda _, args: encodes.append(len(args[0])))
    made.erase(*random_batch(3), [1, 2, 3])
    assert encodes == [3]


def test_after_the_first_step_each_background_is_its_noised_source() -> None:
    made = remover(CLEAR)
    calls = counted(made)
    pictures, masks = random_batch(2)
    made.erase(pictures, masks, [7, 8])
    source, mask = image_batch(pictures), mask_batch(masks)
    conditioning = build_conditioning(made.vae, source, mask, kind="full")
    noise = normal_noise((4, 8, 8), item_generators([7, 8]))
    sampler = scheduler("euler")
    sampler.set_timesteps(3)
    noised = sampler.add_noise(encode_latents(made.vae, source), noise, sampler.timesteps[1].expand(2))
    sampler.step(torch.zeros_like(noise), sampler.timesteps[0], noise)
    expected = sampler.scale_model_input(noised, sampler.timesteps[1])
    inside = conditioning.mask_B1hw.expand(-1, 4, -1, -1) > 0
    assert not torch.equal(inside[0], inside[1])
    assert float((calls[1][:, :4] - expected)[~inside].abs().max()) < 1e-5
    assert float((calls[1][:, :4] - expected)[inside].abs().max()) > 1e-2


def test_one_step_with_reinjection_is_one_step() -> None:
    result = remover(replace(CLEAR, steps=1)).erase(*random_batch(2), [1, 2])
    assert result.calls == 1


def test_attention_fusion_gives_every_item_a_soft_mask_of_its_own_size() -> None:
    made = remover(CLEAR)
    pictures, masks = random_batch(2)
    result = made.erase(pictures, masks, [1, 2])
    assert result.soft_BHW is not None
    assert result.soft_BHW.shape == (2, 64, 64)
    assert 0 <= float(result.soft_BHW.min()) <= float(result.soft_BHW.max()) <= 1
    wide = torch.cat([pictures, pictures], dim=2), torch.cat([masks, masks], dim=2)
    assert made.erase(*wide, [1, 2]).soft_BHW.shape == (2, 64, 128)  # type: ignore[union-attr]


def test_fusion_changes_no_latents() -> None:
    results = [remover(replace(CLEAR, fusion=kind)).erase(*random_batch(2), [1, 2]) for kind in ("attention", "mask", "none")]  # type: ignore[arg-type]
    assert all(torch.equal(result.latents_BLhw, results[0].latents_BLhw) for result in results)
    assert results[1].soft_BHW is None
    assert results[2].soft_BHW is not None
    assert float(results[2].soft_BHW.min()) == 1


def test_guidance_is_one_call_of_both_branches() -> None:
    card = replace(CLEAR, null_branch=True, guidance_scale=2.5)
    made = remover(card, null_prompt=random_prompt(9))
    calls = counted(made)
    result = made.erase(*random_batch(2), [1, 2])
    assert [len(call) for call in calls] == [4, 4, 4]
    assert result.calls == 3
    assert result.soft_BHW is not None
    assert result.soft_BHW.shape[0] == 2
    plain = remover(CLEAR).erase(*random_batch(2), [1, 2])
    assert not torch.equal(plain.latents_BLhw, result.latents_BLhw)
    same = remover(replace(card, guidance_scale=1.0), null_prompt=random_prompt(9)).erase(*random_batch(2), [1, 2])
    assert torch.equal(plain.latents_BLhw, same.latents_BLhw)


@pytest.mark.parametrize(("strength", "calls"), [(0.99, 3), (1.0, 4)])
def test_reference_mode_equals_the_pipeline(strength: float, calls: int) -> None:
    pictures, masks = random_batch(2)
    theirs = pipeline("lcm")(
        prompt_embeds=random_prompt().tokens_1TD.expand(2, -1, -1),
        pooled_prompt_embeds=random_prompt().pooled_1P.expand(2, -1),
        image=(image_batch(pictures) + 1) / 2,
        mask_image=mask_batch(masks),
        height=64,
        width=64,
        num_inference_steps=4,
        strength=strength,
        guidance_scale=1.0,
        generator=item_generators([1, 2]),
        output_type="pt",
    ).images
    ours = remover(replace(RORSTEPS, steps=4), "lcm").reference(pictures, masks, [1, 2], strength=strength)
    assert ours.calls == calls
    expected = (theirs * 255).round().permute(0, 2, 3, 1)
    assert float((ours.pixels_BHW3 - expected).abs().max()) <= 1
    assert not torch.equal(ours.pixels_BHW3, remover(replace(RORSTEPS, steps=4), "lcm").erase(pictures, masks, [1, 2]).pixels_BHW3)


def test_guidance_by_hand() -> None:
    """With one step: scale times the difference of two unguided predictions."""

    def latents(scale: float, prompt: int) -> torch.Tensor:
        card = replace(RORSTEPS, steps=1, null_branch=True, guidance_scale=scale)
        made = Remover(random_unet(), random_vae(), scheduler("euler"), random_prompt(prompt), card, null_prompt=random_prompt(9))
        return made.erase(*random_batch(1), [1]).latents_BLhw

    prompted, null = latents(1.0, 0), latents(1.0, 9)
    assert float((latents(4.0, 0) - (null + 4 * (prompted - null))).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Remover(random_unet(), random_vae(latent_channels=8), scheduler("euler"), random_prompt(), RORSTEPS), "takes 17"),
        (lambda: remover(CLEAR, object_token=None), "no image encoder"),
        (lambda: remover(replace(RORSTEPS, guidance_scale=2.0)), "negative prompt"),
    ],
)
def test_parts_that_do_not_fit_are_named(make: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


def test_a_size_that_the_autoencoder_cannot_halve_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        remover(RORSTEPS).erase(*random_batch(1, side=60), [1])


def test_erased_is_what_it_says() -> None:
    result = remover(RORSTEPS).erase(*random_batch(2), [1, 2])
    assert isinstance(result, Erased)
    assert result.pixels_BHW3.dtype == torch.uint8
    assert result.pixels_BHW3.is_contiguous()


def test_the_card_says_which_layer_steers_the_fusion() -> None:
    first, last = remover(CLEAR), remover(replace(CLEAR, attention_layer=-1))
    softs = [made.erase(*random_batch(1), [5]).soft_BHW for made in (first, last)]
    assert softs[0] is not None
    assert softs[1] is not None
    assert not torch.equal(softs[0], softs[1])
    with pytest.raises(UsageError, match=r"attention_layer is 99; the network has \d+ cross-attention layers"):
        remover(replace(CLEAR, attention_layer=99))


def test_with_the_photos_texture_the_autoencoders_losses_are_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the source, and what the network changes of it: a network that leaves the latents alone leaves every byte alone."""
    made = remover(replace(CLEAR, texture="photo", fusion="mask"))
    pictures, masks = random_batch(2)
    changed = made.erase(pictures, masks, [1, 2]).pixels_BHW3
    monkeypatch.setattr(made, "_sample", lambda _source, _mask, conditioning, _seeds: Sampled(conditioning.source_latents_BLhw, 3))
    assert torch.equal(made.erase(pictures, masks, [1, 2]).pixels_BHW3, pictures)
    assert not torch.equal(changed, pictures)
