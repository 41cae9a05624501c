"""A simulation of the clean job on a cluster, block by block: nodes that come, get lost and come back, devices, cores, links, the store.

A discrete-event simulation with one event for each thing that a node does. What a block needs is served first come, first served by each
resource that it shares: the store's bandwidth, its node's link, its node's cores, its actor's device. Within a block the device works while
pictures are fetched and decoded, as in ``core.workload``. A node that is lost gives back the blocks that it had not written.

A real system shares links and cores evenly instead of in turn, which gives the same throughput and other finishing times within a block.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from core.errors import UsageError
from core.planning.demand import Demand
from core.planning.estimate import BLOCK_IMAGES, ClusterShape

MOST_BLOCKS: Final = 60_000
"""A larger job is simulated in larger blocks, so that a plan takes seconds."""
HOPELESS: Final = 50
"""Times that all the work may be lost before the simulation gives up."""
SPREAD: Final = 0.1
"""Standard deviation of a block's work over its mean: photos differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What happens to the cluster.

    Attributes:
        node_start_seconds: from asking for a node until its actors work, models loaded; also after a loss.
        nodes_per_minute: how quickly nodes come; 0: all are there at the start.
        losses_per_node_day: how often a node is taken away (spot instances) or dies.
        actor_losses_per_hour: how often a single actor dies; its process is back after ``actor_start_seconds``.
        actor_start_seconds: until a new process has loaded its models.
        seed: of the dice.
    """

    node_start_seconds: float = 0.0
    nodes_per_minute: float = 0.0
    losses_per_node_day: float = 0.0
    actor_losses_per_hour: float = 0.0
    actor_start_seconds: float = 10.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What came out.

    Attributes:
        seconds: until the last block was written.
        images: written.
        redone: images whose work was lost, and done again.
        node_losses: nodes that were lost while there was work.
        actor_losses: actors that were lost while there was work.
        device_use: share of the paid device time in which devices worked.
        block_images: images of a block as simulated.
    """

    seconds: float
    images: int
    redone: int
    node_losses: int
    actor_losses: int
    device_use: float
    block_images: int


