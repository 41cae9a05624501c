"""Fetching: objects and rows of shards; what cannot be fetched costs one item, a store that is away costs none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import fetch, record, storage
from core.errors import ItemError, StorageUnavailable
from core.fetch import Fetcher
from core.ledger import write_shard
from core.plan import PlanRow
from core.readers import open_input
from tests.pictures import png, png_mask, put


def row(item: str = "a", **values: Any) -> dict[str, Any]:
    return asdict(PlanRow(item, origin="test", **values))


def error_of(folder: str, **values: Any) -> ItemError:
    with pytest.raises(ItemError) as caught:
        Fetcher(folder).fetch(row(**values))
    return caught.value


def test_objects_are_fetched_by_their_names(folder: str) -> None:
    put(folder, {"s/a.png": b"source", "m.png": b"mask", "t.png": b"target", "e.png": b"effect"})
    whole = storage.join(folder, "m.png")
    item = Fetcher(folder).fetch(row(source="s/a.png", mask=whole, target="t.png", effect_mask="e.png", category="cat"))
    assert (item.id, item.source, item.mask, item.origin, item.category) == ("a", b"source", b"mask", "test", "cat")
    assert (item.source_name, item.mask_name) == ("s/a.png", whole)
    assert item.target == {"bytes": b"target", "path": "t.png"}
    assert item.effect_mask == {"bytes": b"effect", "path": "e.png"}
    plain = Fetcher(folder).fetch(row(source="s/a.png", mask="m.png"))
    assert (plain.target, plain.effect_mask, plain.category) == (None, None, None)
    assert Fetcher(folder).uri(row(source="s/a.png")) == storage.join(folder, "s/a.png")


@pytest.mark.parametrize("absent", ["source", "mask", "target", "effect_mask"])
def test_a_missing_object_is_named(folder: str, absent: str) -> None:
    names = {"source": "s.png", "mask": "m.png", "target": "t.png", "effect_mask": "e.png"}
    put(folder, {name: b"x" for role, name in names.items() if role != absent})
    error = error_of(folder, **names)
    assert (error.stage, error.code) == ("fetch", "missing")
    assert absent.replace("_", " ") in error.message
    assert storage.join(folder, names[absent]) in error.message


def test_too_large_is_said_with_both_sizes(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "LARGEST_OBJECT", 1 << 20)
    put(folder, {"s.png": bytes(2 << 20), "m.png": b"x"})
    error = error_of(folder, source="s.png", mask="m.png")
    assert (error.stage, error.code) == ("fetch", "too_large")
    assert "2 MiB; at most 1 MiB" in error.message


def test_what_cannot_be_read_costs_one_item(tmp_path: Path) -> None:
    put(str(tmp_path), {"m.png": b"x", "folder/x": b"x"})
    for source in ("folder", "http://example.org/a.png", "s3:///nothing.png"):
        error = error_of(str(tmp_path), source=source, mask="m.png")
        assert (error.stage, error.code) == ("fetch", "not_readable")
        assert source in error.message
        assert source in str(Fetcher(str(tmp_path)).uri(row(source=source)))


def test_what_the_plan_knows_is_not_fetched(tmp_path: Path) -> None:
    error = error_of(str(tmp_path), source="s.png", error="unpaired", message="s.png has no mask")
    assert (error.stage, error.code, error.message) == ("read", "unpaired", "s.png has no mask")


def test_a_store_that_is_away_is_no_fault_of_the_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> bytes:
        raise StorageUnavailable("no answer")

    monkeypatch.setattr(storage.LocalStorage, "read", away)
    with pytest.raises(StorageUnavailable):
        Fetcher(str(tmp_path)).fetch(row(source="s.png", mask="m.png"))


def dataset(folder: str, shards: int = 2, rows: int = 11, group: int = 4) -> None:
    for shard in range(shards):
        values = []
        for number in range(rows):
            name = f"{shard}-{number}"
            values.append(record.empty_record(
                id=name, source=record.image_value(f"s{name}".encode(), f"{name}.png"), mask=record.image_value(f"m{name}".encode()),
                target=record.image_value(f"t{name}".encode()) if number % 2 else None, origin="o", category="c", width=8, height=8,
            ))  # fmt: skip
        if shard == 0:
            values[3]["mask"] = {"bytes": None, "path": "elsewhere.png"}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(values, schema=record.RECORD_SCHEMA), sink, row_group_size=group)
        put(folder, {f"part-{shard}.parquet": sink.getvalue().to_pybytes()})


def test_rows_of_shards_are_fetched_across_row_groups(folder: str) -> None:
    dataset(folder)
    plan = [asdict(entry) for entry in open_input(folder).rows()]
    fetcher = Fetcher(folder)
    del plan[3]
    with ThreadPoolExecutor(4) as pool:
        for rows in (plan, plan[::-1], plan[::3] + plan[1::3]):
            for values, item in zip(rows, pool.map(fetcher.fetch, rows), strict=True):
                name = values["id"]
                assert (item.id, item.source, item.mask) == (name, f"s{name}".encode(), f"m{name}".encode())
                assert (item.source_name, item.mask_name, item.category) == (f"{name}.png", None, "c")
                assert item.target == ({"bytes": f"t{name}".encode(), "path": None} if int(name[2:]) % 2 else None)
    assert str(fetcher.uri(plan[0])).endswith("part-0.parquet")


def test_a_record_without_bytes_costs_itself(folder: str) -> None:
    dataset(folder, shards=1)
    error = error_of(folder, shard="part-0.parquet", row=3)
    assert (error.stage, error.code) == ("fetch", "missing")
    assert "mask of record a has no bytes" in error.message


def test_a_missing_shard_costs_its_items(folder: str) -> None:
    dataset(folder, shards=1)
    error = error_of(folder, shard="part-7.parquet", row=0)
    assert (error.stage, error.code) == ("fetch", "missing")
    assert "part-7.parquet" in error.message


def test_a_row_group_is_read_once_for_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(str(tmp_path), shards=1)
    reads: list[int] = []
    real = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, **more: Any) -> pa.Table:
        reads.append(group)
        return real(self, group, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    fetcher = Fetcher(str(tmp_path))
    for number in (0, 1, 2, 4, 5, 6, 7, 8, 9, 10):
        fetcher.fetch(row(shard="part-0.parquet", row=number))
    assert reads == [0, 1, 2]


def test_a_record_is_built_from_files_and_its_erasure_kept_as_it_is(folder: str) -> None:
    put(folder, {"s.png": png(1), "m.png": png_mask(), "e.jpg": b"whatever", "t.png": png(2)})
    values = Fetcher(folder).fetch_record(row(source="s.png", mask="m.png", erased="e.jpg", target="t.png", category="cat"), 200)
    assert values["erased"] == {"bytes": b"whatever", "path": "e.jpg"}
    assert values["source"] == {"bytes": png(1), "path": "s.png"}
    assert values["target"] == {"bytes": png(2), "path": "t.png"}
    assert (values["id"], values["width"], values["height"], values["category"], values["score"]) == ("a", 64, 48, "cat", None)
    assert set(values) == set(record.RECORD_SCHEMA.names)


def test_files_without_an_erasure_are_no_record(folder: str) -> None:
    put(folder, {"s.png": png(1), "m.png": png_mask()})
    with pytest.raises(ItemError, match=r"s\.png has no erasure beside it; add erased/") as caught:
        Fetcher(folder).fetch_record(row(source="s.png", mask="m.png"), 200)
    assert caught.value.code == "nothing_erased"


def test_a_record_of_a_dataset_comes_whole(folder: str) -> None:
    values = record.empty_record(
        id="a", source=record.image_value(png(1)), mask=record.image_value(png_mask()), erased=record.image_value(b"e"), origin="o",
        width=64, height=48, seed=7, model="m", round=2, score=0.25, verdict="rejected",
    )  # fmt: skip
    write_shard(storage.join(folder, "part-0001-000000.parquet"), pa.Table.from_pylist([values], schema=record.RECORD_SCHEMA))
    (found,) = open_input(folder).rows()
    assert Fetcher(folder).fetch_record(asdict(found), 200) == values


def test_erased_pictures_of_a_folder_and_a_manifest_are_found(folder: str) -> None:
    put(folder, {"source/a.png": b"s", "mask/a.png": b"m", "erased/a.jpg": b"e"})
    (from_folder,) = open_input(folder).rows()
    put(folder, {"list.csv": b"source,mask,erased\nsource/a.png,mask/a.png,erased/a.jpg\n"})
    (from_manifest,) = open_input(storage.join(folder, "list.csv")).rows()
    assert from_folder.erased == from_manifest.erased == "erased/a.jpg"
