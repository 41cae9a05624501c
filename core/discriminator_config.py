"""What a discriminator's folder says of itself, and where its parts are; read without importing a network library.

Two layouts are known. ``cleanplate``: ``config.json`` and ``model.safetensors``, in ``discriminator/`` of a model's folder or in a folder
of their own. ``rorem``: what RORem published, ``pytorch_lora_weights.safetensors`` and ``cls_pred_branch.pt`` (or ``.safetensors``), to
which a ``cleanplate.json`` or ``config.json`` may be added. A folder of its own has no trunk: it names, as ``base``, the model whose
UNet, autoencoder and prompt it was trained on.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from core.calibration import Calibration, Temperature, calibration_from_json, sigmoid
from core.catalogue import SDXL_INPAINTING
from core.checkpoints import fingerprint, read_json
from core.errors import UsageError
from core.model_files import ModelFiles, find_model

Layout = Literal["cleanplate", "rorem"]
Activation = Literal["sigmoid", "softplus"]

FOLDER: Final = "discriminator"
CONFIG_FILE: Final = "config.json"
CARD_FILE: Final = "cleanplate.json"
WEIGHTS_FILE: Final = "model.safetensors"
LORA_FILE: Final = "pytorch_lora_weights.safetensors"
HEAD_FILES: Final = ("cls_pred_branch.safetensors", "cls_pred_branch.pt")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _are_names(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscriminatorConfig:
    """Shape and calibration of a discriminator; the defaults are RORem's, at 512 pixels on SDXL, with a sigmoid head.

    Raises:
        UsageError: a value is not of the type or in the range that its line below says.
    """

    size: int = 512
    """Side in pixels of the pictures; the head's strides fit this size only."""
    lora_rank: int = 4
    lora_alpha: int = 4
    """The adapters are scaled by alpha / rank."""
    head_channels: int | None = None
    """Width of the head: 64, 96, 128, ...; None: that of the UNet's mid block."""
    trained_parts: tuple[str, ...] = ()
    """Parts of the trunk that are trained in full beside the adapters (``conv_in``, ``down_blocks.0``); none in RORem."""
    activation: Activation = "sigmoid"
    """What the head was trained with: ``sigmoid`` (cross-entropy), or ``softplus`` (squared error: RORem's published head)."""
    temperature: float = 1.0
    """Where there is no ``calibration``, the score is sigmoid(logit / temperature) (Guo et al. 2017, section 4.2)."""
    calibration: Calibration | None = None
    """From logit to probability, fitted on held-out judgements (``core.calibration``)."""
    threshold: float = 0.9
    """Score above which a result is accepted (RORem, section 3)."""
    base: str | None = None
    """Model with the trunk's UNet, the autoencoder and the prompt; None: see ``find_discriminator``."""

    def __post_init__(self) -> None:
        width, base = self.head_channels, self.base
        rules: tuple[tuple[str, object, str, bool], ...] = (
            ("size", self.size, "a number of pixels", _is_count(self.size)),
            ("lora_rank", self.lora_rank, "a whole number from 1", _is_count(self.lora_rank)),
            ("lora_alpha", self.lora_alpha, "a whole number from 1", _is_count(self.lora_alpha)),
            ("head_channels", width, "64, 96, 128, ... or null", width is None or (_is_count(width) and width % 32 == 0 and width >= 64)),
            ("trained_parts", self.trained_parts, "a list of names", _are_names(self.trained_parts)),
            ("activation", self.activation, " or ".join(get_args(Activation)), self.activation in get_args(Activation)),
            ("temperature", self.temperature, "a finite number above 0", _is_positive(self.temperature)),
            ("threshold", self.threshold, "a number above 0, at most 1", _is_positive(self.threshold) and self.threshold <= 1),
            ("base", base, "the name of a model or null", base is None or (isinstance(base, str) and bool(base))),
        )
        wrong = [f"{name} is {value!r}, which must be {allowed}" for name, value, allowed, right in rules if not right]
        if self.calibration is not None and self.temperature != 1.0:
            wrong.append("temperature and calibration are both given; leave temperature away")
        if wrong:
            raise UsageError(f"discriminator: {'; '.join(wrong)}")

    @property
    def calibrated(self) -> bool:
        """Whether scores come from a fitted map: a ``calibration``, or a ``temperature`` other than 1."""
        return self.calibration is not None or self.temperature != 1.0

    def raw(self, logits_N: np.ndarray) -> np.ndarray:
        """What the head's own activation makes of logits (N,), float64: sigmoid in [0, 1], or softplus, 0 and up without limit."""
        logits_N = np.asarray(logits_N, np.float64)
        return np.logaddexp(0.0, logits_N) if self.activation == "softplus" else sigmoid(logits_N)

    def probability(self, logits_N: np.ndarray) -> np.ndarray:
        """Scores (N,) in [0, 1], float64, for logits (N,): the calibrated probability.

        Without a calibration, a sigmoid head gives its sigmoid. A softplus head gives min(raw, 1), a number that orders results and is no
        probability: RORem trained it to be near 1 for good results and near 0 for bad ones, and nothing bounds it.
        """
        if self.calibration is not None:
            return self.calibration(logits_N)
        if self.activation == "softplus" and not self.calibrated:
            return np.minimum(self.raw(logits_N), 1.0)
        return Temperature(self.temperature)(logits_N)

    def to_json(self) -> dict[str, Any]:
        """As ``config.json`` holds it; what is not set is left out."""
        values = {name: value for name, value in asdict(self).items() if name not in {"calibration", "base"}}
        if self.calibration is not None:
            del values["temperature"]
            values["calibration"] = self.calibration.to_json()
        return values if self.base is None else {**values, "base": self.base}


