"""Under which licences a dataset stands, and whether any of them restricts what may be done with what is made from it.

``dataset.json`` lists them. A dataset that was made from another by a job that does not list any stands under those of its input.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from typing import Any, Final

from core import storage
from core.collections.formats import FORMATS
from core.errors import ObjectMissing, StorageError, UsageError

UNKNOWN: Final = "unknown"
_RESTRICTED: Final = re.compile(r"\bnc\b|non-?commercial|research[ -]only|academic", re.IGNORECASE)
_ANCESTORS: Final = 16


def licences_of(uri: str) -> list[str]:
    """The licences of the dataset, folder or manifest at ``uri``, sorted; ``unknown`` where nothing is written down.

    Raises:
        StorageError: the store refused.
    """
    for _ in range(_ANCESTORS):
        configuration = _configuration(storage.normalize_uri(uri))
        if configuration.get("licences"):
            return sorted(str(licence) for licence in configuration["licences"])
        parent = configuration.get("input")
        if not isinstance(parent, str) or not parent or parent == uri:
            break
        uri = parent
    return [UNKNOWN]


def _configuration(uri: str) -> dict[str, Any]:
    folder = storage.parent(uri) if uri.endswith((".parquet", ".csv", ".jsonl", ".ndjson")) else uri
    name = storage.join(folder, "dataset.json")
    try:
        found = json.loads(storage.storage_for(name).read(name, 1 << 24))
    except (ObjectMissing, ValueError):
        return {}
    except StorageError:
        if storage.is_s3(name):
            raise
        return {}  # a file with the name of a folder
    configuration = found.get("configuration") if isinstance(found, dict) else None
    return configuration if isinstance(configuration, dict) else {}


def restriction_name(licence: str) -> str | None:
    """What ``--accept-license`` calls a licence that is restricted (a collection's name, else the licence itself); None for others."""
    for name, chosen in FORMATS.items():
        if chosen.restricted and chosen.licence.casefold() == licence.casefold():
            return name
    return licence.casefold() if _RESTRICTED.search(licence.replace("_", " ").replace("-", " ")) or _RESTRICTED.search(licence) else None


def check_accepted(licences: Iterable[str], accepted: Collection[str]) -> None:
    """Refuse to put restricted licences together with others unless each is in ``accepted`` (case-folded names, see ``parse_accepted``).

    Raises:
        UsageError: one is not.
    """
    for licence in licences:
        name = restriction_name(licence)
        if name is not None and name not in accepted:
            raise UsageError(
                f"part of the input stands under {licence}, which is restricted: what is mixed with it, or trained on it, may be, too; "
                f"read it, then add --accept-license {name if ' ' not in name else repr(name)}"
            )


def parse_accepted(text: str) -> frozenset[str]:
    """Names from ``--accept-license A,B``, case-folded."""
    return frozenset(name.strip().casefold() for name in text.split(",") if name.strip())
