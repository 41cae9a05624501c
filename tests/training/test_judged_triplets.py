"""Judged erasures from triplets: verdicts that hold, squares as scoring sees them, a dataset that training reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.images import decode_photo
from core.masks import decode_mask, dilate
from core.metrics.perceptual import Lpips
from core.metrics.shadow import shadow_residual
from core.metrics.verdict import FAILED_RESIDUAL, measured_success
from core.record import record_problem
from core.scoring import make_views
from tests.core.metrics.lpips_weights import random_weights
from tests.training.support import write_triplet_files
from training.index import Selection, read_index
from training.judged_triplets import RIM_PX, around_object, deepened, judged_records, judged_results, left_shadow, main
from training.rough_erasers import ROUGH_ERASERS
from training.triplets import TrainingPair


def scene(seed: int = 0, width: int = 320, height: int = 240) -> TrainingPair:
    """A blue box on a textured ground with a shadow beside it."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.normal(0, 40, (height // 8, width // 8)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    target = np.clip(130 + coarse + rng.normal(0, 6, (height, width)), 0, 255)[..., None].repeat(3, 2).astype(np.uint8)
    x, y = int(rng.integers(60, 200)), int(rng.integers(40, 140))
    mask, effect = (np.zeros((height, width), np.uint8) for _ in range(2))
    mask[y : y + 50, x : x + 36] = 255
    effect[y + 30 : y + 56, x : x + 90] = 255
    effect |= mask
    source = np.where(effect[..., None] > 0, (target * 0.5).astype(np.uint8), target)
    source[mask > 0] = (20, 30, 220)
    return TrainingPair(id=f"scene-{seed}", source=source, target=target, mask=mask, effect_mask=effect)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    return Lpips(random_weights(tmp_path_factory.mktemp("lpips")), device="cpu")


def test_results_of_erasers_are_judged_by_their_figures(judge: Lpips) -> None:
    verdicts = set()
    for seed in range(6):
        pair = around_object(scene(seed))
        whole = judge.distance(pair.source, pair.target)
        for result in judged_results(pair, around_object(scene(seed + 1)), judge, seed=0):
            assert result.edited.shape == pair.source.shape
            assert result.kind != "classical"
            if result.kind not in {"clean", *ROUGH_ERASERS}:
                continue
            assert pair.effect_mask is not None
            # of what lies outside the object: its colours are no shadow, and the fill is LPIPS's to judge
            inside = dilate(pair.mask, RIM_PX)[..., None] > 0
            shadow, edited = (np.where(inside, pair.target, picture) for picture in (pair.source, result.edited))
            left = shadow_residual(edited, pair.target, shadow, pair.mask, pair.effect_mask)
            # successes of kind clean may be of either maker, and both hold what they promise
            assert measured_success(judge.distance(result.edited, pair.target), whole, left) is result.success
            verdicts.add((result.kind == "clean", result.success))
    assert verdicts >= {(True, True), (False, False)}


def test_a_narrow_shadow_beside_a_dark_object_counts_as_left() -> None:
    base = scene(5)
    effect = base.mask | np.roll(base.mask, 6, axis=1)
    shaded = np.where(effect[..., None] > 0, (base.target * 0.7).astype(np.uint8), base.target)
    source = np.where(base.mask[..., None] > 0, np.uint8(0), shaded)  # a black object: blurred, it darkens its surroundings most
    pair = replace(base, source=source, effect_mask=effect)
    perfect = np.where(base.mask[..., None] > 0, base.target, source)
    assert (shadow_residual(perfect, base.target, source, base.mask, effect) or 0) < FAILED_RESIDUAL
    assert left_shadow(pair, perfect) == pytest.approx(1.0, abs=0.01)
    assert left_shadow(pair, base.target) == 0.0


