"""A training on Ray Train: the trainer loop on as many workers as there are, which come back from the last checkpoint when one dies.

Checkpoints are our own (``training.checkpoints``) and not Ray's: Ray handles one report a poll, so that after a death it may go back many
steps, and it knows nothing of the position in the data. A worker asks the output itself where the training stands.
"""

from __future__ import annotations

import importlib
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from core import storage
from core.errors import CleanplateError, UsageError
from core.lease import Lease
from training.build import build_objective
from training.index import TrainingIndex
from training.loop import FOLDER, TrainerLoop
from training.output import FINISHED_FILE, device_name, save_output
from training.parallelism import added_up
from training.preparation import admitted, buckets_of, data_facts, feed_settings, held_out_shares, read_items, read_json
from training.ray_feed import FeedPlan, RayFeed
from training.settings import TrainSettings
from training.training_metrics import TrainingGauges

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRun:
    """Where a training reads and writes, and on what it runs.

    Attributes:
        data: dataset of triplets, or folder or manifest with targets.
        output: folder of the model.
        validation: another dataset for validation; None: a share of ``data`` is held out.
        workers: least and most number of workers; the number is elastic where they differ.
        use_gpu: a GPU for every worker.
        worker_cpus: that a worker reserves.
        task_cpus: that a task of the feed reserves.
        feed_tasks: tasks of a worker's feed at a time.
        max_failures: how often dead workers are replaced before the training stops.
        callback: ``package.module:Class`` of a ``ray.train.UserCallback``, which is told the figures at every checkpoint; None: nobody is.
        overwrite: start anew where the output holds another training.
    """

    data: str
    output: str
    validation: str | None = None
    workers: tuple[int, int] = (1, 1)
    use_gpu: bool = False
    worker_cpus: float = 1.0
    task_cpus: float = 1.0
    feed_tasks: int = 2
    max_failures: int = 8
    callback: str | None = None
    overwrite: bool = False


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Watcher:
    """Holds what the leading worker said last, and why the workers gave up; for whoever watches, Prometheus among them."""

    def __init__(self, objective: str) -> None:
        self._gauges = TrainingGauges(objective)
        self.values: dict[str, Any] = {}
        self.problem: str | None = None

    def tell(self, values: dict[str, Any]) -> None:
        self.values = values
        self._gauges.show(values)

    def refuse(self, problem: str) -> None:
        self.problem = problem

    def look(self) -> tuple[dict[str, Any], str | None]:
        return self.values, self.problem


class RaySession:
    """The worker of Ray Train that this code runs in."""

    def __init__(self, watcher: Any, reports: bool) -> None:
        import ray.train.torch

        self._reports = reports

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._watcher = watcher

    def progress(self, values: dict[str, Any]) -> None:
        """Passes them on without waiting."""
        self._watcher.tell.remote(values)

    def report(self, values: dict[str, Any]) -> None:
        """Ray's own report, for callbacks alone: it waits for all workers and for the controller's next poll."""
        if self._reports:
            ray.train.report(values)


