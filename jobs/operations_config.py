"""The configuration of the commands that come before and beside a job: ``doctor`` and ``plan``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import UsageError
from core.planning.quantity import parse_count
from jobs.config import within


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig:
    """Check this machine: Python, Ray, GPU, storage, models, disk, memory and ports, and say what to do about what is wrong.

    Attributes:
        storage: folders or s3:// folders that jobs will use, separated by commas; each is read, written, and asked for conditional writes
        model: models that jobs will use, separated by commas, as in cleanplate clean: whether their files are here and whole
        address: Ray cluster to reach; the default checks what a new one on this machine would need
        ports: also check that the ports of a Ray head (6379, 8265, 10001) and of the served graph (8000) are free
        json: print the findings as one JSON object
    """

    storage: str = ""
    model: str = "tiny"
    address: str | None = None
    ports: bool = True
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """Say how long a job will take on a cluster, what it costs and what it waits for, from measured figures and counted operations.

    Attributes:
        images: how many, as 250k, 10M or 10000000
        model: as in cleanplate clean
        gpus: of all nodes together; 0 erases on CPUs
        gpu: kind of the GPUs, for what they sustain
        gpus_per_node: GPUs of a node
        nodes: number of nodes where there are no GPUs
        cores_per_node: CPU cores of a node
        steps: network calls an image; the default is the model's
        guidance: above 1 the network is asked twice a step; the default is the model's
        candidates: erasures an image
        discriminator: none leaves the score out
        size: side of the network's pictures in pixels
        megapixels: of a photo, in the mean
        image_format: how erasures are encoded
        accepted: share of results that are accepted; they are stored a second time, as targets
        seconds_per_image: of one GPU (or core), from a short run of your own; replaces the arithmetic
        sustained_tflops: of one GPU, measured with benchmarks.gpu; replaces the figure of its kind
        node_gbps: network of a node to the store, in Gbit/s
        store_gbps: what the store gives to all nodes together, in Gbit/s; 0 is more than they take
        node_start_seconds: until a new node works, models loaded
        losses_per_node_day: how often a node is taken away or dies; spot instances have more
        price_node_hour: price of a node for an hour, in any currency
        price_storage_gb_month: price of a GB in the store for a month
        price_egress_gb: price of a GB read from a store elsewhere; leave away where the store is in the cluster's own region
        price_thousand_requests: price of a thousand requests to the store
        months: how long the output is kept
        simulate: play the job on a simulated cluster, too; needed for losses
        seed: of the simulation's dice
        json: print the plan as one JSON object
    """

    images: str
    model: str = "tiny"
    gpus: int = 0
    gpu: Literal["h200", "h100", "a100"] = "h100"
    gpus_per_node: int = 8
    nodes: int = 1
    cores_per_node: int = 64
    steps: int | None = None
    guidance: float | None = None
    candidates: int = 1
    discriminator: Literal["auto", "none"] = "auto"
    size: Literal[512, 1024] = 512
    megapixels: float = 1.0
    image_format: Literal["png", "webp"] = "png"
    accepted: float = 0.5
    seconds_per_image: float | None = None
    sustained_tflops: float | None = None
    node_gbps: float = 10.0
    store_gbps: float = 0.0
    node_start_seconds: float = 600.0
    losses_per_node_day: float = 0.0
    price_node_hour: float | None = None
    price_storage_gb_month: float | None = None
    price_egress_gb: float | None = None
    price_thousand_requests: float | None = None
    months: float = 1.0
    simulate: bool = True
    seed: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        parse_count(self.images)
        for name, least, most in (
            ("gpus", 0, 100_000),
            ("gpus_per_node", 1, 64),
            ("nodes", 1, 100_000),
            ("cores_per_node", 1, 1024),
            ("steps", 1, 1000),
            ("guidance", 0.0, 100.0),
            ("candidates", 1, 64),
            ("megapixels", 0.01, 10_000.0),
            ("accepted", 0.0, 1.0),
            ("seconds_per_image", 1e-6, 1e6),
            ("sustained_tflops", 0.01, 100_000.0),
            ("node_gbps", 0.001, 100_000.0),
            ("store_gbps", 0.0, 1e6),
            ("node_start_seconds", 0.0, 86_400.0),
            ("losses_per_node_day", 0.0, 1000.0),
            ("price_node_hour", 0.0, 1e6),
            ("price_storage_gb_month", 0.0, 1e6),
            ("price_egress_gb", 0.0, 1e6),
            ("price_thousand_requests", 0.0, 1e6),
            ("months", 0.0, 1200.0),
        ):
            within(name, getattr(self, name), least, most)
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise UsageError(
                f"--gpus {self.gpus} is no multiple of --gpus-per-node {self.gpus_per_node}: nodes are equal here; change one of them"
            )
