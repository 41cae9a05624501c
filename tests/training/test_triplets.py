"""Records become training pairs through the one decoder, and pairs become batches."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest

from core.errors import ItemError, UsageError
from core.images import decode_photo, encode_image
from core.masks import encode_mask
from core.record import empty_record, image_value
from training.triplets import TrainingPair, training_pair

RNG = np.random.default_rng(0)
SOURCE = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
TARGET = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
MASK = np.zeros((20, 30), np.uint8)
MASK[5:9, 10:14] = 255
EFFECT = np.zeros((20, 30), np.uint8)
EFFECT[5:12, 10:20] = 255


def record(**values: Any) -> dict[str, Any]:
    stored = {
        "id": "a",
        "source": image_value(encode_image(SOURCE)),
        "mask": image_value(encode_mask(MASK)),
        "target": image_value(encode_image(TARGET)),
        "effect_mask": image_value(encode_mask(EFFECT)),
        "origin": "test",
        "width": 30,
        "height": 20,
    }
    return empty_record(**(stored | values))


def test_a_record_is_decoded() -> None:
    pair = training_pair(record(score=0.75, verdict="accepted"))
    np.testing.assert_array_equal(pair.source, SOURCE)
    np.testing.assert_array_equal(pair.target, TARGET)
    np.testing.assert_array_equal(pair.mask, MASK)
    assert pair.effect_mask is not None
    np.testing.assert_array_equal(pair.effect_mask, EFFECT)
    assert (pair.id, pair.score, pair.verdict) == ("a", 0.75, "accepted")


def test_pictures_are_those_of_the_one_decoder() -> None:
    done, jpeg = cv2.imencode(".jpg", SOURCE)
    assert done
    data = jpeg.tobytes()
    pair = training_pair(record(source=image_value(data)))
    np.testing.assert_array_equal(pair.source, decode_photo(data).pixels)


@pytest.mark.parametrize(("verdict", "label"), [("accepted", 1.0), ("rejected", 0.0), ("uncertain", None), (None, None)])
def test_the_label_is_the_verdict(verdict: str | None, label: float | None) -> None:
    assert training_pair(record(verdict=verdict)).label == label


def test_the_answer_may_be_the_erasure() -> None:
    pair = training_pair(record(target=None, erased=image_value(encode_image(255 - SOURCE))), answer="erased")
    np.testing.assert_array_equal(pair.target, 255 - SOURCE)


def test_columns_that_may_be_null_may_be_missing() -> None:
    row = record()
    for name in ("effect_mask", "erased", "score", "verdict"):
        del row[name]
    pair = training_pair(row)
    assert (pair.effect_mask, pair.score, pair.verdict) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "answer", "code", "words"),
    [
        ({"target": None}, "target", "no_target", "'a' has no target"),
        ({}, "erased", "no_erased", "cleanplate clean"),
        ({"id": None}, "target", "bad_record", "column id"),
        ({"score": math.nan}, "target", "bad_record", "score is nan"),
        ({"target": image_value(encode_image(TARGET[:, :20]))}, "target", "target_size_mismatch", "20 x 20 and the photo 30 x 20"),
        ({"target": image_value(b"no picture at all")}, "target", "target_not_an_image", "the target"),
        ({"source": image_value(b"no picture at all")}, "target", "not_an_image", "the photo"),
        ({"mask": image_value(encode_mask(0 * MASK))}, "target", "empty_mask", "the mask removes nothing"),
        ({"effect_mask": image_value(encode_mask(0 * MASK))}, "target", "effect_empty_mask", "the effect mask"),
    ],
)
def test_bad_records_cost_one_item(changes: dict[str, Any], answer: Any, code: str, words: str) -> None:
    with pytest.raises(ItemError) as error:
        training_pair(record(**changes), answer=answer)
    assert (error.value.stage, error.value.code) == ("decode", code)
    assert words in error.value.message
    assert "\n" not in error.value.message


def test_unknown_answers_are_refused() -> None:
    with pytest.raises(UsageError, match="'mask'"):
        training_pair(record(), answer="mask")  # type: ignore[arg-type]


def test_pairs_are_checked() -> None:
    with pytest.raises(UsageError, match=r"target of training pair x is \(20, 20, 3\)"):
        TrainingPair(id="x", source=SOURCE, target=TARGET[:, :20], mask=MASK)
    with pytest.raises(UsageError, match="float32"):
        TrainingPair(id="x", source=SOURCE, target=TARGET, mask=MASK.astype(np.float32))
