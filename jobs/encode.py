"""``cleanplate encode``: a dataset's pictures are encoded once, so that trainings need not do it at every step.

Actors fetch records, take the fixed view of each, and encode it; the rest is ``jobs.runner``, as for ``clean``. What a row of the output
holds is in ``core.latent_cache``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import pyarrow as pa
import ray

from core.conditioning import ConditioningKind
from core.crops import take
from core.errors import ItemError, StorageUnavailable
from core.fetch import Fetcher
from core.images import Pixels, decode_picture, encode_image
from core.latent_cache import LATENTS_COLUMN, StoredType
from core.latent_encoding import encode_pictures, load_vae, model_vae_fingerprint, vae_fingerprint
from core.masks import encode_mask
from core.model_card import OBJECTCLEAR, ModelCard, read_card
from core.model_files import find_model
from core.parallel import map_ahead
from core.plan import PlanInfo
from core.record import SCHEMA_VERSION, image_value
from core.workload import Outcome, failure
from jobs.cluster import Pools, plan_pools
from jobs.data_config import EncodeConfig
from jobs.runner import RunSettings, actor_stage, print_summary, run_job
from jobs.stages import Guarded, in_chunks
from training.pair_augmentation import Window, centroid, mask_view, picture_view
from training.triplets import training_pair

LOOKAHEAD: Final = 4
"""Views that are made ahead of the network, above one a thread."""


def run(config: EncodeConfig) -> int:
    """Run the job and print its summary."""
    print_summary("encode", encode(config), as_json=config.json)
    return 0


def encode(config: EncodeConfig) -> dict[str, Any]:
    """Run, or go on with, the job on ``config.output``; returns the summary. Raises CleanplateError as ``jobs.runner.run_job``."""
    return run_job(EncodeJob(config), RunSettings.of(config))


@dataclass(frozen=True, slots=True)
class EncodeSettings:
    """All that the actors need to know."""

    model: str
    conditioning: ConditioningKind
    size: int
    dtype: StoredType
    max_megapixels: float
    device: str
    base: str
    threads: int


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """The encoding job for ``jobs.runner``."""

    config: EncodeConfig

    def settings(self, source: str) -> dict[str, Any]:
        config, card = self.config, _card(self.config.model)
        return {
            "job": "encode",
            "schema_version": SCHEMA_VERSION,
            "input": source,
            "origin": config.origin,
            "vae": model_vae_fingerprint(config.model),
            "conditioning": card.conditioning if config.conditioning == "auto" else config.conditioning,
            "size": config.size or card.size,
            "dtype": config.dtype,
            "max_megapixels": config.max_megapixels,
        }

    def pools(self) -> Pools:
        return plan_pools(self.config)

    def stages(self, rows: ray.data.Dataset, plan: PlanInfo, pools: Pools, monitor: Any) -> ray.data.Dataset:
        decided = self.settings(plan.input)
        settings = EncodeSettings(
            model=self.config.model,
            conditioning=decided["conditioning"],
            size=decided["size"],
            dtype=self.config.dtype,
            max_megapixels=self.config.max_megapixels,
            device="auto" if pools.num_gpus else "cpu",
            base=plan.base,
            threads=pools.threads,
        )
        return actor_stage(rows, EncodeStage, (settings, monitor), pools, pools.min_actors, pools.max_actors)


def _card(model: str) -> ModelCard:
    files = find_model(model)
    return read_card(files.root, OBJECTCLEAR if files.kind == "objectclear" else None)


def fixed_window(mask: Pixels, size: int) -> Window:
    """The largest square of a photo, with its centre as near to the mask's centroid as the photo allows.

    As with the trainer's random windows, a photo with a side below ``size`` is mirrored beyond its edges, and one whose square would show
    nothing but the object, or none of it, is seen whole.

    Args:
        mask: (H, W) uint8, 255 = remove, at least one pixel set.
        size: side of the view in pixels.

    Raises:
        UsageError: an empty mask.
    """
    height, width = mask.shape
    x, y = centroid(mask)
    side = max(min(height, width), min(size, max(height, width)))
    window = Window(_start(x, side, width), _start(y, side, height), side)
    seen = take(mask, *window)
    if seen.any() and not seen.all():
        return window
    whole = max(height, width)
    return Window(_start(x, whole, width), _start(y, whole, height), whole)


def _start(point: int, side: int, extent: int) -> int:
    return (extent - side) // 2 if side > extent else min(max(point - side // 2, 0), extent - side)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A record of the fixed view (all columns but the latents), with its pictures decoded."""

    record: dict[str, Any]
    pictures: dict[str, Pixels]
    mask: Pixels


