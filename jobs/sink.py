"""The sink: each write task puts one shard of results, and one of failures where there are any, each an atomic object with its ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasink
from ray.data._internal.execution.interfaces import TaskContext
from ray.data.block import Block

from core import storage
from core.errors import CleanplateError
from core.lease import LeaseLost, current_run
from core.ledger import FAILURES, part_name, write_shard
from jobs.outcomes import OUTCOME_SCHEMA, split


class TooManyFailures(CleanplateError):
    """The share of failed items is above the limit."""


class ShardSink(Datasink[int]):
    """Writes outcomes as shards. A retried task writes the same names again; a task of a run that lost its lease writes nothing."""

    def __init__(self, output: str, lease: str, run: int, monitor: Any, shard_mb: float) -> None:
        self._output, self._lease, self._run, self._monitor = output, lease, run, monitor
        self._shard_bytes = int(shard_mb * 2**20)

    def get_name(self) -> str:
        return "Shards"

    @property
    def min_bytes_per_write(self) -> int | None:
        return self._shard_bytes or None

    def write(self, blocks: Iterable[Block], ctx: TaskContext) -> int:
        tables = [block for block in blocks if isinstance(block, pa.Table) and len(block)]
        if not tables:
            return 0
        records, failures, tally = split(pa.concat_tables([table.select(OUTCOME_SCHEMA.names).cast(OUTCOME_SCHEMA) for table in tables]))
        if current_run(self._lease) != self._run:
            raise LeaseLost(f"another job took {self._output} over; this one stops")
        name = part_name(self._run, ctx.task_idx)
        if len(failures):
            write_shard(storage.join(self._output, FAILURES, name), failures)
        if len(records):
            write_shard(storage.join(self._output, name), records)
        reason = ray.get(self._monitor.wrote.remote(ctx.task_idx, tally))
        if reason:
            raise TooManyFailures(reason)
        return tally.rows
