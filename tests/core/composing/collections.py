"""A small collection of photos and cut-outs, drawn here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from core.composing.collection import Collection, list_pictures, read_annotations

NOTES: dict[str, Any] = {
    "bgs": [
        {
            "file": "photos/ground.png",
            "kind": "ground",
            "hz": 0.3,
            "rect": [0.1, 0.9, 0.6, 0.95],
            "cam": 1.6,
            "light": "sun",
            "licence": "CC0",
        },
        {"file": "photos/top.png", "kind": "top", "rect": [0.1, 0.9, 0.1, 0.9], "light": "soft", "licence": "CC0"},
        {"file": "photos/sky.png", "kind": "sky", "rect": [0.1, 0.9, 0.1, 0.6]},
    ],
    "objs": [
        {"file": "cutouts/01_red_bin.png", "pose": "g", "h": 0.7, "licence": "CC0"},
        {"file": "cutouts/02_ball.png", "pose": "gt", "h": 0.6},
        {"file": "cutouts/03_bird.png", "pose": "f", "h": 0.5, "category": "bird"},
    ],
}


def photo(number: int, width: int = 240, height: int = 180) -> np.ndarray:
    """A sky over textured ground, (H, W, 3) uint8."""
    rng = np.random.default_rng(number)
    rows = np.linspace(230, 90, height)[:, None, None]
    texture = cv2.GaussianBlur(rng.normal(0, 40, (height, width, 3)), (0, 0), 1.0)
    return np.clip(rows + texture + rng.uniform(-20, 20, 3), 0, 255).astype(np.uint8)


def cutout(number: int, width: int = 90, height: int = 130) -> np.ndarray:
    """A shaded ellipse with two feet on a clear ground, (H, W, 4) uint8."""
    rng = np.random.default_rng(100 + number)
    alpha = np.zeros((height, width), np.uint8)
    cv2.ellipse(alpha, (width // 2, int(height * 0.42)), (int(width * 0.4), int(height * 0.38)), 0, 0, 360, 255, -1, cv2.LINE_AA)
    for foot in (0.35, 0.6):
        cv2.rectangle(alpha, (int(width * foot), int(height * 0.7)), (int(width * foot) + 7, height - 4), 255, -1)
    colours = np.clip(rng.uniform(40, 220, 3) + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)
    return np.dstack([colours, alpha])


def write_collection(folder: Path) -> Path:
    """photos/, cutouts/ and notes.json below ``folder``; one photo is without a note."""
    (folder / "photos").mkdir(parents=True)
    (folder / "cutouts").mkdir()
    for number, name in enumerate(("ground", "top", "sky", "unknown")):
        Image.fromarray(photo(number)).save(folder / "photos" / f"{name}.png")
    for number, name in enumerate(("01_red_bin", "02_ball", "03_bird")):
        Image.fromarray(cutout(number)).save(folder / "cutouts" / f"{name}.png")
    (folder / "notes.json").write_text(json.dumps(NOTES))
    return folder


def open_collection(folder: Path, notes: str | None = None) -> Collection:
    """The collection that ``write_collection`` wrote; ``notes`` may be none."""
    annotations, _ = read_annotations(notes or str(folder / "notes.json"))
    return Collection(list_pictures(str(folder / "photos"), "photos"), list_pictures(str(folder / "cutouts"), "cut-outs"), annotations)
