"""The loop on one worker: what it computes, and that an interrupted training ends exactly as one that was not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from core import storage
from core.errors import CleanplateError, UsageError
from tests.models import write_objectclear, write_pipeline
from tests.training.support import write_triplets
from training.build import build_objective
from training.feed import Feed, Share
from training.local import LocalSession, train_locally
from training.loop import TrainerLoop
from training.optimisers import OptimiserSettings
from training.preparation import held_out_shares, read_items, thread_feed
from training.settings import DataSettings, LoopSettings, TrainSettings, load_recipe


class Killed(Exception):
    """What stands for the end of the process."""


class Interrupted:
    """A feed that breaks off before a step."""

    def __init__(self, feed: Feed, at: int) -> None:
        self.feed, self.at = feed, at

    def shares(self, start: int, stop: int, rank: int, world_size: int) -> Iterator[Share]:
        for share in self.feed.shares(start, stop, rank, world_size):
            if share.step == self.at:
                raise Killed
            yield share


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_triplets(str(tmp_path_factory.mktemp("data")), 24)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_pipeline(tmp_path_factory.mktemp("model"), prompt_file=True))


def settings_for(objective: str, model: str, **loop: Any) -> TrainSettings:
    changes = {
        "model": model,
        "data.sizes": [64],
        "data.batch_size": 4,
        "loop.steps": 7,
        "loop.checkpoint_every": 3,
        "loop.validate_every": 4,
        "discriminator.head_channels": 64,
        "discriminator.trained_parts": [],
        "loop.picture_items": 1,
        **{f"loop.{name}": value for name, value in loop.items()},
    }
    return load_recipe("smoke", objective, changes)  # type: ignore[arg-type]


def lines(output: str) -> list[dict[str, Any]]:
    text = storage.storage_for(output).read(f"{output}/training/metrics.jsonl").decode()
    return [json.loads(line) for line in text.splitlines()]


def losses(output: str) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines(output)]


def weights(output: str) -> dict[str, torch.Tensor]:
    files = sorted(Path(output).glob("**/*.safetensors"))
    return {f"{path.relative_to(output)}:{name}": value for path in files for name, value in load_file(path).items()}


@pytest.mark.parametrize("objective", ["remover", "discriminator", "lcm"])
def test_an_interrupted_training_ends_bit_for_bit_as_an_uninterrupted_one(objective: str, data: str, model: str, tmp_path: Path) -> None:
    settings = settings_for(objective, model)
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    summary = train_locally(settings, data, whole)
    assert [line["step"] for line in lines(whole)] == list(range(7))
    index, _ = read_items(settings, data, None)
    for at in (1, 5, 5):
        with pytest.raises(Killed):
            train_locally(settings, data, parts, feed=Interrupted(thread_feed(settings, index), at))
    resumed = train_locally(settings, data, parts)
    assert losses(parts) == losses(whole)
    found, expected = weights(parts), weights(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in ("validation_loss", "items"):
        assert resumed[name] == summary[name]
    assert lines(whole)[0]["loss"] != lines(whole)[6]["loss"]


def test_a_training_that_is_done_is_not_done_again_and_more_steps_go_on(data: str, model: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    first = train_locally(settings_for("remover", model), data, output)
    assert train_locally(settings_for("remover", model), data, output) == first
    train_locally(settings_for("remover", model, steps=9), data, output)
    assert [line["step"] for line in lines(output)] == list(range(9))
    whole = str(tmp_path / "whole")
    train_locally(settings_for("remover", model, steps=9), data, whole)
    assert losses(output) == losses(whole)


def test_other_settings_or_data_are_refused(data: str, model: str, tmp_path: Path) -> None:
    output, settings = str(tmp_path / "out"), settings_for("remover", model, steps=1)
    train_locally(settings, data, output)
    other = replace(settings, optimiser=replace(settings.optimiser, learning_rate=0.5))
    with pytest.raises(UsageError, match=r"other settings \(optimiser.learning_rate: 0.0001 -> 0.5\)"):
        train_locally(other, data, output)
    with pytest.raises(UsageError, match="the items of the data"):
        train_locally(settings, write_triplets(str(tmp_path / "more"), 30), output)
    train_locally(other, data, output, overwrite=True)
    assert len(lines(output)) == 1


def test_a_step_is_the_formula(data: str, model: str, tmp_path: Path) -> None:
    """Micro-batches, clipping, schedule, optimiser and average together equal the same written out for the whole batch at once."""
    optimiser = OptimiserSettings(learning_rate=1e-2, warmup_steps=2, clip_norm=0.05, name="sgd", betas=(0.0, 0.9), weight_decay=0.0)
    settings = replace(settings_for("remover", model, steps=3, micro_batch_size=3, ema_decay=0.5), optimiser=optimiser)
    output = str(tmp_path / "out")
    train_locally(settings, data, output)
    objective = build_objective(settings)
    parameters = objective.networks().trained_parameters()
    average = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    index, _ = read_items(settings, data, None)
    for share, rate in zip(thread_feed(settings, index).shares(0, 3, 0, 1), (5e-3, 1e-2, 1e-2), strict=True):
        result = objective.loss(share.batch())
        gradients = torch.autograd.grad(result.total, list(parameters.values()))
        norm = torch.sqrt(sum((gradient.square().sum() for gradient in gradients), torch.zeros(())))
        line = lines(output)[share.step]
        assert line["loss"] == pytest.approx(float(result.total.detach()), rel=1e-5)
        assert line["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
        assert line["learning_rate"] == rate
        decay = min(0.5, (1 + share.step) / (10 + share.step))
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                parameter -= rate * gradient * min(1.0, 0.05 / float(norm))
                average[name] = decay * average[name] + (1 - decay) * parameter
    saved = load_file(Path(output) / "unet" / "diffusion_pytorch_model.safetensors")
    for name, value in average.items():
        torch.testing.assert_close(saved[name.removeprefix("unet.")], value, rtol=1e-4, atol=1e-6)


def test_lines_and_pictures_and_card_are_written(data: str, model: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    summary = train_locally(settings_for("remover", model, steps=4), data, str(output))
    last = lines(str(output))[-1]
    for name in ("denoising", "learning_rate", "images_per_second", "tflops_per_second", "data_wait_share", "validation_loss"):
        assert last[name] is not None
    assert last["mfu"] is None  # of a CPU no peak is known
    assert list((output / "training" / "tensorboard").glob("events*"))
    picture = np.asarray(Image.open(next((output / "training" / "pictures").glob("*.png"))))
    assert picture.shape == (64 + 8, 4 * 68 + 4, 3)
    card = (output / "README.md").read_text()
    assert f"| items trained on | {summary['items']} |" in card
    assert "validation loss" in card
    assert "learning_rate: 0.0001" in card
    checkpoints = sorted(path.name for path in (output / "training" / "checkpoints").iterdir())
    assert checkpoints == ["step-00000003", "step-00000004"]


def test_sizes_and_aspects_are_mixed_in_one_run(model: str, tmp_path: Path) -> None:
    shapes = {number: {"width": 200, "height": 112} if number % 2 else {"width": 96, "height": 96} for number in range(24)}
    data = write_triplets(str(tmp_path / "data"), 24, changed=shapes)
    settings = replace(
        settings_for("remover", model, steps=8, validate_every=0),
        data=DataSettings(batch_size=2, sizes=(64, 128), aspects=True, validation_share=0.0),
    )
    seen: list[tuple[int, ...]] = []

    class Looking:
        """A feed that notes the sizes."""

        def __init__(self, feed: Feed) -> None:
            self.feed = feed

        def shares(self, start: int, stop: int, rank: int, world_size: int) -> Iterator[Share]:
            for share in self.feed.shares(start, stop, rank, world_size):
                seen.append(share.mask.shape)
                yield share

    index, _ = read_items(settings, data, None)
    train_locally(settings, data, str(tmp_path / "out"), feed=Looking(thread_feed(settings, index)), device="cpu")
    assert {shape[0] for shape in seen} == {2}
    assert (64, 64) in {shape[1:] for shape in seen}
    assert any(width > height for _, height, width in seen)
    assert all(np.isfinite(loss) for _, loss, _ in losses(str(tmp_path / "out")))


def test_objectclear_trains_in_half_precision_with_gradient_checkpointing(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The attention loss stays, and has a gradient: the token's fuse module is trained, and what is saved is used as it was trained."""
    monkeypatch.setattr("training.loop.has_bfloat16", lambda _: False)
    model = str(write_objectclear(tmp_path / "model", prompt_file=True))
    exact = settings_for("remover", model, steps=3, validate_every=0, ema_decay=None)
    token = replace(exact.remover, conditioning="full", object_token="frame", attention_weight=0.5)
    exact = replace(exact, remover=token)
    light = replace(exact, loop=replace(exact.loop, precision="bfloat16", gradient_checkpointing=True))
    for name, settings in (("exact", exact), ("light", light)):
        train_locally(settings, data, str(tmp_path / name), device="cpu")
        assert ("set loop.precision float32" in caplog.text) is (name == "light")
    for one, other in zip(lines(str(tmp_path / "exact")), lines(str(tmp_path / "light")), strict=True):
        assert one["attention"] > 0
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
        assert other["attention"] == pytest.approx(one["attention"], rel=0.05)
    before = load_file(Path(model) / "postfuse_module" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "light" / "postfuse_module" / "diffusion_pytorch_model.safetensors")
    assert all(not torch.equal(after[name], value) for name, value in before.items() if value.ndim == 2)
    card = json.loads((tmp_path / "light" / "cleanplate.json").read_text())
    assert (card["conditioning"], card["object_token"], card["size"]) == ("full", "frame", 64)


