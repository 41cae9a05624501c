"""What all jobs that write a dataset have in common: exactly once, resumable, failures as rows, one summary.

plan -> leave out what is done -> blocks -> the job's own stages -> shards

Ray Data streams, keeps the pools, holds back what is too fast and repeats what a dead process left. The shards are the ledger. A job says
what it reads, which settings decide its results, and which stages the rows of the plan pass.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import time
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Protocol

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from core import storage
from core.errors import CleanplateError, UsageError
from core.lease import Lease
from core.ledger import Ledger, read_ledger, settle
from core.plan import PlanInfo, read_plan_info, write_plan
from core.readers import Input, open_input
from core.record import SCHEMA_VERSION
from jobs.cluster import WRITING_CPUS, Pools, ray_cluster
from jobs.job_metrics import start_monitor
from jobs.job_state import JobFiles, admit, read_object, write_object
from jobs.monitor import Tally
from jobs.progress import ProgressDisplay, print_table
from jobs.sink import ShardSink, TooManyFailures
from jobs.stages import PlanReader

log = logging.getLogger(__name__)

NO_PROGRESS_SECONDS: Final = 900
"""After which a job that does nothing is ended; a node that fetches gigabytes of weights for its first actor takes minutes."""
INIT_DEATHS: Final = 3
"""Actors in a row that may die while they start, on a busy machine or a node that goes, before the job is given up (Ray: 0)."""
TASK_CPUS: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a job runs; none of it changes results."""

    input: str
    output: str
    origin: str | None
    overwrite: bool
    retry_failed: bool
    max_failure_rate: float
    block_rows: int
    shard_mb: float
    address: str | None

    @classmethod
    def of(cls, config: Any) -> RunSettings:
        """The part of a command's configuration that has these names."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


class Job(Protocol):
    """One kind of job."""

    def settings(self, source: str) -> dict[str, Any]:
        """Everything that decides the results, and nothing else: a run goes on only where these are the same."""

    def pools(self) -> Pools:
        """Sizes of the actor pools, for the Ray cluster that is connected."""

    def stages(self, rows: ray.data.Dataset, plan: PlanInfo, pools: Pools, monitor: Any) -> ray.data.Dataset:
        """The job's stages on rows of the plan; what comes out is of ``OUTCOME_SCHEMA``."""


def run_job(job: Job, run: RunSettings, found: Input | None = None) -> dict[str, Any]:
    """Run, or go on with, a job on ``run.output``; returns the summary.

    ``found`` is the list of items of a job that makes its own; the default is what ``run.input`` holds.

    Raises:
        CleanplateError: with one line that says what is wrong and what to do. What was written stays, and the same call goes on.
    """
    source, output = storage.normalize_uri(run.input), storage.normalize_uri(run.output)
    if output == source or source.startswith(f"{output}/"):
        raise UsageError(f"--output {output} holds the input itself; give another folder")
    files = JobFiles(output)
    settings = job.settings(source)
    lease = Lease.acquire(files.lease)
    try:
        going_on = admit(files, settings, overwrite=run.overwrite)
        if run.retry_failed:
            _forget_failures(output)
        plan = (read_plan_info(files.plan) if going_on else None) or _make_plan(files, source, found or open_input(source, run.origin))
        if not going_on:
            write_object(files.job, {"settings": settings})
        ledger = _settled_ledger(output)
        left = plan.items - len(ledger.ids)
        if not left and read_object(files.dataset):
            return _summary(output, plan, ledger, 0, 0.0, {})
        started, warnings = time.monotonic(), {}
        if left:
            log.info("%d of %d items are left to do", left, plan.items)
            warnings = _run_on_ray(job, run, files, lease, plan, ledger)
        seconds = time.monotonic() - started
        done = len(ledger.ids)
        ledger = _settled_ledger(output)
        if len(ledger.ids) != plan.items:
            raise CleanplateError(
                f"{plan.items} items went in and {len(ledger.ids)} came out; this is a fault of cleanplate: run cleanplate verify"
            )
        summary = _summary(output, plan, ledger, len(ledger.ids) - done, seconds, warnings)
        write_object(files.dataset, _dataset_json(settings, plan, ledger))
        return summary
    finally:
        lease.release()


