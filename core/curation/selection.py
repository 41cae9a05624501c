"""Which items stay: rules, then evaluation sets, then near-duplicates, then so many a class. The same choice however the rows come.

Each item has a rank, a hash of its id and the seed. Of near-duplicates the one with the least rank stays, and of a class the ``per_class``
items with the least ranks: a uniform sample without replacement (bottom-k sampling, Cohen and Kaplan 2007), found in one pass with a heap
of that many a class. Nothing depends on the order of rows, on blocks or on workers.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from core.curation.copies import Copies, photo_keys
from core.curation.duplicates import DuplicateIndex
from core.curation.rules import RULES, Rules
from core.curation.signature import Words, from_bytes
from core.record import item_seed

REASONS: Final = ("failed", *RULES, "evaluation_set", "duplicate", "class_full")
"""Why an item is not chosen, in the order of the funnel; ``failed`` is one that could not be measured."""
KEPT: Final = -1
_ROWS: Final = 4096

Tables = Callable[[], Iterator[pa.Table]]
"""Measures as tables, the same in each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionSettings:
    """What is chosen.

    Attributes:
        rules: of single items.
        per_class: most items of a class; 0 is no limit. Items without a class have none.
        duplicates: ``object`` leaves out what is the same object on a near-duplicate photo, ``photo`` all but one item of near-duplicate
            photos, ``off`` nothing.
        seed: of the ranks.
    """

    rules: Rules
    per_class: int = 500
    duplicates: Literal["object", "photo", "off"] = "off"
    seed: int = 0


@dataclass(slots=True)
class Selection:
    """The choice.

    Attributes:
        reasons: (N,) int8 for each row in order: a number in ``REASONS``, or ``KEPT``.
        near: for rows left out as ``evaluation_set`` or ``duplicate``: the id that they are near.
        classes: how many were chosen of each class (``""`` for none).
    """

    reasons: NDArray[np.int8]
    near: dict[int, str] = field(default_factory=dict)
    classes: Counter[str] = field(default_factory=Counter)

    def funnel(self) -> dict[str, int]:
        """``in``, what each reason dropped, ``out``."""
        counts = {reason: int((self.reasons == number).sum()) for number, reason in enumerate(REASONS)}
        return {"in": len(self.reasons), **counts, "out": int((self.reasons == KEPT).sum())}


def select(
    tables: Tables, settings: SelectionSettings, evaluation: DuplicateIndex | None = None, names: list[str] | None = None
) -> Selection:
    """Choose among the rows of measures.

    Memory: 1 byte a row, a heap of ``per_class`` a class, and with ``duplicates`` about 150 bytes for each row that keeps the rules.

    Args:
        tables: measures, streamed two to four times.
        evaluation: photos of which no near-duplicate may stay, with ``both_ways``.
        names: of the photos of ``evaluation``, by number.
    """
    reasons = [_by_rules(table, settings.rules) for table in tables()]
    chosen = Selection(np.concatenate([np.zeros(0, np.int8), *reasons]))
    if evaluation is not None and len(evaluation):
        _leave_out_evaluation(tables, chosen, evaluation, names or [])
    if settings.duplicates != "off":
        _leave_out_duplicates(tables, chosen, settings)
    _fill_classes(tables, chosen, settings)
    return chosen


def _by_rules(table: pa.Table, rules: Rules) -> NDArray[np.int8]:
    broken = rules.broken(table)
    reasons = np.where(broken >= 0, broken + 1, KEPT).astype(np.int8)
    reasons[pc.is_valid(table["error"]).to_numpy(zero_copy_only=False)] = REASONS.index("failed")
    return reasons


def _living(tables: Tables, chosen: Selection, columns: list[str]) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
    """Row numbers and ``columns`` of the rows that are still in, and have a signature where that is asked for; some thousand at a time."""
    start = 0
    for table in tables():
        alive = chosen.reasons[start : start + len(table)] == KEPT
        if "signature" in columns:
            alive = alive & pc.is_valid(table["signature"]).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(alive)
        part = table.select(columns).take(rows)
        for first in range(0, len(rows), _ROWS):
            yield rows[first : first + _ROWS] + start, part.slice(first, _ROWS)
        start += len(table)


def _signatures(table: pa.Table) -> Words:
    return from_bytes(b"".join(table["signature"].to_pylist()))


def _leave_out_evaluation(tables: Tables, chosen: Selection, evaluation: DuplicateIndex, names: list[str]) -> None:
    reason = REASONS.index("evaluation_set")
    for rows, table in _living(tables, chosen, ["signature"]):
        pairs = evaluation.pairs(_signatures(table))
        order = np.argsort(-pairs.distance, kind="stable")
        for given, found in zip(pairs.given[order], pairs.found[order], strict=True):
            row = int(rows[given])
            chosen.reasons[row] = reason
            chosen.near[row] = names[found] if names else str(found)


def _leave_out_duplicates(tables: Tables, chosen: Selection, settings: SelectionSettings) -> None:
    items = [
        (rows, photo_keys(_signatures(table)), _ranks(table["id"].to_pylist(), settings.seed), _boxes(table))
        for rows, table in _living(tables, chosen, ["id", "signature", "x0", "y0", "x1", "y1"])
    ]
    if not items:
        return
    number, *values = (np.concatenate(column) for column in zip(*items, strict=True))
    copies = Copies(*values, whole_photos=settings.duplicates == "photo")
    for function in (copies.add, copies.compare):
        for _, table in _living(tables, chosen, ["signature"]):
            function(_signatures(table))
    better = copies.better()
    lost = np.flatnonzero(better >= 0)
    chosen.reasons[number[lost]] = REASONS.index("duplicate")
    _name_near(tables, chosen, dict(zip(number[lost].tolist(), number[better[lost]].tolist(), strict=True)))


def _ranks(ids: list[str], seed: int) -> NDArray[np.int64]:
    return np.array([item_seed(item, seed) for item in ids], np.int64)


def _boxes(table: pa.Table) -> NDArray[np.float32]:
    return np.stack([table[name].to_numpy() for name in ("x0", "y0", "x1", "y1")], axis=1).astype(np.float32)


def _name_near(tables: Tables, chosen: Selection, near: dict[int, int]) -> None:
    wanted = np.unique(np.fromiter(near.values(), np.int64, len(near)))
    ids: dict[int, str] = {}
    start = 0
    for table in tables():
        rows = wanted[(wanted >= start) & (wanted < start + len(table))]
        ids |= dict(zip(rows.tolist(), table["id"].take(rows - start).to_pylist(), strict=True))
        start += len(table)
    chosen.near.update({row: ids[other] for row, other in near.items()})


def _fill_classes(tables: Tables, chosen: Selection, settings: SelectionSettings) -> None:
    heaps: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    full = REASONS.index("class_full")
    for rows, table in _living(tables, chosen, ["id", "category"]):
        categories = table["category"].to_pylist()
        ranks = _ranks(table["id"].to_pylist(), settings.seed) if settings.per_class else rows
        for row, rank, category in zip(rows.tolist(), ranks.tolist(), categories, strict=True):
            if not settings.per_class or not category:
                chosen.classes[category or ""] += 1
                continue
            heap = heaps[category]
            if len(heap) < settings.per_class:
                heapq.heappush(heap, (-rank, -row))
            else:
                chosen.reasons[-heapq.heappushpop(heap, (-rank, -row))[1]] = full
    chosen.classes.update({category: len(heap) for category, heap in heaps.items()})
