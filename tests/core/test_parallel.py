"""map_ahead: in order, and never more than asked for in hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.parallel import map_ahead


@pytest.mark.parametrize("ahead", [1, 3, 50])
def test_results_are_in_order_and_items_are_taken_as_needed(ahead: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield number

    def slow_at_first(number: int) -> int:
        time.sleep(0.01 if number % 7 == 0 else 0)
        return number * number

    with ThreadPoolExecutor(4) as pool:
        for count, result in enumerate(map_ahead(pool, slow_at_first, items(), ahead)):
            assert result == count * count
            assert taken <= count + 1 + ahead
    assert taken == 40


def test_an_error_comes_out_at_its_place() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, lambda number: 1 // (3 - number), range(9), 4)
        assert [next(results) for _ in range(3)] == [0, 0, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
