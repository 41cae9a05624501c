"""What makes the networks faster without changing what they mean: memory layout, compilation, the autoencoder's number format."""

from __future__ import annotations

import copy
import math
from typing import Any, Final

import torch

from core.conditioning import downsampling_factor
from core.device import placed
from core.eraser import CompileMode

LEAST_VAE_PSNR: Final = 40.0
"""dB between the autoencoder's float32 and low-precision reconstruction of the probe; below it float32 stays."""
_PROBE_SIDE: Final = 256


def compile_network(unet: Any, mode: CompileMode) -> Any:
    """The UNet compiled by ``torch.compile``; the same object where ``mode`` is ``off`` or ``blocks``.

    ``blocks`` compiles one transformer block and uses it for all of them: ready in seconds. ``full`` compiles the whole network for long
    jobs. ``graphs`` also replays it as CUDA graphs, for batches so small that launching kernels takes longer than running them
    (performance notes: 1,860 launches a call). A batch size that was not seen yet is compiled anew.
    """
    if mode == "blocks":
        unet.compile_repeated_blocks(fullgraph=True)
    elif mode in {"full", "graphs"}:
        unet.compile(fullgraph=True, mode="reduce-overhead" if mode == "graphs" else None)
    return unet


@torch.inference_mode()
def settle_vae(vae: Any, wanted: torch.dtype) -> tuple[Any, float]:
    """A float32 autoencoder in ``wanted`` if that keeps its pictures, else as it is; and the PSNR in dB of ``wanted`` against float32.

    Both formats encode and decode a probe picture; ``wanted`` is taken where the results differ by no less than ``LEAST_VAE_PSNR``. An
    autoencoder that overflows in float16, as SDXL's own does, stays in float32.
    """
    if wanted == torch.float32:
        return vae, math.inf
    device = next(vae.parameters()).device
    probe_13HW = probe_picture(_PROBE_SIDE // downsampling_factor(vae) * downsampling_factor(vae)).to(device)
    exact = _round_trip(vae, probe_13HW)
    low = placed(copy.deepcopy(vae), device, wanted, channels_last=False)
    error = float((exact.clamp(-1, 1) - _round_trip(low, probe_13HW).float().clamp(-1, 1)).square().mean())
    if not math.isfinite(error):
        return vae, -math.inf
    psnr = 10 * math.log10(4 / error) if error else math.inf
    return (low if psnr >= LEAST_VAE_PSNR else vae), psnr


def _round_trip(vae: Any, picture: torch.Tensor) -> torch.Tensor:
    return vae.decode(vae.encode(picture.to(vae.dtype)).latent_dist.mode()).sample


def probe_picture(side: int) -> torch.Tensor:
    """A picture (1, 3, side, side) in [-1, 1] with slopes, edges and fine texture, the same everywhere."""
    axis = torch.linspace(-1, 1, side)
    slope = torch.stack([axis[None].expand(side, side), axis[:, None].expand(side, side), (axis[None] * axis[:, None])])
    noise = torch.randn((3, side, side), generator=torch.Generator().manual_seed(0)) * 0.1
    checks = ((torch.arange(side)[:, None] // 16 + torch.arange(side)[None] // 16) % 2).float() * 0.6 - 0.3
    return (slope * 0.6 + checks + noise).clamp(-1, 1)[None]
