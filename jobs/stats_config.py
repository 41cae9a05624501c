"""The configuration of ``stats``."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.config import within


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsConfig:
    """Count a dataset: classes, origins, verdicts, sizes, mask areas, scores; as a table, as JSON, or with plots as a page.

    Attributes:
        input: dataset; local or s3://
        output: HTML file to write plots to; the default only prints
        masks: open every mask for its area; without it only small columns are read
        threads: threads that decode masks; 0 is one per core
        json: print the counts as one JSON object
    """

    input: str
    output: str | None = None
    masks: bool = True
    threads: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        within("threads", self.threads, 0, 1024)
