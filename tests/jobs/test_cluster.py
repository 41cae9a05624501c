"""The sizes of a job's pools for the cluster at hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from jobs import cluster


@dataclass(frozen=True)
class Asked:
    min_actors: int = 0
    max_actors: int = 0
    num_cpus: float = 0.0
    num_gpus: float | None = None
    threads: int = 0


@pytest.mark.parametrize(
    ("cpus", "gpus", "actors", "each"),
    [(2, 0, 2, 0.25), (8, 0, 8, 0.25), (2, 1, 1, 0.75), (4, 4, 4, 0.68), (8, 8, 8, 0.84), (96, 8, 8, 1.0), (400, 40, 40, 1.0)],
)
def test_automatic_pools_take_all_devices_and_leave_room_to_read_and_write(
    monkeypatch: pytest.MonkeyPatch, cpus: int, gpus: int, actors: int, each: float
) -> None:
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    pools = cluster.plan_pools(Asked())
    assert (pools.min_actors, pools.max_actors, pools.num_cpus) == (actors, actors, each)
    assert cpus - pools.max_actors * pools.num_cpus >= cluster.FREE_CPUS + cluster.WRITING_CPUS


def test_pools_that_are_asked_for_and_leave_no_room_to_write_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 2.0})
    cluster.plan_pools(Asked(num_cpus=0.5, min_actors=1))
    assert not caplog.records
    cluster.plan_pools(Asked(num_cpus=0.5, min_actors=2))
    assert "--num-cpus" in caplog.text
