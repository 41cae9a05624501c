"""Encoding a dataset on a real Ray: what a row holds, that nothing but item and model decides it, and that it stays a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.conditioning import encode_latents, image_tensor
from core.errors import UsageError
from core.latent_cache import CachedMoments
from core.latent_encoding import load_vae, moment_latents, vae_fingerprint
from core.ledger import list_parts
from core.record import image_value
from core.storage import storage_for
from jobs.config import VerifyConfig
from jobs.data_config import EncodeConfig
from jobs.encode import encode, fixed_window, view_of_record
from jobs.verify import verify
from tests.jobs.support import picture, read_rows
from tests.models import write_pipeline
from tests.training.support import triplet, write_triplets
from training.pair_augmentation import picture_view

COUNT, SIZE = 6, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("model") / "sdxl", prompt_file=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Triplets, of which one was erased and judged, one has the photo of that one, one cannot be decoded, and one has no answer."""
    judged = {"erased": triplet(2, width=100, height=72)["target"], "score": 0.25, "verdict": "rejected"}
    same = {name: triplet(1, width=100, height=72)[name] for name in ("source", "mask", "effect_mask")}
    changed: dict[int, dict[str, Any]] = {1: judged, 2: same, 3: {"source": image_value(b"no picture")}, 4: {"target": None}}
    return write_triplets(str(tmp_path_factory.mktemp("data")), COUNT, changed=changed, width=100, height=72)


def run(data: object, output: Path, model: Path, **settings: Any) -> dict[str, Any]:
    return encode(EncodeConfig(input=str(data), output=str(output), model=str(model), size=SIZE, **settings))


@pytest.fixture(scope="module")
def encoded(cluster: None, data: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:  # noqa: ARG001
    output = tmp_path_factory.mktemp("encoded") / "out"
    return output, run(data, output, model)


def test_every_item_is_a_view_with_its_latents_or_a_failure(encoded: tuple[Path, dict[str, Any]], model: Path) -> None:
    output, summary = encoded
    rows, failures = read_rows(str(output))
    assert (summary["in"], summary["out"], summary["failed"]) == (COUNT, 4, 2)
    assert {name: row["error"] for name, row in failures.items()} == {"item-0003": "not_an_image", "item-0004": "no_target"}
    vae = load_vae(str(model))
    for name, row in rows.items():
        found = CachedMoments.of(row["latents"])
        assert found.vae == vae_fingerprint(vae)
        names = ["source", "target", *(["erased"] if name == "item-0001" else []), "masked"]
        assert list(found.moments) == names
        assert (row["width"], row["height"]) == (SIZE, SIZE)
        for column in ("source", "target"):
            pixels = picture(row[column])
            assert pixels.shape == (SIZE, SIZE, 3)
            for place, shown in enumerate((pixels, pixels[:, ::-1])):
                moments = torch.from_numpy(found.moments[column][place].copy())[None]
                torch.testing.assert_close(
                    moment_latents(vae, moments), encode_latents(vae, image_tensor(shown.copy())), atol=2e-4, rtol=2e-3
                )
        assert set(np.unique(picture(row["mask"]))) == {0, 255}
        assert ((picture(row["effect_mask"]) > 0) | (picture(row["mask"]) == 0)).all()
    assert (rows["item-0001"]["score"], rows["item-0001"]["verdict"]) == (0.25, "rejected")
    counted = verify(VerifyConfig(input=str(output)))
    assert (counted["out"], counted["lost"], counted["pictures that do not open"]) == (4, 0, 0)


def test_views_of_views_are_the_same_and_a_cut_job_goes_on(encoded: tuple[Path, dict[str, Any]], model: Path, tmp_path: Path) -> None:
    """A cache is itself an input; and one actor in place of two, and a run that was cut off, make the same rows."""
    source, output = encoded[0], tmp_path / "again"
    settings: dict[str, Any] = {"shard_mb": 0.0, "max_actors": 1, "num_cpus": 0.25}
    first = run(source, output, model, **settings)
    assert (first["out"], first["failed"]) == (4, 0)
    lost = list_parts(str(output))[0]
    storage_for(lost).delete(lost)
    assert 0 < run(source, output, model, **settings)["processed"] <= 4
    assert run(source, output, model, **settings)["already_finished"]
    before, after = read_rows(str(source))[0], read_rows(str(output))[0]
    assert before.keys() == after.keys()
    for name, row in after.items():
        assert row == before[name]
    configuration = json.loads((output / "dataset.json").read_text())["configuration"]
    assert (configuration["size"], configuration["conditioning"], configuration["dtype"]) == (SIZE, "masked", "float16")


def test_other_settings_are_refused(encoded: tuple[Path, dict[str, Any]], data: str, model: Path) -> None:
    with pytest.raises(UsageError, match="dtype: 'float16' -> 'float32'"):
        run(data, encoded[0], model, dtype="float32")
    for wrong in ({"size": 36}, {"size": 16}, {"threads": -1}, {"min_actors": 2, "max_actors": 1}):
        with pytest.raises(UsageError, match="--"):
            EncodeConfig(input="a", output="b", **wrong)


@pytest.mark.parametrize(
    ("shape", "box", "size", "window"),
    [
        ((72, 100), (10, 30, 20, 40), 64, (0, 0, 72)),  # at the left edge
        ((72, 100), (10, 30, 40, 60), 64, (13, 0, 72)),  # centred on the object
        ((72, 100), (10, 30, 80, 100), 64, (28, 0, 72)),
        ((100, 72), (80, 100, 10, 30), 64, (0, 28, 72)),
        ((40, 100), (10, 20, 70, 90), 64, (36, -12, 64)),  # lower than the view: mirrored
        ((40, 50), (10, 20, 10, 20), 64, (0, -5, 50)),  # smaller than the view: whole, and enlarged
        ((64, 64), (0, 64, 0, 63), 64, (0, 0, 64)),
        ((64, 128), (0, 64, 30, 100), 64, (0, -32, 128)),  # nothing but object in the largest square
    ],
)
def test_the_fixed_window(shape: tuple[int, int], box: tuple[int, int, int, int], size: int, window: tuple[int, int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[box[0] : box[1], box[2] : box[3]] = 255
    assert tuple(fixed_window(mask, size)) == window


def test_one_picture_in_two_columns_stays_one() -> None:
    record = triplet(0, width=80, height=64)
    view = view_of_record({**record, "erased": record["target"]}, 32, 200.0)
    assert view.pictures["erased"] is view.pictures["target"]
    whole = picture(record["source"])
    np.testing.assert_array_equal(view.pictures["source"], picture_view(whole, fixed_window(picture(record["mask"]), 32), (32, 32)))
    assert view.record["erased"]["bytes"] == view.record["target"]["bytes"]
