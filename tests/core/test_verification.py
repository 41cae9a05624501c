"""Verification: lost, twice and foreign are counted, and a picture that does not open is found."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from core import record, storage, verification
from core.errors import StorageError
from core.ledger import part_name, write_shard
from core.plan import PlanRow, write_plan
from core.verification import check_pictures, count_output
from tests.pictures import png, png_mask


def row(item: str, **changes: Any) -> dict[str, Any]:
    values = {
        "id": item, "source": record.image_value(png()), "mask": record.image_value(png_mask()), "erased": record.image_value(png(1)),
        "origin": "o", "width": 64, "height": 48,
    }  # fmt: skip
    return record.empty_record(**{**values, **changes})


def write(folder: str, name: str, rows: list[dict[str, Any]]) -> None:
    write_shard(storage.join(folder, name), pa.Table.from_pylist(rows, schema=record.RECORD_SCHEMA))


def fail(folder: str, name: str, ids: str) -> None:
    rows = [{"id": item, "uri": None, "stage": "fetch", "error": "missing", "message": "gone"} for item in ids]
    write_shard(storage.join(folder, "failures", name), pa.Table.from_pylist(rows, schema=record.FAILURE_SCHEMA))


def test_lost_twice_and_foreign_are_counted(folder: str) -> None:
    plan_folder = storage.join(folder, "plan")
    info = write_plan(plan_folder, [PlanRow(item) for item in "abcdefgh"], source_input="i", base="b")
    whole = count_output(folder, plan_folder, info)
    assert (whole.items, whole.out, whole.failed, whole.lost, whole.twice, whole.foreign) == (8, 0, 0, 8, 0, 0)
    write(folder, part_name(1, 0), [row("a", score=0.95, verdict="accepted"), row("b")])
    write(folder, part_name(1, 1), [row("c"), row("a"), row("zzz")])
    write(folder, part_name(1, 2), [row("a")])
    fail(folder, part_name(1, 0), "de")
    count = count_output(folder, plan_folder, info)
    assert (count.items, count.out, count.failed, count.lost, count.twice, count.foreign) == (8, 6, 2, 3, 2, 1)
    assert count.lost_examples == ["f", "g", "h"]
    assert count.verdicts == Counter({"none": 5, "accepted": 1})
    assert count.failures == Counter({"missing": 2})
    alone = count_output(folder, plan_folder, None)
    assert (alone.items, alone.out, alone.lost, alone.twice, alone.foreign) == (None, 6, 0, 2, 0)


def test_examples_of_what_is_lost_are_few(tmp_path: Path) -> None:
    info = write_plan(f"{tmp_path}/plan", [PlanRow(str(number)) for number in range(50)], source_input="i", base="b")
    count = count_output(str(tmp_path), f"{tmp_path}/plan", info)
    assert (count.lost, len(count.lost_examples)) == (50, 20)


def test_good_pictures_are_counted(folder: str) -> None:
    write(folder, part_name(1, 0), [row("a"), row("b", target=record.image_value(png(2)))])
    check = check_pictures(folder, threads=2)
    assert (check.pictures, check.faults, check.examples) == (7, 0, [])


@pytest.mark.parametrize(
    ("changes", "pictures", "says"),
    [
        ({"erased": record.image_value(png(1)[:-40])}, 3, "x: erased does not open: .*cut off"),
        ({"source": record.image_value(b"GIF8")}, 3, "x: source does not open"),
        ({"erased": record.image_value(png(1, width=48, height=64))}, 3, "x: erased is 48 x 64, the record says 64 x 48"),
        ({"mask": record.image_value(png_mask(32, 24))}, 3, "x: mask is 32 x 24"),
        ({"score": 7.0}, 3, "x: score is 7.0"),
        ({"target": {"bytes": None, "path": "t.png"}}, 3, "x: column target has no bytes"),
    ],
)
def test_a_fault_is_found_and_named(tmp_path: Path, changes: dict[str, Any], pictures: int, says: str) -> None:
    write(str(tmp_path), part_name(1, 0), [row("a"), row("x", **changes)])
    check = check_pictures(str(tmp_path), threads=2)
    assert (check.pictures, check.faults, len(check.examples)) == (3 + pictures, 1, 1)
    with pytest.raises(ValueError, match=says):
        raise ValueError(check.examples[0])
    assert part_name(1, 0) in check.examples[0]


def test_a_shard_that_is_cut_off_is_one_clear_error(folder: str) -> None:
    write(folder, part_name(1, 0), [row("a")])
    uri = storage.join(folder, part_name(1, 0))
    data = storage.storage_for(uri).read(uri)
    storage.storage_for(uri).write(uri, data[: len(data) // 2])
    with pytest.raises(StorageError, match=part_name(1, 0)) as caught:
        check_pictures(folder)
    assert "\n" not in str(caught.value)


def test_only_a_few_records_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path), part_name(1, 0), [row(str(number)) for number in range(120)])
    handed_over = finished = most = 0

    class Counting(ThreadPoolExecutor):
        def submit(self, function: Any, /, *given: Any, **named: Any) -> Future[Any]:
            nonlocal handed_over, most
            handed_over += 1
            most = max(most, handed_over - finished)
            future = super().submit(function, *given, **named)
            future.add_done_callback(done)
            return future

    def done(_: Future[Any]) -> None:
        nonlocal finished
        finished += 1

    monkeypatch.setattr(verification, "ThreadPoolExecutor", Counting)
    assert check_pictures(str(tmp_path), threads=1).pictures == 360
    assert handed_over == 120
    assert most <= 32
