"""Numbers as people write them: 10M, 250k, 1.5 TB."""

from __future__ import annotations

import re
from typing import Final

from core.errors import UsageError

_FACTORS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_WRITTEN: Final = re.compile(r"(\d[\d_,]*(?:\.\d+)?)\s*([kmgb]?)", re.IGNORECASE)


def parse_count(text: str) -> int:
    """A whole number from ``10000000``, ``10_000_000``, ``10M``, ``250k`` or ``1.5B``.

    Raises:
        UsageError: it is none of these, or less than one.
    """
    match = _WRITTEN.fullmatch(text.strip())
    value = round(float(match[1].replace("_", "").replace(",", "")) * _FACTORS[match[2].lower()]) if match else 0
    if value < 1:
        raise UsageError(f"{text!r} is no number of images; write 250k, 10M or 10000000")
    return value


def bytes_in_words(count: float) -> str:
    """Bytes in decimal units, as storage is billed: ``1.5 TB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def seconds_in_words(seconds: float) -> str:
    """``40 s``, ``12 min``, ``9.5 h`` or ``3.2 days``."""
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 72 * 3600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"
