"""The configuration of ``segment``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import UsageError
from jobs.config import within
from jobs.curate_config import check_running


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentConfig:
    """Make masks for photos that have none: one object a photo, by its name (detector and segmenter) or by what stands out.

    Attributes:
        input: folder of photos, or manifest with a column source; local or s3://
        output: folder of the dataset to write; run the same command again to go on with it
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
        max_megapixels: larger images are failures; guards against decompression bombs
        max_failure_rate: share of failed items (after 200) at which the job stops; a photo without an object is one
        overwrite: start anew where the output holds another job's results
        retry_failed: take the items in failures/ up again
        min_actors: least number of actors; 0 is automatic
        max_actors: largest number of actors; 0 is automatic
        num_gpus: GPUs per actor, may be a fraction; the default is 1 where the cluster has GPUs and a network runs, else 0
        num_cpus: CPUs reserved per actor; 0 is automatic
        threads: threads per actor for fetching; 0 is automatic
        block_rows: items that an actor takes up at a time
        shard_mb: least size of an output shard in MiB
        address: address of a Ray cluster; the default is RAY_ADDRESS, a cluster started here, or a new one
        json: print the summary as one JSON object
    """

    input: str
    output: str
    prompts: str = ""
    detector: str = "salient"
    segmenter: str = "grabcut"
    min_score: float = 0.35
    min_area: float = 0.005
    max_area: float = 0.5
    min_side: int = 16
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    origin: str | None = None
    max_megapixels: float = 200.0
    max_failure_rate: float = 1.0
    overwrite: bool = False
    retry_failed: bool = False
    min_actors: int = 0
    max_actors: int = 0
    num_gpus: float | None = None
    num_cpus: float = 0.0
    threads: int = 0
    block_rows: int = 32
    shard_mb: float = 64.0
    address: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (
            ("min_score", 0.0, 1.0),
            ("min_area", 0.0, 1.0),
            ("max_area", 0.0, 1.0),
            ("min_side", 1, 100_000),
        ):
            within(name, getattr(self, name), least, most)
        check_running(self)
        if self.min_area > self.max_area:
            raise UsageError(f"--min-area {self.min_area} is above --max-area {self.max_area}; lower the one or raise the other")
        if self.detector == "salient" and self.prompts:
            raise UsageError("--prompts needs a detector that knows words; add --detector IDEA-Research/grounding-dino-tiny, or a folder")
        if self.detector != "salient" and not self.prompts:
            raise UsageError("a detector is asked for names of things; add --prompts, such as --prompts dog,bicycle")
