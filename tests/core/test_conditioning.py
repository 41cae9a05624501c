"""The network's input: exact pixels, binary masks at latent size, and what each kind of conditioning lets the network see."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from core.conditioning import (
    build_conditioning,
    decode_latents,
    downsampling_factor,
    encode_latents,
    image_pixels,
    image_tensor,
    latent_mask,
    mask_tensor,
    unet_input,
)

MASKS = hnp.arrays(np.float32, (2, 1, 16, 24), elements=st.sampled_from([0.0, 1.0]), fill=st.just(0.0))


class MeanPool:
    """An autoencoder whose latents can be worked out by hand: means of 4 x 4 pixels."""

    config = SimpleNamespace(block_out_channels=[1, 1, 1], scaling_factor=0.5, latent_channels=3)
    dtype = torch.float32

    def encode(self, image: torch.Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: F.avg_pool2d(image, 4)))

    def decode(self, latents: torch.Tensor) -> Any:
        return SimpleNamespace(sample=F.interpolate(latents, scale_factor=4.0))


def test_all_pixel_values_come_back_exactly() -> None:
    pixels = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, axis=-1)
    tensor = image_tensor(pixels)
    assert tensor.shape == (1, 3, 16, 16)
    assert (float(tensor.min()), float(tensor.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(image_pixels(tensor), pixels)


def test_pixels_are_rounded_to_nearest_and_kept_in_range() -> None:
    values = torch.tensor([-5.0, -1.0, (99.6 / 127.5) - 1, (99.4 / 127.5) - 1, 1.0, 7.0])
    assert image_pixels(values.reshape(1, 1, 1, 6).expand(1, 3, 1, 6))[0, :, 0].tolist() == [0, 0, 100, 99, 255, 255]


def test_a_view_of_a_photo_is_no_problem_and_not_changed() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    before = photo.copy()
    np.testing.assert_array_equal(image_pixels(image_tensor(photo[2:10, ::-1])), photo[2:10, ::-1])
    np.testing.assert_array_equal(photo, before)


def test_masks_become_zero_and_one() -> None:
    assert mask_tensor(np.array([[0, 127, 128, 255]], np.uint8)).tolist() == [[[[0.0, 0.0, 1.0, 1.0]]]]


@settings(max_examples=50, deadline=None)
@given(MASKS, st.sampled_from([2, 4, 8]))
def test_latent_masks_are_binary_and_as_their_rules_say(mask: np.ndarray, factor: int) -> None:
    nearest, largest = (latent_mask(torch.from_numpy(mask), factor, rule) for rule in ("nearest", "max"))
    cells = mask.reshape(2, 1, 16 // factor, factor, 24 // factor, factor)
    np.testing.assert_array_equal(largest.numpy(), cells.max(axis=(3, 5)))
    np.testing.assert_array_equal(nearest.numpy(), cells[:, :, :, 0, :, 0])


def test_masked_hides_the_object_and_full_shows_it() -> None:
    rng = np.random.default_rng(1)
    pixels = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 16, 24)).astype(np.float32))
    other, mask = pixels.clone(), torch.zeros(1, 1, 16, 24)
    mask[..., 4:12, 8:16] = 1.0
    other[..., 4:12, 8:16] = 0.9
    hidden, changed = (build_conditioning(MeanPool(), image, mask, kind="masked") for image in (pixels, other))
    assert torch.equal(hidden.source_latents_BLhw, changed.source_latents_BLhw)
    assert (hidden.source_latents_BLhw[..., 1:3, 2:4] == 0).all()
    shown, moved = (build_conditioning(MeanPool(), image, mask, kind="full") for image in (pixels, other))
    assert not torch.equal(shown.source_latents_BLhw, moved.source_latents_BLhw)
    torch.testing.assert_close(shown.source_latents_BLhw, F.avg_pool2d(pixels, 4) * 0.5)
    assert shown.mask_B1hw.tolist() == hidden.mask_B1hw.tolist()
    assert shown.mask_B1hw.sum() == 4
    assert shown.time_ids_B6.tolist() == [[16, 24, 0, 0, 16, 24]]


def test_the_input_of_the_network_is_latents_mask_and_source() -> None:
    mask = torch.zeros(2, 1, 8, 8)
    mask[1] = 1.0
    conditioning = build_conditioning(MeanPool(), torch.full((2, 3, 8, 8), 0.5), mask, kind="full")
    sample = unet_input(torch.full((2, 3, 2, 2), 9.0), conditioning)
    assert sample.shape == (2, 7, 2, 2)
    assert sample[:, :, 0, 0].tolist() == [[9, 9, 9, 0, 0.25, 0.25, 0.25], [9, 9, 9, 1, 0.25, 0.25, 0.25]]


def test_latents_are_scaled_and_scaled_back() -> None:
    image = torch.full((1, 3, 8, 8), 0.3)
    assert downsampling_factor(MeanPool()) == 4
    torch.testing.assert_close(encode_latents(MeanPool(), image), torch.full((1, 3, 2, 2), 0.15))
    torch.testing.assert_close(decode_latents(MeanPool(), encode_latents(MeanPool(), image)), image)


@pytest.mark.parametrize(
    ("image", "mask", "says"),
    [((16, 22), (16, 22), "multiples of 4"), ((18, 16), (18, 16), "multiples of 4"), ((16, 16), (16, 24), "one size")],
)
def test_sizes_that_do_not_fit_are_refused(image: tuple[int, int], mask: tuple[int, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_conditioning(MeanPool(), torch.zeros(1, 3, *image), torch.zeros(1, 1, *mask), kind="masked")