def view_of_record(record: dict[str, Any], size: int, max_megapixels: float) -> View:
    """The square view of a record (``fixed_window``), ``size`` pixels a side, its pictures stored without loss.

    Raises:
        ItemError: a picture cannot be decoded, or there is neither target nor erasure.
    """
    if record.get("target") is None and record.get("erased") is None:
        raise ItemError("decode", "no_target", f"record {record['id']!r} has neither target nor erasure: there is nothing to train on")
    answers = [name for name in ("target", "erased") if record.get(name) is not None]
    pair = training_pair(record, answer="erased" if answers == ["erased"] else "target", max_megapixels=max_megapixels)
    whole: dict[str, Pixels] = {"source": pair.source, answers[0]: pair.target}
    if len(answers) == 2:
        whole["erased"] = _erased(record, pair.source.shape, whole["target"], max_megapixels)
    window, sides = fixed_window(pair.mask, size), (size, size)
    # pictures that are one stay one: they are encoded once
    views = {id(pixels): picture_view(pixels, window, sides) for pixels in {id(each): each for each in whole.values()}.values()}
    pictures = {name: views[id(pixels)] for name, pixels in whole.items()}
    mask = mask_view(pair.mask, window, sides)
    stored = {name: _stored(record[name], encode_image(pixels)) for name, pixels in pictures.items()}
    stored["mask"] = _stored(record["mask"], encode_mask(mask))
    if pair.effect_mask is not None:
        stored["effect_mask"] = _stored(record["effect_mask"], encode_mask(mask_view(pair.effect_mask, window, sides)))
    return View({**record, **stored, "width": size, "height": size}, pictures, mask)


def _erased(record: dict[str, Any], shape: tuple[int, ...], target: Pixels, max_megapixels: float) -> Pixels:
    if record["erased"]["bytes"] == record["target"]["bytes"]:
        return target
    erased = decode_picture(record["erased"]["bytes"], noun="erased", prefix="erased_", max_megapixels=max_megapixels).pixels
    if erased.shape != shape:
        raise ItemError(
            "decode",
            "erased_size_mismatch",
            f"the erased is {erased.shape[1]} x {erased.shape[0]} and the photo {shape[1]} x {shape[0]} pixels; an item needs one size",
        )
    return erased


def _stored(whole: dict[str, Any], view: bytes) -> dict[str, Any] | None:
    """The image value of a view, under the name of the whole picture."""
    return image_value(view, whole.get("path"))


class EncodeStage:
    """An actor of the pool: rows of the plan in, records of views with their latents out."""

    def __init__(self, settings: EncodeSettings, monitor: Any) -> None:
        from core.device import pick_device
        from core.memory import keep_freed_memory

        cv2.setNumThreads(1)
        device = pick_device(settings.device)
        if device.type == "cpu":
            import torch

            # the pool is the parallelism, and results do not depend on the number of cores
            torch.set_num_threads(1)
            keep_freed_memory()
        self._settings = settings
        self._vae = load_vae(settings.model, device)
        self._fingerprint = vae_fingerprint(self._vae)
        self._last: tuple[Pixels, np.ndarray] | None = None
        self._fetcher = Fetcher(settings.base)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="views")
        self._guarded = Guarded(monitor, "encode")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        yield from in_chunks(self._guarded.run(batch.to_pylist(), self._process))

    def _process(self, rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
        for found in map_ahead(self._pool, self._viewed, rows, self._settings.threads + LOOKAHEAD):
            yield found if isinstance(found, Outcome) else self._encoded(found)

    def _viewed(self, row: dict[str, Any]) -> View | Outcome:
        limit = self._settings.max_megapixels
        try:
            record = self._fetcher.fetch_record(row, limit, needs_erasure=False)
            return view_of_record(record, self._settings.size, limit)
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return failure(row["id"], self._fetcher.uri(row), error, "fetch")

    def _encoded(self, view: View) -> Outcome:
        settings, item_id = self._settings, view.record["id"]
        try:
            found = encode_pictures(
                self._vae,
                view.pictures,
                view.mask,
                settings.conditioning,
                fingerprint=self._fingerprint,
                dtype=settings.dtype,
                known=self._known(view),
            )
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return failure(item_id, (view.record["source"] or {}).get("path"), error, "encode")
        self._last = (view.pictures["source"], found.moments["source"])
        return Outcome(item_id, record={**view.record, LATENTS_COLUMN: found.value()})

    def _known(self, view: View) -> dict[str, np.ndarray]:
        """The source's moments where the item before has the same source: judged erasures of one photo stand side by side."""
        if self._last is None or not np.array_equal(self._last[0], view.pictures["source"]):
            return {}
        return {"source": self._last[1]}
