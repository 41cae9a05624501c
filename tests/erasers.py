"""Erasers of one's own, as a user would write them, that misbehave on purpose.

A photo is poisonous when its corner pixel is pure magenta.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.crops import Crop, CropRule
from core.eraser import Eraser, EraserSettings

POISON = (255, 0, 255)


def is_poison(crop: Crop) -> bool:
    return bool((crop.pixels[0, 0] == POISON).all())


class Noisy(Eraser):
    """Fills with noise of the item's seed, whole crop; needs ``SECONDS`` an image. Its bytes show whether seeds belong to items."""

    SECONDS = float(os.environ.get("TEST_ERASER_SECONDS", "0"))
    batch_size = 4

    def __init__(self, settings: EraserSettings) -> None:  # noqa: ARG002 - there is nothing to choose
        self.name, self.fingerprint = "noisy", "1"
        self.rule = CropRule(size=32, context=1.5, feather_px=2)

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:
        time.sleep(self.SECONDS * len(crops))
        return [
            np.random.default_rng(seed).integers(0, 256, crop.pixels.shape, dtype=np.uint8) for crop, seed in zip(crops, seeds, strict=True)
        ]


class Raising(Noisy):
    """Fails whole batches that hold a poisonous photo."""

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:
        if any(is_poison(crop) for crop in crops):
            raise RuntimeError("this photo is poison")
        return super().fill(crops, seeds)


class Killing(Noisy):
    """Dies at a poisonous photo, as from a fault in a native library, and takes its process along."""

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:
        if any(is_poison(crop) for crop in crops):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fill(crops, seeds)


class Located(Noisy):
    """Leaves a file named after the Ray node that it ran on in the folder ``TEST_NODES``."""

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:
        import ray

        Path(os.environ["TEST_NODES"], ray.get_runtime_context().get_node_id()).touch()
        return super().fill(crops, seeds)


class OnDevice(Noisy):
    """Leaves a file named after the devices that its process may see in the folder ``TEST_DEVICES``; ``none`` where Ray gave it none."""

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:
        import ray

        devices = [str(number) for number in ray.get_gpu_ids()]
        if devices:
            Path(os.environ["TEST_DEVICES"], ",".join(devices)).touch()
        return super().fill(crops, seeds)