def test_a_shadow_gets_the_depth_that_is_asked_for_and_the_object_stays() -> None:
    pair = scene(2)
    assert pair.effect_mask is not None
    beside = (pair.effect_mask > 0) & (dilate(pair.mask, RIM_PX) == 0)
    for depths in ((0.4, 0.4), (0.9, 0.9)):
        other = deepened(pair, depths, seed=0)
        light = np.log((other.source + 1.0) / (other.target + 1.0))
        assert np.abs(light)[beside].mean() == pytest.approx(depths[0], rel=0.15)
        np.testing.assert_array_equal(other.source[pair.mask > 0], pair.source[pair.mask > 0])
        far = dilate(pair.effect_mask, 8) == 0
        np.testing.assert_array_equal(other.source[far], pair.source[far])
    drawn = {float(deepened(replace(pair, id=f"i{n}"), (0.1, 0.5), seed=0).source[beside].mean()) for n in range(4)}
    assert len(drawn) == 4
    np.testing.assert_array_equal(deepened(pair, (0.1, 0.5), seed=3).source, deepened(pair, (0.1, 0.5), seed=3).source)
    without = replace(pair, effect_mask=None)
    assert deepened(without, (0.1, 0.5), seed=0) is without


def test_records_show_what_scoring_shows(judge: Lpips) -> None:
    pair = scene(3)
    records = judged_records(pair, scene(4), judge, size=64, seed=0)
    assert len(records) > 3
    assert len({record["id"] for record in records}) == len(records)
    square = around_object(pair)
    for record in records:
        assert record_problem(record) is None
        mask = decode_mask(record["mask"]["bytes"], (64, 64)).pixels
        source = decode_photo(record["source"]["bytes"]).pixels
        assert decode_photo(record["erased"]["bytes"]).pixels.shape == (64, 64, 3)
        # the mask may be grown, so the square may be a little wider than that of the object's own mask
        own = make_views(64, square.source, square.mask, [])
        assert mask.mean() > 0.25 * own.mask.mean()
        blue = source[mask > 0].astype(int)
        assert (blue[:, 2] - blue[:, 0] > 60).mean() > 0.4
    # the square that results are made in shows what the whole photo shows
    whole, part = (make_views(64, each.source, each.mask, [each.target]) for each in (pair, square))
    np.testing.assert_array_equal(whole.source, part.source)
    np.testing.assert_array_equal(whole.edited[0], part.edited[0])


def test_the_draws_are_the_items_own(judge: Lpips) -> None:
    one, two = (judged_records(scene(1), scene(2), judge, size=64, seed=5) for _ in range(2))
    assert one == two
    assert judged_records(scene(1), scene(2), judge, size=64, seed=6) != one


@pytest.fixture
def triplets(tmp_path: Path) -> Path:
    return write_triplet_files(tmp_path / "triplets", [scene(seed=seed) for seed in range(3)])


def test_the_command_writes_a_dataset_that_training_reads(triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEANPLATE_LPIPS", str(random_weights(tmp_path)))
    output = tmp_path / "judged"
    call = ["--data", str(triplets), "--output", str(output), "--size", "64"]
    assert main(call) == 0
    shards = sorted(output.glob("part-*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in shards])
    assert set(table["verdict"].to_pylist()) == {"accepted", "rejected"}
    index = read_index(str(output), Selection(targets=False, judged=True))
    assert len(index) == len(table)
    before = [path.read_bytes() for path in shards]
    assert main(call) == 0
    assert [path.read_bytes() for path in shards] == before


def test_triplets_without_effect_masks_are_refused(
    triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLEANPLATE_LPIPS", str(random_weights(tmp_path)))
    for path in (triplets / "effect_mask").iterdir():
        path.unlink()
    assert main(["--data", str(triplets), "--output", str(tmp_path / "judged"), "--size", "64"]) == 2
    assert "effect mask" in capsys.readouterr().err


@pytest.mark.parametrize("depths", [("0", "0.4"), ("0.4", "0.1"), ("0.1", "2")])
def test_depths_that_no_shadow_has_are_refused(
    triplets: Path, tmp_path: Path, depths: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(triplets), "--output", str(tmp_path / "judged"), "--shadow-depth", *depths]) == 2
    error = capsys.readouterr().err
    assert f"--shadow-depth is {depths[0]} {depths[1]}" in error
    assert "allowed" in error
