"""The photos of the embedded autoencoder: what is held out stays out, and a batch depends on its seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.errors import UsageError
from tests.training.photo_folder import write_photos
from training.tiny_photos import PhotoPool, read_image


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


def test_every_twelfth_is_held_out(photos: Path) -> None:
    trained, held_out = PhotoPool(photos), PhotoPool(photos, held_out=True)
    assert [len(pool.photos) for pool in (trained, held_out)] == [12, 2]
    assert [len(pool.cutouts) for pool in (trained, held_out)] == [12, 2]
    assert not any(np.array_equal(photo, other) for photo in trained.photos for other in held_out.photos)


def test_a_batch_depends_on_its_seed_alone(photos: Path) -> None:
    pool = PhotoPool(photos)
    first = pool.batch(32, 6, (0, 3))
    pool.batch(32, 6, (0, 4))
    assert first.shape == (6, 32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, pool.batch(32, 6, (0, 3)))
    assert not np.array_equal(first, pool.batch(32, 6, (0, 4)))


def test_crops_larger_than_the_photos_are_enlarged(photos: Path) -> None:
    assert PhotoPool(photos).batch(256, 2, (1,)).shape == (2, 256, 256, 3)


def test_plain_crops_have_no_cutout(photos: Path) -> None:
    """The cut-outs are pure red, the photos grey."""
    pool = PhotoPool(photos)
    red = [int(np.ptp(batch.astype(int), axis=-1).max()) for batch in (pool.batch(32, 40, (0,), plain=True), pool.batch(32, 40, (0,)))]
    assert red[0] <= 3 < 200 < red[1]


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 photos; at least two"):
        PhotoPool(tmp_path)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"a\.jpg is no picture"):
        read_image(tmp_path / "a.jpg")
