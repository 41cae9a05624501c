"""All settings of the served graph: one frozen dataclass, made from the ``args`` of a Serve file or from the command line's flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from core.eraser import EraserSettings
from core.errors import UsageError

APPLICATION: Final = "cleanplate"
MAX_CANDIDATES: Final = 8
MAX_STEPS: Final = 200
MAX_SEED: Final = 2**63 - 1


def _within(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise UsageError(f"{name} is {value}; it must be from {least:g} to {most:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """One model that is served, under a name that requests give.

    Attributes:
        name: what requests call it; the default is ``model``.
        model: as ``cleanplate clean --model``.
        lcm_lora, steps, guidance, context, dilate, fusion: as the flags of ``cleanplate clean``.
    """

    model: str
    name: str = ""
    lcm_lora: str | None = None
    steps: int | None = None
    guidance: float | None = None
    context: float | None = None
    dilate: int | None = None
    fusion: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.model)
        _within("steps", self.steps, 1, MAX_STEPS)
        if self.fusion not in (None, "mask", "attention", "none"):
            raise UsageError(f"fusion is {self.fusion!r}; it must be mask, attention or none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSettings:
    """The graph: which models, how many replicas of what, and the limits on what callers may ask.

    Sizes are mebibytes, times seconds, ``*_replicas`` bounds between which a deployment scales by its load.
    """

    models: tuple[ModelSettings, ...] = (ModelSettings(model="tiny"),)
    """The first is the default of requests."""
    discriminator: str = "auto"
    """Whose discriminator scores: a model, ``auto`` (the first model's own, else tiny's) or ``none``."""
    segmenter: str = "grabcut"
    """As ``core.perception.segmentation.load_segmenter``."""
    device: str = "auto"
    dtype: str = "auto"
    compile: str = "off"
    batch_size: int = 4
    """Crops per network call on a GPU; on a CPU it is always one."""
    batch_wait_ms: float = 5.0
    """How long a batch waits for more crops, on a GPU."""
    models_per_replica: int = 2
    """Models that a replica holds at once; the least used leaves for another."""

    num_gpus: float = 0.0
    """GPUs of an eraser replica, may be a fraction."""
    scorer_num_gpus: float = 0.0
    num_cpus: float = 0.5
    """CPUs that a model's replica reserves."""
    min_replicas: int = 1
    """Of the eraser; 0 gives its GPU back while nothing is asked."""
    max_replicas: int = 1
    scorer_min_replicas: int = 1
    scorer_max_replicas: int = 1
    ingress_min_replicas: int = 1
    ingress_max_replicas: int = 1
    ingress_num_cpus: float = 0.5
    target_ongoing: float = 2.0
    """Requests per eraser replica at which it does not scale."""
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 300.0
    surge_percent: int = 0
    """Replicas that a new version may start before old ones stop, of all; at 0 old ones stop first, and what arrives meanwhile waits."""
    threads: int = 2
    """Threads of an ingress replica that decode, crop, paste and encode."""

    max_queued: int = 32
    """Erasures that an ingress replica lets wait for an eraser; more are answered 503."""
    max_ongoing: int = 64
    """Requests that an ingress replica works on; more are answered 503."""
    deadline_s: float = 60.0
    body_timeout_s: float = 30.0
    """For the whole body of a request to arrive."""
    max_upload_mb: float = 50.0
    max_megapixels: float = 100.0
    max_working_megapixels: float = 400.0
    """Pixels of pictures, times their results, that an ingress replica works on at a time: what bounds its memory."""

    store: str = ""
    """Folder of uploads, local or ``s3://``; the default is one of this machine's temporary folders."""
    store_mb: float = 2048.0
    """Above it the oldest uploads go."""
    expires_s: float = 3600.0
    cache_megapixels: float = 100.0
    """Decoded photos that an ingress replica keeps at hand."""

    keys_file: str = ""
    """File of keys, one a line; with ``CLEANPLATE_API_KEYS`` unset and no file everyone may call."""
    requests_per_minute: float = 0.0
    """Per key (per address where there are no keys) and ingress replica; 0 is no limit."""
    cors_origins: tuple[str, ...] = ()

    review: str = ""
    """Database of a review desk (SQLAlchemy URL, as ``cleanplate review --database``) that is shown at ``/review``; none by default."""
    review_queue: str = "review"

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("models is empty; name at least one, tiny for instance")
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise UsageError(f"two models have the same name ({', '.join(names)}); give each its own name")
        for name, least, most in _RANGES:
            _within(name, getattr(self, name), least, most)
        for low, high in (
            ("min_replicas", "max_replicas"),
            ("scorer_min_replicas", "scorer_max_replicas"),
            ("ingress_min_replicas", "ingress_max_replicas"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise UsageError(f"{low} {getattr(self, low)} is above {high} {getattr(self, high)}; raise the one or lower the other")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ServingSettings:
        """Settings from plain values, as YAML has them; ``model`` is short for a single one of ``models``.

        Raises:
            UsageError: an unknown name, a wrong type or a value out of range.
        """
        given = {name.replace("-", "_"): value for name, value in values.items()}
        if "model" in given:
            if "models" in given:
                raise UsageError("both model and models are given; leave one away")
            given["models"] = [given.pop("model")]
        kinds = {item.name: item for item in fields(cls)}
        unknown = sorted(set(given) - set(kinds))
        if unknown:
            raise UsageError(f"no such setting of the graph: {', '.join(unknown)}; there are {', '.join(kinds)}")
        made: dict[str, Any] = {}
        for name, value in given.items():
            if name == "models":
                made[name] = tuple(_model(entry) for entry in _listed(name, value))
            elif name == "cors_origins":
                made[name] = tuple(str(entry) for entry in _listed(name, value))
            else:
                made[name] = _typed(name, value, type(kinds[name].default))
        return cls(**made)

    def eraser(self, model: ModelSettings) -> EraserSettings:
        """What a model's eraser gets."""
        return EraserSettings(
            steps=model.steps,
            guidance_scale=model.guidance,
            context=model.context,
            dilate_px=model.dilate,
            device=self.device if self.num_gpus or self.device != "auto" else "cpu",
            dtype=self.dtype,
            batch_size=self.batch_size,
            lcm_lora=model.lcm_lora,
            fusion=model.fusion,  # type: ignore[arg-type]
            compile=self.compile,  # type: ignore[arg-type]
        )

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * 2**20)


_RANGES: Final = (
    ("batch_size", 1, 1024), ("batch_wait_ms", 0, 10_000), ("models_per_replica", 1, 64), ("num_gpus", 0, 64), ("scorer_num_gpus", 0, 64),
    ("num_cpus", 0, 1024), ("min_replicas", 0, 10_000), ("max_replicas", 1, 10_000), ("scorer_min_replicas", 0, 10_000),
    ("scorer_max_replicas", 1, 10_000), ("ingress_min_replicas", 1, 10_000), ("ingress_max_replicas", 1, 10_000),
    ("ingress_num_cpus", 0, 1024), ("target_ongoing", 0.1, 10_000), ("upscale_delay_s", 0, 86_400), ("downscale_delay_s", 0, 86_400),
    ("surge_percent", 0, 100),
    ("threads", 1, 256), ("max_queued", 1, 100_000), ("max_ongoing", 1, 100_000), ("deadline_s", 0.1, 3600), ("body_timeout_s", 0.1, 3600),
    ("max_upload_mb", 0.01, 4096), ("max_megapixels", 0.01, 2000), ("max_working_megapixels", 0.01, 100_000), ("store_mb", 1, 2**30),
    ("expires_s", 1, 30 * 86_400), ("cache_megapixels", 0, 100_000), ("requests_per_minute", 0, 1e6),
)  # fmt: skip


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name} is {value!r}; it must be a list")
    return list(value)


def _model(entry: Any) -> ModelSettings:
    if isinstance(entry, ModelSettings):
        return entry
    if isinstance(entry, str):
        return ModelSettings(model=entry)
    if not isinstance(entry, Mapping) or "model" not in entry:
        raise UsageError(f"an entry of models is {entry!r}; it must be a model's name, or settings with at least model: NAME")
    known = [item.name for item in fields(ModelSettings)]
    unknown = sorted(set(entry) - set(known))
    if unknown:
        raise UsageError(f"no such setting of a model: {', '.join(map(str, unknown))}; there are {', '.join(known)}")
    return ModelSettings(**entry)


def _typed(name: str, value: Any, kind: type) -> Any:
    fits = isinstance(value, int | float) and not isinstance(value, bool) if kind in (int, float) else isinstance(value, kind)
    if not fits or (kind is int and value != int(value)):
        raise UsageError(f"{name} is {value!r}; it must be {'a number' if kind in (int, float) else 'text'}")
    return kind(value)
