"""``cleanplate train``: a recipe and the flags become settings, the cluster becomes workers; the rest is ``training.trainer``."""

from __future__ import annotations

import json
import logging
import math
import sys
from typing import Any, Final

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core.errors import UsageError
from jobs.cluster import FREE_CPUS, ray_cluster
from jobs.progress import print_table
from jobs.train_config import TrainConfig
from training.settings import TrainSettings, load_recipe
from training.trainer import TrainRun, train

log = logging.getLogger(__name__)

DEFAULT_RECIPES: Final = {"remover": "rorem", "discriminator": "discriminator", "lcm": "lcm"}
TASK_CPUS: Final = 0.25
MOST_FEED_TASKS: Final = 4
"""Of a worker, unless more are asked for: each holds some steps' pictures in memory."""
_FLAGS: Final = {
    "model": "model",
    "steps": "loop.steps",
    "batch_size": "data.batch_size",
    "micro_batch_size": "loop.micro_batch_size",
    "learning_rate": "optimiser.learning_rate",
    "seed": "loop.seed",
    "precision": "loop.precision",
    "strategy": "loop.strategy",
    "checkpoint_every": "loop.checkpoint_every",
}


def run(config: TrainConfig) -> int:
    """Train and print the summary."""
    settings = settings_of(config)
    with ray_cluster(config.address), _Display(settings) as display:
        summary = train(settings, plan_workers(config, settings), display.show)
    if config.json:
        print(json.dumps(summary))
    else:
        title = "nothing to do: the training is finished" if summary["already_finished"] else f"train {config.objective}"
        print_table(title, {name: _short(value) for name, value in summary.items() if name != "already_finished"})
    return 0


def settings_of(config: TrainConfig) -> TrainSettings:
    """The recipe's settings with the flags over them.

    Raises:
        UsageError: there is no such recipe, or a value is wrong.
    """
    changes = {path: getattr(config, name) for name, path in _FLAGS.items() if getattr(config, name) is not None}
    if config.size is not None:
        changes["data.sizes"] = [config.size]
    return load_recipe(config.recipe or DEFAULT_RECIPES[config.objective], config.objective, changes)


def plan_workers(config: TrainConfig, settings: TrainSettings) -> TrainRun:
    """Workers for the cluster at hand; where it has GPUs, one for each.

    Raises:
        UsageError: they would leave no CPU to the tasks that read, or there are more than a batch has items.
    """
    resources = ray.cluster_resources()
    cpus, gpus = float(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    least = config.workers or (gpus or 1)
    most = max(least, config.max_workers)
    if gpus and least > gpus:
        raise UsageError(f"--workers is {least}, and the cluster has {gpus} GPUs: lower it, or add nodes")
    if most > settings.data.batch_size:
        raise UsageError(f"{most} workers share a batch of {settings.data.batch_size}: each needs an item; raise --batch-size")
    if settings.loop.strategy == "fsdp" and most < 2:
        raise UsageError("--strategy fsdp shares the weights out among workers, and there is one: use ddp, or --workers 2 or more")
    worker_cpus = config.worker_cpus or (1.0 if gpus else _floor(min(1.0, (cpus - FREE_CPUS) / least)))
    left = cpus - worker_cpus * least
    if worker_cpus <= 0 or left < FREE_CPUS:
        raise UsageError(
            f"{least} workers reserve {worker_cpus * least:g} of the cluster's {cpus:g} CPUs, and {FREE_CPUS:g} must be left for the "
            "tasks that read: lower --workers or --worker-cpus, or add nodes"
        )
    # every worker's stream must be able to run a task, or it would wait for the others' for ever: little is reserved, on whatever node
    task_cpus = min(TASK_CPUS, _floor(left / most))
    return TrainRun(
        data=config.data,
        output=config.output,
        validation=config.validation,
        workers=(least, most),
        use_gpu=gpus > 0,
        worker_cpus=worker_cpus,
        task_cpus=task_cpus,
        feed_tasks=config.feed_tasks or max(1, min(MOST_FEED_TASKS, int(left / most))),
        max_failures=config.max_failures,
        callback=config.callback,
        overwrite=config.overwrite,
    )


def _floor(cpus: float) -> float:
    """Ray takes fractions down to a ten-thousandth."""
    return math.floor(cpus * 100 + 1e-9) / 100


def _short(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


class _Display:
    """A bar on a terminal, log lines elsewhere."""

    def __init__(self, settings: TrainSettings) -> None:
        self._total = settings.loop.steps
        self._bar: Progress | None = None

    def __enter__(self) -> _Display:
        if sys.stderr.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("training", total=self._total, words="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, values: dict[str, Any]) -> None:
        """What the leading worker said last."""
        names = ("loss", "validation_loss", "images_per_second", "tflops_per_second", "mfu", "data_wait_share")
        words = ", ".join(f"{name.replace('_', ' ')} {values[name]:.4g}" for name in names if values.get(name) is not None)
        if self._bar is not None:
            self._bar.update(self._task, completed=values["step"], words=words)
        else:
            log.info("step %d of %d: %s", values["step"], values["steps"], words)
