"""RORem's triplets: ``meta.json``, a list of ``source``, ``mask``, ``GT`` (paths relative to it) and, for a discriminator, ``score``.

Layout: github.com/leeruibin/RORem, README and ``myutils/img_util.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from core import record, storage
from core.collections.builder import Builder, Built, Choice, failed, nothing_found, relative_name
from core.collections.json_stream import iterate_array
from core.plan import PlanRow
from core.readers import Input

ACCEPT_ABOVE: Final = 0.9
UNCERTAIN_FROM: Final = 0.5
_SCORE: Final = "#score="
_KEYS: Final = ("source", "mask", "GT")


def open_rorem(uri: str, origin: str, choice: Choice) -> Input:  # noqa: ARG001 - one signature for all collections
    """A ``meta.json``, or a folder with one or many files ``meta*.json`` somewhere below it.

    Raises:
        UsageError: there is none.
    """
    if uri.endswith(".json"):
        base = storage.parent(uri)
        return Input("rorem collection", base, lambda: _rows(base, [storage.relative(base, uri)], origin))
    return Input("rorem collection", uri, lambda: _rows(uri, _metas(uri), origin))


def _metas(uri: str) -> list[str]:
    names = (storage.relative(uri, entry.uri) for entry in storage.storage_for(uri).list(uri))
    found = sorted(name for name in names if PurePosixPath(name).name.startswith("meta") and name.endswith(".json"))
    if not found:
        raise nothing_found(uri, "rorem", "no meta.json (or meta*.json) was found there or in a folder below")
    return found


def _rows(base: str, metas: list[str], origin: str) -> Iterator[PlanRow]:
    for meta in metas:
        folder = str(PurePosixPath(meta).parent)
        folder = "" if folder == "." else folder
        for number, item in enumerate(iterate_array(storage.join(base, meta))):
            yield _row(item, folder, f"{meta}#{number}", origin)


def _row(item: object, folder: str, place: str, origin: str) -> PlanRow:
    if not isinstance(item, Mapping):
        return failed(place, origin, "bad_item", f"{place} is a JSON {type(item).__name__}; it must be an object")
    missing = [key for key in _KEYS if not isinstance(item.get(key), str) or not item[key]]
    if missing:
        return failed(place, origin, "bad_item", f"{place} has no {' and no '.join(missing)}; an item needs source, mask and GT")
    source, mask, answer = (relative_name(folder, item[key]) for key in _KEYS)
    row = PlanRow(answer, source=source, mask=mask, origin=origin)
    if "score" not in item:
        row.target = answer
        return row
    score = item["score"]
    try:
        value = math.nan if isinstance(score, bool) else float(score)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0.0 <= value <= 1.0:
        row.error, row.message = "bad_item", f"{place} has score {score!r}; a score is a number from 0 to 1"
    row.erased = f"{answer}{_SCORE}{value!r}"
    return row


class RoremBuilder(Builder):
    """With a score, ``GT`` is some eraser's answer, good or bad: ``erased``, and ``target`` only where it was accepted."""

    def build(self, row: Mapping[str, Any]) -> Built:
        if not row["erased"]:
            return super().build(row)
        self.check(row)
        name, _, text = row["erased"].rpartition(_SCORE)
        score = float(text)
        verdict = record.verdict_for(score, accept_above=ACCEPT_ABOVE, uncertain_from=UNCERTAIN_FROM)
        erased = self.stored(name, "GT")
        return self.assemble(
            row,
            source=self.stored(row["source"], "source"),
            mask=self.stored(row["mask"], "mask"),
            target=erased if verdict == "accepted" else None,
            erased=erased,
            score=score,
            verdict=verdict,
        )
