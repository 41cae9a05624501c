"""Curating on a real Ray: each rule drops what it should, a killed run is finished by the next, and pictures may stay where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter

from core.curation.measured import measured
from core.errors import CleanplateError, UsageError
from core.readers import open_input
from jobs import measuring
from jobs.config import VerifyConfig
from jobs.curate import curate
from jobs.curate_config import CurateConfig
from jobs.verify import verify
from tests.jobs.support import SAMPLES, read_rows

pytestmark = pytest.mark.usefixtures("cluster")
CLASSES = ["dog", "dog", "dog", "dog", "cat", "cat", "Clothing"]
NAMES = ["barn", "caller", "dancer", "fig", "parrot", "referee", "sitter"]


class Alarmed:
    """A safety classifier that objects to one photo: the parrot, by its size."""

    def score(self, photos: list[np.ndarray]) -> list[float]:
        return [0.9 if photo.shape == PARROT else 0.1 for photo in photos]


PARROT = np.asarray(Image.open(SAMPLES / "source" / "parrot.jpg").convert("RGB")).shape


def saved(image: Image.Image, path: Path, quality: int = 92) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality) if path.suffix == ".jpg" else image.save(path)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photos with classes; a copy, a crop and a blurred version of one; a cut-off file; a mask that is too small."""
    root = tmp_path_factory.mktemp("curate")
    lines = ["id,source,mask,category"]

    def add(name: str, photo: Image.Image, category: str, box: tuple[float, float, float, float] = (0.3, 0.3, 0.7, 0.7)) -> None:
        saved(photo, root / f"{name}.jpg")
        mask = np.zeros((photo.height, photo.width), np.uint8)
        mask[round(box[1] * photo.height) : round(box[3] * photo.height), round(box[0] * photo.width) : round(box[2] * photo.width)] = 255
        saved(Image.fromarray(mask), root / f"{name}.png")
        lines.append(f"{name},{name}.jpg,{name}.png,{category}")

    for name, category in zip(NAMES, CLASSES, strict=True):
        add(name, Image.open(SAMPLES / "source" / f"{name}.jpg").convert("RGB"), category)
    barn = Image.open(SAMPLES / "source" / "barn.jpg").convert("RGB")
    width, height = barn.size
    add("barn-half", barn.resize((300, round(300 * height / width))), "cat")
    add("barn-crop", barn.crop((round(0.05 * width), 0, width, round(0.95 * height))), "dog", (0.27, 0.31, 0.69, 0.73))
    add("barn-other-object", barn, "dog", (0.0, 0.0, 0.2, 0.2))
    add("barn-blurred", barn.filter(ImageFilter.GaussianBlur(8)), "dog")
    add("fig-speck", Image.open(SAMPLES / "source" / "fig.jpg").convert("RGB"), "dog", (0.5, 0.5, 0.52, 0.52))
    (root / "broken.jpg").write_bytes((root / "barn.jpg").read_bytes()[:2000])
    lines.append("broken,broken.jpg,barn.png,cat")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root


def run(collection: Path, output: object, **settings: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"max_aspect": 0.0, "max_failure_rate": 0.5, "dedupe": True, "max_actors": 1, **settings}
    return curate(CurateConfig(input=str(collection / "list.csv"), output=str(output), **given))


def dropped(output: Path) -> dict[str, tuple[str, str | None]]:
    return {row["id"]: (row["reason"], row["near"]) for row in pq.read_table(output / "dropped.parquet").to_pylist()}


