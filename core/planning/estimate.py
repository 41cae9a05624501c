"""How long a job takes on a cluster in steady state, what it costs, and which resource it waits for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.planning.demand import Demand

BLOCK_IMAGES: Final = 64
SHARD_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterShape:
    """A cluster of equal nodes.

    Attributes:
        nodes: how many.
        gpus: of a node; 0: the cores erase.
        cores: of a node.
        node_gbps: network of a node to the store, in Gbit/s.
        store_gbps: what the store gives to all nodes together, in Gbit/s; 0: more than they take.
        efficiency: share of the resources' rate that the job reaches.
    """

    nodes: int
    gpus: int
    cores: int
    node_gbps: float
    store_gbps: float = 0.0
    efficiency: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What things cost, in whatever currency; None: not given, and no cost is named."""

    node_hour: float | None = None
    storage_gb_month: float | None = None
    egress_gb: float | None = None
    thousand_requests: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan without failures.

    Attributes:
        rates: images per second that each resource allows, by its name; the least one is the bottleneck.
        seconds: of the job once the cluster is up.
        bytes_in: read from the store.
        bytes_out: written to it.
        requests: to the store.
    """

    images: int
    rates: dict[str, float]
    seconds: float
    bytes_in: float
    bytes_out: float
    requests: int

    @property
    def bottleneck(self) -> str:
        return min(self.rates, key=self.rates.__getitem__)

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    def use(self) -> dict[str, float]:
        """Share of each resource that is in use while the bottleneck is full."""
        least = min(self.rates.values())
        return {name: least / rate for name, rate in self.rates.items()}


def estimate(images: int, demand: Demand, cluster: ClusterShape) -> Estimate:
    """The steady state: every resource works at once, and the slowest decides."""
    rates: dict[str, float] = {}
    if demand.device_seconds:
        rates["GPUs"] = cluster.nodes * cluster.gpus / demand.device_seconds
    rates["cores"] = cluster.nodes * cluster.cores / demand.core_seconds
    gbits = 8e-9 * max(demand.bytes_in, demand.bytes_out)  # links carry both ways at once
    rates["network of the nodes"] = cluster.nodes * cluster.node_gbps / gbits
    if cluster.store_gbps:
        rates["bandwidth of the store"] = cluster.store_gbps / (8e-9 * (demand.bytes_in + demand.bytes_out))
    seconds = images / (min(rates.values()) * cluster.efficiency)
    bytes_out = images * demand.bytes_out
    # two GETs an image; a shard is one PUT (of several parts), a look at the lease, and its share of the ledger's reads
    requests = 2 * images + 4 * (1 + round(bytes_out / SHARD_BYTES))
    return Estimate(images, rates, seconds, images * demand.bytes_in, bytes_out, requests)


def costs(plan: Estimate, cluster: ClusterShape, prices: Prices, *, seconds: float, months: float, redone: int = 0) -> dict[str, float]:
    """The parts of the cost that prices were given for, by name.

    Args:
        seconds: for which the nodes are paid.
        months: for which the output is kept.
        redone: images that were read more than once.
    """
    found: dict[str, float] = {}
    if prices.node_hour is not None:
        found["nodes"] = cluster.nodes * seconds / 3600 * prices.node_hour
    if prices.storage_gb_month is not None:
        found["storage"] = plan.bytes_out / 1e9 * months * prices.storage_gb_month
    if prices.egress_gb is not None:
        found["egress"] = plan.bytes_in * (1 + redone / plan.images) / 1e9 * prices.egress_gb
    if prices.thousand_requests is not None:
        found["requests"] = plan.requests / 1000 * prices.thousand_requests
    return found
