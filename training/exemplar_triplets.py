"""Triplets for a model that takes its texture from the photo: ``python -m training.exemplar_triplets --help``.

Such a model (``texture`` of its card) is shown the photo with the hole filled from around it (``core.exemplar``), and has to say what else
must change: the shadow beside the hole, and the shadow that was copied into it. Its training picture is therefore the filled source, and
its target is the clean plate filled from the very same places: both differ by the effects of the object and by nothing else, so that there
is one right answer, and a small network need not average over many.

Each triplet gives as many views as are asked for, cropped by the rule of inference at contexts drawn from a range, and all but the first
in changed colours (encoded views cannot be changed later on). The output is a folder with source/, mask/, target/ and effect_mask/, which
``cleanplate train`` and ``cleanplate encode`` read.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch

from core.crops import CropRule, at_size, make_crop, take, view_of
from core.diffusion import crop_rule
from core.errors import UsageError
from core.exemplar import complete_alike
from core.fetch import Fetcher
from core.images import encode_image
from core.masks import encode_mask, mask_at_size
from core.readers import open_input
from core.record import item_seed
from training.pair_augmentation import PairAugmentation, change_colours, draw_colour
from training.script import exit_status, in_shares, triplets_parser
from training.tiny_base import CARD
from training.triplets import TrainingPair, fetched_triplet

logger = logging.getLogger(__name__)

CONTEXTS: Final = (1.8, 5.0)
"""Least and largest context of a view; inference has the card's, or the caller's."""
COLOURS: Final = PairAugmentation(brightness=0.3, contrast=0.2, saturation=0.4, hue=20)
FINENESS: Final = 1.5
"""Side at which holes are filled over that of the views. A finer fill costs its area in time, and the network would not see it."""
ROLES: Final = ("source", "mask", "target", "effect_mask")


def exemplar_view(triplet: TrainingPair, rule: CropRule) -> TrainingPair:
    """The triplet as the network is to see it, (S, S[, 3]): the hole of source and target filled from the same places of each.

    Args:
        rule: of the model; whether it takes its texture from the photo does not matter here.
    """
    crop = make_crop(triplet.source, triplet.mask, replace(rule, texture="network"))
    size = crop.pixels.shape[0]
    side = min(crop.side, round(FINENESS * size))
    squares = (take(pixels, crop.x, crop.y, crop.side) for pixels in (triplet.source, triplet.target))
    views = [np.ascontiguousarray(at_size(square, side)) for square in squares]
    hole = mask_at_size(crop.soft == 1, (side, side)) > 0
    source, target = (at_size(filled, size) for filled in complete_alike(views[0], views[1:], hole))
    effects = triplet.mask if triplet.effect_mask is None else triplet.effect_mask
    effect_mask = np.maximum((view_of(effects, crop, size) > 127) * np.uint8(255), crop.mask)
    return TrainingPair(id=triplet.id, source=source, target=target, mask=crop.mask, effect_mask=effect_mask)


def write_views(data: str, output: Path, size: int, views: int, seed: int, limit: int | None, share: tuple[int, int]) -> int:
    """Writes the views of every ``share[1]``-th item from the ``share[0]``-th on, and returns how many; what is there already is left.

    Raises:
        UsageError: the data cannot be read, or an item has no target or effect mask.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    given = open_input(data)
    fetcher, done = Fetcher(given.base), 0
    for row in islice(given.rows(), share[0], limit, share[1]):
        pair = fetched_triplet(fetcher, row)
        for view in range(views):
            name = f"{row.id}-{view}.png"
            if not (output / ROLES[-1] / name).is_file():
                rng = np.random.default_rng(item_seed(row.id, seed, view))
                context = float(np.exp(rng.uniform(*np.log(CONTEXTS))))
                rule = replace(crop_rule(replace(CARD, size=size)), context=context)
                seen = exemplar_view(pair, rule)
                if view:  # the first one is in the photo's own colours
                    source, target = change_colours(seen.source, seen.target, change=draw_colour(COLOURS, rng))
                    seen = replace(seen, source=source, target=target)
                _write(seen, output, name)
            done += 1
    return done


def _write(triplet: TrainingPair, output: Path, name: str) -> None:
    for role in ROLES:
        pixels = getattr(triplet, role)
        data = encode_image(pixels) if pixels.ndim == 3 else encode_mask(pixels)
        partial_file = output / role / f".{name}"
        partial_file.write_bytes(data)
        partial_file.replace(output / role / name)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = triplets_parser("training.exemplar_triplets", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="gets source/, mask/, target/ and effect_mask/")
    parser.add_argument("--size", type=int, default=CARD.size, help="side of the views in pixels")
    parser.add_argument("--views", type=int, default=1, help="views of each triplet")
    options = parser.parse_args(argv)
    return exit_status(partial(_run, options))


def _run(options: argparse.Namespace) -> None:
    if min(options.size, options.views, options.processes) < 1:
        raise UsageError("--size, --views and --processes must be at least 1")
    for role in ROLES:
        (options.output / role).mkdir(parents=True, exist_ok=True)
    write = partial(write_views, options.data, options.output, options.size, options.views, options.seed, options.limit)
    written = sum(in_shares(write, options.processes))
    logger.info("%d views in %s", written, options.output)


if __name__ == "__main__":
    raise SystemExit(main())
