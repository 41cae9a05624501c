"""``cleanplate curate``: RORem's selection: classes, so many of each, no near-duplicates, nothing of the evaluation sets, no bad photos.

Measure (actors, ``jobs.measuring``), choose (``core.curation.selection``, on the driver, from small columns alone), write: the chosen items
are the plan of a job like ``clean``. What is left out stands in ``dropped.parquet`` with its reason, the counts in ``funnel.json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from core import storage
from core.collections.licences import check_accepted, licences_of, parse_accepted
from core.curation.duplicates import DuplicateIndex
from core.curation.measured import known_values, read_measures
from core.curation.rules import Rules, parse_classes
from core.curation.selection import KEPT, REASONS, Selection, SelectionSettings, select
from core.curation.signature import from_bytes
from core.errors import CleanplateError, StorageUnavailable, UsageError
from core.fetch import Fetcher
from core.parallel import map_ahead
from core.plan import PLAN_SCHEMA, PlanInfo, PlanRow
from core.readers import Input, open_input
from core.record import SCHEMA_VERSION
from core.workload import Outcome, failure
from jobs.cluster import Pools, plan_pools, ray_cluster
from jobs.curate_config import CurateConfig
from jobs.evaluation_sets import evaluation_items
from jobs.job_state import FOLDER, JobFiles, read_object
from jobs.manifest import write_chosen
from jobs.measuring import (
    Measured,
    MeasureSettings,
    forget_failures,
    measure_metadata,
    measure_pictures,
    plan_items,
    whole_names,
)
from jobs.progress import print_table
from jobs.runner import RunSettings, actor_stage, run_job, table_rows
from jobs.stages import Guarded, in_chunks

log = logging.getLogger(__name__)

CHOICE_VERSION: Final = 1
"""Goes up with every change of ``core.curation`` that changes what is chosen."""
DROPPED: Final = "dropped.parquet"
FUNNEL: Final = "funnel.json"
DROPPED_SCHEMA: Final = pa.schema([(name, pa.string()) for name in ("id", "reason", "near", "category", "origin", "source")])
_DECIDING: Final = (
    "per_category", "dedupe", "duplicate", "against", "min_side", "max_aspect", "min_area", "max_area", "min_sharpness", "safety",
    "max_unsafe", "measure", "pictures", "seed", "origin", "max_megapixels",
)  # fmt: skip


def run(config: CurateConfig) -> int:
    """Run the job and print its summary."""
    summary = curate(config)
    if config.json:
        print(json.dumps(summary))
        return 0
    title = "nothing to do: the job is finished" if summary["already_finished"] else "curate"
    funnel = {f"  {name}": count for name, count in summary["funnel"].items() if count or name in ("in", "out")}
    print_table(title, {"funnel": "", **funnel, **table_rows(summary)})
    return 0


def curate(config: CurateConfig) -> dict[str, Any]:
    """Run, or go on with, the job on ``config.output``; returns the summary of ``jobs.runner.run_job`` with ``funnel`` and ``licences``.

    Raises:
        UsageError: a licence is restricted and was not accepted, or an input cannot be read.
        CleanplateError: nothing is left; or as ``jobs.runner.run_job``.
    """
    inputs = tuple(storage.normalize_uri(uri.strip()) for uri in config.input.split(",") if uri.strip())
    if not inputs:
        raise UsageError("--input names nothing; give a dataset, folder or manifest")
    licences = sorted({licence for uri in inputs for licence in licences_of(uri)})
    if len(inputs) > 1:
        check_accepted(licences, parse_accepted(config.accept_license))
    output = storage.normalize_uri(config.output)
    for uri in inputs:
        if output == uri or uri.startswith(f"{output}/"):
            raise UsageError(f"--output {output} holds the input itself; give another folder")
    classes = parse_classes(config.exclude)
    job = CurateJob(config, inputs, classes, tuple(licences))
    files = JobFiles(output)
    finished = read_object(files.dataset) is not None and not config.overwrite and not config.retry_failed
    on_driver = config.measure == "metadata" and config.pictures == "in-place" and not config.against
    with nullcontext() if finished or on_driver else ray_cluster(config.address):
        found = Input("selection", job.base(), job.chosen_rows)
        settings = replace(RunSettings.of(config), input=",".join(inputs) if len(inputs) > 1 else inputs[0])
        if config.pictures == "in-place":
            summary = write_chosen(job.settings(settings.input), settings, found.base, job.chosen_rows)
        else:
            summary = run_job(job, settings, found)
    return {**summary, "funnel": read_object(storage.join(output, FUNNEL)) or {}, "licences": licences}


@dataclass(frozen=True, slots=True)
class CurateJob:
    """The job for ``jobs.runner``; its plan are the chosen items, and those that could not be measured, as failures."""

    config: CurateConfig
    inputs: tuple[str, ...]
    classes: frozenset[str]
    licences: tuple[str, ...]

    def settings(self, source: str) -> dict[str, Any]:
        config = self.config
        digest = hashlib.blake2b("\n".join(sorted(self.classes)).encode(), digest_size=8).hexdigest()
        return {
            "job": "curate",
            "schema_version": SCHEMA_VERSION,
            "choice_version": CHOICE_VERSION,
            "input": source,
            "exclude": f"{len(self.classes)} classes, {digest}",
            "licences": list(self.licences),
            **{name: getattr(config, name) for name in _DECIDING},
        }

    def pools(self) -> Pools:
        return plan_pools(self.config)

    def stages(self, rows: ray.data.Dataset, plan: PlanInfo, pools: Pools, monitor: Any) -> ray.data.Dataset:
        arguments = (self.config.max_megapixels, plan.base, pools.threads, monitor)
        return actor_stage(rows, CopyStage, arguments, pools, pools.min_actors, pools.max_actors)

    def chosen_rows(self) -> Iterator[PlanRow]:
        """Measure, choose, write down what is left out, and give the items that stay, and those that failed.

        Raises:
            CleanplateError: nothing stays.
        """
        evaluation, names = self._evaluation()
        items = self._measured()
        settings = SelectionSettings(
            rules=self._rules(),
            per_class=self.config.per_category,
            duplicates=self.config.duplicate if self.config.dedupe else "off",
            seed=self.config.seed,
        )
        selection = select(lambda: read_measures(items.folder, items.plan.items), settings, evaluation, names)
        funnel = selection.funnel()
        output = storage.normalize_uri(self.config.output)
        _write_dropped(storage.join(output, DROPPED), items, selection)
        storage.storage_for(output).write(storage.join(output, FUNNEL), json.dumps(funnel, indent=1).encode())
        log.info("chosen: %s", ", ".join(f"{name} {count}" for name, count in funnel.items() if count))
        if not funnel["out"] and not funnel["failed"]:
            dropped = ", ".join(f"{name} {count}" for name, count in funnel.items() if count and name != "in")
            raise CleanplateError(f"none of {funnel['in']} items is left ({dropped}): loosen the rules; {DROPPED} names each item's reason")
        start = 0
        for table in read_measures(items.folder, items.plan.items):
            reasons = selection.reasons[start : start + len(table)]
            start += len(table)
            wanted = (reasons == KEPT) | (reasons == REASONS.index("failed"))
            yield from (PlanRow(**row) for row in table.select(PLAN_SCHEMA.names).filter(pa.array(wanted)).to_pylist())

    def base(self) -> str:
        """The folder that the names of the items are relative to.

        Raises:
            UsageError: an input cannot be read, or ``--pictures in-place`` is asked of a dataset, whose pictures are in its shards.
        """
        opened = [open_input(uri, self.config.origin) for uri in self.inputs]
        if self.config.pictures == "in-place" and any(found.kind == "dataset" for found in opened):
            raise UsageError("--pictures in-place is for folders and manifests; a dataset has its pictures in its shards: use copy")
        return opened[0].base if len(opened) == 1 else "/"

    def _rules(self) -> Rules:
        config = self.config
        return Rules(
            exclude=self.classes,
            min_side=config.min_side,
            max_aspect=config.max_aspect,
            min_area=config.min_area,
            max_area=config.max_area,
            min_sharpness=config.min_sharpness,
            max_unsafe=config.max_unsafe,
        )

    def _folder(self, name: str) -> str:
        return storage.join(storage.normalize_uri(self.config.output), FOLDER, name)

    def _measured(self) -> Measured:
        config = self.config
        measuring = MeasureSettings(
            looks=config.dedupe or bool(config.against), safety=config.safety, masks=True, max_megapixels=config.max_megapixels
        )
        given: dict[str, Any] = {"inputs": list(self.inputs), "origin": config.origin, "measure": config.measure}
        if config.measure == "pictures":
            given |= {"looks": measuring.looks, "safety": measuring.safety, "max_megapixels": measuring.max_megapixels}
        opened = [open_input(uri, config.origin) for uri in self.inputs]
        prefixes = _prefixes(self.inputs)

        def rows() -> Iterator[PlanRow]:
            for found, prefix in zip(opened, prefixes, strict=True):
                for row in found.rows():
                    yield whole_names(row, found.base, prefix) if prefix else row

        items = plan_items(self._folder("measures"), given, rows, " and ".join(self.inputs), self.base())
        if config.measure == "pictures":
            if config.retry_failed:
                forget_failures(items)
            measure_pictures(items, measuring, self.pools(), config.max_failure_rate)
        else:
            known = (values for found, uri in zip(opened, self.inputs, strict=True) for values in known_values(found, uri))
            measure_metadata(items, known)
        return items

    def _evaluation(self) -> tuple[DuplicateIndex | None, list[str]]:
        """The photos of the evaluation sets. Raises CleanplateError where one cannot be read: leakage could not be ruled out."""
        config = self.config
        names: list[str] = []
        index = DuplicateIndex()
        for number, uri in enumerate(filter(None, (part.strip() for part in config.against.split(",")))):
            measuring = MeasureSettings(looks=True, safety="none", masks=False, max_megapixels=config.max_megapixels)
            given = {"against": storage.normalize_uri(uri), "max_megapixels": config.max_megapixels}
            items = plan_items(self._folder(f"against-{number}"), given, lambda uri=uri: evaluation_items(uri), uri)  # type: ignore[misc]
            measure_pictures(items, measuring, self.pools(), 1.0)
            for table in read_measures(items.folder, items.plan.items):
                for row in table.select(["id", "source", "error", "message"]).to_pylist():
                    if row["error"]:
                        raise CleanplateError(
                            f"photo {row['id']} of the evaluation set {uri} cannot be read ({row['message']}), so nobody can "
                            "say whether the input holds it: mend or remove it"
                        )
                index.add_many(from_bytes(b"".join(table["signature"].to_pylist())))
                names += table["id"].to_pylist()
        return (index, names) if names else (None, names)


def _prefixes(inputs: tuple[str, ...]) -> list[str]:
    """What goes before the ids of several inputs, so that they do not clash: nothing for one."""
    if len(inputs) == 1:
        return [""]
    names = [uri.rsplit("/", 1)[-1].split(".")[0] for uri in inputs]
    return [f"{name}/" if names.count(name) == 1 else f"{name}-{number}/" for number, name in enumerate(names)]


def _write_dropped(uri: str, items: Measured, selection: Selection) -> None:
    start = 0
    with storage.storage_for(uri).create(uri) as file, pq.ParquetWriter(file, DROPPED_SCHEMA, compression="zstd") as writer:
        for table in read_measures(items.folder, items.plan.items):
            reasons = selection.reasons[start : start + len(table)]
            rows = table.select(["id", "category", "origin", "source", "shard"]).to_pylist()
            writer.write_table(
                pa.Table.from_pylist(
                    [
                        {
                            **row,
                            "source": row["source"] or row["shard"],
                            "reason": REASONS[reason],
                            "near": selection.near.get(start + place),
                        }
                        for place, (row, reason) in enumerate(zip(rows, reasons.tolist(), strict=True))
                        if reason not in (KEPT, REASONS.index("failed"))
                    ],
                    schema=DROPPED_SCHEMA,
                )
            )
            start += len(table)


class CopyStage:
    """An actor of the pool: rows of the plan in, their whole records out."""

    def __init__(self, max_megapixels: float, base: str, threads: int, monitor: Any) -> None:
        self._max_megapixels, self._ahead = max_megapixels, 2 * threads
        self._fetcher = Fetcher(base)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="copy")
        self._guarded = Guarded(monitor, "copy")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        yield from in_chunks(self._guarded.run(batch.to_pylist(), self._process))

    def _process(self, rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
        return map_ahead(self._pool, self._outcome, rows, self._ahead)

    def _outcome(self, row: dict[str, Any]) -> Outcome:
        try:
            return Outcome(row["id"], record=self._fetcher.fetch_record(row, self._max_megapixels, needs_erasure=False))
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return failure(row["id"], self._fetcher.uri(row), error, "copy")
