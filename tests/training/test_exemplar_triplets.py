"""Triplets for models that take texture from the photo: source and target differ by the object's effects alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from core.crops import CropRule, make_crop
from core.diffusion import crop_rule
from core.images import decode_photo
from tests.training.support import write_triplet_files
from training.exemplar_triplets import ROLES, exemplar_view, main
from training.tiny_base import CARD
from training.triplets import TrainingPair


def scene(side: int = 160, seed: int = 0) -> TrainingPair:
    """A red box on a textured ground, with a shadow beside it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    ground = 120 + 40 * np.sin(x / 3) + 30 * np.sin(y / 4) + rng.normal(0, 4, (side, side))
    target = np.clip(ground[..., None] * (1.0, 0.9, 0.8), 0, 255).astype(np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[60:95, 60:90] = 255
    effect = mask.copy()
    effect[80:100, 60:125] = 255
    source = np.where(effect[..., None] > 0, (target * 0.5).astype(np.uint8), target)
    source[mask > 0] = (210, 20, 20)
    return TrainingPair(id=str(seed), source=source, target=target, mask=mask, effect_mask=effect)


def test_both_pictures_are_filled_from_the_same_places() -> None:
    made, rule = scene(), crop_rule(CARD)
    rule = CropRule(size=96, context=3.0, dilate_px=rule.dilate_px, feather_px=2)
    view = exemplar_view(made, rule)
    assert view.source.shape == view.target.shape == (96, 96, 3)
    assert ((view.mask == 255) <= (view.effect_mask == 255)).all()
    beyond = cv2.dilate(view.effect_mask, np.ones((5, 5), np.uint8)) == 0
    np.testing.assert_array_equal(view.source[beyond], view.target[beyond])
    inside = view.mask > 0
    assert (view.source[inside].astype(int)[:, 0] - view.source[inside].astype(int)[:, 1]).max() < 90, "the object is still there"
    # where the fill was copied from shadow, the target's is brighter; nowhere is it darker
    difference = view.target.astype(int) - view.source
    assert difference[inside].min() >= -3
    shadow = (view.effect_mask > 0) & (view.mask == 0)
    assert difference[shadow].mean() > 30


def test_the_network_sees_at_inference_what_it_saw_in_training() -> None:
    made = scene()
    rule = CropRule(size=96, context=3.0, dilate_px=2, feather_px=2, texture="photo")
    crop = make_crop(made.source, made.mask, rule)
    view = exemplar_view(made, rule)
    np.testing.assert_array_equal(crop.pixels, view.source)
    np.testing.assert_array_equal(crop.mask, view.mask)


@pytest.fixture
def triplets(tmp_path: Path) -> Path:
    return write_triplet_files(tmp_path / "triplets", [scene(seed=seed) for seed in range(3)])


def test_the_command_writes_views_and_goes_on_where_it_was_stopped(triplets: Path, tmp_path: Path) -> None:
    output = tmp_path / "views"
    call = ["--data", str(triplets), "--output", str(output), "--size", "64", "--views", "2", "--processes", "2"]
    assert main(call) == 0
    names = {role: sorted(path.name for path in (output / role).iterdir()) for role in ROLES}
    assert all(found == [f"{index}-{view}.png" for index in range(3) for view in range(2)] for found in names.values())
    first = decode_photo((output / "source" / "1-0.png").read_bytes()).pixels
    assert first.shape == (64, 64, 3)
    assert not np.array_equal(first, decode_photo((output / "source" / "1-1.png").read_bytes()).pixels), "both views are one"
    before = {path: path.read_bytes() for path in output.rglob("*.png")}
    gone = output / "effect_mask" / "2-1.png"
    gone.unlink()
    assert main(call) == 0
    assert {path: path.read_bytes() for path in output.rglob("*.png")} == before


def test_data_without_effect_masks_are_refused(triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (triplets / "effect_mask").iterdir():
        path.unlink()
    assert main(["--data", str(triplets), "--output", str(tmp_path / "views"), "--size", "64"]) == 2
    assert "effect mask" in capsys.readouterr().err
