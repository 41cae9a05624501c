"""Autoencoders with written weights: their latents are what they are said to be, in any picture and after half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core.conditioning import decode_latents, downsampling_factor, encode_latents, image_batch, pixel_batch
from training.written_vae import COLOUR_FACTOR, PIXEL_FACTOR, PIXEL_LATENTS, colour_vae, pixel_vae

PIXELS, COLOURS = pixel_vae(), colour_vae()


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), low=st.integers(0, 200), reach=st.integers(20, 55), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_a_cells_latents_are_its_pixels(seed: int, low: int, reach: int, rows: int, columns: int) -> None:
    shape = (2, rows * PIXEL_FACTOR, columns * PIXEL_FACTOR, 3)
    pictures_BHW3 = torch.from_numpy(np.random.default_rng(seed).integers(low, low + reach, shape, dtype=np.uint8))
    posterior = PIXELS.encode(image_batch(pictures_BHW3)).latent_dist
    values_B3HW = pictures_BHW3.permute(0, 3, 1, 2).double()
    deviation, mean = torch.std_mean(values_B3HW, dim=(1, 2, 3), keepdim=True, correction=0)
    wanted = F.pixel_unshuffle(F.pixel_unshuffle((values_B3HW - mean) / deviation, 2), 2)
    assert posterior.mean.shape == (2, PIXEL_LATENTS, rows, columns)
    assert float((posterior.mean - wanted).abs().max()) < 0.01
    assert float(posterior.std.max()) < 1e-5, "nothing is drawn"


@torch.no_grad()
def test_a_plain_picture_has_pixel_latents_of_nothing() -> None:
    assert float(encode_latents(PIXELS, torch.full((1, 3, 16, 16), 0.5)).abs().max()) < 1e-3


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), low=st.integers(0, 255), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_a_cells_latents_are_its_mean_colour_and_decode_to_it(seed: int, low: int, rows: int, columns: int) -> None:
    shape = (2, rows * COLOUR_FACTOR, columns * COLOUR_FACTOR, 3)
    pictures_BHW3 = torch.from_numpy(np.random.default_rng(seed).integers(low, 256, shape, dtype=np.uint8))
    image_B3HW = image_batch(pictures_BHW3)
    latents_BLhw = encode_latents(COLOURS, image_B3HW)
    colours_B3hw = F.avg_pool2d(image_B3HW, COLOUR_FACTOR)
    torch.testing.assert_close(latents_BLhw, colours_B3hw * 2, atol=1e-4, rtol=0)
    assert float(COLOURS.encode(image_B3HW).latent_dist.std.max()) < 1e-5, "nothing is drawn"
    decoded = decode_latents(COLOURS, latents_BLhw)
    torch.testing.assert_close(decoded, F.interpolate(colours_B3hw, scale_factor=COLOUR_FACTOR), atol=1e-4, rtol=0)
    again = encode_latents(COLOURS, decoded)
    torch.testing.assert_close(again, latents_BLhw, atol=2e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("make", "factor"), [(pixel_vae, PIXEL_FACTOR), (colour_vae, COLOUR_FACTOR)])
def test_half_precision_keeps_the_weights_and_costs_a_level_at_most(make: Callable[[], Any], factor: int) -> None:
    vae = make()
    picture = image_batch(torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)))
    plain = encode_latents(vae, picture)
    stored = {name: value.half().float() for name, value in vae.state_dict().items()}
    vae.load_state_dict(stored)
    # one level of 255 is 0.0157 of a scaled latent of colour
    assert float((encode_latents(vae, picture) - plain).abs().max()) < 0.005
    rounded = encode_latents(vae.bfloat16(), picture).float()
    assert float((rounded - plain).abs().max()) < 0.02
    assert downsampling_factor(vae) == factor


@torch.no_grad()
def test_a_grey_picture_decodes_to_grey() -> None:
    grey = torch.full((1, 16, 16, 3), 128, dtype=torch.uint8)
    np.testing.assert_array_equal(pixel_batch(decode_latents(COLOURS, encode_latents(COLOURS, image_batch(grey)))).numpy(), grey.numpy())
