"""The autoencoder of the embedded model, trained from nothing on a processor: ``python -m training.tiny_vae --help``.

It is SDXL's class (``AutoencoderKL``) with its four latent channels, without attention so that any size is cheap, and with sides divided by
four instead of eight: it learns colour and form in minutes (25.4 dB after 17). At an eighth, sixteen channels are grey after 12 (21 dB).

Two phases. First encoder and decoder learn together; then latents get mean 0 and variance 1, the encoder is frozen, and the decoder learns
on alone, against a patch discriminator. A remover can be trained on the latents as soon as the first phase is over: they stay as they are.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from core.conditioning import image_batch
from core.errors import UsageError
from training.script import exit_status
from training.tiny_photos import PhotoPool

logger = logging.getLogger(__name__)

VAE_CONFIG: Final[dict[str, Any]] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [32, 64, 128],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": 256,
    "scaling_factor": 1.0,
    "force_upcast": False,
}
CROP: Final = 128
FIRST_CROP: Final = 64
"""Of the first half of the first phase: a quarter of the work a step, and steps are what counts while there is no texture yet."""
BATCH: Final = 8
KL_WEIGHT: Final = 5e-4
"""Of the mean over latent elements; it sets how much noise the latents bear."""
HALVED_EVERY: Final = 4
"""One step in so many decodes latents of half the size to a picture of half the size (see ``reconstruction``)."""
ADVERSARIAL_WEIGHT: Final = 0.4
LATENT_NOISE: Final = 0.1
PYRAMID_LEVELS: Final = 4
RATE: Final = 1.2e-3
DISCRIMINATOR_RATE: Final = 4e-4
WARM_UP: Final = 200
AVERAGE_DECAY: Final = 0.999
WRITE_EVERY_S: Final = 150.0
STATE_FILE: Final = "state.pt"


def new_vae() -> Any:
    """The untrained autoencoder."""
    return AutoencoderKL.from_config(VAE_CONFIG)


class PatchDiscriminator(nn.Module):
    """Logits (B, 1, H/8, W/8), higher where a patch of (B, 3, H, W) looks like a photo (Isola et al. 2017, section 3.2.2)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for inside, outside in itertools.pairwise(widths):
            layers += [nn.utils.parametrizations.spectral_norm(nn.Conv2d(inside, outside, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, 1, 1))

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(pixels_B3HW)
        return logits


def laplacian_pyramid(pixels_B3HW: torch.Tensor, levels: int = PYRAMID_LEVELS) -> list[torch.Tensor]:
    """Details of ``levels`` scales, each half as large as the one before, and last the small picture that is left.

    Sides must be multiples of 2 ** ``levels``.
    """
    details = []
    for _ in range(levels):
        small = F.avg_pool2d(pixels_B3HW, 2)
        details.append(pixels_B3HW - F.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False))
        pixels_B3HW = small
    return [*details, pixels_B3HW]


def picture_loss(decoded_B3HW: torch.Tensor, pixels_B3HW: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the pictures and of every level of their Laplacian pyramids; float32 of pictures in about [-1, 1].

    In a plain mean the large even parts of a photo outweigh its texture; here every scale counts alike.
    """
    levels = zip(laplacian_pyramid(decoded_B3HW), laplacian_pyramid(pixels_B3HW), strict=True)
    return sum((F.l1_loss(ours, theirs) for ours, theirs in levels), F.l1_loss(decoded_B3HW, pixels_B3HW))


def reconstruction(vae: Any, pixels_B3HW: torch.Tensor, *, halved: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a sampled reconstruction: (picture loss, Kullback-Leibler term per latent element).

    Args:
        halved: latents of half the size are decoded and compared with the picture of half the size. Latents that mean the same at every
            scale have little in their high frequencies, where a diffusion network is weakest (Skorokhodov et al. 2025, "Improving the
            diffusability of autoencoders", section 4).
    """
    posterior = vae.encode(pixels_B3HW).latent_dist
    latents_BLhw = posterior.sample()
    if halved:
        latents_BLhw, pixels_B3HW = F.avg_pool2d(latents_BLhw, 2), F.avg_pool2d(pixels_B3HW, 2)
    decoded_B3HW = vae.decode(latents_BLhw).sample.float()
    return picture_loss(decoded_B3HW, pixels_B3HW), posterior.kl().float().mean() / posterior.mean[0].numel()


@torch.no_grad()
def whiten(vae: Any, pixels_B3HW: torch.Tensor) -> None:
    """Builds mean 0 and variance 1 per latent channel into the 1x1 convolutions, so that ``scaling_factor`` is 1.

    Args:
        pixels_B3HW: a sample of the training photos, in [-1, 1].
    """
    latents_BLhw = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels_B3HW.split(8)])
    shift_L = latents_BLhw.mean(dim=(0, 2, 3))
    scale_L = latents_BLhw.std(dim=(0, 2, 3)).clamp_min(1e-3)
    count, inward, outward = len(shift_L), vae.quant_conv, vae.post_quant_conv
    outward.bias.add_((outward.weight[:, :, 0, 0] * shift_L).sum(dim=1))
    outward.weight.mul_(scale_L.view(1, count, 1, 1))
    inward.weight[:count].div_(scale_L.view(count, 1, 1, 1))
    inward.bias[:count].sub_(shift_L).div_(scale_L)
    inward.bias[count:].sub_(2.0 * scale_L.log())


