"""Prometheus series of trainings through Ray's own metrics; ``ray_cleanplate_training_*`` where they are read.

They are written in the one actor that the leading worker tells its figures to, so that a series has one writer whichever worker leads.
"""

from __future__ import annotations

from typing import Any, Final

from ray.util.metrics import Gauge

GAUGES: Final = {
    "step": ("cleanplate_training_step", "Steps that are done."),
    "steps": ("cleanplate_training_steps", "Steps of the whole training."),
    "loss": ("cleanplate_training_loss", "Loss of the last step that was told."),
    "validation_loss": ("cleanplate_training_validation_loss", "Loss on what is held out."),
    "images_per_second": ("cleanplate_training_images_per_second", "Images a second, of all workers."),
    "data_wait_share": ("cleanplate_training_data_wait_share", "Share of the time in which workers wait for data, 0 to 1."),
    "mfu": ("cleanplate_training_mfu", "Share of the device's peak that the networks' operations reach, 0 to 1."),
}
NAMES: Final = tuple(name for name, _ in GAUGES.values())


class TrainingGauges:
    """The gauges of one training, by the objective that it has."""

    def __init__(self, objective: str) -> None:
        self._gauges = {key: Gauge(name, words, tag_keys=("objective",)) for key, (name, words) in GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"objective": objective})

    def show(self, values: dict[str, Any]) -> None:
        """Set what is known; what is not said keeps its last value."""
        for key, gauge in self._gauges.items():
            if values.get(key) is not None:
                gauge.set(float(values[key]))
