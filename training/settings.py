"""Everything that decides what a training makes: the settings that recipes (YAML) spell out, in one tree of dataclasses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_type_hints

import pydantic
import yaml

from core.errors import UsageError
from training.discriminator import CalibrationKind
from training.latents import check_augmentation
from training.lcm import LcmSettings
from training.negatives import NegativeSettings
from training.objective import LoraSettings
from training.optimisers import OptimiserSettings
from training.pair_augmentation import PairAugmentation
from training.remover_settings import RemoverSettings

ObjectiveName = Literal["remover", "discriminator", "lcm"]
RECIPES: Final = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """How items become batches.

    Raises:
        UsageError: a value out of its range.
    """

    batch_size: int = 128
    """Items a step, of all workers together."""
    sizes: tuple[int, ...] = (512,)
    """Sides of training pictures in pixels; several are mixed in one run, each batch of one."""
    aspects: bool = False
    """Broad and upright pictures of the same area beside squares."""
    min_score: float | None = None
    """Items with a score below are left out."""
    synthetic: bool = True
    """For a discriminator: items with a clean plate and no judgement are edited and judged by how they were made."""
    validation_share: float = 0.02
    """Share of items that are held out for validation, chosen by id."""
    validation_items: int = 64
    """Held-out items that a validation looks at, at most."""
    augmentation: PairAugmentation = field(default_factory=PairAugmentation)
    negatives: NegativeSettings = field(default_factory=NegativeSettings)
    latents: bool = False
    """The data are of ``cleanplate encode``, and their latents are taken in place of encoding at every step."""
    max_megapixels: float = 200.0

    def __post_init__(self) -> None:
        _check("data", "batch_size", self.batch_size, "1 or more", self.batch_size >= 1)
        _check("data", "sizes", self.sizes, "multiples of 8 from 32", bool(self.sizes) and all(s >= 32 and s % 8 == 0 for s in self.sizes))
        _check("data", "validation_share", self.validation_share, "0 to below 1", 0 <= self.validation_share < 1)
        _check("data", "validation_items", self.validation_items, "0 or more", self.validation_items >= 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscriminatorSettings:
    """Shape of a discriminator (``core.discriminator_config``) and how it is calibrated."""

    lora_rank: int = 4
    lora_alpha: int = 4
    head_channels: int | None = None
    trained_parts: tuple[str, ...] = ()
    """Parts of the trunk that are trained in full beside the adapters."""
    defect_weight: float = 0.0
    """Of the loss on where an erasure is wrong, for items whose clean plate is known (``training.defects``); 0: none."""
    threshold: float = 0.9
    calibration: CalibrationKind = "temperature"
    """Map from logit to probability that is fitted on held-out items at the end."""

    def __post_init__(self) -> None:
        _check("discriminator", "defect_weight", self.defect_weight, "0 or more", 0 <= self.defect_weight < float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How the loop goes about it.

    Raises:
        UsageError: a value out of its range.
    """

    steps: int = 50_000
    micro_batch_size: int = 16
    """Items that a worker's network sees at a time at the smallest size; a worker's share of a step is cut into as many micro-batches as it
    takes, and their gradients are added up."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the networks' arithmetic; trained weights, their sums and the loss stay float32."""
    gradient_checkpointing: bool = False
    compile: bool = False
    """torch.compile of the trained network."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Every worker holds all weights (ddp), or its share of them (fsdp: FSDP2)."""
    ema_decay: float | None = None
    """Of the running average of the trained weights, which is then what is validated and saved; None: no average."""
    seed: int = 0
    checkpoint_every: int = 1000
    validate_every: int = 1000
    """Steps between validations; 0: only at the end."""
    picture_items: int = 4
    """Held-out items on the sheet of pictures of a validation; 0: none."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_best: int = 1
    """Best checkpoints, by validation loss, that are kept beside them."""
    log_every: int = 10
    """Steps between log lines; every step is in metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batch_size", "checkpoint_every", "keep_last", "log_every"):
            _check("loop", name, getattr(self, name), "1 or more", getattr(self, name) >= 1)
        for name in ("validate_every", "picture_items", "keep_best", "seed"):
            _check("loop", name, getattr(self, name), "0 or more", getattr(self, name) >= 0)
        _check("loop", "ema_decay", self.ema_decay, "0 to below 1, or null", self.ema_decay is None or 0 <= self.ema_decay < 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """A whole training.

    Raises:
        UsageError: settings that do not go together.
    """

    objective: ObjectiveName
    model: str = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"
    """What is trained, adapted or distilled: as ``--model`` of ``clean``."""
    image_encoder: str | None = None
    """Folder of a CLIP model, for an object token on a base model that has none."""
    remover: RemoverSettings = field(default_factory=RemoverSettings)
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    lcm: LcmSettings = field(default_factory=LcmSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        if self.objective == "discriminator" and (len(self.data.sizes) > 1 or self.data.aspects):
            raise UsageError(f"a discriminator looks at one square size; data.sizes is {self.data.sizes}, aspects {self.data.aspects}")
        if self.objective == "discriminator" and self.data.augmentation.shadow_depth is not None:
            raise UsageError("data.augmentation.shadow_depth is for removers; judgements of a picture do not hold once its shadows change")
        if self.data.latents:
            check_augmentation(self.data.augmentation)
            if len(self.data.sizes) > 1 or self.data.aspects:
                raise UsageError(f"data.latents are of one square size; data.sizes is {self.data.sizes}, aspects {self.data.aspects}")
            if self.objective == "discriminator" and self.data.synthetic:
                raise UsageError("data.latents are of pictures that are there, and data.synthetic edits them anew: set one of them false")
        if self.loop.strategy == "fsdp" and self.optimiser.name == "muon":
            raise UsageError("optimiser muon needs whole matrices, and strategy fsdp shards them: use ddp, or adamw")
        if self.loop.strategy == "fsdp" and self.lora is not None:
            raise UsageError("strategy fsdp is for training all weights; an adapter is small: use ddp, which is also faster")

    @property
    def lora(self) -> LoraSettings | None:
        """The adapter that is trained in place of all weights."""
        return {"remover": self.remover.lora, "lcm": self.lcm.lora, "discriminator": None}[self.objective]

    def as_dict(self) -> dict[str, Any]:
        """As JSON and YAML hold it."""
        return _plain(asdict(self))


def load_recipe(name: str, objective: ObjectiveName, changes: dict[str, Any] | None = None) -> TrainSettings:
    """A recipe's settings.

    Args:
        name: of a recipe that is shipped, or a YAML file; its key ``base`` names a recipe that it changes.
        objective: what it must be for.
        changes: by dotted name (``data.batch_size``), over the recipe's.

    Raises:
        UsageError: there is no such recipe, it is for another objective, or a value or name in it is wrong.
    """
    values = _read(name)
    found = values.setdefault("objective", objective)
    if found != objective:
        raise UsageError(f"recipe {name} is for the {found}; recipes for the {objective}: {', '.join(recipe_names(objective))}")
    for path, value in (changes or {}).items():
        _put(values, path, value)
    return _settings(values, name)


def recipe_names(objective: str | None = None) -> list[str]:
    """The recipes that are shipped, for one objective or all."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    return [name for name in names if objective is None or _read(name).get("objective", objective) == objective]


def _read(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = RECIPES / f"{name}.yaml" if "/" not in name and not name.endswith((".yaml", ".yml")) else Path(os.path.expandvars(name))
    if not path.is_file():
        shipped = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise UsageError(f"there is no recipe {name}; the recipes are {shipped}, or give a YAML file")
    if name in seen:
        raise UsageError(f"recipes {' -> '.join([*seen, name])} are each other's base; take one base out")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a {type(values).__name__}; a recipe is a mapping of settings")
    base = values.pop("base", None)
    return _merged(_read(str(base), (*seen, name)), values) if base else values


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        merged[name] = _merged(merged[name], value) if isinstance(value, dict) and isinstance(merged.get(name), dict) else value
    return merged


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *folders, name = path.split(".")
    for folder in folders:
        values = values.setdefault(folder, {}) if isinstance(values.get(folder, {}), dict) else {}
    values[name] = value


def _settings(values: dict[str, Any], name: str) -> TrainSettings:
    """The tree of dataclasses, its names and types checked.

    Raises:
        UsageError: see ``load_recipe``.
    """
    # pydantic passes over names that a dataclass does not have
    unknown = [f"{path} is {value!r}: there is no such setting" for path, value in _unknown(TrainSettings, values)]
    if unknown:
        raise _wrong(name, unknown)
    try:
        return pydantic.TypeAdapter(TrainSettings).validate_python(values)
    except pydantic.ValidationError as error:
        raise _wrong(name, [f"{'.'.join(map(str, one['loc']))} is {one['input']!r}: {one['msg']}" for one in error.errors()]) from error


def _unknown(kind: Any, values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Names, and their values, that a dataclass and those in it do not have."""
    kinds = get_type_hints(kind)
    for name, value in values.items():
        if name not in kinds:
            yield f"{path}{name}", value
        elif isinstance(value, dict):
            for inner in (kinds[name], *get_args(kinds[name])):
                if is_dataclass(inner):
                    yield from _unknown(inner, value, f"{path}{name}.")


def _wrong(name: str, lines: list[str]) -> UsageError:
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return UsageError(f"recipe {name}: {'; '.join(lines[:3])}{more}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _check(group: str, name: str, value: object, allowed: str, right: bool) -> None:
    if not right:
        raise UsageError(f"{group}.{name} is {value}, which must be {allowed}")
