"""Images per second of the jobs that build data: ingest, effects, segment, compose, curate, score, stats; one collection, one run.

    python -m benchmarks.data_jobs --images 400

The collection is drawn here: things on textured ground, 512 x 512 JPEG with masks and clean plates, in the layout of RORem. Start-up is
taken apart within each run: every job puts small shards as it goes, and only the time from the first to the last of them counts, with the
images in all but the first. ``curate`` goes over its input twice; what it takes for both is added up.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from core.composing.encoding import encode_picture
from core.images import Pixels, encode_image
from core.masks import encode_mask
from core.statistics import gather
from jobs.cluster import ray_cluster
from jobs.compose import compose
from jobs.config import ScoreConfig
from jobs.curate import curate
from jobs.curate_config import CurateConfig
from jobs.data_config import ComposeConfig, EffectsConfig, IngestConfig
from jobs.effects import effects
from jobs.ingest import ingest
from jobs.score import score
from jobs.segment import segment
from jobs.segment_config import SegmentConfig

SIDE = 512
Summary = dict[str, Any]


def drawn(number: int) -> tuple[Pixels, Pixels, Pixels]:
    """Photo with a shaded thing and its shadow, its mask, and the photo without: (512, 512, 3), (512, 512), (512, 512, 3), uint8."""
    rng = np.random.default_rng(number)
    texture = sum(cv2.GaussianBlur(rng.normal(0, 8 * sigma, (SIDE, SIDE, 3)), (0, 0), sigma) for sigma in (1.0, 3.0, 9.0))
    plate = rng.uniform((80, 80, 60), (140, 140, 80)) + texture
    # a sky, so that what is below is ground
    plate = np.clip(plate + np.where(np.arange(SIDE)[:, None, None] < 0.4 * SIDE, (70, 80, 110), 0), 0, 255)
    x, y = (int(value) for value in rng.integers(120, 340, 2))
    mask, shade = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.float32)
    cv2.ellipse(mask, (x, y), (55, 80), float(rng.uniform(0, 180)), 0, 360, 255, -1)
    cv2.ellipse(shade, (x + 70, y + 70), (90, 25), 20, 0, 360, 0.5, -1)
    photo = plate * (1 - cv2.GaussianBlur(shade, (0, 0), 4)[..., None])
    own = rng.uniform(20, 90, 3) + np.linspace(60, 0, SIDE)[None, :, None] + rng.normal(0, 4, (SIDE, SIDE, 3))
    photo[mask > 0] = np.broadcast_to(own, photo.shape)[mask > 0]
    return np.clip(photo, 0, 255).astype(np.uint8), mask, plate.astype(np.uint8)


def collection(root: Path, count: int) -> None:
    """``count`` triplets with their meta.json; source/, mask/, target/, erased/ and cutouts/ are the inputs of the other jobs, too."""
    meta = []
    for name in ("source", "mask", "target", "erased", "cutouts"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        photo, mask, plate = drawn(number)
        name = f"{number:06d}"
        (root / "source" / f"{name}.jpg").write_bytes(encode_picture(photo, "jpeg"))
        (root / "target" / f"{name}.jpg").write_bytes(encode_picture(plate, "jpeg"))
        shutil.copy(root / "target" / f"{name}.jpg", root / "erased" / f"{name}.jpg")
        (root / "mask" / f"{name}.png").write_bytes(encode_mask(mask))
        if number < 12:
            (root / "cutouts" / f"{name}.png").write_bytes(encode_image(photo, mask))
        meta.append({"source": f"source/{name}.jpg", "mask": f"mask/{name}.png", "GT": f"target/{name}.jpg"})
    (root / "meta.json").write_text(json.dumps(meta))


def rate(files: list[Path]) -> float:
    """Images per second by when Parquet files with one row an image were put; more than one file is needed."""
    timed = sorted((path.stat().st_mtime_ns / 1e9, pq.read_metadata(path).num_rows) for path in files)
    if len(timed) < 3:
        raise RuntimeError(f"{len(timed)} files say nothing of a rate; use more --images")
    return sum(rows for _, rows in timed[1:]) / (timed[-1][0] - timed[0][0])


def parts(output: Path) -> list[Path]:
    return [*output.glob("part-*.parquet"), *output.glob("failures/part-*.parquet")]


def runs(root: Path, out: Path, count: int, score_count: int) -> dict[str, Callable[[], tuple[Summary, float]]]:
    """Each job on the collection at ``root``: its summary and images per second."""
    small: dict[str, Any] = {"max_failure_rate": 1.0, "shard_mb": 0.0, "block_rows": 8}
    whole = {"input": str(root), **small}

    def run(job: Callable[[Any], Summary], config: Any) -> tuple[Summary, float]:
        return job(config), rate(parts(Path(config.output)))

    def curated() -> tuple[Summary, float]:
        config = CurateConfig(output=str(out / "curate"), dedupe=True, per_category=0, min_sharpness=0.0, **whole)
        summary, copying = run(curate, config)
        measuring = rate(list((out / "curate" / ".cleanplate" / "measures").glob("rows-*")))
        return {**summary, "in": count}, 1 / (1 / measuring + summary["in"] / count / copying)

    def stats() -> tuple[Summary, float]:
        started = time.perf_counter()
        items = gather(str(out / "ingest")).items
        return {"in": items, "failed": 0}, items / (time.perf_counter() - started)

    few = root / "few"
    for name in ("source", "mask", "erased"):
        (few / name).mkdir(parents=True)
        for path in sorted((root / name).iterdir())[:score_count]:
            shutil.copy(path, few / name)
    compose_config = ComposeConfig(
        backgrounds=str(root / "target"), cutouts=str(root / "cutouts"), output=str(out / "compose"), count=count, **small
    )
    return {
        "ingest (rorem)": lambda: run(ingest, IngestConfig(format="rorem", output=str(out / "ingest"), **whole)),
        "effects": lambda: run(effects, EffectsConfig(output=str(out / "effects"), **whole)),
        "effects, lifting cut-outs": lambda: run(effects, EffectsConfig(output=str(out / "lifted"), lift_cutouts=True, **whole)),
        "segment (without weights)": lambda: run(
            segment, SegmentConfig(output=str(out / "segment"), **{**whole, "input": str(root / "source")})
        ),
        "compose": lambda: run(compose, compose_config),
        "curate (all rules, near-duplicates)": curated,
        "score (tiny)": lambda: run(score, ScoreConfig(output=str(out / "score"), **{**whole, "input": str(few), "block_rows": 2})),
        "stats (masks opened)": stats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--score-images", type=int, default=60, help="score takes many times as long as the others on a CPU")
    parser.add_argument("--jobs", default="", help="beginnings of the names of jobs to run, with commas; the default is all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="cleanplate-data-jobs-") as scratch, ray_cluster(None):
        root = Path(scratch, "collection")
        collection(root, options.images)
        print("| job | images | images/s | whole run, s | failures |\n| --- | --- | --- | --- | --- |")
        for name, job in runs(root, Path(scratch, "out"), options.images, options.score_images).items():
            if not name.startswith(tuple(options.jobs.split(","))):
                continue
            started = time.perf_counter()
            summary, speed = job()
            seconds = time.perf_counter() - started
            print(f"| {name} | {summary['in']:,} | {speed:.1f} | {seconds:.1f} | {summary['failed']} |", flush=True)
    print(f"\nload average {os.getloadavg()[1]:.1f} (5 minutes) on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
