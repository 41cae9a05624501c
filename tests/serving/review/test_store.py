"""The store on SQLite and on PostgreSQL: a log that only grows, and the labels that follow from it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from core.errors import StorageError, UsageError
from core.labels import REASONS, VERDICTS, Label
from serving.review.database import VERSION_TABLE, Database
from serving.review.entries import Decision, QueueItem, standing
from serving.review.store import Store, is_settled, open_store
from serving.review.tables import metadata

QUEUE = "round 1"


def entries(count: int, **values: Any) -> list[QueueItem]:
    return [QueueItem(id=f"item-{number:03}", place=number, **values) for number in range(count)]


def decision(number: int | str, item: int, who: str, verdict: str | None = None, **values: Any) -> Decision:
    return Decision(id=f"decision-{number}", queue=QUEUE, item=f"item-{item:03}", annotator=who, verdict=verdict, **values)  # type: ignore[arg-type]


def labels(store: Store) -> dict[str, Label]:
    return {label.id: label for label in store.labels(QUEUE)}


def test_votes_become_labels_and_progress(store: Store) -> None:
    assert store.add_queue(QUEUE, entries(5, votes_wanted=2, weight=4.0, sampled_by="uncertain")) == 5
    for number, (item, who, verdict) in enumerate(
        [(0, "ann", "accepted"), (0, "ben", "accepted"), (1, "ann", "rejected"), (1, "ben", "accepted"), (2, "ann", "unsure")]
    ):
        store.record(decision(number, item, who, verdict, reason="blur" if verdict == "rejected" else None))
    assert labels(store) == {
        "item-000": Label("item-000", True, 1.0, 2, (), "uncertain", 4.0),
        "item-001": Label("item-001", None, 0.5, 2, ("blur",), "uncertain", 4.0),
        "item-002": Label("item-002", None, 0.0, 1, (), "uncertain", 4.0),
    }
    progress = store.progress(QUEUE)
    assert (progress.items, progress.decided, progress.settled, progress.votes, progress.rows) == (5, 3, 1, 5, 5)
    assert (progress.accepted, progress.rejected) == (1, 0)
    store.record(decision(9, 1, "cem", "rejected", reason="seam"))
    assert labels(store)["item-001"] == Label("item-001", False, 1 / 3, 3, ("blur", "seam"), "uncertain", 4.0)
    assert store.progress(QUEUE).settled == 2


def test_a_queue_and_a_decision_twice_are_once(store: Store) -> None:
    assert store.add_queue(QUEUE, entries(3)) == 3
    assert store.add_queue(QUEUE, entries(4, weight=9.0)) == 1
    first = decision(1, 0, "ann", "accepted")
    for _ in range(3):
        store.record(first)
    assert len(list(store.log(QUEUE))) == 1
    assert labels(store)["item-000"].weight == 1.0
    with pytest.raises(UsageError, match="is in the log with verdict 'accepted', not 'rejected'"):
        store.record(decision(1, 0, "ann", "rejected"))
    with pytest.raises(UsageError, match="has no item item-077"):
        store.record(decision(2, 77, "ann", "rejected"))
    with pytest.raises(UsageError, match="is of the dataset"):
        store.add_queue(QUEUE, entries(1), source="s3://other/dataset")
    answers = store.record_all([decision(3, 1, "ann", "accepted"), decision(4, 78, "ann", "accepted"), decision(5, 2, "ann", "unsure")])
    assert [bool(answer) for answer in answers] == [False, True, False]
    assert len(list(store.log(QUEUE))) == 3


def test_undo_is_a_row_and_brings_back_what_stood_before(store: Store) -> None:
    store.add_queue(QUEUE, entries(2))
    store.record(decision(1, 0, "ann", "accepted"))
    store.record(decision(2, 0, "ann", "rejected"))
    store.record(decision(3, 0, "ann", kind="reason", about="decision-2", reason="shadow_left"))
    store.record(decision(4, 0, "ann", kind="reason", about="decision-2", reason="seam"))
    assert labels(store)["item-000"].reasons == ("seam", "shadow_left")
    assert [vote["again"] for vote in store.votes(QUEUE)] == [True]
    store.record(decision(5, 0, "ann", kind="undo", about="decision-2"))
    assert labels(store)["item-000"] == Label("item-000", True, 1.0, 1, (), "random", 1.0)
    store.record(decision(6, 0, "ann", kind="undo", about="decision-1"))
    assert not labels(store)
    assert store.progress(QUEUE).decided == 0
    assert [row["kind"] for row in store.log(QUEUE)] == ["verdict", "verdict", "reason", "reason", "undo", "undo"]


@pytest.mark.parametrize("seed", range(2))
def test_what_stands_follows_from_the_log(store: Store, seed: int) -> None:
    """Whatever people do: votes and counts, kept up row by row, are those of a replay; rows sent twice change nothing."""
    rng = random.Random(seed)
    store.add_queue(QUEUE, entries(6, votes_wanted=2))
    sent: list[Decision] = []
    for number in range(40):
        item, who = rng.randrange(6), rng.choice(["ann", "ben", "cem"])
        before = [row for row in sent if row.kind == "verdict" and (row.annotator, row.item) == (who, f"item-{item:03}")]
        if before and rng.random() < 0.5:
            kind = rng.choice(["undo", "reason"])
            row = decision(
                number, item, who, kind=kind, about=rng.choice(before).id, reason=rng.choice(REASONS) if kind == "reason" else None
            )
        else:
            row = decision(number, item, who, rng.choice(VERDICTS))
        sent.append(row)
        for again in [row, *rng.sample(sent, min(len(sent), 1))]:
            store.record(again)
    assert [row["id"] for row in store.log(QUEUE)] == [row.id for row in sent]
    expected: dict[str, list[str]] = {}
    for item in range(6):
        for who in ("ann", "ben", "cem"):
            name = f"item-{item:03}"
            stands = standing(row for row in sent if (row.item, row.annotator) == (name, who))
            if stands:
                expected.setdefault(name, []).append(stands.verdict)
    found = labels(store)
    assert {name: (label.votes, label.share) for name, label in found.items()} == {
        name: (len(verdicts), verdicts.count("accepted") / len(verdicts)) for name, verdicts in expected.items()
    }
    progress = store.progress(QUEUE)
    assert progress.votes == sum(map(len, expected.values()))
    assert progress.settled == sum(is_settled(verdicts, 2) for verdicts in expected.values())
    assert progress.accepted == sum(label.accepted is True for label in found.values())


def test_an_undo_that_comes_before_its_verdict_counts() -> None:
    rows = [decision(2, 0, "ann", kind="undo", about="decision-1"), decision(1, 0, "ann", "accepted")]
    assert standing(rows) is None
    assert standing(reversed(rows)) is None


@pytest.mark.parametrize(
    ("verdicts", "wanted", "settled"),
    [
        ([], 1, False), (["accepted"], 1, True), (["unsure"], 1, False), (["accepted"], 2, False), (["accepted", "rejected"], 2, False),
        (["accepted", "rejected", "unsure"], 2, True), (["accepted", "accepted", "rejected"], 2, True), (["accepted"] * 2, 3, False),
        (["accepted", "accepted", "rejected", "rejected"], 5, False), (["unsure"] * 5, 5, True),
    ],
)  # fmt: skip
def test_a_tie_asks_for_a_third(verdicts: list[str], wanted: int, settled: bool) -> None:
    assert is_settled(verdicts, wanted) == settled


def test_many_people_at_once_lose_nothing(store: Store) -> None:
    """Eight threads send overlapping batches, in other orders, some twice."""
    store.add_queue(QUEUE, entries(10, votes_wanted=3))
    sent = [decision(f"{who}-{item}", item, who, "accepted" if item % 2 else "rejected") for who in "abcdefgh" for item in range(10)]

    def send(who: str) -> None:
        mine = [row for row in sent if row.annotator == who]
        random.Random(who).shuffle(mine)
        for start in range(0, 10, 3):
            assert store.record_all(mine[start : start + 3]) == [None] * len(mine[start : start + 3])
            store.record_all(mine[:start])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, "abcdefgh"))
    assert sorted(row["id"] for row in store.log(QUEUE)) == sorted(row.id for row in sent)
    assert {(label.votes, label.share) for label in store.labels(QUEUE)} == {(8, 0.0), (8, 1.0)}
    assert store.progress(QUEUE).settled == 10


def test_a_label_stream_may_be_left_open_while_others_write(store: Store) -> None:
    store.add_queue(QUEUE, entries(3))
    store.record(decision(1, 0, "ann", "accepted"))
    store.record(decision(2, 1, "ann", "accepted"))
    stream: Iterator[Label] = store.labels(QUEUE)
    assert next(stream).id == "item-000"
    store.record(decision(3, 2, "ann", "accepted"))
    assert [label.id for label in stream] == ["item-001"]
    assert len(labels(store)) == 3


def test_ids_of_any_letters_and_in_one_order(store: Store) -> None:
    names = ["ä/b?c#d e%", "Z", "a", "文字", "B", "-", "_"]
    store.add_queue(QUEUE, [QueueItem(id=name, place=place) for place, name in enumerate(names)])
    for name in names:
        store.record(Decision(id=f"d{name}", queue=QUEUE, item=name, annotator="ann", verdict="accepted"))
    assert [label.id for label in store.labels(QUEUE)] == sorted(names)


def test_migrations_make_the_tables_that_the_code_knows(database_url: str) -> None:
    opened = Database(database_url)
    with opened.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    opened.close()


def test_opening_again_and_at_once_keeps_everything(database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(open_store, [database_url] * 4))
    stores[0].add_queue(QUEUE, entries(2))
    stores[1].record(decision(1, 0, "ann", "accepted"))
    for opened in stores:
        opened.close()
    again = open_store(database_url)
    assert len(list(again.labels(QUEUE))) == 1
    with again.database.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    again.close()
    with pytest.raises(StorageError, match="newer"):
        open_store(database_url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://a@b/c", "sqlite:///path or postgresql"),
        ("sqlite://", "needs a file"),
        ("not a url", "cannot use the database"),
    ],
)
def test_a_wrong_url_is_told(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_store(url)


def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    with pytest.raises(StorageError) as raised:
        open_store("postgresql://desk:secret@127.0.0.1:1/none")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"verdict": "maybe"}, "accepted, rejected, unsure"),
        ({"verdict": None}, "accepted, rejected, unsure"),
        ({"verdict": "accepted", "reason": "blur"}, "a rejection may have"),
        ({"verdict": "rejected", "reason": "ugly"}, "a rejection may have"),
        ({"kind": "undo"}, "name the verdict"),
        ({"kind": "reason", "about": "x"}, "has one of"),
        ({"verdict": "accepted", "about": "x"}, "names none"),
        ({"verdict": "accepted", "mode": "blind"}, "mode"),
        ({"verdict": "accepted", "id": ""}, "1 to 64"),
    ],
)
def test_a_decision_that_cannot_be_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Decision(**{"id": "x", "queue": QUEUE, "item": "i", "annotator": "ann", **values})
