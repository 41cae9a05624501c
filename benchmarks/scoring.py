"""Where to score: in the eraser's actor on the decoded pictures, or in actors of its own on the encoded ones.

    python -m benchmarks.scoring --images 120

Same images, model and discriminator; start-up is taken apart by the slope between a fifth of the images and all of them.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Literal

from benchmarks.overhead import collection
from jobs.clean import clean
from jobs.config import CleanConfig

Place = Literal["shared", "pool"]
PLACES: tuple[Place, ...] = ("shared", "pool")


def seconds(folder: Path, output: Path, model: str, scoring: Place) -> float:
    """Seconds of one job with automatic pools."""
    started = time.perf_counter()
    summary = clean(CleanConfig(input=str(folder), output=str(output), model=model, discriminator="auto", scoring=scoring, origin="b"))
    if summary["failed"] or summary["unscored"]:
        raise RuntimeError(f"{summary['failed']} items failed, {summary['unscored']} have no score")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    few = options.images // 5
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="cleanplate-scoring-") as scratch:
        small, large = collection(Path(scratch, "small"), few), collection(Path(scratch, "large"), options.images)
        for place in PLACES:
            taken = -seconds(small, Path(scratch, f"small-{place}"), options.model, place)
            taken += seconds(large, Path(scratch, f"large-{place}"), options.model, place)
            rates[place] = (options.images - few) / taken
    print("| scoring | images/s | over shared |\n| --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.2f} | {rate / rates['shared']:.2f} |")
    print(f"\n{options.model}, {options.images} images of 512 x 512")


if __name__ == "__main__":
    main()
