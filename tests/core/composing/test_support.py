"""Where feet may stand: ground that ends below the upper half, not water, clouds, walls or silhouettes; or what networks call flat."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.composing.support import Support, SurfaceNetworks, ground_by_colour
from core.errors import UsageError

GRASS, SKY, WATER, SAND = (90, 130, 60), (150, 180, 230), (60, 90, 140), (200, 170, 120)


def landscape(ground: tuple[int, int, int], sky: tuple[int, int, int] = SKY, horizon: float = 0.6, seed: int = 0) -> np.ndarray:
    """Two colours with the texture of a photo, (300, 400, 3) uint8."""
    rng = np.random.default_rng(seed)
    pixels = np.where(np.arange(300)[:, None, None] < 300 * horizon, sky, ground) + np.zeros((300, 400, 1))
    return np.clip(pixels + 3 * cv2.GaussianBlur(rng.normal(0, 8, pixels.shape), (0, 0), 1), 0, 255).astype(np.uint8)


def test_ground_is_found_up_to_its_end() -> None:
    for colour in (GRASS, SAND, (120, 120, 120)):
        found = ground_by_colour(landscape(colour, horizon=0.7))
        assert found is not None
        rows = np.arange(len(found.mask)) / len(found.mask)
        assert found.mask[(rows > 0.73) & (rows < 0.97)].mean() > 0.97
        assert not found.mask[rows < 0.68].any()


def test_a_thing_on_the_ground_is_no_ground_and_hides_what_is_behind() -> None:
    photo = landscape(GRASS, horizon=0.62)
    photo[220:260, 150:250] = (170, 40, 40)
    found = ground_by_colour(photo)
    assert found is not None
    assert found.holds(0.5, 0.93, 0.05)
    assert not found.holds(0.5, 0.8, 0.05)
    assert not found.holds(0.5, 0.7, 0.05), "behind the thing"
    assert found.holds(0.2, 0.7, 0.05)
    assert not found.holds(0.36, 0.8, 0.05), "half a foot on it"


@pytest.mark.parametrize(
    "photo",
    [landscape(WATER), landscape(SKY, SKY), landscape(SAND, SAND), landscape((8, 8, 8)), landscape(GRASS, horizon=0.985)],
    ids=["water", "clouds", "wall", "silhouette", "a strip"],
)
def test_where_nothing_can_stand_there_is_no_ground(photo: np.ndarray) -> None:
    assert ground_by_colour(photo) is None


def test_points_are_drawn_on_it_and_a_turned_photo_turns_it() -> None:
    mask = np.zeros((40, 60), np.bool_)
    mask[30:38, 5:20] = True
    support, rng = Support(mask), np.random.default_rng(0)
    points = np.array([support.draw(rng) for _ in range(500)])
    assert all(support.holds(x, y, 0) for x, y in points)
    assert all(support.mirrored().holds(1 - x, y, 0) for x, y in points)
    assert np.allclose(points.mean(axis=0), (12.5 / 60, 34 / 40), atol=0.01)
    assert not support.holds(0.01, 0.8, 0.05)
    assert not support.holds(1.2, 0.8, 0)


@given(st.integers(8, 90), st.integers(8, 90), st.integers(0, 10**6))
def test_any_photo_has_an_answer(height: int, width: int, seed: int) -> None:
    found = ground_by_colour(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    assert found is None or found.mask.any()


@pytest.mark.slow
def test_networks_say_where(tmp_path: Path) -> None:
    """Random weights in the layout of published ones: the flat classes of the class map, without what depth calls crooked."""
    from tests.core.test_perception_scenes import save_depth, save_mask2former

    save_mask2former(tmp_path / "classes")
    rng = np.random.default_rng(1)
    photos = [np.repeat(np.repeat(rng.integers(0, 256, (8, 10, 3), np.uint8), 30, 0), 30, 1) for _ in range(12)]
    by_class = SurfaceNetworks(str(tmp_path / "classes"))
    found = [by_class(photo) for photo in photos]
    assert any(support is not None for support in found)
    for photo, support in zip(photos, found, strict=True):
        classes = by_class._classes.segment([photo])[0]
        flat = np.isin(classes.classes, [1, 2, 4])  # road, floor-wood, table of that network
        if support is None:
            assert flat[int(0.6 * len(flat)) :].sum() < 0.03 * flat.size
        else:
            height, width = support.mask.shape
            rows, columns = np.nonzero(support.mask)
            assert rows.min() >= int(0.6 * height)
            assert flat[(rows + 0.5).astype(int) * 240 // height, (columns + 0.5).astype(int) * 300 // width].mean() > 0.97
    by_depth = SurfaceNetworks(str(tmp_path / "classes"), str(save_depth(tmp_path / "depth", "relative")))
    for photo, support in zip(photos, found, strict=True):
        flatter = by_depth(photo)
        assert flatter is None or (support is not None and not (flatter.mask & ~support.mask).any())
    with pytest.raises(UsageError, match="nowhere"):
        SurfaceNetworks(str(tmp_path / "nowhere"))
