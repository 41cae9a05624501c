"""Measuring the items of an input, for the jobs that choose: actors open each photo once and put what they found as small Parquet files.

What is measured stays in the output's ``.cleanplate/``, so that a killed job goes on where it was, and another choice opens nothing again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import cv2
import pyarrow as pa
import pyarrow.compute as pc
import ray

from core import storage
from core.curation.measured import Piece, measured, measures_name, pieces, write_measures
from core.curation.measures import MEASURES_SCHEMA, Measurer, load_classifier
from core.errors import StorageUnavailable
from core.fetch import Fetcher
from core.ledger import read_columns
from core.parallel import map_ahead
from core.plan import PlanInfo, PlanRow, read_plan_file, read_plan_info, write_plan
from core.workload import Outcome, failure
from jobs.cluster import Pools
from jobs.job_metrics import start_monitor
from jobs.job_state import read_object, write_object
from jobs.monitor import Tally
from jobs.progress import LOG_SECONDS
from jobs.runner import actor_stage, explained, set_up_ray_data
from jobs.sink import TooManyFailures
from jobs.stages import Guarded

log = logging.getLogger(__name__)

MOST_PIECES: Final = 8192
"""Files of measures; a larger plan has larger ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """What decides the values; where they change, all is measured anew.

    Attributes:
        looks: take signatures.
        safety: the classifier, or ``none``.
        masks: measure masks; without it an item is its photo alone.
        max_megapixels: larger photos are failures.
        version: goes up with every change of ``core.curation`` that changes values.
    """

    looks: bool
    safety: str
    masks: bool
    max_megapixels: float
    version: int = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """Where the measures of an input are."""

    folder: str
    plan: PlanInfo


def plan_items(folder: str, given: dict[str, Any], rows: Callable[[], Iterable[PlanRow]], source: str, base: str = "/") -> Measured:
    """The list of items below ``folder``: the one that is there if it was made of the same ``given``, else a new one in an empty folder."""
    settings = storage.join(folder, "settings.json")
    plan = read_plan_info(storage.join(folder, "plan")) if read_object(settings) == given else None
    if plan is None:
        store = storage.storage_for(folder)
        for entry in store.list(folder):
            store.delete(entry.uri)
        log.info("reading %s", source)
        plan = write_plan(storage.join(folder, "plan"), rows(), source_input=source, base=base)
        write_object(settings, given)
    return Measured(folder, plan)


