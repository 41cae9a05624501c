"""Every malformed file gets its own reason; every strange but valid file gives the pixels that were put in."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from core.errors import ItemError
from core.images import Photo, decode_photo, image_size
from core.masks import Mask, decode_mask
from tests.malformed import HEIGHT, WIDTH, MalformedCase, ValidCase, malformed_corpus, unusual_but_valid

PRESENT = [case for case in malformed_corpus() if case.source is not None and case.mask is not None]


def decode_both(case: MalformedCase | ValidCase) -> tuple[Photo, Mask]:
    assert case.source is not None
    assert case.mask is not None
    photo = decode_photo(case.source)
    return photo, decode_mask(case.mask, (photo.width, photo.height))


def test_the_corpus_is_large_and_its_cases_differ() -> None:
    corpus = malformed_corpus()
    assert len(corpus) >= 64
    assert len(unusual_but_valid()) >= 20
    assert len({case.name for case in corpus}) == len(corpus)
    assert len({(case.source, case.mask) for case in corpus}) == len(corpus)
    assert len({case.name for case in unusual_but_valid()}) == len(unusual_but_valid())
    assert {case.code for case in corpus if case not in PRESENT} == {"missing"}
    assert max(len(case.source or b"") for case in corpus) < 100_000


def test_the_corpus_is_the_same_every_time() -> None:
    again = malformed_corpus.__wrapped__()
    assert again == malformed_corpus()


@pytest.mark.parametrize("case", PRESENT, ids=lambda case: case.name)
def test_malformed_files_are_refused_with_their_reason(case: MalformedCase) -> None:
    with pytest.raises(ItemError) as caught:
        decode_both(case)
    error = caught.value
    assert (error.stage, error.code) == ("decode", case.code)
    assert case.says in error.message
    assert ("mask" if "mask" in case.code else "photo") in error.message
    assert len(error.message) < 300
    assert error.message.isprintable()
    assert str(error) == error.message


@pytest.mark.parametrize("case", unusual_but_valid(), ids=lambda case: case.name)
def test_unusual_files_give_known_pixels(case: ValidCase) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo, mask = decode_both(case)
    assert photo.pixels.shape == case.pixels.shape
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.flags["C_CONTIGUOUS"]
    assert np.abs(photo.pixels.astype(int) - case.pixels).max() <= case.tolerance
    if case.alpha is None:
        assert photo.alpha is None
    else:
        np.testing.assert_array_equal(photo.alpha, case.alpha)
    np.testing.assert_array_equal(mask.pixels, case.mask_pixels)
    assert mask.resized == (case.name == "mask twice as large")
    assert image_size(case.source) == (photo.width, photo.height) == (WIDTH, HEIGHT)
