"""Photos that nothing may be near: found when encoded anew, and carried between processes."""

from __future__ import annotations

import pickle

import cv2
import numpy as np

from core.curation.signature import signature
from core.rounds.duplicates import KnownPhotos
from tests.pictures import gradient


def photo(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (7, 9, 3)).astype(np.uint8)
    return cv2.resize(noise, (240, 180), interpolation=cv2.INTER_CUBIC)


def test_a_photo_is_known_in_another_size_and_others_are_not() -> None:
    known = KnownPhotos(np.stack([signature(photo(seed)) for seed in (0, 1, 1)]))
    assert len(known) == 2
    again = cv2.resize(photo(1), (120, 90), interpolation=cv2.INTER_AREA)
    asked = np.stack([signature(picture) for picture in (photo(5), again, gradient(64, 64, 3))])
    for found in (known, pickle.loads(pickle.dumps(known)), KnownPhotos.of_bytes(known.to_bytes(), known.radius)):
        assert found.near(asked).tolist() == [False, True, False]
    nothing = np.zeros((0, *asked.shape[1:]), np.uint64)
    assert not KnownPhotos(nothing).near(asked).any()
    assert known.near(nothing).shape == (0,)
