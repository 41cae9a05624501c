"""Reading a collection in one process, as the job's actors do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from core.collections.builder import Built, Choice
from core.collections.formats import FORMATS, open_collection
from core.errors import ItemError
from core.images import decode_photo
from core.plan import PlanRow


def read(name: str, uri: str, **choice: Any) -> tuple[dict[str, PlanRow], dict[str, Built], dict[str, ItemError]]:
    """Plan rows, records and errors by id."""
    chosen = Choice(**choice)
    found = open_collection(name, uri, None, chosen)
    builder = FORMATS[name].builder(found.base, 200.0, chosen)
    rows = list(found.rows())
    by_id = {row.id: row for row in rows}
    assert len(by_id) == len(rows), "an id stands twice"
    built, errors = {}, {}
    for row in rows:
        try:
            built[row.id] = builder.build(asdict(row))
        except ItemError as error:
            errors[row.id] = error
    return by_id, built, errors


def codes(errors: dict[str, ItemError]) -> dict[str, str]:
    return {name: error.code for name, error in errors.items()}


def pixels(value: dict[str, Any] | None) -> np.ndarray:
    """(H, W, 3) of an image value."""
    assert value is not None
    return decode_photo(value["bytes"]).pixels


def drawn(value: dict[str, Any] | None) -> np.ndarray:
    """(H, W) of a mask value."""
    return pixels(value)[..., 0]