@dataclass(slots=True)
class _Node:
    """One node: when each of its resources is free next, and what its actors are at."""

    number: int
    life: int = 0
    """Grows with every loss; events of an earlier life are void."""
    link_in: float = 0.0
    link_out: float = 0.0
    cores: float = 0.0
    devices: list[float] = field(default_factory=list)
    open: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Blocks that are not written yet: their images and actor."""
    turns: list[int] = field(default_factory=list)
    """Of every actor: which of its events holds; earlier ones are void."""


class Simulation:
    """One run of one job. Make it, call ``run`` once."""

    def __init__(self, images: int, demand: Demand, cluster: ClusterShape, conditions: Conditions) -> None:
        self._demand, self._cluster, self._conditions = demand, cluster, conditions
        self._random = random.Random(conditions.seed)
        self._block = max(BLOCK_IMAGES, -(-images // MOST_BLOCKS))
        if not cluster.gpus:
            self._block = max(1, min(self._block, images // max(1, 4 * cluster.nodes * cluster.cores)))
        whole, rest = divmod(images, self._block)
        self._queue = deque([self._block] * whole + ([rest] if rest else []))
        self._images = images
        self._store = 0.0
        self._events: list[tuple[float, int, str, int, int, int, int]] = []
        self._idle: list[tuple[_Node, int, int]] = []
        self._count = self._blocks = self._redone = self._node_losses = self._actor_losses = 0
        self._busy = 0.0
        self._nodes = [_Node(number) for number in range(cluster.nodes)]
        self._actors = cluster.gpus or cluster.cores

    def run(self) -> SimulatedRun:
        """Play it to its end."""
        done, last = 0, 0.0
        conditions = self._conditions
        for node in self._nodes:
            comes = node.number / conditions.nodes_per_minute * 60 if conditions.nodes_per_minute else 0.0
            self._at(comes + conditions.node_start_seconds, "up", node)
        self._next_actor_loss(0.0)
        while done < self._images:
            now, _, kind, number, life, detail, turn = heapq.heappop(self._events)
            node = self._nodes[number]
            if self._redone > HOPELESS * self._images:
                raise UsageError(
                    f"nodes are lost faster than they finish a block of {self._block} images: such a job never ends; lower the losses"
                )
            if kind == "actor lost":
                self._lose_actor(now)
                self._next_actor_loss(now)
            elif life != node.life:
                continue
            elif kind == "up":
                self._up(now, node)
            elif kind == "lost":
                self._lose_node(now, node)
            elif kind == "free" and turn == node.turns[detail]:
                self._take(now, node, detail)
            elif kind == "written" and detail in node.open:
                done += node.open.pop(detail)[0]
                last = now
        paid = self._cluster.nodes * self._actors * last
        return SimulatedRun(last, done, self._redone, self._node_losses, self._actor_losses, self._busy / paid, self._block)

    def _at(self, when: float, kind: str, node: _Node, detail: int = 0, turn: int = 0) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, kind, node.number, node.life, detail, turn))

    def _free_at(self, when: float, node: _Node, actor: int) -> None:
        node.turns[actor] += 1
        self._at(when, "free", node, actor, node.turns[actor])

    def _up(self, now: float, node: _Node) -> None:
        node.link_in = node.link_out = node.cores = now
        node.devices, node.turns, node.open = [now] * self._actors, [0] * self._actors, {}
        for actor in range(self._actors):
            self._free_at(now, node, actor)
        if self._conditions.losses_per_node_day:
            self._at(now + self._random.expovariate(self._conditions.losses_per_node_day / 86400), "lost", node)

    def _take(self, now: float, node: _Node, actor: int) -> None:
        """An actor takes the next block up; everything that happens to the block is settled here."""
        if not self._queue:
            self._idle.append((node, node.life, actor))  # a loss elsewhere may give work back
            return
        images = self._queue.popleft()
        demand, cluster = self._demand, self._cluster
        work = images * max(0.2, self._random.gauss(1.0, SPREAD)) / cluster.efficiency
        start = now
        if cluster.store_gbps:
            start = self._store = max(now, self._store) + work * (demand.bytes_in + demand.bytes_out) * 8e-9 / cluster.store_gbps
        node.link_in = max(now, node.link_in) + work * demand.bytes_in * 8e-9 / cluster.node_gbps
        node.cores = max(now, node.cores) + work * demand.core_seconds / cluster.cores
        alone = work * demand.core_seconds if cluster.gpus == 0 else 0.0
        prepared = max(start, node.link_in, node.cores, now + alone)
        begun = max(prepared if demand.device_seconds == 0 else now, node.devices[actor])
        finished = max(prepared, begun + work * demand.device_seconds)
        node.link_out = max(finished, node.link_out) + work * demand.bytes_out * 8e-9 / cluster.node_gbps
        self._busy += finished - begun if demand.device_seconds == 0 else work * demand.device_seconds
        node.devices[actor] = finished
        self._blocks += 1
        node.open[self._blocks] = (images, actor)
        self._at(node.link_out, "written", node, self._blocks)
        self._free_at(finished, node, actor)

    def _lose_node(self, now: float, node: _Node) -> None:
        self._node_losses += 1
        lost = [images for images, _ in node.open.values()]
        node.open, node.life = {}, node.life + 1
        self._give_back(now, lost)
        self._at(now + self._conditions.node_start_seconds, "up", node)

    def _next_actor_loss(self, now: float) -> None:
        if self._conditions.actor_losses_per_hour:
            wait = self._random.expovariate(self._conditions.actor_losses_per_hour / 3600)
            self._count += 1
            heapq.heappush(self._events, (now + wait, self._count, "actor lost", 0, 0, 0, 0))

    def _lose_actor(self, now: float) -> None:
        """A random actor that has work dies: its blocks go back, and it takes none until it is up again."""
        working = [(node, block) for node in self._nodes for block in node.open]
        if not working:
            return
        node, block = self._random.choice(working)
        actor = node.open[block][1]
        lost = [number for number, (_, who) in node.open.items() if who == actor]
        self._give_back(now, [node.open.pop(number)[0] for number in lost])
        self._actor_losses += 1
        node.devices[actor] = now + self._conditions.actor_start_seconds
        self._free_at(node.devices[actor], node, actor)

    def _give_back(self, now: float, blocks: list[int]) -> None:
        self._redone += sum(blocks)
        self._queue.extendleft(blocks)
        idle, self._idle = self._idle, []
        for node, life, actor in idle:
            if life == node.life:
                self._free_at(now, node, actor)


def simulate(images: int, demand: Demand, cluster: ClusterShape, conditions: Conditions) -> SimulatedRun:
    """Play a job once; the same arguments give the same run."""
    return Simulation(images, demand, cluster, conditions).run()
