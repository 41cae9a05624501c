"""The application that ``serve deploy`` and ``cleanplate serve`` build: ingress, eraser, discriminator."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from core.errors import UsageError
from core.memory import keep_freed_memory
from core.scoring import discriminator_for
from serving.access import read_keys
from serving.graph import RemoteGraph
from serving.networks import DiscriminatorDeployment, EraserDeployment, one_thread
from serving.service import Service
from serving.settings import ServingSettings
from serving.store import ImageStore
from serving.web import make_app

if TYPE_CHECKING:
    from serving.review.desk import Desk

log = logging.getLogger("ray.serve")


@serve.deployment(name="ingress")
@serve.ingress()
class Ingress:
    """Answers HTTP: decodes, crops, pastes and encodes in threads, and asks the models for the rest."""

    def __init__(self, settings: ServingSettings, eraser: DeploymentHandle, discriminator: DeploymentHandle | None) -> None:
        one_thread(on_cpu=False)
        keep_freed_memory()
        folder = settings.store or own_folder()
        if not settings.store and sum(node["Alive"] for node in ray.nodes()) > 1:
            log.warning("uploads lie on this machine alone, and the cluster has more; set store to an s3:// or shared folder")
        store = ImageStore(folder, int(settings.store_mb * 2**20), settings.expires_s)
        self._service = Service(settings, RemoteGraph(settings, eraser, discriminator), store, read_keys(settings), open_desk(settings))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._service)


def own_folder() -> str:
    """The folder of uploads in this machine's temporary folder, closed to other users. Raises UsageError where it is another user's."""
    folder = Path(tempfile.gettempdir()) / f"cleanplate-uploads-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UsageError(f"{folder} belongs to another user; name a folder for uploads with store")
    return str(folder)


def open_desk(settings: ServingSettings) -> Desk | None:
    """The review desk that the settings name; None where they name none. Raises UsageError where it cannot be opened."""
    if not settings.review:
        return None
    try:
        from serving.review.desk import Desk
        from serving.review.store import open_store
    except ImportError as error:
        raise UsageError(f"the review desk needs more packages ({error}): pip install 'cleanplate[review]'") from error
    return Desk.open(open_store(settings.review), settings.review_queue)


def build(args: dict[str, Any]) -> Application:
    """The graph for ``import_path: serving.app:build`` of a Serve file; ``args`` are the fields of ``ServingSettings``.

    Raises:
        UsageError: a setting is wrong.
    """
    settings = ServingSettings.of(args or {})
    read_keys(settings)
    drain_s = settings.deadline_s + 5
    name = discriminator_for(settings.models[0].model, settings.discriminator)
    batch = settings.batch_size if settings.num_gpus or settings.device.startswith("cuda") else 1
    eraser = _deployment(EraserDeployment).options(
        max_ongoing_requests=2 * batch,
        max_queued_requests=settings.max_queued,
        graceful_shutdown_timeout_s=drain_s,
        max_surge_percent=settings.surge_percent,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        autoscaling_config=_scaling(settings, settings.min_replicas, settings.max_replicas, settings.target_ongoing),
    ).bind(settings)
    discriminator = None
    if name is not None:
        discriminator = _deployment(DiscriminatorDeployment).options(
            max_ongoing_requests=8,
            max_queued_requests=settings.max_queued,
            graceful_shutdown_timeout_s=drain_s,
            max_surge_percent=settings.surge_percent,
            ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.scorer_num_gpus},
            autoscaling_config=_scaling(settings, settings.scorer_min_replicas, settings.scorer_max_replicas, settings.target_ongoing),
        ).bind(settings, name)
    return _deployment(Ingress).options(
        # the replica's own limit, whose answer is a problem, comes first; this one bounds what it holds if it does not keep up
        max_ongoing_requests=2 * settings.max_ongoing,
        max_queued_requests=settings.max_ongoing,
        graceful_shutdown_timeout_s=drain_s,
        max_surge_percent=settings.surge_percent,
        ray_actor_options={"num_cpus": settings.ingress_num_cpus},
        autoscaling_config=_scaling(settings, settings.ingress_min_replicas, settings.ingress_max_replicas, settings.max_ongoing / 2),
    ).bind(settings, eraser, discriminator)


def _deployment(found: Any) -> Deployment:
    """What the decorator made of a class, which type checkers take for the class itself."""
    made: Deployment = found
    return made


def _scaling(settings: ServingSettings, least: int, most: int, target: float) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        initial_replicas=max(1, least),
        target_ongoing_requests=target,
        upscale_delay_s=settings.upscale_delay_s,
        downscale_delay_s=settings.downscale_delay_s,
    )