def actor_stage(rows: ray.data.Dataset, stage: type, arguments: tuple[Any, ...], pools: Pools, least: int, most: int) -> ray.data.Dataset:
    """A stage in a pool of ``least`` to ``most`` actors, one whole block at a time."""
    return rows.map_batches(
        stage,
        fn_constructor_args=arguments,
        # a whole block: where actors have GPUs Ray Data wants a number, and joins smaller blocks until they have so many rows
        batch_size=pools.block_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=pools.num_cpus,
        num_gpus=pools.num_gpus or None,
    )


def _make_plan(files: JobFiles, source: str, found: Input) -> PlanInfo:
    log.info("reading %s", source)
    plan = write_plan(files.plan, found.rows(), source_input=source, base=found.base)
    log.info("the %s holds %d items", found.kind, plan.items)
    return plan


def _settled_ledger(output: str) -> Ledger:
    """The ledger of ``output``, without the second copies that a task of a dead run may have put."""
    ledger = read_ledger(output)
    return read_ledger(output) if settle(ledger) else ledger


def _forget_failures(output: str) -> None:
    """An item that is neither in the output nor in failures is simply not done: the next lines do it again."""
    ledger = read_ledger(output)
    store = storage.storage_for(output)
    store.delete(JobFiles(output).dataset)
    for uri in ledger.failure_parts:
        store.delete(uri)
    log.info("%d failed items are taken up again", ledger.failed)


