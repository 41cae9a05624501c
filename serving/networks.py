"""The two model deployments of the graph: the eraser, in dynamic batches, and the discriminator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
from ray import serve

from core.crops import Crop, CropRule, Fill
from core.eraser import Eraser, load_eraser
from core.erasing import fill_crops
from core.errors import CleanplateError, ItemError, UsageError
from core.scoring import Scorer, Views, load_scorer, score_views
from serving.metrics import GraphMetrics
from serving.settings import ServingSettings


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the ingress has to know of a model to crop for it and to name it."""

    name: str
    model: str
    fingerprint: str
    rule: CropRule
    reads_soft: bool
    calls: int
    """Network calls per image where a request names no steps; 0 for algorithms without a network."""


class ModelChanged(CleanplateError):
    """A replica holds another model than the one that a crop was made for, as happens while a new version rolls out."""


@dataclass(frozen=True, slots=True)
class FillJob:
    """One crop, made for the model of ``info``, that is filled once for every seed."""

    info: ModelInfo
    crop: Crop
    seeds: tuple[int, ...]
    steps: int | None = None


class Networks:
    """Erasers by their served names, loaded when first asked for; without Ray. Not to be used by two threads at once."""

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self._models = {model.name: model for model in settings.models}

    def load(self, name: str) -> Eraser:
        """The eraser of a served model. Raises UsageError where there is none."""
        if name not in self._models:
            raise UsageError(f"there is no model {name!r} here; there are {', '.join(self._models)}")
        return load_eraser(self._models[name].model, self._settings.eraser(self._models[name]))

    @staticmethod
    def info(name: str, eraser: Eraser) -> ModelInfo:
        calls = getattr(getattr(eraser, "card", None), "steps", 0)
        return ModelInfo(name, eraser.name, eraser.fingerprint, eraser.rule, eraser.reads_soft, calls)

    @staticmethod
    def fill(eraser: Eraser, jobs: Sequence[FillJob]) -> list[list[Fill] | ItemError]:
        """Fills of every job, in buckets of one crop size and number of steps; a job that fails takes no other along."""
        buckets: dict[tuple[int | None, tuple[int, ...]], list[int]] = {}
        for place, job in enumerate(jobs):
            buckets.setdefault((job.steps, job.crop.pixels.shape), []).append(place)
        found: dict[int, list[Fill] | ItemError] = {}
        for (steps, _), places in buckets.items():
            chosen = eraser if steps is None else eraser.with_steps(steps)
            try:
                found.update(zip(places, _fill_bucket(chosen, [jobs[place] for place in places]), strict=True))
            except Exception:  # noqa: BLE001 - whatever one job did to the bucket, the others must not suffer
                found.update((place, _fill_alone(chosen, jobs[place])) for place in places)
        return [found[place] for place in range(len(jobs))]


def _fill_bucket(eraser: Eraser, jobs: Sequence[FillJob]) -> list[list[Fill]]:
    fills = iter(fill_crops(eraser, [job.crop for job in jobs for _ in job.seeds], [seed for job in jobs for seed in job.seeds]))
    return [[next(fills) for _ in job.seeds] for job in jobs]


def _fill_alone(eraser: Eraser, job: FillJob) -> list[Fill] | ItemError:
    try:
        return _fill_bucket(eraser, [job])[0]
    except ItemError as error:
        return error
    except Exception as error:  # noqa: BLE001 - a network may raise anything; the answer names it
        text = " ".join(str(error).split())[:200]
        return ItemError("erase", type(error).__name__, f"model {eraser.name} failed: {type(error).__name__}: {text}")


def one_thread(on_cpu: bool) -> None:
    """One thread per library, as in jobs: a result does not depend on the number of cores."""
    cv2.setNumThreads(1)
    if on_cpu:
        import torch

        from core.memory import keep_freed_memory

        keep_freed_memory()
        torch.set_num_threads(1)


