"""The configuration of every command: one frozen dataclass each. Command line and ``--config`` files are made from these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from core.errors import UsageError

POSITIONAL: Final[dict[str, Any]] = {"positional": True}
"""Metadata of a field that is given by its place on the command line and not by a flag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How a job that writes a dataset runs on Ray; of these settings none changes a result.

    Attributes:
        output: folder of the dataset to write; run the same command again to go on with it
        max_failure_rate: share of failed items (after 200) at which the job stops
        overwrite: start anew where the output holds another job's results
        retry_failed: take the items in failures/ up again
        min_actors: least number of actors; 0 is automatic
        max_actors: largest number of actors; 0 is automatic
        num_cpus: CPUs reserved per actor; 0 is automatic
        block_rows: items that an actor takes up at a time
        shard_mb: least size of an output shard in MiB
        address: address of a Ray cluster; the default is RAY_ADDRESS, a cluster started here, or a new one
        json: print the summary as one JSON object
    """

    output: str
    max_failure_rate: float = 0.05
    overwrite: bool = False
    retry_failed: bool = False
    min_actors: int = 0
    max_actors: int = 0
    num_cpus: float = 0.0
    block_rows: int = 64
    shard_mb: float = 64.0
    address: str | None = None
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig(RunConfig):
    """A job that reads a dataset, folder or manifest and writes a dataset.

    Attributes:
        input: dataset, folder or manifest; local or s3://
        origin: name of the collection in the records that name none; the default is the last part of --input
        max_megapixels: larger images are failures; guards against decompression bombs
        threads: threads per actor; 0 is automatic
    """

    input: str
    origin: str | None = None
    max_megapixels: float = 200.0
    threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanConfig(JobConfig):
    """Erase the masked object from every image, score the result, decide, and write a dataset of triplets.

    Attributes:
        input: dataset, folder (source/ and mask/) or manifest (csv, jsonl, parquet); local or s3://
        model: tiny, opencv, patchmatch, null, a diffusers folder, a hub id, or package.module:Class
        discriminator: model whose discriminator scores; auto is the model's own (tiny's for erasers without one); none for no scores
        lcm_lora: LCM LoRA to merge into the model (a file, folder, s3:// folder or hub id), for 4 steps
        steps: network calls per image; the default is the model's
        guidance: classifier-free guidance; the default is the model's
        candidates: erasures per image with different noise, of which the best by score is kept
        threshold: a score above this is accepted
        uncertain: a score from this up to the threshold waits for people
        seed: seed of the noise; an item's noise depends on this and its id alone
        round: number of the round, for the record
        origin: name of the collection in the records; the default is the last part of --input
        context: side of the crop over the longer side of the mask's box; the default is the model's
        dilate: growth of the mask in pixels of the model's size; the default is the model's
        fusion: what of the output may enter the photo: mask, attention (shadows that the model attends to, too), none (the whole crop)
        image_format: how erasures are encoded, both without loss
        min_actors: least number of eraser actors; 0 is automatic
        max_actors: largest number of eraser actors; 0 is automatic
        num_gpus: GPUs per eraser actor, may be a fraction; the default is 1 where the cluster has GPUs, else 0
        num_cpus: CPUs reserved per eraser actor; 0 is automatic
        threads: threads per actor for decoding and encoding, and four times as many for fetching; 0 is automatic
        batch_size: images per network call on a GPU
        compile: torch.compile: off, blocks (ready in seconds), full (for long jobs), graphs (CUDA graphs, for small batches)
        dtype: precision of the networks; auto is float32 on a CPU, bfloat16 on a GPU
        scoring: shared scores in the eraser's actor, pool in actors of its own
        score_actors: largest number of scoring actors, with --scoring pool; 0 is automatic
    """

    model: str = "tiny"
    discriminator: str = "auto"
    lcm_lora: str | None = None
    steps: int | None = None
    guidance: float | None = None
    candidates: int = 1
    threshold: float = 0.9
    uncertain: float = 0.5
    seed: int = 0
    round: int | None = None
    context: float | None = None
    dilate: int | None = None
    fusion: Literal["mask", "attention", "none"] | None = None
    image_format: Literal["png", "webp"] = "png"
    num_gpus: float | None = None
    batch_size: int = 16
    compile: Literal["off", "blocks", "full", "graphs"] = "off"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    scoring: Literal["shared", "pool"] = "shared"
    score_actors: int = 0

    def __post_init__(self) -> None:
        within("candidates", self.candidates, 1, 64)
        within("steps", self.steps, 1, 1000)
        within("context", self.context, 1.0, 100.0)
        within("dilate", self.dilate, 0, 512)
        within("seed", self.seed, 0, 2**63 - 1)
        within("batch_size", self.batch_size, 1, 1024)
        _check_decision(self.threshold, self.uncertain)
        check_run(self)
        if self.candidates > 1 and self.scoring == "pool":
            raise UsageError("--candidates above 1 are ranked where they are made: use --scoring shared")
        if self.candidates > 1 and self.discriminator == "none":
            raise UsageError("--candidates above 1 need a discriminator to choose among them; leave --discriminator none away")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig(JobConfig):
    """Score erasures that exist already, decide, and write a dataset of triplets.

    Attributes:
        input: dataset with erasures, folder (source/, mask/, erased/) or manifest with a column erased; local or s3://
        discriminator: model whose discriminator scores, or a discriminator's own folder
        threshold: a score above this is accepted
        uncertain: a score from this up to the threshold waits for people
        min_actors: least number of scoring actors; 0 is automatic
        max_actors: largest number of scoring actors; 0 is automatic
        num_gpus: GPUs per actor, may be a fraction; the default is 1 where the cluster has GPUs, else 0
        threads: threads per actor for fetching; 0 is automatic
        dtype: precision of the networks; auto is float32 on a CPU, bfloat16 on a GPU
    """

    discriminator: str = "tiny"
    threshold: float = 0.9
    uncertain: float = 0.5
    num_gpus: float | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        _check_decision(self.threshold, self.uncertain)
        check_run(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """Count a finished or running job: in, out, failed, lost, twice; and check that every image opens.

    Attributes:
        input: the output folder of a job
        images: decode every image; no is quicker and only counts
        threads: threads that read and decode; 0 is one per core
        json: print the summary as one JSON object
    """

    input: str
    images: bool = True
    threads: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        within("threads", self.threads, 0, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """Make one self-contained HTML page of before / mask / after, scores, failures and the configuration.

    Attributes:
        input: the output folder of a job
        output: the HTML file to write; local or s3://
        limit: most items on the page, chosen evenly over the scores; 0 is all
        side: longer side of the pictures on the page, in pixels
        title: heading of the page; the default is the name of the input
        json: print the summary as one JSON object
    """

    input: str
    output: str
    limit: int = 200
    side: int = 384
    title: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        within("limit", self.limit, 0, 1_000_000)
        within("side", self.side, 32, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Clean the shipped samples with the embedded model through a real S3 server on this machine, and write a report.

    Attributes:
        output: folder for the report and the server's data; made anew
        model: as in cleanplate clean
        json: print the summary as one JSON object
    """

    output: str = "demo-output"
    model: str = "tiny"
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsConfig:
    """List the models that are known, fetch one, or check that the files of one are whole and fit each other.

    Attributes:
        action: list the known models; pull fetches one; check compares the files of one with what they should be (status 1 where wrong)
        model: for pull and check: tiny, a folder, s3://bucket/folder, or a hub id
        output: for pull: local folder to write the whole model into, parts of its base included, in diffusers layout
        precision: for pull with --output: weights as published, or half of the bytes where the model has both
        json: print the result as one JSON object
    """

    action: Literal["list", "pull", "check"] = field(metadata=POSITIONAL)
    model: str | None = field(default=None, metadata=POSITIONAL)
    output: str | None = None
    precision: Literal["full", "half"] = "full"
    json: bool = False

    def __post_init__(self) -> None:
        if self.action == "list" and self.model is not None:
            raise UsageError(f"models list takes no model; cleanplate models check {self.model} tells about one")
        if self.action != "list" and not self.model:
            raise UsageError(f"models {self.action} needs a model: tiny, a folder, s3://bucket/folder, or a hub id owner/name")
        if self.action != "pull" and (self.output is not None or self.precision != "full"):
            raise UsageError("--output and --precision go with models pull only; leave them away")
        if self.precision == "half" and self.output is None:
            raise UsageError("--precision half needs --output: the other commands fetch weights as they were published")


def _check_decision(threshold: float, uncertain: float) -> None:
    within("threshold", threshold, 0.0, 1.0)
    within("uncertain", uncertain, 0.0, threshold)


def check_run(config: RunConfig) -> None:
    """Raises UsageError where one of the settings that all jobs have is out of its range."""
    for name, least, most in (
        ("max_megapixels", 0.001, 10_000),
        ("max_failure_rate", 0.0, 1.0),
        ("min_actors", 0, 100_000),
        ("max_actors", 0, 100_000),
        ("num_gpus", 0.0, 64.0),
        ("num_cpus", 0.0, 1024.0),
        ("threads", 0, 1024),
        ("block_rows", 1, 100_000),
        ("shard_mb", 0.0, 16_384.0),
    ):
        within(name, getattr(config, name, None), least, most)
    if config.max_actors and config.min_actors > config.max_actors:
        raise UsageError(f"--min-actors {config.min_actors} is above --max-actors {config.max_actors}; raise the one or lower the other")


def within(name: str, value: float | None, least: float, most: float) -> None:
    """Raises UsageError where a flag's value is not from ``least`` to ``most``; None is."""
    if value is not None and not least <= value <= most:
        raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be from {least:g} to {most:g}")
