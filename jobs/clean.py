"""``cleanplate clean``: photos and masks become scored triplets.

Eraser actors fetch, decode, erase, score and encode; with ``--scoring pool`` actors of their own score. The rest is ``jobs.runner``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import ray

from core.checkpoints import locate
from core.discriminator_config import find_discriminator
from core.eraser import EraserSettings, identity
from core.plan import PlanInfo
from core.record import SCHEMA_VERSION
from core.scoring import discriminator_for
from core.workload import WorkSettings
from jobs.cluster import Pools, plan_pools
from jobs.config import CleanConfig
from jobs.runner import RunSettings, actor_stage, print_summary, run_job
from jobs.stages import EraseStage, ScoreStage, StageSettings

log = logging.getLogger(__name__)


def run(config: CleanConfig) -> int:
    """Run the job and print its summary."""
    print_summary("clean", clean(config), as_json=config.json)
    return 0


def clean(config: CleanConfig) -> dict[str, Any]:
    """Run, or go on with, the job on ``config.output``; returns the summary. Raises CleanplateError as ``jobs.runner.run_job``."""
    return run_job(CleanJob(config, choose_discriminator(config)), RunSettings.of(config))


@dataclass(frozen=True, slots=True)
class CleanJob:
    """The clean job for ``jobs.runner``."""

    config: CleanConfig
    discriminator: str | None

    def settings(self, source: str) -> dict[str, Any]:
        return result_settings(self.config, source, self.discriminator)

    def pools(self) -> Pools:
        scored_apart = self.discriminator is not None and self.config.scoring == "pool"
        pools = plan_pools(self.config, self.config.score_actors if scored_apart else None)
        if pools.num_gpus and self.config.model == "tiny":
            log.warning("the embedded model shows how it works; on a GPU give --model a real one (cleanplate models list)")
        return pools

    def stages(self, rows: ray.data.Dataset, plan: PlanInfo, pools: Pools, monitor: Any) -> ray.data.Dataset:
        config = self.config
        shared = self.discriminator if config.scoring == "shared" else None
        eraser = eraser_settings(config, "auto" if pools.num_gpus else "cpu")
        work = work_settings(config, pools.threads)
        erasing = StageSettings(model=config.model, eraser=eraser, discriminator=shared, base=plan.base, work=work)
        erased = actor_stage(rows, EraseStage, (erasing, monitor), pools, pools.min_actors, pools.max_actors)
        if not pools.score_actors or self.discriminator is None:
            return erased
        scoring = StageSettings(model=config.model, eraser=eraser, discriminator=self.discriminator, base=plan.base, work=work)
        return actor_stage(erased, ScoreStage, (scoring, monitor), pools, 1, pools.score_actors)


def work_settings(config: CleanConfig, threads: int) -> WorkSettings:
    """The part of the configuration that says how items are processed."""
    return WorkSettings(
        seed=config.seed,
        candidates=config.candidates,
        accept_above=config.threshold,
        uncertain_from=config.uncertain,
        round=config.round,
        image_format=config.image_format,
        max_megapixels=config.max_megapixels,
        threads=threads,
    )


def choose_discriminator(config: CleanConfig) -> str | None:
    """The model whose discriminator scores; None for no scores.

    Raises:
        UsageError: the named model has none.
    """
    name = discriminator_for(config.model, config.discriminator)
    if name is None:
        return None
    warn_uncalibrated(name)
    return name


def warn_uncalibrated(discriminator: str) -> None:
    """Log it where scores of a discriminator are no probabilities. Raises UsageError where there is no such discriminator."""
    if not find_discriminator(locate(discriminator)).config.calibrated:
        log.warning(
            "the discriminator of %s has no calibration: its scores are no probabilities, choose --threshold accordingly", discriminator
        )


def result_settings(config: CleanConfig, source: str, discriminator: str | None) -> dict[str, Any]:
    """Everything that decides the results of a job, and nothing else: a job goes on only where these are the same."""
    return {
        "schema_version": SCHEMA_VERSION,
        "input": source,
        "origin": config.origin,
        **{f"eraser_{name}": value for name, value in identity(config.model, eraser_settings(config)).items()},
        "discriminator": discriminator,
        "discriminator_fingerprint": find_discriminator(locate(discriminator)).fingerprint() if discriminator else None,
        "seed": config.seed,
        "candidates": config.candidates,
        "threshold": config.threshold,
        "uncertain": config.uncertain,
        "round": config.round,
        "image_format": config.image_format,
        "max_megapixels": config.max_megapixels,
    }


def eraser_settings(config: CleanConfig, device: str = "auto") -> EraserSettings:
    """The part of the configuration that the eraser gets."""
    return EraserSettings(
        steps=config.steps,
        guidance_scale=config.guidance,
        context=config.context,
        dilate_px=config.dilate,
        device=device,
        dtype=config.dtype,
        batch_size=config.batch_size,
        lcm_lora=config.lcm_lora,
        fusion=config.fusion,
        compile=config.compile,
    )
