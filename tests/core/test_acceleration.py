"""Every setting that makes the networks faster leaves their results where plain float32 puts them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.acceleration import LEAST_VAE_PSNR, compile_network, probe_picture, settle_vae
from core.eraser import CompileMode
from core.model_card import OBJECTCLEAR, ModelCard
from core.prompts import PromptEmbeddings
from core.remover import Remover
from tests.random_models import random_batch, random_object_token, random_prompt, random_unet, random_vae, scheduler

CARD = ModelCard(steps=2)


def erase(
    card: ModelCard = CARD, *, mode: CompileMode = "off", channels_last: bool = False, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    unet, vae = random_unet().to(dtype), random_vae()
    if channels_last:
        unet, vae = (network.to(memory_format=torch.channels_last) for network in (unet, vae))
    token = random_object_token() if card.object_token != "none" else None
    prompt = random_prompt()
    prompt = PromptEmbeddings(prompt.tokens_1TD.to(dtype), prompt.pooled_1P.to(dtype))
    made = Remover(compile_network(unet, mode), vae, scheduler("euler"), prompt, card, object_token=token)
    result = made.erase(*random_batch(2), [1, 2])
    return result.latents_BLhw


def test_channels_last_is_the_same() -> None:
    assert float((erase(channels_last=True) - erase()).abs().max()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocks", "full"])
@pytest.mark.parametrize("card", [CARD, replace(OBJECTCLEAR, steps=2)])
def test_compiled_networks_are_the_same(mode: CompileMode, card: ModelCard) -> None:
    assert float((erase(card, mode=mode) - erase(card)).abs().max()) < 1e-4


def test_compiled_blocks_are_the_same() -> None:
    compiled = compile_network(random_unet(), "blocks")
    blocks = [module for module in compiled.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert float((erase(mode="blocks") - erase()).abs().max()) < 1e-4


def test_bfloat16_is_near_float32() -> None:
    exact, rough = erase(), erase(dtype=torch.bfloat16)
    assert float((rough - exact).abs().mean() / exact.abs().mean()) < 0.05
    assert rough.dtype == torch.float32, "the scheduler's own arithmetic stays in float32"


def test_an_autoencoder_that_bears_bfloat16_goes_there() -> None:
    vae = random_vae()
    settled, psnr = settle_vae(vae, torch.bfloat16)
    assert psnr >= LEAST_VAE_PSNR
    assert settled.dtype == torch.bfloat16
    assert vae.dtype == torch.float32


def test_an_autoencoder_that_does_not_stays_in_float32() -> None:
    vae = random_vae()
    # what SDXL's does in float16: activations beyond 65,504
    vae.decoder.conv_in.weight.data *= 1e8
    settled, psnr = settle_vae(vae, torch.float16)
    assert settled is vae
    assert settled.dtype == torch.float32
    assert psnr < LEAST_VAE_PSNR


def test_float32_is_not_probed() -> None:
    vae = random_vae()
    settled, psnr = settle_vae(vae, torch.float32)
    assert settled is vae
    assert psnr == float("inf")


def test_the_probe_is_a_picture() -> None:
    probe = probe_picture(64)
    assert probe.shape == (1, 3, 64, 64)
    assert torch.equal(probe, probe_picture(64))
    assert -1 <= float(probe.min()) < -0.9
    assert 0.9 < float(probe.max()) <= 1
