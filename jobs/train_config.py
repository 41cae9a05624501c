"""The configuration of ``cleanplate train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from core.errors import UsageError
from jobs.config import POSITIONAL, within


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Train a remover, a discriminator, or an adapter for 4 steps, on Ray Train.

    Attributes:
        objective: what is trained: remover, discriminator or lcm
        data: dataset of triplets (or folder or manifest with targets); local or s3://
        output: folder of the model that comes of it; run the same command again to go on
        recipe: name of a recipe, or a YAML file; the default is rorem, discriminator or lcm
        model: the model that is trained, adapted or distilled; the default is the recipe's
        validation: dataset for validation; the default is a share of the data that is held out
        steps: optimiser steps; the default is the recipe's
        batch_size: items a step, of all workers together; the default is the recipe's
        micro_batch_size: items that a worker's network sees at a time; the default is the recipe's
        learning_rate: the default is the recipe's
        size: side of the training pictures in pixels; the default is the recipe's
        seed: of first weights, order, augmentation and noise; the default is the recipe's
        precision: of the networks' arithmetic; the default is the recipe's
        strategy: ddp (every worker holds all weights) or fsdp (its share of them); the default is the recipe's
        checkpoint_every: steps between checkpoints; the default is the recipe's
        workers: number of workers; 0 is one per GPU, or one where there are none
        max_workers: with more than --workers, the number follows the cluster between the two
        worker_cpus: CPUs reserved per worker; 0 is automatic
        feed_tasks: tasks that read and decode for a worker at a time; 0 is automatic
        max_failures: how often dead workers are replaced before the training stops
        callback: package.module:Class of a ray.train.UserCallback, which is told the figures at every checkpoint
        overwrite: start anew where the output holds another training
        address: address of a Ray cluster; the default is RAY_ADDRESS, a cluster started here, or a new one
        json: print the summary as one JSON object
    """

    objective: Literal["remover", "discriminator", "lcm"] = field(metadata=POSITIONAL)
    data: str
    output: str
    recipe: str | None = None
    model: str | None = None
    validation: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    micro_batch_size: int | None = None
    learning_rate: float | None = None
    size: int | None = None
    seed: int | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    strategy: Literal["ddp", "fsdp"] | None = None
    checkpoint_every: int | None = None
    workers: int = 0
    max_workers: int = 0
    worker_cpus: float = 0.0
    feed_tasks: int = 0
    max_failures: int = 8
    callback: str | None = None
    overwrite: bool = False
    address: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        within("workers", self.workers, 0, 100_000)
        within("feed_tasks", self.feed_tasks, 0, 1024)
        within("max_failures", self.max_failures, 0, 1_000_000)
        if self.max_workers and self.max_workers < max(1, self.workers):
            raise UsageError(f"--max-workers is {self.max_workers}; it must be at least --workers ({self.workers})")
