"""Cut-outs are found by their transparency, in the order of their names."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from core.errors import UsageError
from training.cutouts import read_cutouts


def test_pictures_with_transparency_are_cutouts_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    red, green = (np.full((6, 5, 4), colour, np.uint8) for colour in ((0, 0, 255, 255), (0, 255, 0, 128)))
    cv2.imwrite(str(tmp_path / "deep" / "b.png"), red)
    cv2.imwrite(str(tmp_path / "a.png"), green)
    cv2.imwrite(str(tmp_path / "c.png"), red[..., :3])
    cv2.imwrite(str(tmp_path / "d.png"), red[..., 0])
    cv2.imwrite(str(tmp_path / "e.png"), red.astype(np.uint16))
    cv2.imwrite(str(tmp_path / "f.jpg"), red[..., :3])
    found = read_cutouts(tmp_path)
    assert [each[0, 0].tolist() for each in found] == [[0, 255, 0, 128], [255, 0, 0, 255]]


def test_one_is_too_few(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((6, 5, 4), 255, np.uint8))
    with pytest.raises(UsageError, match="holds 1 cut-outs; at least two"):
        read_cutouts(tmp_path)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"a\.png is no picture"):
        read_cutouts(tmp_path)
