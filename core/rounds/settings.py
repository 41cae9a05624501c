"""What a run of rounds is: data, models, sizes of the stages, thresholds (RORem, section 3.2; table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from core.curation.duplicates import RADIUS
from core.errors import UsageError

Sizes = int | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanSettings:
    """The stage of a round whose results people judge.

    Raises:
        UsageError: a value out of its range.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    items: Sizes = 10_000
    """Photos that are erased, of every round alike or one number a round."""
    judged: Sizes | None = None
    """Results of them that people judge; None: all."""
    random: float = 0.2
    """Where fewer are judged than erased: share of the judged that is drawn at random; the others are those that the discriminator is least
    sure of."""

    def __post_init__(self) -> None:
        _check_sizes("human.items", self.items, 1)
        _check_sizes("human.judged", self.judged, 1)
        _check("human.random", self.random, "above 0, at most 1", 0 < self.random <= 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutomaticSettings:
    """The stage of a round whose results the discriminator judges.

    Raises:
        UsageError: a value out of its range.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    items: Sizes = 30_000
    """Photos that are erased, of every round alike or one number a round."""
    audit: float = 0.02
    """Share of the results, drawn at random, that people judge, too: the threshold is set on them, and the discriminator measured."""

    def __post_init__(self) -> None:
        _check_sizes("automatic.items", self.items, 0)
        _check("automatic.audit", self.audit, "above 0, at most 1", 0 < self.audit <= 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdSettings:
    """How the score is chosen above which results are accepted without people (``core.rounds.threshold``).

    Raises:
        UsageError: a value out of its range.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    precision: float = 0.9
    """Share of good results among the accepted that is wanted."""
    confidence: float = 0.95
    """With which that is to hold."""
    usual: float = 0.9
    """RORem's, where there are too few labels to choose one."""
    least_labels: int = 100
    """Fewer labels are too few."""

    def __post_init__(self) -> None:
        _check("threshold.precision", self.precision, "above 0, below 1", 0 < self.precision < 1)
        _check("threshold.confidence", self.confidence, "above 0.5, below 1", 0.5 < self.confidence < 1)
        _check("threshold.usual", self.usual, "0 to 1", 0 <= self.usual <= 1)
        _check("threshold.least_labels", self.least_labels, "1 or more", self.least_labels >= 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSettings:
    """Where people's judgements come from: the database of a review desk, or a folder with one labels dataset a queue.

    Raises:
        UsageError: both are given.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    database: str | None = None
    """SQLAlchemy URL, as ``cleanplate review`` takes it; where neither is given, ``review.sqlite`` in the run's folder, which is local."""
    folder: str | None = None
    """Of files of labels (``core.labels``), one a queue: ``<folder>/<queue>.parquet``."""
    votes: int = 1
    """People who judge an item."""
    overlap: float = 0.1
    """Share of the items, drawn at random, that three people judge, or ``votes`` where that is more."""

    def __post_init__(self) -> None:
        _check("labels.votes", self.votes, "1 to 99", 1 <= self.votes <= 99)
        _check("labels.overlap", self.overlap, "0 to 1", 0 <= self.overlap <= 1)
        if self.database and self.folder:
            raise UsageError("labels.database and labels.folder are both given: labels come from one place, leave one of them away")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """One training: a recipe, and changes to its settings by dotted name (``loop.steps``)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingsSettings:
    """The trainings of a run."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    remover: TrainingSettings = field(default_factory=lambda: TrainingSettings(recipe="rorem"))
    discriminator: TrainingSettings = field(default_factory=lambda: TrainingSettings(recipe="discriminator"))
    lcm: TrainingSettings | None = None
    """The distillation at the end; None: none."""
    after_people: bool = True
    """The remover is trained after people's stage as well as after the automatic one, as RORem does."""
    held_out: float = 0.2
    """Share of the judged results, chosen by id, on which the discriminator is calibrated and never trained."""

    def __post_init__(self) -> None:
        _check("train.held_out", self.held_out, "above 0, below 1", 0 < self.held_out < 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """What the models are measured on: never trained on, nor any photo that looks like one of these.

    Raises:
        UsageError: a value out of its range.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    sets: Mapping[str, str] = field(default_factory=dict)
    """Datasets with clean plates, by name; the table shows the first one."""
    discriminator: str | None = None
    """Judge of all stages alike; None: the one that the run starts with."""
    threshold: float = 0.9
    """A score above this is a success."""
    guard: Literal["success", "score", "psnr", "psnr_effect", "none"] = "success"
    """Figure of the first set in which a new remover must not be surely worse than the best before it; else that one stands on
    (``core.rounds.promotion``). ``none``: the newest always stands, as RORem has it."""
    judged: int = 0
    """Results of the first set that people judge after each training; 0: none. Nothing waits for them but the table."""
    radius: int = RADIUS
    """Photos whose perceptual hashes differ in as many of 256 bits or fewer are near (``core.curation.duplicates``)."""

    def __post_init__(self) -> None:
        _check("evaluation.threshold", self.threshold, "0 to 1", 0 <= self.threshold <= 1)
        _check("evaluation.judged", self.judged, "0 or more", self.judged >= 0)
        _check("evaluation.radius", self.radius, "0 to 256", 0 <= self.radius <= 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsSettings:
    """A whole run of rounds.

    Raises:
        UsageError: values that do not go together.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    folder: str
    """Where the ledger and the outputs of all steps are."""
    collections: tuple[str, ...]
    """Photos and masks that the rounds take their items from; each item once in a run."""
    initial: tuple[str, ...] = ()
    """Triplets that the remover is trained on before the first round, and in all others; none: the model is ready for round 1."""
    final: tuple[str, ...] = ()
    """Sharp pairs for one more training at the end, beside all others."""
    model: str = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"
    discriminator: str = "tiny"
    """Scores the results of the first human stage: it chooses among what people see, and decides nothing."""
    rounds: int = 3
    human: HumanSettings = field(default_factory=HumanSettings)
    automatic: AutomaticSettings = field(default_factory=AutomaticSettings)
    threshold: ThresholdSettings = field(default_factory=ThresholdSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    train: TrainingsSettings = field(default_factory=TrainingsSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    clean: Mapping[str, Any] = field(default_factory=dict)
    """Settings of ``cleanplate clean`` for all stages: steps, candidates, fusion, ..."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check("rounds", self.rounds, "1 to 100", 1 <= self.rounds <= 100)
        _check("collections", list(self.collections), "at least one dataset, folder or manifest", bool(self.collections))
        human, automatic = self.human, self.automatic
        for name, sizes in (("human.items", human.items), ("human.judged", human.judged), ("automatic.items", automatic.items)):
            if isinstance(sizes, tuple) and len(sizes) != self.rounds:
                raise UsageError(f"{name} has {len(sizes)} numbers for {self.rounds} rounds: give one a round, or one for all")
        own = {"input", "output", "model", "discriminator", "seed", "threshold", "uncertain", "round", "overwrite", "json"}
        taken = own & set(self.clean)
        if taken:
            raise UsageError(f"clean: {', '.join(sorted(taken))} is what the rounds themselves set; leave it away")

    def size_of(self, sizes: Sizes, number: int) -> int:
        """A stage's size in round ``number`` (from 1)."""
        return sizes if isinstance(sizes, int) else sizes[number - 1]

    def judged_of(self, number: int) -> int:
        """How many results people judge in the human stage of round ``number``."""
        items = self.size_of(self.human.items, number)
        return items if self.human.judged is None else min(items, self.size_of(self.human.judged, number))

    def audited_of(self, number: int) -> int:
        """How many results people judge in the automatic stage of round ``number``: at least one where there is any."""
        items = self.size_of(self.automatic.items, number)
        return min(items, max(1, round(items * self.automatic.audit)))

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def _check_sizes(name: str, sizes: Sizes | None, least: int) -> None:
    for size in () if sizes is None else (sizes,) if isinstance(sizes, int) else sizes:
        _check(name, size, f"{least} or more", size >= least)


def _check(name: str, value: object, allowed: str, right: bool) -> None:
    if not right:
        raise UsageError(f"{name} is {value}, which must be {allowed}")
