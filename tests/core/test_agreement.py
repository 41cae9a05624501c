"""Agreement: published examples, hand-made cases, and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.agreement import Agreement, cohen_kappa, krippendorff_alpha, pairwise_kappa
from core.errors import UsageError

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011): four observers, twelve units, section C; dots are missing
OBSERVERS = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .")


def units(rows: tuple[str, ...]) -> list[list[str]]:
    return [[value for value in column if value != "."] for column in zip(*(row.split() for row in rows), strict=True)]


def test_alpha_of_the_published_example() -> None:
    found = krippendorff_alpha(units(OBSERVERS))
    assert found.coefficient == pytest.approx(0.743, abs=5e-4)
    assert found.count == 11


def test_alpha_of_the_published_binary_example() -> None:
    """The same paper, section A: two observers, ten units, binary."""
    found = krippendorff_alpha(units(("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0")))
    assert found.coefficient == pytest.approx(0.095, abs=5e-4)
    assert found.observed == pytest.approx(0.6)


def test_kappa_of_a_worked_example() -> None:
    """50 grants, two readers: 20 both yes, 15 both no, 5 and 10 apart: observed 0.7, by chance 0.5."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = cohen_kappa(first, second)
    assert found.coefficient == pytest.approx(0.4)
    assert (found.observed, found.count) == (pytest.approx(0.7), 50)


def test_what_is_not_defined_is_none() -> None:
    assert cohen_kappa([], []) == Agreement(None, None, 0)
    assert cohen_kappa(["a"] * 5, ["a"] * 5) == Agreement(None, 1.0, 5)
    assert krippendorff_alpha([["a"], [], ["b"]]) == Agreement(None, None, 0)
    assert krippendorff_alpha([["a", "a"]] * 3) == Agreement(None, 1.0, 3)
    with pytest.raises(UsageError, match="3 and 2"):
        cohen_kappa([1, 2, 3], [1, 2])


VALUES = st.sampled_from(["accepted", "rejected", "unsure"])


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=40))
def test_kappa_is_the_same_either_way_and_at_most_1(pairs: list[tuple[str, str]]) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    found = cohen_kappa(first, second)
    assert cohen_kappa(second, first) == found
    if found.coefficient is not None:
        assert found.coefficient <= 1
        assert (found.coefficient == pytest.approx(1)) == (first == second)


@given(st.lists(st.lists(VALUES, max_size=5), min_size=1, max_size=20))
def test_alpha_does_not_depend_on_order_or_on_lone_values(values: list[list[str]]) -> None:
    found = krippendorff_alpha(values)
    turned = krippendorff_alpha([unit[::-1] for unit in values[::-1]] + [["accepted"]] * 3)
    assert turned.count == found.count
    assert turned.coefficient == (None if found.coefficient is None else pytest.approx(found.coefficient))
    if found.coefficient is not None:
        assert (found.coefficient == pytest.approx(1)) == all(len(set(unit)) <= 1 for unit in values)


def test_pairs_are_compared_over_what_both_judged() -> None:
    votes = {"ben": {"1": "a", "2": "b", "3": "a"}, "ann": {"2": "b", "3": "b", "4": "a"}, "cem": {"9": "a"}}
    found = pairwise_kappa(votes)
    assert set(found) == {("ann", "ben")}
    assert found["ann", "ben"].count == 2
    assert found["ann", "ben"].observed == 0.5
