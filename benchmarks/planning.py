"""What `cleanplate plan` rests on: what a core does with pictures, and whether the simulation of a cluster agrees with jobs that ran.

    python -m benchmarks.planning codecs --record benchmarks/records/DATE-planning/codecs.json
    python -m benchmarks.planning check --record benchmarks/records/DATE-planning/check.json

`codecs` times decoding, encoding and the erasers that need no GPU on the shipped samples, in CPU time of one thread, medians. `check` runs
`cleanplate clean` on a Ray of this machine with an eraser that sleeps for a known time an image, as a device keeps it waiting, with one
and two actors and while actors are killed, and simulates the same. Start-up is taken apart by the slope between a quarter of the images and
all of them; how long a new actor needs is the time of a new process that imports and loads the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import psutil
import ray
import torch

from benchmarks.overhead import SAMPLES, collection
from core.crops import Crop, CropRule, make_crop
from core.eraser import Eraser, EraserSettings, load_eraser
from core.images import Photo, decode_photo, encode_image
from core.masks import decode_mask, encode_mask
from core.planning.demand import Demand
from core.planning.estimate import ClusterShape
from core.planning.simulation import Conditions, simulate
from core.scoring import load_scorer, score_results
from jobs.clean import clean
from jobs.config import CleanConfig

ACTOR: Final = "MapWorker(MapBatches(EraseStage))"


class Timed(Eraser):
    """Keeps the caller waiting for ``steps`` milliseconds an image, as a device does, and changes nothing."""

    batch_size = 4

    def __init__(self, settings: EraserSettings) -> None:
        self.name, self.fingerprint = "timed", "1"
        self.rule = CropRule(size=256, context=1.5, feather_px=2)
        self._seconds = (settings.steps or 0) / 1000

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:  # noqa: ARG002 - there is no noise
        time.sleep(self._seconds * len(crops))
        return [crop.pixels for crop in crops]


def codecs(repeats: int) -> dict[str, Any]:
    """Milliseconds of one core a megapixel, bytes a pixel, and seconds an image of the erasers that need no GPU."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    names = sorted(path.stem for path in (SAMPLES / "source").iterdir())
    pairs = [((SAMPLES / "source" / f"{name}.jpg").read_bytes(), (SAMPLES / "mask" / f"{name}.png").read_bytes()) for name in names]
    photos = [decode_photo(source) for source, _ in pairs]
    masks = [decode_mask(mask, (photo.width, photo.height)) for (_, mask), photo in zip(pairs, photos, strict=True)]
    pixels = sum(photo.width * photo.height for photo in photos)

    def cost(work: Callable[[], Any]) -> float:
        """Milliseconds a megapixel of this thread's CPU time, which others on the machine do not lengthen as much."""
        work()
        times = []
        for _ in range(repeats):
            started = time.thread_time()
            work()
            times.append(time.thread_time() - started)
        return round(statistics.median(times) * 1000 / (pixels / 1e6), 1)

    def mask_work() -> None:
        for (_, mask), photo in zip(pairs, photos, strict=True):
            encode_mask(decode_mask(mask, (photo.width, photo.height)).pixels)

    sizes: dict[Literal["png", "webp"], float] = {}
    milliseconds = {"decode a JPEG photo": cost(lambda: [decode_photo(source) for source, _ in pairs]), "mask": cost(mask_work)}
    formats: tuple[Literal["png", "webp"], ...] = ("png", "webp")
    for format in formats:
        milliseconds[f"encode {format}"] = cost(partial(_encode_all, photos, format))
        sizes[format] = round(sum(_encode_all(photos, format)) / pixels, 2)
    erasers = {}
    for name in ("opencv", "tiny"):
        settings = EraserSettings(device="cpu")
        eraser = load_eraser(name, settings)
        scorer = load_scorer("tiny", device="cpu") if name == "tiny" else None
        crops = [make_crop(photo.pixels, mask.pixels, eraser.rule) for photo, mask in zip(photos, masks, strict=True)]

        def erase(eraser: Eraser = eraser, scorer: Any = scorer, crops: list[Crop] = crops) -> None:
            for crop, photo, mask in zip(crops, photos, masks, strict=True):
                eraser.fill([crop], [0])
                if scorer is not None:
                    score_results(scorer, photo.pixels, mask.pixels, [photo.pixels])

        erasers[name] = round(cost(erase) * (pixels / 1e6) / 1000 / len(photos), 3)
    return {
        "milliseconds of a core a megapixel": milliseconds,
        "bytes a pixel": {
            "a JPEG photo": round(sum(len(source) for source, _ in pairs) / pixels, 2),
            "a mask": round(sum(len(encode_mask(mask.pixels)) for mask in masks) / pixels, 3),
            **{f"erased, {name}": size for name, size in sizes.items()},
        },
        "seconds of a core an image": erasers,
        "pictures": len(photos),
        "side of the pictures": sorted({max(photo.width, photo.height) for photo in photos}),
        "repeats": repeats,
    }


