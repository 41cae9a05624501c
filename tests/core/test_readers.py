"""Inputs: folders, manifests and datasets become the same plan rows from a disk and from a bucket; what is wrong costs its own row."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import record, storage
from core.errors import StorageError, UsageError
from core.plan import PlanRow
from core.readers import open_input
from tests.conftest import S3
from tests.pictures import put


def rows(uri: str) -> list[PlanRow]:
    return list(open_input(uri, origin="test").rows())


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def shard(*items: tuple[str | None, str, str | None]) -> bytes:
    picture = record.image_value(b"picture", "x.png")
    values = [record.empty_record(id=i, origin=o, category=c, source=picture, mask=picture, width=8, height=8) for i, o, c in items]
    loose = pa.schema([field.with_nullable(True) for field in record.RECORD_SCHEMA])
    return parquet(pa.Table.from_pylist(values, schema=loose))


def test_pictures_are_paired_by_name_in_role_folders(folder: str) -> None:
    names = ["source/b.jpg", "source/deep/er/a.v2.png", "mask/deep/er/a.v2.webp", "mask/b.png", "target/b.png", "effect_mask/b.png"]
    put(folder, dict.fromkeys([*names, "source/.DS_Store", "readme.txt", ".cache/source/x.png"], b"x"))
    found = open_input(folder)
    assert (found.kind, found.base) == ("folder", folder)
    assert rows(folder) == [
        PlanRow("b", "source/b.jpg", "mask/b.png", "target/b.png", "effect_mask/b.png", origin="test"),
        PlanRow("deep/er/a.v2", "source/deep/er/a.v2.png", "mask/deep/er/a.v2.webp", origin="test"),
    ]


def test_pictures_are_paired_in_one_folder_an_item(folder: str) -> None:
    put(
        folder,
        dict.fromkeys(["one/source.jpg", "one/mask.png", "one/gt.png", "set/two/source.png", "set/two/mask.png", "one/n.json"], b"x"),
    )
    assert rows(folder) == [
        PlanRow("one", "one/source.jpg", "one/mask.png", "one/gt.png", origin="test"),
        PlanRow("set/two", "set/two/source.png", "set/two/mask.png", origin="test"),
    ]


def test_what_does_not_pair_is_said(folder: str) -> None:
    names = [
        "source/lonely.jpg",
        "mask/forgotten.png",
        "source/both.jpg",
        "source/both.png",
        "mask/both.png",
        "source/ok.png",
        "mask/ok.png",
    ]
    put(folder, dict.fromkeys(names, b"x"))
    found = {row.id: row for row in rows(folder)}
    assert {name: row.error for name, row in found.items()} == {
        "lonely": "unpaired", "forgotten": "unpaired", "both": "ambiguous_pair", "ok": None,
    }  # fmt: skip
    assert "source/lonely.jpg has no mask" in str(found["lonely"].message)
    assert "mask/forgotten.png has no source" in str(found["forgotten"].message)
    assert "source/both.jpg, source/both.png" in str(found["both"].message)


def test_a_disk_and_a_bucket_give_the_same_rows(s3: S3, tmp_path: Path) -> None:
    names = [f"{role}/{name}.png" for role in ("source", "mask") for name in ("a", "a-b", "a/b", "a.b", "Z", "é", "b c")]
    files = dict.fromkeys([*names, "source/a.jpg", "gt/a.png", "target/a.png", "mask/only.png"], b"x")
    files["list.jsonl"] = b'{"source": "a", "mask": "b"}\n{"source": "s3://other/a", "mask": "/data/b"}\nbroken'
    bucket = s3.bucket("same")
    put(str(tmp_path), files)
    put(bucket, files)
    assert rows(str(tmp_path)) == rows(bucket)
    assert len(rows(bucket)) == 8
    assert rows(f"{tmp_path}/list.jsonl") == rows(f"{bucket}/list.jsonl")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "ndjson", "parquet"])
def test_manifests_of_every_kind_say_the_same(folder: str, kind: str) -> None:
    values = [
        {"id": "1", "source": "a b.png", "mask": "m,1.png", "target": "t.png", "category": "cat", "other": "x"},
        {"id": "", "source": "s3://else/é.png", "mask": "m\"2.png", "target": "", "category": "", "other": ""},
    ]  # fmt: skip
    if kind == "csv":
        text = "\ufeffid,source,mask,target,category,other\r\n"
        text += "\r\n".join(",".join('"' + str(value).replace('"', '""') + '"' for value in line.values()) for line in values) + "\r\n\r\n"
        data = text.encode()
    elif kind == "parquet":
        data = parquet(pa.Table.from_pylist([{name: value or None for name, value in line.items()} for line in values]))
    else:
        data = "\n\n".join(json.dumps(line) for line in values).encode()
    put(folder, {f"list.{kind}": data})
    uri = storage.join(folder, f"list.{kind}")
    assert open_input(uri).base == folder
    assert rows(uri) == [
        PlanRow("1", "a b.png", "m,1.png", "t.png", category="cat", origin="test"),
        PlanRow(record.id_from_uris("s3://else/é.png", 'm"2.png'), "s3://else/é.png", 'm"2.png', origin="test"),
    ]


def test_bad_csv_lines_cost_themselves(tmp_path: Path) -> None:
    lines = ["source,mask,origin", "a,b,c", "a,b", "too,many,fields,here", ",b,c", '"a\nb",m,c', "a," + "x" * 200_000 + ",c", "z,y,"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    found = rows(f"{tmp_path}/list.csv")
    assert [row.error for row in found] == [None, *["bad_manifest_line"] * 3, None, "bad_manifest_line", None]
    assert [(row.source, row.origin) for row in found if not row.error] == [("a", "c"), ("a\nb", "c"), ("z", "test")]
    assert "line 3 has 2 fields, the header has 3" in str(found[1].message)
    assert "no source" in str(found[3].message)
    assert "line 8 is not CSV" in str(found[5].message)
    assert len({row.id for row in found}) == len(found)


def test_bad_json_lines_cost_themselves(tmp_path: Path) -> None:
    lines = [
        '{"source": "a", "mask": "b"}',
        "{",
        "[1]",
        '{"source": "a"}',
        "null",
        "[" * 100_000,
        r'{"source": "\ud800", "mask": "m"}',
        "",
        r'{"source": "\u00e9", "mask": "m"}',
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    found = rows(f"{tmp_path}/list.jsonl")
    assert [row.error for row in found] == [None, *["bad_manifest_line"] * 6, None]
    assert found[-1].source == "é"
    for row in found:
        row.id.encode()
        assert len(row.message or "") < 300


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b"source,image\nx,y\n"),
        ("a.csv", b"source;mask\nx;y\n"),
        ("a.jsonl", b'{"source": "a"}'),
        ("a.parquet", parquet(pa.table({"source": ["x"]}))),
    ],
)
def test_missing_columns_are_named_before_anything_is_done(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=r"has no column (source and )?mask: found source") as caught:
        open_input(f"{tmp_path}/{name}")
    assert "effect_mask" in str(caught.value)


def test_a_dataset_is_read_by_row(folder: str) -> None:
    put(folder, {
        "part-0001-000001.parquet": shard(("c", "else", "dog")),
        "part-0001-000000.parquet": shard(("a", "", None), ("b", "coco", "cat")),
        "failures/part-0001-000000.parquet": b"not looked at",
        "dataset.json": b"{}",
    })  # fmt: skip
    assert open_input(folder).kind == "dataset"
    first, second = "part-0001-000000.parquet", "part-0001-000001.parquet"
    assert rows(folder) == [
        PlanRow("a", origin="test", shard=first, row=0),
        PlanRow("b", origin="coco", category="cat", shard=first, row=1),
        PlanRow("c", origin="else", category="dog", shard=second, row=0),
    ]
    assert rows(storage.join(folder, second)) == [PlanRow("c", origin="else", category="dog", shard=second, row=0)]


def test_a_record_without_id_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "part-0.parquet").write_bytes(shard(("a", "o", None), (None, "o", None)))
    found = rows(str(tmp_path))
    assert [(row.error, row.row) for row in found] == [(None, 0), ("no_id", 1)]
    assert found[1].id


def test_shards_that_are_none_are_named(folder: str) -> None:
    put(folder, {"part-0.parquet": shard(("a", "o", None))[:-20]})
    with pytest.raises(StorageError, match=r"part-0\.parquet is no whole Parquet file"):
        rows(folder)
    put(folder, {"part-0.parquet": parquet(pa.table({"id": [1], "source": [1]}))})
    with pytest.raises(UsageError, match=r"part-0\.parquet is no shard of a dataset: column mask is missing"):
        rows(folder)
    put(folder, {"list.parquet": b"PAR1"})
    with pytest.raises(StorageError, match=r"list\.parquet is no whole Parquet file"):
        open_input(storage.join(folder, "list.parquet"))


@pytest.mark.parametrize("files", [[], ["photo.jpg", "notes/x.txt"], ["missing.csv/x"]])
def test_anything_else_is_refused_with_what_was_found(tmp_path: Path, files: list[str]) -> None:
    put(str(tmp_path), dict.fromkeys(files, b""))
    with pytest.raises(UsageError) as caught:
        open_input(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "source/ and mask/" in str(caught.value)
    assert all(name in str(caught.value) for name in files) or "nothing there" in str(caught.value)


def test_names_that_are_no_text_cost_themselves(tmp_path: Path) -> None:
    put(str(tmp_path), {"source/ok.png": b"x", "mask/ok.png": b"x"})
    for role in (b"source", b"mask"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + role + b"/caf\xe9.png")).write_bytes(b"x")
    found = rows(str(tmp_path))
    assert {row.id: row.error for row in found} == {"ok": None, r"caf\udce9": "bad_name"}
    assert "rename" in str(found[0].message)


def test_the_origin_is_the_name_of_the_input(tmp_path: Path) -> None:
    put(str(tmp_path), {"birds/source/a.png": b"", "birds/mask/a.png": b"", "cars.jsonl": b'{"source": "a", "mask": "b"}'})
    assert [row.origin for row in open_input(f"{tmp_path}/birds/").rows()] == ["birds"]
    assert [row.origin for row in open_input(f"{tmp_path}/cars.jsonl").rows()] == ["cars"]
