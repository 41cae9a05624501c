"""Scoring what was erased before, on a real Ray: the same scores as where the erasing job gives them, whatever the input looks like."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.errors import UsageError
from core.ledger import list_output
from jobs.clean import clean
from jobs.config import CleanConfig, ScoreConfig, VerifyConfig
from jobs.score import score
from jobs.verify import verify
from tests.jobs.support import SAMPLES, picture, read_rows

pytestmark = pytest.mark.usefixtures("cluster")

COUNT = 6
ONE_ACTOR = {"max_actors": 1}
"""Most of a small job is the start of its actors, which load networks; that their number changes nothing is test_clean's matter."""


def erase(photos: Path, output: Path, **settings: Any) -> Path:
    clean(CleanConfig(input=str(photos), output=str(output), model="opencv", origin="samples", **{**ONE_ACTOR, **settings}))
    return output


def run(source: object, output: Path, **settings: Any) -> dict[str, Any]:
    return score(ScoreConfig(input=str(source), output=str(output), **{**ONE_ACTOR, **settings}))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some samples without their ground truth."""
    folder = tmp_path_factory.mktemp("photos")
    for role in ("source", "mask"):
        (folder / role).mkdir()
        for path in sorted((SAMPLES / role).iterdir())[:COUNT]:
            shutil.copy(path, folder / role)
    return folder


@pytest.fixture(scope="module")
def unscored(cluster: None, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    return erase(photos, tmp_path_factory.mktemp("unscored") / "out", discriminator="none")


@pytest.fixture(scope="module")
def as_files(photos: Path, unscored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source/, mask/ and erased/ of the same items."""
    folder = tmp_path_factory.mktemp("files") / "files"
    shutil.copytree(photos, folder)
    (folder / "erased").mkdir()
    for name, row in read_rows(str(unscored))[0].items():
        (folder / "erased" / f"{name}.png").write_bytes(row["erased"]["bytes"])
    return folder


def test_scores_equal_those_of_the_erasing_job(photos: Path, unscored: Path, tmp_path: Path) -> None:
    summary = run(unscored, tmp_path / "scored")
    assert (summary["in"], summary["out"], summary["failed"]) == (COUNT, COUNT, 0)
    expected = read_rows(str(erase(photos, tmp_path / "whole", discriminator="tiny")))[0]
    found = read_rows(str(tmp_path / "scored"))[0]
    assert found == expected
    assert len({row["score"] for row in found.values()}) == COUNT
    meta = json.loads((tmp_path / "scored" / "dataset.json").read_text())
    assert meta["configuration"]["discriminator"] == "tiny"
    assert verify(VerifyConfig(input=str(tmp_path / "scored")))["status"] == "finished"


@pytest.mark.slow
@pytest.mark.slow
def test_files_give_the_same_scores_as_a_dataset(unscored: Path, as_files: Path, tmp_path: Path) -> None:
    run(unscored, tmp_path / "from-dataset")
    run(as_files, tmp_path / "from-folder", origin="samples")
    manifest = as_files / "list.csv"
    names = sorted(path.stem for path in (as_files / "erased").iterdir())
    lines = [f"{name},source/{name}.jpg,mask/{name}.png,erased/{name}.png" for name in names]
    manifest.write_text("\n".join(["id,source,mask,erased", *lines]))
    run(manifest, tmp_path / "from-manifest", origin="samples")
    manifest.unlink()
    rows = [read_rows(str(tmp_path / name))[0] for name in ("from-dataset", "from-folder", "from-manifest")]
    columns = ("score", "verdict", "width", "height", "origin")
    for name in rows[0]:
        assert len({tuple(found[name][column] for column in columns) for found in rows}) == 1
        for image in ("source", "mask", "erased"):
            assert rows[0][name][image]["bytes"] == rows[1][name][image]["bytes"] == rows[2][name][image]["bytes"]


@pytest.mark.slow
def test_a_verdict_decides_the_target_anew(unscored: Path, tmp_path: Path) -> None:
    run(unscored, tmp_path / "lax", threshold=0.0, uncertain=0.0)
    lax = read_rows(str(tmp_path / "lax"))[0]
    assert {row["verdict"] for row in lax.values()} == {"accepted"}
    assert all(row["target"]["bytes"] == row["erased"]["bytes"] for row in lax.values())
    run(tmp_path / "lax", tmp_path / "strict", threshold=1.0, uncertain=1.0)
    strict = read_rows(str(tmp_path / "strict"))[0]
    assert {row["verdict"] for row in strict.values()} == {"rejected"}
    assert all(row["target"] is None for row in strict.values())
    assert {name: row["score"] for name, row in strict.items()} == {name: row["score"] for name, row in lax.items()}


def test_what_cannot_be_scored_is_a_failure(as_files: Path, tmp_path: Path) -> None:
    broken = tmp_path / "files"
    shutil.copytree(as_files, broken)
    first, second, third = sorted((broken / "erased").iterdir())[:3]
    first.unlink()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(second)
    third.write_bytes(third.read_bytes()[:500])
    summary = run(broken, tmp_path / "out")
    assert (summary["in"], summary["out"], summary["failed"]) == (COUNT, COUNT - 3, 3)
    failures = read_rows(str(tmp_path / "out"))[1]
    assert {name: row["error"] for name, row in failures.items()} == {
        first.stem: "nothing_erased",
        second.stem: "size_mismatch",
        third.stem: "truncated",
    }
    assert "30 x 20" in failures[second.stem]["message"]


@pytest.mark.slow
def test_a_lost_shard_is_made_again_and_other_settings_are_refused(unscored: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(unscored, output, shard_mb=0.0, block_rows=2)
    before = read_rows(str(output))
    parts, _ = list_output(str(output))
    assert len(parts) > 1
    Path(parts[0]).unlink()
    (output / "dataset.json").unlink()
    assert 0 < run(unscored, output, shard_mb=0.0)["processed"] < COUNT
    assert read_rows(str(output)) == before
    assert run(unscored, output)["already_finished"]
    with pytest.raises(UsageError, match=r"started with other settings \(threshold: 0\.9 -> 0\.8\)"):
        run(unscored, output, threshold=0.8)


def test_erased_pictures_keep_their_bytes(as_files: Path, tmp_path: Path) -> None:
    jpeg = tmp_path / "jpeg"
    shutil.copytree(as_files, jpeg)
    for path in list((jpeg / "erased").iterdir()):
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    run(jpeg, tmp_path / "out")
    rows = read_rows(str(tmp_path / "out"))[0]
    assert len(rows) == COUNT
    for name, row in rows.items():
        assert row["erased"]["bytes"] == (jpeg / "erased" / f"{name}.jpg").read_bytes()
        assert picture(row["erased"]).shape == (row["height"], row["width"], 3)
