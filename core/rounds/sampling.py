"""Which items a stage takes: of the collections without replacement, and of the results those that people are shown.

Both are functions of the ids and the seed alone, so that a step that is done again takes the same items.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from core.plan import PlanRow

FIRST: Final = -1
"""Place before all items of a collection's order."""


def place_of(item_id: str, seed: int, purpose: str = "collection") -> int:
    """The place (0 to 2**63 - 1) of an item in the random order that ``seed`` and ``purpose`` draw."""
    name = f"{purpose}\0{seed}\0{item_id}"
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def next_items(rows: Iterable[PlanRow], count: int, *, after: int, seed: int) -> list[tuple[int, PlanRow]]:
    """The next ``count`` items (fewer at the end) beyond place ``after`` in the seed's random order, with their places, in that order.

    Rows are streamed; memory holds ``count`` of them. Broken rows, and all but the first of an id, are passed over.
    """
    placed = ((place_of(row.id, seed), number, row) for number, row in enumerate(rows) if row.error is None)
    # an id that stands twice has one place: some more are kept, so that the second of a pair takes nobody's turn
    chosen = heapq.nsmallest(count + count // 8 + 8, (one for one in placed if one[0] > after))
    found: dict[str, tuple[int, PlanRow]] = {}
    for place, _, row in chosen:
        found.setdefault(row.id, (place, row))
    return list(found.values())[:count]


@dataclass(frozen=True, slots=True)
class Queued:
    """A result that people are to judge.

    Attributes:
        id: of the item.
        score: of the discriminator, 0 to 1; None where there is none.
        sampled_by: ``random``, or ``uncertain``.
        weight: 1 over the probability with which it was chosen, from 1, as ``core.labels.Label`` has it.
    """

    id: str
    score: float | None
    sampled_by: str
    weight: float


def choose_for_people(scores: Sequence[tuple[str, float | None]], count: int, *, random_share: float, seed: int) -> list[Queued]:
    """``count`` results of all: a random part, which says how good all are, and those that the discriminator is least sure of.

    A score of one half is the least sure. Where all results are chosen, all are random ones.

    Args:
        scores: id and score of every result, in any order.
        random_share: share of the chosen that is drawn at random, above 0.
    """
    shuffled = sorted(scores, key=lambda one: (place_of(one[0], seed, "people"), one[0]))
    count = min(count, len(shuffled))
    drawn = count if count == len(shuffled) else min(count, max(1, round(count * random_share)))
    weight = len(shuffled) / drawn if drawn else 1.0
    unsure = sorted(shuffled[drawn:], key=_certainty)[: count - drawn]
    # what is no surer than the last of these would have been shown in any case
    limit = _certainty(unsure[-1]) if unsure else (-1.0, "")
    chosen = [Queued(one[0], one[1], "random", 1.0 if _certainty(one) <= limit else weight) for one in shuffled[:drawn]]
    return chosen + [Queued(item, score, "uncertain", 1.0) for item, score in unsure]


def _certainty(one: tuple[str, float | None]) -> tuple[float, str]:
    """How far a score is from one half, ties by id; an item without a score is as uncertain as can be."""
    return abs((0.5 if one[1] is None else one[1]) - 0.5), one[0]


def is_held_out(item_id: str, share: float) -> bool:
    """Whether an item is held out of training; it is so in every round, whatever else there is."""
    return place_of(item_id, 0, "held-out") < share * 2**63
