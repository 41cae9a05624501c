"""Which items are shown: uncertain ones first, a part that is an even sample, gold; the same for the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from core.errors import UsageError
from serving.review.entries import QueueItem
from serving.review.policy import Policy, choose


def candidates(scores: list[float | None]) -> pa.Table:
    count = len(scores)
    return pa.table(
        {
            "id": [f"item-{number}" for number in range(count)],
            "score": pa.array(scores, pa.float64()),
            "shard": ["part-0000-000000.parquet"] * count,
            "row": list(range(count)),
            "width": pa.array([10] * count, pa.int32()),
            "height": pa.array([10] * count, pa.int32()),
        }
    )


SPREAD = candidates([(number + 0.5) / 500 for number in range(500)])


def chosen(table: pa.Table = SPREAD, gold: dict[str, str] | None = None, **values: object) -> list[QueueItem]:
    return list(choose(table, Policy(**values), gold))  # type: ignore[arg-type]


def test_a_queue_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    assert chosen(items=50) == chosen(items=50)
    assert {item.id for item in chosen(items=50)} != {item.id for item in chosen(items=50, seed=1)}


def test_the_uncertain_part_is_what_is_nearest_one_half_and_both_parts_are_mixed() -> None:
    items = chosen(items=100, random=0.25)
    uncertain = [item for item in items if item.sampled_by == "uncertain"]
    drawn = [item for item in items if item.sampled_by == "random"]
    assert len(drawn) == 25
    assert 65 <= len(uncertain) <= 75, "some of the most uncertain are in the random part, too"
    distances = [abs((item.score or 0) - 0.5) for item in uncertain]
    assert distances == sorted(distances)
    assert max(distances) < 0.08
    assert max(abs((item.score or 0) - 0.5) for item in drawn) > 0.2
    assert [item.place for item in items] == list(range(len(items)))
    for start in range(0, len(items) - 20, 20):
        assert any(item.sampled_by == "random" for item in items[start : start + 20])


def test_weights_are_the_inverse_of_how_often_an_item_is_chosen() -> None:
    """Over many seeds every item comes as often as its weight says."""
    seen: Counter[str] = Counter()
    weights: dict[str, float] = {}
    rounds = 300
    for seed in range(rounds):
        for item in chosen(items=100, random=0.3, seed=seed):
            seen[item.id] += 1
            assert weights.setdefault(item.id, item.weight) == item.weight or item.weight in (1.0, 500 / 30)
    certain = [name for name, weight in weights.items() if weight == 1.0]
    assert len(certain) >= 70
    rest = [seen[f"item-{number}"] / rounds for number in range(500) if f"item-{number}" not in certain]
    assert np.mean(rest) == pytest.approx(30 / 500, rel=0.1)


def test_all_items_have_weight_1_when_all_are_shown() -> None:
    items = chosen(items=0, overlap=0.3)
    assert len(items) == 500
    assert {item.weight for item in items} == {1.0}
    assert sum(item.sampled_by == "random" for item in items) == 100
    assert sum(item.votes_wanted == 2 for item in items) == pytest.approx(150, abs=40)
    sure = [item for item in items if item.sure]
    assert sure
    assert all(item.sampled_by == "sure" for item in sure), "the random part is never shown with the discriminator's opinion"
    assert all(abs((item.score or 0) - 0.5) > 0.4 for item in sure)


def test_gold_is_shown_beside_the_queue_and_never_in_the_grid() -> None:
    items = chosen(items=20, random=0.5, gold={"item-0": "rejected", "item-250": "accepted", "elsewhere": "accepted"})
    gold = {item.id: item for item in items if item.gold}
    assert set(gold) == {"item-0", "item-250"}
    assert gold["item-250"].place is not None
    assert gold["item-0"].place is None or gold["item-0"].sampled_by == "random"
    assert not any(item.sure for item in gold.values())
    assert {item.weight for item in gold.values()} == {1.0}


def test_items_without_a_score_are_as_uncertain_as_can_be() -> None:
    items = chosen(candidates([0.1, None, 0.9, 0.45]), items=2, random=0)
    assert [item.id for item in items] == ["item-1", "item-3"]
    assert items[0].score is None


def test_nothing_to_choose_from_and_wrong_values_are_told() -> None:
    with pytest.raises(UsageError, match="no erasure to judge"):
        chosen(candidates([]))
    for values in ({"random": 1.5}, {"votes": 1}, {"gold": 0.9}, {"sure": 0.2}, {"items": -1}):
        with pytest.raises(UsageError, match="it must be from"):
            Policy(**values)  # type: ignore[arg-type]
