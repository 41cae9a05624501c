"""Erasers: the classical one really removes, the null one really does nothing, and models of one's own load or say why not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from core.crops import Crop, CropRule
from core.eraser import Eraser, EraserSettings, identity, is_network, load_eraser
from core.errors import UsageError
from tests.pictures import box_mask, gradient, with_object

DEFAULTS = EraserSettings()


@pytest.mark.parametrize("box", [(30, 20, 60, 50), (0, 10, 25, 40), (90, 50, 120, 80), (50, 0, 75, 20), (100, 0, 120, 20)])
@pytest.mark.parametrize("size", [(120, 80), (120, 320)])
def test_opencv_removes_an_object(box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    clean, mask = gradient(*size), box_mask(*size, box)
    source = with_object(clean, mask)
    result = load_eraser("opencv", DEFAULTS).erase(source, mask, seed=0)
    off = np.abs(result.astype(int) - clean)[mask > 0].mean()
    was = np.abs(source.astype(int) - clean)[mask > 0].mean()
    assert was > 60
    assert off < 8
    far = box_mask(*size, (box[0] - 12 if box[0] > 12 else 0, max(0, box[1] - 12), box[2] + 12, box[3] + 12)) == 0
    np.testing.assert_array_equal(result[far], source[far])


def test_null_gives_back_what_came_in() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    result = load_eraser("null", DEFAULTS).erase(pixels, box_mask(70, 50, (0, 0, 69, 50)), seed=1)
    np.testing.assert_array_equal(result, pixels)
    assert result is not pixels


class Painter(Eraser):
    """Paints everything in the seed's grey."""

    def __init__(self, settings: EraserSettings) -> None:
        self.name, self.fingerprint = "painter", "1"
        self.rule = CropRule(size=16, context=settings.context or 3.0, dilate_px=settings.dilate_px or 0, feather_px=0)

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:
        return [np.full_like(crop.pixels, seed) for crop, seed in zip(crops, seeds, strict=True)]


class Unfinished(Eraser):
    """Has no fill."""


NO_ERASER = "text"


def test_a_class_of_ones_own_is_used() -> None:
    eraser = load_eraser(f"{__name__}:Painter", EraserSettings(context=1.0))
    assert eraser.rule.context == 1.0
    result = eraser.erase(gradient(), box_mask(64, 48, (10, 10, 20, 20)), seed=99)
    assert (result[10:20, 10:20] == 99).all()
    assert (result[30:] == gradient()[30:]).all()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("no_such_module:X", "cannot import no_such_module .*Python path of every node"),
        (f"{__name__}:Missing", "Missing of .* is None; it must be a subclass"),
        (f"{__name__}:NO_ERASER", "must be a subclass"),
        (f"{__name__}:Crop", "must be a subclass"),
        (f"{__name__}:Unfinished", "has no fill"),
        (":Painter", "cannot import"),
        (".relative:Painter", "cannot import"),
        ("breaks_at_import:Painter", "cannot import breaks_at_import .*ZeroDivisionError"),
        ("bad_syntax:Painter", "cannot import bad_syntax .*SyntaxError"),
    ],
)
def test_a_class_that_cannot_be_used_says_why(model: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_at_import.py").write_text("1 / 0")
    (tmp_path / "bad_syntax.py").write_text("def")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for call in (load_eraser, identity):
        with pytest.raises(UsageError, match=says) as caught:
            call(model, DEFAULTS)
        assert "\n" not in str(caught.value)


def test_the_identity_holds_what_decides_results() -> None:
    plain = identity("opencv", DEFAULTS)
    assert plain["model"] == "opencv"
    assert plain == identity("opencv", EraserSettings(device="cpu", batch_size=3))
    assert plain != identity("opencv", EraserSettings(context=3.0))
    assert plain != identity("opencv", EraserSettings(dilate_px=9))
    assert plain["fingerprint"] != identity("null", DEFAULTS)["fingerprint"]


def test_names_of_networks_are_told_from_others() -> None:
    assert not any(is_network(name) for name in ("opencv", "null", "package.module:Class"))
    assert all(is_network(name) for name in ("tiny", "owner/name", "/data/model", "s3://bucket/model"))


def test_the_tiny_network_erases_alike_in_every_batch() -> None:
    eraser = load_eraser("tiny", EraserSettings(steps=2, device="cpu"))
    assert identity("tiny", EraserSettings(steps=2, device="cpu"))["fingerprint"] == eraser.fingerprint
    mask = box_mask(64, 48, (20, 10, 40, 30))
    source = with_object(gradient(), mask)
    one, again, other = (eraser.erase(source, mask, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one[mask > 0] != source[mask > 0]).any()
