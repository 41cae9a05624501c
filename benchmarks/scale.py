"""How the job grows with the number of rows: rows per second and peak memory with a null eraser, and the time to resume a finished job.

    python -m benchmarks.scale --rows 10000 100000 1000000

Every row of the manifest has an id of its own and points at one small picture, so that what is measured is the system and not the pixels.
Resuming is measured twice: the same command on the finished job, and after one shard was taken away.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.memory import MemoryWatch
from core.ledger import list_parts
from jobs.clean import clean
from jobs.config import CleanConfig

SIDE = 16


def manifest(folder: Path, rows: int) -> Path:
    """A Parquet manifest of ``rows`` items."""
    folder.mkdir(parents=True)
    pixels = np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:10, 4:10] = 255
    Image.fromarray(pixels).save(folder / "source.png")
    Image.fromarray(mask).save(folder / "mask.png")
    path = folder / "manifest.parquet"
    schema = pa.schema([(name, pa.string()) for name in ("id", "source", "mask")])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            ids = [f"row-{number:09d}" for number in range(start, start + count)]
            writer.write_table(pa.table({"id": ids, "source": ["source.png"] * count, "mask": ["mask.png"] * count}, schema=schema))
    return path


def measure(rows: int, scratch: Path) -> str:
    """Run, resume, and return one line of the table."""
    path, output = manifest(scratch / str(rows), rows), scratch / f"out-{rows}"
    config = CleanConfig(input=str(path), output=str(output), model="null", discriminator="none", block_rows=1024)
    with MemoryWatch() as watch:
        started = time.perf_counter()
        summary = clean(config)
        total = time.perf_counter() - started
    if (summary["in"], summary["out"]) != (rows, rows):
        raise RuntimeError(f"{rows} rows went in, {summary['out']} came out")
    started = time.perf_counter()
    clean(config)
    finished = time.perf_counter() - started
    parts = list_parts(str(output))
    Path(parts[-1]).unlink()
    (output / "dataset.json").unlink()
    started = time.perf_counter()
    summary = clean(config)
    torn = time.perf_counter() - started
    peaks = watch.peaks
    return (
        f"| {rows:,} | {total:.0f} | {rows / total:.0f} | {peaks.driver:.0f} | {peaks.workers:.0f} | {peaks.object_store:.0f} "
        f"| {len(parts)} | {finished:.1f} | {torn:.1f} ({summary['processed']:,} rows) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    names = ["rows", "s, start-up included", "rows/s", "driver, MiB", "workers, MiB", "object store, MiB", "shards"]
    names += ["finished: resume, s", "one shard lost: resume, s"]
    print(f"| {' | '.join(names)} |")
    print("| --- " * len(names) + "|")
    with tempfile.TemporaryDirectory(prefix="cleanplate-scale-") as scratch:
        for rows in options.rows:
            print(measure(rows, Path(scratch)), flush=True)


if __name__ == "__main__":
    main()
