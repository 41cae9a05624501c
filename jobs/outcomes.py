"""How outcomes travel between the stages of a job: one table schema for records and failures, pictures as encoded bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from core.latent_cache import LATENTS_COLUMN, LATENTS_FIELD
from core.record import FAILURE_SCHEMA, RECORD_SCHEMA
from core.workload import Outcome
from jobs.monitor import Tally

_EXTRA: Final = [pa.field(name, pa.string()) for name in ("uri", "stage", "error", "message", "warnings")]
_CACHED_SCHEMA: Final = RECORD_SCHEMA.append(LATENTS_FIELD)
OUTCOME_SCHEMA: Final = pa.schema([*_CACHED_SCHEMA, *_EXTRA])


def to_table(outcomes: Iterable[Outcome]) -> pa.Table:
    """Outcomes as one table; a failure has ``error`` set and no pictures."""
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        rows.append({**(outcome.record or outcome.failure or {}), "warnings": ",".join(outcome.warnings) or None})
    return pa.Table.from_pylist(rows, schema=OUTCOME_SCHEMA)


def split(table: pa.Table) -> tuple[pa.Table, pa.Table, Tally]:
    """Records (RECORD_SCHEMA, and ``latents`` where a job made them), failures (FAILURE_SCHEMA), and their counts."""
    failed = pc.is_valid(table.column("error"))
    schema = _CACHED_SCHEMA if table.column(LATENTS_COLUMN).null_count < len(table) else RECORD_SCHEMA
    # filtering copies every picture, and most shards hold no failure
    records = (table.filter(pc.invert(failed)) if pc.any(failed).as_py() else table).select(schema.names)
    failures = table.filter(failed).select(FAILURE_SCHEMA.names) if pc.any(failed).as_py() else FAILURE_SCHEMA.empty_table()
    tally = Tally(
        Counter(verdict or "none" for verdict in records.column("verdict").to_pylist()),
        Counter(failures.column("error").to_pylist()),
        Counter(word for words in table.column("warnings").to_pylist() if words for word in words.split(",")),
    )
    return records.cast(schema), failures.cast(FAILURE_SCHEMA), tally
