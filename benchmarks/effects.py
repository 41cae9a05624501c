"""How well ``effects`` finds what an object changes: composed pairs, whose masks are known, with noise, JPEG and another exposure.

    python -m benchmarks.effects --backgrounds FOLDER --cutouts FOLDER --annotations FILE --pairs 100

Each pair is composed, then both pictures are taken by the same camera: another exposure, noise, JPEG, and by ``--shift`` a hand that was
not still. The table gives the overlap (IoU) of what is found with what was changed, pairs in which something was found although nothing
had changed, and how near the lifted object on its own background is to the photo.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import cv2
import numpy as np

from core.composing.collection import Collection, list_pictures, read_annotations
from core.composing.composer import Composer, ComposeSettings, Composition
from core.composing.light import to_linear, to_srgb
from core.effects.lifting import lift
from core.effects.region import effect_region
from core.errors import ItemError
from core.images import Pixels

RIM_PX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """What is added to a pair.

    Attributes:
        noise: standard deviation in levels of 255.
        quality: of the JPEG.
        exposure: the photo without the object is multiplied by something from 1 - exposure to 1 + exposure, in linear light.
        shift: most pixels by which it is moved along each axis.
    """

    noise: float
    quality: int
    exposure: float
    shift: float


def photographed(pixels: Pixels, camera: Camera, rng: np.random.Generator, *, moved: bool) -> Pixels:
    """(H, W, 3) uint8 without a rim; ``moved`` is the second photo of a pair, with another exposure and place."""
    light = to_linear(pixels)
    if moved:
        x, y = rng.uniform(-camera.shift, camera.shift, 2)
        if camera.shift:
            matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
            light = np.clip(cv2.warpAffine(light, matrix, light.shape[1::-1], flags=cv2.INTER_CUBIC), 0, 1)
        light = light * np.float32(rng.uniform(1 - camera.exposure, 1 + camera.exposure))
    seen = to_srgb(light)[RIM_PX:-RIM_PX, RIM_PX:-RIM_PX]
    noisy = np.clip(np.round(seen + rng.normal(0, camera.noise, seen.shape)), 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", noisy, (cv2.IMWRITE_JPEG_QUALITY, camera.quality))
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def overlap(found: Pixels, true: Pixels) -> float:
    """IoU of two masks; 1 for two empty ones."""
    union = np.count_nonzero((found > 0) | (true > 0))
    return np.count_nonzero((found > 0) & (true > 0)) / union if union else 1.0


def decibels(one: Pixels, other: Pixels) -> float:
    """PSNR of two pictures, or of parts of them; at most 99, for equal ones."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return min(99.0, float(10 * np.log10(255**2 / error))) if error else 99.0


def cut(mask: Pixels) -> Pixels:
    return np.ascontiguousarray(mask[RIM_PX:-RIM_PX, RIM_PX:-RIM_PX])


def measure(items: list[Composition], camera: Camera) -> dict[str, str]:
    """One row of the table."""
    whole, effects, back, inside, refused, false, unchanged_refused = [], [], [], [], [], 0, 0
    for number, item in enumerate(items):
        rng = np.random.default_rng(number)
        mask, true = cut(item.mask), cut(item.effect_mask)
        before = photographed(item.source, camera, rng, moved=False)
        after = photographed(item.target, camera, rng, moved=True)
        try:
            region = effect_region(before, after, mask)
        except ItemError as error:
            refused.append(error.code)
        else:
            whole.append(overlap(region.whole, true))
            effects.append(overlap(region.effect, np.where(mask > 0, 0, true).astype(np.uint8)))
            again = to_srgb(lift(region).over(region.pair.after))
            back.append(decibels(again, before))
            inside.append(decibels(again[region.whole > 0], before[region.whole > 0]))
        try:
            same = photographed(item.target, camera, rng, moved=False), photographed(item.target, camera, rng, moved=True)
            false += bool(effect_region(*same, mask).effect.any())
        except ItemError:
            unchanged_refused += 1
    return {
        "IoU, mean": f"{np.mean(whole):.3f}",
        "IoU, median": f"{np.median(whole):.3f}",
        "without the object, mean": f"{np.mean(effects):.3f}",
        "refused": f"{len(refused)} of {len(items)}",
        "unchanged: a false region": f"{false} of {len(items)}",
        "unchanged: refused": f"{unchanged_refused}",
        "lifted and put back, dB in the region: least": f"{np.min(inside):.1f}",
        "in the picture: least": f"{np.min(back):.1f}",
        "median": f"{np.median(back):.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backgrounds", required=True)
    parser.add_argument("--cutouts", required=True)
    parser.add_argument("--annotations", default="none")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--noise", type=float, default=2.0)
    parser.add_argument("--quality", type=int, default=92)
    parser.add_argument("--exposure", type=float, default=0.05)
    parser.add_argument("--shift", type=float, default=1.5)
    options = parser.parse_args()
    annotations, _ = read_annotations(options.annotations)
    collection = Collection(list_pictures(options.backgrounds, "photos"), list_pictures(options.cutouts, "cut-outs"), annotations)
    composer = Composer(collection, ComposeSettings(size=options.size + 2 * RIM_PX, negatives=0.0))
    items = [composer.compose(f"effects-{number}") for number in range(options.pairs)]
    cameras = {
        "as composed": Camera(noise=0, quality=100, exposure=0, shift=0),
        f"noise {options.noise:g}, JPEG {options.quality}, exposure {options.exposure:.0%}": Camera(
            noise=options.noise, quality=options.quality, exposure=options.exposure, shift=0
        ),
        f"the same, moved by up to {options.shift:g} px": Camera(
            noise=options.noise, quality=options.quality, exposure=options.exposure, shift=options.shift
        ),
    }
    rows = {name: measure(items, camera) for name, camera in cameras.items()}
    names = list(next(iter(rows.values())))
    print(f"| {options.pairs} pairs, {options.size} pixels | {' | '.join(names)} |\n{'| --- ' * (len(names) + 1)}|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row.values())} |")


if __name__ == "__main__":
    main()
