"""``cleanplate effects``: effect masks for a dataset of photos with and without their objects.

Actors fetch records, find what each object changes (``core.effects``) and fill in ``effect_mask``; the rest is ``jobs.runner``, as for
``clean``. A pair whose background moved or whose light changed becomes a failure row that says so. With ``--lift-cutouts`` each object is
also put in ``cutouts/``, with its effects, before its row is: a row without its cut-out cannot be.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import cv2
import pyarrow as pa
import ray

from core import storage
from core.composing.cast import LIFTED_FOLDER, encode_lifted
from core.effects.lifting import lift
from core.effects.region import EffectRegion, RegionSettings, effect_region
from core.errors import ItemError, StorageUnavailable
from core.fetch import Fetcher
from core.images import decode_photo, decode_picture
from core.masks import Mask, decode_mask, encode_mask, mask_box
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
            **({"lift_cutouts": True} if config.lift_cutouts else {}),
        }

    def pools(self) -> Pools:
        return plan_pools(self.config)

    def stages(self, rows: ray.data.Dataset, plan: PlanInfo, pools: Pools, monitor: Any) -> ray.data.Dataset:
        config = self.config
        cutouts = storage.join(storage.normalize_uri(config.output), LIFTED_FOLDER)
        if config.overwrite:
            store = storage.storage_for(cutouts)
            for entry in store.list(cutouts):
                store.delete(entry.uri)
        settings = RegionSettings(low=config.low, high=config.high)
        lifted_to = cutouts if config.lift_cutouts else None
        arguments = (settings, config.max_megapixels, plan.base, lifted_to, pools.threads, monitor)
        return actor_stage(rows, EffectsStage, arguments, pools, pools.min_actors, pools.max_actors)


def find_effects(record: dict[str, Any], settings: RegionSettings, max_megapixels: float) -> tuple[EffectRegion, Mask]:
    """What the object of a record changes, and its mask.

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
    return effect_region(photo.pixels, plate.pixels, mask.pixels, settings), mask


def cutout_name(item_id: str) -> str:
    """The file name of an item's cut-out: what of the id any store takes, and a digest of all of it."""
    words = re.sub(r"[^\w-]+", "_", item_id, flags=re.ASCII).strip("_")[:80]
    digest = hashlib.blake2b(item_id.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return f"{words}-{digest}.png" if words else f"{digest}.png"


class EffectsStage:
    """An actor of the pool: rows of the plan in, their records with effect masks out."""

    def __init__(
        self, settings: RegionSettings, max_megapixels: float, base: str, lifted_to: str | None, threads: int, monitor: Any
    ) -> None:
        cv2.setNumThreads(1)
        self._settings, self._max_megapixels, self._threads, self._lifted_to = settings, max_megapixels, threads, lifted_to
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
            found, mask = find_effects(record, self._settings, self._max_megapixels)
            warnings = () if self._lifted_to is None else self._lift(record, found, mask)
            record["effect_mask"] = image_value(encode_mask(found.whole))
            return Outcome(row["id"], record=record, warnings=warnings)
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return failure(row["id"], self._fetcher.uri(row), error, stage)

    def _lift(self, record: dict[str, Any], found: EffectRegion, mask: Mask) -> tuple[str, ...]:
        """Put the cut-out of an item; the reason why there is none, for the summary, where the photo's frame cuts something off."""
        height, width = found.whole.shape
        x0, y0, x1, y1 = mask_box(found.whole)
        if min(x0, y0) == 0 or x1 == width or y1 == height:
            return ("cutout_touches_frame",)
        colours, alpha = lift(found).cutout()
        how = {name: record[name] for name in ("id", "category", "origin")}
        uri = storage.join(str(self._lifted_to), cutout_name(record["id"]))
        storage.storage_for(uri).write(uri, encode_lifted(colours, alpha, mask.pixels, how))
        return ()
