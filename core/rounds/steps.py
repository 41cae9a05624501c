"""The steps of a run of rounds, in an order in which each stands after those that it follows (RORem, section 3.2).

    start        guard, base evaluation; the initial data, remover, evaluation and promotion
    round n      sample, erase, queue, labels               people judge results of the last remover that stands
                 data, remover, evaluation, promotion        it is trained again, on what they accepted, too
                 discriminator data, discriminator           trained and calibrated on all that people judged
                 sample, erase, audit queue, audit labels    the discriminator scores results of the new remover, people judge some
                 threshold, data, remover, evaluation, ...   what scores above the threshold enters the data
    end          final data, remover, evaluation, promotion; LCM LoRA and its evaluation
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from core.rounds.settings import RoundsSettings

Kind = Literal[
    "guard",
    "sample",
    "erase",
    "queue",
    "labels",
    "data",
    "discriminator-data",
    "threshold",
    "remover",
    "discriminator",
    "lcm",
    "evaluate",
    "promotion",
]
Stage = Literal["base", "initial", "people", "automatic", "final", "lcm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        name: unique in the run, also of its entry and folder.
        kind: what is done.
        stage: which row of the table it belongs to, with ``round``.
        round: number of the round from 1; 0 before the first and after the last one.
        follows: steps whose outputs it takes, by the part that they play.
        count: items to draw, or results that people judge.
    """

    name: str
    kind: Kind
    stage: Stage
    round: int = 0
    follows: Mapping[str, str] = field(default_factory=dict)
    count: int = 0


class _Plan:
    """Puts steps one after the other, and remembers the last discriminator, data and sample, and what says which remover stands."""

    def __init__(self, settings: RoundsSettings) -> None:
        self.settings = settings
        self.steps: list[Step] = []
        self.last: dict[str, str] = {}
        self.stages: dict[str, str | None] = {}
        """What the data are merged of, by the part that each step plays."""
        self.judged: dict[str, str | None] = {}
        """What a discriminator is trained on, likewise."""

    def add(self, name: str, kind: Kind, stage: Stage, follows: Mapping[str, str | None], number: int = 0, count: int = 0) -> str:
        taken = {part: step for part, step in follows.items() if step is not None}
        self.steps.append(Step(name=name, kind=kind, stage=stage, round=number, follows=taken, count=count))
        return name

    def evaluate(self, prefix: str, stage: Stage, number: int = 0, lcm: str | None = None) -> str | None:
        if not self.settings.evaluation.sets:
            return None
        done = self.add(f"{prefix}-evaluation", "evaluate", stage, {"remover": self.last.get("remover"), "lcm": lcm}, number)
        if self.settings.evaluation.judged:
            self.ask(f"{prefix}-evaluation", stage, number, self.settings.evaluation.judged, done)
        return done

    def ask(self, prefix: str, stage: Stage, number: int, count: int, erased: str) -> str:
        """Queue and labels; returns the name of the latter."""
        queue = self.add(f"{prefix}-queue", "queue", stage, {"erased": erased}, number, count)
        return self.add(f"{prefix}-labels", "labels", stage, {"queue": queue, "erased": erased}, number)

    def train(self, prefix: str, stage: Stage, number: int = 0) -> None:
        self.last["data"] = self.add(f"{prefix}-data", "data", stage, self.stages, number)
        self.train_on_data(prefix, stage, number)

    def train_on_data(self, prefix: str, stage: Stage, number: int = 0) -> None:
        before = self.last.get("remover")
        follows = {"data": self.last["data"], "remover": before}
        self.last["remover"] = self.add(f"{prefix}-remover", "remover", stage, follows, number)
        evaluation = self.evaluate(prefix, stage, number)
        if evaluation is None or self.settings.evaluation.guard == "none":
            return
        # the first is compared with the model that the run starts with
        stood = {"before": before} if before is not None else {"base": "base-evaluation"}
        follows = {"new": self.last["remover"], "evaluation": evaluation, **stood}
        self.last["remover"] = self.add(f"{prefix}-promotion", "promotion", stage, follows, number)

    def sample(self, prefix: str, stage: Stage, number: int, count: int) -> str:
        follows = {"guard": self.last.get("guard"), "after": self.last.get("sample")}
        self.last["sample"] = self.add(f"{prefix}-sample", "sample", stage, follows, number, count)
        return self.last["sample"]

    def erase(self, prefix: str, stage: Stage, number: int, count: int) -> str:
        follows = {"sample": self.sample(prefix, stage, number, count)}
        models = {"remover": self.last.get("remover"), "discriminator": self.last.get("discriminator")}
        return self.add(f"{prefix}-erase", "erase", stage, follows | models, number)

    def people(self, number: int) -> None:
        prefix, settings = f"round-{number}-people", self.settings
        erased = self.erase(prefix, "people", number, settings.size_of(settings.human.items, number))
        labels = self.ask(prefix, "people", number, settings.judged_of(number), erased)
        self._took(f"people-{number}", erased, labels)
        if settings.train.after_people:
            self.train(prefix, "people", number)

    def automatic(self, number: int) -> None:
        prefix, settings = f"round-{number}-automatic", self.settings
        count = settings.size_of(settings.automatic.items, number)
        follows = {"initial": self.stages.get("initial"), **self.judged}
        data = self.add(f"round-{number}-discriminator-data", "discriminator-data", "automatic", follows, number)
        self.last["discriminator"] = self.add(f"round-{number}-discriminator", "discriminator", "automatic", {"data": data}, number)
        if count:
            erased = self.erase(prefix, "automatic", number, count)
            labels = self.ask(prefix, "automatic", number, settings.audited_of(number), erased)
            follows = {"erased": erased, "labels": labels}
            self._took(f"automatic-{number}", erased, labels)
            self.stages[f"automatic-{number}-threshold"] = self.add(f"round-{number}-threshold", "threshold", "automatic", follows, number)
        if count or not settings.train.after_people:
            self.train(prefix, "automatic", number)

    def _took(self, part: str, erased: str, labels: str) -> None:
        for name, step in (("erased", erased), ("labels", labels)):
            self.stages[f"{part}-{name}"] = step
            self.judged[f"{part}-{name}"] = step


def steps_of(settings: RoundsSettings) -> list[Step]:
    """All steps of a run, in order."""
    plan = _Plan(settings)
    guard = plan.add("guard", "guard", "base", {}) if settings.evaluation.sets else None
    if guard is not None:
        plan.last["guard"] = guard
    plan.evaluate("base", "base")
    if settings.initial:
        plan.stages["initial"] = plan.last["data"] = plan.add("initial-data", "data", "initial", {"guard": guard})
        plan.train_on_data("initial", "initial")
    for number in range(1, settings.rounds + 1):
        plan.people(number)
        plan.automatic(number)
    if settings.final:
        plan.stages["final"] = plan.add("final-photos", "data", "final", {"guard": guard})
        plan.train("final", "final")
    if settings.train.lcm is not None:
        lcm = plan.add("lcm", "lcm", "lcm", {"data": plan.last["data"], "remover": plan.last.get("remover")})
        plan.evaluate("lcm", "lcm", lcm=lcm)
    return plan.steps
