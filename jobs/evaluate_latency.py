"""Seconds an image of the eraser that made a dataset: its model and settings, taken from what ``clean`` left there, on items of the input.

One image at a time, after one that warms up, in this process; from decoded photo and mask to the finished picture, so cropping,
autoencoder, fusion and pasting are in it, and reading, decoding and scoring are not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from core.device import pick_device
from core.eraser import Eraser, EraserSettings, is_network, load_eraser
from core.errors import UsageError
from core.fetch import Fetcher
from core.images import decode_photo
from core.masks import decode_mask
from core.plan import PlanRow
from core.record import item_seed
from jobs.job_state import JobFiles, read_object

_PREFIX: Final = "eraser_"


def eraser_of(dataset: str, device: str) -> tuple[Eraser, dict[str, Any]]:
    """The eraser as the job that wrote ``dataset`` had it, and its settings in force.

    Raises:
        UsageError: nothing says which eraser it was, it is not at hand, or its weights are others now.
    """
    files = JobFiles(dataset)
    written = (read_object(files.job) or {}).get("settings") or (read_object(files.dataset) or {}).get("configuration") or {}
    found = {name.removeprefix(_PREFIX): value for name, value in written.items() if name.startswith(_PREFIX)}
    if "model" not in found:
        raise UsageError(f"nothing in {dataset} says which eraser made it; it is measured where cleanplate clean wrote the input")
    settings = EraserSettings(
        steps=found.get("steps"),
        guidance_scale=found.get("guidance_scale"),
        context=found.get("context"),
        dilate_px=found.get("mask_dilate_px", found.get("dilate_px")),
        dtype=found.get("dtype") or "auto",
        lcm_lora=found.get("lcm_lora"),
        fusion=found.get("fusion"),
        device=device,
    )
    eraser = load_eraser(found["model"], settings)
    if eraser.fingerprint != found.get("fingerprint"):
        raise UsageError(f"{found['model']} has other weights now than when it erased {dataset}")
    return eraser, found


def measure_latency(dataset: str, rows: Sequence[PlanRow], device: str, max_megapixels: float) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each item by id, and what was measured: ``model``, ``device``, ``steps`` and ``side`` (pixels, None = the photo's own).

    Raises:
        UsageError: as ``eraser_of``; or there are no rows.
        ItemError: a photo cannot be read.
    """
    if not rows:
        raise UsageError("no item of the input could be evaluated")
    eraser, settings = eraser_of(dataset, device)
    fetcher, seconds = Fetcher(dataset), {}
    for number, row in enumerate((rows[0], *rows)):
        item = fetcher.fetch(asdict(row))
        photo = decode_photo(item.source, max_megapixels=max_megapixels)
        mask = decode_mask(item.mask, (photo.width, photo.height), max_megapixels=max_megapixels).pixels
        started = time.perf_counter()
        eraser.erase(photo.pixels, mask, item_seed(row.id, 0))
        if number:
            seconds[row.id] = time.perf_counter() - started
    where = str(pick_device(device)) if is_network(settings["model"]) else "cpu"
    told = {"model": settings["model"], "device": where, "steps": settings.get("steps"), "side": eraser.rule.size}
    return seconds, told
