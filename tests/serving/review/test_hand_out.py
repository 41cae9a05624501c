"""Handing out on both databases: leases, overlap, gold, repeats."""

from __future__ import annotations

import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serving.review.annotators import Annotators
from serving.review.entries import Decision, QueueItem
from serving.review.hand_out import REPEAT_AFTER, hand_out
from serving.review.quality import fast_streaks, quality_report
from serving.review.store import Store

QUEUE = "q"


def fill(store: Store, count: int, gold: int = 0, **values: Any) -> None:
    entries = [QueueItem(id=f"item-{number:03}", place=number, **values) for number in range(count)]
    entries += [QueueItem(id=f"gold-{number:03}", place=None, sampled_by="gold", gold="accepted") for number in range(gold)]
    store.add_queue(QUEUE, entries)


def given(store: Store, who: str, count: int, **values: Any) -> list[str]:
    return [item.id for item in hand_out(store, QUEUE, who, count, **values).items]


def decide(store: Store, who: str, item: str, verdict: str = "accepted", **values: Any) -> None:
    store.record(Decision(id=str(uuid.uuid4()), queue=QUEUE, item=item, annotator=who, verdict=verdict, **values))  # type: ignore[arg-type]


def test_an_item_is_with_one_person_until_the_lease_ends(store: Store) -> None:
    fill(store, 10)
    first = given(store, "ann", 4)
    assert first == [f"item-{number:03}" for number in range(4)]
    assert given(store, "ben", 4) == [f"item-{number:03}" for number in range(4, 8)]
    assert given(store, "ann", 4) == first, "a page that was loaded anew gets its own again"
    assert given(store, "ann", 9, holding=first) == ["item-008", "item-009"]
    assert given(store, "cem", 9) == []
    assert hand_out(store, QUEUE, "cem", 9).left == 0
    decide(store, "ann", "item-000")
    assert "item-000" not in given(store, "ann", 9)
    # leases that ended are anybody's
    assert given(store, "ann", 5, lease_seconds=-1)
    assert given(store, "cem", 1) != []


def test_overlap_goes_to_several_and_a_tie_to_a_third(store: Store) -> None:
    fill(store, 1, votes_wanted=2)
    assert given(store, "ann", 5) == given(store, "ben", 5) == ["item-000"]
    assert given(store, "cem", 5) == []
    decide(store, "ann", "item-000", "accepted")
    decide(store, "ben", "item-000", "rejected")
    assert given(store, "ann", 5) == []
    assert given(store, "cem", 5) == ["item-000"]
    assert given(store, "dan", 5) == [], "one at a time breaks a tie"
    decide(store, "cem", "item-000", "rejected")
    assert given(store, "dan", 5) == []
    assert store.progress(QUEUE).settled == 1


def test_the_grid_gets_sure_items_alone(store: Store) -> None:
    store.add_queue(QUEUE, [QueueItem(id=f"item-{number}", place=number, sure=number % 2 == 0, score=0.99) for number in range(6)])
    assert given(store, "ann", 9, grid=True, gold=0.5) == ["item-0", "item-2", "item-4"]


def test_gold_and_repeats_are_mixed_in_at_their_shares(store: Store) -> None:
    fill(store, 200, gold=40)
    shown: Counter[str] = Counter()
    order: list[str] = []
    for _ in range(20):
        for item in given(store, "ann", 10, gold=0.1, repeats=0.1):
            shown[item] += 1
            order.append(item)
            decide(store, "ann", item, "accepted" if not item.startswith("gold") or len(order) % 4 else "rejected", milliseconds=1500)
    gold = sum(count for item, count in shown.items() if item.startswith("gold"))
    twice = [item for item, count in shown.items() if count == 2]
    assert max(shown.values()) == 2, "nothing is shown a third time"
    assert 0.05 < gold / len(order) < 0.16
    assert 0.04 < len(twice) / len(order) < 0.16
    for item in twice:
        first = order.index(item)
        assert order.index(item, first + 1) - first > REPEAT_AFTER - 12, "not right after the first time (a batch is drawn at once)"
    report = quality_report(store, QUEUE)
    mine = report["annotators"]["ann"]
    assert mine["gold"]["count"] == gold - sum(item.startswith("gold") for item in twice)
    assert mine["repeats"]["count"] == len(twice)
    assert mine["seconds"] == 1.5
    assert report["items"] == report["decided"] == 200
    assert given(store, "ann", 10, gold=0.5, repeats=0.4) == [], "when the queue is done nothing is mixed in any more"


def test_many_pages_at_once_share_the_items_out(store: Store) -> None:
    fill(store, 60)
    with ThreadPoolExecutor(6) as pool:
        shares = list(pool.map(lambda who: given(store, who, 10), ["a", "b", "c", "d", "e", "f"]))
    assert sorted(item for share in shares for item in share) == [f"item-{number:03}" for number in range(60)]


def test_an_item_that_was_taken_back_stays_with_its_person(store: Store) -> None:
    fill(store, 2)
    decide(store, "ann", "item-000")
    row = next(iter(store.log(QUEUE)))
    store.record(Decision(id="undo", queue=QUEUE, item="item-000", annotator="ann", kind="undo", about=row["id"]))
    assert given(store, "ben", 5) == ["item-001"]
    assert given(store, "ann", 5) == ["item-000"]


def test_keys_open_for_their_owner_alone(store: Store) -> None:
    annotators = Annotators(store)
    tokens = annotators.invite(["ann", "ben"])
    assert annotators.invite(["ann"]) == {"ann": tokens["ann"]}, "a link stays the same"
    assert annotators.who(tokens["ann"]) == "ann"
    key = tokens["ben"].split(".")[1]
    for wrong in ("", "ann", "ann.", f"ann.{key}", f"nobody.{key}", tokens["ann"][:-1], tokens["ann"] + "x", "ann.\udcff", "a" * 5000):
        assert annotators.who(wrong) is None
    assert annotators.withdraw(["ann", "nobody"]) == 1
    assert annotators.who(tokens["ann"]) is None
    assert annotators.invite(["ann"])["ann"] != tokens["ann"]
    assert annotators.who(tokens["ben"]) == "ben"


def test_the_report_tells_agreement_and_who_clicks_without_looking(store: Store) -> None:
    fill(store, 24, votes_wanted=2, gold=5)
    for number in range(24):
        decide(store, "ann", f"item-{number:03}", "accepted" if number % 2 else "rejected", milliseconds=2000)
        decide(store, "ben", f"item-{number:03}", "accepted" if number % 2 or number == 0 else "rejected", milliseconds=100)
    for number in range(5):
        decide(store, "ben", f"gold-{number:03}", "rejected", milliseconds=100)
    report = quality_report(store, QUEUE)
    (pair,) = report["kappa"]
    assert pair["annotators"] == ["ann", "ben"]
    assert pair["observed"] == pytest.approx(23 / 24)
    assert pair["coefficient"] == pytest.approx(0.9166, abs=1e-3)
    assert report["alpha"]["coefficient"] == pytest.approx(0.9166, abs=0.01)
    assert report["annotators"]["ann"]["flags"] == []
    assert report["annotators"]["ben"]["streaks"] == [29]
    assert report["flags"] == ["ben: 29 decisions in a row faster than 400 ms each", "ben: 0 of 5 gold items right"]
    assert report["success_rate"]["count"] == 23


def test_streaks_end_where_somebody_looked() -> None:
    assert fast_streaks([100] * 9) == []
    assert fast_streaks([100] * 10 + [900] + [50] * 12) == [10, 12]
    assert fast_streaks([100] * 5 + [None] + [100] * 9 + [400]) == []
