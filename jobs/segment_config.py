"""The configuration of ``segment``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import UsageError
from jobs.config import JobConfig, check_run, within


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentConfig(JobConfig):
    """Make masks for photos that have none: one object a photo, by its name (detector and segmenter) or by what stands out.

    Attributes:
        input: folder of photos, or manifest with a column source; local or s3://
        prompts: names of things with commas between them (cat, traffic light), or a .txt file with one a line; needs a detector
        detector: Grounding DINO (IDEA-Research/grounding-dino-tiny: a folder, s3:// folder or hub id), or salient for no model at all
        segmenter: grabcut (no weights), or SAM or SAM 2 (a folder, s3:// folder or hub id)
        min_score: least score of a detection
        min_area: least mask area, share of the photo
        max_area: largest mask area, share of the photo
        min_side: least shorter side of the object's box in pixels
        device: auto, cpu, cuda
        dtype: precision of the networks; auto is float32 on a CPU and bfloat16 on a GPU
        origin: name of the collection in the records; the default is the last part of --input
        max_failure_rate: share of failed items (after 200) at which the job stops; a photo without an object is one
        num_gpus: GPUs per actor, may be a fraction; the default is 1 where the cluster has GPUs and a network runs, else 0
        threads: threads per actor for fetching; 0 is automatic
    """

    prompts: str = ""
    detector: str = "salient"
    segmenter: str = "grabcut"
    min_score: float = 0.35
    min_area: float = 0.005
    max_area: float = 0.5
    min_side: int = 16
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_failure_rate: float = 1.0
    num_gpus: float | None = None
    block_rows: int = 32

    def __post_init__(self) -> None:
        for name, least, most in (
            ("min_score", 0.0, 1.0),
            ("min_area", 0.0, 1.0),
            ("max_area", 0.0, 1.0),
            ("min_side", 1, 100_000),
        ):
            within(name, getattr(self, name), least, most)
        check_run(self)
        if self.min_area > self.max_area:
            raise UsageError(f"--min-area {self.min_area} is above --max-area {self.max_area}; lower the one or raise the other")
        if self.detector == "salient" and self.prompts:
            raise UsageError("--prompts needs a detector that knows words; add --detector IDEA-Research/grounding-dino-tiny, or a folder")
        if self.detector != "salient" and not self.prompts:
            raise UsageError("a detector is asked for names of things; add --prompts, such as --prompts dog,bicycle")
