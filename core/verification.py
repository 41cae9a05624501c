"""Counting a job: in, out, failed, lost, twice; and whether every picture that it wrote opens."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import pyarrow as pa

from core.errors import ItemError, StorageError
from core.images import decode_photo
from core.ledger import list_output, read_ledger
from core.parallel import map_ahead
from core.plan import PlanInfo, read_plan_ids
from core.readers import open_parquet
from core.record import IMAGE_COLUMNS, record_problem, schema_problem

EXAMPLES: Final = 20
_BATCH_ROWS: Final = 16


@dataclass(slots=True)
class Count:
    """What stands in an output. ``lost`` is what of the plan is neither a result nor a failure; in a running job it is not done yet."""

    items: int | None
    out: int
    failed: int
    lost: int
    twice: int
    foreign: int
    verdicts: Counter[str]
    failures: Counter[str]
    lost_examples: list[str] = field(default_factory=list)


def count_output(output: str, plan_folder: str, plan: PlanInfo | None) -> Count:
    """Compare what is in ``output`` with the plan, by ids; without a plan only what is twice is counted."""
    ledger = read_ledger(output)
    lost = inside = 0
    examples: list[str] = []
    if plan is not None:
        for ids in read_plan_ids(plan_folder, plan):
            found = ledger.ids.contains(ids)
            inside += int(found.sum())
            missing = [item for item, is_there in zip(ids, found, strict=True) if not is_there]
            lost += len(missing)
            examples += missing[: EXAMPLES - len(examples)]
    twice = ledger.ids.duplicates()
    foreign = len(ledger.ids) - twice - inside if plan is not None else 0
    items = plan.items if plan is not None else None
    return Count(items, ledger.out, ledger.failed, lost, twice, foreign, ledger.verdicts, ledger.errors, examples)


@dataclass(slots=True)
class PictureCheck:
    """Pictures that were opened, and what is wrong: one line a fault, at most ``EXAMPLES`` kept of ``faults`` in all."""

    pictures: int = 0
    faults: int = 0
    examples: list[str] = field(default_factory=list)


def check_pictures(output: str, threads: int = 0, max_megapixels: float = 10_000) -> PictureCheck:
    """Decode every picture of every record, and check that every record is one. Memory holds a few records at a time."""
    check = PictureCheck()
    parts, _ = list_output(output)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for uri in parts:
            for found, faults in map_ahead(pool, partial(_check_record, max_megapixels), _records(uri), _BATCH_ROWS):
                check.pictures += found
                check.faults += len(faults)
                check.examples += [f"{uri}: {fault}" for fault in faults][: EXAMPLES - len(check.examples)]
    return check


def _records(uri: str) -> Iterator[dict[str, object]]:
    file = open_parquet(uri)
    problem = schema_problem(file.schema_arrow)
    if problem:
        raise StorageError(f"{uri} is no shard of a dataset: {problem}")
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri} cannot be read: {error}") from error


def _check_record(max_megapixels: float, values: dict[str, object]) -> tuple[int, list[str]]:
    problem = record_problem(values)
    faults = [f"{values.get('id')}: {problem}"] if problem else []
    found = 0
    for name in IMAGE_COLUMNS:
        value = values.get(name)
        if isinstance(value, dict) and value.get("bytes"):
            found += 1
            try:
                photo = decode_photo(value["bytes"], max_megapixels=max_megapixels)
            except ItemError as error:
                faults.append(f"{values.get('id')}: {name} does not open: {error}")
                continue
            if (photo.width, photo.height) != (values["width"], values["height"]) and name in {"source", "mask", "erased"}:
                faults.append(
                    f"{values.get('id')}: {name} is {photo.width} x {photo.height}, the record says {values['width']} x {values['height']}"
                )
    return found, faults
