"""From a plan row of a collection to a record: fetched, opened, checked; nothing is stored that a training could not read."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from core import record
from core.errors import ItemError, UsageError
from core.fetch import Fetcher
from core.images import decode_photo, decode_picture, storable_source
from core.masks import decode_mask, encode_mask
from core.plan import PlanRow

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")

Stored = Mapping[str, Any]
"""A value of an image column: ``bytes`` and ``path``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a collection is taken.

    Attributes:
        images: folder of the photos, where it is not the published one.
        exclude: names of classes that are left out, compared without case.
        frames_per_clip: frames taken of each video clip; 0 for all.
        splits: splits that are taken; empty for all.
        subsets: subsets that are taken; empty for all.
        object_is: what a mask's object is painted in: ``white``, ``black``, or ``auto`` (the side on which source and target differ).
    """

    images: str | None = None
    exclude: frozenset[str] = frozenset()
    frames_per_clip: int = 0
    splits: frozenset[str] = frozenset()
    subsets: frozenset[str] = frozenset()
    object_is: str = "auto"

    def excludes(self, *names: str | None) -> bool:
        """Whether one of these is a class that is left out."""
        return any(name is not None and name.casefold() in self.exclude for name in names)


@dataclass(frozen=True, slots=True)
class Built:
    """A record, all columns, and what was noticed on the way."""

    record: dict[str, Any]
    warnings: tuple[str, ...] = ()


class Builder(Fetcher):
    """Builds the records of plan rows; may be used by many threads. Collections whose rows say more than files do override ``build``."""

    def __init__(self, base: str, max_megapixels: float, choice: Choice) -> None:
        super().__init__(base)
        self.limit, self.choice = max_megapixels, choice

    def build(self, row: Mapping[str, Any]) -> Built:
        """The record of a plan row.

        Raises:
            ItemError: the plan knows that it fails, an object is missing, or does not open; or source and target differ in size.
            StorageUnavailable: the store does not answer.
        """
        item = self.fetch(row)
        erased = self.stored(row["erased"], "erasure") if row["erased"] else None
        return self.assemble(
            row,
            source=record.image_value(item.source, item.source_name) or {},
            mask=record.image_value(item.mask, item.mask_name) or {},
            target=item.target,
            effect_mask=item.effect_mask,
            erased=erased,
        )

    def stored(self, name: str, role: str) -> dict[str, Any]:
        """The object of that name as a value of an image column."""
        return {"bytes": self._bytes(name, role), "path": name}

    def check(self, row: Mapping[str, Any]) -> None:
        """Raises the ItemError that the plan knows of."""
        if row["error"]:
            raise ItemError("read", row["error"], row["message"])

    def assemble(
        self,
        row: Mapping[str, Any],
        *,
        source: Stored,
        mask: Stored,
        target: Stored | None = None,
        effect_mask: Stored | None = None,
        erased: Stored | None = None,
        **more: Any,
    ) -> Built:
        """A whole record of encoded pictures. All are opened; masks are written anew, as PNG of the photo's size.

        Raises:
            ItemError: stage ``decode``: a code of ``decode_photo`` or ``decode_mask``, with ``target_``, ``erased_`` or ``effect_`` before
                it for these columns, or ``target_size_mismatch``, ``erased_size_mismatch``.
        """
        photo = decode_photo(source["bytes"], max_megapixels=self.limit)
        size = (photo.width, photo.height)
        drawn = decode_mask(mask["bytes"], size, max_megapixels=self.limit)
        for name, value in (("target", target), ("erased", erased)):
            if value is not None:
                self._check_answer(name, value["bytes"], size)
        values = record.empty_record(
            id=row["id"],
            source=record.image_value(storable_source(source["bytes"], photo), source["path"]),
            mask=record.image_value(encode_mask(drawn.pixels), mask["path"]),
            target=None if target is None else dict(target),
            effect_mask=None if effect_mask is None else self._effect_mask(effect_mask, size),
            erased=None if erased is None else dict(erased),
            category=row["category"],
            origin=row["origin"],
            width=photo.width,
            height=photo.height,
            **more,
        )
        return Built(values, ("mask_resized",) if drawn.resized else ())

    def _check_answer(self, name: str, data: bytes, size: tuple[int, int]) -> None:
        picture = decode_picture(data, noun=name, prefix=f"{name}_", max_megapixels=self.limit)
        if (picture.width, picture.height) != size:
            raise ItemError(
                "decode",
                f"{name}_size_mismatch",
                f"the {name} is {picture.width} x {picture.height} and the photo {size[0]} x {size[1]} pixels; a triplet needs one size",
            )

    def _effect_mask(self, value: Stored, size: tuple[int, int]) -> dict[str, Any] | None:
        try:
            pixels = decode_mask(value["bytes"], size, max_megapixels=self.limit).pixels
        except ItemError as error:
            raise ItemError(error.stage, f"effect_{error.code}", f"effect mask: {error.message}") from error
        return record.image_value(encode_mask(pixels), value["path"])


def printable(rows: Iterator[PlanRow]) -> Iterator[PlanRow]:
    """The rows; one with a text that cannot be written as UTF-8 fails as ``bad_name``, with that text escaped."""
    for row in rows:
        values = {field.name: getattr(row, field.name) for field in fields(row)}
        escaped = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in values.items() if isinstance(value, str)}
        wrong = [name for name, value in escaped.items() if value != values[name]]
        if not wrong:
            yield row
            continue
        message = f"{wrong[0]} is {escaped[wrong[0]]}, which is not UTF-8; rename it"
        changed = replace(row)
        for name in wrong:
            setattr(changed, name, escaped[name])
        changed.error, changed.message = "bad_name", message
        yield changed


def failed(item_id: str, origin: str, error: str, message: str, source: str | None = None) -> PlanRow:
    """A row that is known to fail before anything is fetched."""
    return PlanRow(item_id, source=source, origin=origin, error=error, message=message)


def relative_name(folder: str, name: str) -> str:
    """``name`` as it stands in a file of ``folder`` (relative to the input), relative to the input; whole paths stay as they are."""
    return name if "://" in name or name.startswith("/") else posixpath.normpath(posixpath.join(folder, name))


def nothing_found(uri: str, kind: str, wanted: str) -> UsageError:
    """For an input that is no such collection."""
    return UsageError(f"{uri} is no {kind} collection: {wanted}; docs/data.md shows the layout")