def _run_on_ray(job: Job, run: RunSettings, files: JobFiles, lease: Lease, plan: PlanInfo, ledger: Ledger) -> dict[str, int]:
    with ray_cluster(run.address):
        pools = job.pools()
        pools = replace(pools, block_rows=max(1, min(run.block_rows, plan.items // (4 * pools.max_actors))))
        _keep_device(files, "gpu" if pools.num_gpus else "cpu")
        before = Tally(ledger.verdicts.copy(), ledger.errors.copy())
        monitor = start_monitor(before, run.max_failure_rate)
        rows = _rows_left(files, plan, pools, ray.put(ledger.ids) if len(ledger.ids) else None)
        sink = ShardSink(files.output, files.lease, lease.run, monitor, run.shard_mb)
        with ProgressDisplay(monitor, before, plan.items):
            try:
                # no name for the dataset: whoever holds the error would hold this frame, and with it the actors
                job.stages(rows, plan, pools, monitor).write_datasink(sink, ray_remote_args={"num_cpus": WRITING_CPUS})
            except Exception as error:
                raise explained(error, monitor) from error
        tally: Tally = ray.get(monitor.progress.remote())[0]
        return dict(tally.warnings)


def _rows_left(files: JobFiles, plan: PlanInfo, pools: Pools, done: Any) -> ray.data.Dataset:
    """The rows of the plan that are not done yet, in blocks small enough that a short job keeps every actor busy."""
    set_up_ray_data()
    names = ray.data.from_arrow([pa.table({"file": [name]}) for name in plan.files])
    rows = names.map_batches(
        PlanReader(files.plan, done).__call__, batch_size=1, batch_format="pyarrow", num_cpus=TASK_CPUS, udf_modifying_row_count=True
    )
    return rows.repartition(target_num_rows_per_block=pools.block_rows)


def set_up_ray_data() -> None:
    """What all jobs want of Ray Data: no order, no errors passed over, no waiting for ever."""
    # the actors of an earlier job of this process go with the last reference to them
    gc.collect()
    context = DataContext.get_current()
    context.execution_options.preserve_order = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    context.max_errored_blocks = 0
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    context.enable_progress_bars = False


def _keep_device(files: JobFiles, device: str) -> None:
    """A job ends on the kind of device that it began on: the other kind gives other bytes, and ``--dtype auto`` another number format.

    It is known only when the cluster is, after the settings have been admitted.
    """
    job = read_object(files.job) or {}
    begun = job.setdefault("device", device)
    if begun != device:
        raise UsageError(
            f"the job in {files.output} was begun on {begun.upper()}s, and its actors would now run on {device.upper()}s with other bytes "
            f"as results: use --num-gpus {'1' if begun == 'gpu' else '0'} with a cluster that has them, or another --output"
        )
    write_object(files.job, job)


def explained(error: Exception, monitor: Any) -> CleanplateError:
    """The CleanplateError among the causes of what Ray raised; else one that says where to look.

    The frames of ``error`` are let go: as long as they live, actors of the job that failed live, too, and the next one in this process may
    wait for their CPUs for ever.
    """
    log.debug("Ray's error", exc_info=error)
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    seen = error
    while seen is not None:
        for candidate in (seen, getattr(seen, "cause", None)):
            if isinstance(candidate, CleanplateError):
                return candidate
        seen = seen.__cause__ or getattr(seen, "cause", None)
    try:
        _, reason = ray.get(monitor.progress.remote(), timeout=5)
    except ray.exceptions.RayError:
        reason = None
    if reason:
        return TooManyFailures(reason)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return CleanplateError(
        f"the job stopped: {type(error).__name__}: {lines[-1] if lines else ''}; what is written stays, run the same command again"
    )


def _summary(
    output: str, plan: PlanInfo, ledger: Ledger, processed: int, seconds: float, warnings: dict[str, int]
) -> dict[str, Any]:
    verdicts = ledger.verdicts
    return {
        "in": plan.items,
        "out": ledger.out,
        "accepted": verdicts["accepted"],
        "uncertain": verdicts["uncertain"],
        "rejected": verdicts["rejected"],
        "unscored": verdicts["none"],
        "failed": ledger.failed,
        "failures": dict(ledger.errors.most_common()),
        "warnings": warnings,
        "processed": processed,
        "seconds": round(seconds, 2),
        "images_per_second": round(processed / seconds, 3) if seconds else None,
        "output": output,
        "already_finished": processed == 0,
    }


def _dataset_json(settings: dict[str, Any], plan: PlanInfo, ledger: Ledger) -> dict[str, Any]:
    versions = {
        name: importlib.import_module(name).__version__
        for name in ("torch", "diffusers", "cv2", "PIL", "pyarrow", "ray")
        if importlib.util.find_spec(name)
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "counts": {
            "in": plan.items,
            "out": ledger.out,
            "failed": ledger.failed,
            **{f"verdict_{name}": count for name, count in sorted(ledger.verdicts.items())},
        },
        "failures": dict(sorted(ledger.errors.items())),
        "configuration": settings,
        "versions": versions,
        "parts": len(ledger.parts),
    }


def print_summary(command: str, summary: dict[str, Any], *, as_json: bool) -> None:
    """The summary of ``run_job`` on standard output, as one JSON object or as a table."""
    if as_json:
        print(json.dumps(summary))
    else:
        print_table("nothing to do: the job is finished" if summary["already_finished"] else command, table_rows(summary))


def table_rows(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary as the rows of a table for people."""
    rows: dict[str, Any] = {
        name: summary[name]
        for name in ("in", "accepted", "uncertain", "rejected", "unscored", "failed")
        if summary[name] or name != "unscored"
    }
    rows.update({f"  failed: {reason}": count for reason, count in summary["failures"].items()})
    rows.update({f"  warned: {reason}": count for reason, count in summary["warnings"].items()})
    rows["in = out + failed"] = f"{summary['in']:,} = {summary['out']:,} + {summary['failed']:,}"
    if summary["images_per_second"]:
        rows["images per second"] = (
            f"{summary['images_per_second']:.2f} ({summary['processed']:,} in {summary['seconds']:.1f} s, start-up included)"
        )
    rows["output"] = summary["output"]
    return rows
