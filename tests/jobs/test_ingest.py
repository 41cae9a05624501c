"""Ingesting on a real Ray, from a disk and a bucket: exactly once, failures as rows, what is lost made again, licences accepted first."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from core.collections.builder import Choice
from core.collections.formats import FORMATS, open_collection
from core.errors import UsageError
from core.ledger import list_output
from core.record import record_problem
from jobs.config import VerifyConfig
from jobs.data_config import IngestConfig
from jobs.ingest import ingest
from jobs.verify import verify
from tests.conftest import S3
from tests.core.collections.layouts import BOX, annotation, as_json, coco, ober_row, outline, parquet, photo, triplet
from tests.jobs.support import read_rows
from tests.pictures import put


def rorem_files() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    items: list[dict[str, Any]] = []
    for number in range(8):
        for role, data in zip(("source", "mask", "GT"), triplet(number), strict=True):
            files[f"{role}/{number}.png"] = data
        items.append({role: f"{role}/{number}.png" for role in ("source", "mask", "GT")} | ({"score": number % 2} if number > 3 else {}))
    del files["mask/2.png"]
    return {**files, "meta.json": as_json([*items, items[0]])}


def config(name: str, source: object, output: object, **values: Any) -> IngestConfig:
    return IngestConfig(format=name, input=str(source), output=str(output), **values)  # type: ignore[arg-type]


@pytest.mark.usefixtures("cluster")
def test_a_collection_becomes_the_same_dataset_from_a_disk_and_a_bucket(s3: S3, tmp_path: Path) -> None:
    source, output, bucket = tmp_path / "in", tmp_path / "out", s3.bucket("ingest")
    put(str(source), rorem_files())
    put(f"{bucket}/in", rorem_files())
    settings = {"max_actors": 2, "block_rows": 2, "shard_mb": 0.0}
    summary = ingest(config("rorem", source, output, **settings))
    assert (summary["in"], summary["out"], summary["failed"]) == (9, 7, 2)
    assert (summary["accepted"], summary["rejected"], summary["unscored"]) == (2, 2, 3)
    rows, failures = read_rows(str(output))
    assert {name: row["error"] for name, row in failures.items()} == {"GT/2.png": "missing", "GT/0.png@2": "duplicate_id"}
    assert failures["GT/2.png"]["uri"] == f"{source}/source/2.png"
    assert all(record_problem(row) is None for row in rows.values())
    assert verify(VerifyConfig(input=str(output)))["status"] == "finished"
    meta = json.loads((output / "dataset.json").read_text())
    assert meta["configuration"]["licences"] == ["Apache-2.0"]

    builder = FORMATS["rorem"].builder(str(source), 200.0, Choice())
    for item in open_collection("rorem", str(source), None, Choice()).rows():
        if item.id in rows:
            assert builder.build(asdict(item)).record == rows[item.id], "the same as without Ray"

    parts, _ = list_output(str(output))
    assert len(parts) > 1
    Path(parts[0]).unlink()
    (output / "dataset.json").unlink()
    assert 0 < ingest(config("rorem", source, output, **settings))["processed"] < 9
    assert read_rows(str(output))[0] == rows
    assert ingest(config("rorem", source, output, **settings))["already_finished"]
    with pytest.raises(UsageError, match=r"other settings \(max_megapixels: 200\.0 -> 1\.0\)"):
        ingest(config("rorem", source, output, max_megapixels=1.0, **settings))

    assert ingest(config("rorem", f"{bucket}/in", f"{bucket}/out", max_actors=1))["failed"] == 2
    assert read_rows(f"{bucket}/out")[0] == rows


@pytest.mark.usefixtures("cluster")
def test_plans_carry_outlines_and_rows_of_shards(tmp_path: Path) -> None:
    annotations = [annotation(number, [outline(BOX)], category_id=1 + 17 * (number % 2)) for number in range(4)]
    put(str(tmp_path), {"coco/annotations/instances_val.json": coco(annotations), "coco/val/000007.png": photo()})
    put(str(tmp_path), {"ober/data/train-0.parquet": parquet([ober_row(f"a_{number}", number) for number in range(3)])})
    (tmp_path / "exclude.txt").write_text("# of no use\nhund É  # a dog\n")
    summary = ingest(config("coco", tmp_path / "coco", tmp_path / "a", exclude=str(tmp_path / "exclude.txt"), max_actors=1))
    assert (summary["in"], summary["out"]) == (2, 2)
    assert {row["category"] for row in read_rows(str(tmp_path / "a"))[0].values()} == {"cat"}
    summary = ingest(config("ober", tmp_path / "ober", tmp_path / "b", accept_license="ober", max_actors=1))
    assert (summary["in"], summary["out"]) == (3, 3)
    assert all(row["effect_mask"] and row["target"] for row in read_rows(str(tmp_path / "b"))[0].values())


def test_a_restricted_licence_is_accepted_first(tmp_path: Path) -> None:
    for name in ("ober", "mulan", "rord"):
        with pytest.raises(UsageError, match=rf"{name} is published under .* add --accept-license {name}"):
            ingest(config(name, tmp_path, tmp_path / "out"))
    with pytest.raises(UsageError, match="--accept-license names x; the collections are rorem"):
        ingest(config("rorem", tmp_path, tmp_path / "out", accept_license="x"))
    assert not (tmp_path / "out").exists()


def test_a_wrong_input_is_named_and_leaves_no_plan(tmp_path: Path) -> None:
    put(str(tmp_path), {"in/x.png": photo()})
    with pytest.raises(UsageError, match=r"in is no rorem collection: no meta\.json"):
        ingest(config("rorem", tmp_path / "in", tmp_path / "out"))
    assert not list(tmp_path.glob("out/**/plan.json"))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("rorem", {"frames_per_clip": 1}), ("rord", {"exclude": "cat"}), ("coco", {"split": "train"}), ("rord", {"frames_per_clip": -1})],
)
def test_settings_of_another_format_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        config(name, "in", "out", **wrong)
