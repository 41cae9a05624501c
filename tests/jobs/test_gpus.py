"""A cluster with devices, which Ray counts though this machine has none: actors ask for them, and the job is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from core.ledger import read_columns
from jobs.clean import clean
from jobs.config import CleanConfig
from tests.jobs.support import read_rows

GPUS = 2


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which erasers leave the names of the devices that they see."""
    ray.shutdown()
    seen = tmp_path / "seen"
    seen.mkdir()
    monkeypatch.setenv("TEST_DEVICES", str(seen))
    ray.init(num_cpus=4, num_gpus=GPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR", address="local")
    yield seen
    ray.shutdown()


def test_actors_take_the_devices_and_whole_blocks(devices: Path, pairs: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"input": str(pairs), "discriminator": "none", "origin": "devices", "model": "tests.erasers:OnDevice"}
    summary = clean(CleanConfig(output=str(tmp_path / "with"), shard_mb=0.0, block_rows=5, **settings))
    assert (summary["in"], summary["out"], summary["failed"]) == (40, 40, 0)
    seen = {path.name for path in devices.iterdir()}
    assert seen <= {"0", "1"}, "an eraser ran without a device of its own, or with both"
    assert seen
    # a shard is a block: none was cut or joined on its way through the actors
    sizes = [len(read_columns(str(path), ("id",))) for path in (tmp_path / "with").glob("part-*.parquet")]
    assert sorted(sizes) == [5] * 8
    clean(CleanConfig(output=str(tmp_path / "without"), num_gpus=0.0, **settings))
    assert read_rows(str(tmp_path / "with")) == read_rows(str(tmp_path / "without"))
