"""Killed at any point, the same command finishes the rest: nothing lost, nothing twice, the bytes of the uninterrupted run."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.ledger import list_output
from jobs.config import VerifyConfig
from jobs.demo import upload
from jobs.verify import verify
from tests.jobs.support import kill, processes, read_rows, run_command, start_command, summary_of, write_pairs

COUNT = 160
SECONDS = "0.05"
ACTOR = "ray::MapWorker(MapBatches(EraseStage))"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("many"), COUNT)


@pytest.fixture(scope="module")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of the uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "out"
    summary = summary_of(run_command(*arguments(many, output), "--json"))
    assert (summary["in"], summary["out"]) == (COUNT, COUNT)
    return read_rows(str(output))


def arguments(source: object, output: object) -> list[str]:
    small = ["--shard-mb", "0", "--block-rows", "8"]
    return [
        "clean",
        "--input",
        str(source),
        "--output",
        str(output),
        "--model",
        "tests.erasers:Noisy",
        "--discriminator",
        "none",
        "--origin",
        "many",
        *small,
    ]


def assert_whole(output: str, whole: tuple[dict[str, Any], dict[str, Any]]) -> None:
    results, failures = read_rows(output)
    assert not failures
    assert results.keys() == whole[0].keys()
    assert all(results[name]["erased"] == whole[0][name]["erased"] for name in results), "bytes differ from the uninterrupted run"
    assert results == whole[0]
    assert verify(VerifyConfig(input=output))["status"] == "finished"


def wait_for_parts(output: str, count: int, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while len(list_output(output)[0]) < count:
        assert time.monotonic() < deadline, "the job wrote nothing"
        time.sleep(0.1)


def kill_driver(output: Path, many: Path, *, parts: int, seconds: float = 0.0) -> bool:
    """Start the job and SIGKILL its driver, ``seconds`` after it has written ``parts`` new shards; returns whether it was still at work."""
    before = len(list_output(str(output))[0])
    job = start_command(*arguments(many, output), log=output.parent / "log", TEST_ERASER_SECONDS=SECONDS)
    try:
        deadline = time.monotonic() + 400
        while len(list_output(str(output))[0]) < before + parts and job.poll() is None:
            assert time.monotonic() < deadline, "the job wrote nothing"
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(timeout=seconds)
        return job.poll() is None
    finally:
        job.kill()
        job.wait()


def test_driver_killed_once(many: Path, tmp_path: Path, whole: tuple[dict[str, Any], dict[str, Any]]) -> None:
    output = tmp_path / "out"
    assert kill_driver(output, many, parts=3)
    assert not (output / "dataset.json").exists()
    done = len(list_output(str(output))[0])
    assert done >= 3
    summary = summary_of(run_command(*arguments(many, output), "--json"))
    assert summary["processed"] < COUNT
    assert_whole(str(output), whole)


def test_a_second_job_is_refused_and_a_person_interrupts_the_first(
    many: Path, tmp_path: Path, whole: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    output = tmp_path / "out"
    first = start_command(*arguments(many, output), log=tmp_path / "log", TEST_ERASER_SECONDS="0.3")
    try:
        deadline = time.monotonic() + 400
        while not (output / ".cleanplate" / "job.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = run_command(*arguments(many, output))
        assert second.returncode == 1
        assert f"process {first.pid}" in second.stderr
        assert len(second.stderr.strip().splitlines()) == 1
        wait_for_parts(str(output), 2)
        first.terminate()
        assert first.wait(timeout=300) == 130
    finally:
        first.kill()
    assert "run the same command again" in (tmp_path / "log").read_text()
    summary_of(run_command(*arguments(many, output), "--json"))
    assert_whole(str(output), whole)


@pytest.fixture
def killer() -> Iterator[Any]:
    """Kills random processes of a job whose title holds some words, every now and then, until the test ends.

    Each of the actors that are there when it begins is killed once, and none that took the place of one: items at which two processes
    died are set aside as ``crashed``, which is another test's matter.
    """
    stop = threading.Event()
    killed: list[int] = []
    threads: list[threading.Thread] = []

    def start(job: int, words: list[str], seconds: float, seed: int) -> list[int]:
        choose = random.Random(seed)

        first = set(processes(ACTOR, job))

        def work() -> None:
            while not stop.wait(seconds * choose.uniform(0.5, 1.5)):
                found = [pid for word in words for pid in processes(word, job) if word != ACTOR or pid in first]
                if found:
                    pid = choose.choice(found)
                    kill(pid)
                    killed.append(pid)

        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
        return killed

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def test_actors_and_workers_killed(many: Path, tmp_path: Path, whole: tuple[dict[str, Any], dict[str, Any]], killer: Any) -> None:
    output = tmp_path / "out"
    answer = tmp_path / "answer"
    line = [*arguments(many, output), "--max-failure-rate", "1", "--json"]
    job = start_command(*line, log=tmp_path / "log", answer=answer, TEST_ERASER_SECONDS="0.1")
    wait_for_parts(str(output), 1)
    killed = killer(job.pid, [ACTOR, "ray::Write", "ray::MapBatches", "ray::IDLE"], 1.0, 7)
    assert job.wait(timeout=400) == 0, (tmp_path / "log").read_text()
    assert killed, "nothing was killed: the test shows nothing"
    # what Ray tells of the dead is not part of it
    assert json.loads(answer.read_text())["out"] == COUNT
    assert_whole(str(output), whole)


@pytest.mark.slow
def test_s3_away_for_ten_seconds(many: Path, tmp_path: Path, whole: tuple[dict[str, Any], dict[str, Any]], own_s3: Any) -> None:
    bucket = own_s3.bucket("outage")
    upload(many, f"{bucket}/many")
    job = start_command(*arguments(f"{bucket}/many", f"{bucket}/out"), log=tmp_path / "log", TEST_ERASER_SECONDS=SECONDS)
    wait_for_parts(f"{bucket}/out", 2)
    own_s3.store.stop()
    time.sleep(10)
    own_s3.store.start()
    assert job.wait(timeout=400) == 0, (tmp_path / "log").read_text()
    assert_whole(f"{bucket}/out", whole)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_driver_killed_at_twenty_random_moments(many: Path, tmp_path: Path, whole: tuple[dict[str, Any], dict[str, Any]]) -> None:
    choose = random.Random(20)
    kills = at_work = 0
    for round_number in range(20):
        output = tmp_path / f"out-{round_number}"
        while not (output / "dataset.json").exists():
            # while it starts, which takes longest, or at its work; never only the former, or a busy machine would never come to an end
            starting = choose.random() < 0.3
            alive = kill_driver(output, many, parts=0 if starting else 1, seconds=choose.uniform(0.0, 15.0 if starting else 3.0))
            kills += alive
            at_work += alive and bool(list_output(str(output))[0])
        assert_whole(str(output), whole)
        if kills >= 20:
            break
    print(f"driver killed {kills} times, {at_work} of them with shards written")
    assert kills >= 20
    assert at_work >= 5


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_whole_cluster_killed_at_random_moments_on_s3(
    many: Path, tmp_path: Path, whole: tuple[dict[str, Any], dict[str, Any]], own_s3: Any
) -> None:
    bucket = own_s3.bucket("cluster-kills")
    upload(many, f"{bucket}/many")
    choose = random.Random(5)
    kills = 0
    output = f"{bucket}/out"
    while kills < 10:
        job = start_command(*arguments(f"{bucket}/many", output), log=tmp_path / "log", TEST_ERASER_SECONDS=SECONDS)
        try:
            job.wait(timeout=choose.uniform(8.0, 25.0))
            assert job.returncode == 0, (tmp_path / "log").read_text()
            assert_whole(output, whole)
            output = f"{bucket}/out-{kills}"
        except subprocess.TimeoutExpired:
            for word in ("gcs_server", "raylet", "ray::"):
                for pid in processes(word, job.pid):
                    kill(pid)
            job.kill()
            job.wait()
            kills += 1
    assert run_command(*arguments(f"{bucket}/many", output)).returncode == 0
    assert_whole(output, whole)
