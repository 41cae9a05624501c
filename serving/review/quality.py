"""How well people judge: agreement with each other and with themselves, accuracy on gold, seconds a decision, streaks too fast to look."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final

from core.agreement import Agreement, cohen_kappa, krippendorff_alpha, pairwise_kappa
from core.labels import success_rate, weighted_rate
from core.metrics.statistics import Estimate, wilson_interval
from serving.review.store import Store

FAST_MILLISECONDS: Final = 400
STREAK: Final = 10
"""So many decisions in a row, each faster than ``FAST_MILLISECONDS``, are a streak."""


def quality_report(store: Store, queue: str) -> dict[str, Any]:
    """Everything that the log tells about a queue and its annotators, as JSON values; figures that nothing is known of are None.

    ``success_rate`` is of the whole dataset, from the random part; ``weighted_rate`` from all labels by weight, to be trusted only when the
    queue is done. ``flags`` are words about what to look into.
    """
    verdicts: dict[str, dict[str, str]] = defaultdict(dict)
    gold: dict[str, list[bool]] = defaultdict(list)
    units: dict[str, list[str]] = defaultdict(list)
    for vote in store.votes(queue):
        verdicts[vote["annotator"]][vote["item"]] = vote["verdict"]
        units[vote["item"]].append(vote["verdict"])
        if vote["gold"] is not None:
            gold[vote["annotator"]].append(vote["verdict"] == vote["gold"])
    rows = [row for row in store.log(queue) if row["kind"] != "reason"]
    progress = store.progress(queue)
    annotators = {name: _annotator(name, rows, gold.get(name, [])) for name in sorted({row["annotator"] for row in rows})}
    return {
        "queue": queue,
        **{name: getattr(progress, name) for name in progress.__slots__},
        "success_rate": _estimate(success_rate(store.labels(queue))),
        "weighted_rate": weighted_rate(store.labels(queue)),
        "alpha": _agreement(krippendorff_alpha(units.values())),
        "kappa": [{"annotators": list(pair), **_agreement(found)} for pair, found in pairwise_kappa(verdicts).items()],
        "annotators": annotators,
        "flags": [flag for found in annotators.values() for flag in found["flags"]],
    }


def _annotator(name: str, rows: Iterable[Mapping[str, Any]], right: Sequence[bool]) -> dict[str, Any]:
    mine = [row for row in rows if row["annotator"] == name]
    undone = {row["about"] for row in mine if row["kind"] == "undo"}
    given = [row for row in mine if row["kind"] == "verdict"]
    left = [row for row in given if row["id"] not in undone]
    first, second = _repeated(left)
    timed = [row["milliseconds"] for row in left if row["milliseconds"] is not None and row["mode"] == "single"]
    streaks = fast_streaks(row["milliseconds"] if row["mode"] == "single" else None for row in given)
    accuracy = wilson_interval(sum(right), len(right)) if right else None
    flags = [f"{name}: {length} decisions in a row faster than {FAST_MILLISECONDS} ms each" for length in streaks]
    if accuracy is not None and accuracy.high < 0.8:
        flags.append(f"{name}: {sum(right)} of {len(right)} gold items right")
    return {
        "decisions": len(left),
        "undone": len(given) - len(left),
        **{verdict: sum(row["verdict"] == verdict for row in left) for verdict in ("accepted", "rejected", "unsure")},
        "seconds": median(timed) / 1000 if timed else None,
        "gold": _estimate(accuracy),
        "repeats": _agreement(cohen_kappa(first, second)),
        "streaks": streaks,
        "flags": flags,
    }


def _repeated(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """What was said of items that one person judged twice: before, and after."""
    before: dict[str, str] = {}
    pairs = []
    for row in rows:
        if row["item"] in before:
            pairs.append((before[row["item"]], row["verdict"]))
        before[row["item"]] = row["verdict"]
    return [one for one, _ in pairs], [other for _, other in pairs]


def fast_streaks(milliseconds: Iterable[int | None]) -> list[int]:
    """Lengths of all streaks (``STREAK``) in one person's decisions, in order; None (not measured, or one of a page) ends a streak."""
    lengths, length = [], 0
    for value in [*milliseconds, None]:
        if value is not None and value < FAST_MILLISECONDS:
            length += 1
            continue
        if length >= STREAK:
            lengths.append(length)
        length = 0
    return lengths


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else {"share": found.mean, "low": found.low, "high": found.high, "count": found.count}


def _agreement(found: Agreement) -> dict[str, Any]:
    return {"coefficient": found.coefficient, "observed": found.observed, "count": found.count}
