"""``cleanplate effects``: effect masks for a dataset of photos with and without their objects.

Actors fetch records, find what each object changes (``core.effects``) and fill in ``effect_mask``; the rest is ``jobs.runner``, as for
``clean``. A pair whose background moved or whose light changed becomes a failure row that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import cv2
import pyarrow as pa
import ray

from core.effects.region import RegionSettings, effect_region
from core.errors import ItemError, StorageUnavailable
from core.fetch import Fetcher
from core.images import decode_photo, decode_picture
from core.masks import decode_mask, encode_mask
from core.parallel import map_ahead
from core.plan import PlanInfo
from core.record import SCHEMA_VERSION, image_value
from core.workload import Outcome, failure
from jobs.cluster import Pools, plan_pools
from jobs.data_config import EffectsConfig
from jobs.runner import RunSettings, actor_stage, print_summary, run_job
from jobs.stages import Guarded, in_chunks

METHOD_VERSION: Final = 1
"""Goes up with every change of ``core.effects`` that changes masks."""


def run(config: EffectsConfig) -> int:
    """Run the job and print its summary."""
    print_summary("effects", effects(config), as_json=config.json)
    return 0


def effects(config: EffectsConfig) -> dict[str, Any]:
    """Run, or go on with, the job on ``config.output``; returns the summary. Raises CleanplateError as ``jobs.runner.run_job``."""
    return run_job(EffectsJob(config), RunSettings.of(config))


@dataclass(frozen=True, slots=True)
class EffectsJob:
    """The job for ``jobs.runner``."""

    config: EffectsConfig

    def settings(self, source: str) -> dict[str, Any]:
        config = self.config
        return {
            "job": "effects",
            "schema_version": SCHEMA_VERSION,
            "method_version": METHOD_VERSION,
            "input": source,
            "origin": config.origin,
            "low": config.low,
            "high": config.high,
            "max_megapixels": config.max_megapixels,
        }

    def pools(self) -> Pools:
        return plan_pools(self.config)

    def stages(self, rows: ray.data.Dataset, plan: PlanInfo, pools: Pools, monitor: Any) -> ray.data.Dataset:
        config = self.config
        arguments = (RegionSettings(low=config.low, high=config.high), config.max_megapixels, plan.base, pools.threads, monitor)
        return actor_stage(rows, EffectsStage, arguments, pools, pools.min_actors, pools.max_actors)


def with_effect_mask(record: dict[str, Any], settings: RegionSettings, max_megapixels: float) -> dict[str, Any]:
    """The record with ``effect_mask`` filled; nothing else changes.

    Raises:
        ItemError: there is no target, a picture cannot be decoded, the two differ in size, or a code of ``effect_region``.
    """
    target = record.get("target")
    if target is None:
        raise ItemError(
            "decode", "no_target", f"record {record['id']!r} has no target; effects are found in a pair with and without the object"
        )
    photo = decode_photo(record["source"]["bytes"], max_megapixels=max_megapixels)
    plate = decode_picture(target["bytes"], noun="target", prefix="target_", max_megapixels=max_megapixels)
    if plate.pixels.shape != photo.pixels.shape:
        raise ItemError(
            "decode",
            "target_size_mismatch",
            f"the target is {plate.width} x {plate.height} and the photo {photo.width} x {photo.height} pixels; a pair needs one size",
        )
    mask = decode_mask(record["mask"]["bytes"], (photo.width, photo.height), max_megapixels=max_megapixels)
    found = effect_region(photo.pixels, plate.pixels, mask.pixels, settings)
    return {**record, "effect_mask": image_value(encode_mask(found.whole))}


class EffectsStage:
    """An actor of the pool: rows of the plan in, their records with effect masks out."""

    def __init__(self, settings: RegionSettings, max_megapixels: float, base: str, threads: int, monitor: Any) -> None:
        cv2.setNumThreads(1)
        self._settings, self._max_megapixels, self._threads = settings, max_megapixels, threads
        self._fetcher = Fetcher(base)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="effects")
        self._guarded = Guarded(monitor, "effects")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        yield from in_chunks(self._guarded.run(batch.to_pylist(), self._process))

    def _process(self, rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
        yield from map_ahead(self._pool, self._outcome, rows, self._threads)

    def _outcome(self, row: dict[str, Any]) -> Outcome:
        stage = "fetch"
        try:
            record = self._fetcher.fetch_record(row, self._max_megapixels, needs_erasure=False)
            stage = "effects"
            return Outcome(row["id"], record=with_effect_mask(record, self._settings, self._max_megapixels))
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return failure(row["id"], self._fetcher.uri(row), error, stage)
