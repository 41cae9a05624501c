"""The configuration of ``cleanplate review``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import UsageError
from jobs.config import within

Export = Literal["labels", "discriminator", "rorem", "labelstudio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewConfig:
    """Open the annotators' desk on a dataset of erasures, export what people decided, or report how well they agree.

    Attributes:
        input: dataset of erasures, the output of clean or score; local or s3://
        database: SQLAlchemy URL of the log (sqlite:///path, postgresql+psycopg://...); default .cleanplate/review.sqlite in a local input
        queue: name of the queue; one that exists goes on as it was made
        items: how many erasures are to be judged; 0 is all
        random: share of them that is drawn evenly from the whole dataset, for an unbiased success rate
        overlap: share of them that several people judge
        votes: how many people judge those
        gold: file of labels, or dataset with verdicts, whose answers are known; some are mixed in, to measure accuracy
        gold_share: share of what a person sees that is gold
        repeats: share of what a person sees that they have judged before
        sure: a score above this, or below 1 minus this, may be shown in the grid
        seed: of everything that is drawn
        annotators: names of those who get a link, separated by commas; default is the user's
        withdraw: names of those whose links are to work no longer, separated by commas
        host: address to listen on; the default is reached from this machine alone
        port: port to listen on; 0 is any that is free
        export: write what people decided: labels (one file), discriminator (a dataset), rorem (meta.json and files), labelstudio (JSON)
        output: where to export to; local or s3://
        import_labelstudio: JSON export of Label Studio whose decisions are added to the log
        report: print agreement, accuracy, speed and success rate
        json: print the summary as one JSON object
    """

    input: str
    database: str | None = None
    queue: str = "review"
    items: int = 0
    random: float = 0.2
    overlap: float = 0.1
    votes: int = 2
    gold: str | None = None
    gold_share: float = 0.04
    repeats: float = 0.02
    sure: float = 0.9
    seed: int = 0
    annotators: str | None = None
    withdraw: str | None = None
    host: str = "127.0.0.1"
    port: int = 8010
    export: Export | None = None
    output: str | None = None
    import_labelstudio: str | None = None
    report: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        within("items", self.items, 0, 10**9)
        within("random", self.random, 0.0, 1.0)
        within("overlap", self.overlap, 0.0, 1.0)
        within("votes", self.votes, 2, 99)
        within("gold_share", self.gold_share, 0.0, 0.5)
        within("repeats", self.repeats, 0.0, 0.5)
        within("sure", self.sure, 0.5, 1.0)
        within("seed", self.seed, 0, 2**63 - 1)
        within("port", self.port, 0, 65535)
        if (self.export is None) != (self.output is None):
            raise UsageError("--export and --output go together: what to export, and where to")
        if sum((self.export is not None, self.import_labelstudio is not None, self.report)) > 1:
            raise UsageError("--export, --import-labelstudio and --report are done one at a time; give one of them")
        if not 1 <= len(self.queue) <= 200:
            raise UsageError(f"--queue has {len(self.queue)} characters; it must have 1 to 200")