@serve.deployment(name="eraser")
class EraserDeployment:
    """Fills crops. Requests that wait are filled together, as many as the eraser likes at once."""

    def __init__(self, settings: ServingSettings) -> None:
        on_gpu = bool(settings.num_gpus) or settings.device.startswith("cuda")
        one_thread(on_cpu=not on_gpu)
        self._networks, self._metrics = Networks(settings), GraphMetrics("eraser")
        networks = self._networks

        # a function and not a method, since the number of models is a setting: Serve keeps its cache on the function
        async def load(name: str) -> Eraser:
            return await asyncio.to_thread(networks.load, name)

        self._load = serve.multiplexed(max_num_models_per_replica=settings.models_per_replica)(load)
        self._running = asyncio.Lock()
        self._first = settings.models[0].name
        self._filled.set_max_batch_size(settings.batch_size if on_gpu else 1)  # type: ignore[attr-defined]
        self._filled.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000 if on_gpu else 0.0)  # type: ignore[attr-defined]

    async def describe(self, name: str) -> ModelInfo:
        """What the ingress crops by; loads the model."""
        return self._networks.info(name, await self._load(name))

    async def fill(self, job: FillJob) -> list[Fill]:
        """One fill for every seed of the job. Raises ItemError where the network fails at it, ModelChanged where it is not the job's."""
        found: list[Fill] | CleanplateError = await self._filled(job)
        if isinstance(found, CleanplateError):
            raise found
        return found

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.0)
    async def _filled(self, jobs: list[FillJob]) -> list[list[Fill] | CleanplateError]:
        by_model: dict[str, list[int]] = {}
        for place, job in enumerate(jobs):
            by_model.setdefault(job.info.name, []).append(place)
        found: dict[int, list[Fill] | CleanplateError] = {}
        for name, all_places in by_model.items():
            eraser = await self._load(name)
            info = self._networks.info(name, eraser)
            places = [place for place in all_places if jobs[place].info == info]
            found.update((place, ModelChanged(f"model {name} is another one by now")) for place in all_places if place not in places)
            if not places:
                continue
            part = [jobs[place] for place in places]
            async with self._running:  # batches of two models must not share the network's time, nor its thread
                started = time.perf_counter()
                filled = await asyncio.to_thread(self._networks.fill, eraser, part)
            self._metrics.observe_batch(name, sum(len(job.seeds) for job in part), time.perf_counter() - started)
            found.update(zip(places, filled, strict=True))
        return [found[place] for place in range(len(jobs))]

    async def check_health(self) -> None:
        """Called by Serve; a replica whose GPU has failed is replaced."""
        await asyncio.to_thread(check_device)


@serve.deployment(name="discriminator")
class DiscriminatorDeployment:
    """Scores the candidates of one request at a time, as jobs do, so that the scores are the same."""

    def __init__(self, settings: ServingSettings, discriminator: str) -> None:
        on_gpu = bool(settings.scorer_num_gpus) or settings.device.startswith("cuda")
        one_thread(on_cpu=not on_gpu)
        self._metrics = GraphMetrics("discriminator")
        self._scorer: Scorer = load_scorer(discriminator, device=settings.device if on_gpu else "cpu", dtype=settings.dtype)
        self._running = asyncio.Lock()

    async def describe(self) -> int:
        """Side in pixels of the pictures that it looks at."""
        return self._scorer.size

    async def score(self, views: Views) -> list[float]:
        """As ``core.scoring.score_views``. Raises ModelChanged where the views are of another discriminator's size."""
        if len(views.mask) != self._scorer.size:
            raise ModelChanged(f"the discriminator looks at {self._scorer.size} pixels by now, and not at {len(views.mask)}")
        async with self._running:
            started = time.perf_counter()
            scores = await asyncio.to_thread(score_views, self._scorer, views)
        self._metrics.observe_scores(scores, time.perf_counter() - started)
        return scores

    async def check_health(self) -> None:
        """As the eraser's."""
        await asyncio.to_thread(check_device)


def check_device() -> None:
    """Raises what CUDA raises once its context is broken."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
