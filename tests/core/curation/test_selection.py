"""Choosing: the same choice for any blocks and any order, a sample without bias, and every drop with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from core.curation.copies import Copies, photo_keys, same_object
from core.curation.duplicates import DuplicateIndex
from core.curation.measures import MEASURES_SCHEMA
from core.curation.rules import RULES, Rules, parse_classes
from core.curation.selection import REASONS, Selection, SelectionSettings, Tables, select
from core.curation.signature import WINDOWS, from_bytes, to_bytes
from core.errors import UsageError
from core.record import item_seed


def measures(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=MEASURES_SCHEMA)


def in_blocks(table: pa.Table, rows: int) -> Tables:
    def tables() -> Iterator[pa.Table]:
        for start in range(0, len(table), rows):
            yield table.slice(start, rows)

    return tables


def random_table(count: int, seed: int = 0) -> pa.Table:
    """Items of eleven classes, many on shared photos, some near-duplicates of others, some that break rules."""
    random = np.random.default_rng(seed)
    photos = random.integers(0, 2**63, (max(2, count // 3), len(WINDOWS), 4), dtype=np.uint64)
    for number in range(0, len(photos) - 1, 4):  # the next photo is this one with a few bits flipped
        photos[number + 1] = photos[number]
        photos[number + 1, :, 3] ^= np.uint64(0b1011)
    rows = []
    for number in range(count):
        x, y = random.uniform(0, 0.6, 2)
        rows.append({
            "id": f"item-{number}",
            "category": None if number % 11 == 0 else f"class {number % 11}",
            "width": int(random.integers(200, 2000)),
            "height": int(random.integers(200, 2000)),
            "mask_area": float(random.uniform(0, 0.8)),
            "x0": float(x), "y0": float(y), "x1": float(x + 0.3), "y1": float(y + 0.3),
            "sharpness": float(random.uniform(0, 500)),
            "signature": to_bytes(photos[random.integers(len(photos))]),
            "error": "corrupt" if number % 97 == 3 else None,
        })  # fmt: skip
    return measures(rows)


RULES_OF_TEST = Rules(exclude=frozenset({"class 4"}), min_side=256, max_aspect=3, min_area=0.01, max_area=0.7, min_sharpness=10)


def kept_ids(table: pa.Table, selection: Selection) -> set[str]:
    return {name for name, reason in zip(table["id"].to_pylist(), selection.reasons, strict=True) if reason < 0}


@pytest.mark.parametrize("duplicates", ["off", "object", "photo"])
def test_blocks_and_order_make_no_difference(duplicates: Any) -> None:
    table = random_table(700)
    settings = SelectionSettings(rules=RULES_OF_TEST, per_class=12, duplicates=duplicates, seed=5)
    whole = select(in_blocks(table, 700), settings)
    reasons = dict(zip(table["id"].to_pylist(), whole.reasons.tolist(), strict=True))
    for rows in (1, 13, 256):
        again = select(in_blocks(table, rows), settings)
        assert np.array_equal(again.reasons, whole.reasons)
        assert (again.near, again.classes) == (whole.near, whole.classes)
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    other = select(in_blocks(shuffled, 50), settings)
    assert dict(zip(shuffled["id"].to_pylist(), other.reasons.tolist(), strict=True)) == reasons
    funnel = whole.funnel()
    assert funnel["in"] == 700 == sum(count for name, count in funnel.items() if name != "in")
    assert funnel["failed"] > 0
    assert funnel["class_excluded"] > 0
    assert funnel["class_full"] > 0
    assert (funnel["duplicate"] > 0) == (duplicates != "off")
    assert max(count for category, count in whole.classes.items() if category) <= 12
    assert kept_ids(table, select(in_blocks(table, 100), SelectionSettings(rules=RULES_OF_TEST, per_class=12, seed=6))) != kept_ids(
        table, select(in_blocks(table, 100), SelectionSettings(rules=RULES_OF_TEST, per_class=12, seed=5))
    )


@pytest.mark.parametrize("duplicates", ["object", "photo"])
def test_of_copies_exactly_those_with_a_better_one_go(duplicates: Any) -> None:
    """Against comparing all with all."""
    table = random_table(400, seed=2)
    settings = SelectionSettings(rules=Rules(), per_class=0, duplicates=duplicates, seed=1)
    selection = select(in_blocks(table, 33), settings)
    found = from_bytes(b"".join(table["signature"].to_pylist()))
    rank = [item_seed(name, 1) for name in table["id"].to_pylist()]
    boxes = np.stack([table[name].to_numpy() for name in ("x0", "y0", "x1", "y1")], axis=1)
    near = np.bitwise_count(found[:, None, 0] ^ found[None, :, 0]).sum(axis=2) <= 48
    whole = np.array([0, 0, 1, 1], np.float32)
    same = near & (same_object(boxes, boxes, whole) if duplicates == "object" else True)
    for row, reason in enumerate(selection.reasons):
        others = [other for other in np.flatnonzero(same[row]) if other != row and table["error"][int(other)].as_py() is None]
        better = [other for other in others if rank[other] < rank[row]]
        if reason == REASONS.index("failed"):
            continue
        assert (reason == REASONS.index("duplicate")) == bool(better)
        if better:
            assert selection.near[row] == table["id"][int(min(better, key=lambda other: rank[other]))].as_py()


def test_each_class_is_sampled_evenly() -> None:
    """Over many seeds each of 40 items is among the 10 chosen about as often (four standard deviations of a binomial)."""
    table = measures([{"id": f"x{number}", "category": "cat"} for number in range(40)])
    counts: Counter[str] = Counter()
    for seed in range(400):
        counts.update(kept_ids(table, select(in_blocks(table, 40), SelectionSettings(rules=Rules(), per_class=10, seed=seed))))
    assert sum(counts.values()) == 4000
    assert all(abs(count - 100) < 4 * np.sqrt(400 * 0.25 * 0.75) for count in counts.values())


def test_items_near_an_evaluation_photo_go_whatever_their_object() -> None:
    table = random_table(60, seed=3)
    leak = np.frombuffer(table["signature"][7].as_py(), "<u8").astype(np.uint64).reshape(len(WINDOWS), 4)
    index = DuplicateIndex()
    index.add("test-1", leak)
    selection = select(in_blocks(table, 9), SelectionSettings(rules=Rules(), per_class=0), index, ["test-1"])
    near = [row for row, data in enumerate(table["signature"].to_pylist()) if row == 7 or data == table["signature"][7].as_py()]
    dropped = np.flatnonzero(selection.reasons == REASONS.index("evaluation_set")).tolist()
    assert set(near) <= set(dropped)
    assert all(selection.near[row] == "test-1" for row in dropped)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"category": "Class 4"}, "class_excluded"),
        ({"width": 255}, "too_small"),
        ({"width": 4000}, "aspect"),
        ({"mask_area": 0.005}, "mask_small"),
        ({"mask_area": 0.71}, "mask_large"),
        ({"sharpness": 9.0}, "blurred"),
        ({"unsafe": 0.6}, "unsafe"),
        ({"category": None, "width": None, "height": None, "mask_area": None, "sharpness": None}, None),
        ({}, None),
    ],
)
def test_each_rule_has_its_reason_and_what_is_unknown_breaks_none(values: dict[str, Any], reason: str | None) -> None:
    good = {"id": "x", "category": "cat", "width": 800, "height": 600, "mask_area": 0.2, "sharpness": 90.0, "unsafe": 0.1}
    rules = Rules(**{**{name: getattr(RULES_OF_TEST, name) for name in Rules.__slots__}, "max_unsafe": 0.5})
    found = rules.broken(measures([{**good, **values}, good]))
    assert found.tolist() == [RULES.index(reason) if reason else -1, -1]


def test_boxes_follow_the_crop() -> None:
    """An object at the same place of the scene is the same in a crop, although its fractions differ."""
    part = np.array(WINDOWS[-1], np.float32)
    whole = np.array([[0.06, 0.06, 0.10, 0.10]], np.float32)
    moved = (whole - 0.05) / 0.9
    assert same_object(whole, moved.astype(np.float32), part).tolist() == [[True]]
    assert same_object(whole, whole, part).tolist() == [[False]]
    assert same_object(np.full((1, 4), np.nan, np.float32), moved.astype(np.float32), part).tolist() == [[True]]


def test_copies_of_one_photo_with_thousands_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.curation.copies._ROWS", 7)
    random = np.random.default_rng(0)
    found = np.repeat(random.integers(0, 2**63, (1, len(WINDOWS), 4), dtype=np.uint64), 60, axis=0)
    ranks = random.permutation(60).astype(np.int64)
    boxes = np.zeros((60, 4), np.float32)
    boxes[:, 2:] = 1
    copies = Copies(photo_keys(found), ranks, boxes, whole_photos=False)
    copies.add(found[:25])
    copies.add(found[25:])
    copies.compare(found)
    best = int(np.argmin(ranks))
    assert all(better == (-1 if row == best else best) for row, better in enumerate(copies.better()))


def test_class_lists(tmp_path: Any) -> None:
    default = parse_classes("default")
    assert {"clothing", "human face", "footwear"} <= default
    assert not any("#" in name for name in default)
    assert parse_classes("none") == frozenset()
    assert parse_classes("Cat, dog") == {"cat", "dog"}
    (tmp_path / "list.txt").write_text("Cat  # a remark\n\n# another\nTraffic light\n")
    assert parse_classes(str(tmp_path / "list.txt")) == {"cat", "traffic light"}
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        parse_classes(str(tmp_path / "bad.txt"))
