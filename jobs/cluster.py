"""Getting a Ray cluster, and checking before the start that a job's actors fit on it."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import ray

from core.errors import UsageError
from jobs.signals import interrupt_on_terminate

log = logging.getLogger(__name__)

FREE_CPUS: Final = 1.0
"""CPUs that no actor may take: Ray Data's streaming repartition asks for a whole one, and the job would wait for it in silence."""
WRITING_CPUS: Final = 0.25
"""What a task that writes asks for. With less beside the repartition nothing is written before a whole file of the plan is erased."""

STARTED_CLUSTER: Final = Path("/tmp/ray/ray_current_cluster")
"""Where ``ray start`` notes the address of its cluster."""


@dataclass(frozen=True, slots=True)
class Pools:
    """The actor pools of a job.

    ``min_actors`` to ``max_actors`` actors, and up to ``score_actors`` more that score alone (0 where nothing does), with ``num_cpus``
    and ``num_gpus`` each; ``threads`` in each of the former. An actor takes up ``block_rows`` items at a time.
    """

    min_actors: int
    max_actors: int
    num_cpus: float
    num_gpus: float
    score_actors: int
    threads: int
    block_rows: int = 1


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Connect to the cluster at ``address`` (or RAY_ADDRESS, or one that was started on this machine), else start one; leave it at the end.

    Raises:
        UsageError: there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Ray's native code remarks on internals on this terminal otherwise; what matters comes back as an exception
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with _native_remarks_hidden():
            context = _connect(address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"cannot reach a Ray cluster at {address or os.environ.get('RAY_ADDRESS')}: {first}") from error
    # Ray has put a handler of its own in place
    interrupt_on_terminate()
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if context.dashboard_url:
        log.info("Ray dashboard: http://%s", context.dashboard_url)
    # Ray tells of workers that died on standard output, where a command's own answer belongs, and of the last ones when it is shut down
    with redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            ray.shutdown()


def _connect(address: str | None) -> Any:
    """Join the cluster that is named, or that ``ray start`` runs on this machine; start one, of at least two CPUs, where there is none.

    Never "auto": that would also join the private cluster of another command on this machine, which goes when that command ends.
    """
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.cpu_count() == 1 and not address and not os.environ.get("RAY_ADDRESS") and not STARTED_CLUSTER.exists():
        # one CPU is for the tasks that read and write: a machine with one core would have none for actors
        return ray.init(address="local", num_cpus=2, **settings)
    return ray.init(address=address, **settings)


@contextmanager
def _native_remarks_hidden() -> Iterator[None]:
    """Ray's native code writes to the descriptor of standard error, past Python, while it starts."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class PoolSettings(Protocol):
    """The part of a command's configuration that sizes its pools."""

    @property
    def min_actors(self) -> int: ...
    @property
    def max_actors(self) -> int: ...
    @property
    def num_cpus(self) -> float: ...
    @property
    def num_gpus(self) -> float | None: ...
    @property
    def threads(self) -> int: ...


def plan_pools(config: PoolSettings, score_pool: int | None = None) -> Pools:
    """Choose the sizes of the pools that the configuration leaves open, for the cluster at hand.

    ``score_pool`` is the largest number of actors in a scoring pool beside the main one; 0 leaves it open, None is no such pool.

    On a CPU an actor reserves a quarter of a core, so that as many actors as there are cores leave room for the tasks that read and write;
    with a GPU a whole one, or less where there are few.

    Raises:
        UsageError: the least that was asked for leaves no CPU for tasks: Ray would wait for ever.
    """
    resources = ray.cluster_resources()
    cpus, gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    num_gpus = (1.0 if gpus else 0.0) if config.num_gpus is None else config.num_gpus
    room = cpus - FREE_CPUS - WRITING_CPUS
    most = min(math.floor(cpus), _whole(gpus / num_gpus)) if num_gpus else math.floor(cpus)
    num_cpus = config.num_cpus or (max(0.25, min(1.0, math.floor(100 * room / max(1, most)) / 100)) if num_gpus else 0.25)
    fitting = min(most, _whole(room / num_cpus))
    score_actors = 0 if score_pool is None else score_pool or max(1, fitting // 4)
    max_actors = config.max_actors or max(1, config.min_actors, fitting - score_actors)
    pools = Pools(
        min_actors=config.min_actors or (1 if config.max_actors else max_actors),
        max_actors=max_actors,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        score_actors=score_actors,
        threads=config.threads or max(2, round(num_cpus)),
    )
    check_pools(pools, cpus, gpus)
    return pools


def _whole(actors: float) -> int:
    """How many actors fit, in spite of sums of fractions that miss a whole number by a hair."""
    return math.floor(actors + 1e-9)


def check_pools(pools: Pools, cpus: float, gpus: float) -> None:
    """Raises UsageError where the least pools do not fit, or take the last CPU: Ray Data waits silently then (ray#44687)."""
    scoring = 1 if pools.score_actors else 0
    need_gpus = pools.num_gpus * (pools.min_actors + scoring)
    if need_gpus > gpus:
        raise UsageError(
            f"the actors need {need_gpus:g} GPUs ({pools.min_actors} x {pools.num_gpus:g} to erase"
            f"{', one more to score' if scoring else ''}), "
            f"the cluster has {gpus:g}: lower --min-actors or --num-gpus, or add nodes"
        )
    need_cpus = pools.num_cpus * (pools.min_actors + scoring)
    if need_cpus + FREE_CPUS > cpus:
        raise UsageError(
            f"the actors need {need_cpus:g} CPUs ({pools.min_actors} x {pools.num_cpus:g} to erase"
            f"{', one more to score' if scoring else ''}) and {FREE_CPUS:g} must be left for the tasks that read and write; "
            f"the cluster has {cpus:g}: lower --min-actors or --num-cpus, or add nodes"
        )
    if need_cpus + FREE_CPUS + WRITING_CPUS > cpus:
        log.warning(
            "the actors leave %g of %g CPUs, so that writing waits for reading: lower --num-cpus or --min-actors", cpus - need_cpus, cpus
        )
