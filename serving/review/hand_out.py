"""Handing out: the next items for an annotator, and leases, so that no two people look at the same item by accident.

Between items of the queue some are mixed in whose answer is known (gold), and some that the annotator has judged before (repeats); the page
cannot tell them from others.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, case, delete, exists, func, or_, select, update

from serving.review.entries import QueueItem
from serving.review.store import LEASE_SECONDS, Store
from serving.review.tables import items, leases, queues, votes

MOST_AT_ONCE: Final = 100
REPEAT_AFTER: Final = 20
"""An item is shown again after so many others at the soonest."""
_COLUMNS: Final = [items.c[field.name] for field in fields(QueueItem)]


@dataclass(frozen=True, slots=True)
class HandedOut:
    """Items for one annotator, in the order in which to show them, and ``left``: how many of the queue wait for them in all."""

    items: list[QueueItem]
    left: int


def hand_out(
    store: Store,
    queue: str,
    annotator: str,
    count: int,
    *,
    holding: Sequence[str] = (),
    grid: bool = False,
    gold: float = 0.0,
    repeats: float = 0.0,
    lease_seconds: float = LEASE_SECONDS,
) -> HandedOut:
    """The next items for an annotator, leased to them; first those that were leased to them before (a page that was loaded anew).

    Args:
        store: where the queue is.
        queue: its name; an unknown one has nothing to hand out.
        annotator: for whom.
        count: how many at most, 0 to ``MOST_AT_ONCE``.
        holding: ids that the page has: they are not handed out again, and their leases are renewed.
        grid: only items of which the discriminator is sure; nothing is mixed in.
        gold, repeats: share of what is handed out that has a known answer, or was judged by the annotator before.
        lease_seconds: how long the items wait for them.

    Raises:
        StorageUnavailable: the database does not answer.
    """
    count = max(0, min(count, MOST_AT_ONCE))
    now = time.time()
    with store.database.writing() as connection:
        # one hand at a time in a queue: whoever comes next sees these leases
        connection.execute(select(queues.c.name).where(queues.c.name == queue).with_for_update())
        connection.execute(delete(leases).where(leases.c.queue == queue, leases.c.expires_at <= now))
        mine = and_(leases.c.queue == queue, leases.c.annotator == annotator)
        if holding:
            connection.execute(update(leases).where(mine, leases.c.item.in_(holding)).values(expires_at=now + lease_seconds))
        waiting = _waiting(queue, annotator, grid).where(items.c.id.not_in(list(holding)))
        chosen = [QueueItem(**row._mapping) for row in connection.execute(waiting.limit(count))]
        left = connection.execute(select(func.count()).select_from(_waiting(queue, annotator, grid).subquery())).scalar_one()
        if chosen and not grid:
            taken = {*holding, *(item.id for item in chosen)}
            chosen = _mixed(connection, queue, annotator, chosen, taken, gold, repeats)
        for item in chosen:
            values = {"queue": queue, "item": item.id, "annotator": annotator, "expires_at": now + lease_seconds}
            keys = ["queue", "item", "annotator"]
            statement = store.insert(leases).values(values)
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_={"expires_at": now + lease_seconds}))
    return HandedOut(chosen, int(left))


def _waiting(queue: str, annotator: str, grid: bool) -> Select[Any]:
    """Items of the queue that wait for this annotator: not judged by them, and not all the votes that are wanted are cast or under way."""
    of_item = and_(votes.c.queue == items.c.queue, votes.c.item == items.c.id)
    leased = and_(leases.c.queue == items.c.queue, leases.c.item == items.c.id)
    elsewhere = select(func.count()).select_from(leases).where(leased, leases.c.annotator != annotator).correlate(items).scalar_subquery()
    # a tie asks for one more at a time
    wanted = case((items.c.votes < items.c.votes_wanted, items.c.votes_wanted), else_=items.c.votes + 1)
    here = exists().where(leased, leases.c.annotator == annotator)
    asked = select(*_COLUMNS).where(
        items.c.queue == queue,
        items.c.settled.is_(False),
        items.c.place.is_not(None),
        ~exists().where(of_item, votes.c.annotator == annotator),
        or_(here, items.c.votes + elsewhere < wanted),
    )
    if grid:
        asked = asked.where(items.c.sure.is_(True))
    return asked.order_by(case((here, 0), else_=1), items.c.place)


def _mixed(
    connection: Connection, queue: str, annotator: str, chosen: list[QueueItem], taken: set[str], gold: float, repeats: float
) -> list[QueueItem]:
    """The chosen items with gold and repeats among them. What comes when follows from the annotator and how far they are."""
    done = connection.execute(select(func.count()).where(votes.c.queue == queue, votes.c.annotator == annotator)).scalar_one()
    held = connection.execute(select(func.count()).where(leases.c.queue == queue, leases.c.annotator == annotator)).scalar_one()
    mixed: list[QueueItem] = []
    for turn, item in enumerate(chosen, start=int(done) + int(held)):
        mixed.append(item)
        rng = random.Random(f"{queue}\0{annotator}\0{turn}")
        draw = rng.random() * (1 - gold - repeats)  # shares are of all that is shown, and this is drawn beside every item of the queue
        if draw < gold:
            extra = _gold(connection, queue, annotator, taken, rng)
        elif draw < gold + repeats:
            extra = _repeat(connection, queue, annotator, taken, rng)
        else:
            extra = None
        if extra is not None:
            taken.add(extra.id)
            mixed.append(extra)
    return mixed


def _gold(connection: Connection, queue: str, annotator: str, taken: set[str], rng: random.Random) -> QueueItem | None:
    """One of the gold items that the annotator has not judged."""
    judged = exists().where(votes.c.queue == items.c.queue, votes.c.item == items.c.id, votes.c.annotator == annotator)
    asked = select(*_COLUMNS).where(items.c.queue == queue, items.c.gold.is_not(None), ~judged).order_by(items.c.id)
    found = [row for row in connection.execute(asked) if row.id not in taken]
    return QueueItem(**rng.choice(found)._mapping) if found else None


def _repeat(connection: Connection, queue: str, annotator: str, taken: set[str], rng: random.Random) -> QueueItem | None:
    """One of the items that the annotator judged once, and not among the last."""
    mine = and_(votes.c.queue == queue, votes.c.annotator == annotator)
    asked = select(votes.c.item).where(mine, votes.c.again.is_(False)).order_by(votes.c.number.desc()).offset(REPEAT_AFTER)
    found = [item for item in connection.execute(asked).scalars() if item not in taken]
    if not found:
        return None
    row = connection.execute(select(*_COLUMNS).where(items.c.queue == queue, items.c.id == rng.choice(found))).one()
    return QueueItem(**row._mapping)
