"""Several models on the same items: each figure's mean with its interval, and the paired differences from the first model.

The difference of two means says little where items differ more than models do; the mean of the differences, item by item, says how sure it
is that one model is better. Intervals are bootstrapped over items (``core.metrics.statistics``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from core.errors import UsageError
from core.metrics.statistics import bootstrap_mean

Figures = Mapping[str, Mapping[str, float | None]]
"""Figures by item, then by name."""


def compared(models: Mapping[str, Figures], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For every model and figure: ``mean``, ``low``, ``high``, ``count``; and, but for the first model, ``difference`` from it.

    Means are over the items that all models have the figure for, so that they are of the same items; ``difference`` has ``mean``, ``low``,
    ``high``, ``count`` (95 %). Figures that no item has are left out.

    Raises:
        UsageError: fewer than two models, or no item that all of them have.
    """
    if len(models) < 2:
        raise UsageError(f"{len(models)} models are given; a comparison needs two or more")
    shared = sorted(set.intersection(*(set(found) for found in models.values())))
    if not shared:
        raise UsageError("the models have no item in common: ids must be the same in all inputs")
    first = next(iter(models))
    table: dict[str, dict[str, Any]] = {model: {} for model in models}
    for name in names:
        items = [item for item in shared if all(found[item].get(name) is not None for found in models.values())]
        if not items:
            continue
        values = {model: np.array([found[item][name] for item in items], np.float64) for model, found in models.items()}
        for model, values_N in values.items():
            table[model][name] = asdict(bootstrap_mean(values_N))
            if model != first:
                table[model][name]["difference"] = asdict(bootstrap_mean(values_N - values[first]))
    return table


def as_markdown(table: Mapping[str, Mapping[str, Any]], digits: int = 4) -> str:
    """A row a model and a column a figure; differences whose interval leaves out 0 are in bold."""
    names = _names(table)
    lines = [f"| model | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    lines += [f"| {model} | {' | '.join(_words(found.get(name), digits) for name in names)} |" for model, found in table.items()]
    return "\n".join(lines) + "\n"


def as_csv(table: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a model and figure: mean, low, high, count, and the same of the difference, which is empty for the first model."""
    parts = ("mean", "low", "high", "count")
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["model", "figure", *parts, *(f"difference_{part}" for part in parts)])
    for model, found in table.items():
        for name, value in found.items():
            difference = value.get("difference") or {}
            writer.writerow([model, name, *(value[part] for part in parts), *(difference.get(part, "") for part in parts)])
    return written.getvalue()


def _names(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for found in table.values() for name in found))


def _words(value: Mapping[str, Any] | None, digits: int) -> str:
    if value is None:
        return "-"
    text = f"{value['mean']:.{digits}f}"
    difference = value.get("difference")
    if difference is None:
        return text
    words = f"{difference['mean']:+.{digits}f} [{difference['low']:+.{digits}f}, {difference['high']:+.{digits}f}]"
    return f"{text} ({f'**{words}**' if difference['low'] > 0 or difference['high'] < 0 else words})"
