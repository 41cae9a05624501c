"""The figures of ``evaluate`` that need networks of others: FID, KID, CMMD over all items, ReMOVE and ReMOVE+ of each. Paths by flags.

What has no path is left out by name. Pictures go through a network one at a time; of an item only its features are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from core.errors import ItemError
from core.images import Pixels
from core.metrics.distances import clip_distance, frechet_distance, kernel_distance
from core.metrics.features import ClipImages, Inception, SamFeatures
from core.metrics.removal import remove_plus_score, remove_score

REMOVAL_FIGURES: Final = ("remove", "remove_plus")
SET_FIGURES: Final = ("fid", "kid", "cmmd")


class EvaluationNetworks:
    """The networks that paths are given for, and the features of all items so far; may be called by many threads.

    Raises:
        UsageError: a path holds no such network.
    """

    def __init__(self, *, inception: str | None, clip: str | None, sam: str | None, device: str) -> None:
        self.left_out: dict[str, str] = {}
        self._lock = threading.Lock()
        self._nets: dict[str, Any] = {}
        self._sam: SamFeatures | None = None
        self._features: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
        if inception is not None:
            self._nets["inception"] = Inception(inception, device=device)
        else:
            self.left_out["fid, kid"] = "no --inception"
        if clip is not None:
            self._nets["clip"] = ClipImages(clip, device=device)
        else:
            self.left_out["cmmd"] = "no --clip"
        if sam is not None:
            self._sam = SamFeatures(sam, device=device)
        else:
            self.left_out["remove, remove_plus"] = "no --sam"

    def add(self, item: str, output: Pixels, truth: Pixels) -> None:
        """Take an item's result and truth, (H, W, 3) uint8, into the sets that are compared."""
        for name, network in self._nets.items():
            with self._lock:
                self._features.setdefault(name, []).append((item, network.features(output), network.features(truth)))

    def removal(self, output: Pixels, source: Pixels, mask: Pixels, effects: Pixels | None) -> dict[str, float | None]:
        """``remove`` and ``remove_plus`` of a result; None where they have no meaning for it.

        ReMOVE+ is about object and effects, and has none where nobody knows the effects.
        """
        if self._sam is None:
            return dict.fromkeys(REMOVAL_FIGURES)
        sam = self._sam
        with self._lock:
            found = {"remove": _or_none(lambda: remove_score(sam, output, mask)), "remove_plus": None}
            if effects is not None:
                region = np.maximum(mask, effects)
                found["remove_plus"] = _or_none(lambda: remove_plus_score(sam, output, source, region))
        return found

    def distances(self) -> dict[str, dict[str, float]]:
        """``fid``, ``kid`` and ``cmmd`` of all results from all truths, each with the ``count`` of pictures; of two pictures or more."""
        found: dict[str, dict[str, float]] = {}
        for network, names in (("inception", {"fid": frechet_distance, "kid": kernel_distance}), ("clip", {"cmmd": clip_distance})):
            # threads are done in any order; sums in floating point depend on it
            kept = sorted(self._features.get(network, []), key=lambda one: one[0])
            if len(kept) >= 2:
                outputs, truths = (np.stack([one[place] for one in kept]) for place in (1, 2))
                found |= {name: {"value": measure(outputs, truths), "count": len(kept)} for name, measure in names.items()}
        return found


def _or_none(score: Callable[[], float]) -> float | None:
    try:
        return score()
    except ItemError:  # the mask covers nothing whole, or everything
        return None
