"""Triplets for training: from a record's encoded pictures to arrays.

Files are decoded by ``core.images`` and ``core.masks``, as everywhere else; the step to [-1, 1] is ``core.conditioning``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from core.errors import ItemError, UsageError
from core.fetch import Fetcher
from core.images import DEFAULT_MAX_MEGAPIXELS, Pixels, decode_photo, decode_picture
from core.masks import decode_mask
from core.plan import PlanRow
from core.record import record_problem

AnswerColumn = Literal["target", "erased"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingPair:
    """One item of a training set.

    Attributes:
        id: the record's.
        source: (H, W, 3) uint8 RGB, the photo with the object.
        target: (H, W, 3) uint8 RGB, the same photo as it should be without (or, for a discriminator, as some eraser left it).
        mask: (H, W) uint8, 255 = remove, 0 = keep; empty only where nothing is to be removed and ``target`` is ``source``.
        effect_mask: (H, W) uint8, 255 = the object with its shadow and reflection; None where nobody has marked them.
        clean: (H, W, 3) uint8 RGB, for a discriminator the clean plate beside an eraser's ``target``; None where it is not known.
        score: the discriminator's probability of success, 0 to 1, or None.
        verdict: ``accepted``, ``rejected``, ``uncertain`` or None.

    Raises:
        UsageError: arrays of another dtype, or not all of one size.
    """

    id: str
    source: Pixels
    target: Pixels
    mask: Pixels
    effect_mask: Pixels | None = None
    clean: Pixels | None = None
    score: float | None = None
    verdict: str | None = None

    def __post_init__(self) -> None:
        size = self.source.shape[:2]
        wanted = {"source": (*size, 3), "target": (*size, 3), "mask": size, "effect_mask": size, "clean": (*size, 3)}
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array is not None and (array.shape != shape or array.dtype != np.uint8):
                raise UsageError(f"{name} of training pair {self.id} is {array.shape} {array.dtype}; it must be {shape} uint8")

    @property
    def label(self) -> float | None:
        """What a discriminator learns: 1.0 for ``accepted``, 0.0 for ``rejected``, None for all else."""
        return {"accepted": 1.0, "rejected": 0.0}.get(self.verdict or "")


def training_pair(
    record: Mapping[str, Any],
    *,
    answer: AnswerColumn = "target",
    clean_plate: bool = False,
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS,
) -> TrainingPair:
    """Decode a record (``core.record``).

    Args:
        record: a row with image columns as ``{"bytes": ..., "path": ...}``; columns that may be null may also be missing.
        answer: the column for ``TrainingPair.target``: ``target`` to train a remover, ``erased`` to train a discriminator.
        clean_plate: whether ``TrainingPair.clean`` is wanted: the column ``target`` of a record whose ``answer`` is ``erased``.
        max_megapixels: as in ``core.images.decode_photo``.

    Raises:
        ItemError: stage ``decode``; code ``bad_record``, ``no_target`` or ``no_erased`` (the column is null), ``target_size_mismatch`` or
            ``erased_size_mismatch``, a code of ``decode_photo`` or ``decode_mask``, or one of these after ``target_``, ``erased_`` or
            ``effect_``.
        UsageError: no such ``answer``.
    """
    if answer not in ("target", "erased"):
        raise UsageError(f"a training pair's answer is the column target or erased, got {answer!r}")
    problem = record_problem(record)
    if problem:
        raise ItemError("decode", "bad_record", f"record {record.get('id')!r}: {problem}")
    stored = record.get(answer)
    if stored is None:
        hint = "ground truth or an accepted erasure: filter on it" if answer == "target" else "an erasure: run cleanplate clean"
        raise ItemError("decode", f"no_{answer}", f"record {record['id']!r} has no {answer}; training needs {hint}")
    source = decode_photo(record["source"]["bytes"], max_megapixels=max_megapixels)
    size = (source.width, source.height)
    target = _answer(stored, answer, size, max_megapixels)
    beside = record.get("target") if clean_plate and answer == "erased" else None
    mask = decode_mask(record["mask"]["bytes"], size, max_megapixels=max_megapixels).pixels
    score = record.get("score")
    return TrainingPair(
        id=str(record["id"]),
        source=source.pixels,
        target=target,
        mask=mask,
        effect_mask=_effect_mask(record.get("effect_mask"), size, max_megapixels),
        clean=None if beside is None else _answer(beside, "target", size, max_megapixels),
        score=None if score is None else float(score),
        verdict=record.get("verdict"),
    )


def fetched_triplet(fetcher: Fetcher, row: PlanRow) -> TrainingPair:
    """The photo, masks and clean plate of a row of an input (``core.readers``).

    Raises:
        ItemError: a picture cannot be read or decoded.
        UsageError: the row has no target or no effect mask.
    """
    values = {name: getattr(row, name) for name in row.__slots__}
    record = fetcher.fetch_record(values, DEFAULT_MAX_MEGAPIXELS, needs_erasure=False)
    if record.get("target") is None or record.get("effect_mask") is None:
        raise UsageError(f"{row.id} has no target or no effect mask; take triplets of cleanplate compose")
    # a verdict is about an erasure, and there is none here
    return replace(training_pair(record), score=None, verdict=None)


def _answer(stored: Mapping[str, Any], column: AnswerColumn, size: tuple[int, int], max_megapixels: float) -> Pixels:
    picture = decode_picture(stored["bytes"], noun=column, prefix=f"{column}_", max_megapixels=max_megapixels)
    if (picture.width, picture.height) != size:
        raise ItemError(
            "decode",
            f"{column}_size_mismatch",
            f"the {column} is {picture.width} x {picture.height} and the photo {size[0]} x {size[1]} pixels; a pair needs one size",
        )
    return picture.pixels


def _effect_mask(stored: Mapping[str, Any] | None, size: tuple[int, int], max_megapixels: float) -> Pixels | None:
    if stored is None:
        return None
    try:
        return decode_mask(stored["bytes"], size, max_megapixels=max_megapixels).pixels
    except ItemError as error:
        raise ItemError(error.stage, f"effect_{error.code}", error.message.replace("the mask", "the effect mask", 1)) from error
