"""A choice that leaves the pictures where they are: one Parquet manifest of whole URIs, put in one piece, and the failures beside it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from core import storage
from core.lease import Lease
from core.ledger import FAILURES, part_name, write_shard
from core.plan import PlanRow
from core.readers import MANIFEST_COLUMNS
from core.record import FAILURE_SCHEMA, SCHEMA_VERSION
from jobs.job_state import JobFiles, admit, read_object, write_object
from jobs.runner import RunSettings

MANIFEST: Final = "manifest.parquet"
MANIFEST_SCHEMA: Final = pa.schema([(name, pa.string()) for name in MANIFEST_COLUMNS])
_ROWS: Final = 50_000


def write_chosen(settings: dict[str, Any], run: RunSettings, base: str, rows: Callable[[], Iterator[PlanRow]]) -> dict[str, Any]:
    """Write ``manifest.parquet`` (an input of every job) of the rows that have no error, and those that have as failures.

    Args:
        settings: what decides the result; a run goes on only where these are the same.
        base: folder that the rows' names are relative to.
        rows: called where the manifest is not there yet.

    Returns:
        The summary, with the names of ``jobs.runner.run_job``.

    Raises:
        UsageError: the output belongs to another job.
    """
    output = storage.normalize_uri(run.output)
    files = JobFiles(output)
    started = time.monotonic()
    lease = Lease.acquire(files.lease)
    try:
        going_on = admit(files, settings, overwrite=run.overwrite)
        before = read_object(files.dataset) if going_on and not run.retry_failed else None
        if before is None:
            write_object(files.job, {"settings": settings})
            before = {"schema_version": SCHEMA_VERSION, "configuration": settings, **_write(output, base, rows())}
            write_object(files.dataset, before)
            processed = before["counts"]["in"]
        else:
            processed = 0
    finally:
        lease.release()
    counts = before["counts"]
    seconds = time.monotonic() - started
    return {
        **{name: counts[name] for name in ("in", "out")},
        **dict.fromkeys(("accepted", "uncertain", "rejected"), 0),
        "unscored": counts["out"],
        "failed": counts["failed"],
        "failures": before["failures"],
        "warnings": {},
        "processed": processed,
        "seconds": round(seconds, 2),
        "images_per_second": round(processed / seconds, 3) if processed else None,
        "output": storage.join(output, MANIFEST),
        "already_finished": processed == 0,
    }


def _write(output: str, base: str, rows: Iterator[PlanRow]) -> dict[str, Any]:
    failures: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    out = 0
    uri = storage.join(output, MANIFEST)
    with storage.storage_for(uri).create(uri) as file, pq.ParquetWriter(file, MANIFEST_SCHEMA, compression="zstd") as writer:
        for row in rows:
            if row.error:
                where = storage.resolve(base, row.source) if row.source else None
                failures.append({"id": row.id, "uri": where, "stage": "measure", "error": row.error, "message": row.message or ""})
                continue
            waiting.append({name: _whole(base, name, getattr(row, name)) for name in MANIFEST_COLUMNS})
            if len(waiting) == _ROWS:
                writer.write_table(pa.Table.from_pylist(waiting, schema=MANIFEST_SCHEMA))
                out, waiting = out + len(waiting), []
        writer.write_table(pa.Table.from_pylist(waiting, schema=MANIFEST_SCHEMA))
        out += len(waiting)
    part = storage.join(output, FAILURES, part_name(1, 0))
    if failures:
        write_shard(part, pa.Table.from_pylist(failures, schema=FAILURE_SCHEMA))
    else:
        storage.storage_for(part).delete(part)
    counts = {"in": out + len(failures), "out": out, "failed": len(failures)}
    return {"counts": counts, "failures": dict(sorted(Counter(row["error"] for row in failures).items()))}


def _whole(base: str, name: str, value: str | None) -> str | None:
    return value if value is None or name in ("id", "category", "origin") else storage.resolve(base, value)