@dataclass(frozen=True, slots=True)
class Quality:
    """Of reconstructions of held-out crops: PSNR in dB, and energy of the finest details over that of the photos (1: as sharp)."""

    psnr: float
    sharpness: float


@torch.no_grad()
def reconstruct(vae: Any, pixels_B3HW: torch.Tensor) -> torch.Tensor:
    """decode(encode(x)) in [-1, 1], of the posterior's mean."""
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1) for part in pixels_B3HW.split(4)]
    return torch.cat(parts)


def judge(decoded_B3HW: torch.Tensor, pixels_B3HW: torch.Tensor) -> Quality:
    """How near reconstructions (in [-1, 1]) are to the photos."""
    error_B = ((decoded_B3HW - pixels_B3HW) / 2).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    ours, theirs = (laplacian_pyramid(value, 1)[0].abs().mean() for value in (decoded_B3HW, pixels_B3HW))
    return Quality(float((-10.0 * error_B.log10()).mean()), float(ours / theirs))


@dataclass
class Training:
    """The networks, optimisers and clock of one run, over any number of restarts.

    Attributes:
        output: folder that gets ``vae/`` in diffusers layout, and the state.
        minutes: of both phases together, of processor time per thread.
        joint_share: the first phase's part of them.
    """

    output: Path
    minutes: float
    joint_share: float = 0.5
    seed: int = 0
    step: int = 0
    seconds: float = 0.0
    frozen: bool = False
    """Whether the first phase is over."""
    vae: Any = field(init=False)
    discriminator: PatchDiscriminator = field(init=False)
    average: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.vae = new_vae().to(memory_format=torch.channels_last)
        self.discriminator = PatchDiscriminator()
        self.average = {name: value.detach().clone() for name, value in self.vae.state_dict().items()}
        path = self.output / STATE_FILE
        state = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
        if state:
            self.step, self.seconds, self.frozen = int(state["step"]), float(state["seconds"]), bool(state["frozen"])
            self.vae.load_state_dict(state["vae"])
            self.discriminator.load_state_dict(state["discriminator"])
            self.average = state["average"]
        self._start_optimizers()
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.judge_optimizer.load_state_dict(state["judge_optimizer"])

    def _start_optimizers(self) -> None:
        for part in (self.vae.encoder, self.vae.quant_conv):
            part.requires_grad_(not self.frozen)
        self.trained = [parameter for parameter in self.vae.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
        self.judge_optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=DISCRIMINATOR_RATE, betas=(0.5, 0.9), weight_decay=0.0)

    @property
    def progress(self) -> float:
        """Share of the minutes that are spent, 0 to 1."""
        return min(1.0, self.seconds / (60 * self.minutes)) if self.minutes > 0 else 1.0

    def crop(self, largest: int) -> int:
        """Side in pixels of the crops that are trained on now."""
        return min(largest, FIRST_CROP) if self.progress < self.joint_share / 2 else largest

    def phase_rate(self) -> float:
        """The learning rate over its peak: flat with a warm-up, and falling to a twentieth in the last two fifths of each phase."""
        done = (self.progress - self.joint_share) / (1 - self.joint_share) if self.frozen else self.progress / self.joint_share
        return min(1.0, (self.step + 1) / WARM_UP) * min(1.0, max(0.05, (1 - done) / 0.4)) * (0.5 if self.frozen else 1.0)

    def train_step(self, pixels_B3HW: torch.Tensor) -> dict[str, float]:
        """One step on photos in [-1, 1]; returns the losses."""
        # a step's noise is its own, so that a restart changes nothing
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        pixels_B3HW = pixels_B3HW.contiguous(memory_format=torch.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * self.phase_rate()
        with torch.autocast("cpu", torch.bfloat16):
            loss, losses, decoded_B3HW = self._adversarial(pixels_B3HW) if self.frozen else self._joint(pixels_B3HW)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        if decoded_B3HW is not None:
            losses["discriminator"] = self._judge_step(decoded_B3HW.detach(), pixels_B3HW)
        self.step += 1
        self._update_average()
        return losses

    def _joint(self, pixels_B3HW: torch.Tensor) -> tuple[torch.Tensor, dict[str, float], None]:
        picture, kl = reconstruction(self.vae, pixels_B3HW, halved=self.step % HALVED_EVERY == 0)
        return picture + KL_WEIGHT * kl, {"picture": float(picture.detach()), "kl": float(kl.detach())}, None

    def _adversarial(self, pixels_B3HW: torch.Tensor) -> tuple[torch.Tensor, dict[str, float], torch.Tensor]:
        with torch.no_grad():
            latents_BLhw = self.vae.encode(pixels_B3HW).latent_dist.mode().float()
            # stands for the remover's error
            latents_BLhw += LATENT_NOISE * torch.rand(len(latents_BLhw), 1, 1, 1) * torch.randn_like(latents_BLhw)
        decoded_B3HW = self.vae.decode(latents_BLhw).sample.float()
        picture = picture_loss(decoded_B3HW, pixels_B3HW)
        self.discriminator.requires_grad_(False)
        fooled = -self.discriminator(decoded_B3HW).float().mean()
        # both gradients made equal at the decoder's output (Esser et al. 2021, section 3.1, there at its last layer)
        ours, theirs = (torch.autograd.grad(loss, decoded_B3HW, retain_graph=True)[0].norm() for loss in (picture, fooled))
        weight = float((ours / (theirs + 1e-8)).clamp(max=10.0)) * ADVERSARIAL_WEIGHT
        losses = {"picture": float(picture.detach()), "fooled": float(fooled.detach()), "weight": weight}
        return picture + weight * fooled, losses, decoded_B3HW

    def _judge_step(self, decoded_B3HW: torch.Tensor, pixels_B3HW: torch.Tensor) -> float:
        self.discriminator.requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            real, made = (self.discriminator(pictures).float() for pictures in (pixels_B3HW, decoded_B3HW))
        loss = F.relu(1 - real).mean() + F.relu(1 + made).mean()
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.judge_optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        current = [value.detach() for value in self.vae.state_dict().values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    def freeze(self, sample_B3HW: torch.Tensor) -> None:
        """Ends the first phase: the averaged weights are taken, whitened on a sample of the photos, and the encoder is frozen."""
        self.vae.load_state_dict(self.average)
        whiten(self.vae, sample_B3HW)
        self.average = {name: value.detach().clone() for name, value in self.vae.state_dict().items()}
        self.frozen = True
        self._start_optimizers()

    def averaged(self, sample_B3HW: torch.Tensor) -> Any:
        """An autoencoder with the averaged weights, and whitened latents in the first phase, too."""
        vae = new_vae().eval().requires_grad_(False)
        vae.load_state_dict(self.average)
        if not self.frozen:
            whiten(vae, sample_B3HW)
        return vae

    def save(self) -> None:
        """Writes the state in one move, so that a killed run never leaves half a file."""
        self.output.mkdir(parents=True, exist_ok=True)
        networks = {name: getattr(self, name).state_dict() for name in ("vae", "discriminator", "optimizer", "judge_optimizer")}
        clock = {"step": self.step, "seconds": self.seconds, "frozen": self.frozen}
        partial = self.output / f".{STATE_FILE}"
        torch.save({**networks, **clock, "average": self.average}, partial)
        partial.replace(self.output / STATE_FILE)


def save_vae(vae: Any, folder: Path) -> None:
    """Writes an autoencoder in half precision in diffusers layout; each file is replaced in one move."""
    fresh = folder.with_name(f".{folder.name}-{os.getpid()}")
    vae.half().save_pretrained(fresh)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(fresh.iterdir()):
        path.replace(folder / path.name)
    fresh.rmdir()


def contact_sheet(photos_B3HW: torch.Tensor, decoded_B3HW: torch.Tensor, path: Path) -> None:
    """A PNG with the photos above and their reconstructions below; both in [-1, 1]."""
    rows = [torch.cat(list(pictures), dim=-1) for pictures in (photos_B3HW, decoded_B3HW)]
    sheet_HW3 = torch.cat(rows, dim=-2).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    cv2.imwrite(str(path), np.ascontiguousarray(sheet_HW3[..., ::-1]))


def prefetched(pool: PhotoPool, training: Training, largest: int, count: int) -> Generator[torch.Tensor]:
    """Endless batches of crops in [-1, 1], made in a thread; what is in a batch depends on the seed, the step and the crops' size."""
    step = training.step
    with ThreadPoolExecutor(max_workers=1) as threads:
        waiting = [threads.submit(pool.batch, training.crop(largest), count, (training.seed, step + ahead)) for ahead in range(2)]
        while True:
            pixels_BHW3 = waiting.pop(0).result()
            step += 1
            waiting.append(threads.submit(pool.batch, training.crop(largest), count, (training.seed, step + 1)))
            yield image_batch(torch.from_numpy(pixels_BHW3))


def train(photos: Path, training: Training, *, crop: int = CROP, batch: int = BATCH, judged: int = 256) -> Quality:
    """Trains to the end of the time; writes the state and ``vae/`` every few minutes. Returns the held-out quality at the end.

    Args:
        photos: folder of pictures, as ``training.tiny_photos.PhotoPool`` takes it.
        crop, batch: largest side of the training crops in pixels, and how many are in a step.
        judged: side of the held-out crops, and of those that the latents are whitened on.
    """
    pool, held_out = PhotoPool(photos), PhotoPool(photos, held_out=True)
    sample_B3HW = image_batch(torch.from_numpy(pool.batch(judged, 16, (training.seed, 0, 1))))
    judged_B3HW = image_batch(torch.from_numpy(held_out.batch(judged, 12, (0, 0, 2), plain=True)))
    quality, sums, written = Quality(0.0, 0.0), dict[str, float](), training.seconds
    for pixels_B3HW in prefetched(pool, training, crop, batch):
        started = time.process_time()
        if not training.frozen and training.progress >= training.joint_share:
            training.freeze(sample_B3HW)
        for name, value in training.train_step(pixels_B3HW).items():
            sums[name] = sums.get(name, 0.0) + value / 100
        # of the processor, not of the clock: who shares it with others trains longer, not less
        training.seconds += (time.process_time() - started) / torch.get_num_threads()
        if training.step % 100 == 0:
            logger.info("step %d, %.0f s, %s", training.step, training.seconds, ", ".join(f"{n} {v:.4f}" for n, v in sums.items()))
            sums = {}
        done = training.progress >= 1.0
        if done or training.seconds - written > WRITE_EVERY_S:
            training.save()
            vae = training.averaged(sample_B3HW)
            decoded_B3HW = reconstruct(vae, judged_B3HW)
            quality = judge(decoded_B3HW, judged_B3HW)
            logger.info("step %d: held-out PSNR %.2f dB, sharpness %.2f", training.step, quality.psnr, quality.sharpness)
            contact_sheet(judged_B3HW[:6], decoded_B3HW[:6], training.output / "reconstructions.png")
            save_vae(vae, training.output / "vae")
            written = training.seconds
        if done:
            break
    return quality


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m training.tiny_vae", description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG and PNG files; those with transparency are cut-outs")
    parser.add_argument("--output", type=Path, required=True, help="gets vae/, reconstructions.png and the state, from which it goes on")
    parser.add_argument("--minutes", type=float, default=90.0, help="processor time per thread in all, over restarts")
    parser.add_argument("--joint-share", type=float, default=0.5, help="part of it after which the encoder is frozen")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    return exit_status(partial(_run, options))


def _run(options: argparse.Namespace) -> None:
    if not 0 < options.joint_share < 1:
        raise UsageError(f"--joint-share is {options.joint_share}; it must be between 0 and 1")
    if options.minutes <= 0:
        raise UsageError(f"--minutes is {options.minutes}; it must be above 0")
    options.output.mkdir(parents=True, exist_ok=True)
    train(options.photos, Training(options.output, options.minutes, options.joint_share, options.seed))


if __name__ == "__main__":
    raise SystemExit(main())
