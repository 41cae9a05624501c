"""What one image asks of a cluster: seconds of a device and of a core, bytes from and to the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from core.catalogue import find_known
from core.errors import UsageError
from core.planning import figures
from core.planning.figures import Figure

CFG_KIND: Final = "objectclear"
"""The kind of model whose default guidance asks its network twice a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be erased, with what.

    Attributes:
        model: as in ``cleanplate clean --model``.
        steps: network calls an image; None is the model's default.
        doubled: classifier-free guidance; None is the model's default.
        candidates: erasures of an image.
        scored: a discriminator scores every erasure.
        size: side of the network's pictures in pixels: 512 or 1024.
        megapixels: of a photo.
        image_format: of erasures.
        accepted: share of erasures that are stored a second time, as target.
        device: GPU kind, or None for work on CPUs.
        sustained_tflops: of one GPU; None is the kind's figure.
        seconds_per_image: of one GPU (or core), measured by the person who asks; replaces the arithmetic.
    """

    model: str
    steps: int | None = None
    doubled: bool | None = None
    candidates: int = 1
    scored: bool = True
    size: int = 512
    megapixels: float = 1.0
    image_format: Literal["png", "webp"] = "png"
    accepted: float = 0.5
    device: str | None = None
    sustained_tflops: float | None = None
    seconds_per_image: float | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """The demand of one image, and the figures that it was made of."""

    device_seconds: float
    core_seconds: float
    bytes_in: float
    bytes_out: float
    tflop: float | None = None
    figures: tuple[Figure, ...] = field(default=())


def network_tflop(size: int, calls: int, *, encodes: int = 1, scored: bool = False) -> float:
    """TFLOP of one picture: ``calls`` of the UNet, ``encodes`` and one decode of the autoencoder; scored: two more encodes at 512 pixels.

    Raises:
        UsageError: nothing was counted at that size.
    """
    if size not in figures.TFLOP:
        raise UsageError(f"operations were counted at {' and '.join(map(str, figures.TFLOP))} pixels, not at {size}")
    counted = figures.TFLOP[size]
    total = calls * counted["unet"] + encodes * counted["encode"] + counted["decode"]
    if scored:
        small = figures.TFLOP[figures.DISCRIMINATOR_SIZE]
        total += small["discriminator"] + 2 * small["encode"]
    return total


def demand_of(question: Question) -> Demand:
    """The demand of one image.

    Raises:
        UsageError: there is no figure for the model or the device; the message says what to measure or give.
    """
    pixels = question.megapixels * 1e6
    encode, erased = figures.ENCODE[question.image_format], figures.ERASED_BYTES[question.image_format]
    used = [figures.DECODE, figures.MASK, encode, figures.SOURCE_BYTES, figures.MASK_BYTES, erased, figures.OTHER_CPU]
    per_megapixel = figures.DECODE.value + figures.MASK.value + encode.value
    core_seconds = (per_megapixel * question.megapixels + figures.OTHER_CPU.value) / 1000
    bytes_in = pixels * (figures.SOURCE_BYTES.value + figures.MASK_BYTES.value)
    bytes_out = bytes_in + pixels * erased.value * (1 + (question.accepted if question.scored else 0.0))
    seconds, tflop, more = _device_seconds(question)
    if question.device is None:
        # the network runs on the core that also decodes
        core_seconds, seconds = core_seconds + seconds, 0.0
    return Demand(seconds, core_seconds, bytes_in, bytes_out, tflop, (*more, *used))


def _device_seconds(question: Question) -> tuple[float, float | None, list[Figure]]:
    if question.seconds_per_image is not None:
        given = Figure("erase and score an image", question.seconds_per_image, "s of a device", "given", "--seconds-per-image")
        return question.seconds_per_image, None, [given]
    cpu = figures.CPU_ERASERS.get(question.model)
    if cpu is not None:
        if question.device is not None:
            raise UsageError(
                f"no figure for {question.model} on a GPU: leave --gpus away, or give --seconds-per-image of a short run of your own"
            )
        return cpu.value * question.candidates, None, [cpu]
    known = find_known(question.model)
    if known is None or known.kind not in {"remover", "objectclear"}:
        raise UsageError(
            f"no figure for the model {question.model}: run cleanplate clean on a few hundred images, and give what one took as "
            "--seconds-per-image"
        )
    if question.device is None:
        raise UsageError(f"{question.model} on CPUs was not measured: give --gpus, or --seconds-per-image of a short run of your own")
    doubled = known.kind == CFG_KIND if question.doubled is None else question.doubled
    calls = (question.steps or known.steps or 50) * (2 if doubled else 1)
    tflop = question.candidates * network_tflop(question.size, calls, scored=question.scored)
    rate = figures.SUSTAINED[question.device]
    if question.sustained_tflops is not None:
        rate = Figure(f"a {question.device.upper()} sustains", question.sustained_tflops, "TFLOP/s", "given", "--sustained-tflops")
    work = Figure(f"{calls} calls of the network at {question.size} pixels", tflop, "TFLOP an image", "counted", "see below")
    return tflop / rate.value, tflop, [work, rate, figures.operations(question.size)]
