"""Results of a stage as the rounds look at them: light columns without a picture, with people's labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

import pyarrow.parquet as pq

from core import storage
from core.labels import RANDOM, Label
from core.ledger import list_parts, read_columns
from core.plan import PlanRow
from core.readers import parquet_source
from core.rounds.threshold import Judged

_DIGITS: Final = 6


def light_rows(dataset: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """``id``, ``shard`` (its name), ``row`` and some columns of every record, read without a picture."""
    found = []
    for uri in list_parts(dataset):
        table = read_columns(uri, ("id", *columns))
        name = storage.relative(dataset, uri)
        found += [{**values, "shard": name, "row": row} for row, values in enumerate(table.to_pylist())]
    return found


def plan_row(dataset: str, row: Mapping[str, Any]) -> PlanRow:
    """The plan row of a row of ``light_rows``, by whole URIs."""
    known = {one.name for one in fields(PlanRow)}
    return PlanRow(**{name: value for name, value in row.items() if name in known} | {"shard": storage.join(dataset, row["shard"])})


def is_kept(row: Mapping[str, Any], labels: Mapping[str, Label], threshold: float | None) -> bool:
    """People's word stands where they gave one; elsewhere the score decides, where there is a threshold."""
    label = labels.get(row["id"])
    if label is not None:
        return label.accepted is True
    return threshold is not None and row["score"] is not None and row["score"] > threshold


def judged_results(rows: Sequence[Mapping[str, Any]], labels: Sequence[Label], *, random_only: bool = False) -> list[Judged]:
    """The scored results that people decided about."""
    decided = {one.id: one for one in labels if one.accepted is not None and (not random_only or one.sampled_by == RANDOM)}
    return [
        Judged(row["score"], bool(decided[row["id"]].accepted), _groups(row))
        for row in sorted(rows, key=lambda row: str(row["id"]))
        if row["id"] in decided and row["score"] is not None
    ]


def figure_by_item(folder: str, name: str, threshold: float) -> dict[str, float]:
    """One figure of what ``cleanplate evaluate`` wrote to ``folder``, of each item that has it; ``success`` is 1 above the threshold."""
    column = "score" if name == "success" else name
    table = pq.read_table(parquet_source(storage.join(folder, "metrics.parquet")), columns=["id", column])
    found = {row["id"]: row[column] for row in table.to_pylist() if row[column] is not None}
    return {item: float(value > threshold) for item, value in found.items()} if name == "success" else found


def _groups(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    # a model that the run has made is named by its step, wherever the run's folder is
    eraser = str(row.get("model") or "").rsplit("@", 1)[0].rstrip("/").rsplit("/", 1)[-1]
    return tuple((kind, name) for kind, name in (("model", eraser), ("category", str(row.get("category") or ""))) if name)


def rounded(value: Any) -> Any:
    """Floats to six significant digits: further ones may differ with the order in which threads were done."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: rounded(inner) for name, inner in value.items()}
    return value
