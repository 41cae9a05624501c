"""What scoring the eraser's own latents, without decoding and encoding them again, does to the discriminator's score.

    python -m benchmarks.latent_scoring --model MODEL --seeds 4

Every sample is erased with several seeds at the discriminator's size, and scored three times: as it is stored (decoded, pasted into the
photo, encoded: the honest score), decoded but not pasted, and as the sampler's latents. The table gives the distances from the honest
score. The eraser and the discriminator must share their autoencoder, as RORem's do; those of ``tiny`` do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from core.checkpoints import EMBEDDED, locate
from core.crops import CropRule, make_crop, paste, view_of
from core.diffusion import DiffusionEraser
from core.discriminator import Discriminator
from core.eraser import EraserSettings
from core.errors import UsageError
from core.images import decode_photo
from core.masks import decode_mask

SAMPLES = EMBEDDED["tiny"].parent / "samples"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of one erasure: as it is stored, decoded but not pasted into the photo, and as the sampler's latents."""

    honest: float
    decoded: float
    latents: float


def compare(eraser: DiffusionEraser, discriminator: Discriminator, samples: Path, seeds: int) -> Iterator[Comparison]:
    """The scores of every sample (``source/`` and ``mask/`` by equal names) with ``seeds`` seeds.

    Raises:
        UsageError: the eraser's latents are of light and not of a picture, the autoencoders differ, or there is no sample.
    """
    if eraser.card.texture == "light":
        raise UsageError(f"{eraser.name} draws light and no picture (texture on its card), so they have no score; give another --model")
    own, other = eraser.remover.vae.state_dict(), discriminator.vae.state_dict()
    if own.keys() != other.keys() or not all(torch.equal(own[name].float(), other[name].float()) for name in own):
        raise UsageError("eraser and discriminator have different autoencoders: latents of the one mean nothing to the other")
    paths = sorted((samples / "source").glob("*"))
    if not paths:
        raise UsageError(f"{samples} has no source/ with pictures; give --samples a folder with source/ and mask/")
    size = discriminator.size
    seen = CropRule(size=size, context=eraser.rule.context, feather_px=0)
    for path in paths:
        photo = decode_photo(path.read_bytes())
        mask = decode_mask((samples / "mask" / f"{path.stem}.png").read_bytes(), (photo.width, photo.height)).pixels
        # one square of the photo for both; the eraser's mask is grown as its card says
        view = make_crop(photo.pixels, mask, seen)
        crop = make_crop(photo.pixels, mask, replace(eraser.rule, size=size))
        source_1Lhw = discriminator.encode([view.pixels])
        inputs = [torch.from_numpy(array)[None].to(eraser.device) for array in (crop.pixels, crop.mask)]
        for seed in range(seeds):
            erased = eraser.remover.erase(inputs[0], inputs[1], [seed])
            decoded = erased.pixels_BHW3[0].cpu().numpy()
            pasted = view_of(paste(photo.pixels, crop, decoded), view, size)
            honest, unpasted = discriminator.score([pasted, decoded], [view.pixels] * 2, [view.mask] * 2)
            (latents,) = discriminator.score_latents(erased.latents_BLhw, source_1Lhw, [view.mask])
            yield Comparison(honest, unpasted, latents)


def table(found: list[Comparison], threshold: float) -> str:
    """The Markdown table of the distances from the honest score; ``threshold`` is the score above which a result is accepted."""
    lines = ["| scored | mean difference | mean distance | largest distance | other verdict |", "| --- | --- | --- | --- | --- |"]
    honest = np.array([item.honest for item in found])
    for name, scores in (("decoded, not pasted", [item.decoded for item in found]), ("latents", [item.latents for item in found])):
        difference = np.array(scores) - honest
        other = int(((np.array(scores) > threshold) != (honest > threshold)).sum())
        distance = np.abs(difference)
        lines.append(f"| {name} | {difference.mean():+.4f} | {distance.mean():.4f} | {distance.max():.4f} | {other} of {len(found)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True, help="eraser")
    parser.add_argument("--discriminator", default=None, help="model with the discriminator; default: the eraser's own")
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="folder with source/ and mask/")
    parser.add_argument("--seeds", type=int, default=4, help="erasures of every sample")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    eraser = DiffusionEraser(options.model, EraserSettings(device=options.device))
    discriminator = Discriminator(locate(options.discriminator or options.model), device=options.device)
    found = list(compare(eraser, discriminator, options.samples, options.seeds))
    print(table(found, discriminator.config.threshold))
    mean = float(np.mean([item.honest for item in found]))
    print(f"\n{options.model}, {len(found)} erasures at {discriminator.size} x {discriminator.size}; mean honest score {mean:.3f}")


if __name__ == "__main__":
    main()
