"""Scoring: the stored, lossless bytes of an erasure score like the arrays that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from core import record
from core.errors import ItemError
from core.images import decode_photo, encode_image
from core.masks import encode_mask
from core.scoring import score_record, score_results
from tests.pictures import box_mask, gradient, with_object


class Difference:
    """Scores by how much the crop changed under the mask; sees every bit of its inputs."""

    size = 32

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def score(self, edited: Sequence[np.ndarray], source: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[float]:
        items = list(zip(edited, source, masks, strict=True))
        self.seen += items
        return [float(np.abs(e.astype(float) - s)[m > 0].mean() / 255) for e, s, m in items]


class Fixed:
    size = 32

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def score(self, edited: Sequence[np.ndarray], source: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[float]:  # noqa: ARG002
        return self.scores


MASK = box_mask(90, 70, (30, 20, 60, 44))
CLEAN = gradient(90, 70)
SOURCE = with_object(CLEAN, MASK)


def stored(**changes: Any) -> dict[str, Any]:
    values = {
        "id": "a", "source": record.image_value(encode_image(SOURCE)), "mask": record.image_value(encode_mask(MASK)),
        "erased": record.image_value(encode_image(CLEAN)), "origin": "o", "width": 90, "height": 70,
    }  # fmt: skip
    return record.empty_record(**{**values, **changes})


def scored(values: dict[str, Any], scorer: Any, above: float = 0.9) -> dict[str, Any]:
    return score_record(values, scorer, accept_above=above, uncertain_from=0.2, max_megapixels=1)


def test_stored_bytes_score_like_arrays() -> None:
    scorer = Difference()
    (expected,) = score_results(scorer, SOURCE, MASK, [CLEAN])
    assert 0.2 < expected < 1
    values = stored()
    assert scored(values, scorer)["score"] == expected
    for one, other in zip(*scorer.seen, strict=True):
        np.testing.assert_array_equal(one, other)
    assert values["score"] is None


def test_every_result_is_scored_through_one_crop() -> None:
    scorer = Difference()
    half = ((CLEAN.astype(int) + SOURCE) // 2).astype(np.uint8)
    scores = score_results(scorer, SOURCE, MASK, [SOURCE, half, CLEAN])
    assert scores[0] == 0.0
    assert scores[1] == pytest.approx(scores[2] / 2, abs=0.01)
    assert all(score == float(np.float32(score)) for score in scores)
    assert len({id(mask) for _, _, mask in scorer.seen}) == 1
    assert all(picture.shape == (32, 32, 3) for item in scorer.seen for picture in item[:2])


def test_an_accepted_erasure_becomes_the_target() -> None:
    accepted = scored(stored(), Fixed(0.95))
    assert (accepted["verdict"], accepted["target"]) == ("accepted", accepted["erased"])
    assert decode_photo(accepted["target"]["bytes"]).width == 90
    assert scored(stored(), Fixed(0.5))["target"] is None
    assert scored(stored(), Fixed(0.5))["verdict"] == "uncertain"
    truth = record.image_value(b"ground truth")
    assert scored(stored(target=truth), Fixed(0.95))["target"] == truth


@pytest.mark.parametrize("scores", [[float("nan")], [1.5], [-0.1], [], [0.5, 0.5]])
def test_scores_that_are_none_cost_the_item(scores: list[float]) -> None:
    with pytest.raises(ItemError) as caught:
        scored(stored(), Fixed(*scores))
    assert (caught.value.stage, caught.value.code) == ("score", "bad_score")


def test_records_that_cannot_be_scored_say_why() -> None:
    for changes, code in (({"erased": None}, "nothing_erased"), ({"erased": record.image_value(b"\x89PNG\r\n\x1a\n")}, "truncated")):
        with pytest.raises(ItemError) as caught:
            scored(stored(**changes), Fixed(0.5))
        assert caught.value.code == code
