"""How ``curate`` grows: a million rows of metadata with signatures in bounded memory, and what of planted duplicates is found.

    python -m benchmarks.curation --rows 1000000
    python -m benchmarks.curation --photos FOLDER [FOLDER ...]

The first makes a manifest whose signatures are random but for planted near-duplicates (as many bits flipped as by a 5 % crop), lets
``curate`` choose from it without opening a picture, and again from the same rows in other row groups and another order. The second plants
resized, re-encoded and cropped copies of real photos, and counts those found, and the photos that are taken for copies of others.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.memory import MemoryWatch
from core.curation.duplicates import DuplicateIndex
from core.curation.signature import WINDOWS, Words, signature
from core.readers import open_input
from jobs.curate import curate
from jobs.curate_config import CurateConfig

PLANTED = 0.02
"""Share of the rows that are near-duplicates of others."""
BITS_FLIPPED = (3, 29)
"""In the first 64 bits, which are the lowest frequencies, and in the others."""
ROWS = 50_000


def random_signatures(count: int, random: np.random.Generator) -> Words:
    return random.integers(0, 2**64, (count, len(WINDOWS), 4), dtype=np.uint64)


def manifest(path: Path, rows: int, seed: int, group: int, order_seed: int | None) -> int:
    """Write ``rows`` rows, in blocks of ``group``; returns how many near-duplicates were planted."""
    random = np.random.default_rng(seed)
    classes = random.zipf(1.3, rows) % 600
    planted = np.flatnonzero(random.random(rows) < PLANTED)
    planted = planted[planted >= ROWS]
    copies = dict(zip(planted.tolist(), (planted - random.integers(1, ROWS, len(planted))).tolist(), strict=True))
    blocks: list[pa.Table] = []
    last: Words | None = None
    for start in range(0, rows, ROWS):
        count = min(ROWS, rows - start)
        found = random_signatures(count, np.random.default_rng([seed, start]))
        for row in range(start, start + count):
            if row in copies:
                of = copies[row]
                before = last[of - start + ROWS] if of < start and last is not None else found[of - start]
                copy = before[0].copy()
                low, high = (random.choice(size, flips, replace=False) for size, flips in zip((64, 192), BITS_FLIPPED, strict=True))
                for bit in [*low, *(high + 64)]:
                    copy[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
                found[row - start, random.integers(len(WINDOWS))] = copy
        last = found
        numbers = np.arange(start, start + count)
        blocks.append(
            pa.table({
                "id": [f"row-{number:09d}" for number in numbers],
                "source": [f"{number}.jpg" for number in numbers],
                "mask": [f"{number}.png" for number in numbers],
                "category": [f"class {number}" for number in classes[start : start + count]],
                "width": pa.array(np.full(count, 1024), pa.int32()),
                "height": pa.array(random.integers(200, 1024, count), pa.int32()),
                "mask_area": pa.array(random.uniform(0, 0.7, count), pa.float32()),
                "signature": pa.array([block.tobytes() for block in found], pa.binary()),
            })
        )  # fmt: skip
        if order_seed is None:
            continue
        blocks[-1] = blocks[-1].take(np.random.default_rng([order_seed, start]).permutation(count))
    if order_seed is not None:
        blocks.reverse()
    with pq.ParquetWriter(path, blocks[0].schema) as writer:
        for block in blocks:
            writer.write_table(block, row_group_size=group)
    return len(copies)


def measure_rows(rows: int, scratch: Path) -> None:
    chosen: list[set[str]] = []
    print("| rows | blocks | s | rows/s | driver, MiB | workers, MiB | funnel |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for number, (group, order_seed) in enumerate(((50_000, None), (7_000, 3))):
        folder = scratch / str(number)
        folder.mkdir()
        planted = manifest(folder / "list.parquet", rows, 1, group, order_seed)
        config = CurateConfig(
            input=str(folder / "list.parquet"),
            output=str(folder / "out"),
            measure="metadata",
            pictures="in-place",
            dedupe=True,
            duplicate="photo",
        )
        with MemoryWatch() as watch:
            started = time.perf_counter()
            summary = curate(config)
            seconds = time.perf_counter() - started
        funnel = {name: count for name, count in summary["funnel"].items() if count}
        blocks = -(-rows // group)
        peaks = watch.peaks
        told = json.dumps(funnel)
        print(
            f"| {rows:,} | {blocks} | {seconds:.0f} | {rows / seconds:.0f} | {peaks.driver:.0f} | {peaks.workers:.0f} | {told} |",
            flush=True,
        )
        chosen.append({row.id for row in open_input(summary["output"]).rows()})
    print(f"planted near-duplicates: {planted:,} (before other rules); the same choice from both: {chosen[0] == chosen[1]}")


def copies_of(photo: Image.Image, random: np.random.Generator) -> dict[str, Image.Image]:
    """The planted duplicates of one photo."""

    def saved(image: Image.Image, quality: int) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    def cut(share: float) -> Image.Image:
        width, height = round(photo.width * (1 - share)), round(photo.height * (1 - share))
        x, y = (round(random.random() * left) for left in (photo.width - width, photo.height - height))
        return photo.crop((x, y, x + width, y + height))

    def scaled(image: Image.Image, factor: float) -> Image.Image:
        return image.resize((max(8, round(image.width * factor)), max(8, round(image.height * factor))), Image.Resampling.BICUBIC)

    edge = photo.crop((round(photo.width * 0.05), 0, photo.width, photo.height))
    inner = photo.crop((round(photo.width * 0.05), round(photo.height * 0.05), round(photo.width * 0.95), round(photo.height * 0.95)))
    return {
        "resized to a half": scaled(photo, 0.5),
        "resized to a quarter, JPEG 40": saved(scaled(photo, 0.25), 40),
        "JPEG 30": saved(photo, 30),
        "5 % of both sides cut off, anywhere": cut(0.05),
        "5 % of one side cut off": edge,
        "5 % of all four sides cut off": inner,
        "5 % cut off, half size, JPEG 60": saved(scaled(cut(0.05), 0.5), 60),
        "10 % of both sides cut off, anywhere": cut(0.10),
    }


def tiles_of(photo: Image.Image, side: int = 256) -> list[Image.Image]:
    """Parts of a photo that do not overlap: different pictures of one scene, harder to tell apart than different photos."""
    return [
        photo.crop((x, y, x + side, y + side))
        for x in range(0, photo.width - side + 1, side)
        for y in range(0, photo.height - side + 1, side)
    ]


def measure_photos(folders: list[str]) -> None:
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    random = np.random.default_rng(0)
    index = DuplicateIndex()
    found: dict[str, int] = {}
    asked: list[tuple[int, str, Words]] = []
    tiles: list[Words] = []
    started = time.perf_counter()
    for number, path in enumerate(paths):
        photo = Image.open(path).convert("RGB")
        index.add(str(number), signature(np.asarray(photo)))
        asked += [(number, kind, signature(np.asarray(copy))) for kind, copy in copies_of(photo, random).items()]
        tiles += [signature(np.asarray(tile)) for tile in tiles_of(photo)]
    seconds = time.perf_counter() - started
    count = len(paths) + len(asked) + len(tiles)
    print(f"{len(paths)} photos, {len(asked)} copies, {len(tiles)} tiles: {1e3 * seconds / count:.1f} ms each, with making the pictures")
    wrong = 0
    for number, kind, copy in asked:
        names = {match.name for match in index.near(copy)}
        found[kind] = found.get(kind, 0) + (str(number) in names)
        wrong += bool(names - {str(number)})
    print("| planted | found |")
    print("| --- | --- |")
    for kind, hits in found.items():
        print(f"| {kind} | {hits / len(paths):.1%} |")
    alone = sum(len(index.near(signature(np.asarray(Image.open(path).convert("RGB"))))) > 1 for path in paths)
    pairs = len(paths) * (len(paths) - 1) // 2
    print(f"photos taken for a copy of another: {alone} of {len(paths)} ({pairs:,} pairs); copies taken for one of a wrong photo: {wrong}")
    every = DuplicateIndex(both_ways=False)
    every.add_many(np.stack(tiles))
    near = every.pairs(np.stack(tiles))
    other = near.given != near.found
    print(
        f"tiles taken for a copy of another: {len(set(near.given[other].tolist()))} of {len(tiles)} "
        f"({len(tiles) * (len(tiles) - 1) // 2:,} pairs)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--photos", nargs="+", default=[])
    options = parser.parse_args()
    if options.photos:
        measure_photos(options.photos)
    if options.rows:
        with tempfile.TemporaryDirectory(prefix="cleanplate-curation-") as scratch:
            measure_rows(options.rows, Path(scratch))


if __name__ == "__main__":
    main()
