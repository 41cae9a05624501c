"""The desk: one queue of one dataset, with all that its routes need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.errors import UsageError
from serving.review.annotators import Annotators
from serving.review.dataset import Picture, Pictures
from serving.review.hand_out import HandedOut, hand_out
from serving.review.policy import Policy
from serving.review.store import Store


@dataclass(frozen=True, slots=True)
class Desk:
    """One queue that is open for annotators."""

    store: Store
    queue: str
    pictures: Pictures
    annotators: Annotators
    gold: float
    repeats: float

    @classmethod
    def open(cls, store: Store, queue: str) -> Desk:
        """The desk of a queue in the store.

        Raises:
            UsageError: there is no such queue.
        """
        settings: dict[str, Any] = store.settings(queue)
        shares = Policy()
        return cls(
            store,
            queue,
            Pictures(settings["source"]),
            Annotators(store),
            float(settings.get("gold", shares.gold)),
            float(settings.get("repeats", shares.repeats)),
        )

    def next_items(self, annotator: str, count: int, holding: list[str], *, grid: bool) -> HandedOut:
        """See ``hand_out``."""
        return hand_out(self.store, self.queue, annotator, count, holding=holding, grid=grid, gold=self.gold, repeats=self.repeats)

    def picture(self, item: str, role: str) -> Picture:
        """See ``Pictures.get``.

        Raises:
            UsageError: the queue has no such item.
        """
        found = self.store.item(self.queue, item)
        if found is None:
            raise UsageError(f"queue {self.queue} has no item {item}")
        return self.pictures.get(found, role)
