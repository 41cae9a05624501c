"""The ledger: a set of ids that behaves like one, counts that are right, and second copies that go."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import ledger as module
from core import storage
from core.errors import StorageError
from core.ledger import IdSet, is_part, list_output, part_name, read_columns, read_ledger, settle, write_shard
from core.readers import parquet_source
from core.record import FAILURE_SCHEMA, RECORD_SCHEMA, empty_record, image_value
from tests.pictures import put

IDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=60)


def results(folder: str, name: str, items: dict[str, str | None]) -> None:
    picture = image_value(b"picture")
    rows = [empty_record(id=i, source=picture, mask=picture, origin=name, width=8, height=8, verdict=v) for i, v in items.items()]
    write_shard(storage.join(folder, name), pa.Table.from_pylist(rows, schema=RECORD_SCHEMA))


def failures(folder: str, name: str, items: dict[str, str]) -> None:
    rows = [{"id": i, "uri": None, "stage": "fetch", "error": error, "message": name} for i, error in items.items()]
    write_shard(storage.join(folder, "failures", name), pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA))


@settings(max_examples=150, deadline=None)
@given(IDS, IDS)
def test_an_id_set_is_a_set(inside: list[str], asked: list[str]) -> None:
    ids = IdSet.of(inside)
    assert ids.contains([*asked, *inside]).tolist() == [item in set(inside) for item in [*asked, *inside]]
    assert len(ids) == len(inside)
    assert ids.duplicates() == len(inside) - len(set(inside))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_ids_whose_hashes_agree_by_half_are_told_apart(pairs: list[tuple[int, int]]) -> None:
    """Real hashes never do; these are made up."""
    high, low = (np.array([pair[side] for pair in pairs], dtype="<u8") for side in (0, 1))
    ids = IdSet(high, low)
    assert ids.duplicates() == len(pairs) - len(set(pairs))
    asked = [(a, b) for a in range(5) for b in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "hash_ids", lambda _: tuple(np.array([pair[side] for pair in asked], dtype="<u8") for side in (0, 1)))
        assert ids.contains([""] * len(asked)).tolist() == [pair in pairs for pair in asked]


def test_names_of_shards_are_told_from_others() -> None:
    assert is_part(part_name(1, 2))
    assert part_name(1, 2) < part_name(1, 10) < part_name(2, 0)
    assert not any(is_part(name) for name in ("failures/part-1.parquet", "part-1.json", "dataset.json", "x-part-1.parquet"))


def test_an_output_is_counted(folder: str) -> None:
    assert (read_ledger(folder).out, read_ledger(folder).failed, len(read_ledger(folder).ids)) == (0, 0, 0)
    results(folder, part_name(1, 0), {"a": "accepted", "b": "rejected"})
    results(folder, part_name(2, 0), {"c": "accepted", "d": None})
    failures(folder, part_name(1, 0), {"e": "missing", "f": "truncated"})
    failures(folder, part_name(1, 1), {"g": "missing"})
    put(folder, {"dataset.json": b"{}", "plan/part-0.parquet": b"no", "failures/notes/part-0.parquet": b"no", "part-1.txt": b"no"})
    found = read_ledger(folder)
    assert found.verdicts == Counter({"accepted": 2, "rejected": 1, "none": 1})
    assert found.errors == Counter({"missing": 2, "truncated": 1})
    assert (found.out, found.failed, found.ids.duplicates()) == (4, 3, 0)
    assert found.ids.contains(list("abcdefgh")).tolist() == [True] * 7 + [False]
    assert [storage.relative(folder, uri) for uri in found.parts] == [part_name(1, 0), part_name(2, 0)]
    assert list_output(folder) == (found.parts, found.failure_parts)


def test_settling_keeps_the_first_copy(folder: str) -> None:
    results(folder, part_name(1, 0), {"a": "accepted", "b": "rejected"})
    results(folder, part_name(2, 0), {"b": "rejected", "c": None})
    results(folder, part_name(2, 1), {"a": "accepted"})
    failures(folder, part_name(1, 0), {"c": "missing", "d": "missing"})
    before = read_ledger(folder)
    assert before.ids.duplicates() == 3
    assert settle(before) == 3
    after = read_ledger(folder)
    assert (after.out, after.failed, after.ids.duplicates()) == (3, 1, 0)
    kept = [(row["id"], row["origin"]) for uri in after.parts for row in read_columns(uri, ["id", "origin"]).to_pylist()]
    assert kept == [("a", part_name(1, 0)), ("b", part_name(1, 0)), ("c", part_name(2, 0))]
    whole = read_columns(after.parts[1], RECORD_SCHEMA.names)
    assert whole.to_pylist()[0]["source"] == {"bytes": b"picture", "path": None}
    assert whole.schema.metadata[b"huggingface"] == RECORD_SCHEMA.metadata[b"huggingface"]
    assert settle(after) == 0


def test_an_output_without_copies_is_not_touched(tmp_path: Path) -> None:
    results(str(tmp_path), part_name(1, 0), {"a": None})
    shard = tmp_path / part_name(1, 0)
    before = shard.stat()
    assert settle(read_ledger(str(tmp_path))) == 0
    # Reading may move the access time; a rewrite would be another inode or another time of modification.
    after = shard.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)


@pytest.mark.parametrize("broken", ["cut", "empty", "columns"])
def test_a_shard_that_is_none_stops_the_job(folder: str, broken: str) -> None:
    results(folder, part_name(1, 0), {"a": None})
    uri = storage.join(folder, part_name(1, 0))
    data = storage.storage_for(uri).read(uri)
    if broken == "columns":
        write_shard(uri, pa.table({"id": ["a"]}))
    else:
        storage.storage_for(uri).write(uri, data[: len(data) // 2] if broken == "cut" else b"")
    with pytest.raises(StorageError) as caught:
        read_ledger(folder)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "rows"), [(400_000, 8), (20_000, 100)])
def test_groups_have_few_large_rows_or_many_small_ones(folder: str, size: int, rows: int) -> None:
    noise = np.random.default_rng(0).bytes(size)
    records = [empty_record(id=str(number), erased=image_value(noise)) for number in range(120)]
    uri = f"{folder}/{part_name(1, 0)}"
    write_shard(uri, pa.Table.from_pylist(records, schema=RECORD_SCHEMA))
    metadata = pq.ParquetFile(parquet_source(uri)).metadata
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sum(groups) == 120
    assert abs(groups[0] - rows) <= 6
    assert read_ledger(folder).out == 120
