"""Judged erasures for a discriminator, made of triplets: ``python -m training.judged_triplets --help``.

Of every triplet some results of plain erasers (``training.rough_erasers``), of the clean plate itself, and of the edits that
``training.negatives`` makes. A real eraser fails in two ways that have nothing to do with each other: it draws what does not belong there,
and it leaves the shadow. So each eraser works on the photo with all, some or none of the object's effects beside the object left, or some
of them in one place and none in another, or brightened where they were. Plain erasers hardly ever succeed, and a good result is not the
clean plate: so what they draw is mixed with the clean plate, half the time. Every result is judged by its distance from the clean plate
and by the shadow that is left (``core.metrics.verdict``); what is neither a success nor a failure is left out. Edits that are made to fail
are failures as they are. Composed shadows are mostly so faint that nobody sees whether one was left: ``--shadow-depth`` gives every
triplet one of another depth first (``training.pair_augmentation.at_depth``).

The output is a dataset of squares at the discriminator's size, cut out as scoring cuts them, with verdicts and the clean plate as target;
``cleanplate train discriminator`` reads it. LPIPS judges, so its weights must be at hand (``core.metrics.perceptual``).
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Final

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from core import storage
from core.crops import Crop, CropRule, make_crop, take
from core.errors import UsageError
from core.fetch import Fetcher
from core.images import Pixels, encode_image
from core.ledger import part_name, write_shard
from core.masks import dilate, encode_mask, soft_mask
from core.metrics.perceptual import Lpips
from core.metrics.shadow import shadow_residual
from core.metrics.verdict import measured_success
from core.plan import PlanRow
from core.readers import open_input
from core.record import RECORD_SCHEMA, empty_record, image_value, item_seed
from core.scoring import make_views
from training.negatives import NegativeSettings, judged_pair
from training.pair_augmentation import are_depths, at_depth, draw_depth
from training.rough_erasers import ROUGH_ERASERS
from training.script import exit_status, in_shares, triplets_parser
from training.tiny_base import CARD
from training.triplets import TrainingPair, fetched_triplet

logger = logging.getLogger(__name__)

CONTEXT: Final = 3.0
"""Side of the square in which results are made and judged over that of the object's box; scoring sees less of it."""
LEAST_SIDE: Final = 256
MASK_GROWTH: Final = 0.12
"""Most that a mask is grown, over the square root of its area: people draw loosely."""
WHOLLY: Final = 0.5
"""Probability that what an eraser draws is left as it is; else any share of it is the clean plate's."""
BRIGHTENED: Final = 0.5
"""Most by which a removed shadow becomes a bright place, as a share of it."""
RIM_PX: Final = 3
"""What lies as near to an object may have some of its colours."""
SHARD_TRIPLETS: Final = 50
Share = NDArray[np.float32]
SUCCESSES: Final = NegativeSettings(accepted=1.0)
# without OpenCV's inpainting, which is an eraser that people use, and by which a discriminator is judged
FAILURES: Final = NegativeSettings(accepted=0.0, classical=0.0)


@dataclass(frozen=True, slots=True)
class Judged:
    """A result (H, W, 3) uint8, whether it is a success, and how it was made."""

    edited: Pixels
    success: bool
    kind: str


def judged_results(pair: TrainingPair, other: TrainingPair | None, lpips: Lpips, *, seed: int) -> list[Judged]:
    """What was made of a triplet and could be judged: a function of both items and the seed.

    Args:
        pair: the part of a triplet around its object, with its effect mask.
        other: whose object may be put into the hole.
        lpips: the judge.
    """
    rng = np.random.default_rng(item_seed(f"judged\0{pair.id}", seed))
    source_distance = lpips.distance(pair.source, pair.target)
    found = []
    # with the truth in the hole, what is left of the effects decides
    for kind in ("clean", "clean", *rng.permutation(list(ROUGH_ERASERS)).tolist()[:2]):
        left = _left_effects(pair.mask.shape, rng, none=kind != "clean")
        drawn = 1.0 if rng.random() < WHOLLY else float(rng.random())
        edited = _erased(pair, kind, left, drawn, rng)
        residual = left_shadow(pair, edited)
        success = measured_success(lpips.distance(edited, pair.target), source_distance, residual)
        if success is not None:
            found.append(Judged(edited, success, kind))
    for number, settings in enumerate((SUCCESSES, FAILURES, FAILURES)):
        made = judged_pair(pair, other, settings, seed=seed, epoch=number)
        if made.pair.label is not None:
            found.append(Judged(made.pair.target, made.pair.label == 1.0, made.kind))
    return found


