"""Objects of photos that have no masks: boxes by words (detector) or by what stands out, masks by a segmenter, rules on their size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2

from core.errors import ItemError
from core.images import Pixels
from core.masks import mask_box
from core.perception.box_detection import Detection, Detector
from core.perception.prompt import FloatBox, Prompt
from core.perception.saliency import salient_boxes
from core.perception.segmentation import Segmenter

SALIENT: Final = "salient"
_TRIED: Final = 8
"""Boxes of a photo that are cut out at most; the first that keeps the rules is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRules:
    """Which objects are worth removing. RORem leaves out what is too small or too large; its limits are not published.

    Attributes:
        min_area, max_area: of the mask, share of the photo.
        min_side: least shorter side of the mask's box, pixels.
        min_score: of the box.
    """

    min_area: float = 0.005
    max_area: float = 0.5
    min_side: int = 16
    min_score: float = 0.0

    def broken(self, mask: Pixels) -> str | None:
        """Why the (H, W) mask is not taken, in a few words; None where it is."""
        share = cv2.countNonZero(mask) / mask.size
        x0, y0, x1, y1 = mask_box(mask)
        if share < self.min_area or share > self.max_area:
            return f"covers {share:.2%} of the photo, allowed are {self.min_area:.2%} to {self.max_area:.0%}"
        if min(x1 - x0, y1 - y0) < self.min_side:
            return f"is {x1 - x0} x {y1 - y0} pixels, allowed are sides from {self.min_side}"
        return None


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object: (H, W) uint8 mask, 255 = object; the word that found it (None for what stands out); 0 to 1."""

    mask: Pixels
    label: str | None
    score: float


class ObjectFinder:
    """Finds one object a photo.

    Args:
        segmenter: makes masks of boxes.
        detector: None: what stands out.
        words: for the detector.
    """

    def __init__(self, segmenter: Segmenter, rules: ObjectRules, detector: Detector | None = None, words: Sequence[str] = ()) -> None:
        self._segmenter, self._rules, self._detector, self._words = segmenter, rules, detector, words

    def find(self, photo: Pixels) -> FoundObject:
        """The best object on (H, W, 3) uint8 RGB that keeps the rules.

        Raises:
            ItemError: stage ``segment``, code ``no_object`` where nothing is found, ``no_fitting_object`` where nothing keeps the rules.
        """
        boxes = self._boxes(photo)
        if not boxes:
            asked = f"none of {', '.join(self._words)} is on the photo" if self._detector else "nothing stands out from its surroundings"
            raise ItemError("segment", "no_object", f"{asked}; use other words, or leave the photo out")
        reasons = []
        for box, label, score in boxes[:_TRIED]:
            if score < self._rules.min_score:
                reasons.append(f"scores {score:.2f}, asked are {self._rules.min_score:.2f}")
                continue
            try:
                mask = self._segmenter.segment(photo, Prompt(box=box)).mask
            except ItemError as error:
                reasons.append(error.message)
                continue
            reason = self._rules.broken(mask)
            if reason is None:
                return FoundObject(mask, label, score)
            reasons.append(reason)
        raise ItemError("segment", "no_fitting_object", f"of {len(reasons)} objects none fits: the first {reasons[0]}; change the rules")

    def _boxes(self, photo: Pixels) -> list[tuple[FloatBox, str | None, float]]:
        if self._detector is None:
            return [(box, None, score) for box, score in salient_boxes(photo)]
        found: list[Detection] = self._detector.detect([photo], list(self._words))[0]
        return [(detection.box, detection.label, detection.score) for detection in found]