def _encode_all(photos: Sequence[Photo], format: Literal["png", "webp"]) -> list[int]:
    return [len(encode_image(photo.pixels, format=format)) for photo in photos]


def actor_start_seconds() -> float:
    """Seconds of a new process until it has what an actor needs; the median of three."""
    code = "import ray, jobs.stages; from core.eraser import *; load_eraser('benchmarks.planning:Timed', EraserSettings(device='cpu'))"
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(SAMPLES.parent.parent)})
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def job_seconds(folder: Path, output: Path, actors: int, milliseconds: int, kill_every: float | None) -> tuple[float, int]:
    """(seconds of one job, actors that were killed meanwhile)."""
    stop = threading.Event()
    killed: list[int] = []
    killer = threading.Thread(target=_kill_actors, args=(stop, kill_every, killed), daemon=True)
    started = time.perf_counter()
    if kill_every:
        killer.start()
    try:
        summary = clean(
            CleanConfig(
                input=str(folder),
                output=str(output),
                model="benchmarks.planning:Timed",
                discriminator="none",
                steps=milliseconds,
                min_actors=actors,
                max_actors=actors,
                num_cpus=0.5,
                origin="planning",
                max_failure_rate=1.0,
                block_rows=16,
                shard_mb=0.0,
            )
        )
    finally:
        stop.set()
    seconds = time.perf_counter() - started
    # an item at which two processes were killed is set aside, as it should be
    if summary["in"] != summary["out"] + summary["failures"].get("crashed", 0):
        raise RuntimeError(f"{summary['in']} images went in, {summary['out']} came out: {summary['failures']}")
    return seconds, len(killed)


def _kill_actors(stop: threading.Event, every: float | None, killed: list[int]) -> None:
    """Kills an actor of this process's own Ray now and then; waits are exponential, as in the simulation."""
    choose = random.Random(0)
    while not stop.wait(choose.expovariate(1 / (every or 1.0))):
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if ACTOR in " ".join(process.cmdline()):
                    found.append(process.pid)
            except psutil.Error:
                continue
        if found:
            pid = choose.choice(found)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)


def check(images: int, milliseconds: int, pairs: int, kill_every: float, actor_start: float) -> list[dict[str, Any]]:
    """Measured and simulated seconds of the same jobs; each is the slope between a quarter of the images and all."""
    few = images // 4
    rows = []
    demand = Demand(milliseconds / 1000, 0.02, 1.0, 1.0)
    with tempfile.TemporaryDirectory(prefix="cleanplate-planning-") as scratch:
        small, large = collection(Path(scratch, "small"), few), collection(Path(scratch, "large"), images)
        job_seconds(small, Path(scratch, "warm"), 2, milliseconds, None)
        for number, (actors, kills) in enumerate([(1, None), (2, None), (2, kill_every)] * pairs):
            first, _ = job_seconds(small, Path(scratch, f"s{number}"), actors, milliseconds, None)
            second, killed = job_seconds(large, Path(scratch, f"l{number}"), actors, milliseconds, kills)
            shape = ClusterShape(nodes=1, gpus=actors, cores=os.cpu_count() or 1, node_gbps=1e6)
            rate = 3600 * killed / second if kills else 0.0
            conditions = Conditions(actor_losses_per_hour=rate, actor_start_seconds=actor_start)
            whole = [simulate(images, demand, shape, replace(conditions, seed=seed)) for seed in range(20)]
            quarter = simulate(few, demand, shape, Conditions())
            simulated = statistics.mean(run.seconds for run in whole) - quarter.seconds
            rows.append(
                {
                    "actors": actors,
                    "killed": killed,
                    "killed in the simulation": statistics.mean(run.actor_losses for run in whole),
                    "images": images - few,
                    "measured, s": round(second - first, 2),
                    "simulated, s": round(simulated, 2),
                    "ratio": round((second - first) / simulated, 3),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["codecs", "check"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--milliseconds", type=int, default=100, help="of the device, an image")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--kill-every", type=float, default=8.0, help="mean seconds between kills of an actor")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    result: dict[str, Any] = {"cores": os.cpu_count(), "load before": os.getloadavg()[0]}
    if options.what == "codecs":
        result |= codecs(options.repeats)
    else:
        actor_start = actor_start_seconds()
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, address="local")
        try:
            rows = check(options.images, options.milliseconds, options.pairs, options.kill_every, actor_start)
        finally:
            ray.shutdown()
        result |= {"milliseconds": options.milliseconds, "actor start, s": round(actor_start, 2), "rows": rows}
    result["load after"] = os.getloadavg()[0]
    text = json.dumps(result, indent=1)
    print(text)
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(text + "\n")


if __name__ == "__main__":
    main()
