"""Datasets that the rounds put together, and looks of photos: by tasks of the cluster, a shard each.

Which row stands in which shard follows from the list of rows alone, and so do the bytes: a merge that was killed goes on with the shards
that it lacks, and the training after it sees what it would have seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import ray

from core import storage
from core.curation.signature import WINDOWS, WORDS, Words, signature
from core.errors import CleanplateError, ItemError, ObjectMissing, StorageError, StorageUnavailable
from core.fetch import Fetcher
from core.images import decode_photo
from core.ledger import part_name, write_shard
from core.plan import PlanRow
from core.readers import open_input
from core.record import RECORD_SCHEMA
from core.rounds.duplicates import KnownPhotos

ROWS: Final = 128
"""Of a shard, at most."""
TASK_CPUS: Final = 0.5
MOST_TASKS: Final = 256
"""Submitted at a time: a task's arguments are held by the driver."""
COUNTS: Final = ".cleanplate/counts"
MAX_MEGAPIXELS: Final = 200.0

Use = Literal["triplet", "accepted", "judged_accepted", "judged_rejected"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A row that enters a dataset.

    Attributes:
        row: where it stands, by whole URIs.
        use: ``triplet``: with the clean plate that it has; ``accepted``: its erasure becomes its clean plate; ``judged_...``: its erasure
            with a verdict, for a discriminator.
    """

    row: PlanRow
    use: Use


def rows_of(uri: str) -> Iterator[PlanRow]:
    """The rows of a dataset, folder or manifest, by whole URIs. Raises UsageError where it is none."""
    found = open_input(uri)
    for row in found.rows():
        for name in ("source", "mask", "target", "effect_mask", "erased", "shard"):
            value = getattr(row, name)
            if value:
                setattr(row, name, storage.resolve(found.base, value))
        yield row


def merge(output: str, chosen: Sequence[Chosen], known: KnownPhotos | None) -> dict[str, int]:
    """Write the chosen rows, in their order, as a dataset in ``output``; needs a Ray cluster.

    Args:
        known: photos that nothing in the dataset may be like; None: nothing is compared.

    Returns:
        ``read``, ``items``, ``near_duplicates`` (left out), ``failed`` (could not be read, or lack what their use needs), which add up.
    """
    totals = {"read": len(chosen), "items": 0, "near_duplicates": 0, "failed": 0}
    parts = (chosen[start : start + ROWS] for start in range(0, len(chosen), ROWS))
    arguments = ((output, number, [(asdict(one.row), one.use) for one in part], known) for number, part in enumerate(parts))
    for counts in _on_cluster(_write_part, arguments):
        for name, count in counts.items():
            totals[name] += count
    written = {"counts": totals, "made_by": "cleanplate rounds"}
    storage.storage_for(output).write(storage.join(output, "dataset.json"), json.dumps(written, indent=1, sort_keys=True).encode())
    return totals


def photo_signatures(rows: Sequence[PlanRow], *, targets: bool = False) -> list[Words]:
    """Of every row the signature of its photo, and with ``targets`` that of its clean plate: (0 to 2, 15, 4) uint64.

    There is none of what cannot be read. Needs a Ray cluster.
    """
    parts = [([asdict(row) for row in rows[start : start + ROWS]], targets) for start in range(0, len(rows), ROWS)]
    return [found for part in _on_cluster(_sign_part, parts) for found in part]


def _on_cluster(task: Any, arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """The results in order, with as many tasks in flight as the cluster is busy with."""
    remote = ray.remote(num_cpus=TASK_CPUS, max_retries=3)(task)
    window = max(2, min(MOST_TASKS, int(4 * ray.cluster_resources().get("CPU", 1))))
    waiting: list[Any] = []
    try:
        for given in arguments:
            waiting.append(remote.remote(*given))
            if len(waiting) >= window:
                yield ray.get(waiting.pop(0))
        while waiting:
            yield ray.get(waiting.pop(0))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, CleanplateError) else CleanplateError(f"a task of the rounds stopped: {cause!r}") from error


def _write_part(output: str, number: int, rows: list[tuple[dict[str, Any], Use]], known: KnownPhotos | None) -> dict[str, int]:
    """One shard, and what became of its rows, which is written after it."""
    noted = storage.join(output, COUNTS, f"{number:06d}.json")
    try:
        return dict(json.loads(storage.storage_for(noted).read(noted)))
    except ObjectMissing:
        pass
    fetcher, records = Fetcher("/"), []
    counts = {"items": 0, "near_duplicates": 0, "failed": 0}
    for row, use in rows:
        try:
            values = _used(fetcher.fetch_record(row, MAX_MEGAPIXELS, needs_erasure=False), use)
            if known is not None and _is_near(known, values):
                counts["near_duplicates"] += 1
                continue
        except StorageUnavailable:
            raise
        except (ItemError, StorageError, pa.ArrowException, OSError):
            counts["failed"] += 1
            continue
        records.append(values)
        counts["items"] += 1
    if records:
        write_shard(storage.join(output, part_name(1, number)), pa.Table.from_pylist(records, RECORD_SCHEMA))
    storage.storage_for(noted).write(noted, json.dumps(counts, sort_keys=True).encode())
    return counts


def _used(values: dict[str, Any], use: Use) -> dict[str, Any]:
    """The record as its use wants it.

    Raises:
        ItemError: it lacks the picture that matters.
    """
    picture = "target" if use == "triplet" else "erased"
    if not (values[picture] or {}).get("bytes"):
        raise ItemError("merge", f"no_{picture}", f"record {values['id']} has no {picture}")
    if use == "triplet":
        return {**values, **dict.fromkeys(("erased", "score", "verdict", "seed", "model", "round"))}
    if use == "accepted":
        return {**values, "target": values["erased"], "erased": None, "verdict": "accepted"}
    return {**values, "target": None, "score": None, "verdict": use.removeprefix("judged_")}


def _is_near(known: KnownPhotos, values: dict[str, Any]) -> bool:
    return bool(known.near(_signed([values[name]["bytes"] for name in ("source", "target") if values[name]])).any())


def _sign_part(rows: list[dict[str, Any]], targets: bool) -> list[Words]:
    fetcher = Fetcher("/")
    return [_signatures(fetcher, row, targets) for row in rows]


def _signatures(fetcher: Fetcher, row: dict[str, Any], targets: bool) -> Words:
    try:
        item = fetcher.fetch(row)
        return _signed([item.source, *([item.target["bytes"]] if targets and item.target else [])])
    except StorageUnavailable:
        raise
    except (ItemError, StorageError, pa.ArrowException, OSError):
        return _signed([])


def _signed(pictures: Sequence[bytes]) -> Words:
    found = [signature(decode_photo(data, max_megapixels=MAX_MEGAPIXELS).pixels) for data in pictures]
    return np.stack(found) if found else np.zeros((0, len(WINDOWS), WORDS), np.uint64)
