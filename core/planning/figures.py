"""The numbers that a plan rests on, each with where it comes from.

``measured``: by a benchmark of this repository, whose record stands in ``benchmarks/records`` (a test compares). ``counted``: operations
counted by torch.utils.flop_counter. ``published``: printed in a source that is named. ``assumed``: a round number that nobody measured.
``given``: by the person who asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["measured", "counted", "published", "assumed", "given"]

MEASURED_ON: Final = "2 shared Intel Xeon cores"
_PLANNING: Final = "benchmarks/records/2026-11-24-planning/codecs.json"
_COUNTED: Final = "torch.utils.flop_counter, SDXL-inpainting networks; held by tests/test_benchmarks.py"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, its unit, and its origin."""

    name: str
    value: float
    unit: str
    kind: Kind
    source: str


def measured(name: str, value: float, unit: str, source: str) -> Figure:
    """A figure of a record."""
    return Figure(name, value, unit, "measured", source)


# what one core does with pictures; JPEG photos in, as the shipped samples are
DECODE: Final = measured("decode a JPEG photo", 7.3, "ms of a core per megapixel", _PLANNING)
MASK: Final = measured("decode and encode a mask", 14.8, "ms of a core per megapixel", _PLANNING)
ENCODE: Final = {
    "png": measured("encode PNG", 46.3, "ms of a core per megapixel", _PLANNING),
    "webp": measured("encode WebP without loss", 61.0, "ms of a core per megapixel", _PLANNING),
}
SOURCE_BYTES: Final = measured("a JPEG photo", 0.24, "bytes a pixel", _PLANNING)
MASK_BYTES: Final = measured("a mask", 0.003, "bytes a pixel", _PLANNING)
ERASED_BYTES: Final = {
    "png": measured("an erasure as PNG", 1.3, "bytes a pixel", _PLANNING),
    "webp": measured("an erasure as WebP without loss", 0.9, "bytes a pixel", _PLANNING),
}

# erasers without a GPU, on one thread, the shipped samples
CPU_ERASERS: Final = {
    "opencv": measured("erase with opencv", 0.058, "s of a core an image", _PLANNING),
    "tiny": measured("erase and score with tiny", 0.917, "s of a core an image", _PLANNING),
}

# operations of SDXL-inpainting's networks for one picture, by its side in pixels
TFLOP: Final = {
    512: {"unet": 1.589, "encode": 1.117, "decode": 2.515, "discriminator": 0.694},
    1024: {"unet": 6.762, "encode": 4.879, "decode": 10.470, "discriminator": 2.933},
}
DISCRIMINATOR_SIZE: Final = 512


def operations(size: int) -> Figure:
    """How often what a network costs was counted."""
    return Figure(f"UNet at {size} pixels", TFLOP[size]["unet"], "TFLOP a call", "counted", _COUNTED)


# what a GPU sustains with these networks; none was measured by us
SUSTAINED: Final = {
    "h200": Figure("an H200 sustains", 275.0, "TFLOP/s", "assumed", "as much as published SDXL engines reach on an H100, 263 to 292"),
    "h100": Figure("an H100 sustains", 275.0, "TFLOP/s", "published", "SDXL 1024, TensorRT model card: 1471 ms for 30 steps = 283 TFLOP/s"),
    "a100": Figure("an A100 sustains", 135.0, "TFLOP/s", "published", "SDXL 1024 with torch.compile, stable-fast's README: 10.0 it/s"),
}

EFFICIENCY: Final = measured(
    "the job over a bare loop, least of its runs", 0.912, "of the rate", "benchmarks/records/2026-11-24-overhead/output.txt"
)
OTHER_CPU: Final = Figure("cropping, pasting, writing shards, Ray", 3.0, "ms of a core an image", "assumed", "docs/benchmarks.md")


def all_measured() -> list[Figure]:
    """Every figure that must be found in its record."""
    groups = [DECODE, MASK, SOURCE_BYTES, MASK_BYTES, EFFICIENCY]
    return [*groups, *ENCODE.values(), *ERASED_BYTES.values(), *CPU_ERASERS.values()]
