"""ObjectClear's object token: what is to be removed, seen by CLIP, in the place of the word "object" in the prompt.

The prompt is "remove the instance of object"; with the start token the word stands at index 5. Its text embedding is replaced by a
projection of the image embedding of the object on black (ObjectClear, section 4.1, and its released code). The other tokens stay.

Legend for shape suffixes: B batch, H W picture sides in pixels, T D tokens and width of the prompt, E width of the image embedding.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

PROMPT: Final = "remove the instance of object"
TOKEN_INDEX: Final = 5
BOX_PADDING: Final = 0.1
_CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)


class FuseBlock(nn.Module):
    """Layer norm, two linear layers with GELU between, and, where widths agree, a residual."""

    def __init__(self, width_in: int, width: int, *, residual: bool) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(width_in)
        self.fc1 = nn.Linear(width_in, width)
        self.fc2 = nn.Linear(width, width)
        self._residual = residual

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., width) of (..., width_in)."""
        hidden = self.fc2(F.gelu(self.fc1(self.layernorm(features))))
        return hidden + features if self._residual else hidden


class FuseModule(nn.Module):
    """From an image embedding (B, E) to a prompt token (B, D); 14.17 M parameters at D = 2048, E = 768 (ObjectClear's code)."""

    def __init__(self, embed_dim: int, embed_dim_img: int) -> None:
        super().__init__()
        self.mlp1 = FuseBlock(embed_dim_img, embed_dim, residual=False)
        self.mlp2 = FuseBlock(embed_dim, embed_dim, residual=True)
        self.layer_norm = nn.LayerNorm(embed_dim)

    def forward(self, embedding_BE: torch.Tensor) -> torch.Tensor:
        """The token (B, D)."""
        return self.layer_norm(self.mlp2(self.mlp1(embedding_BE)))


@dataclass(frozen=True, slots=True)
class ObjectToken:
    """The image encoder (CLIP vision tower with projection) and the fuse module of one model, on one device.

    Attributes:
        encoder: ``CLIPVisionModelWithProjection``.
        fuse: from its embedding to a token.
        crop_box: whether the encoder sees a padded box around the object instead of the whole frame; the published weights were trained
            with the whole frame, in which a small object takes few pixels.
    """

    encoder: Any
    fuse: FuseModule
    crop_box: bool = False

    def tokens(self, tokens_BTD: torch.Tensor, source_B3HW: torch.Tensor, mask_B1HW: torch.Tensor) -> torch.Tensor:
        """The prompt's tokens (B, T, D) with each item's object at ``TOKEN_INDEX``; a new tensor.

        Args:
            tokens_BTD: the embedded prompt, one row an item.
            source_B3HW: pictures in [-1, 1].
            mask_B1HW: 1 where the object is, else 0.
        """
        pixels_B3SS = object_pixels(source_B3HW, mask_B1HW, int(self.encoder.config.image_size), crop_box=self.crop_box)
        embedding_BE = self.encoder(pixels_B3SS.to(self.encoder.dtype)).image_embeds
        fused_BD = self.fuse(embedding_BE.to(self.fuse.layer_norm.weight.dtype))
        tokens_BTD = tokens_BTD.clone()
        tokens_BTD[:, TOKEN_INDEX] = fused_BD.to(tokens_BTD.dtype)
        return tokens_BTD


def object_pixels(source_B3HW: torch.Tensor, mask_B1HW: torch.Tensor, size: int, *, crop_box: bool = False) -> torch.Tensor:
    """What the image encoder sees: (B, 3, size, size), the object on black, squashed to a square, normalised as CLIP wants it.

    Pixels are brought to [0, 1] before the mask is applied, in training and inference alike, so that the background is black in both (the
    reference multiplies pixels in [-1, 1] at inference, which makes it mid-grey, and dark parts of the object lighter than black).
    """
    pixels_B3HW = (source_B3HW.float() + 1) / 2 * (mask_B1HW >= 0.5).float()
    if crop_box:
        views = [_squashed(view[None], size) for view in (_boxed(p, m) for p, m in zip(pixels_B3HW, mask_B1HW, strict=True))]
        pixels_B3SS = torch.cat(views)
    else:
        pixels_B3SS = _squashed(pixels_B3HW, size)
    mean, std = (torch.tensor(values, device=pixels_B3SS.device).view(1, 3, 1, 1) for values in (_CLIP_MEAN, _CLIP_STD))
    return (pixels_B3SS - mean) / std


def _squashed(pixels_B3HW: torch.Tensor, size: int) -> torch.Tensor:
    if pixels_B3HW.shape[-2:] == (size, size):
        return pixels_B3HW
    return F.interpolate(pixels_B3HW, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _boxed(pixels_3HW: torch.Tensor, mask_1HW: torch.Tensor) -> torch.Tensor:
    """The square around the object, padded by ``BOX_PADDING`` of its side on each side, on black beyond the picture's edge."""
    rows, columns = (mask_1HW[0] >= 0.5).nonzero(as_tuple=True)
    if not len(rows):
        return pixels_3HW
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    side = max(bottom - top, right - left)
    side += 2 * max(1, round(side * BOX_PADDING))
    y, x = (top + bottom - side) // 2, (left + right - side) // 2
    height, width = pixels_3HW.shape[-2:]
    padding = (max(0, -x), max(0, x + side - width), max(0, -y), max(0, y + side - height))
    return F.pad(pixels_3HW[:, max(0, y) : y + side, max(0, x) : x + side], padding)


def save_fuse_module(fuse: FuseModule, folder: Path) -> None:
    """Writes ObjectClear's ``postfuse_module/``: ``config.json`` and the weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"_class_name": "PostfuseModule", "embed_dim": fuse.mlp1.fc1.out_features, "embed_dim_img": fuse.mlp1.fc1.in_features}
    (folder / "config.json").write_text(json.dumps(sizes, indent=2) + "\n")
    state = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in fuse.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")


def new_fuse_module(image_encoder: Path, width: int) -> FuseModule:
    """An untrained module between a CLIP model's folder and prompts of ``width``; always with the same weights."""
    from core.checkpoints import read_json

    inward = int(read_json(image_encoder / "config.json").get("projection_dim", 512))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FuseModule(width, inward)
