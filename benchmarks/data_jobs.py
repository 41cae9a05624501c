"""Images per second of the jobs that build data: ingest, effects, segment, compose, curate, score, stats; one collection, one run.

    python -m benchmarks.data_jobs --images 400

The collection is composed here, from objects drawn on textured ground, as 512 x 512 JPEG with masks and clean plates, in the layout of
RORem. Start-up is taken apart by the slope: each job is timed on a fourth of the images and on all of them, and only the difference counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

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


def runs(root: Path, out: Path, count: int) -> dict[str, Callable[[], Summary]]:
    """Each job on the collection at ``root``."""
    whole: dict[str, Any] = {"input": str(root), "max_failure_rate": 1.0}
    return {
        "ingest (rorem)": lambda: ingest(IngestConfig(format="rorem", output=str(out / "ingest"), **whole)),
        "effects": lambda: effects(EffectsConfig(output=str(out / "effects"), **whole)),
        "effects, lifting cut-outs": lambda: effects(EffectsConfig(output=str(out / "lifted"), lift_cutouts=True, **whole)),
        "segment (without weights)": lambda: segment(SegmentConfig(input=str(root / "source"), output=str(out / "segment"))),
        "compose": lambda: compose(
            ComposeConfig(backgrounds=str(root / "target"), cutouts=str(root / "cutouts"), output=str(out / "compose"), count=count)
        ),
        "curate (every rule, duplicates)": lambda: curate(
            CurateConfig(output=str(out / "curate"), dedupe=True, per_category=0, min_sharpness=0.0, **whole)
        ),
        "score (tiny)": lambda: score(ScoreConfig(output=str(out / "score"), discriminator="tiny", **whole)),
        "stats": lambda: {"in": gather(str(out / "ingest")).items, "failed": 0},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--score-images", type=int, default=120, help="score takes a quarter of a second an image here")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    sizes = {"few": options.images // 4, "many": options.images, "score few": options.score_images // 4, "score many": options.score_images}
    with tempfile.TemporaryDirectory(prefix="cleanplate-data-jobs-") as scratch, ray_cluster(None):
        jobs: dict[str, dict[str, Callable[[], Summary]]] = {}
        for name, count in sizes.items():
            collection(Path(scratch, name), count)
            jobs[name] = runs(Path(scratch, name), Path(scratch, f"{name} out"), count)
        print("| job | images | images/s | start-up, s | failures |\n| --- | --- | --- | --- | --- |")
        for job in jobs["few"]:
            prefix = "score " if job.startswith("score") else ""
            seconds = []
            for name in ("few", "many"):
                started = time.perf_counter()
                summary = jobs[f"{prefix}{name}"][job]()
                seconds.append(time.perf_counter() - started)
            few, many = sizes[f"{prefix}few"], sizes[f"{prefix}many"]
            if summary["in"] != many:
                raise RuntimeError(f"{job}: {summary['in']} of {many} items went in")
            rate = (many - few) / (seconds[1] - seconds[0])
            print(f"| {job} | {many:,} | {rate:.1f} | {max(0.0, seconds[0] - few / rate):.1f} | {summary['failed']} |", flush=True)


if __name__ == "__main__":
    main()
