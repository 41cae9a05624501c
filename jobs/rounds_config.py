"""The configuration of ``cleanplate rounds``: the fields of ``core.rounds.settings.RoundsSettings``, mostly given by a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from core import storage
from core.errors import UsageError
from core.rounds.settings import RoundsSettings
from jobs.config import POSITIONAL, CleanConfig, within


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """RORem's loop: erase, let people judge, train a discriminator, let it judge more, train the remover again, measure.

    Attributes:
        action: run takes every step that can be taken, and goes on where it was; status shows the table
        folder: where the ledger and the outputs of all steps are; local or s3://
        collections: datasets, folders or manifests of photos and masks that the rounds take their items from
        initial: datasets of triplets that the remover is trained on before the first round, and in all others
        final: datasets of sharp pairs for one more training at the end
        model: the remover to begin with, as in cleanplate clean
        discriminator: model whose discriminator scores the first results that people see
        rounds: number of rounds
        human: stage that people judge: items, judged, random (see docs/rounds.md)
        automatic: stage that the discriminator judges: items, audit
        threshold: how it is chosen: precision, confidence, usual, least_labels
        labels: where people's judgements come from: database or folder; votes, overlap
        train: trainings: remover, discriminator, lcm (each recipe, changes), after_people, held_out
        evaluation: sets by name, discriminator, threshold, judged, radius
        clean: settings of cleanplate clean for all stages
        seed: of samples, noise and order
        watch: wait for people's labels and go on, in place of ending
        poll: seconds between looks at the labels, with --watch
        address: address of a Ray cluster; the default is RAY_ADDRESS, a cluster started here, or a new one
        json: print the result as one JSON object
    """

    action: Literal["run", "status"] = field(metadata=POSITIONAL)
    folder: str
    collections: list[str] | None = None
    initial: list[str] | None = None
    final: list[str] | None = None
    model: str | None = None
    discriminator: str | None = None
    rounds: int | None = None
    human: dict[str, Any] | None = None
    automatic: dict[str, Any] | None = None
    threshold: dict[str, Any] | None = None
    labels: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    clean: dict[str, Any] | None = None
    seed: int | None = None
    watch: bool = False
    poll: float = 10.0
    address: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        within("poll", self.poll, 0.01, 86_400)


def settings_of(config: RoundsConfig) -> RoundsSettings:
    """The settings that the configuration spells out; the rest is their default.

    Raises:
        UsageError: a name or a value is wrong.
    """
    import pydantic  # of the extra train, which other commands do without

    names = [one.name for one in fields(RoundsSettings)]
    values = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    try:
        settings = pydantic.TypeAdapter(RoundsSettings).validate_python(values)
    except pydantic.ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))} is {str(one['input'])[:80]!r}: {one['msg']}" for one in error.errors()[:3]]
        raise UsageError(f"rounds: {'; '.join(lines)}") from error
    folder = storage.normalize_uri(settings.folder)
    for uri in (*settings.collections, *settings.initial, *settings.final, *settings.evaluation.sets.values()):
        if storage.normalize_uri(uri).startswith(f"{folder}/"):
            raise UsageError(f"{uri} is inside the run's own folder {folder}: data go in from elsewhere")
    try:
        CleanConfig(input="-", output="-", **settings.clean)
    except TypeError as error:
        raise UsageError(f"rounds: clean has a setting that cleanplate clean has not ({error})") from error
    return settings
