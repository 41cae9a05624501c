"""Prometheus series of the graph through Ray's own metrics, and ``/metrics``, which gathers them from every node."""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import ray
from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS: Final = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
_IMAGES: Final = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
_SCRAPE_TIMEOUT_S: Final = 3.0
_KEPT: Final = ("ray_cleanplate_", "ray_serve_", "ray_node_gpus", "ray_node_gram", "ray_node_mem", "ray_node_cpu")


class GraphMetrics:
    """The series that one deployment writes; ``ray_cleanplate_*`` where they are read."""

    def __init__(self, deployment: str) -> None:
        self._stage = Histogram("cleanplate_stage_seconds", "Time of one stage.", boundaries=_SECONDS, tag_keys=("stage",))
        self._batch = Histogram("cleanplate_batch_images", "Crops in one network call.", boundaries=_IMAGES, tag_keys=("model",))
        self._score = Histogram("cleanplate_score", "Scores of candidates.", boundaries=[n / 10 for n in range(1, 10)] + [0.99])
        self._accepted = Counter("cleanplate_accepted_total", "Requests whose best candidate scored above 0.9.")
        self._scored = Counter("cleanplate_scored_total", "Requests that were scored.")
        self._answers = Counter("cleanplate_answers_total", "Answers by route and status.", tag_keys=("route", "status"))
        self._waiting = Gauge("cleanplate_working", "Requests in work in an ingress replica.")
        self._gpu = Gauge("cleanplate_gpu_memory_bytes", "Most GPU memory that a replica held.", tag_keys=("deployment",))
        self._deployment = deployment

    def observe_stage(self, stage: str, seconds: float) -> None:
        self._stage.observe(seconds, {"stage": stage})

    def observe_batch(self, model: str, images: int, seconds: float) -> None:
        self._batch.observe(images, {"model": model})
        self.observe_stage("fill", seconds)
        self._observe_gpu()

    def observe_scores(self, scores: Sequence[float], seconds: float) -> None:
        for score in scores:
            self._score.observe(score)
        self._scored.inc()
        if max(scores, default=0.0) > 0.9:
            self._accepted.inc()
        self.observe_stage("score", seconds)
        self._observe_gpu()

    def observe_answer(self, route: str, status: int) -> None:
        self._answers.inc(1, {"route": route, "status": str(status)})

    def observe_working(self, count: int) -> None:
        self._waiting.set(count)

    def _observe_gpu(self) -> None:
        import torch

        if torch.cuda.is_initialized():
            self._gpu.set(torch.cuda.max_memory_allocated(), {"deployment": self._deployment})


def gather() -> str:
    """The graph's series of all nodes in Prometheus' text form, without those of Ray's inner life.

    A node whose agent does not answer is left out: it is written as ``cleanplate_node_up 0``.
    """
    nodes = [(node["NodeID"], node["NodeManagerAddress"], node.get("MetricsExportPort")) for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(max(1, min(16, len(nodes)))) as pool:
        pages = list(pool.map(lambda node: _scrape(node[1], node[2]), nodes))
    heads: dict[str, str] = {}
    series: dict[str, list[str]] = {}
    for page in pages:
        for line in page.splitlines():
            name = line.split(" ")[2] if line.startswith("# ") else line.split("{")[0].split(" ")[0]
            if not name.startswith(_KEPT):
                continue
            if line.startswith("# "):
                heads.setdefault(f"{line.split(' ')[1]} {name}", line)
            else:
                series.setdefault(name, []).append(line)
    up = [f'cleanplate_node_up{{node="{node[0]}"}} {int(bool(page))}' for node, page in zip(nodes, pages, strict=True)]
    lines = ["# HELP cleanplate_node_up Whether the node's metrics agent answered.", "# TYPE cleanplate_node_up gauge", *up]
    families = sorted({key.split(" ")[1] for key in heads}, key=len, reverse=True)
    of_family: dict[str, list[str]] = {family: [] for family in sorted(families)}
    for name, rows in series.items():
        family = next((family for family in families if name == family or name.startswith(f"{family}_")), None)
        if family is not None:
            of_family[family] += rows
    for family, rows in of_family.items():
        if rows:
            lines += [heads[key] for key in (f"HELP {family}", f"TYPE {family}") if key in heads] + rows
    return "\n".join(lines) + "\n"


def _scrape(address: str, port: int | None) -> str:
    if not port:
        return ""
    host = f"[{address}]" if ":" in address else address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=_SCRAPE_TIMEOUT_S) as reply:
            return str(reply.read().decode(errors="replace"))
    except OSError:
        return ""
