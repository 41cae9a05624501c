"""The object token: one pixel range, token 5 and no other, the published module's shape, and the box crop where a model asks for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.conditioning import image_batch, mask_batch
from core.object_token import TOKEN_INDEX, FuseModule, object_pixels
from tests.random_models import IMAGE_WIDTH, TOKENS, WIDTH, random_batch, random_object_token, random_prompt

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


def batch(count: int, side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    pictures, masks = random_batch(count, side)
    return image_batch(pictures), mask_batch(masks)


def test_the_background_is_black_and_the_object_keeps_its_colours() -> None:
    source, mask = batch(2)
    seen = object_pixels(source, mask, 64) * STD + MEAN
    pictures, _ = random_batch(2)
    expected = pictures.permute(0, 3, 1, 2) / 255 * mask
    assert float((seen - expected).abs().max()) < 1e-6
    assert float(seen.min()) > -1e-6


def test_the_frame_is_squashed_with_antialiasing() -> None:
    source, mask = image_batch(torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)), torch.ones(1, 1, 64, 96)
    seen = object_pixels(source, mask, 32)
    expected = (F.interpolate((source + 1) / 2, (32, 32), mode="bilinear", antialias=True, align_corners=False) - MEAN) / STD
    assert torch.equal(seen, expected)


def test_only_token_5_is_replaced_and_by_each_items_own_object() -> None:
    source, mask = batch(3)
    token = random_object_token()
    tokens = random_prompt().tokens_1TD.expand(3, -1, -1)
    before = tokens.clone()
    found = token.tokens(tokens, source, mask)
    assert torch.equal(tokens, before)
    others = [index for index in range(TOKENS) if index != TOKEN_INDEX]
    assert torch.equal(found[:, others], before[:, others])
    assert float((found[0, TOKEN_INDEX] - found[1, TOKEN_INDEX]).abs().max()) > 1e-3
    for index in range(3):
        alone = token.tokens(tokens[:1], source[index : index + 1], mask[index : index + 1])
        assert float((alone[0] - found[index]).abs().max()) < 1e-5


def test_what_is_outside_the_mask_does_not_matter() -> None:
    source, mask = batch(1)
    token, tokens = random_object_token(), random_prompt().tokens_1TD
    other = torch.where(mask > 0, source, -source)
    assert torch.equal(token.tokens(tokens, source, mask), token.tokens(tokens, other, mask))


def test_a_box_shows_a_small_object_larger() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 40:48, 50:56] = 1
    source = torch.ones(1, 3, 64, 64)
    frame, box = (object_pixels(source, mask, 32, crop_box=crop) * STD + MEAN for crop in (False, True))
    assert float(frame.mean()) == pytest.approx(8 * 6 / 64**2, rel=0.05)
    assert float(box.mean()) == pytest.approx(8 * 6 / 10**2, rel=0.05)
    assert float(box[0, 0, 16, 16]) > 0.99


@pytest.mark.parametrize("box", [(0, 0, 64, 64), (0, 30, 5, 64), (63, 63, 64, 64)])
def test_boxes_at_the_edge_are_padded_with_black(box: tuple[int, int, int, int]) -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., box[1] : box[3], box[0] : box[2]] = 1
    seen = object_pixels(torch.ones(1, 3, 64, 64), mask, 32, crop_box=True) * STD + MEAN
    assert seen.shape == (1, 3, 32, 32)
    assert float(seen[0, :, 0, 0].max()) < 0.3
    assert float(seen.max()) > 0.9


def test_an_empty_mask_gives_black() -> None:
    seen = object_pixels(torch.ones(1, 3, 64, 64), torch.zeros(1, 1, 64, 64), 32, crop_box=True) * STD + MEAN
    assert float(seen.abs().max()) < 1e-6


def test_the_fuse_module_has_the_published_size_and_names() -> None:
    with torch.device("meta"):
        module = FuseModule(2048, 768)
    assert sum(parameter.numel() for parameter in module.parameters()) == 14_173_696
    assert {name.rsplit(".", 1)[0] for name in module.state_dict()} == {
        *(f"mlp{block}.{part}" for block in (1, 2) for part in ("layernorm", "fc1", "fc2")),
        "layer_norm",
    }


def test_the_fuse_module_by_hand() -> None:
    module = random_object_token().fuse
    state = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return np.asarray(nn.GELU()(torch.from_numpy(x)))

    given = torch.randn(2, IMAGE_WIDTH, generator=torch.Generator().manual_seed(0))
    first = linear(gelu(linear(norm(given.double().numpy(), "mlp1.layernorm"), "mlp1.fc1")), "mlp1.fc2")
    second = linear(gelu(linear(norm(first, "mlp2.layernorm"), "mlp2.fc1")), "mlp2.fc2") + first
    expected = norm(second, "layer_norm")
    np.testing.assert_allclose(module(given).numpy(), expected, atol=1e-5)
    assert module(given).shape == (2, WIDTH)