def test_gradients_that_are_not_finite_stop_a_training(data: str, model: str, tmp_path: Path) -> None:
    settings = settings_for("remover", model, steps=40)
    index, held = read_items(settings, data, None)
    objective = build_objective(settings)
    with torch.no_grad():
        objective.networks().trained["unet"].conv_out.weight.fill_(float("inf"))  # type: ignore[union-attr]
    shares = held_out_shares(settings, held)
    loop = TrainerLoop(settings, objective, str(tmp_path), thread_feed(settings, index), shares, LocalSession("cpu"), tmp_path)
    with pytest.raises(CleanplateError, match=r"the gradients of 10 steps up to 9 were not finite"):
        loop.run()


def test_an_output_in_a_bucket_is_whole(data: str, model: str, s3: Any) -> None:
    output = f"{s3.bucket('model')}/out"
    settings = settings_for("lcm", model, steps=4)
    index, _ = read_items(settings, data, None)
    with pytest.raises(Killed):
        train_locally(settings, data, output, feed=Interrupted(thread_feed(settings, index), 3))
    train_locally(settings, data, output)
    assert [line["step"] for line in lines(output)] == list(range(4))
    names = {storage.relative(output, entry.uri) for entry in storage.storage_for(output).list(output)}
    assert {"pytorch_lora_weights.safetensors", "README.md", "training/finished.json", "training/settings.json"} <= names
    assert any(name.startswith("training/tensorboard/") for name in names)
    assert any(name.startswith("training/pictures/") for name in names)


def test_settings_out_of_range_are_one_clear_line() -> None:
    with pytest.raises(UsageError, match=r"loop\.steps is 0, which must be 1 or more"):
        LoopSettings(steps=0)
    with pytest.raises(UsageError, match=r"data\.sizes is \(100,\)"):
        DataSettings(sizes=(100,))
    with pytest.raises(UsageError, match="one square size"):
        TrainSettings(objective="discriminator", data=DataSettings(sizes=(256, 512)))