PUBLISHED: Final = DiscriminatorConfig(activation="softplus")
"""RORem's published discriminator, where its folder says nothing else."""


@dataclass(frozen=True, slots=True)
class DiscriminatorFiles:
    """Where the parts of a discriminator are.

    Attributes:
        weights: folder with the adapters and the head.
        layout: whose file names these are.
        base: the model with the trunk's UNet, the autoencoder and the prompt.
        config: as ``read_config`` gives it.
    """

    weights: Path
    layout: Layout
    base: ModelFiles
    config: DiscriminatorConfig

    def fingerprint(self) -> str:
        """Changes whenever a file that decides the score does."""
        found = f"{self.base.fingerprint()}-{fingerprint(self.weights)}"
        head = head_file(self.weights)
        if self.layout == "rorem" and head.suffix != ".safetensors":
            with head.open("rb") as file:
                found += f"-{hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()}"
        return found


def layout_of(folder: Path) -> Layout | None:
    """Whose file names the adapters and the head in ``folder`` have; None where there are none."""
    if any((folder / name).is_file() for name in HEAD_FILES):
        return "rorem"
    return "cleanplate" if (folder / WEIGHTS_FILE).is_file() else None


def head_file(folder: Path) -> Path:
    """The file with RORem's head in ``folder``: the one that is no pickle, where there are both."""
    return next((folder / name for name in HEAD_FILES if (folder / name).is_file()), folder / HEAD_FILES[-1])


def has_discriminator(folder: Path) -> bool:
    """Whether ``find_discriminator`` would look into ``folder``: it has ``discriminator/``, or is a discriminator's own folder."""
    return (folder / FOLDER).is_dir() or layout_of(folder) is not None


def find_discriminator(folder: Path, base: str | Path | None = None) -> DiscriminatorFiles:
    """The parts of the discriminator in ``folder``.

    Args:
        folder: a model's folder with ``discriminator/``, or a folder with the discriminator's own files.
        base: model with the trunk; None: the one that the configuration names (a folder beside it, or any model's name), else the model
            around ``discriminator/``, else SDXL-inpainting for RORem's files.

    Raises:
        UsageError: there is no discriminator, its configuration is wrong, or its base is nowhere or not whole.
    """
    nested = (folder / FOLDER).is_dir()
    weights = folder / FOLDER if nested else folder
    layout = layout_of(weights)
    if layout is None and (weights / LORA_FILE).is_file():
        raise UsageError(f"{weights} has {LORA_FILE} but no head beside it: put {HEAD_FILES[1]} or {HEAD_FILES[0]} there")
    if layout is None and not nested:
        raise UsageError(
            f"{folder} has no discriminator: give a model's folder with {FOLDER}/, or a folder with {WEIGHTS_FILE} or {HEAD_FILES[1]}"
        )
    layout = layout or "cleanplate"
    config = read_config(weights, layout)
    chosen = base
    if chosen is None and config.base is not None:
        beside = weights / config.base
        chosen = beside if beside.is_dir() else config.base
    if chosen is None and (nested or (folder / "unet").is_dir()):
        chosen = folder
    if chosen is None and layout == "rorem":
        chosen = SDXL_INPAINTING
    if chosen is None:
        raise UsageError(f"{folder} has no trunk, and its {CONFIG_FILE} names no base; add there the model that it was trained on")
    return DiscriminatorFiles(weights, layout, find_model(str(chosen)), config)


def read_config(folder: Path, layout: Layout = "cleanplate") -> DiscriminatorConfig:
    """The configuration of the discriminator in ``folder``: ``config.json``; of RORem's files ``cleanplate.json`` before that, or none.

    Raises:
        UsageError: the file is missing where it must be there, or has names or values that are not allowed.
    """
    path = _config_file(folder, layout)
    if path is None:
        return PUBLISHED
    values = read_json(path)
    known = {field.name for field in fields(DiscriminatorConfig)}
    if path.name == CARD_FILE:  # a model's card says more than this, and the rest is not ours
        values = {name: value for name, value in values.items() if name in known}
    unknown = ", ".join(sorted(set(values) - known))
    if unknown:
        raise UsageError(f"{path} has unknown names {unknown}; allowed: {', '.join(sorted(known))}")
    try:
        if values.get("calibration") is not None:
            values["calibration"] = calibration_from_json(values["calibration"])
        if isinstance(values.get("trained_parts"), list):
            values["trained_parts"] = tuple(values["trained_parts"])
        return replace(PUBLISHED if layout == "rorem" else DiscriminatorConfig(), **values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _config_file(folder: Path, layout: Layout) -> Path | None:
    if layout == "cleanplate":
        return folder / CONFIG_FILE
    return next((folder / name for name in (CARD_FILE, CONFIG_FILE) if (folder / name).is_file()), None)
