"""What the job costs beyond the eraser: images per second of ``clean`` over a bare loop of the same eraser with the same number of threads.

    python -m benchmarks.overhead --images 2000

Both do the same to every image: read the files, decode, erase, encode. The job also streams through Ray and writes the dataset. Start-up is
taken apart by the slope: each side is timed at a tenth of the images and at all of them, and only the difference counts. The two sides
alternate; the table gives the median of the pairs.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2

from core.eraser import EraserSettings, load_eraser
from core.fetch import Fetcher
from core.readers import open_input
from core.workload import Workload, WorkSettings
from jobs.clean import clean
from jobs.config import CleanConfig

SAMPLES = Path(__file__).resolve().parent.parent / "assets" / "samples"


def collection(folder: Path, count: int) -> Path:
    """``count`` pairs made of the shipped samples, as files of their own."""
    names = sorted(path.stem for path in (SAMPLES / "target").iterdir())
    for role, suffix in (("source", ".jpg"), ("mask", ".png")):
        (folder / role).mkdir(parents=True)
        for number in range(count):
            shutil.copy(SAMPLES / role / f"{names[number % len(names)]}{suffix}", folder / role / f"{number:06d}{suffix}")
    return folder


def bare_seconds(folder: Path, count: int, model: str, threads: int) -> float:
    """Seconds of the bare loop over the first ``count`` items."""
    cv2.setNumThreads(1)
    workload = Workload(load_eraser(model, EraserSettings(device="cpu")), WorkSettings(threads=threads))
    fetcher = Fetcher(str(folder))
    rows = [{name: getattr(row, name) for name in row.__slots__} for row in open_input(str(folder)).rows()][:count]
    started = time.perf_counter()
    done = sum(1 for _ in workload.run((row["id"], None, partial(fetcher.fetch, row)) for row in rows))
    workload.close()
    if done != count:
        raise RuntimeError(f"{done} of {count} items came out of the bare loop")
    return time.perf_counter() - started


def job_seconds(folder: Path, output: Path, model: str, threads: int) -> float:
    """Seconds of the job on a whole folder, with one eraser actor of so many threads."""
    started = time.perf_counter()
    summary = clean(
        CleanConfig(
            input=str(folder),
            output=str(output),
            model=model,
            discriminator="none",
            max_actors=1,
            min_actors=1,
            threads=threads,
            num_cpus=1,
            origin="b",
        )
    )
    if summary["failed"]:
        raise RuntimeError(f"{summary['failed']} items failed: {summary['failures']}")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--model", default="opencv")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    few, many = options.images // 10, options.images
    rows: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="cleanplate-overhead-") as scratch:
        small, large = collection(Path(scratch, "small"), few), collection(Path(scratch, "large"), many)
        for pair in range(options.pairs):
            bare = bare_seconds(large, many, options.model, options.threads) - bare_seconds(small, few, options.model, options.threads)
            job = -job_seconds(small, Path(scratch, f"s{pair}"), options.model, options.threads)
            job += job_seconds(large, Path(scratch, f"l{pair}"), options.model, options.threads)
            rows.append(((many - few) / bare, (many - few) / job))
            shutil.rmtree(Path(scratch, f"l{pair}"))
    print("| pair | bare loop, images/s | job, images/s | ratio |\n| --- | --- | --- | --- |")
    for number, (bare_rate, job_rate) in enumerate(rows, 1):
        print(f"| {number} | {bare_rate:.1f} | {job_rate:.1f} | {job_rate / bare_rate:.3f} |")
    print(f"| median | | | {statistics.median(job / bare for bare, job in rows):.3f} |")
    print(f"\n{options.model}, {many} images of 512 x 512, {options.threads} threads")


if __name__ == "__main__":
    main()
