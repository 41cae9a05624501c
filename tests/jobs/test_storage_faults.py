"""A store that fails in passing costs time alone; one that fails for good is one line, after which the same call goes on."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from core import storage
from core.errors import CleanplateError
from core.ledger import list_output
from jobs.clean import clean
from jobs.config import CleanConfig, VerifyConfig
from jobs.demo import upload
from jobs.verify import verify
from tests.conftest import S3
from tests.faulty_s3 import KINDS, FaultyS3
from tests.jobs.support import read_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def proxy(s3: S3) -> Iterator[FaultyS3]:
    """The proxy, and a Ray whose workers know the store by it alone."""
    faulty = FaultyS3(s3.store.endpoint, seed=1)
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        patch.setattr("core.s3._clients", {})
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", address="local")
        yield faulty
        ray.shutdown()
    faulty.close()


@pytest.fixture
def bucket(proxy: FaultyS3, s3: S3, pairs: Path) -> Iterator[str]:
    """A bucket with forty photos, reached through the proxy."""
    proxy.calm()
    proxy.met.clear()
    uri = s3.bucket("faults")
    upload(pairs, f"{uri}/photos")
    yield uri
    proxy.calm()


@pytest.fixture(scope="module")
def whole(proxy: FaultyS3, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: ARG001 - its Ray runs the job
    """The rows of the same job from a disk."""
    output = tmp_path_factory.mktemp("whole") / "out"
    run(str(pairs), str(output))
    return read_rows(str(output))[0]


def run(source: str, output: str, **settings: Any) -> dict[str, Any]:
    names = {"model": "tests.erasers:Noisy", "discriminator": "none", "origin": "faults", "shard_mb": 0.0, "block_rows": 5}
    return clean(CleanConfig(input=source, output=output, **{**names, **settings}))


def assert_whole(output: str, whole: dict[str, Any]) -> None:
    results, failures = read_rows(output)
    assert not failures
    assert results == whole
    assert verify(VerifyConfig(input=output))["status"] == "finished"


def test_errors_throttling_resets_and_cut_bodies_cost_time_alone(proxy: FaultyS3, bucket: str, whole: dict[str, Any]) -> None:
    proxy.rates = {"500": 0.05, "503": 0.05, "reset": 0.05, "truncated": 0.05, "slow": 0.05}
    summary = run(f"{bucket}/photos", f"{bucket}/out")
    met = dict(proxy.met)
    proxy.calm()
    assert (summary["in"], summary["out"], summary["failed"]) == (40, 40, 0)
    assert set(met) == set(KINDS), f"not every fault was met: {met}"
    assert_whole(f"{bucket}/out", whole)


def test_old_listings_never_give_a_wrong_dataset(proxy: FaultyS3, bucket: str, whole: dict[str, Any]) -> None:
    """S3 lists what was written; of a store that does not, a job may stop with one line, and goes on when the listings are right again."""
    run(f"{bucket}/photos", f"{bucket}/out")
    storage.storage_for(bucket).delete(f"{bucket}/out/dataset.json")
    storage.storage_for(bucket).delete(list_output(f"{bucket}/out")[0][0])
    list_output(f"{bucket}/out")
    proxy.stale = True
    with contextlib.suppress(CleanplateError):
        run(f"{bucket}/photos", f"{bucket}/out")
    assert proxy.met["stale"] > 0, "no old listing was met: the test shows nothing"
    proxy.calm()
    run(f"{bucket}/photos", f"{bucket}/out")
    assert_whole(f"{bucket}/out", whole)


def test_a_smaller_cluster_finishes_what_a_larger_one_began(pairs: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    output = tmp_path / "out"
    run(str(pairs), str(output), min_actors=2, max_actors=2)
    for part in list_output(str(output))[0][::2]:
        Path(part).unlink()
    (output / "dataset.json").unlink()
    summary = run(str(pairs), str(output), min_actors=1, max_actors=1, threads=1, block_rows=3)
    assert 0 < summary["processed"] < 40
    assert_whole(str(output), whole)


def test_a_full_disk_is_one_line_and_with_more_room_the_job_ends(pairs: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=128k", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here: no disk can be filled")
    try:
        with pytest.raises(CleanplateError, match="No space left on device"):
            run(str(pairs), str(folder / "out"))
        subprocess.run([*mount, "remount,size=64m", "tmpfs", str(folder)], check=True)
        run(str(pairs), str(folder / "out"))
        assert_whole(str(folder / "out"), whole)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_third_of_all_requests_fails(proxy: FaultyS3, bucket: str, whole: dict[str, Any], kind: str) -> None:
    proxy.rates = {kind: 0.33}
    run(f"{bucket}/photos", f"{bucket}/out")
    assert proxy.met[kind] > 20
    proxy.calm()
    assert_whole(f"{bucket}/out", whole)
