"""Published evaluation sets by name. Figures of different cuts of one set are no comparison, so a copy must have the published size.

RORD-Val is 343 items with ObjectClear, 344 with OmniEraser, 1,000 with OmniPaint and 1,542 with ReFocusEraser; RemovalBench is 69 or 70.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from core.errors import UsageError

KNOWN_SETS: Final[Mapping[str, tuple[int, ...]]] = {
    "ober-test": (163,),
    "rord-val-343": (343,),
    "removalbench": (69, 70),
    "rorem-500": (500,),
}
"""Numbers of items that the set is published with, by name."""


def check_known_set(name: str, items: int) -> None:
    """Raises UsageError where there is no set of that name, or it is published with another number of items; an empty name is none."""
    if not name:
        return
    sizes = KNOWN_SETS.get(name)
    if sizes is None:
        raise UsageError(f"there is no known set {name!r}; the known sets are {', '.join(KNOWN_SETS)}")
    if items not in sizes:
        wanted = " or ".join(map(str, sizes))
        raise UsageError(f"{name} has {wanted} items, and this copy has {items}: give the whole set, or leave --known-set away")
