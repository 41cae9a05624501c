"""Scoring erasures with a discriminator, through one crop rule wherever it happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

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


def score_results(scorer: Scorer, source: np.ndarray, mask: np.ndarray, results: Sequence[np.ndarray]) -> list[float]:
    """The score of every erasure (H, W, 3) uint8 of one photo, seen through the discriminator's own crop around the mask.

    Scores are float32 values, as the record stores them.

    Raises:
        ItemError: the discriminator gave another number of scores, or one that is no probability.
    """
    crop = make_crop(source, mask, CropRule(size=scorer.size, dilate_px=0, feather_px=0))
    views = [view_of(result, crop, scorer.size) for result in results]
    scores = scorer.score(views, [crop.pixels] * len(views), [crop.mask] * len(views))
    if len(scores) != len(views) or not all(0.0 <= score <= 1.0 for score in scores):
        raise ItemError("score", "bad_score", f"the discriminator gave {scores} for {len(views)} results; a score is 0 to 1, one a result")
    return [float(np.float32(score)) for score in scores]


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
