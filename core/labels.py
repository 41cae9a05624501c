"""Labels: what people decided about erasures, one row an item; a view over the log of their decisions (``serving.review``).

Who says what when is the log's; a label is the majority of what stands. Labels travel as one Parquet file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from core import storage
from core.errors import StorageError, UsageError
from core.metrics.statistics import Estimate, wilson_interval
from core.readers import open_parquet

Verdict = Literal["accepted", "rejected", "unsure"]
VERDICTS: Final[tuple[Verdict, ...]] = ("accepted", "rejected", "unsure")
"""What a person may say of an erasure."""
REASONS: Final = ("object_left", "new_object", "shadow_left", "blur", "seam")
"""Why an erasure was rejected: the object or a part is still there; something else came in its place; its shadow or reflection is still
there; the fill is blurred or of a wrong texture; the edge shows, or something outside the mask changed."""
RANDOM: Final = "random"
"""``Label.sampled_by`` of the items of the random part."""

LABEL_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("accepted", pa.bool_()),
        pa.field("share", pa.float64(), nullable=False),
        pa.field("votes", pa.int32(), nullable=False),
        pa.field("reasons", pa.list_(pa.string()), nullable=False),
        pa.field("sampled_by", pa.string(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
    ]
)
_ROWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Label:
    """What people say about one item: the view of the last, not undone decision of every annotator.

    Attributes:
        id: the record's.
        accepted: what more than half of the votes say; None where no side has more than half (a tie, or unsure).
        share: accepting votes over all votes, 0 to 1; a soft label.
        votes: annotators whose decision stands, from 1.
        reasons: why it was rejected (``REASONS``), the most named first; empty where nobody gave one.
        sampled_by: why the item was shown: ``random`` (drawn evenly from all items of the dataset), ``uncertain`` (the discriminator could
            not tell), ``gold`` (the answer is known), or a name of the caller's own.
        weight: 1 over the probability with which the item came into the queue, from 1.

    Items of the random part are an even sample of the dataset: their plain share of successes is unbiased, however few are judged yet
    (``success_rate``). Over all labels of a queue that is judged to its end, the weighted share (``weighted_rate``) is unbiased, too.
    """

    id: str
    accepted: bool | None
    share: float
    votes: int
    reasons: tuple[str, ...]
    sampled_by: str
    weight: float

    def __post_init__(self) -> None:
        if not self.id or self.votes < 1 or not 0 <= self.share <= 1 or not self.weight >= 1:
            raise UsageError(
                f"label of {self.id!r}: votes {self.votes} (from 1), share {self.share} (0 to 1), weight {self.weight} (from 1); "
                "one is out of its range, or the id is empty"
            )

    @property
    def verdict(self) -> str:
        """As the record's column says it: ``accepted``, ``rejected`` or ``uncertain``."""
        return {True: "accepted", False: "rejected", None: "uncertain"}[self.accepted]


def label_of(item: str, votes: Sequence[Verdict], reasons: Iterable[str], *, sampled_by: str, weight: float) -> Label:
    """The label of an item from one vote an annotator (at least one) and all reasons that were given with them."""
    counts = Counter(votes)
    half = len(votes) / 2
    accepted = True if counts["accepted"] > half else False if counts["rejected"] > half else None
    named = Counter(reasons)
    ordered = tuple(sorted(named, key=lambda reason: (-named[reason], reason)))
    return Label(item, accepted, counts["accepted"] / len(votes), len(votes), ordered, sampled_by, weight)


def write_labels(uri: str, labels: Iterable[Label]) -> int:
    """Write labels as one Parquet file of ``LABEL_SCHEMA``, atomically, local or ``s3://``; returns how many there were.

    Raises:
        StorageError: the store refused.
    """
    uri = storage.normalize_uri(uri)
    rows, count = iter(labels), 0
    with storage.storage_for(uri).create(uri) as file, pq.ParquetWriter(file, LABEL_SCHEMA, compression="zstd") as writer:
        while chunk := [asdict(label) for label in islice(rows, _ROWS)]:
            writer.write_table(pa.Table.from_pylist(chunk, schema=LABEL_SCHEMA))
            count += len(chunk)
    return count


def read_labels(uri: str) -> Iterator[Label]:
    """The labels of a file, a part at a time; that it is one is looked at before the first is asked for.

    Raises:
        UsageError: the file holds no labels (which columns it has is told), or values out of range.
        StorageError: there is no such file, or it is damaged.
    """
    uri = storage.normalize_uri(uri)
    file = open_parquet(uri)
    missing = [name for name in LABEL_SCHEMA.names if name not in file.schema_arrow.names]
    if missing:
        raise UsageError(
            f"{uri} is no file of labels: it lacks {', '.join(missing)} and has {', '.join(file.schema_arrow.names[:20])}; "
            "give what cleanplate review --export labels wrote"
        )
    return _labels(uri, file)


def _labels(uri: str, file: pq.ParquetFile) -> Iterator[Label]:
    try:
        for batch in file.iter_batches(_ROWS, columns=LABEL_SCHEMA.names):
            for row in batch.to_pylist():
                yield Label(**{**row, "reasons": tuple(row["reasons"] or ())})
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri} is damaged ({str(error).splitlines()[0]}); write it again") from error


def success_rate(labels: Iterable[Label]) -> Estimate | None:
    """Share of successes in the whole dataset with Wilson's 95 % interval, from the random part alone; None where none of it is decided.

    Unsure and tied items say nothing and are left out.
    """
    decided = [label.accepted for label in labels if label.sampled_by == RANDOM and label.accepted is not None]
    return wilson_interval(sum(decided), len(decided)) if decided else None


def weighted_rate(labels: Iterable[Label]) -> float | None:
    """Share of successes by weight over all labels (Hájek's ratio); unbiased only for a queue that is judged to its end. None for none."""
    total = accepted = 0.0
    for label in labels:
        if label.accepted is not None:
            total += label.weight
            accepted += label.weight * label.accepted
    return accepted / total if total else None
