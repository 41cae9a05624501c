"""COCO's masks: run lengths equal a decoding by hand, packed text goes there and back, polygons fill what they enclose."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from core.collections.segmentation import decode_segmentation, mask_from_polygons, mask_from_runs, pack_runs, runs_of, unpack_runs
from core.errors import ItemError
from core.images import Pixels

MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.sampled_from([0, 255]))


def by_hand(runs: list[int], height: int, width: int) -> list[list[int]]:
    """One pixel after another, down the columns."""
    rows = [[0] * width for _ in range(height)]
    position, value = 0, 0
    for run in runs:
        for _ in range(run):
            rows[position % height][position // height] = value
            position += 1
        value = 255 - value
    return rows


def unpack_by_hand(text: str) -> list[int]:
    """The encoding as COCO's documentation has it, with strings of bits."""
    numbers: list[int] = []
    bits = ""
    for character in text:
        group = f"{ord(character) - 48:06b}"
        bits = group[1:] + bits
        if group[0] == "0":
            number = int(bits, 2) - (1 << len(bits) if bits[0] == "1" else 0)
            numbers.append(number + numbers[-2] if len(numbers) >= 3 else number)
            bits = ""
    return numbers


@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_run_lengths_give_the_mask_back(mask: Pixels) -> None:
    height, width = mask.shape
    runs = runs_of(mask)
    assert by_hand(runs, height, width) == mask.tolist()
    for segmentation in ({"size": [height, width], "counts": runs}, {"size": [height, width], "counts": pack_runs(runs)}):
        found = decode_segmentation(segmentation, 1, 1)
        assert np.array_equal(found, mask)
        assert found.flags.c_contiguous


@given(st.lists(st.integers(0, 2**31), max_size=30))
@settings(max_examples=200, deadline=None)
def test_packed_text_goes_there_and_back(runs: list[int]) -> None:
    text = pack_runs(runs)
    assert unpack_runs(text) == unpack_by_hand(text) == runs


def test_text_of_cocos_own_library() -> None:
    # pycocotools 2.0.11: encode(numpy.asfortranarray(mask)) of a disc of radius 7 around (10, 8) in 20 x 16, and of all ones
    disc = np.fromfunction(lambda y, x: (x - 10) ** 2 + (y - 8) ** 2 <= 49, (16, 20)).astype(np.uint8) * 255
    assert np.array_equal(mask_from_runs(unpack_runs(DISC), 16, 20), disc)
    assert pack_runs(runs_of(disc)) == DISC
    assert (mask_from_runs(unpack_runs("0P:"), 16, 20) == 255).all()


DISC = "h11<6L2N2N2O000O20N10001N2N2N4Jk0"


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"counts": [3, 3], "size": [4, 4]}, "cover 6 pixels of 4 x 4"),
        ({"counts": [-1, 17], "size": [4, 4]}, "run lengths cover"),
        ({"counts": [10**400], "size": [4, 4]}, "whole number"),
        ({"counts": [16.5], "size": [4, 4]}, "whole number"),
        ({"counts": "é", "size": [4, 4]}, "wrong character"),
        ({"counts": "P", "size": [4, 4]}, "break off"),
        ({"counts": "o" * 99, "size": [4, 4]}, "wrong character"),
        ({"counts": [16], "size": [4]}, "size of run lengths"),
        ({"counts": [0], "size": [0, 4]}, "its size"),
        ({"counts": [10**12], "size": [10**6, 10**6]}, "its size"),
        ({"size": [4, 4]}, "no counts"),
        ([[0, 0, 1, 1]], "three x, y pairs"),
        ([[0, 0, 1, 1, 2, 2, 3]], "three x, y pairs"),
        ([[0, 0, 1, float("nan"), 2, 2]], "three x, y pairs"),
        ([7], "three x, y pairs"),
        ("text", "is a str"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said(segmentation: object, words: str) -> None:
    with pytest.raises(ItemError, match=words) as error:
        decode_segmentation(segmentation, 4, 4)
    assert error.value.code == "bad_annotation"


def test_polygons_fill_what_they_enclose() -> None:
    box = mask_from_polygons([[4.0, 3.0, 12.0, 3.0, 12.0, 9.0, 4.0, 9.0]], 16, 20)
    inside = np.zeros((16, 20), bool)
    inside[3:9, 4:12] = True
    assert (box[inside] == 255).all()
    assert not box[:2].any()
    assert not box[11:].any()
    assert not box[:, :3].any()
    assert not box[:, 14:].any()
    two = mask_from_polygons([[0, 0, 8, 0, 8, 8, 0, 8], [4, 4, 14, 4, 14, 14, 4, 14]], 16, 20)
    assert two[6, 6] == 255, "where parts overlap there is no hole"
    far = mask_from_polygons([[-1e12, -5, 1e12, -5, 1e12, 30, -1e12, 30]], 16, 20)
    assert (far == 255).all()


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_a_star_shaped_polygon_covers_its_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    corners = np.stack([20 + rng.uniform(4, 18, 12) * np.cos(angles), 20 + rng.uniform(4, 18, 12) * np.sin(angles)], 1)
    found = mask_from_polygons([corners.reshape(-1).tolist()], 40, 40)
    ys, xs = np.mgrid[:40, :40] + 0.5
    crossings = np.zeros((40, 40), int)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        crosses = (y0 > ys) != (y1 > ys)
        crossings += crosses & (xs < (x1 - x0) * (ys - y0) / np.where(y1 == y0, 1, y1 - y0) + x0)
    inside = crossings % 2 == 1
    border = cv2.polylines(np.zeros((40, 40), np.uint8), [np.rint((corners - 0.5) * 256).astype(np.int32)], True, 1, 3, cv2.LINE_8, 8)
    assert np.array_equal(found[border == 0] > 0, inside[border == 0]), "a pixel's width from the border nothing else counts"
    assert (found[inside] == 255).mean() > 0.9
