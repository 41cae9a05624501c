"""The plan: every row once and in order, ids unique, counts written last."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import plan, storage
from core.errors import UsageError
from core.plan import PlanInfo, PlanRow, read_plan_file, read_plan_ids, read_plan_info, write_plan


def written(folder: str, rows: list[PlanRow]) -> tuple[PlanInfo, list[PlanRow]]:
    info = write_plan(folder, iter(rows), source_input="given", base="/base")
    return info, [PlanRow(**values) for name in info.files for values in read_plan_file(folder, name).to_pylist()]


def test_rows_come_back_in_order(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ROWS_PER_FILE", 4)
    rows = [PlanRow(f"i{9 - n}", f"s{n}", "m", category="é", shard="part", row=n, error="e" if n == 3 else None) for n in range(10)]
    assert read_plan_info(folder) is None
    info, found = written(folder, rows)
    assert found == rows
    assert (info.items, len(info.files), info.input, info.base) == (10, 3, "given", "/base")
    assert read_plan_info(folder) == info
    assert [len(ids) for ids in read_plan_ids(folder, info)] == [4, 4, 2]
    assert [item for ids in read_plan_ids(folder, info) for item in ids] == [row.id for row in rows]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "a@2", "a@2@2", "a@3", ""]), min_size=1, max_size=12))
def test_no_id_is_twice_and_nothing_is_lost(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    rows = [PlanRow(item, source=str(number)) for number, item in enumerate(ids)]
    _, found = written(str(tmp_path_factory.mktemp("plan")), rows)
    assert [row.source for row in found] == [str(number) for number in range(len(ids))]
    assert len({row.id for row in found}) == len(ids)
    for row, item in zip(found, ids, strict=True):
        assert row.id == item if row.error is None else row.id.startswith(f"{item}@")


def test_the_first_of_many_keeps_the_id(tmp_path: object) -> None:
    _, found = written(str(tmp_path), [PlanRow("x", source=name) for name in "abc"])
    assert [(row.id, row.source, row.error) for row in found] == [
        ("x", "a", None),
        ("x@2", "b", "duplicate_id"),
        ("x@3", "c", "duplicate_id"),
    ]
    assert "id x is number 2" in str(found[1].message)


def test_an_empty_input_is_a_wrong_call(folder: str) -> None:
    with pytest.raises(UsageError, match="s3://bucket/empty holds no items"):
        write_plan(folder, [], source_input="s3://bucket/empty", base="")
    assert read_plan_info(folder) is None


def test_an_input_that_breaks_off_leaves_no_plan(folder: str) -> None:
    def rows() -> Iterator[PlanRow]:
        yield PlanRow("a")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_plan(folder, rows(), source_input="x", base="")
    assert read_plan_info(folder) is None
    assert not list(storage.storage_for(folder).list(folder))


def test_memory_does_not_grow_with_the_input(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ROWS_PER_FILE", 1000)
    peaks = []
    for count in (3_000, 30_000):
        tracemalloc.start()
        write_plan(f"{tmp_path}/{count}", (PlanRow(f"item-{n:09d}", source="s" * 100) for n in range(count)), source_input="x", base="")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
