"""Where the rounds' labels come from: the database of a review desk, or a folder with one file of labels a queue."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from core import storage
from core.errors import ObjectMissing, UsageError
from core.labels import Label, read_labels
from core.rounds.settings import RoundsSettings

QUEUE_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("score", pa.float32()),
        pa.field("sampled_by", pa.string()),
        pa.field("weight", pa.float64()),
        pa.field("votes", pa.int32()),
        pa.field("model", pa.string()),
        pa.field("category", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("round", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)
"""A row of ``queue.parquet``: a result that people are to judge, in the order in which they see them."""


class LabelSource(Protocol):
    """People, as the rounds see them."""

    def offer(self, queue: str, dataset: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Ask for labels of these rows of ``QUEUE_SCHEMA``, results in ``dataset``; asking twice changes nothing."""

    def labels(self, queue: str) -> list[Label]:
        """What was said so far."""

    def words(self, queue: str, dataset: str) -> str:
        """How people get to it, for a message."""


class FolderLabels:
    """Files of labels that something else writes, ``<folder>/<queue>.parquet``."""

    def __init__(self, folder: str) -> None:
        self.folder = storage.normalize_uri(folder)

    def offer(self, queue: str, dataset: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nobody is told; the message says where the results are."""

    def labels(self, queue: str) -> list[Label]:
        try:
            return list(read_labels(self._uri(queue)))
        except ObjectMissing:
            return []

    def words(self, queue: str, dataset: str) -> str:
        return f"write labels of {dataset} to {self._uri(queue)}"

    def _uri(self, queue: str) -> str:
        return storage.join(self.folder, f"{queue}.parquet")


class DeskLabels:
    """The database of ``cleanplate review``."""

    def __init__(self, url: str) -> None:
        self.url = url

    def offer(self, queue: str, dataset: str, rows: Sequence[Mapping[str, Any]]) -> None:
        from serving.review.entries import QueueItem

        entries = [
            QueueItem(
                id=row["id"],
                shard=row["shard"],
                row=row["row"],
                place=place,
                sampled_by=row["sampled_by"],
                weight=row["weight"],
                votes_wanted=row["votes"],
                score=row["score"],
                model=row["model"],
                seed=row["seed"],
                round=row["round"],
                category=row["category"],
                width=row["width"],
                height=row["height"],
            )
            for place, row in enumerate(rows)
        ]
        with self._store() as store:
            store.add_queue(queue, entries, source=dataset, settings={"made_by": "cleanplate rounds"})

    def labels(self, queue: str) -> list[Label]:
        with self._store() as store:
            return list(store.labels(queue))

    def words(self, queue: str, dataset: str) -> str:
        return f"cleanplate review --input {dataset} --queue {queue} --database {self.url}"

    def _store(self) -> Any:
        from contextlib import closing

        try:
            from serving.review.store import open_store
        except ImportError as error:
            raise UsageError(f"labels in a database need the review desk ({error}): pip install 'cleanplate[review]'") from error
        return closing(open_store(self.url))


def label_source(settings: RoundsSettings) -> LabelSource:
    """The source that the settings name; else the desk's database in the run's folder.

    Raises:
        UsageError: none is named, and the folder is no place for a database.
    """
    if settings.labels.folder:
        return FolderLabels(settings.labels.folder)
    if settings.labels.database:
        return DeskLabels(settings.labels.database)
    folder = storage.normalize_uri(settings.folder)
    if storage.is_s3(folder):
        raise UsageError(f"{folder} is in a bucket, where no database can be: give labels.database (an SQLAlchemy URL) or labels.folder")
    return DeskLabels(f"sqlite:///{folder}/review.sqlite")


def write_table(uri: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Put a small Parquet table atomically; the same rows make the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema), buffer, compression="zstd")
    storage.storage_for(uri).write(uri, buffer.getvalue())


def read_table(uri: str) -> list[dict[str, Any]]:
    """What ``write_table`` put."""
    return list(pq.read_table(pa.BufferReader(storage.storage_for(uri).read(uri))).to_pylist())
