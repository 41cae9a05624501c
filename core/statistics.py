"""Counts of a dataset: classes, origins, verdicts, sizes, mask areas, scores. Small columns are read, and masks for their areas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from core import storage
from core.errors import ItemError, StorageError, UsageError
from core.images import decode_picture
from core.ledger import list_output
from core.parallel import map_ahead
from core.readers import open_parquet
from core.record import schema_problem

SIDE_EDGES: Final = (0, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
AREA_EDGES: Final = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
SCORE_EDGES: Final = tuple(round(0.1 * step, 1) for step in range(11))
_ROWS: Final = 64


@dataclass(slots=True)
class Statistics:
    """What a dataset holds.

    Attributes:
        items: rows of results.
        categories, origins, verdicts: rows by value; ``none`` for null.
        sides: rows by their shorter side in pixels, histogram over ``SIDE_EDGES`` (the last bin is open).
        areas: rows by their mask's share of the photo, over ``AREA_EDGES``.
        scores: rows with a score, over ``SCORE_EDGES``.
        unreadable: masks that do not open; they are in no bin of ``areas``.
    """

    items: int = 0
    categories: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    sides: list[int] = field(default_factory=lambda: [0] * len(SIDE_EDGES))
    areas: list[int] = field(default_factory=lambda: [0] * (len(AREA_EDGES) - 1))
    scores: list[int] = field(default_factory=lambda: [0] * (len(SCORE_EDGES) - 1))
    unreadable: int = 0


def gather(uri: str, *, masks: bool = True, threads: int = 2) -> Statistics:
    """The statistics of the dataset at ``uri``, local or s3://. Memory holds a few masks at a time.

    Raises:
        UsageError: there is no dataset.
        StorageError: a shard is damaged.
    """
    uri = storage.normalize_uri(uri)
    parts, failures = list_output(uri)
    if not parts and not failures:
        raise UsageError(f"{uri} holds no dataset (no part-*.parquet); give the --output of a job")
    found = Statistics()
    with ThreadPoolExecutor(threads, thread_name_prefix="masks") as pool:
        for part in parts:
            for table in _tables(part, masks):
                _count(found, table)
                if masks:
                    shares = np.array(list(map_ahead(pool, _share, table["mask"].to_pylist(), 2 * threads)))
                    found.unreadable += int(np.isnan(shares).sum())
                    _add(found.areas, np.histogram(shares[~np.isnan(shares)], AREA_EDGES)[0])
    return found


def _tables(uri: str, masks: bool) -> Iterator[pa.Table]:
    file = open_parquet(uri)
    problem = schema_problem(file.schema_arrow)
    if problem:
        raise UsageError(f"{uri} is no shard of a dataset: {problem}")
    wanted = ["category", "origin", "verdict", "score", "width", "height"]
    wanted += ["mask.bytes"] if masks else []
    columns = [name for name in wanted if name.split(".")[0] in file.schema_arrow.names]
    try:
        for batch in file.iter_batches(batch_size=_ROWS if masks else 16_384, columns=columns):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri} cannot be read: {error}") from error


def _count(found: Statistics, table: pa.Table) -> None:
    found.items += len(table)
    for name, counter in (("category", found.categories), ("origin", found.origins), ("verdict", found.verdicts)):
        values = table[name].to_pylist() if name in table.column_names else [None] * len(table)
        counter.update(value or "none" for value in values)
    shorter = np.minimum(table["width"].to_numpy(), table["height"].to_numpy())
    _add(found.sides, np.histogram(shorter, [*SIDE_EDGES, np.inf])[0])
    if "score" in table.column_names:
        scores = table["score"].drop_null().to_numpy()
        _add(found.scores, np.histogram(scores, SCORE_EDGES)[0])


def _add(bins: list[int], more: Any) -> None:
    for place, count in enumerate(more.tolist()):
        bins[place] += int(count)


def _share(value: dict[str, Any] | None) -> float:
    """Share of the picture that the stored mask marks; NaN where it does not open."""
    try:
        pixels = decode_picture((value or {}).get("bytes") or b"", noun="mask", max_megapixels=10_000).pixels
    except ItemError:
        return float("nan")
    return float((pixels[..., 0] > 127).mean())
