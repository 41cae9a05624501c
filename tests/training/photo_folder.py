"""A folder of small photos and cut-outs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_photos(root: Path, count: int = 14) -> Path:
    """``count`` smooth grey photos and as many cut-outs (red ellipses) in folders of their own."""
    rng = np.random.default_rng(0)
    for name in ("photos", "cutouts"):
        (root / name).mkdir()
    for i in range(count):
        grey = cv2.normalize(cv2.GaussianBlur(rng.random((150, 200)), (0, 0), 3), np.zeros(0), 30, 220, cv2.NORM_MINMAX).astype(np.uint8)
        cv2.imwrite(str(root / "photos" / f"{i:02d}.jpg"), np.dstack([grey] * 3))
        cutout = np.zeros((60, 50, 4), np.uint8)
        cv2.ellipse(cutout, (25, 30), (20, 26), 0, 0, 360, (0, 0, 255, 255), -1)
        cv2.imwrite(str(root / "cutouts" / f"{i:02d}.png"), cutout)
    return root
