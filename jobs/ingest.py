"""``cleanplate ingest``: a published collection becomes a dataset.

The plan is the collection's list of items; actors fetch, open, compose where the collection comes in layers or outlines, and encode. The
rest is ``jobs.runner``, as for ``clean``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

import cv2
import pyarrow as pa
import ray

from core import storage
from core.collections.builder import Choice
from core.collections.formats import FORMATS, open_collection
from core.errors import StorageUnavailable, UsageError
from core.parallel import map_ahead
from core.plan import PlanInfo
from core.record import SCHEMA_VERSION
from core.workload import Outcome, failure
from jobs.cluster import Pools, plan_pools
from jobs.data_config import IngestConfig
from jobs.runner import RunSettings, actor_stage, print_summary, run_job
from jobs.stages import Guarded, in_chunks

LAYOUT_VERSION: Final = 1
"""Goes up with every change of ``core.collections`` that changes what comes out of a collection."""


def run(config: IngestConfig) -> int:
    """Run the job and print its summary."""
    print_summary("ingest", ingest(config), as_json=config.json)
    return 0


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Run, or go on with, the job on ``config.output``; returns the summary.

    Raises:
        UsageError: the licence is restricted and was not accepted, or the input is not of the format.
        CleanplateError: as ``jobs.runner.run_job``.
    """
    _check_licence(config)
    choice = Choice(
        images=config.images,
        exclude=_excluded(config.exclude),
        frames_per_clip=config.frames_per_clip,
        splits=_names(config.split),
        subsets=_names(config.subset),
        object_is=config.object_is,
    )
    found = open_collection(config.format, config.input, config.origin, choice)
    return run_job(IngestJob(config, choice), RunSettings.of(config), found)


def _check_licence(config: IngestConfig) -> None:
    accepted = _names(config.accept_license)
    unknown = sorted(accepted - set(FORMATS))
    if unknown:
        raise UsageError(f"--accept-license names {', '.join(unknown)}; the collections are {', '.join(FORMATS)}")
    chosen = FORMATS[config.format]
    if chosen.restricted and config.format not in accepted:
        raise UsageError(
            f"{config.format} is published under {chosen.licence}, which is restricted: what is trained on it may be, too; "
            f"read it, then add --accept-license {config.format}"
        )


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip().casefold() for name in text.split(",") if name.strip())


def _excluded(text: str) -> frozenset[str]:
    """Names with commas between them, or the lines of a file; # begins a remark."""
    if not text.endswith(".txt"):
        return _names(text)
    uri = storage.normalize_uri(text)
    try:
        lines = storage.storage_for(uri).read(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"--exclude {uri} is no text in UTF-8; save it anew") from error
    return frozenset(name.casefold() for line in lines if (name := line.partition("#")[0].strip()))


@dataclass(frozen=True, slots=True)
class IngestJob:
    """The ingesting job for ``jobs.runner``."""

    config: IngestConfig
    choice: Choice

    def settings(self, source: str) -> dict[str, Any]:
        config = self.config
        chosen = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(self.choice).items()}
        return {
            "job": "ingest",
            "schema_version": SCHEMA_VERSION,
            "layout_version": LAYOUT_VERSION,
            "format": config.format,
            "input": source,
            "origin": config.origin,
            "licences": [FORMATS[config.format].licence],
            "max_megapixels": config.max_megapixels,
            **chosen,
        }

    def pools(self) -> Pools:
        return plan_pools(self.config)

    def stages(self, rows: ray.data.Dataset, plan: PlanInfo, pools: Pools, monitor: Any) -> ray.data.Dataset:
        arguments = (self.config.format, plan.base, self.config.max_megapixels, self.choice, pools.threads, monitor)
        return actor_stage(rows, IngestStage, arguments, pools, pools.min_actors, pools.max_actors)


class IngestStage:
    """An actor of the pool: rows of the plan in, records out."""

    def __init__(self, name: str, base: str, max_megapixels: float, choice: Choice, threads: int, monitor: Any) -> None:
        cv2.setNumThreads(1)
        self._builder = FORMATS[name].builder(base, max_megapixels, choice)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ingest")
        self._ahead = 2 * threads
        self._guarded = Guarded(monitor, "ingest")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        yield from in_chunks(self._guarded.run(batch.to_pylist(), self._process))

    def _process(self, rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
        return map_ahead(self._pool, self._built, rows, self._ahead)

    def _built(self, row: dict[str, Any]) -> Outcome:
        try:
            built = self._builder.build(row)
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return failure(row["id"], self._builder.uri(row), error, "ingest")
        return Outcome(row["id"], record=built.record, warnings=built.warnings)
