"""What goes into the store and comes out of it: items of a queue, decisions of the log, and what stands of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from core.errors import UsageError
from core.labels import REASONS, VERDICTS, Verdict

Kind = Literal["verdict", "reason", "undo"]
KINDS: Final[tuple[Kind, ...]] = ("verdict", "reason", "undo")
MODES: Final = ("single", "grid", "import")
MOST_VOTES: Final = 3
"""An item without a majority goes to one more person until it has as many votes, or as many as it asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueItem:
    """One item of a queue.

    Attributes:
        id: the record's.
        shard: name of its shard, relative to the dataset; with ``row`` where its pictures are.
        row: its row there, from 0.
        place: its turn, from 0; None for an item that is shown as gold only.
        sampled_by: as ``core.labels.Label.sampled_by``.
        weight: 1 over the probability with which it came into the queue.
        votes_wanted: how many people should judge it.
        gold: the known answer, ``accepted`` or ``rejected``; None for all others.
        score: the discriminator's probability of success; None where it has none.
        sure: whether it may be shown among many, with the discriminator's opinion given beforehand.
        model, seed, round, category: of the record.
        width, height: of the photo in pixels.
    """

    id: str
    shard: str = ""
    row: int = 0
    place: int | None = 0
    sampled_by: str = "random"
    weight: float = 1.0
    votes_wanted: int = 1
    gold: Literal["accepted", "rejected"] | None = None
    score: float | None = None
    sure: bool = False
    model: str | None = None
    seed: int | None = None
    round: int | None = None
    category: str | None = None
    width: int = 0
    height: int = 0

    def __post_init__(self) -> None:
        if not self.id or not self.weight >= 1 or not 1 <= self.votes_wanted <= 99:
            raise UsageError(
                f"queue item {self.id!r}: weight {self.weight} (from 1), votes_wanted {self.votes_wanted} (1 to 99); one is out of range, "
                "or the id is empty"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One row of the log. Nothing in the log is ever changed: who thinks better of it adds a row.

    Attributes:
        id: made by whoever decided (a UUID); the same id twice is the same decision.
        queue, item, annotator: who decided what.
        kind: ``verdict``; ``reason``, added to the verdict ``about``; ``undo``, which takes the verdict ``about`` back.
        verdict: of a verdict.
        reason: one of ``core.labels.REASONS``; of a reason, and of a rejection if you like.
        about: the id of the verdict that a reason or an undo is about.
        milliseconds: from the moment at which the picture was seen to the key; None where nobody measured.
        decided_at: seconds since 1970 by the clock of whoever decided.
        session, sequence: which page, and its how-many-th row.
        mode: ``single``, ``grid`` (one of many on a page) or ``import``.
        picture: a hash of the erasure that was seen; None where nobody looked.
    """

    id: str
    queue: str
    item: str
    annotator: str
    kind: Kind = "verdict"
    verdict: Verdict | None = None
    reason: str | None = None
    about: str | None = None
    milliseconds: int | None = None
    decided_at: float = 0.0
    session: str = ""
    sequence: int = 0
    mode: str = "single"
    picture: str | None = None

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise UsageError(f"decision {self.id!r}: {problem}")

    def _problem(self) -> str | None:
        if not 1 <= len(self.id) <= 64:
            return "its id must have 1 to 64 characters"
        if self.kind not in KINDS or self.mode not in MODES:
            return f"kind {self.kind!r} (allowed are {', '.join(KINDS)}) or mode {self.mode!r} ({', '.join(MODES)}) is none that is known"
        if (self.kind == "verdict") != (self.verdict in VERDICTS):
            return f"rows of kind verdict, and no others, have one of {', '.join(VERDICTS)}; got {self.verdict!r} in {self.kind}"
        if (self.kind == "verdict") != (self.about is None):
            return "a reason and an undo name the verdict that they are about, and a verdict names none"
        if self.reason is not None and (self.reason not in REASONS or self.kind == "undo" or self.verdict in ("accepted", "unsure")):
            return f"reason {self.reason!r}; a rejection may have one of {', '.join(REASONS)}"
        if self.kind == "reason" and self.reason is None:
            return f"a row of kind reason has one of {', '.join(REASONS)}"
        return None


@dataclass(frozen=True, slots=True)
class Standing:
    """What one annotator thinks of one item now: their last verdict that was not taken back, with all reasons given for it."""

    decision: str
    verdict: Verdict
    reasons: tuple[str, ...]
    again: bool
    """Whether they had judged the item before, and that stands as well: it was shown to them twice."""


def standing(rows: Iterable[Decision]) -> Standing | None:
    """What stands of one annotator's rows about one item, in the order of the log; None where all was taken back.

    An undo counts wherever it stands in the log, before its verdict, too: rows that are sent again may come in another order.
    """
    rows = list(rows)
    undone = {row.about for row in rows if row.kind == "undo"}
    left = [row for row in rows if row.kind == "verdict" and row.id not in undone]
    if not left or left[-1].verdict is None:
        return None
    last = left[-1]
    given = [row.reason for row in rows if row.reason and (row.id == last.id or row.about == last.id)]
    reasons = tuple(dict.fromkeys(given)) if last.verdict == "rejected" else ()
    return Standing(last.id, left[-1].verdict, reasons, len(left) > 1)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a queue is.

    Attributes:
        items: how many it has, without those that are gold only.
        decided: how many of them have a vote.
        settled: how many have all the votes that they want, and a majority or ``MOST_VOTES``.
        votes: votes in all.
        accepted, rejected: items with such a majority; the other decided ones are unsure or tied.
        rows: rows of the log, undo and all.
    """

    items: int
    decided: int
    settled: int
    votes: int
    accepted: int
    rejected: int
    rows: int
