"""The record: its schema as others read it, what is no record, verdicts, ids and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from core import record
from core.ledger import write_shard
from tests.pictures import png, png_mask


def good(**changes: Any) -> dict[str, Any]:
    values = {
        "id": "a",
        "source": record.image_value(png()),
        "mask": record.image_value(png_mask()),
        "origin": "o",
        "width": 64,
        "height": 48,
    }
    return record.empty_record(**{**values, **changes})


def test_the_datasets_library_shows_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    rows = [good(score=0.95, verdict="accepted", erased=record.image_value(png(1))), good(id="b", seed=2**62)]
    write_shard(f"{tmp_path}/part-0.parquet", pa.Table.from_pylist(rows, schema=record.RECORD_SCHEMA))
    found = datasets.load_dataset("parquet", data_files=f"{tmp_path}/part-*.parquet", split="train", cache_dir=str(tmp_path / "cache"))
    assert found.column_names == record.RECORD_SCHEMA.names
    assert found[0]["source"].size == (64, 48)
    assert found[0]["mask"].mode == "L"
    assert found[1]["erased"] is None
    assert (found[0]["verdict"], found[1]["seed"]) == ("accepted", 2**62)
    assert found[0]["score"] == pytest.approx(0.95)


def test_a_record_holds_all_columns_and_no_others() -> None:
    assert list(record.empty_record(id="a")) == record.RECORD_SCHEMA.names
    with pytest.raises(ValueError, match="no such column of the record: scores; the columns are id, "):
        record.empty_record(scores=1)
    assert record.image_value(None) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"score": 1.0, "verdict": "uncertain"}, None),
        ({"mask": None}, "mask is missing"),
        ({"id": ""}, "id is empty"),
        ({"width": 0}, "0 x 48"),
        ({"score": 1.01}, "1.01"),
        ({"score": float("nan")}, "nan"),
        ({"verdict": "good"}, "'good'.*accepted"),
        ({"erased": {"bytes": None, "path": "x.png"}}, "erased has no bytes"),
    ],
)
def test_what_is_no_record_is_said(changes: dict[str, Any], says: str | None) -> None:
    problem = record.record_problem(good(**changes))
    if says is None:
        assert problem is None
    else:
        with pytest.raises(ValueError, match=says):
            raise ValueError(problem)


def test_what_is_no_dataset_is_said() -> None:
    schema = record.RECORD_SCHEMA
    assert record.schema_problem(schema) is None
    assert record.schema_problem(schema.remove(schema.get_field_index("target"))) is None
    assert "mask is missing" in str(record.schema_problem(schema.remove(2)))
    assert "image column is struct" in str(record.schema_problem(schema.set(2, pa.field("mask", pa.binary()))))
    assert "id is int64; it must be string" in str(record.schema_problem(schema.set(0, pa.field("id", pa.int64()))))


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (None, None),
        (0.0, "rejected"),
        (0.4999, "rejected"),
        (0.5, "uncertain"),
        (0.9, "uncertain"),
        (0.9001, "accepted"),
        (1.0, "accepted"),
    ],
)
def test_verdicts_follow_the_thresholds(score: float | None, verdict: str | None) -> None:
    assert record.verdict_for(score, accept_above=0.9, uncertain_from=0.5) == verdict


def test_ids_are_stable_and_tell_pairs_apart() -> None:
    assert record.id_from_uris("a", "b") == record.id_from_uris("a", "b")
    assert len({record.id_from_uris(*pair) for pair in [("a", "b"), ("b", "a"), ("ab", ""), ("", "ab"), ("a", "bc"), ("ab", "c")]}) == 6
    # stored datasets depend on these very values
    assert record.id_from_uris("a", "b") == "852635742d6eb30fdccb0e7c1b53d92f"


def test_seeds_are_stable_spread_and_in_range() -> None:
    seeds = {record.item_seed(f"item-{item}", seed, candidate) for item in range(50) for seed in range(5) for candidate in range(4)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert record.item_seed("1", 23) != record.item_seed("31", 2)
    assert record.item_seed("a", 0) == record.item_seed("a", 0, 0)
