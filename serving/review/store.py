"""The store: queues of items, the append-only log of decisions, and what stands of it.

The log is the truth. Votes and counts are kept up with it in the same transaction, so that reading labels and progress costs no replay;
they follow from the log alone (``entries.standing``), whatever was sent twice or in another order.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, case, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from core.errors import CleanplateError, UsageError
from core.labels import Label, label_of
from serving.review.database import Database
from serving.review.entries import MOST_VOTES, Decision, Progress, QueueItem, standing
from serving.review.tables import decisions, items, leases, queues, votes

LEASE_SECONDS: Final = 600.0
"""How long an item waits for the person to whom it was given, from when their page was last heard of."""
_ROWS: Final = 500
_DECISION: Final = [field.name for field in fields(Decision)]


def open_store(url: str) -> Store:
    """The store in the database at an SQLAlchemy URL, created or migrated where it has to be; see ``Database`` for URLs and errors."""
    return Store(Database(url))


class Store:
    """May be used by many threads and many processes at once."""

    def __init__(self, database: Database) -> None:
        self.database = database
        dialect = database.engine.dialect.name
        self.insert = postgresql.insert if dialect == "postgresql" else sqlite.insert

    def close(self) -> None:
        """Close the connections to the database."""
        self.database.close()

    def add_queue(self, queue: str, entries: Iterable[QueueItem], *, source: str = "", settings: Mapping[str, Any] | None = None) -> int:
        """Make a queue of items; returns how many were new. Items that it has already stay as they are.

        Args:
            queue: its name, 1 to 200 characters.
            entries: the items.
            source: URI of the dataset that they are of.
            settings: how they were chosen and are handed out (``policy.Policy``), for the record and the desk.

        Raises:
            UsageError: the name is none, or the queue is of another dataset.
        """
        if not 1 <= len(queue) <= 200:
            raise UsageError(f"a queue's name has 1 to 200 characters; got {queue!r}")
        with self.database.writing() as connection:
            values = {"name": queue, "input": source, "settings": json.dumps(dict(settings or {})), "created_at": time.time()}
            connection.execute(self.insert(queues).values(values).on_conflict_do_nothing())
            known = connection.execute(select(queues.c.input).where(queues.c.name == queue)).scalar_one()
            if known != source:
                raise UsageError(f"queue {queue} is of the dataset {known}, not {source}; give another --queue, or that --input")
            count_before = self._count(connection, queue)
            rows = ({**asdict(entry), "queue": queue, "votes": 0, "settled": False} for entry in entries)
            while chunk := list(islice(rows, _ROWS)):
                connection.execute(self.insert(items).on_conflict_do_nothing(), chunk)
            return self._count(connection, queue) - count_before

    def _count(self, connection: Connection, queue: str) -> int:
        return int(connection.execute(select(func.count()).select_from(items).where(items.c.queue == queue)).scalar_one())

    def has_queue(self, queue: str) -> bool:
        """Whether there is a queue of that name."""
        with self.database.reading() as connection:
            return connection.execute(select(queues.c.name).where(queues.c.name == queue)).one_or_none() is not None

    def settings(self, queue: str) -> dict[str, Any]:
        """How the queue was made; ``source`` is the dataset.

        Raises:
            UsageError: there is no such queue.
        """
        with self.database.reading() as connection:
            found = connection.execute(select(queues.c.input, queues.c.settings).where(queues.c.name == queue)).one_or_none()
            names = list(connection.execute(select(queues.c.name).order_by(queues.c.name).limit(20)).scalars())
        if found is None:
            raise UsageError(f"there is no queue {queue}; {self.database.name} has {', '.join(names) or 'none'}")
        return {**json.loads(found.settings), "source": found.input}

    def item(self, queue: str, item: str) -> QueueItem | None:
        """An item of a queue; None where it has none of that id."""
        columns = [items.c[field.name] for field in fields(QueueItem)]
        with self.database.reading() as connection:
            row = connection.execute(select(*columns).where(items.c.queue == queue, items.c.id == item)).one_or_none()
        return None if row is None else QueueItem(**row._mapping)

    def record(self, decision: Decision) -> None:
        """Add a decision to the log. The same decision (by its id) again changes nothing.

        Raises:
            UsageError: the queue has no such item, or the id is that of another decision.
            StorageUnavailable: the database does not answer; nothing was written.
        """
        (refused,) = self.record_all([decision])
        if refused:
            raise UsageError(refused)

    def record_all(self, batch: Sequence[Decision]) -> list[str | None]:
        """Add many, in this order, in one transaction; for each None, or why it was refused. Errors as ``record``, but for UsageError."""
        answers: list[str | None] = []
        with self.database.writing() as connection:
            places = sorted({(row.queue, row.item) for row in batch})
            # all in one order, so that two transactions never wait for each other
            locked = {place: self._lock(connection, *place) for place in places}
            for row in batch:
                try:
                    self._add(connection, row, locked[row.queue, row.item])
                    answers.append(None)
                except CleanplateError as error:  # raised before anything was written
                    answers.append(str(error))
        return answers

    def _lock(self, connection: Connection, queue: str, item: str) -> Row[Any] | None:
        return connection.execute(select(items).where(items.c.queue == queue, items.c.id == item).with_for_update()).one_or_none()

    def _add(self, connection: Connection, row: Decision, item: Row[Any] | None) -> None:
        if item is None:
            raise UsageError(f"decision {row.id}: queue {row.queue} has no item {row.item}")
        values = {**asdict(row), "recorded_at": time.time(), **{name: item._mapping[name] for name in ("sampled_by", "weight", "score")}}
        added = self.insert(decisions).values(values).on_conflict_do_nothing(index_elements=["id"]).returning(decisions.c.number)
        if connection.execute(added).one_or_none() is None:
            known = connection.execute(select(decisions).where(decisions.c.id == row.id)).one()
            for name in ("queue", "item", "annotator", "kind", "verdict", "about"):
                if known._mapping[name] != getattr(row, name):
                    raise UsageError(f"decision {row.id} is in the log with {name} {known._mapping[name]!r}, not {getattr(row, name)!r}")
            return
        self._settle(connection, row)
        mine = and_(leases.c.queue == row.queue, leases.c.item == row.item, leases.c.annotator == row.annotator)
        if row.kind != "reason":
            connection.execute(delete(leases).where(mine))
        if row.kind == "undo":  # it is before their eyes again
            values = {"queue": row.queue, "item": row.item, "annotator": row.annotator, "expires_at": time.time() + LEASE_SECONDS}
            connection.execute(self.insert(leases).values(values))

    def _settle(self, connection: Connection, row: Decision) -> None:
        """Bring the annotator's vote and the item's counts up to the log."""
        theirs = and_(decisions.c.queue == row.queue, decisions.c.item == row.item, decisions.c.annotator == row.annotator)
        found = connection.execute(select(decisions).where(theirs).order_by(decisions.c.number)).all()
        stands = standing(Decision(**{name: entry._mapping[name] for name in _DECISION}) for entry in found)
        place = and_(votes.c.queue == row.queue, votes.c.item == row.item)
        connection.execute(delete(votes).where(place, votes.c.annotator == row.annotator))
        if stands is not None:
            number = next(entry.number for entry in found if entry.id == stands.decision)
            values = {"queue": row.queue, "item": row.item, "annotator": row.annotator, "number": number, **_stored(stands)}
            connection.execute(self.insert(votes).values(values))
        all_votes = list(connection.execute(select(votes.c.verdict).where(place)).scalars())
        this = and_(items.c.queue == row.queue, items.c.id == row.item)
        wanted = connection.execute(select(items.c.votes_wanted).where(this)).scalar_one()
        connection.execute(update(items).where(this).values(votes=len(all_votes), settled=is_settled(all_votes, wanted)))

    def labels(self, queue: str) -> Iterator[Label]:
        """The label of every item that somebody decided, by id. An unknown queue has none."""
        columns = (votes.c.item, votes.c.verdict, votes.c.reasons, items.c.sampled_by, items.c.weight)
        joined = votes.join(items, and_(items.c.queue == votes.c.queue, items.c.id == votes.c.item))
        asked = select(*columns).select_from(joined).where(votes.c.queue == queue).order_by(votes.c.item, votes.c.annotator)
        with self.database.reading() as connection:
            group: list[Any] = []
            for row in connection.execution_options(yield_per=_ROWS).execute(asked):
                if group and group[0].item != row.item:
                    yield _label(group)
                    group = []
                group.append(row)
            if group:
                yield _label(group)

    def log(self, queue: str) -> Iterator[dict[str, Any]]:
        """All rows of the log in its order: a ``Decision``'s fields, ``number``, ``recorded_at``, and the item's as they were then."""
        asked = select(decisions).where(decisions.c.queue == queue).order_by(decisions.c.number)
        with self.database.reading() as connection:
            for row in connection.execution_options(yield_per=_ROWS).execute(asked):
                yield dict(row._mapping)

    def votes(self, queue: str) -> Iterator[dict[str, Any]]:
        """What stands: ``item``, ``annotator``, ``verdict``, ``reasons``, ``again``, ``decision`` (its id), and the item's ``gold``."""
        columns = (votes.c.item, votes.c.annotator, votes.c.verdict, votes.c.reasons, votes.c.again, votes.c.decision, items.c.gold)
        joined = votes.join(items, and_(items.c.queue == votes.c.queue, items.c.id == votes.c.item))
        asked = select(*columns).select_from(joined).where(votes.c.queue == queue).order_by(votes.c.item, votes.c.annotator)
        with self.database.reading() as connection:
            for row in connection.execution_options(yield_per=_ROWS).execute(asked):
                yield {**row._mapping, "reasons": tuple(json.loads(row.reasons))}

    def progress(self, queue: str) -> Progress:
        """How far the queue is; all zero for an unknown one."""
        turn = and_(items.c.queue == queue, items.c.place.is_not(None))
        per_item = (
            select(
                votes.c.item,
                func.count().label("all"),
                func.sum(case((votes.c.verdict == "accepted", 1), else_=0)).label("for"),
                func.sum(case((votes.c.verdict == "rejected", 1), else_=0)).label("against"),
            )
            .select_from(votes.join(items, and_(items.c.queue == votes.c.queue, items.c.id == votes.c.item)))
            .where(turn)
            .group_by(votes.c.item)
            .subquery()
        )
        tally = select(
            func.count(),
            func.coalesce(func.sum(per_item.c.all), 0),
            func.coalesce(func.sum(case((per_item.c["for"] * 2 > per_item.c.all, 1), else_=0)), 0),
            func.coalesce(func.sum(case((per_item.c.against * 2 > per_item.c.all, 1), else_=0)), 0),
        )
        with self.database.reading() as connection:
            count, settled = connection.execute(
                select(func.count(), func.coalesce(func.sum(case((items.c.settled, 1), else_=0)), 0)).where(turn)
            ).one()
            decided, cast, accepted, rejected = connection.execute(tally).one()
            rows = connection.execute(select(func.count()).select_from(decisions).where(decisions.c.queue == queue)).scalar_one()
        return Progress(int(count), int(decided), int(settled), int(cast), int(accepted), int(rejected), int(rows))


def is_settled(verdicts: Sequence[str], wanted: int) -> bool:
    """Whether an item needs nobody any more: it has the votes that it wants and a majority, or no majority after ``MOST_VOTES`` votes."""
    if len(verdicts) < wanted:
        return False
    most = Counter(verdicts)
    decided = 2 * max(most["accepted"], most["rejected"]) > len(verdicts)
    return decided or len(verdicts) >= max(wanted, MOST_VOTES)


def _stored(stands: Any) -> dict[str, Any]:
    return {"decision": stands.decision, "verdict": stands.verdict, "reasons": json.dumps(stands.reasons), "again": stands.again}


def _label(group: Sequence[Any]) -> Label:
    reasons = [reason for row in group for reason in json.loads(row.reasons)]
    return label_of(group[0].item, [row.verdict for row in group], reasons, sampled_by=group[0].sampled_by, weight=group[0].weight)