def left_shadow(pair: TrainingPair, edited: Pixels) -> float | None:
    """The shadow residual (``core.metrics.shadow``) of what lies outside the object alone; None where it has no effect.

    A blurred photo's object darkens what is around it, and a blurred fill may do so, too: shadows are narrow, and a shadow that is left
    whole would come to a third of such a difference, a success. What is in the object's place is LPIPS's to judge.
    """
    if pair.effect_mask is None:
        return None
    effects, left = (_without_object(pair, picture) for picture in (pair.source, edited))
    return shadow_residual(left, pair.target, effects, pair.mask, pair.effect_mask)


def _without_object(pair: TrainingPair, picture: Pixels) -> Pixels:
    """The picture with the clean plate in the object's place."""
    return np.where(dilate(pair.mask, RIM_PX)[..., None] > 0, pair.target, picture)


def _left_effects(shape: tuple[int, ...], rng: np.random.Generator, *, none: bool) -> Share:
    """The share of the object's effects that is left, (H, W, 1), below 0 where what was dark becomes too bright.

    All of it, evenly some, some in places, or, with ``none``, none of it.
    """
    kind = int(rng.integers(0 if none else 1, 4))
    if kind < 3:
        even = (0.0, 1.0, float(rng.uniform(-BRIGHTENED, 1.0)))[kind]
        return np.full((*shape, 1), even, np.float32)
    places = int(rng.integers(3, 9))
    field = cv2.resize(rng.normal(rng.random(), 0.4, (places, places)).astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(field, -BRIGHTENED, 1.0).astype(np.float32)[..., None]


def _erased(pair: TrainingPair, kind: str, left: Share, drawn: float, rng: np.random.Generator) -> Pixels:
    """The photo without the object, by one eraser and else (1 - ``drawn``) the truth, with this share of its effects left beside it."""
    growth, feather = int(rng.integers(1, 8)), float(rng.uniform(0, 6))
    hole = dilate(pair.mask, growth) > 0
    shaded = np.rint(np.clip(pair.source * left + pair.target * (1 - left), 0, 255)).astype(np.uint8)
    photo = np.where(hole[..., None], pair.source, shaded)
    filled = pair.target if kind == "clean" else ROUGH_ERASERS[kind](photo, hole, rng) * drawn + pair.target * (1 - drawn)
    soft = soft_mask(hole.astype(np.uint8), feather)[..., None]
    return np.rint(filled * soft + photo * (1 - soft)).astype(np.uint8)


def around_object(pair: TrainingPair) -> TrainingPair:
    """The square around the object that results are made in."""
    crop = make_crop(pair.source, pair.mask, CropRule(size=None, context=CONTEXT, feather_px=0, least_side=LEAST_SIDE))
    source, target, mask = (_square(pixels, crop) for pixels in (pair.source, pair.target, pair.mask))
    effect_mask = None if pair.effect_mask is None else _square(pair.effect_mask, crop)
    return replace(pair, source=source, target=target, mask=mask, effect_mask=effect_mask)


def deepened(pair: TrainingPair, depths: tuple[float, float], *, seed: int) -> TrainingPair:
    """The pair with its shadow at a depth drawn from these two, log-uniform; the object itself stays as it is."""
    if pair.effect_mask is None:
        return pair
    depth = draw_depth(depths, np.random.default_rng(item_seed(f"depth\0{pair.id}", seed)))
    object_HW = dilate(pair.mask, RIM_PX) > 0
    shadowed = at_depth(_without_object(pair, pair.source), pair.target, (pair.effect_mask > 0) & ~object_HW, depth)
    return replace(pair, source=np.where(object_HW[..., None], pair.source, shadowed))


def _square(pixels: Pixels, crop: Crop) -> Pixels:
    return np.ascontiguousarray(take(pixels, crop.x, crop.y, crop.side))


def judged_records(
    pair: TrainingPair, other: TrainingPair | None, lpips: Lpips, *, size: int, seed: int, shadow_depth: tuple[float, float] | None = None
) -> list[dict[str, Any]]:
    """The records (``core.record``) of one triplet, seen as a discriminator of this size sees them; ``shadow_depth``: see ``deepened``."""
    rng = np.random.default_rng(item_seed(f"seen\0{pair.id}", seed))
    square = around_object(pair)
    if shadow_depth is not None:
        square = deepened(square, shadow_depth, seed=seed)
    results = judged_results(square, None if other is None else around_object(other), lpips, seed=seed)
    growth = int(float(rng.random()) ** 2 * MASK_GROWTH * np.sqrt(cv2.countNonZero(square.mask)))
    views = make_views(size, square.source, dilate(square.mask, growth), [square.target, *(result.edited for result in results)])
    pictures = (encode_image(views.source), encode_mask(views.mask), encode_image(views.edited[0]))
    source, mask, target = (image_value(data) for data in pictures)
    return [
        empty_record(
            id=f"{pair.id}-{number}-{result.kind}",
            source=source,
            mask=mask,
            target=target,
            erased=image_value(encode_image(view)),
            category=result.kind,
            origin="judged",
            width=size,
            height=size,
            verdict="accepted" if result.success else "rejected",
        )
        for number, (result, view) in enumerate(zip(results, views.edited[1:], strict=True))
    ]


def write_shards(
    data: str, output: str, size: int, seed: int, limit: int | None, shadow_depth: tuple[float, float] | None, share: tuple[int, int]
) -> Counter[str]:
    """Writes every ``share[1]``-th shard from the ``share[0]``-th on, and returns the numbers of its items by verdict and kind.

    Shards that are there already are left.

    Raises:
        UsageError: the data cannot be read, or an item has no target or effect mask; or LPIPS has no weights.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    lpips, given, counts = Lpips(device="cpu"), open_input(data), Counter[str]()
    fetcher = Fetcher(given.base)
    for number, rows in enumerate(_chunks(islice(given.rows(), limit))):
        uri = storage.join(output, part_name(1, number))
        if number % share[1] != share[0] or storage.exists(uri):
            continue
        pairs = [pair for row in rows if (pair := fetched_triplet(fetcher, row)).mask.any()]
        records = []
        for place, pair in enumerate(pairs):
            other = pairs[(place + 1) % len(pairs)] if len(pairs) > 1 else None
            records += judged_records(pair, other, lpips, size=size, seed=seed, shadow_depth=shadow_depth)
        counts.update(f"{record['verdict']} {record['category']}" for record in records)
        write_shard(uri, pa.Table.from_pylist(records, schema=RECORD_SCHEMA))
    return counts


def _chunks(rows: Iterator[PlanRow]) -> Iterator[list[PlanRow]]:
    while chunk := list(islice(rows, SHARD_TRIPLETS)):
        yield chunk


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = triplets_parser("training.judged_triplets", __doc__)
    parser.add_argument("--output", required=True, help="folder of the dataset to write; run the same command again to go on with it")
    parser.add_argument("--size", type=int, default=CARD.size, help="side of the squares, the discriminator's, in pixels")
    depth = "least and largest depth that shadows are given, above 0 and at most 1; else they stay as they are"
    parser.add_argument("--shadow-depth", type=float, nargs=2, metavar=("LEAST", "LARGEST"), help=depth)
    options = parser.parse_args(argv)
    return exit_status(partial(_run, options))


def _run(options: argparse.Namespace) -> None:
    if min(options.size, options.processes) < 1:
        raise UsageError("--size and --processes must be at least 1")
    depths = None if options.shadow_depth is None else (options.shadow_depth[0], options.shadow_depth[1])
    if depths is not None and not are_depths(depths):
        raise UsageError(f"--shadow-depth is {depths[0]:g} {depths[1]:g}; allowed are two numbers above 0 to 1, the smaller one first")
    data, output = (storage.normalize_uri(uri) for uri in (options.data, options.output))
    write = partial(write_shards, data, output, options.size, options.seed, options.limit, depths)
    counts = sum(in_shares(write, options.processes), Counter[str]())
    made_with = {"input": data, "size": options.size, "seed": options.seed, "shadow_depth": depths}
    about = {"configuration": {"made_by": "training.judged_triplets", **made_with}}
    storage.storage_for(output).write(storage.join(output, "dataset.json"), json.dumps(about, indent=1, sort_keys=True).encode())
    for name, count in sorted(counts.items()):
        logger.info("%6d %s", count, name)
    logger.info("%d judged erasures in %s", counts.total(), output)


if __name__ == "__main__":
    raise SystemExit(main())
