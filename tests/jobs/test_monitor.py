"""The monitor without Ray: counting once, stopping in time, telling who died at what."""

from __future__ import annotations

from collections import Counter

from jobs.monitor import MonitorState, Tally, too_many_failures


def tally(accepted: int, truncated: int = 0) -> Tally:
    return Tally(Counter(accepted=accepted), Counter(truncated=truncated) if truncated else Counter())


def test_a_retried_write_task_counts_once() -> None:
    monitor = MonitorState(tally(0), 0.05)
    monitor.wrote(3, tally(10))
    monitor.wrote(3, tally(10))
    monitor.wrote(4, tally(5))
    assert monitor.progress()[0].rows == 15


def test_the_rate_holds_from_200_rows_on_and_counts_earlier_runs() -> None:
    assert too_many_failures(tally(99, 100), 0.05) is None
    assert too_many_failures(tally(190, 10), 0.05) is None
    assert "truncated 11" in (too_many_failures(tally(189, 11), 0.05) or "")
    monitor = MonitorState(tally(150, 9), 0.05)
    assert monitor.wrote(0, tally(30)) is None
    assert "11 of 200" in (monitor.wrote(1, tally(9, 2)) or "")


def test_only_items_of_a_dead_worker_are_suspects() -> None:
    monitor = MonitorState(tally(0), 0.05)
    monitor.begin("first", ["a", "b", "c"], [])
    monitor.begin("first", ["d"], ["a"])
    assert monitor.suspects("second", ["a", "b", "c", "d", "e"]) == {"b": 1, "c": 1, "d": 1}
    assert monitor.begin("second", ["b"], []) == {"b": 1}
    monitor.begin("second", [], ["b"])
    assert monitor.begin("second", ["c"], []) == {"c": 1}
    assert monitor.begin("third", ["c"], []) == {"c": 2}
    assert monitor.suspects("third", ["a", "b"]) == {}


def test_a_worker_may_take_its_own_items_up_again() -> None:
    monitor = MonitorState(tally(0), 0.05)
    monitor.begin("first", ["a"], [])
    assert monitor.begin("first", ["a"], []) == {}
