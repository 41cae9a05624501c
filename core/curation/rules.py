"""The rules that an item must keep by itself: class, size, shape, mask, sharpness, safety. Each drop has a reason of one word."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from core import storage
from core.errors import UsageError

RULES: Final = ("class_excluded", "too_small", "aspect", "mask_small", "mask_large", "blurred", "unsafe")
"""In the order in which they are looked at; the first that an item breaks is its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Limits; what was not measured breaks none.

    Attributes:
        exclude: classes that are left out, case-folded.
        min_side: least shorter side, pixels.
        max_aspect: largest ratio of longer to shorter side; 0 is none.
        min_area, max_area: of the mask, share of the photo.
        min_sharpness: see ``core.curation.measures.sharpness``.
        max_unsafe: largest score of the safety classifier.
    """

    exclude: frozenset[str] = frozenset()
    min_side: int = 0
    max_aspect: float = 0.0
    min_area: float = 0.0
    max_area: float = 1.0
    min_sharpness: float = 0.0
    max_unsafe: float = 1.0

    def broken(self, table: pa.Table) -> NDArray[np.int8]:
        """For each row of measures the number of the first rule in ``RULES`` that it breaks, -1 for none."""
        width, height = _floats(table, "width"), _floats(table, "height")
        with np.errstate(invalid="ignore", divide="ignore"):
            shorter, longer = np.minimum(width, height), np.maximum(width, height)
            area = _floats(table, "mask_area")
            tests = (
                self._excluded(table),
                shorter < self.min_side,
                (longer > self.max_aspect * shorter) & (self.max_aspect > 0),
                area < self.min_area,
                area > self.max_area,
                _floats(table, "sharpness") < self.min_sharpness,
                _floats(table, "unsafe") > self.max_unsafe,
            )
        found = np.full(len(table), -1, np.int8)
        for number in reversed(range(len(RULES))):
            found[tests[number]] = number
        return found

    def _excluded(self, table: pa.Table) -> NDArray[np.bool_]:
        if not self.exclude:
            return np.zeros(len(table), np.bool_)
        categories = pc.dictionary_encode(table["category"].combine_chunks())
        left_out = np.array([str(name).casefold() in self.exclude for name in categories.dictionary.to_pylist()] + [False])
        return np.asarray(left_out[pc.fill_null(categories.indices, len(left_out) - 1).to_numpy(zero_copy_only=False)], np.bool_)


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column with NaN for null, which breaks no rule."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), np.float64)


def parse_classes(text: str) -> frozenset[str]:
    """Class names, case-folded: ``default`` (the list of the package), ``none``, a text file (``.txt``), or names with commas between them.

    Raises:
        UsageError: the file is no text in UTF-8.
        StorageError: it cannot be read.
    """
    if text in ("", "none"):
        return frozenset()
    if text == "default":
        lines = _lines(resources.files("core.curation").joinpath("excluded_classes.txt").read_text("utf-8"))
        return frozenset(name.casefold() for name in lines)
    return frozenset(name.casefold() for name in parse_class_names(text))


def parse_class_names(text: str) -> list[str]:
    """Class names as they are written: names with commas between them, or the lines of a ``.txt`` file, where # begins a remark.

    Raises:
        UsageError: the file is no text in UTF-8.
        StorageError: it cannot be read.
    """
    if not text.endswith(".txt"):
        return [name.strip() for name in text.split(",") if name.strip()]
    uri = storage.normalize_uri(text)
    try:
        return _lines(storage.storage_for(uri).read(uri).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{uri} is no text in UTF-8; save it anew") from error


def _lines(text: str) -> list[str]:
    return [name for line in text.splitlines() if (name := line.partition("#")[0].strip())]
