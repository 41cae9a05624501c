"""The configuration of ``curate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import UsageError
from jobs.config import JobConfig, check_run, within


@dataclass(frozen=True, slots=True, kw_only=True)
class CurateConfig(JobConfig):
    """Choose what is worth keeping: classes, so many of each, no near-duplicates, nothing of the evaluation sets, no bad photos.

    Attributes:
        input: dataset, folder or manifest, or several with commas between them; local or s3://
        exclude: classes that are left out: default (a list that comes along), none, names with commas, or a .txt file with one a line
        per_category: most items of a class, drawn evenly; 0 is no limit; items without a class have none
        dedupe: leave near-duplicates out (resized, encoded anew, cropped by up to 5 %)
        duplicate: object is the same object on a near-duplicate photo, photo is any on one; with --dedupe
        against: evaluation sets (datasets, folders or manifests, with commas); what is near one of their photos is left out
        min_side: least shorter side of a photo in pixels
        max_aspect: largest ratio of longer to shorter side; 0 is none
        min_area: least mask area, share of the photo
        max_area: largest mask area, share of the photo
        min_sharpness: least variance of the Laplacian at 512 pixels; sharp photos have 22 and more, 0 is no limit
        safety: package.module:Class with score(photos), from 0 to 1 (unsafe); none is no check
        max_unsafe: largest score of --safety
        measure: pictures opens every photo; metadata decides by the columns of a Parquet manifest or dataset alone
        pictures: copy writes a dataset; in-place writes manifest.parquet with URIs, and leaves the pictures where they are
        seed: of the draw; the same seed chooses the same items
        accept_license: collections or licences, with commas, that you have read and may use although they are restricted
        overwrite: start anew where the output holds another job's results; what was measured is kept
    """

    exclude: str = "default"
    per_category: int = 500
    dedupe: bool = False
    duplicate: Literal["object", "photo"] = "object"
    against: str = ""
    min_side: int = 256
    max_aspect: float = 4.0
    min_area: float = 0.005
    max_area: float = 0.6
    min_sharpness: float = 10.0
    safety: str = "none"
    max_unsafe: float = 0.5
    measure: Literal["pictures", "metadata"] = "pictures"
    pictures: Literal["copy", "in-place"] = "copy"
    seed: int = 0
    accept_license: str = ""
    block_rows: int = 256

    def __post_init__(self) -> None:
        for name, least, most in (
            ("per_category", 0, 10**9),
            ("min_side", 0, 100_000),
            ("max_aspect", 0.0, 1e6),
            ("min_area", 0.0, 1.0),
            ("max_area", 0.0, 1.0),
            ("min_sharpness", 0.0, 1e9),
            ("max_unsafe", 0.0, 1.0),
            ("seed", 0, 2**63 - 1),
        ):
            within(name, getattr(self, name), least, most)
        check_run(self)
        if 0 < self.max_aspect < 1:
            raise UsageError(f"--max-aspect is {self.max_aspect}; longer over shorter side is at least 1; 0 is no limit")
        if self.min_area > self.max_area:
            raise UsageError(f"--min-area {self.min_area} is above --max-area {self.max_area}; lower the one or raise the other")
        if self.measure == "metadata" and self.safety != "none":
            raise UsageError("--safety looks at pictures, and --measure metadata opens none; leave one of them out")

    @property
    def num_gpus(self) -> float:
        """Nothing here runs on a GPU, but what a classifier takes by itself."""
        return 0.0
