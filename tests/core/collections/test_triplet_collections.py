"""Collections with clean plates in their published layouts: what comes out, what fails, and what a wrong input is told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from core import storage
from core.collections.builder import Choice
from core.collections.formats import FORMATS, open_collection
from core.errors import UsageError
from core.images import encode_image
from core.record import record_problem
from tests.conftest import S3
from tests.core.collections.layouts import (
    BOX,
    SIZE,
    as_json,
    clean,
    mask,
    ober_row,
    parquet,
    photo,
    rgba,
    triplet,
)
from tests.core.collections.support import codes, drawn, pixels, read
from tests.pictures import box_mask, gradient, put


def test_rorem_reads_many_files_with_and_without_score(folder: str) -> None:
    source, object_mask, answer = triplet()
    files = {}
    for place, name in (("", "a"), ("", "é b"), ("round 1", "c"), ("round 1", "d"), ("round 1", "e")):
        for role, data in (("source", source), ("mask", object_mask), ("GT", answer)):
            files[storage.join(place, role, f"{name}.png") if place else f"{role}/{name}.png"] = data

    def item(name: str, **more: object) -> dict[str, object]:
        return {"source": f"source/{name}.png", "mask": f"mask/{name}.png", "GT": f"GT/{name}.png", **more}

    files["meta.json"] = as_json([item("a"), item("é b")])
    files["round 1/meta_score.json"] = as_json([item("c", score=1), item("d", score=0), item("e", score="0.7")])
    put(folder, files)
    rows, built, errors = read("rorem", folder)
    assert not errors
    assert list(rows) == ["GT/a.png", "GT/é b.png", "round 1/GT/c.png", "round 1/GT/d.png", "round 1/GT/e.png"]
    for found in built.values():
        assert record_problem(found.record) is None
        assert (found.record["origin"], found.record["width"], found.record["height"]) == ("rorem", *SIZE)
        assert found.record["source"]["bytes"] == source
        assert np.array_equal(drawn(found.record["mask"]), box_mask(*SIZE, BOX))
    plain, good, bad, doubtful = (built[name].record for name in ("GT/é b.png", *list(rows)[2:]))
    assert plain["target"] == {"bytes": answer, "path": "GT/é b.png"}
    assert (plain["erased"], plain["score"], plain["verdict"]) == (None, None, None)
    assert good["target"] == good["erased"] == {"bytes": answer, "path": "round 1/GT/c.png"}
    assert [(row["score"], row["verdict"]) for row in (good, bad, doubtful)] == [(1, "accepted"), (0, "rejected"), (0.7, "uncertain")]
    assert bad["target"] is None
    assert doubtful["target"] is None
    assert bad["erased"]["bytes"] == answer
    one = f"{folder}/round 1/meta_score.json"
    assert list(read("rorem", one)[0]) == ["GT/c.png", "GT/d.png", "GT/e.png"]


def test_rorem_says_what_is_wrong_with_an_item(folder: str) -> None:
    source, object_mask, answer = triplet()
    elsewhere = storage.join(folder, "else/whole.png")
    put(folder, {"s.png": source, "m.png": object_mask, "else/whole.png": source})
    put(folder, {f"g{number}.png": answer for number in range(5)})
    put(folder, {"empty.png": mask((0, 0, 0, 0)), "small.png": encode_image(gradient(32, 24)), "cut.png": answer[:300]})
    good = {"source": "s.png", "mask": "m.png", "GT": "g0.png"}
    items = [
        good,
        {**good, "GT": "none.png"},
        {**good, "source": elsewhere, "GT": elsewhere},
        {**good, "mask": "empty.png", "GT": "g1.png"},
        {**good, "GT": "small.png"},
        {**good, "GT": "cut.png"},
        {"source": "s.png", "mask": "", "GT": 3},
        "s.png",
        {**good, "GT": "g2.png", "score": 2},
        {**good, "GT": "g3.png", "score": True},
        {**good, "GT": "\ud800.png"},
        {**good, "mask": "./m.png", "GT": "x/../g4.png"},
    ]
    put(folder, {"meta.json": b"\xef\xbb\xbf" + json.dumps(items).encode()})
    _, built, errors = read("rorem", folder)
    assert list(built) == ["g0.png", elsewhere, "g4.png"]
    assert codes(errors) == {
        "none.png": "missing",
        "g1.png": "empty_mask",
        "small.png": "target_size_mismatch",
        "cut.png": "target_truncated",
        "meta.json#6": "bad_item",
        "meta.json#7": "bad_item",
        "g2.png": "bad_item",
        "g3.png": "bad_item",
        "\\ud800.png": "bad_name",
    }
    assert "meta.json#6 has no mask and no GT" in errors["meta.json#6"].message
    assert "32 x 24 and the photo 64 x 48" in errors["small.png"].message


def test_ober_keeps_effect_masks_subsets_and_splits(folder: str) -> None:
    wild = ober_row("w_1", 5, gt=None, object_effect_mask=None, subset="OBER-Wild", split="test")
    train = [ober_row(f"0427_{number}", number) for number in range(3)]
    put(folder, {"data/train-00000-of-00002.parquet": parquet(train[:2]), "data/train-00001-of-00002.parquet": parquet(train[2:])})
    put(folder, {"data/test-00000-of-00001.parquet": parquet([wild])})
    rows, built, errors = read("ober", folder)
    assert not errors
    assert list(rows) == ["test/OBER-Wild/w_1", *(f"train/captured/0427_{number}" for number in range(3))]
    for number in range(3):
        row = built[f"train/captured/0427_{number}"].record
        assert record_problem(row) is None
        assert row["origin"] == "ober/captured"
        assert row["source"]["bytes"] == photo(number)
        assert row["target"]["bytes"] == clean(number)
        assert (drawn(row["effect_mask"]) >= drawn(row["mask"])).all()
        assert (drawn(row["effect_mask"]) > drawn(row["mask"])).sum() == 30 * 6
    assert built["test/OBER-Wild/w_1"].record["target"] is None
    assert list(read("ober", folder, splits=frozenset({"test"}))[0]) == ["test/OBER-Wild/w_1"]
    assert len(read("ober", folder, subsets=frozenset({"captured"}))[0]) == 3
    assert len(read("ober", f"{folder}/data/train-00000-of-00002.parquet")[0]) == 2


def test_ober_says_what_is_wrong(folder: str) -> None:
    rows = [
        ober_row("no-bytes", 0, object_mask={"bytes": None, "path": "x"}),
        ober_row("no-name", 0, input={"bytes": photo(), "path": None}),
        ober_row("empty", 0, object_mask={"bytes": mask((0, 0, 0, 0)), "path": "x"}),
        ober_row("no-effect", 0, object_effect_mask={"bytes": mask((0, 0, 0, 0)), "path": "x"}),
    ]
    put(folder, {"data/train-0.parquet": parquet(rows)})
    _, built, errors = read("ober", folder)
    assert list(built) == ["train/captured/train-0-1"]
    assert codes(errors) == {
        "train/captured/no-bytes": "missing",
        "train/captured/empty": "empty_mask",
        "train/captured/no-effect": "effect_empty_mask",
    }
    put(folder, {"wrong/a.parquet": parquet([ober_row("a", 0)], ("input", "gt", "object_mask", "split"))})
    with pytest.raises(UsageError, match=r"a\.parquet is no shard of OBER: no column object_effect_mask and no column subset; found input"):
        read("ober", f"{folder}/wrong")
    with pytest.raises(UsageError, match="no Parquet file was found"):
        read("ober", f"{folder}/nothing")


def clip(name: str, frames: int, *, black: bool = False, after: bool = True, split: str = "train/") -> dict[str, bytes]:
    painted = encode_image(np.repeat((255 - box_mask(*SIZE, BOX) if black else box_mask(*SIZE, BOX))[..., None], 3, axis=2))
    files = {}
    for frame in range(frames):
        files[f"{split}img/{name}/{name}_{frame:03d}.png"] = photo(frame)
        files[f"{split}mask/{name}/{name}_{frame:03d}_M.png"] = painted
        if after:
            files[f"{split}gt/{name}/{name}_{frame:03d}.png"] = clean(frame)
    return files


def test_rord_pairs_frames_and_takes_some_of_each_clip(folder: str) -> None:
    put(folder, {**clip("clip é", 5), **clip("other", 4, black=True), **clip("val", 1, split="val/")})
    rows, built, errors = read("rord", folder)
    assert not errors
    assert len(rows) == 10
    for name, found in built.items():
        assert record_problem(found.record) is None
        assert np.array_equal(drawn(found.record["mask"]), box_mask(*SIZE, BOX)), name
        assert found.warnings == (("mask_inverted",) if "other" in name else ())
        assert found.record["target"]["bytes"] == clean(int(name[-3:]))
    assert list(read("rord", folder, frames_per_clip=1)[0]) == ["train/clip é/clip é_002", "train/other/other_002", "val/val/val_000"]
    three = list(read("rord", folder, frames_per_clip=3)[0])
    assert [name[-3:] for name in three if "clip" in name] == ["000", "002", "004"]
    told = read("rord", folder, object_is="white")[1]["train/other/other_000"].record
    assert np.array_equal(drawn(told["mask"]), 255 - box_mask(*SIZE, BOX))


def test_rord_shares_one_clean_frame_and_says_what_is_missing(folder: str) -> None:
    files = {**clip("shared", 3, after=False), **clip("holes", 3), **clip("lost", 2)}
    files["train/gt/shared/last.png"] = clean(1)
    del files["train/mask/holes/holes_001_M.png"]
    for name in [name for name in files if "/gt/lost/" in name]:
        del files[name]
    put(folder, files)
    _, built, errors = read("rord", folder)
    assert sorted(built) == ["train/holes/holes_000", "train/holes/holes_002", *(f"train/shared/shared_{n:03d}" for n in range(3))]
    assert built["train/shared/shared_002"].record["target"]["path"] == "train/gt/shared/last.png"
    assert codes(errors) == {"train/holes/holes_001": "unpaired", "train/lost/lost_000": "unpaired", "train/lost/lost_001": "unpaired"}
    rows, built, errors = read("rord", folder, frames_per_clip=1)
    assert len(rows) == 3
    assert codes(errors) == {"train/lost": "unpaired"}
    assert "in gt" in errors["train/lost"].message
    put(folder, {"half/img/a/0.png": photo(), "half/gt/a/0.png": clean()})
    with pytest.raises(UsageError, match="no pictures in mask/ were found"):
        read("rord", f"{folder}/half")


def test_mulan_removes_each_layer_and_what_is_below_shows(folder: str) -> None:
    low, high = box_mask(*SIZE, (10, 10, 40, 40)), box_mask(*SIZE, (30, 20, 50, 44))
    soft = np.where(high > 0, 204, 0).astype(np.uint8)
    hidden = box_mask(*SIZE, (32, 22, 36, 26))
    layers = [encode_image(gradient(*SIZE, 0)), rgba(1, low), rgba(2, hidden), rgba(3, soft)]
    put(folder, {f"COCO/img 1/layer_{number}.png": data for number, data in enumerate(layers)})
    rows, built, errors = read("mulan", folder)
    assert list(rows) == [f"COCO/img 1/layer_{number}" for number in (1, 2, 3)]
    assert codes(errors) == {"COCO/img 1/layer_2": "empty_mask"}, "it is behind the soft layer and hardly seen"
    ground, one, three = (gradient(*SIZE, seed).astype(int) for seed in (0, 1, 3))
    for y, x, expected in ((15, 15, one), (5, 5, ground), (42, 45, (51 * ground + 204 * three + 127) // 255)):
        for found in built.values():
            assert np.abs(pixels(found.record["source"])[y, x] - expected[y, x]).max() <= 1
    first, last = built["COCO/img 1/layer_1"].record, built["COCO/img 1/layer_3"].record
    assert np.array_equal(pixels(first["target"])[15, 15], ground[15, 15])
    assert np.array_equal(pixels(last["target"])[30, 35], one[30, 35]), "the layer below shows through"
    assert np.array_equal(drawn(last["mask"]), high)
    assert np.array_equal(drawn(first["mask"]) > 0, (low > 0) & (high == 0))
    for row in (first, last):
        assert record_problem(row) is None
        effect = drawn(row["effect_mask"])
        assert np.array_equal(pixels(row["source"])[effect == 0], pixels(row["target"])[effect == 0])
        assert (effect >= drawn(row["mask"])).all()


def test_mulan_says_what_is_missing(folder: str) -> None:
    plain = encode_image(gradient(*SIZE, 0))
    whole = rgba(1, box_mask(*SIZE, BOX))
    put(folder, {"a/layer_0.png": plain, "b/layer_1.png": whole, "c/layer_0.png": plain, "c/layer_2.png": whole})
    put(folder, {"d/layer_0.png": encode_image(gradient(32, 24)), "d/layer_1.png": whole, "d/thumb.png": plain})
    put(folder, {"e/layer_0.png": plain, "e/layer_1.png": whole[:200]})
    _, built, errors = read("mulan", folder)
    assert not built
    assert codes(errors) == {
        "a": "incomplete_layers",
        "b": "incomplete_layers",
        "c": "incomplete_layers",
        "d/layer_1": "layer_size_mismatch",
        "e/layer_1": "layer_truncated",
    }
    assert "layer_0.png, layer_2.png" in errors["c"].message
    with pytest.raises(UsageError, match=r"no <image>/layer_0\.png"):
        read("mulan", f"{folder}/none")


def test_folders_and_manifests_are_read_as_by_other_jobs(folder: str) -> None:
    put(folder, {"set/source/a.png": photo(), "set/mask/a.png": mask(), "set/target/a.png": clean(), "set/source/b.png": photo()})
    put(folder, {"list.csv": b"id,source,mask,erased,category\n1,set/source/a.png,set/mask/a.png,set/target/a.png,cat\n"})
    _, built, errors = read("folder", f"{folder}/set")
    assert codes(errors) == {"b": "unpaired"}
    assert built["a"].record["target"]["bytes"] == clean()
    assert built["a"].record["origin"] == "set"
    listed = read("manifest", f"{folder}/list.csv")[1]["1"].record
    assert (listed["erased"]["bytes"], listed["category"], listed["origin"]) == (clean(), "cat", "list")
    with pytest.raises(UsageError, match="is a manifest and no folder"):
        read("folder", f"{folder}/list.csv")
    with pytest.raises(UsageError, match="is a folder and no manifest"):
        read("manifest", f"{folder}/set")


def test_a_disk_and_a_bucket_give_the_same_rows_and_records(s3: S3, tmp_path: Any) -> None:
    files = {**clip("é", 3), **{f"im/layer_{n}.png": rgba(n, box_mask(*SIZE, BOX)) for n in range(3)}}
    bucket = s3.bucket("same")
    for place in (str(tmp_path), bucket):
        put(place, files)
    for name in ("rord", "mulan"):
        here, there = read(name, str(tmp_path)), read(name, bucket)
        assert here[0] == there[0]
        assert here[1] == there[1]
        assert here[1]


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="no format 'x'; the formats are rorem, rord"):
        open_collection("x", "in", None, Choice())
    assert all(FORMATS[name].licence for name in FORMATS)
