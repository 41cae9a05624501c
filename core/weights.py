"""Whether the weights of a part of a model are whole, found out without loading them.

Loading libraries warn about missing keys and fill them with random numbers. Here the headers of the safetensors files (names, shapes,
number formats and byte ranges; safetensors' format description) are compared with the network that ``config.json`` describes, which is
built without memory for its weights.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from core.checkpoints import HALF_MARK, PICKLES, read_json
from core.errors import UsageError

Component = Literal["unet", "vae", "text_encoder", "text_encoder_2", "image_prompt_encoder", "postfuse_module"]
Shape = tuple[int, ...]

DTYPE_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4,
    "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one number in each format that safetensors names."""
DTYPE_NAMES: Final = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_CLASSES: Final[dict[str, str]] = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "postfuse_module": "PostfuseModule"}
_MODEL_TYPES: Final[dict[str, tuple[str, ...]]] = {
    "text_encoder": ("clip_text_model",),
    "text_encoder_2": ("clip_text_model",),
    "image_prompt_encoder": ("clip", "clip_vision_model"),
}
# buffers that older versions of transformers wrote, and the half of a CLIP model that an image encoder does not use
_IGNORED: Final = re.compile(r"(.*\.)?position_ids")
_TEXT_HALF: Final = re.compile(r"text_model\..*|text_projection\..*|logit_scale")
# names of attention layers before diffusers 0.18, which it still reads
_OLD_ATTENTION: Final = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
_TEXT_PREFIX: Final = "text_model."
_MOST_HEADER_BYTES: Final = 100_000_000
_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a safetensors file: format (as in ``DTYPE_BYTES``) and shape."""

    dtype: str
    shape: Shape

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What is in the weight files of one part, and what should be.

    Attributes:
        folder: the part's folder.
        files: names of the files that were read.
        parameters: numbers in all tensors that belong to the network.
        dtypes: formats of those tensors, most frequent first (``float16``, ...).
        bytes: of the files.
        missing, extra: names of tensors that are not there, or not known.
        misshapen: ``name is [3, 3], not [3, 4]``.
    """

    folder: Path
    files: tuple[str, ...]
    parameters: int
    dtypes: tuple[str, ...]
    bytes: int
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every tensor is there, of the right shape, and no other."""
        return not (self.missing or self.extra or self.misshapen)

    @property
    def fault(self) -> str:
        """What is wrong, in a few words with examples; empty where nothing is."""
        kinds = (("missing", self.missing), ("unknown", self.extra), ("of another shape", self.misshapen))
        return "; ".join(f"{len(names)} tensors {kind} ({_some(names)})" for kind, names in kinds if names)


def check_weights(folder: Path, component: Component) -> WeightsReport:
    """``inspect_weights``, for those who are about to load the part.

    Raises:
        UsageError: as ``inspect_weights``; and where a tensor is missing, unknown or of another shape.
    """
    report = inspect_weights(folder, component)
    if not report.ok:
        raise UsageError(f"{folder} does not fit its config.json: {report.fault}; fetch the model again, or correct its config.json")
    return report


def inspect_weights(folder: Path, component: Component) -> WeightsReport:
    """Compare the weight files in ``folder`` with the network that its ``config.json`` describes. No weights are read.

    Raises:
        UsageError: a file is missing, truncated, no safetensors, or a pickle; or the configuration is of another network.
    """
    expected = expected_shapes(folder, component)
    files = weight_files(folder, weights_stem(component))
    found = _renamed({name: info for path in files for name, info in read_header(path).items()}, expected)
    ignored = {name for name in set(found) - set(expected) if _IGNORED.fullmatch(name)}
    if component == "image_prompt_encoder":
        ignored |= {name for name in found if _TEXT_HALF.fullmatch(name)}
    own = {name: info for name, info in found.items() if name not in ignored}
    formats = Counter(DTYPE_NAMES.get(info.dtype, info.dtype) for info in own.values())
    return WeightsReport(
        folder=folder,
        files=tuple(path.name for path in files),
        parameters=sum(info.count for info in own.values()),
        dtypes=tuple(name for name, _ in formats.most_common()),
        bytes=sum(path.stat().st_size for path in files),
        missing=tuple(sorted(set(expected) - set(own))),
        extra=tuple(sorted(set(own) - set(expected))),
        misshapen=tuple(
            f"{name} is {list(own[name].shape)}, not {list(shape)}"
            for name, shape in sorted(expected.items())
            if name in own and own[name].shape != shape
        ),
    )


def weights_stem(component: str) -> str:
    """How the names of a part's weight files begin: transformers' way for encoders, diffusers' for the rest."""
    return "model" if "encoder" in component else "diffusion_pytorch_model"


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a part: one, or the shards that an index names; ``.fp16`` ones where there are no others.

    Args:
        stem: ``diffusion_pytorch_model`` (diffusers) or ``model`` (transformers).

    Raises:
        UsageError: there are none, pickles only, or an index names a file that is not there.
    """
    for name in (f"{stem}.safetensors", f"{stem}{HALF_MARK}.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    for infixes in (("", ""), ("", HALF_MARK), (HALF_MARK, "")):  # diffusers and transformers have put the mark in both places
        index = folder / f"{stem}{infixes[0]}.safetensors.index{infixes[1]}.json"
        if index.is_file():
            return _shards(index)
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise UsageError(f"{folder} has {', '.join(pickles[:_EXAMPLES])}, a pickle: pickles are never loaded; convert it to safetensors")
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}: fetch the model again")
    raise UsageError(f"{folder} has no weights: {stem}.safetensors is missing; fetch the model again")


def _shards(index: Path) -> list[Path]:
    """The files that an index names; each must hold what the index says that it holds."""
    mapped = read_json(index).get("weight_map")
    if not isinstance(mapped, dict) or not mapped or not all(isinstance(name, str) and "/" not in name for name in mapped.values()):
        raise UsageError(f"{index} has no weight_map from tensors to files beside it; fetch the model again")
    paths = [index.parent / name for name in sorted(set(mapped.values()))]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise UsageError(f"{index.parent} lacks {_some(absent)} of {len(paths)} shards; fetch the model again")
    for path in paths:
        lost = sorted({name for name, file in mapped.items() if file == path.name} - set(read_header(path)))
        if lost:
            raise UsageError(f"{path} does not hold {_some(lost)}, as {index.name} says; fetch the model again")
    return paths


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors that a safetensors file says it holds; their byte ranges must cover the file exactly. The tensors are not read.

    Raises:
        UsageError: the file is missing, truncated, too long, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if start.startswith(b"version"):
                raise UsageError(f"{path} is a git LFS pointer and not the weights: run git lfs pull, or fetch the model again")
            if not 2 <= length <= min(_MOST_HEADER_BYTES, size - 8):
                raise UsageError(f"{path} is no safetensors file, or truncated ({size} bytes); fetch the model again")
            header = json.loads(file.read(length))
        return _parsed(path, header, size - 8 - length)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: JSON and UTF-8 errors are children of it
        raise UsageError(f"cannot read {path} ({_words(error)}); fetch the model again") from error


def _parsed(path: Path, header: Any, data_bytes: int) -> dict[str, TensorInfo]:
    if not isinstance(header, dict):
        raise UsageError(f"{path} is no safetensors file: its header is no JSON object; fetch the model again")
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        values = entry if isinstance(entry, dict) else {}
        dtype, shape, span = values.get("dtype"), _counts(values.get("shape")), _counts(values.get("data_offsets"))
        if dtype not in DTYPE_BYTES or shape is None or span is None or len(span) != 2:
            raise UsageError(f"{path} is no safetensors file: {name[:80]} has no known format, shape and place; fetch the model again")
        info = tensors[name] = TensorInfo(dtype, shape)
        if span[1] - span[0] != info.count * DTYPE_BYTES[dtype]:
            raise UsageError(f"{path}: {name[:80]} has {span[1] - span[0]} bytes for shape {list(shape)}; fetch the model again")
        spans.append((span[0], span[1]))
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise UsageError(f"{path}: its tensors overlap or leave gaps at byte {end}; fetch the model again")
        end = last
    if end != data_bytes:
        state = "truncated" if data_bytes < end else "too long"
        raise UsageError(f"{path} is {state}: {data_bytes} bytes of weights, {end} by its header; fetch the model again")
    return tensors


def expected_shapes(folder: Path, component: Component) -> dict[str, Shape]:
    """Names and shapes of the weights of the network that ``config.json`` in ``folder`` describes.

    Raises:
        UsageError: there is no such file, it is of another class, or describes no network.
    """
    config = read_json(folder / "config.json")
    _check_class(folder, component, config)
    import torch

    try:
        with torch.device("meta"):
            network = _build(component, config)
    except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError, ZeroDivisionError, RuntimeError) as error:
        raise UsageError(f"{folder / 'config.json'} describes no {component} ({_words(error)}); fetch the model again") from error
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _check_class(folder: Path, component: Component, config: Mapping[str, Any]) -> None:
    key = "_class_name" if component in _CLASSES else "model_type"
    allowed = (_CLASSES[component],) if component in _CLASSES else _MODEL_TYPES[component]
    if config.get(key) not in allowed:
        raise UsageError(f"{folder / 'config.json'} has {key} {config.get(key)!r}; a {component} needs {' or '.join(allowed)}")


def _build(component: Component, config: dict[str, Any]) -> Any:
    if component == "unet":
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_config(config)
    if component == "vae":
        from diffusers import AutoencoderKL

        return AutoencoderKL.from_config(config)
    if component == "postfuse_module":
        from core.object_token import FuseModule

        return FuseModule(int(config["embed_dim"]), int(config["embed_dim_img"]))
    import transformers

    if component == "image_prompt_encoder":
        # of a whole CLIP model the vision half is used, with the projection's width from the top of its configuration
        vision = {**config["vision_config"], "projection_dim": config["projection_dim"]} if config["model_type"] == "clip" else config
        return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision))
    kind = transformers.CLIPTextModel if component == "text_encoder" else transformers.CLIPTextModelWithProjection
    return kind(transformers.CLIPTextConfig(**config))


def _renamed(found: Mapping[str, TensorInfo], expected: Mapping[str, Shape]) -> dict[str, TensorInfo]:
    """With the names of today's libraries where a file has older ones."""
    names = {name: name for name in found}
    for name in found:
        # transformers 5 dropped the prefix of text encoders that have no projection
        if name not in expected and name.removeprefix(_TEXT_PREFIX) in expected:
            names[name] = name.removeprefix(_TEXT_PREFIX)
        layer, _, kind = name.rpartition(".")
        for old, new in _OLD_ATTENTION:
            today = f"{layer.removesuffix(old)}{new}.{kind}"
            if layer.endswith(f".{old}") and today in expected and today not in found:
                names[name] = today
    return {names[name]: info for name, info in found.items()}


def _counts(value: object) -> Shape | None:
    right = isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)
    return tuple(value) if right and isinstance(value, list) else None


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_EXAMPLES]) + (f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else "")


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
