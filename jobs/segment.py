"""``cleanplate segment``: photos without masks become records with one object's mask each.

Actors fetch photos, find one object (``core.perception.objects``) and encode its mask; the rest is ``jobs.runner``, as for ``clean``.
A photo on which nothing is found, or nothing that keeps the rules, is a failure that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final

import cv2
import pyarrow as pa
import ray

from core import storage
from core.composing.collection import list_pictures
from core.curation.rules import parse_class_names
from core.errors import StorageUnavailable, UsageError
from core.fetch import Fetcher
from core.images import decode_photo, storable_source
from core.masks import encode_mask
from core.parallel import map_ahead
from core.perception.objects import SALIENT, ObjectFinder, ObjectRules
from core.perception.segmentation import GRABCUT, load_segmenter
from core.plan import PlanInfo, PlanRow
from core.readers import MANIFEST_SUFFIXES, Input, manifest_photos
from core.record import SCHEMA_VERSION, empty_record, image_value
from core.workload import Outcome, failure
from jobs.cluster import Pools, plan_pools
from jobs.runner import RunSettings, actor_stage, print_summary, run_job
from jobs.segment_config import SegmentConfig
from jobs.stages import Guarded, in_chunks

METHOD_VERSION: Final = 1
"""Goes up with every change of ``core.perception`` that changes masks."""


def run(config: SegmentConfig) -> int:
    """Run the job and print its summary."""
    print_summary("segment", segment(config), as_json=config.json)
    return 0


def segment(config: SegmentConfig) -> dict[str, Any]:
    """Run, or go on with, the job on ``config.output``; returns the summary.

    Raises:
        UsageError: there are no photos, or a model is missing.
        CleanplateError: as ``jobs.runner.run_job``.
    """
    return run_job(SegmentJob(config, tuple(parse_class_names(config.prompts))), RunSettings.of(config), open_photos(config))


def open_photos(config: SegmentConfig) -> Input:
    """Photos of a folder, whatever its folders are called, or of a manifest's column ``source``; masks that are there are not looked at.

    Raises:
        UsageError: there are none.
    """
    uri = storage.normalize_uri(config.input)
    origin = config.origin or PurePosixPath(uri).stem
    if uri.endswith(MANIFEST_SUFFIXES):
        return manifest_photos(uri, origin)
    listing = list_pictures(uri, "photos")
    return Input("photos", listing.base, lambda: (PlanRow(name, source=name, origin=origin) for name in listing.names))


@dataclass(frozen=True, slots=True)
class SegmentJob:
    """The job for ``jobs.runner``."""

    config: SegmentConfig
    words: tuple[str, ...]

    def settings(self, source: str) -> dict[str, Any]:
        config = self.config
        names = ("detector", "segmenter", "min_score", "min_area", "max_area", "min_side", "dtype", "origin", "max_megapixels")
        return {
            "job": "segment",
            "schema_version": SCHEMA_VERSION,
            "method_version": METHOD_VERSION,
            "input": source,
            "prompts": list(self.words),
            **{name: getattr(config, name) for name in names},
        }

    def pools(self) -> Pools:
        network = self.config.detector != SALIENT or self.config.segmenter != GRABCUT
        return plan_pools(self.config if network else replace(self.config, num_gpus=0.0))

    def stages(self, rows: ray.data.Dataset, plan: PlanInfo, pools: Pools, monitor: Any) -> ray.data.Dataset:
        arguments = (self.config, self.words, plan.base, pools.threads, bool(pools.num_gpus), monitor)
        return actor_stage(rows, SegmentStage, arguments, pools, pools.min_actors, pools.max_actors)


class SegmentStage:
    """An actor of the pool: rows of the plan in, records with masks out."""

    def __init__(self, config: SegmentConfig, words: tuple[str, ...], base: str, threads: int, on_gpu: bool, monitor: Any) -> None:
        cv2.setNumThreads(1)
        self._config, self._fetcher = config, Fetcher(base)
        self._finder = make_finder(config, words, config.device if on_gpu else "cpu")
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
        self._ahead = 2 * threads
        self._guarded = Guarded(monitor, "segment")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        yield from in_chunks(self._guarded.run(batch.to_pylist(), self._process))

    def _process(self, rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
        for row, found in map_ahead(self._pool, self._fetched, rows, self._ahead):
            yield found if isinstance(found, Outcome) else self._segmented(row, found)

    def _fetched(self, row: dict[str, Any]) -> tuple[dict[str, Any], bytes | Outcome]:
        try:
            return row, self._fetcher.fetch_photo(row)
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return row, failure(row["id"], self._fetcher.uri(row), error, "fetch")

    def _segmented(self, row: dict[str, Any], data: bytes) -> Outcome:
        try:
            photo = decode_photo(data, max_megapixels=self._config.max_megapixels)
            found = self._finder.find(photo.pixels)
        except Exception as error:  # noqa: BLE001 - as above
            return failure(row["id"], self._fetcher.uri(row), error, "segment")
        record = empty_record(
            id=row["id"],
            source=image_value(storable_source(data, photo), row["source"]),
            mask=image_value(encode_mask(found.mask)),
            category=found.label or row["category"],
            origin=row["origin"],
            width=photo.width,
            height=photo.height,
        )
        return Outcome(row["id"], record=record)


def make_finder(config: SegmentConfig, words: tuple[str, ...], device: str) -> ObjectFinder:
    """The finder that the settings name.

    Raises:
        UsageError: a model is missing, of another kind or broken.
    """
    rules = ObjectRules(
        min_area=config.min_area,
        max_area=config.max_area,
        min_side=config.min_side,
        min_score=0.0 if config.detector == SALIENT else config.min_score,
    )
    segmenter = load_segmenter(config.segmenter, device=device, dtype=config.dtype)
    if config.detector == SALIENT:
        return ObjectFinder(segmenter, rules)
    if not words:
        raise UsageError("--prompts names nothing; give names of things")
    from core.perception.box_detection import DetectionSettings, Detector

    dtype = "float32" if config.dtype == "auto" else config.dtype
    settings = DetectionSettings(box_threshold=config.min_score)
    return ObjectFinder(segmenter, rules, Detector(config.detector, settings=settings, device=device, dtype=dtype), words)
