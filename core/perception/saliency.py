"""Where an object may be when nothing is known: what no path of little colour change joins to the edge of the photo.

Geodesic saliency (Wei, Wen, Zhu and Sun 2012, "Geodesic saliency using background priors"): backgrounds reach the frame, objects seldom do.
It knows nothing of things: of a photo with many objects, or with one that the frame cuts off, it finds a part or something else.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from core.images import Pixels
from core.perception.grabcut import Floats, geodesic_distance
from core.perception.prompt import FloatBox, check_photo

_SIDE: Final = 160
_SLACK: Final = 4.0
"""Lab units of colour change a step that count for nothing: texture of backgrounds."""
_LEAST_AREA: Final = 0.003
_LARGEST_BOX: Final = 0.85
_GROWN: Final = 0.06


def saliency(photo: Pixels) -> Floats:
    """How far each place is from the frame, in colour change along the cheapest way.

    Args:
        photo: (H, W, 3) uint8 RGB.

    Returns:
        (h, w) float32, 0 to 1, the longer side at most 160; all 0 where nothing stands out.
    """
    check_photo(photo)
    scale = min(1.0, _SIDE / max(photo.shape[:2]))
    size = max(3, round(photo.shape[1] * scale)), max(3, round(photo.shape[0] * scale))
    small = cv2.bilateralFilter(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), 5, 30, 5)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    frame = np.zeros(lab.shape[:2], np.bool_)
    frame[[0, -1]] = True
    frame[:, [0, -1]] = True
    found = cv2.GaussianBlur(np.maximum(geodesic_distance(lab, frame, step_cost=0.0) - _SLACK, 0), (0, 0), 1.5)
    highest = float(found.max())
    return np.asarray(found / highest if highest > 0 else np.zeros_like(found), np.float32)


def salient_boxes(photo: Pixels, most: int = 3) -> list[tuple[FloatBox, float]]:
    """Boxes around what stands out, the most salient first, with the share of all saliency that is in each.

    Args:
        photo: (H, W, 3) uint8 RGB.
        most: at most so many.
    """
    found = saliency(photo)
    if not found.any():
        return []
    height, width = photo.shape[:2]
    levels = np.round(255 * found).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((levels > threshold).astype(np.uint8), connectivity=8)
    total = float(found[labels > 0].sum())
    boxes: list[tuple[FloatBox, float]] = []
    for label in range(1, len(stats)):
        x, y, wide, high, area = (int(value) for value in stats[label])
        if area < _LEAST_AREA * found.size or wide * high > _LARGEST_BOX * found.size:
            continue
        grown = _GROWN * max(wide, high) + 1
        across, down = width / found.shape[1], height / found.shape[0]
        box = (
            max(0.0, (x - grown) * across),
            max(0.0, (y - grown) * down),
            min(float(width), (x + wide + grown) * across),
            min(float(height), (y + high + grown) * down),
        )
        boxes.append((box, float(found[labels == label].sum()) / total))
    return sorted(boxes, key=lambda entry: (-entry[1], entry[0]))[:most]
