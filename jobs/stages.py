"""The stages of the clean job on Ray Data: reading the plan, erasing, scoring. Encoded bytes travel between them, tensors never do."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

import cv2
import pyarrow as pa
import ray

from core.eraser import EraserSettings, load_eraser
from core.errors import ItemError, StorageUnavailable
from core.fetch import Fetcher
from core.ledger import IdSet
from core.parallel import map_ahead
from core.plan import read_plan_file
from core.scoring import Scorer, load_scorer, score_record
from core.workload import Fetched, Outcome, Workload, WorkSettings, failure
from jobs.monitor import CRASHES_TO_QUARANTINE
from jobs.outcomes import OUTCOME_SCHEMA, to_table

GROUP: Final = 32
"""Items that are reported to the monitor at once."""
CHUNK_BYTES: Final = 16 * 2**20
"""Encoded bytes that an actor hands over at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """All that the actors of a job need to know."""

    model: str
    eraser: EraserSettings
    discriminator: str | None
    work: WorkSettings
    base: str


class PlanReader:
    """Reads files of the plan and leaves out what is done already."""

    def __init__(self, folder: str, done: ray.ObjectRef[IdSet] | None) -> None:
        self._folder, self._done = folder, done

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        done = ray.get(self._done) if self._done is not None else None
        for name in batch.column("file").to_pylist():
            table = read_plan_file(self._folder, name)
            if done is not None:
                table = table.filter(pa.array(~done.contains(table.column("id").to_pylist())))
            yield table


class Guarded:
    """Takes items up one group at a time, tells the monitor, and puts items aside whose process died at them twice."""

    def __init__(self, monitor: Any, stage: str) -> None:
        self._monitor, self._stage = monitor, stage
        self._worker = f"{stage}-{os.getpid()}-{uuid.uuid4().hex}"

    def run(self, rows: Sequence[dict[str, Any]], process: Callable[[Iterator[dict[str, Any]]], Iterator[Outcome]]) -> Iterator[Outcome]:
        """Outcomes of ``rows``. Those that were in work when a process died go first, each alone."""
        keys = {row["id"]: f"{self._stage}:{row['id']}" for row in rows}
        suspects = ray.get(self._monitor.suspects.remote(self._worker, list(keys.values())))
        for row in rows:
            key = keys[row["id"]]
            if key in suspects:
                yield from self._alone(row, key, process)
        done: list[str] = []
        for outcome in process(self._taken(iter([row for row in rows if keys[row["id"]] not in suspects]), keys, done)):
            done.append(keys[outcome.id])
            yield outcome
        ray.get(self._monitor.begin.remote(self._worker, [], done))

    def _alone(self, row: dict[str, Any], key: str, process: Callable[[Iterator[dict[str, Any]]], Iterator[Outcome]]) -> Iterator[Outcome]:
        crashes = ray.get(self._monitor.begin.remote(self._worker, [key], [])).get(key, 0)
        if crashes >= CRASHES_TO_QUARANTINE:
            message = f"the process that worked on it died {crashes} times (out of memory, or a fault in a library); it was set aside"
            yield failure(row["id"], row.get("uri") or row.get("source"), ItemError(self._stage, "crashed", message), self._stage)
        else:
            yield from process(iter([row]))
        ray.get(self._monitor.begin.remote(self._worker, [], [key]))

    def _taken(self, rows: Iterator[dict[str, Any]], keys: Mapping[str, str], done: list[str]) -> Iterator[dict[str, Any]]:
        while group := list(islice(rows, GROUP)):
            finished = done.copy()
            done.clear()
            ray.get(self._monitor.begin.remote(self._worker, [keys[row["id"]] for row in group], finished))
            yield from group