def test_every_rule_and_a_funnel_that_adds_up(collection: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    summary = run(collection, output, safety="tests.jobs.test_curate:Alarmed")
    rows, failures = read_rows(str(output))
    gone = dropped(output)
    funnel = summary["funnel"]
    assert funnel["in"] == 13 == sum(count for name, count in funnel.items() if name != "in")
    assert failures.keys() == {"broken"}
    assert failures["broken"]["error"] == "truncated"
    assert gone["sitter"] == ("class_excluded", None)
    assert gone["barn-blurred"] == ("blurred", None)
    assert gone["fig-speck"] == ("mask_small", None)
    assert gone["parrot"] == ("unsafe", None)
    copies = {"barn", "barn-half", "barn-crop"}
    assert len(copies & rows.keys()) == 1, "one of three copies stays"
    assert {gone[name] for name in copies - rows.keys()} == {("duplicate", next(iter(copies & rows.keys())))}
    assert {"caller", "dancer", "fig", "referee", "barn-other-object"} < rows.keys()
    assert rows["fig"]["source"]["bytes"] == (collection / "fig.jpg").read_bytes()
    assert rows["fig"]["category"] == "dog"
    assert json.loads((output / "funnel.json").read_text()) == funnel
    assert verify(VerifyConfig(input=str(output)))["status"] == "finished"
    assert run(collection, output, safety="tests.jobs.test_curate:Alarmed")["already_finished"]
    # another choice from the same measures; by photo, one of barn's four stays
    again = run(collection, output, safety="tests.jobs.test_curate:Alarmed", overwrite=True, duplicate="photo", per_category=1)
    assert again["funnel"]["duplicate"] == 3
    assert again["funnel"]["class_full"] >= 2
    with pytest.raises(UsageError, match="per_category: 1 -> 7"):
        run(collection, output, safety="tests.jobs.test_curate:Alarmed", per_category=7, duplicate="photo")


@pytest.mark.slow
def test_a_run_that_was_killed_is_finished_by_the_next(collection: Path, tmp_path: Path) -> None:
    """Killed before the last measures, and again before the last shard: the state that a kill leaves, made by taking files away."""
    whole, output = tmp_path / "whole", tmp_path / "out"
    run(collection, whole)
    run(collection, output, shard_mb=0.0, block_rows=1)
    folder = output / ".cleanplate" / "measures"
    assert measured(str(folder)) == {0: 13}
    for path in [*folder.glob("rows-*"), output / "dataset.json", output / "funnel.json", *(output / ".cleanplate" / "plan").iterdir()]:
        path.unlink()
    shards = sorted(output.glob("part-*"))
    shards[0].unlink()
    resumed = run(collection, output, shard_mb=0.0, block_rows=1)
    assert 0 < resumed["processed"] < resumed["in"] or len(shards) == 1
    assert read_rows(str(output)) == read_rows(str(whole))
    assert (output / "funnel.json").read_bytes() == (whole / "funnel.json").read_bytes()
    assert dropped(output) == dropped(whole)


def test_evaluation_photos_are_kept_out_and_must_be_readable(collection: Path, tmp_path: Path) -> None:
    photos = tmp_path / "evaluation"
    fig = Image.open(collection / "fig.jpg")
    saved(fig.crop((0, 0, round(0.95 * fig.width), fig.height)).resize((320, 300)), photos / "leak.jpg", 50)
    run(collection, tmp_path / "out", against=str(photos), dedupe=False)
    gone = dropped(tmp_path / "out")
    assert gone["fig"] == ("evaluation_set", "leak.jpg")
    assert [name for name, (reason, _) in gone.items() if reason == "evaluation_set"] == ["fig"]
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(CleanplateError, match=r"broken\.jpg of the evaluation set .* cannot be read"):
        run(collection, tmp_path / "other", against=str(photos))


def test_several_collections_and_their_licences(collection: Path, tmp_path: Path) -> None:
    second = tmp_path / "mulan"
    for folder, suffix in (("source", "jpg"), ("mask", "png")):
        saved(Image.open(collection / f"caller.{suffix}"), second / folder / f"caller.{suffix}")
    (second / "dataset.json").write_text(json.dumps({"configuration": {"licences": ["CC BY-NC-SA 4.0"]}}))
    both = f"{collection / 'list.csv'},{second}"
    config: dict[str, Any] = {"input": both, "output": str(tmp_path / "out"), "dedupe": True, "max_failure_rate": 0.5}
    with pytest.raises(UsageError, match=r"CC BY-NC-SA 4\.0, which is restricted.*--accept-license mulan"):
        curate(CurateConfig(**config))
    assert not (tmp_path / "out").exists()
    summary = curate(CurateConfig(**config, accept_license="mulan"))
    assert summary["licences"] == ["CC BY-NC-SA 4.0", "unknown"]
    rows = read_rows(str(tmp_path / "out"))[0]
    assert len({"list/caller", "mulan/caller"} & rows.keys()) == 1, "a copy across collections"
    written = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert written["configuration"]["licences"] == ["CC BY-NC-SA 4.0", "unknown"]


def test_pictures_that_stay_in_place_and_metadata_alone(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"id": f"item-{number:04d}", "source": f"{number}.jpg", "mask": f"{number}.png", "category": f"class {number % 7}", "width": 640,
         "height": 100 if number % 10 == 0 else 480, "mask_area": 0.1}
        for number in range(1000)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")

    def nothing_is_opened(*_: object) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(measuring, "measure_pictures", nothing_is_opened)
    config: dict[str, Any] = {"input": str(tmp_path / "list.parquet"), "measure": "metadata", "pictures": "in-place", "per_category": 20}
    output = tmp_path / "out"
    summary = curate(CurateConfig(**config, output=str(output)))
    assert (summary["funnel"]["in"], summary["funnel"]["too_small"], summary["out"]) == (1000, 100, 140)
    chosen = {row.id: row for row in open_input(str(output / "manifest.parquet")).rows()}
    assert len(chosen) == 140
    assert all(row.source == str(tmp_path / f"{int(name[5:])}.jpg") for name, row in chosen.items())
    assert curate(CurateConfig(**config, output=str(output)))["already_finished"]
    # the same rows in another order and other row groups are the same choice
    table = pa.Table.from_pylist(rows).take(np.random.default_rng(0).permutation(1000))
    (tmp_path / "other").mkdir()
    pq.write_table(table, tmp_path / "other" / "list.parquet", row_group_size=37)
    config["input"] = str(tmp_path / "other" / "list.parquet")
    curate(CurateConfig(**config, output=str(tmp_path / "again")))
    assert {row.id for row in open_input(str(tmp_path / "again" / "manifest.parquet")).rows()} == chosen.keys()
    with pytest.raises(UsageError, match="needs a dataset or a Parquet manifest"):
        curate(CurateConfig(input=str(collection / "list.csv"), output=str(tmp_path / "csv"), measure="metadata"))
    with pytest.raises(CleanplateError, match="none of 1000 items is left"):
        curate(CurateConfig(**{**config, "min_side": 5000}, output=str(tmp_path / "none")))


@pytest.mark.parametrize("wrong", [{"min_area": 0.9}, {"max_aspect": 0.5}, {"per_category": -1}, {"measure": "metadata", "safety": "a:B"}])
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CurateConfig(input="in", output="out", **wrong)
