"""What is wrong with one item costs one row; what is wrong with the job is one clear line; nothing hangs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from core.errors import CleanplateError, StorageError, UsageError
from core.ledger import list_parts
from jobs.clean import clean
from jobs.cluster import Pools, check_pools
from jobs.config import CleanConfig, VerifyConfig
from jobs.sink import TooManyFailures
from jobs.verify import verify
from tests.jobs.support import read_rows, write_pairs
from tests.malformed import malformed_corpus

pytestmark = pytest.mark.usefixtures("cluster")


def run(source: object, output: object, **settings: Any) -> dict[str, Any]:
    return clean(
        CleanConfig(input=str(source), output=str(output), **{"model": "tests.erasers:Noisy", "discriminator": "none", **settings})
    )


def test_a_poison_item_in_a_batch_costs_one_row(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "in", 20, poison=(3, 11))
    summary = run(pairs, tmp_path / "out", model="tests.erasers:Raising", max_failure_rate=1.0)
    results, failures = read_rows(str(tmp_path / "out"))
    assert (len(results), summary["failures"]) == (18, {"RuntimeError": 2})
    assert set(failures) == {"item-00003", "item-00011"}
    assert failures["item-00003"]["stage"] == "erase"
    assert "this photo is poison" in failures["item-00003"]["message"]
    assert failures["item-00003"]["uri"].endswith("source/item-00003.png")


def test_an_item_that_kills_its_process_is_set_aside_after_the_second_crash(tmp_path: Path) -> None:
    """ray.md F10: by default Ray repeats it for ever."""
    pairs = write_pairs(tmp_path / "in", 24, poison=(5,))
    summary = run(pairs, tmp_path / "out", model="tests.erasers:Killing", block_rows=8, max_failure_rate=1.0)
    results, failures = read_rows(str(tmp_path / "out"))
    assert summary["failures"] == {"crashed": 1}
    assert set(failures) == {"item-00005"}
    assert "died 2 times" in failures["item-00005"]["message"]
    clean_run = write_pairs(tmp_path / "clean", 24)
    run(clean_run, tmp_path / "whole")
    whole, _ = read_rows(str(tmp_path / "whole"))
    assert all(results[name]["erased"] == whole[name]["erased"] for name in results)


def test_malformed_inputs_end_as_failures_with_their_reasons(tmp_path: Path) -> None:
    cases = malformed_corpus()
    assert len(cases) >= 60
    lines = ["id,source,mask"]
    for number, case in enumerate(cases):
        for name, data in (("source", case.source), ("mask", case.mask)):
            if data is not None:
                path = tmp_path / "in" / name / f"{number}.bin"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        lines.append(f"case-{number},source/{number}.bin,mask/{number}.bin")
    manifest = tmp_path / "in" / "list.csv"
    manifest.write_text("\n".join(lines))
    summary = run(manifest, tmp_path / "out", model="opencv", max_failure_rate=1.0)
    results, failures = read_rows(str(tmp_path / "out"))
    assert (summary["in"], summary["failed"], len(results)) == (len(cases), len(cases), 0)
    got = {name: row["error"] for name, row in failures.items()}
    assert got == {f"case-{number}": case.code for number, case in enumerate(cases)}
    for row in failures.values():
        assert row["message"]
        assert "\n" not in row["message"]
        assert len(row["message"]) <= 500
    assert verify(VerifyConfig(input=str(tmp_path / "out")))["status"] == "finished"


def test_plan_time_failures_are_rows_too(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "in", 6)
    (pairs / "mask" / "item-00001.png").unlink()
    (pairs / "source" / "item-00002.png").unlink()
    run(pairs, tmp_path / "out", max_failure_rate=1.0)
    results, failures = read_rows(str(tmp_path / "out"))
    assert set(results) == {f"item-{number:05d}" for number in (0, 3, 4, 5)}
    assert {name: row["error"] for name, row in failures.items()} == {"item-00001": "unpaired", "item-00002": "unpaired"}
    lines = [
        "id,source,mask",
        *[f"same,source/item-{number:05d}.png,mask/item-{number:05d}.png" for number in (0, 3, 4)],
        "x,source/item-00005.png,",
    ]
    (pairs / "list.csv").write_text("\n".join(lines))
    run(pairs / "list.csv", tmp_path / "twice", max_failure_rate=1.0)
    results, failures = read_rows(str(tmp_path / "twice"))
    assert set(results) == {"same"}
    assert {name: row["error"] for name, row in failures.items()} == {
        "same@2": "duplicate_id",
        "same@3": "duplicate_id",
        "x": "bad_manifest_line",
    }


def test_too_many_failures_stop_the_job_and_mended_input_is_taken_up_again(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "in", 240)
    broken = [pairs / "source" / f"item-{number:05d}.png" for number in range(0, 240, 8)]
    whole = {path: path.read_bytes() for path in broken}
    for path in broken:
        path.write_bytes(whole[path][:100])
    with pytest.raises(TooManyFailures, match=r"of \d+ items failed, more than --max-failure-rate 0.05: truncated \d+"):
        run(pairs, tmp_path / "out", shard_mb=0.0)
    summary = run(pairs, tmp_path / "out", shard_mb=0.0, max_failure_rate=0.5)
    assert (summary["out"], summary["failures"]) == (210, {"truncated": 30})
    for path, data in whole.items():
        path.write_bytes(data)
    summary = run(pairs, tmp_path / "out", retry_failed=True)
    assert (summary["out"], summary["failed"], summary["processed"]) == (240, 0, 30)
    assert verify(VerifyConfig(input=str(tmp_path / "out")))["status"] == "finished"


def test_a_masks_other_size_is_a_counted_warning(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "in", 4)
    big = write_pairs(tmp_path / "big", 4, side=128)
    (pairs / "mask" / "item-00002.png").write_bytes((big / "mask" / "item-00002.png").read_bytes())
    assert run(pairs, tmp_path / "out")["warnings"] == {"mask_resized": 1}


def test_actors_that_starve_the_tasks_are_refused_before_the_start(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"need 2 CPUs .* and 1 must be left .* has 2: lower --min-actors or --num-cpus"):
        run(pairs, tmp_path / "out", min_actors=2, num_cpus=1.0)
    with pytest.raises(UsageError, match=r"need 1 GPUs .* the cluster has 0"):
        run(pairs, tmp_path / "out", num_gpus=1.0)
    assert list_parts(str(tmp_path / "out")) == []
    check_pools(Pools(min_actors=4, max_actors=8, num_cpus=1, num_gpus=0.5, score_actors=1, threads=2), cpus=6, gpus=3)
    with pytest.raises(UsageError, match="one more to score"):
        check_pools(Pools(min_actors=4, max_actors=8, num_cpus=1, num_gpus=0.5, score_actors=1, threads=2), cpus=6, gpus=2)


def test_wrong_storage_is_one_clear_line(pairs: Path, tmp_path: Path, s3: Any) -> None:  # noqa: ARG001 - the server must be there
    with pytest.raises(StorageError, match=r"bucket no-such-bucket, NoSuchBucket.*create it"):
        run(pairs, "s3://no-such-bucket/out")
    with pytest.raises(StorageError, match="no-such-bucket"):
        run("s3://no-such-bucket/in", tmp_path / "out")
    with pytest.raises(UsageError, match=r"found nothing there; give a dataset"):
        run(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(UsageError, match=r"no model \./owner"):
        run(pairs, tmp_path / "out2", model="./owner/name/none")


def test_a_broken_model_stops_the_job_with_its_reason(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(CleanplateError, match="no model nobody"):
        run(pairs, tmp_path / "out", model="nobody/no-such-model-here")


def test_every_failure_reason_is_counted(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "in", 5)
    (pairs / "source" / "item-00001.png").write_bytes(b"")
    (pairs / "mask" / "item-00002.png").write_bytes(b"<html>")
    summary = run(pairs, tmp_path / "out", max_failure_rate=1.0)
    assert Counter(summary["failures"]) == Counter({"empty_file": 1, "mask_not_an_image": 1})
    assert summary["in"] == summary["out"] + summary["failed"] == 5
