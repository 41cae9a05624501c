"""Composing on a real Ray: the same bytes for any number of workers, records that other jobs can read, failures as rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core import storage
from core.composing.composer import Composer, ComposeSettings
from core.composing.encoding import encode_record
from core.composing.recipe import read_recipe
from core.errors import CleanplateError, UsageError
from core.ledger import list_output
from core.record import record_problem
from jobs.compose import ComposeConfig, compose
from jobs.config import VerifyConfig
from jobs.verify import verify
from tests.conftest import S3
from tests.core.composing.collections import open_collection, photo, write_collection
from tests.jobs.support import picture, read_rows

pytestmark = pytest.mark.usefixtures("cluster")
SMALL: dict[str, Any] = {"count": 10, "size": 96, "negatives": 0.3, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("collection"))


def config(folder: object, output: object, **values: Any) -> ComposeConfig:
    given = {"annotations": f"{folder}/notes.json", **SMALL, **values}
    return ComposeConfig(backgrounds=f"{folder}/photos", cutouts=f"{folder}/cutouts", output=str(output), **given)


@pytest.fixture(scope="module")
def made(cluster: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    output = tmp_path_factory.mktemp("made") / "out"
    summary = compose(config(folder, output, max_actors=2, block_rows=3, shard_mb=0.0))
    assert (summary["in"], summary["out"], summary["failed"], summary["unscored"]) == (10, 10, 0, 10)
    return output


def test_rows_are_those_of_one_plain_loop(folder: Path, made: Path) -> None:
    rows = read_rows(str(made))[0]
    assert sorted(rows) == [f"compose-3-{number:09d}" for number in range(10)]
    settings = ComposeSettings(size=96, seed=3, negatives=0.3)
    for name, row in rows.items():
        alone = Composer(open_collection(folder), settings).compose(name)
        assert encode_record(alone, name, seed=3, model=row["model"], format="jpeg") == row


def test_another_number_of_workers_and_a_bucket_make_the_same_bytes(folder: Path, made: Path, s3: S3) -> None:
    bucket = s3.bucket("compose")
    for path in folder.rglob("*"):
        if path.is_file():
            storage.storage_for(bucket).write(storage.join(bucket, "in", str(path.relative_to(folder))), path.read_bytes())
    summary = compose(config(f"{bucket}/in", f"{bucket}/out", max_actors=1))
    assert summary["out"] == 10
    assert read_rows(f"{bucket}/out") == read_rows(str(made))


def test_records_are_whole_and_say_how_they_were_made(made: Path) -> None:
    assert verify(VerifyConfig(input=str(made)))["status"] == "finished"
    rows = read_rows(str(made))[0].values()
    for row in rows:
        assert record_problem(row) is None
        assert (row["origin"], row["width"], row["height"], row["seed"]) == ("compose", 96, 96, 3)
        recipe = read_recipe(row["mask"]["bytes"])
        assert recipe is not None
        assert recipe["target"]["category"] == row["category"]
        mask, effect = picture(row["mask"]), picture(row["effect_mask"])
        assert not mask[effect == 0].any()
        assert (row["source"]["bytes"] == row["target"]["bytes"]) == recipe["negative"]
        far = np.abs(picture(row["source"]).astype(int) - picture(row["target"]))[effect == 0]
        assert np.percentile(far, 90) <= 3, "what lies outside differs by the codec's noise"
    assert {read_recipe(row["mask"]["bytes"])["negative"] for row in rows} == {True, False}  # type: ignore[index]
    meta = json.loads((made / "dataset.json").read_text())
    assert meta["configuration"]["licences"] == ["CC0", "unknown"]


def test_a_lost_shard_is_made_again_and_other_settings_are_refused(folder: Path, made: Path) -> None:
    before = read_rows(str(made))
    settings = {"max_actors": 2, "block_rows": 3, "shard_mb": 0.0}
    parts, _ = list_output(str(made))
    assert len(parts) > 1
    Path(parts[0]).unlink()
    (made / "dataset.json").unlink()
    assert 0 < compose(config(folder, made, **settings))["processed"] < 10
    assert read_rows(str(made)) == before
    assert compose(config(folder, made, **settings))["already_finished"]
    with pytest.raises(UsageError, match=r"other settings \(reflections: 0\.5 -> 0\.1\)"):
        compose(config(folder, made, reflections=0.1, **settings))


def test_png_pictures_are_equal_outside_the_effect(folder: Path, tmp_path: Path) -> None:
    compose(config(folder, tmp_path / "out", image_format="png", count=4))
    for row in read_rows(str(tmp_path / "out"))[0].values():
        effect = picture(row["effect_mask"])
        assert np.array_equal(picture(row["source"])[effect == 0], picture(row["target"])[effect == 0])


def test_broken_files_are_warnings_and_what_fits_nowhere_is_failures(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "in")
    (folder / "cutouts" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (folder / "photos" / "broken.png").write_bytes(b"nothing")
    summary = compose(config(folder, tmp_path / "out", annotations="none", count=20))
    assert (summary["out"], summary["failed"]) == (20, 0)
    assert {"cutout_truncated", "photo_not_an_image"} & set(summary["warnings"])
    for path in (folder / "photos").iterdir():
        Image.fromarray(photo(0, 24, 24)).save(path)
    summary = compose(config(folder, tmp_path / "none", count=3))
    assert (summary["out"], summary["failed"], summary["failures"]) == (0, 3, {"nothing_fits": 3})


@pytest.mark.slow
def test_surfaces_are_found_by_networks_in_the_job(folder: Path, tmp_path: Path) -> None:
    from tests.core.test_perception_scenes import save_depth, save_mask2former

    models = {
        "surfaces": str(save_mask2former(tmp_path / "classes")),
        "depth": str(save_depth(tmp_path / "depth", "relative")),
        "annotations": "none",
        "max_failure_rate": 1.0,
    }
    summary = compose(config(folder, tmp_path / "out", **models))
    assert summary["in"] == summary["out"] + summary["failed"] == 10
    assert set(summary["failures"]) <= {"nothing_fits"}
    rows = read_rows(str(tmp_path / "out"))
    compose(config(folder, tmp_path / "again", max_actors=1, block_rows=2, **models))
    assert read_rows(str(tmp_path / "again")) == rows
    by_class = compose(config(folder, tmp_path / "classes-alone", **{**models, "depth": "none"}))
    assert by_class["out"] >= summary["out"]
    with pytest.raises(CleanplateError, match="nowhere"):
        compose(config(folder, tmp_path / "none", annotations="none", surfaces=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    "wrong", [{"depth": "a/b"}, {"count": 0}, {"size": 10}, {"negatives": 2.0}, {"max_objects": 9}, {"min_actors": 3, "max_actors": 2}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        config("in", "out", **wrong)


def test_wrong_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no cut-outs"):
        compose(ComposeConfig(backgrounds=f"{folder}/photos", cutouts=str(tmp_path / "nothing"), output=str(tmp_path / "out")))
    with pytest.raises(UsageError, match="is inside --backgrounds"):
        compose(config(folder, folder / "photos" / "out"))
    assert not (tmp_path / "out").exists()


def test_restricted_licences_are_refused_until_accepted(folder: Path, tmp_path: Path) -> None:
    notes = json.loads((folder / "notes.json").read_text())
    for entry in notes["objs"]:
        entry["licence"] = "CC-BY-NC-4.0"
    (tmp_path / "notes.json").write_text(json.dumps(notes))
    with pytest.raises(UsageError, match=r"stands under CC-BY-NC-4\.0, which is restricted.*--accept-license cc-by-nc-4\.0"):
        compose(config(folder, tmp_path / "out", annotations=str(tmp_path / "notes.json")))
    assert not (tmp_path / "out").exists()
