"""Samples: disjoint, the same whatever the order, and with a random part that is one."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.plan import PlanRow
from core.rounds.sampling import FIRST, choose_for_people, is_held_out, next_items


def rows(count: int) -> list[PlanRow]:
    return [PlanRow(f"item-{number}", source=f"s{number}", mask=f"m{number}") for number in range(count)]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 3), st.randoms(use_true_random=False))
def test_stages_take_disjoint_items_in_one_order_whatever_the_order_of_the_rows(sizes: list[int], seed: int, chance: random.Random) -> None:
    items = rows(30)
    everything = [row.id for _, row in next_items(items, 30, after=FIRST, seed=seed)]
    assert sorted(everything) == sorted(row.id for row in items)
    after, taken = FIRST, []
    for size in sizes:
        shuffled = items[:]
        chance.shuffle(shuffled)
        found = next_items(shuffled, size, after=after, seed=seed)
        taken += [row.id for _, row in found]
        after = found[-1][0] if found else after
    assert taken == everything[: sum(sizes)]


def test_broken_rows_and_second_ones_of_an_id_are_passed_over() -> None:
    items = [*rows(5), *rows(5), PlanRow("broken", error="unpaired", message="no mask")]
    found = [row.id for _, row in next_items(items, 20, after=FIRST, seed=0)]
    assert sorted(found) == sorted(row.id for row in rows(5))


def test_people_see_all_where_all_are_asked_for() -> None:
    scores = [(f"i{number}", number / 9) for number in range(10)]
    chosen = choose_for_people(scores, 50, random_share=0.2, seed=0)
    assert {one.id for one in chosen} == {item for item, _ in scores}
    assert {(one.sampled_by, one.weight) for one in chosen} == {("random", 1.0)}


def test_the_random_part_is_unbiased_and_the_rest_is_uncertain() -> None:
    scores = [(f"i{number}", number / 999) for number in range(1000)]
    means = []
    for seed in range(40):
        chosen = choose_for_people(scores, 100, random_share=0.3, seed=seed)
        drawn = [one for one in chosen if one.sampled_by == "random"]
        unsure = [one for one in chosen if one.sampled_by == "uncertain"]
        assert (len(drawn), len(unsure), len({one.id for one in chosen})) == (30, 70, 100)
        surest = max(abs((one.score or 0) - 0.5) for one in unsure)
        assert all(one.weight == (1.0 if abs((one.score or 0) - 0.5) < surest else 1000 / 30) for one in drawn)
        assert all(abs((one.score or 0) - 0.5) < 0.06 for one in unsure)
        means.append(np.mean([one.score for one in drawn]))
    assert abs(np.mean(means) - 0.5) < 0.03


def test_who_is_held_out_depends_on_the_id_alone() -> None:
    held = [is_held_out(f"i{number}", 0.2) for number in range(2000)]
    assert 320 < sum(held) < 480
    assert held == [is_held_out(f"i{number}", 0.2) for number in range(2000)]
    assert not any(is_held_out(f"i{number}", 0.1) and not is_held_out(f"i{number}", 0.2) for number in range(2000))