def measure_pictures(items: Measured, settings: MeasureSettings, pools: Pools, max_failure_rate: float) -> None:
    """Measure the items that are not measured yet, on the Ray cluster that is connected.

    Raises:
        TooManyFailures: more than ``max_failure_rate`` of the items cannot be opened.
        CleanplateError: as ``jobs.runner.run_job``.
    """
    counts = [len(read_plan_file(storage.join(items.folder, "plan"), name)) for name in items.plan.files]
    done = measured(items.folder)
    # a function of the plan alone: what an earlier run with other settings has measured fits
    rows = max(16, min(256, items.plan.items // 32), items.plan.items // MOST_PIECES)
    left = [piece for piece in pieces(counts, rows) if done.get(piece.offset) != piece.count]
    if not left:
        return
    total = sum(piece.count for piece in left)
    log.info("%d of %d items are left to measure", total, items.plan.items)
    monitor = start_monitor(Tally(), max_failure_rate)
    set_up_ray_data()
    rows_left = ray.data.from_arrow([pa.Table.from_pylist([asdict(piece)]) for piece in left])
    arguments = (items, settings, pools.threads, monitor)
    dataset = actor_stage(rows_left, MeasureStage, arguments, pools, min(pools.min_actors, len(left)), min(pools.max_actors, len(left)))
    started = told = time.monotonic()
    through = 0
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            through += pc.sum(batch["rows"]).as_py()
            if time.monotonic() - told >= LOG_SECONDS:
                told = time.monotonic()
                log.info("measured %d of %d items, %.1f a second", through, total, through / (told - started))
    except Exception as error:
        # whoever holds the error holds this frame, and by the dataset its actors
        del dataset
        raise explained(error, monitor) from error


def forget_failures(items: Measured) -> None:
    """Remove the measures of pieces in which an item failed: they are measured again."""
    store = storage.storage_for(items.folder)
    for offset, count in measured(items.folder).items():
        uri = storage.join(items.folder, measures_name(offset, count))
        if read_columns(uri, ("error",)).column("error").null_count < count:
            store.delete(uri)


def measure_metadata(items: Measured, known: Iterator[dict[str, Any]]) -> None:
    """Write as measures what is ``known`` of each item of the plan, in its order; nothing is opened."""
    offset = 0
    empty = dict.fromkeys(MEASURES_SCHEMA.names)
    for name in items.plan.files:
        table = read_plan_file(storage.join(items.folder, "plan"), name)
        values = [{**empty, **row, **next(known)} for row in table.to_pylist()]
        write_measures(items.folder, offset, pa.Table.from_pylist(values, schema=MEASURES_SCHEMA))
        offset += len(table)


class MeasureStage:
    """An actor of the pool: pieces of the plan in; their measures go to the store, and how many they were comes out."""

    def __init__(self, items: Measured, settings: MeasureSettings, threads: int, monitor: Any) -> None:
        cv2.setNumThreads(1)
        classifier = None if settings.safety == "none" else load_classifier(settings.safety)
        self._measurer = Measurer(settings.looks, classifier, settings.max_megapixels)
        self._items, self._masks, self._monitor = items, settings.masks, monitor
        self._fetcher = Fetcher(items.plan.base)
        # a classifier of the caller's is asked by one thread at a time
        self._pool = ThreadPoolExecutor(1 if classifier else threads, thread_name_prefix="measure")
        self._ahead = 2 * threads
        self._guarded = Guarded(monitor, "measure")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for values in batch.to_pylist():
            piece = Piece(**values)
            plan = read_plan_file(storage.join(self._items.folder, "plan"), self._items.plan.files[piece.file])
            rows = plan.slice(piece.start, piece.count).to_pylist()
            found = {outcome.id: outcome for outcome in self._guarded.run(rows, self._process)}
            table = pa.Table.from_pylist([_measures(row, found[row["id"]]) for row in rows], schema=MEASURES_SCHEMA)
            write_measures(self._items.folder, piece.offset, table)
            errors = Counter(code for code in table["error"].to_pylist() if code)
            tally = Tally(Counter(none=piece.count - errors.total()), errors)
            reason = ray.get(self._monitor.wrote.remote(piece.offset, tally))
            if reason:
                raise TooManyFailures(reason)
            yield pa.table({"rows": [piece.count]})

    def _process(self, rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
        return map_ahead(self._pool, self._outcome, rows, self._ahead)

    def _outcome(self, row: dict[str, Any]) -> Outcome:
        stage = "fetch"
        try:
            item = self._fetcher.fetch(row)
            stage = "measure"
            return Outcome(row["id"], record=self._measurer.measure(item.source, item.mask if self._masks else None))
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return failure(row["id"], self._fetcher.uri(row), error, stage)


def _measures(row: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    if outcome.failure is not None:
        return {**row, "error": outcome.failure["error"], "message": outcome.failure["message"]}
    return {**row, **(outcome.record or {})}


def whole_names(row: PlanRow, base: str, prefix: str = "") -> PlanRow:
    """The row with names that need no base, and with ``prefix`` before its id."""
    names: dict[str, Any] = {
        name: storage.resolve(base, value)
        for name in ("source", "mask", "target", "effect_mask", "erased", "shard")
        if (value := getattr(row, name)) and (row.error is None or name == "source")
    }
    return replace(row, id=prefix + row.id, **names)
