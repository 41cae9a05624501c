"""The feed on Ray Data: tasks anywhere in the cluster read, decode and augment windows of steps, which stream to the worker in order.

Every worker has a stream of its own, which begins at the step that it goes on from: Ray's checkpoints know nothing of the position in the
data, and here the position is the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext

from training.feed import FeedSettings, Share, ShareMaker
from training.index import TrainingIndex
from training.order import Bucket, TrainingOrder, worker_lanes

_SHARE_SCHEMA: Final = pa.schema(
    [
        pa.field("step", pa.int64()),
        pa.field("epoch", pa.int64()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("problems", pa.list_(pa.string())),
        *(pa.field(name, pa.large_binary()) for name in ("source", "target", "mask", "effect_mask", "has_effect", "label", "seeds")),
        *(pa.field(name, pa.large_binary()) for name in ("target_moments", "source_moments")),
        pa.field("moments_shape", pa.list_(pa.int64())),
        pa.field("moments_dtype", pa.string()),
    ]
)
_MAKERS: dict[str, ShareMaker] = {}


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """What the tasks of a feed need: the items (in Ray's object store, once), and how they become batches."""

    index: Any  # ray.ObjectRef of a TrainingIndex, or one itself
    buckets: tuple[Bucket, ...]
    batch_size: int
    seed: int
    settings: FeedSettings

    def maker(self) -> ShareMaker:
        """The maker of shares, one a process."""
        key = self.index.hex() if isinstance(self.index, ray.ObjectRef) else self.index.fingerprint
        key = f"{key} {self.buckets} {self.batch_size} {self.seed} {self.settings}"
        if key not in _MAKERS:
            index: TrainingIndex = ray.get(self.index) if isinstance(self.index, ray.ObjectRef) else self.index
            _MAKERS.clear()
            _MAKERS[key] = ShareMaker(TrainingOrder(index, self.buckets, self.batch_size, self.seed), self.settings)
        return _MAKERS[key]


class RayFeed:
    """A feed of Ray Data tasks.

    Args:
        plan: what they do.
        task_cpus: that a task reserves.
        tasks: how many of this worker run at a time.
    """

    def __init__(self, plan: FeedPlan, task_cpus: float = 1.0, tasks: int = 4) -> None:
        self.plan, self.task_cpus, self.tasks = plan, task_cpus, tasks

    def shares(self, start: int, stop: int, rank: int, world_size: int) -> Iterator[Share]:
        """As ``Feed.shares``."""
        if start >= stop:
            return
        order = self.plan.maker().order
        lanes = worker_lanes(order.batch_size, rank, world_size)
        windows = [{"start": window.start, "stop": window.stop} for window in order.windows(start, stop)]
        plan = self.plan

        def work(batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
            maker = plan.maker()
            for start_step, stop_step in zip(batch["start"].tolist(), batch["stop"].tolist(), strict=True):
                steps = range(start_step, stop_step)
                records = maker.read(steps, lanes)
                for step in steps:
                    yield pa.Table.from_pylist([maker.share(step, lanes, records).row()], _SHARE_SCHEMA)

        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        rows = ray.data.from_items(windows, override_num_blocks=len(windows)).map_batches(
            work, batch_size=None, batch_format="numpy", zero_copy_batch=True, num_cpus=self.task_cpus, concurrency=self.tasks
        )
        for batch in rows.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2):
            yield Share.from_row(_row(batch))


def _row(batch: pa.Table) -> dict[str, Any]:
    """The one row of a table, its pictures as views of Arrow's memory."""
    row: dict[str, Any] = {}
    for name in batch.column_names:
        value = batch.column(name).chunk(0)[0] if batch.column(name).num_chunks == 1 else batch.column(name)[0]
        kind = value.type
        bytes_of = pa.types.is_large_binary(kind) or pa.types.is_binary(kind)
        row[name] = value.as_buffer() if bytes_of and value.is_valid else value.as_py()
    return row
