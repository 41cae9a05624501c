"""The configuration of ``cleanplate serve``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from core.errors import UsageError
from jobs.config import within

_SERVE_KEYS: Final = ("proxy_location", "http_options", "grpc_options", "logging_config", "applications")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Serve the HTTP API and the page on this machine, or on a Ray cluster, until it is interrupted.

    Attributes:
        host: address to listen on; only this machine by default, 0.0.0.0 for all (then set keys)
        port: port to listen on; 0 is a free one
        model: model of the eraser, as in cleanplate clean; the default is tiny
        discriminator: whose discriminator scores; auto is the model's own, else tiny's; none for no scores
        lcm_lora: LCM LoRA to merge into the model, for 4 steps
        steps: network calls per image; the default is the model's
        segmenter: what makes masks of clicks; grabcut, or a SAM or SAM 2 model
        num_gpus: GPUs per eraser replica, may be a fraction; the default is 1 where the cluster has GPUs, else 0
        batch_size: images per network call on a GPU
        min_replicas: least number of eraser replicas; 0 gives the GPU back while nothing is asked
        max_replicas: largest number of eraser replicas
        max_queued: erasures that may wait; more are answered 503
        store: folder of uploads; local or s3://
        expires: seconds that uploads are kept
        keys_file: file of API keys, one a line; without one everyone may call
        requests_per_minute: per key, or per address where there are no keys; 0 is no limit
        settings: further settings of the graph (serving/settings.py) by name
        proxy_location: of a file for serve deploy
        http_options: of a file for serve deploy
        grpc_options: of a file for serve deploy
        logging_config: of a file for serve deploy
        applications: of a file for serve deploy; the args of its application are the graph's settings, which flags override
        address: address of a Ray cluster; the default is RAY_ADDRESS, a cluster started here, or a new one
        json: print the address that it serves on as one JSON object
    """

    host: str | None = None
    port: int | None = None
    model: str | None = None
    discriminator: str | None = None
    lcm_lora: str | None = None
    steps: int | None = None
    segmenter: str | None = None
    num_gpus: float | None = None
    batch_size: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    max_queued: int | None = None
    store: str | None = None
    expires: float | None = None
    keys_file: str | None = None
    requests_per_minute: float | None = None
    settings: dict[str, Any] | None = None
    proxy_location: str | None = None
    http_options: dict[str, Any] | None = None
    grpc_options: dict[str, Any] | None = None
    logging_config: dict[str, Any] | None = None
    applications: list[Any] | None = None
    address: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        within("port", self.port, 0, 65535)
        within("steps", self.steps, 1, 200)
        entries = self.applications or []
        if len(entries) > 1 or not all(isinstance(entry, dict) for entry in entries):
            raise UsageError("cleanplate serve runs a file with one application; serve deploy takes files with several")

    def arguments(self) -> dict[str, Any]:
        """The settings of the graph: of the file, with the flags above them."""
        found: dict[str, Any] = dict(self.applications[0].get("args") or {}) if self.applications else {}
        found.update(self.settings or {})
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and item.name not in (*_OWN, *_SERVE_KEYS):
                found[_RENAMED.get(item.name, item.name)] = value
        if self.model or self.lcm_lora or self.steps:
            chosen = self.model or "tiny"
            model = {"model": chosen, "name": chosen, "lcm_lora": self.lcm_lora, "steps": self.steps}
            found = {**found, "models": [{name: value for name, value in model.items() if value is not None}]}
            found.pop("model", None)
        return found


_OWN: Final = ("host", "port", "settings", "address", "json", "model", "lcm_lora", "steps")
_RENAMED: Final = {"expires": "expires_s"}
