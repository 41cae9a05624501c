"""From pictures to the moments of a latent cache (``core.latent_cache``), by the preprocessing of training and inference.

Legend for shape suffixes: B batch, L latent channels, H W picture sides in pixels, h w latent sides, O orientations (as it is, mirrored).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch

from core.conditioning import (
    Conditioning,
    ConditioningKind,
    LatentMaskRule,
    downsampling_factor,
    image_batch,
    latent_mask,
    mask_batch,
    prefill,
    time_ids,
)
from core.errors import ItemError
from core.images import Pixels
from core.latent_cache import CachedMoments, StoredType

_ENCODER_PARTS: Final = ("encoder.", "quant_conv.")
_ENCODER_SETTINGS: Final = ("act_fn", "norm_num_groups", "scaling_factor")
"""Settings of an autoencoder that change its latents and leave no trace in its weights."""


def encode_moments(vae: Any, image_B3HW: torch.Tensor) -> torch.Tensor:
    """Means and log-variances, (B, 2 L, h, w) float32, of the latents of pictures in [-1, 1]; unscaled."""
    posterior = vae.encode(image_B3HW.to(vae.dtype)).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], dim=1).float()


def moment_latents(vae: Any, moments_B2Lhw: torch.Tensor) -> torch.Tensor:
    """Scaled posterior-mean latents, (B, L, h, w) float32: what ``core.conditioning.encode_latents`` gives of the same pictures."""
    return moments_B2Lhw.float().chunk(2, dim=1)[0] * float(vae.config.scaling_factor)


def moment_conditioning(
    vae: Any, moments_B2Lhw: torch.Tensor, mask_B1HW: torch.Tensor, *, mask_rule: LatentMaskRule = "nearest"
) -> Conditioning:
    """``core.conditioning.build_conditioning`` of conditioning pictures whose moments are there already; masks are of 0 and 1.

    Raises:
        ValueError: moments and masks are not of pictures of one size.
    """
    factor, (height, width) = downsampling_factor(vae), mask_B1HW.shape[-2:]
    rows, columns = moments_B2Lhw.shape[-2:]
    if (rows * factor, columns * factor) != (height, width):
        raise ValueError(f"cached moments are of pictures of {rows * factor} x {columns * factor}, the masks {height} x {width}")
    return Conditioning(
        mask_B1hw=latent_mask(mask_B1HW, factor, mask_rule).to(vae.dtype),
        source_latents_BLhw=moment_latents(vae, moments_B2Lhw).to(vae.dtype),
        time_ids_B6=time_ids(len(mask_B1HW), height, width, mask_B1HW.device),
    )


@torch.no_grad()
def encode_pictures(
    vae: Any,
    pictures: Mapping[str, Pixels],
    mask: Pixels,
    kind: ConditioningKind,
    *,
    fingerprint: str,
    dtype: StoredType = "float16",
    known: Mapping[str, np.ndarray] | None = None,
) -> CachedMoments:
    """The moments of an item's pictures in both orientations.

    Always two pictures a call of the network (one in both orientations), so that an item's moments do not depend on its neighbours.

    Args:
        pictures: (H, W, 3) uint8 RGB by name, one size; ``source`` must be among them.
        mask: (H, W) uint8, above 127 = remove.
        kind: of the conditioning picture; ``full`` is the source itself and adds none.
        fingerprint: ``vae_fingerprint`` of ``vae``.
        dtype: of the stored moments.
        known: moments, as this function found them, of pictures that another item has, too; they are taken and not encoded again.

    Raises:
        ItemError: the moments are not finite in that dtype.
    """
    device = next(vae.parameters()).device
    masks_BHW = torch.from_numpy(np.stack([mask, mask[:, ::-1]])).to(device)
    found = {name: moments for name, moments in (known or {}).items() if name in pictures}
    made = {id(pictures[name]): moments for name, moments in found.items()}
    for name in (*pictures, *((kind,) if kind != "full" else ())):
        pixels = pictures.get(name)
        if pixels is not None and id(pixels) in made:
            found[name] = made[id(pixels)]
            continue
        shown = pictures["source"] if pixels is None else pixels
        image_B3HW = image_batch(torch.from_numpy(np.stack([shown, shown[:, ::-1]])).to(device))
        if pixels is None:
            image_B3HW = _conditioning_picture(image_B3HW, mask_batch(masks_BHW), kind)
        stored_O2Lhw = encode_moments(vae, image_B3HW).to(getattr(torch, dtype)).cpu().numpy()
        if not np.isfinite(stored_O2Lhw).all():
            raise ItemError("encode", "not_finite", f"the latents of {name} are not finite in {dtype}; use an autoencoder in float32")
        found[name] = stored_O2Lhw
        if pixels is not None:
            made[id(pixels)] = stored_O2Lhw
    return CachedMoments(fingerprint, found)


def _conditioning_picture(source_B3HW: torch.Tensor, mask_B1HW: torch.Tensor, kind: ConditioningKind) -> torch.Tensor:
    """What ``core.conditioning.build_conditioning`` encodes; a test holds the two together."""
    return prefill(source_B3HW, mask_B1HW) if kind == "prefilled" else source_B3HW * (1 - mask_B1HW)


def vae_fingerprint(vae: Any) -> str:
    """32 hex digits of what decides an autoencoder's latents: its encoder in float32. Another decoder leaves it as it is."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr([(name, vae.config.get(name)) for name in _ENCODER_SETTINGS]).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(_ENCODER_PARTS):
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_vae(model: str, device: torch.device | str = "cpu") -> Any:
    """A model's autoencoder, frozen, in float32 (SDXL's overflows in half precision).

    Args:
        model: as ``core.model_files.find_model`` takes it.

    Raises:
        UsageError: there is no such model, or its autoencoder is missing or broken.
    """
    from core.components import load_network
    from core.model_files import find_model

    return load_network(find_model(model).vae, "vae", torch.float32).to(device)


@lru_cache(maxsize=4)
def model_vae_fingerprint(model: str) -> str:
    """``vae_fingerprint`` of a model's autoencoder; worked out once a process. Raises UsageError as ``load_vae``."""
    return vae_fingerprint(load_vae(model))
