"""Masks for photos that have none, on a real Ray: without weights, with a network, and resumed after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.errors import CleanplateError, ItemError, UsageError
from core.ledger import list_parts
from core.perception.objects import ObjectRules
from core.perception.saliency import salient_boxes
from jobs.config import VerifyConfig
from jobs.segment import make_finder, segment
from jobs.segment_config import SegmentConfig
from jobs.verify import verify
from tests.core.test_perception_detection import save_detector
from tests.core.test_perception_sam import save_segmenter
from tests.jobs.support import picture, read_rows

BOXES = {"a": (60, 40, 130, 110), "deep/b": (20, 30, 70, 120), "c": (90, 70, 150, 130)}


def scene(box: tuple[int, int, int, int], seed: int) -> np.ndarray:
    """A disc of one colour on a soft texture, 160 x 200."""
    random = np.random.default_rng(seed)
    pixels = np.clip(np.array([90, 120, 90]) + random.normal(0, 4, (160, 200, 3)), 0, 255)
    y, x = np.mgrid[:160, :200]
    inside = ((x - (box[0] + box[2]) / 2) / ((box[2] - box[0]) / 2)) ** 2 + (
        (y - (box[1] + box[3]) / 2) / ((box[3] - box[1]) / 2)
    ) ** 2 <= 1
    pixels[inside] = np.array([210, 60, 40]) + random.normal(0, 4, (int(inside.sum()), 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    (root / "deep").mkdir()
    for seed, (name, box) in enumerate(BOXES.items()):
        Image.fromarray(scene(box, seed)).save(root / f"{name}.png")
    Image.new("RGB", (160, 120), (90, 90, 90)).save(root / "nothing.png")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    return root


def run(photos: Path, output: Path, **settings: Any) -> dict[str, Any]:
    return segment(SegmentConfig(input=str(photos), output=str(output), max_actors=1, **settings))


@pytest.mark.usefixtures("cluster")
def test_objects_that_stand_out_are_cut_out_and_a_killed_run_is_finished(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings: dict[str, Any] = {"shard_mb": 0.0, "block_rows": 1}
    summary = run(photos, output, **settings)
    rows, failures = read_rows(str(output))
    assert (summary["in"], summary["out"], summary["failed"]) == (5, 3, 2)
    assert failures["nothing.png"]["error"] == "no_object"
    assert failures["broken.jpg"]["stage"] == "decode"
    for seed, (name, box) in enumerate(BOXES.items()):
        row = rows[f"{name}.png"]
        truth = np.abs(scene(box, seed).astype(int) - [210, 60, 40]).max(axis=2) < 60
        found = picture(row["mask"]) > 0
        assert (found & truth).sum() / (found | truth).sum() > 0.9
        assert row["source"]["bytes"] == (photos / f"{name}.png").read_bytes()
        assert (row["width"], row["height"], row["category"]) == (200, 160, None)
    assert verify(VerifyConfig(input=str(output)))["status"] == "finished"
    # what a kill leaves: shards that are not there, and no dataset.json
    lost = list_parts(str(output))
    Path(lost[0]).unlink()
    (output / "dataset.json").unlink()
    assert run(photos, output, **settings)["processed"] >= 1
    assert read_rows(str(output)) == (rows, failures)
    with pytest.raises(UsageError, match=r"min_side: 16 -> 20"):
        run(photos, output, min_side=20, **settings)


@pytest.mark.usefixtures("cluster")
def test_a_manifest_needs_sources_alone_and_rules_have_reasons(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"id,source,category\nx,{photos / 'a.png'},disc\ny,{photos / 'c.png'},disc\nz,,disc\n")
    summary = run(tmp_path / "list.csv", tmp_path / "out", min_side=65)
    rows, failures = read_rows(str(tmp_path / "out"))
    assert summary["out"] == 1
    assert rows["x"]["category"] == "disc"
    assert failures["y"]["error"] == "no_fitting_object"
    assert "allowed are sides from 65" in failures["y"]["message"]
    assert {row["error"] for row in failures.values()} == {"no_fitting_object", "bad_manifest_line"}
    (tmp_path / "other.csv").write_text("id,picture\nx,a.png\n")
    with pytest.raises(UsageError, match="no column source"):
        run(tmp_path / "other.csv", tmp_path / "none")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("family", ["sam", "sam2"])
def test_a_detector_and_a_segmenter_run_in_the_job(family: str, tmp_path: Path) -> None:
    """Tiny random networks in the layout of published ones: each row is what they give in this process, on any number of actors."""
    photos = tmp_path / "photos"
    photos.mkdir()
    pictures = {f"{seed}.png": scene(list(BOXES.values())[seed % 3], seed) for seed in range(9)}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(photos / name)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    settings: dict[str, Any] = {
        "detector": str(save_detector(tmp_path / "detector", "grounding-dino")),
        "segmenter": str(save_segmenter(tmp_path / "segmenter", family)),
        "prompts": "cat, fire hydrant, traffic light",
        "max_area": 0.55 if family == "sam" else 0.93,
    }
    config = SegmentConfig(input=str(photos), output=str(tmp_path / "out"), block_rows=2, **settings)
    summary = segment(config)
    rows, failures = read_rows(str(tmp_path / "out"))
    assert (summary["in"], summary["out"] + summary["failed"]) == (10, 10)
    finder = make_finder(config, ("cat", "fire hydrant", "traffic light"), "cpu")
    refused: dict[str, tuple[str, str]] = {}
    for name, pixels in pictures.items():
        try:
            found = finder.find(pixels)
        except ItemError as error:
            refused[name] = (error.code, error.message)
        else:
            assert np.array_equal(picture(rows[name]["mask"]), found.mask)
            assert rows[name]["category"] == found.label
    assert failures.pop("broken.jpg")["stage"] == "decode"
    assert {name: (row["error"], row["message"]) for name, row in failures.items()} == refused
    assert rows
    assert "no_fitting_object" in {row["error"] for row in failures.values()}, "the rules are asked, too"
    run(photos, tmp_path / "again", block_rows=5, **settings)
    assert read_rows(str(tmp_path / "again")) == read_rows(str(tmp_path / "out"))
    with pytest.raises(CleanplateError, match="nowhere"):
        run(photos, tmp_path / "none", **{**settings, "segmenter": str(tmp_path / "nowhere")})


def test_boxes_of_what_stands_out_hold_it() -> None:
    for seed, box in enumerate(BOXES.values()):
        (x0, y0, x1, y1), _ = salient_boxes(scene(box, seed))[0]
        assert x0 <= box[0] + 3
        assert y0 <= box[1] + 3
        assert x1 >= box[2] - 3
        assert y1 >= box[3] - 3
    assert salient_boxes(np.full((50, 60, 3), 7, np.uint8)) == []


def test_rules_name_what_they_refuse() -> None:
    rules = ObjectRules(min_area=0.01, max_area=0.5, min_side=10)
    mask = np.zeros((100, 100), np.uint8)
    mask[10:30, 10:30] = 255
    assert rules.broken(mask) is None
    assert "covers 81" in str(rules.broken(np.pad(np.full((90, 90), 255, np.uint8), 5)))
    mask[:] = 0
    mask[10:14, 10:60] = 255
    assert rules.broken(mask) == "is 50 x 4 pixels, allowed are sides from 10"


@pytest.mark.parametrize("wrong", [{"prompts": "dog"}, {"detector": "x/y"}, {"min_area": 0.9}, {"min_score": 2.0}])
def test_calls_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SegmentConfig(input="in", output="out", **wrong)
