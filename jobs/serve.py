"""``cleanplate serve``: the graph, the API and the page, until someone interrupts."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, Final

import ray

from core.errors import CleanplateError, UsageError
from jobs.cluster import ray_cluster
from jobs.serve_config import ServeConfig
from jobs.signals import interrupt_on_terminate

log = logging.getLogger(__name__)

DEFAULT_PORT: Final = 8000
LARGEST_MESSAGE: Final = str(2**31 - 1)
HEALTH_EVERY_S: Final = 1.0


def run(config: ServeConfig) -> int:
    """Serve until interrupted; prints the address once requests are answered."""
    # read by Serve when it is imported, here and in every process of a cluster that is started here: it halves the time between deployments
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
    # its default, gRPC's own 4 MiB, is less than many a photo: an answer above it would be a 500
    os.environ.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", LARGEST_MESSAGE)
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    answer = sys.stdout
    try:
        with ray_cluster(config.address):
            url = start(config)
            try:
                print(json.dumps({"url": url}) if config.json else f"cleanplate serves {url} (Ctrl-C ends it)", file=answer, flush=True)
                wait(config)
            finally:
                stop()
    except KeyboardInterrupt:
        log.info("ended")
    return 0


def start(config: ServeConfig) -> str:
    """Deploy the graph on the cluster at hand and return its address.

    Raises:
        UsageError: a setting is wrong, the port is taken, or a model cannot be loaded.
    """
    from ray import serve

    from serving.app import build
    from serving.settings import APPLICATION, ServingSettings

    arguments = config.arguments()
    if "num_gpus" not in arguments:
        arguments["num_gpus"] = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    settings = ServingSettings.of(arguments)
    listening = config.http_options or {}
    host = config.host or str(listening.get("host", "127.0.0.1"))
    port = config.port if config.port is not None else int(listening.get("port", DEFAULT_PORT))
    port = _checked_port(host, port)
    if host not in ("127.0.0.1", "localhost", "::1") and not (settings.keys_file or os.environ.get("CLEANPLATE_API_KEYS")):
        log.warning("everyone who reaches %s may call; --keys-file FILE asks for keys", host)
    options: dict[str, Any] = {
        # beyond the graph's own deadline, whose answer is a problem
        "request_timeout_s": settings.deadline_s + settings.body_timeout_s + 10,
        **listening,
        "host": host,
        "port": port,
    }
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(
            proxy_location=config.proxy_location or "HeadOnly", http_options=options, logging_config=config.logging_config or LOGGING
        )
        prefix = (config.applications[0] if config.applications else {}).get("route_prefix", "/")
        serve.run(build(arguments), name=APPLICATION, route_prefix=prefix, logging_config=config.logging_config or LOGGING)
    except RuntimeError as error:
        stop()
        raise UsageError(f"the graph did not start: {_reason(APPLICATION, error)}") from error
    interrupt_on_terminate()
    if threading.current_thread() is threading.main_thread():
        # a shell starts what is in its background with interrupts ignored; this command has to end by them
        signal.signal(signal.SIGINT, signal.default_int_handler)
    shown = "127.0.0.1" if host == "0.0.0.0" else host
    return f"http://{shown}:{port}"


LOGGING: Final = {"encoding": "JSON", "enable_access_log": True}


def wait(config: ServeConfig) -> None:  # noqa: ARG001 - the graph runs by itself
    """Until interrupted. Raises CleanplateError where the application is gone."""
    from ray import serve

    from serving.settings import APPLICATION

    while True:
        time.sleep(HEALTH_EVERY_S)
        if APPLICATION not in serve.status().applications:
            raise CleanplateError("the graph was removed from the cluster by someone else")


def stop() -> None:
    """Drain and remove the graph; requests in work are answered first."""
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()


def _checked_port(host: str, port: int) -> int:
    """The port, a free one for 0. Raises UsageError where it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port, 0 for a free one") from error
        return int(probe.getsockname()[1])


def _reason(application: str, error: RuntimeError) -> str:
    """The line of a replica's traceback that says what is wrong."""
    from ray import serve

    try:
        found = serve.status().applications.get(application)
    except Exception:  # noqa: BLE001 - Serve itself may be what did not start
        found = None
    texts = [deployment.message for deployment in found.deployments.values()] if found else []
    lines = [line.strip() for text in [*texts, str(error)] for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line and not line.startswith(("File", "Traceback"))]
    return (telling or lines or ["no reason given"])[-1][:400]
