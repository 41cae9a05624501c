"""Work in threads, in order, a bounded number of steps ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


def map_ahead(pool: Executor, function: Callable[[Given], Result], items: Iterable[Given], ahead: int) -> Iterator[Result]:
    """Results in the order of ``items``, of which at most ``ahead`` are taken before they are asked for.

    ``Executor.map`` takes all of them at once, and keeps every result that nobody has asked for yet.
    """
    source = iter(items)
    waiting: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(source, ahead))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(function, item) for item in islice(source, 1))
        yield result
