"""Which items a training takes: the light columns of a dataset, held in memory as arrays; pictures are read when their turn comes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from core import storage
from core.errors import UsageError
from core.fetch import Fetcher
from core.ledger import READERS, list_parts
from core.parallel import map_ahead
from core.plan import PlanRow
from core.readers import open_input, open_parquet
from core.record import schema_problem

TARGET, ERASED, JUDGED, EFFECTS = 1, 2, 4, 8
"""Flags of an item: it has a clean plate; it has an erasure; somebody accepted or rejected that; its effects are marked."""
_LIGHT: Final = ("id", "width", "height", "verdict", "score", "target.path", "erased.path", "effect_mask.path")
_SCALE: Final = float(2**64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which of a dataset's items are taken.

    Attributes:
        judged: items with an erasure that was accepted or rejected are taken.
        targets: items with a clean plate are taken.
        min_score: items that have a score are taken from this score on; None: all are.

    Raises:
        UsageError: neither kind is taken, or the score is not a probability.
    """

    judged: bool = False
    targets: bool = True
    min_score: float | None = None

    def __post_init__(self) -> None:
        if not (self.judged or self.targets):
            raise UsageError("a selection takes items with a target, judged items, or both; got neither")
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise UsageError(f"min_score is {self.min_score}; a score is a probability from 0 to 1")


@dataclass(frozen=True, slots=True, eq=False)
class TrainingIndex:
    """The items of a training set, N of them, in the order of the data.

    Attributes:
        base: folder of the data.
        shards: URIs of Parquet shards; empty where the data are single files.
        shard_N: int32, the shard of an item.
        row_N: int32, its row there (or its place in ``files``).
        group_N: int32, which run of neighbours (row group) it is read with.
        key_N: uint64, a hash of its id.
        size_N2: int32, width and height of its photo; 0 where nobody has looked.
        flags_N: uint8, sum of ``TARGET``, ``ERASED``, ``JUDGED``, ``EFFECTS``.
        files: plan rows, where the data are single files.
        fingerprint: of all of the above: a training goes on only with the same items.
    """

    base: str
    shards: tuple[str, ...]
    shard_N: np.ndarray
    row_N: np.ndarray
    group_N: np.ndarray
    key_N: np.ndarray
    size_N2: np.ndarray
    flags_N: np.ndarray
    files: tuple[dict[str, Any], ...] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.key_N)

    def place(self, item: int) -> str:
        """Where an item is, for messages."""
        row = int(self.row_N[item])
        return str(self.files[row]["source"]) if self.files else f"row {row} of {self.shards[int(self.shard_N[item])]}"

    def record(self, fetcher: Fetcher, item: int, max_megapixels: float) -> dict[str, Any]:
        """The whole record of an item, bytes of its pictures included.

        Raises:
            ItemError: it cannot be fetched.
            StorageError: its shard cannot be read.
        """
        row = int(self.row_N[item])
        if self.files:
            return fetcher.fetch_record(self.files[row], max_megapixels, needs_erasure=False)
        return fetcher.record_at(self.shards[int(self.shard_N[item])], row)

    def take(self, chosen_N: np.ndarray) -> TrainingIndex:
        """The items where ``chosen_N`` (bool) is set."""
        arrays = (self.shard_N, self.row_N, self.group_N, self.key_N, self.size_N2, self.flags_N)
        return _sealed(self.base, self.shards, [array[chosen_N] for array in arrays], self.files)

    def split(self, share: float) -> tuple[TrainingIndex, TrainingIndex]:
        """Items for training and items held out, ``share`` (0 to below 1) of all: which they are follows from their ids alone.

        Raises:
            UsageError: a share out of range.
        """
        if not 0 <= share < 1:
            raise UsageError(f"validation_share is {share}; allowed are 0 to below 1")
        # another hash than the one that spreads items over sizes
        held_N = (self.key_N * np.uint64(0x9E3779B97F4A7C15)).astype(np.float64) / _SCALE < share
        return self.take(~held_N), self.take(held_N)


