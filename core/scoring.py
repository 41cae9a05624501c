"""Scoring erasures with a discriminator, through one crop rule wherever it happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from core import record
from core.crops import CropRule, make_crop, view_of
from core.errors import ItemError
from core.images import decode_photo
from core.masks import decode_mask


class Scorer(Protocol):
    """A discriminator as the rest sees it."""

    @property
    def size(self) -> int:
        """Side in pixels of the crops that it looks at."""

    def score(self, edited: Sequence[np.ndarray], source: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[float]:
        """Calibrated probabilities of success, 0 to 1, for crops (size, size, 3) uint8 and masks (size, size) uint8, 255 = removed."""


class Views(NamedTuple):
    """What a discriminator sees: pictures (S, S, 3) uint8 of every result and of the photo, and the mask (S, S) uint8, 255 = removed."""

    edited: list[np.ndarray]
    source: np.ndarray
    mask: np.ndarray


def make_views(size: int, source: np.ndarray, mask: np.ndarray, results: Sequence[np.ndarray]) -> Views:
    """Results (H, W, 3) uint8 of one photo, seen through the discriminator's own crop around the mask at its ``size``."""
    crop = make_crop(source, mask, CropRule(size=size, dilate_px=0, feather_px=0))
    return Views([view_of(result, crop, size) for result in results], crop.pixels, crop.mask)


def score_views(scorer: Scorer, views: Views) -> list[float]:
    """The score of every result, as float32 values: so the record stores them.

    Raises:
        ItemError: the discriminator gave another number of scores, or one that is no probability.
    """
    count = len(views.edited)
    scores = scorer.score(views.edited, [views.source] * count, [views.mask] * count)
    if len(scores) != count or not all(0.0 <= score <= 1.0 for score in scores):
        raise ItemError("score", "bad_score", f"the discriminator gave {scores} for {count} results; a score is 0 to 1, one a result")
    return [float(np.float32(score)) for score in scores]


def score_results(scorer: Scorer, source: np.ndarray, mask: np.ndarray, results: Sequence[np.ndarray]) -> list[float]:
    """``score_views`` of ``make_views``: the score of every erasure (H, W, 3) uint8 of one photo."""
    return score_views(scorer, make_views(scorer.size, source, mask, results))


def discriminator_for(model: str, wanted: str = "auto") -> str | None:
    """The model whose discriminator scores the results of ``model``; None for no scores.

    ``auto`` is the model's own, and tiny's for erasers that have none; ``none`` is none; anything else is a name.
    """
    if wanted != "auto":
        return None if wanted == "none" else wanted
    from core.checkpoints import locate
    from core.discriminator_config import has_discriminator
    from core.eraser import is_network

    return model if is_network(model) and has_discriminator(locate(model)) else "tiny"


def load_scorer(discriminator: str, *, device: str = "auto", dtype: str = "auto") -> Scorer:
    """The discriminator of a model folder. Raises UsageError where it has none or its files are broken."""
    from core.checkpoints import locate
    from core.device import pick_device, pick_dtype
    from core.discriminator import Discriminator  # torch takes seconds to import

    where = pick_device(device)
    return Discriminator(locate(discriminator), device=str(where), dtype=pick_dtype(dtype, where))


def score_record(
    values: dict[str, Any], scorer: Scorer, *, accept_above: float, uncertain_from: float, max_megapixels: float
) -> dict[str, Any]:
    """A record with ``score`` and ``verdict`` (and ``target``, for an accepted erasure without ground truth) from its stored pictures.

    Raises:
        ItemError: nothing was erased yet, or a picture cannot be decoded.
    """
    if not (values["erased"] or {}).get("bytes"):
        raise ItemError("score", "nothing_erased", "the record has no erasure to score; run cleanplate clean first")
    source = decode_photo(values["source"]["bytes"], max_megapixels=max_megapixels)
    mask = decode_mask(values["mask"]["bytes"], (source.width, source.height), max_megapixels=max_megapixels)
    erased = decode_photo(values["erased"]["bytes"], max_megapixels=max_megapixels)
    if erased.pixels.shape != source.pixels.shape:
        raise ItemError(
            "score",
            "size_mismatch",
            f"the erasure is {erased.width} x {erased.height}, the photo {source.width} x {source.height}; an erasure has the photo's size",
        )
    (score,) = score_results(scorer, source.pixels, mask.pixels, [erased.pixels])
    verdict = record.verdict_for(score, accept_above=accept_above, uncertain_from=uncertain_from)
    # a target that is the erasure came of an earlier verdict, not of the world
    known = None if (values["target"] or {}).get("bytes") == values["erased"]["bytes"] else values["target"]
    target = known or (values["erased"] if verdict == "accepted" else None)
    return {**values, "score": score, "verdict": verdict, "target": target}
