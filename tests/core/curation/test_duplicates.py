"""Near-duplicates: planted ones are found, different photos are not, and how an index was filled makes no difference."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.curation import duplicates
from core.curation.duplicates import RADIUS, DuplicateIndex
from core.curation.signature import SIGNATURE_BYTES, WINDOWS, Words, from_bytes, signature, to_bytes
from core.errors import UsageError

SAMPLES = sorted((Path(__file__).resolve().parents[3] / "assets" / "samples" / "source").glob("*.jpg"))


@pytest.fixture(scope="module")
def photos() -> dict[str, Image.Image]:
    """The samples, without one that has the same background as another."""
    assert len(SAMPLES) >= 10
    return {path.stem: Image.open(path).convert("RGB") for path in SAMPLES if path.stem != "umpire"}


@pytest.fixture(scope="module")
def signatures(photos: dict[str, Image.Image]) -> dict[str, Words]:
    return {name: signature(np.asarray(photo)) for name, photo in photos.items()}


def reencoded(photo: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(photo: Image.Image, share: float, across: float, down: float) -> Image.Image:
    """Without ``share`` of both sides, at a place from 0 to 1."""
    width, height = round(photo.width * (1 - share)), round(photo.height * (1 - share))
    x, y = round(across * (photo.width - width)), round(down * (photo.height - height))
    return photo.crop((x, y, x + width, y + height))


@pytest.mark.parametrize("both_ways", [True, False])
def test_planted_duplicates_are_found_and_nothing_else(
    photos: dict[str, Image.Image], signatures: dict[str, Words], both_ways: bool
) -> None:
    index = DuplicateIndex(both_ways=both_ways)
    for name, found in signatures.items():
        index.add(name, found)
    for name, found in signatures.items():
        assert [(match.name, match.distance) for match in index.near(found)] == [(name, 0)]
    for number, (name, photo) in enumerate(photos.items()):
        half = photo.resize((photo.width // 2, photo.height // 2))
        wider = signature(np.asarray(cropped(photo, 0.05, 0.3, number / len(photos))))
        for copy in (signature(np.asarray(half)), signature(np.asarray(reencoded(photo, 40)))):
            assert [match.name for match in index.near(copy)] == [name]
        assert [match.name for match in index.near(wider)] == ([name] if both_ways else [match.name for match in index.near(wider)])
        # the other way round: the index holds the crop, and the whole photo is asked for
        other = DuplicateIndex(both_ways=False)
        other.add("crop", wider)
        assert [match.name for match in other.near(signatures[name])] == ["crop"]


def test_the_matching_window_says_how_the_crop_lies(photos: dict[str, Image.Image], signatures: dict[str, Words]) -> None:
    name = next(iter(photos))
    index = DuplicateIndex()
    index.add(name, signatures[name])
    for number, (x0, y0, x1, y1) in enumerate(WINDOWS):
        photo = photos[name]
        part = photo.crop((round(x0 * photo.width), round(y0 * photo.height), round(x1 * photo.width), round(y1 * photo.height)))
        pairs = index.pairs(signature(np.asarray(part))[None])
        assert pairs.window.tolist() == [number]
        assert pairs.of_given.tolist() == [number == 0]


def test_an_index_finds_what_comparing_all_finds_however_it_was_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random signatures with near ones planted whose differences leave a band whole: none may be missed, none be too far."""
    random = np.random.default_rng(3)
    stored = random.integers(0, 2**63, (300, len(WINDOWS), 4), dtype=np.uint64)
    asked = random.integers(0, 2**63, (60, len(WINDOWS), 4), dtype=np.uint64)
    for number in range(60):
        window, flips = int(random.integers(len(WINDOWS))), int(random.integers(0, 70))
        copy = stored[5 * number, 0].copy()
        for bit in random.choice(192, flips, replace=False):
            copy[1 + bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
        asked[number, window] = copy
    distance = np.bitwise_count(asked[:, None] ^ stored[None, :, 0][:, :, None]).sum(axis=3).min(axis=2)
    expected = {(int(given), int(found), int(distance[given, found])) for given, found in np.argwhere(distance <= RADIUS)}
    assert len(expected) > 20

    def found(index: DuplicateIndex) -> set[tuple[int, int, int]]:
        pairs = index.pairs(asked)
        return set(zip(pairs.given.tolist(), pairs.found.tolist(), pairs.distance.tolist(), strict=True))

    in_the_tail = DuplicateIndex(both_ways=False)
    in_the_tail.add_many(stored)
    assert found(in_the_tail) == expected
    monkeypatch.setattr(duplicates, "_TAIL", 32)
    monkeypatch.setattr(duplicates, "_CANDIDATES", 50)
    for step in (300, 7, 100):
        index = DuplicateIndex(both_ways=False)
        for start in range(0, 300, step):
            index.add_many(stored[start : start + step])
            if start % 2:
                index.pairs(asked[:1])
        assert found(index) == expected


def test_signatures_travel_as_bytes(signatures: dict[str, Words]) -> None:
    every = np.stack(list(signatures.values()))
    data = b"".join(to_bytes(found) for found in every)
    assert len(data) == SIGNATURE_BYTES * len(every)
    assert np.array_equal(from_bytes(data), every)
    with pytest.raises(UsageError, match="measure the photos again"):
        from_bytes(data[:-1])


def test_wrong_calls_are_one_line() -> None:
    with pytest.raises(UsageError, match="uint8"):
        signature(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(UsageError, match="0 to 256"):
        DuplicateIndex(radius=300)
    with pytest.raises(UsageError, match="signatures are"):
        DuplicateIndex().add_many(np.zeros((2, 4), np.uint64))
    index = DuplicateIndex()
    index.add_many(np.zeros((1, len(WINDOWS), 4), np.uint64))
    with pytest.raises(UsageError, match="without names"):
        index.add("late", np.zeros((len(WINDOWS), 4), np.uint64))