class EraseStage:
    """An actor of the eraser pool: a block of plan rows in, outcomes out, in pieces of some megabytes."""

    def __init__(self, settings: StageSettings, monitor: Any) -> None:
        _quiet_libraries(settings.eraser.device)
        scorer = _scorer(settings)
        self._workload = Workload(load_eraser(settings.model, settings.eraser), settings.work, scorer)
        self._fetcher = Fetcher(settings.base)
        self._guarded = Guarded(monitor, "erase")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        yield from in_chunks(self._guarded.run(batch.to_pylist(), self._process))

    def _process(self, rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
        def entries() -> Iterator[tuple[str, str | None, Fetched]]:
            for row in rows:
                yield row["id"], self._fetcher.uri(row), partial(self._fetcher.fetch, row)

        return self._workload.run(entries())


class ScoreStage:
    """An actor of the scoring pool: outcomes in, the same outcomes with score and verdict out."""

    def __init__(self, settings: StageSettings, monitor: Any) -> None:
        _quiet_libraries(settings.eraser.device)
        scorer = _scorer(settings)
        if scorer is None:
            raise ValueError("a scoring pool needs a discriminator")
        self._scorer = scorer
        self._work = settings.work
        self._guarded = Guarded(monitor, "score")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        rows = batch.select(OUTCOME_SCHEMA.names).to_pylist()
        yield from in_chunks(self._guarded.run(rows, self._process))

    def _process(self, rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
        for row in rows:
            warnings = tuple((row.pop("warnings") or "").split(",")) if row.get("warnings") else ()
            extra = {name: row.pop(name, None) for name in ("uri", "stage", "error", "message", "warnings")}
            if extra["error"]:
                yield Outcome(
                    row["id"],
                    failure={"id": row["id"], **{name: extra[name] for name in ("uri", "stage", "error", "message")}},
                    warnings=warnings,
                )
                continue
            yield self._scored(row, warnings)

    def _scored(self, values: dict[str, Any], warnings: tuple[str, ...]) -> Outcome:
        work = self._work
        try:
            scored = score_record(
                values,
                self._scorer,
                accept_above=work.accept_above,
                uncertain_from=work.uncertain_from,
                max_megapixels=work.max_megapixels,
            )
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return failure(values["id"], (values["source"] or {}).get("path"), error, "score")
        return Outcome(values["id"], record=scored, warnings=warnings)


class ScoreInputStage(ScoreStage):
    """An actor of the pool of ``cleanplate score``: rows of the plan in, their records with score and verdict out."""

    def __init__(self, settings: StageSettings, monitor: Any) -> None:
        super().__init__(settings, monitor)
        self._fetcher = Fetcher(settings.base)
        self._pool = ThreadPoolExecutor(settings.work.threads, thread_name_prefix="fetch")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        yield from in_chunks(self._guarded.run(batch.to_pylist(), self._process))

    def _process(self, rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
        ahead = self._work.threads + self._work.lookahead
        for found in map_ahead(self._pool, self._fetched, rows, ahead):
            yield found if isinstance(found, Outcome) else self._scored(found, ())

    def _fetched(self, row: dict[str, Any]) -> dict[str, Any] | Outcome:
        try:
            return self._fetcher.fetch_record(row, self._work.max_megapixels)
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return failure(row["id"], self._fetcher.uri(row), error, "fetch")


def _scorer(settings: StageSettings) -> Scorer | None:
    """The discriminator on the eraser's device; None where nothing is scored."""
    if settings.discriminator is None:
        return None
    return load_scorer(settings.discriminator, device=settings.eraser.device, dtype=settings.eraser.dtype)


def in_chunks(outcomes: Iterator[Outcome]) -> Iterator[pa.Table]:
    """Tables of at least ``CHUNK_BYTES`` of pictures, and a last one of what is left."""
    waiting: list[Outcome] = []
    size = 0
    for outcome in outcomes:
        waiting.append(outcome)
        if outcome.record is not None:
            size += sum(len(value["bytes"] or b"") for value in outcome.record.values() if isinstance(value, dict))
        if size >= CHUNK_BYTES:
            yield to_table(waiting)
            waiting, size = [], 0
    if waiting:
        yield to_table(waiting)


def _quiet_libraries(device: str) -> None:
    """One thread per library and actor: the pools are the parallelism, and results do not depend on the number of cores."""
    cv2.setNumThreads(1)
    if not device.startswith("cuda"):
        import torch

        from core.memory import keep_freed_memory

        keep_freed_memory()
        torch.set_num_threads(1)
