"""``cleanplate score``: erasures that someone made get a score and a verdict.

Scoring actors fetch and score whole records; the rest is ``jobs.runner``, as for ``clean``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from core.checkpoints import locate
from core.discriminator_config import find_discriminator
from core.eraser import EraserSettings
from core.plan import PlanInfo
from core.record import SCHEMA_VERSION
from core.workload import WorkSettings
from jobs.clean import warn_uncalibrated
from jobs.cluster import Pools, plan_pools
from jobs.config import ScoreConfig
from jobs.runner import RunSettings, actor_stage, print_summary, run_job
from jobs.stages import ScoreInputStage, StageSettings


def run(config: ScoreConfig) -> int:
    """Run the job and print its summary."""
    print_summary("score", score(config), as_json=config.json)
    return 0


def score(config: ScoreConfig) -> dict[str, Any]:
    """Run, or go on with, the job on ``config.output``; returns the summary. Raises CleanplateError as ``jobs.runner.run_job``."""
    warn_uncalibrated(config.discriminator)
    return run_job(ScoreJob(config), RunSettings.of(config))


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """The scoring job for ``jobs.runner``."""

    config: ScoreConfig

    def settings(self, source: str) -> dict[str, Any]:
        config = self.config
        return {
            "job": "score",
            "schema_version": SCHEMA_VERSION,
            "input": source,
            "origin": config.origin,
            "discriminator": config.discriminator,
            "discriminator_fingerprint": find_discriminator(locate(config.discriminator)).fingerprint(),
            "dtype": config.dtype,
            "threshold": config.threshold,
            "uncertain": config.uncertain,
            "max_megapixels": config.max_megapixels,
        }

    def pools(self) -> Pools:
        return plan_pools(self.config)

    def stages(self, rows: ray.data.Dataset, plan: PlanInfo, pools: Pools, monitor: Any) -> ray.data.Dataset:
        config = self.config
        settings = StageSettings(
            model="null",
            eraser=EraserSettings(device="auto" if pools.num_gpus else "cpu", dtype=config.dtype),
            discriminator=config.discriminator,
            base=plan.base,
            work=WorkSettings(
                accept_above=config.threshold,
                uncertain_from=config.uncertain,
                max_megapixels=config.max_megapixels,
                threads=pools.threads,
            ),
        )
        return actor_stage(rows, ScoreInputStage, (settings, monitor), pools, pools.min_actors, pools.max_actors)