def read_index(uri: str, selection: Selection) -> TrainingIndex:
    """The items of a dataset (or a folder or manifest with targets) that ``selection`` takes; no picture is read.

    Raises:
        UsageError: there are no data at ``uri``, or none that are taken.
        StorageError: they cannot be read.
    """
    found = open_input(uri)
    parts = list(_shard_columns(found.base, [uri] if uri.endswith(".parquet") else list_parts(uri)) if found.kind == "dataset" else ())
    files = () if found.kind == "dataset" else tuple(_plain(row) for row in found.rows() if not row.error)
    if files:
        parts = [_file_columns(files)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    total = len(columns["key"]) if columns else 0
    taken_N = np.zeros(total, bool)
    for asked, flag in ((selection.targets, TARGET), (selection.judged, JUDGED)):
        if asked and total:
            taken_N |= (columns["flags"] & flag) > 0
    if selection.min_score is not None and total:
        taken_N &= ~(columns["score"] < selection.min_score)
    if not taken_N.any():
        wanted = [name for name, asked in (("a target", selection.targets), ("a judged erasure", selection.judged)) if asked]
        score = "" if selection.min_score is None else f" and a score from {selection.min_score}"
        raise UsageError(
            f"{uri} holds {total} items, none with {' or '.join(wanted)}{score}: training needs them; run cleanplate compose or clean"
        )
    shards = tuple(storage.join(found.base, name) for name in dict.fromkeys(str(part["name"][0]) for part in parts)) if not files else ()
    return _sealed(found.base, shards, [columns[name][taken_N] for name in _ARRAYS], files)


_ARRAYS: Final = ("shard", "row", "group", "key", "size", "flags")


def _shard_columns(base: str, shards: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """The light columns of every shard, in order, read by threads."""
    group = 0
    with ThreadPoolExecutor(READERS) as pool:
        for number, part in enumerate(map_ahead(pool, _light_columns, shards, READERS)):
            part["group"] += group
            group = int(part["group"][-1]) + 1 if len(part["group"]) else group
            part["shard"] = np.full(len(part["key"]), number, np.int32)
            part["name"] = np.full(len(part["key"]), storage.relative(base, shards[number]))
            if len(part["key"]):
                yield part


def _light_columns(shard: str) -> dict[str, np.ndarray]:
    file = open_parquet(shard)
    problem = schema_problem(file.schema_arrow)
    if problem:
        raise UsageError(f"{shard} is no shard of a dataset: {problem}")
    present = [name for name in _LIGHT if name.split(".")[0] in file.schema_arrow.names]
    table = file.read(columns=present)
    rows = table.num_rows
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]

    def valid(name: str) -> np.ndarray:
        return np.asarray(table.column(name).is_valid()) if name in table.column_names else np.zeros(rows, bool)

    judged = np.isin(table.column("verdict").to_pylist(), ["accepted", "rejected"]) if "verdict" in table.column_names else valid("verdict")
    flags = TARGET * valid("target") + ERASED * valid("erased") + JUDGED * (judged & valid("erased")) + EFFECTS * valid("effect_mask")
    score = table.column("score").to_numpy().astype(np.float32) if "score" in table.column_names else np.full(rows, np.nan, np.float32)
    return {
        "row": np.arange(rows, dtype=np.int32),
        "group": np.repeat(np.arange(len(sizes)), sizes).astype(np.int32),
        "key": np.array([_key(name or f"{shard}-{row}") for row, name in enumerate(table.column("id").to_pylist())], np.uint64),
        "size": np.stack([table.column(name).to_numpy().astype(np.int32) for name in ("width", "height")], axis=1),
        "flags": flags.astype(np.uint8),
        "score": score,
    }


def _file_columns(files: tuple[dict[str, Any], ...]) -> dict[str, np.ndarray]:
    count = len(files)
    return {
        "name": np.full(count, ""),
        "shard": np.zeros(count, np.int32),
        "row": np.arange(count, dtype=np.int32),
        "group": np.arange(count, dtype=np.int32),
        "key": np.array([_key(row["id"]) for row in files], np.uint64),
        "size": np.zeros((count, 2), np.int32),
        "flags": np.array(
            [TARGET * bool(row["target"]) + ERASED * bool(row["erased"]) + EFFECTS * bool(row["effect_mask"]) for row in files], np.uint8
        ),
        "score": np.full(count, np.nan, np.float32),
    }


def _plain(row: PlanRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def _key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _sealed(base: str, shards: tuple[str, ...], arrays: list[np.ndarray], files: tuple[dict[str, Any], ...]) -> TrainingIndex:
    """An index of arrays as in ``_ARRAYS``, with its fingerprint: of ids, order, groups and sizes, and so of all that decides which items
    a step takes."""
    shard_N, row_N, group_N, key_N, size_N2, flags_N = arrays
    digest = hashlib.blake2b(digest_size=16)
    for array in (group_N, key_N, size_N2, flags_N):
        digest.update(np.ascontiguousarray(array).tobytes())
    return TrainingIndex(base, shards, shard_N, row_N, group_N, key_N, size_N2, flags_N, files, digest.hexdigest())
