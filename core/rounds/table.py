"""The table of a run of rounds, as RORem's first: images run, kept, pass rate, total; success rate with its interval, PSNR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from core.rounds.ledger import Entry
from core.rounds.settings import RoundsSettings
from core.rounds.steps import Step

NAMES: Final = {
    "base": "base model",
    "initial": "initialisation",
    "people": "people",
    "automatic": "automatic",
    "final": "final",
    "lcm": "LCM",
}
_WITH_ROUND: Final = ("people", "automatic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A stage; None where a figure is not there yet, or has no meaning.

    Attributes:
        stage: its name.
        run: images erased and judged, by people or by the discriminator.
        kept: of these, those that entered the data.
        total: triplets that its remover was trained on.
        threshold: score above which results were accepted without people.
        precision: of the discriminator, on this stage's results that people judged and it was not trained on; with interval.
        success: share of the evaluation set's results that the judge of all stages scores above the threshold; with interval.
        people: the same by people; with interval.
        psnr: dB on the evaluation set.
        promoted: whether its remover took the place of the one before.
    """

    stage: str
    run: int | None = None
    kept: int | None = None
    total: int | None = None
    threshold: float | None = None
    precision: Mapping[str, float] | None = None
    success: Mapping[str, float] | None = None
    people: Mapping[str, float] | None = None
    psnr: float | None = None
    promoted: bool | None = None

    @property
    def pass_rate(self) -> float | None:
        """Kept over run, 0 to 1."""
        return None if not self.run or self.kept is None else self.kept / self.run


def table_of(settings: RoundsSettings, steps: Sequence[Step], entries: Mapping[str, Entry]) -> list[Row]:
    """One row a stage, in order, from the entries of the steps that are done."""
    stages: dict[tuple[str, int], list[Step]] = {}
    for step in steps:
        stages.setdefault((step.stage, step.round), []).append(step)
    first = next(iter(settings.evaluation.sets), None)
    rows = []
    for (stage, number), found in stages.items():
        done = {_part(step): entries[step.name].result for step in found if step.name in entries}
        name = f"{NAMES[stage]}, round {number}" if stage in _WITH_ROUND else NAMES[stage]
        rows.append(Row(stage=name, **_figures(stage, done, first)))
    return [row for row in rows if row != Row(stage=row.stage) or row.stage != NAMES["base"]]


def _part(step: Step) -> str:
    return f"evaluation-{step.kind}" if "-evaluation-" in step.name else step.kind


def _figures(stage: str, done: Mapping[str, Mapping[str, Any]], first: str | None) -> dict[str, Any]:
    data, labels = done.get("data", {}), done.get("labels", {})
    figures: dict[str, Any] = {"total": data.get("items")}
    if stage == "initial":
        figures |= {"run": data.get("read"), "kept": data.get("items")}
    elif stage == "people":
        figures |= {"run": labels.get("labels"), "kept": labels.get("accepted"), "precision": labels.get("measured", {}).get("precision")}
    elif stage == "automatic":
        chosen = done.get("threshold", {})
        figures |= {name: chosen.get(name) for name in ("run", "kept", "threshold")}
        figures["precision"] = chosen.get("measured", {}).get("precision")
    evaluated = done.get("evaluate", {}).get(first, {}) if first else {}
    figures |= {"success": evaluated.get("success_rate"), "psnr": evaluated.get("psnr")}
    figures["promoted"] = done.get("promotion", {}).get("promoted")
    return figures | {"people": done.get("evaluation-labels", {}).get("success_rate")}


def as_dict(row: Row) -> dict[str, Any]:
    """As JSON holds a row."""
    names = ("stage", "run", "kept", "pass_rate", "total", "threshold", "precision", "success", "people", "psnr", "promoted")
    return {name: getattr(row, name) for name in names}


def words(row: Mapping[str, Any]) -> list[str]:
    """The cells of a row of ``as_dict`` for people, in the order of ``HEADINGS``."""
    return [
        row["stage"],
        _count(row["run"]),
        _count(row["kept"]),
        "-" if row["pass_rate"] is None else f"{row['pass_rate']:.1%}",
        _count(row["total"]),
        "-" if row["threshold"] is None else f"{row['threshold']:g}",
        _share(row["precision"]),
        _share(row["success"]),
        _share(row["people"]),
        "-" if row["psnr"] is None else f"{row['psnr']:.2f}",
        "-" if row["promoted"] is None else "yes" if row["promoted"] else "no",
    ]


HEADINGS: Final = (
    *("stage", "run", "kept", "pass rate", "total", "threshold", "precision"),
    *("success (judge)", "success (people)", "PSNR", "stands"),
)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _share(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:.1%} [{value['low']:.1%}, {value['high']:.1%}] of {int(value['count']):,}"
