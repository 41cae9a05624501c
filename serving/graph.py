"""The graph as the ingress sees it: models described, crops filled, candidates scored, here or in other processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

import grpc
import numpy as np
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from core.crops import Fill
from core.errors import CleanplateError, ItemError, UsageError
from core.scoring import Scorer, Views, load_scorer, score_views
from serving.networks import FillJob, ModelInfo, Networks, one_thread
from serving.problems import busy
from serving.settings import ServingSettings

log = logging.getLogger("ray.serve")

Answer = TypeVar("Answer")
NO_SOFT: Final = np.zeros((0, 0), np.float32)


class Graph(Protocol):
    """What the routes need of the networks."""

    async def describe(self, name: str) -> ModelInfo:
        """Of a served model. Raises UsageError where there is none."""

    async def fill(self, info: ModelInfo, job: FillJob) -> list[Fill]:
        """A fill for every seed. Raises ItemError where the network fails, ModelChanged, Problem 503 where the queue is full."""

    async def scorer_size(self) -> int | None:
        """Side of the discriminator's pictures; None where nothing is scored."""

    async def score(self, views: Views) -> list[float]:
        """Scores of the candidates, 0 to 1. Errors as ``fill``."""

    def forget(self) -> None:
        """Ask for the models anew: after ModelChanged."""


class LocalGraph:
    """All networks in this process, one call at a time: for one machine without Ray, comparisons and tests."""

    def __init__(self, settings: ServingSettings, discriminator: str | None) -> None:
        one_thread(on_cpu=True)
        self._networks = Networks(settings)
        self._erasers: dict[str, Any] = {}
        self._scorer: Scorer | None = load_scorer(discriminator, device="cpu") if discriminator else None
        self._running = asyncio.Lock()

    async def describe(self, name: str) -> ModelInfo:
        if name not in self._erasers:
            self._erasers[name] = self._networks.load(name)
        return self._networks.info(name, self._erasers[name])

    async def fill(self, info: ModelInfo, job: FillJob) -> list[Fill]:
        async with self._running:
            (found,) = await asyncio.to_thread(self._networks.fill, self._erasers[info.name], [job])
        if isinstance(found, ItemError):
            raise found
        return found

    async def scorer_size(self) -> int | None:
        return self._scorer.size if self._scorer else None

    async def score(self, views: Views) -> list[float]:
        if self._scorer is None:
            raise UsageError("there is no discriminator here")
        async with self._running:
            return await asyncio.to_thread(score_views, self._scorer, views)

    def forget(self) -> None:
        """Models do not change here."""


class RemoteGraph:
    """The deployments behind their handles. A call whose replica dies is made once more, on another."""

    def __init__(self, settings: ServingSettings, eraser: DeploymentHandle, discriminator: DeploymentHandle | None) -> None:
        self._eraser, self._discriminator = eraser, discriminator
        self._served = {model.name for model in settings.models}
        self._infos: dict[str, ModelInfo] = {}
        self._size: int | None = None

    def _for_model(self, name: str) -> DeploymentHandle:
        # with one model there is nothing to route by
        return self._eraser if len(self._served) == 1 else self._eraser.options(multiplexed_model_id=name)

    async def describe(self, name: str) -> ModelInfo:
        if name not in self._served:
            raise UsageError(f"there is no model {name[:80]!r} here; there are {', '.join(sorted(self._served))}")
        if name not in self._infos:
            self._infos[name] = await _called("eraser", lambda: self._for_model(name).describe.remote(name))
        return self._infos[name]

    async def fill(self, info: ModelInfo, job: FillJob) -> list[Fill]:
        # what only the way back needs stays here: three or four bytes a pixel of the photo that no network looks at
        job = replace(job, crop=replace(job.crop, plate=None, soft=job.crop.soft if info.reads_soft else NO_SOFT))
        return await _called("eraser", lambda: self._for_model(info.name).fill.remote(job))

    async def scorer_size(self) -> int | None:
        if self._discriminator is not None and self._size is None:
            handle = self._discriminator
            self._size = await _called("discriminator", lambda: handle.describe.remote())
        return self._size

    async def score(self, views: Views) -> list[float]:
        if self._discriminator is None:
            raise UsageError("this service has no discriminator; set one to score")
        handle = self._discriminator
        return await _called("discriminator", lambda: handle.score.remote(views))

    def forget(self) -> None:
        self._infos.clear()
        self._size = None


async def _called(name: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The call's answer; made again once where the replica died at it. Both times it gives the same bytes, so nobody sees which it was."""
    for last in (False, True):
        try:
            return await call()
        except BackPressureError as error:
            raise busy(f"the queue of the {name} is full; try again") from error
        except DeploymentUnavailableError as error:
            raise busy(f"the {name} is not there yet; try again", after_s=5) from error
        except RayTaskError as error:
            if isinstance(error.cause, CleanplateError):
                raise error.cause from None
            raise
        except (RayActorError, grpc.aio.AioRpcError) as error:
            if last:
                raise busy(f"the {name} died twice at this request; try again", after_s=5) from error
            log.warning("a replica of the %s died (%s); the request is sent again", name, type(error).__name__)
    raise AssertionError("unreachable")