def train(settings: TrainSettings, run: TrainRun, watch: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Train, or go on with a training, on the Ray cluster that is connected; returns the summary.

    Raises:
        UsageError: data, settings, output or cluster do not go together; nothing was started.
        CleanplateError: the training stopped; the same call goes on from its last checkpoint.
    """
    output, data = storage.normalize_uri(run.output), storage.normalize_uri(run.data)
    folder = storage.join(output, FOLDER)
    callback = _callback(run.callback) if run.callback is not None else None
    # what is wrong with the data is said before anything is written
    index, held = read_items(settings, data, run.validation)
    facts = data_facts(run.data, index, held)
    lease = Lease.acquire(storage.join(folder, "lease"))
    try:
        with admitted(folder, settings, facts, overwrite=run.overwrite):
            finished = read_json(storage.join(folder, FINISHED_FILE))
            if finished is not None and finished.get("steps") == settings.loop.steps:
                return {**finished, "output": run.output, "already_finished": True}
            _fit(settings, run, output, index, held, facts, callback, watch)
        finished = read_json(storage.join(folder, FINISHED_FILE))
        if finished is None:
            raise CleanplateError(f"the training ended without a model in {run.output}; run the same command again")
        return {**finished, "output": run.output, "already_finished": False}
    finally:
        lease.release()


def _fit(
    settings: TrainSettings,
    run: TrainRun,
    output: str,
    index: TrainingIndex,
    held: TrainingIndex | None,
    facts: dict[str, Any],
    callback: UserCallback | None,
    watch: Callable[[dict[str, Any]], None] | None,
) -> None:
    # beside the command, which no node that goes takes along: on another one its end would be the training's
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    watcher = Watcher.options(scheduling_strategy=here).remote(settings.objective)  # type: ignore[attr-defined]
    given = {
        "settings": settings,
        "run": run,
        "output": output,
        "plan": FeedPlan(ray.put(index), buckets_of(settings), settings.data.batch_size, settings.loop.seed, feed_settings(settings)),
        "held": ray.put(held),
        "facts": facts,
        "watcher": watcher,
    }
    # a quicker poll: a dead worker is noticed sooner, and short trainings end at once
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    least, most = run.workers
    resources = {"CPU": run.worker_cpus, **({"GPU": 1.0} if run.use_gpu else {})}
    with tempfile.TemporaryDirectory(prefix="cleanplate-ray-train-") as notes:
        trainer = TorchTrainer(
            _worker,
            train_loop_config=given,
            torch_config=TorchConfig(backend="nccl" if run.use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                # Ray's alias of the annotation hides that a pair of bounds is taken
                num_workers=most if least == most else (least, most),  # type: ignore[arg-type]
                use_gpu=run.use_gpu,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=f"cleanplate-{uuid.uuid4().hex[:8]}",
                storage_path=notes,
                failure_config=FailureConfig(max_failures=run.max_failures),
                callbacks=[callback] if callback is not None else None,  # type: ignore[list-item]
            ),
        )
        stop = threading.Event()
        watching = threading.Thread(target=_watch, args=(watcher, watch, stop), name="watch", daemon=True)
        watching.start()
        try:
            trainer.fit()
        except Exception as error:  # Ray raises many kinds; each becomes one line
            raise _explained(error) from error
        finally:
            stop.set()
            watching.join(timeout=5)
        _, problem = ray.get(watcher.look.remote())
        if problem is not None:
            raise UsageError(problem)


def _callback(name: str) -> UserCallback:
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except Exception as error:  # a module of the caller's may raise anything while it is imported
        raise UsageError(f"callback {name}: cannot import {module_name} ({type(error).__name__}: {error})") from error
    if not (isinstance(found, type) and issubclass(found, UserCallback)):
        raise UsageError(f"callback {name}: {class_name} of {module_name} is {found!r}; it must be a subclass of ray.train.UserCallback")
    return found()


def _worker(given: dict[str, Any]) -> None:
    """What every worker of Ray Train runs."""
    settings, run, output = given["settings"], given["run"], given["output"]
    session = RaySession(given["watcher"], run.callback is not None)
    if session.device.type == "cpu":
        # Ray gives a worker as many threads as it reserves CPUs; all but one core are for the networks, and that one for the feed's tasks
        torch.set_num_threads(max(1, ((os.cpu_count() or 1) - 1) // ray.train.get_context().get_local_world_size()))
    problem: str | None = None
    objective = None
    try:
        objective = build_objective(settings, session.device)
    except UsageError as error:
        problem = str(error)
    # what is wrong with the call is wrong on every try: all workers end, and nobody starts them again
    if added_up([float(problem is not None)], session)[0] or objective is None:
        if problem is not None:
            ray.get(given["watcher"].refuse.remote(problem))
        return
    held = ray.get(given["held"])
    needs_shares = session.rank == 0 or settings.loop.strategy == "fsdp"
    feed = RayFeed(given["plan"], run.task_cpus, run.feed_tasks)
    with tempfile.TemporaryDirectory(prefix="cleanplate-train-") as scratch:
        shares = held_out_shares(settings, held) if needs_shares else []
        loop = TrainerLoop(settings, objective, output, feed, shares, session, Path(scratch))
        finished, summary = loop.run()
        if session.rank == 0:
            summary |= {"workers": session.world_size, "device": device_name(session.device), "items": given["facts"]["items"]}
            save_output(finished, settings, output, storage.join(output, FOLDER), summary, given["facts"])
    added_up([0.0], session)


def _watch(watcher: Any, watch: Callable[[dict[str, Any]], None] | None, stop: threading.Event) -> None:
    said = None
    while not stop.wait(POLL_SECONDS):
        try:
            values, _ = ray.get(watcher.look.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            continue
        if values and values != said and watch is not None:
            watch(values)
        said = values


def _explained(error: Exception) -> CleanplateError:
    """What Ray raised, as one line."""
    seen: BaseException | None = error
    while seen is not None:
        for candidate in (seen, getattr(seen, "cause", None), *getattr(seen, "worker_failures", {}).values()):
            if isinstance(candidate, CleanplateError):
                return candidate
        seen = seen.__cause__ or getattr(seen, "cause", None)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return CleanplateError(
        f"the training stopped: {type(error).__name__}: {lines[-1] if lines else ''}; its checkpoints stay, run the same command again"
    )
