"""Segmenters: the mask of the object that a box or clicks mean. A model's name chooses which."""

from __future__ import annotations

import functools
from typing import Final, Protocol

from core.images import Pixels
from core.perception.prompt import Click, Prompt, Segmentation

__all__ = ["GRABCUT", "Click", "Prompt", "Segmentation", "Segmenter", "load_segmenter", "segment"]

GRABCUT: Final = "grabcut"


class Segmenter(Protocol):
    """Anything that cuts out one object."""

    def segment(self, photo: Pixels, prompt: Prompt) -> Segmentation:
        """The mask of the object that ``prompt`` means on ``photo``, (H, W, 3) uint8 RGB.

        Raises:
            UsageError: the photo or the prompt is malformed.
            ItemError: stage ``segment``: nothing, or the whole photo, would be the object.
        """


def load_segmenter(model: str = GRABCUT, *, device: str = "auto", dtype: str = "auto") -> Segmenter:
    """The segmenter with that name.

    Args:
        model: ``grabcut`` (no weights, no torch), or SAM or SAM 2: a folder, ``s3://`` folder or hub id (``facebook/sam-vit-huge``).
        device, dtype: see ``core.device``; of no matter to ``grabcut``.

    Raises:
        UsageError: there is no such model, or it is of another kind or broken.
    """
    if model == GRABCUT:
        from core.perception.grabcut import GrabCutSegmenter

        return GrabCutSegmenter()
    from core.perception.sam import SamSegmenter

    return SamSegmenter(model, device=device, dtype=dtype)


_shared = functools.lru_cache(maxsize=2)(load_segmenter)


def segment(photo: Pixels, prompt: Prompt, *, model: str = GRABCUT, device: str = "auto", dtype: str = "auto") -> Segmentation:
    """``load_segmenter(model).segment(photo, prompt)``; the last two models stay loaded, so that further clicks are quick.

    Raises:
        UsageError: as ``load_segmenter`` and ``Segmenter.segment``.
        ItemError: as ``Segmenter.segment``.
    """
    return _shared(model, device=device, dtype=dtype).segment(photo, prompt)
