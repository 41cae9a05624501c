"""Which of a dataset's erasures are shown to people, in which order, and with which probability.

Two parts make up a queue of n items out of N. The random part is drawn evenly from all N: its plain share of successes is unbiased,
however far the queue is. The uncertain part is what the discriminator can tell least, by the distance of its score from one half; an item
without a score is as uncertain as can be. Both are interleaved, so that a queue that is left half done has some of both.

An item of the uncertain part is shown in any case; any other one with the probability (size of the random part) / N. That probability's
inverse is the item's weight (Horvitz and Thompson 1952).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from core.errors import UsageError
from core.labels import RANDOM
from core.record import item_seed
from serving.review.entries import QueueItem

Answer = Literal["accepted", "rejected"]
_OVERLAP_SEED: Final = 0x6F766572


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a queue is made and handed out.

    Attributes:
        items: how many are to be judged; 0 is all.
        random: share of them that is drawn evenly from all of the dataset, 0 to 1.
        overlap: share of the items that several people judge, 0 to 1.
        votes: how many people judge those, from 2.
        gold: share of what a person sees that has a known answer, 0 to 0.5.
        repeats: share of what a person sees that they have judged before, 0 to 0.5.
        sure: a score above this, or below 1 minus this, may be shown in the grid, 0.5 to 1.
        seed: of everything that is drawn.

    Raises:
        UsageError: a value out of its range.
    """

    items: int = 0
    random: float = 0.2
    overlap: float = 0.1
    votes: int = 2
    gold: float = 0.04
    repeats: float = 0.02
    sure: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "items": (0, 10**9),
            "random": (0, 1),
            "overlap": (0, 1),
            "votes": (2, 99),
            "gold": (0, 0.5),
            "repeats": (0, 0.5),
            "sure": (0.5, 1),
        }
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"--{name} is {getattr(self, name)}; it must be from {least:g} to {most:g}")

    def to_json(self) -> dict[str, Any]:
        """For ``Store.add_queue``."""
        return asdict(self)


def choose(table: pa.Table, policy: Policy, gold: Mapping[str, Answer] | None = None) -> Iterator[QueueItem]:
    """The items of a queue; the same for the same table, policy and gold.

    Args:
        table: what can be judged (``dataset.read_candidates``): columns ``id``, ``score`` and those of ``QueueItem`` that it has.
        policy: what is asked for.
        gold: known answers by id; ids that the table lacks are left out. Gold items that were not chosen are shown as gold only.

    Raises:
        UsageError: there is nothing to choose from.
    """
    gold = gold or {}
    total = len(table)
    if not total:
        raise UsageError("there is no erasure to judge; run cleanplate clean or score first")
    ids = table.column("id").to_pylist()
    score_N = table.column("score").to_numpy().astype(np.float64)
    distance_N = np.abs(np.nan_to_num(score_N, nan=0.5) - 0.5)
    rng = np.random.default_rng(policy.seed)
    wanted = min(policy.items or total, total)
    drawn = rng.permutation(total)[: round(policy.random * wanted)]
    # equal distances in random order: otherwise the first shards would come first
    doubtful = np.lexsort((rng.permutation(total), distance_N))[: wanted - len(drawn)]
    if wanted == total:
        doubtful = np.lexsort((rng.permutation(total), distance_N))
    certain_N = np.zeros(total, bool)
    certain_N[doubtful] = True
    certain_N |= np.fromiter((name in gold for name in ids), bool, total)
    random_N = np.zeros(total, bool)
    random_N[drawn] = True
    order = _interleaved(drawn, doubtful[~random_N[doubtful]])
    place_of = {int(item): place for place, item in enumerate(order)}
    extra = [item for item in range(total) if ids[item] in gold and item not in place_of]
    columns = {name: table.column(name) for name in _TAKEN if name in table.column_names}
    for item in [*order.tolist(), *extra]:
        score = None if np.isnan(score_N[item]) else float(score_N[item])
        sure = score is not None and (score > policy.sure or score < 1 - policy.sure)
        known = gold.get(ids[item])
        kind = RANDOM if random_N[item] else "gold" if item not in place_of else "sure" if sure else "uncertain"
        overlaps = item_seed(ids[item], policy.seed, _OVERLAP_SEED) / 2**63 < policy.overlap
        yield QueueItem(
            id=ids[item],
            place=place_of.get(item),
            sampled_by=kind,
            weight=1.0 if certain_N[item] else total / len(drawn),
            votes_wanted=policy.votes if overlaps else 1,
            gold=known,
            score=score,
            # the random part and gold are judged without the discriminator's opinion before the eyes
            sure=sure and not random_N[item] and known is None,
            **{name: column[item].as_py() for name, column in columns.items()},
        )


_TAKEN: Final = ("shard", "row", "model", "seed", "round", "category", "width", "height")


def _interleaved(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Both, each in its own order, evenly mixed."""
    turns = np.concatenate([(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in (first, second)])
    return np.concatenate([first, second])[np.argsort(turns, kind="stable")].astype(np.int64)
