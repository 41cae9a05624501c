"""The clean job on a real Ray: what comes out, from where it may come in, and that it depends on nothing but item, model and seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from core import storage
from core.errors import UsageError
from core.lease import LeaseHeld
from core.ledger import list_output
from core.record import RECORD_SCHEMA, record_problem
from jobs.clean import clean
from jobs.config import CleanConfig, VerifyConfig
from jobs.demo import upload
from jobs.verify import verify
from tests.jobs.support import SAMPLES, picture, read_rows

pytestmark = pytest.mark.usefixtures("cluster")


def run(source: object, output: object, **settings: Any) -> dict[str, Any]:
    return clean(
        CleanConfig(input=str(source), output=str(output), **{"model": "tests.erasers:Noisy", "discriminator": "none", **settings})
    )


@pytest.fixture(scope="module")
def summary_and_output(cluster: None, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:  # noqa: ARG001
    """One uninterrupted run with plain settings, which the tests read and compare with."""
    output = tmp_path_factory.mktemp("plain") / "out"
    return run(pairs, output), output


@pytest.fixture(scope="module")
def plain(summary_and_output: tuple[dict[str, Any], Path]) -> Path:
    return summary_and_output[1]


def test_every_item_comes_out_once_as_a_valid_record(pairs: Path, summary_and_output: tuple[dict[str, Any], Path]) -> None:
    summary, output = summary_and_output
    results, failures = read_rows(str(output))
    assert (summary["in"], summary["out"], summary["failed"]) == (40, 40, 0)
    assert set(results) == {f"item-{number:05d}" for number in range(40)}
    assert not failures
    assert [record_problem(row) for row in results.values()] == [None] * 40
    row = results["item-00007"]
    assert row["source"]["bytes"] == (pairs / "source" / "item-00007.png").read_bytes()
    source, mask, erased = picture(row["source"]), picture(row["mask"]), picture(row["erased"])
    assert mask.ndim == 2
    assert (source != erased).any()
    far = np.ones(mask.shape, bool)
    ys, xs = np.nonzero(mask)
    far[ys.min() - 4 : ys.max() + 5, xs.min() - 4 : xs.max() + 5] = False
    assert (source[far] == erased[far]).all()


def test_shards_carry_the_schema_and_load_in_datasets(plain: Path, tmp_path: Path) -> None:
    parts, _ = list_output(str(plain))
    assert pq.read_schema(parts[0]).equals(RECORD_SCHEMA, check_metadata=True)
    dataset = load_dataset("parquet", data_files=f"{plain}/part-*.parquet", split="train", cache_dir=str(tmp_path / "cache"))
    row = dataset[0]
    assert row["source"].size == (row["width"], row["height"]) == row["erased"].size == row["mask"].size
    assert np.asarray(row["source"]).shape == (64, 64, 3)
    meta = json.loads((plain / "dataset.json").read_text())
    assert meta["counts"]["in"] == meta["counts"]["out"] == 40


def test_a_bucket_and_a_folder_give_equal_datasets(tmp_path: Path, s3: Any) -> None:
    bucket = s3.bucket("equal")
    upload(SAMPLES, f"{bucket}/samples")
    run(SAMPLES, tmp_path / "samples-local", model="opencv", origin="samples")
    run(f"{bucket}/samples", f"{bucket}/plates", model="opencv", origin="samples")
    assert read_rows(str(tmp_path / "samples-local")) == read_rows(f"{bucket}/plates")
    assert len(read_rows(f"{bucket}/plates")[0]) == 12


def test_a_job_that_began_on_gpus_does_not_go_on_without(pairs: Path, tmp_path: Path) -> None:
    """There is no GPU here, so the job's own note of the kind is changed; what the other kind would write has other bytes."""
    output = tmp_path / "out"
    run(pairs, output, shard_mb=0.0, block_rows=5)
    note = output / ".cleanplate" / "job.json"
    assert json.loads(note.read_text())["device"] == "cpu"
    note.write_text(note.read_text().replace('"device": "cpu"', '"device": "gpu"'))
    for path in (list_output(str(output))[0][0], output / "dataset.json"):
        Path(path).unlink()
    with pytest.raises(UsageError, match=r"was begun on GPUs, .* on CPUs .*--num-gpus 1"):
        run(pairs, output, shard_mb=0.0, block_rows=5)
    note.write_text(note.read_text().replace('"device": "gpu"', '"device": "cpu"'))
    assert run(pairs, output, shard_mb=0.0, block_rows=5)["out"] == 40


@pytest.mark.parametrize(
    "settings",
    [
        {"block_rows": 3, "min_actors": 1, "max_actors": 1},
        {"block_rows": 40, "threads": 1},
        {"shard_mb": 0.0, "min_actors": 3, "max_actors": 3, "num_cpus": 0.3},
    ],
    ids=["small blocks", "one block", "three actors"],
)
def test_results_do_not_depend_on_how_the_work_is_divided(pairs: Path, plain: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    run(pairs, tmp_path / "out", **settings)
    assert read_rows(str(tmp_path / "out")) == read_rows(str(plain))


def test_seed_decides_the_noise(pairs: Path, plain: Path, tmp_path: Path) -> None:
    run(pairs, tmp_path / "two", seed=2)
    one, two = read_rows(str(plain))[0], read_rows(str(tmp_path / "two"))[0]
    assert all(one[name]["erased"] != two[name]["erased"] for name in one)
    assert len({row["seed"] for row in [*one.values(), *two.values()]}) == 80


def test_a_finished_job_does_nothing_and_another_configuration_is_refused(pairs: Path, tmp_path: Path) -> None:
    first = run(pairs, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    again = run(pairs, tmp_path / "out")
    assert (first["already_finished"], again["already_finished"], again["processed"]) == (False, True, 0)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    with pytest.raises(UsageError, match=r"seed: 0 -> 5.*--overwrite"):
        run(pairs, tmp_path / "out", seed=5)
    run(pairs, tmp_path / "out", seed=5, overwrite=True)
    assert read_rows(str(tmp_path / "out"))[0].keys() == {f"item-{number:05d}" for number in range(40)}


def test_what_is_left_is_finished_and_equals_the_uninterrupted_run(pairs: Path, plain: Path, tmp_path: Path) -> None:
    run(pairs, tmp_path / "torn", shard_mb=0.0, block_rows=5)
    parts, _ = list_output(str(tmp_path / "torn"))
    for uri in parts[::2]:
        Path(uri).unlink()
    (tmp_path / "torn" / "dataset.json").unlink()
    left = 40 - len(read_rows(str(tmp_path / "torn"))[0])
    assert left > 0
    assert verify(VerifyConfig(input=str(tmp_path / "torn")))["status"] == "stopped"
    summary = run(pairs, tmp_path / "torn", shard_mb=0.0, block_rows=7)
    assert summary["processed"] == left
    assert read_rows(str(tmp_path / "torn")) == read_rows(str(plain))
    assert verify(VerifyConfig(input=str(tmp_path / "torn")))["status"] == "finished"


def test_shards_that_a_dead_run_put_late_are_settled(pairs: Path, tmp_path: Path) -> None:
    run(pairs, tmp_path / "out", shard_mb=0.0, block_rows=5)
    whole = read_rows(str(tmp_path / "out"))
    parts, _ = list_output(str(tmp_path / "out"))
    shutil.copy(parts[0], tmp_path / "out" / "part-0009-000000.parquet")
    (tmp_path / "out" / "dataset.json").unlink()
    assert verify(VerifyConfig(input=str(tmp_path / "out")))["twice"] == 5
    run(pairs, tmp_path / "out", shard_mb=0.0, block_rows=5)
    assert read_rows(str(tmp_path / "out")) == whole


def test_a_dataset_is_input_too(plain: Path, tmp_path: Path) -> None:
    run(plain, tmp_path / "out", origin="ignored: records name theirs")
    assert read_rows(str(tmp_path / "out")) == read_rows(str(plain))


def test_one_block_manifest_keeps_every_actor_busy(pairs: Path, tmp_path: Path) -> None:
    """ray.md F7: a small manifest is one block for the default reader, and one actor does all."""
    lines = "".join(f"source/{path.name},mask/{path.name}\n" for path in sorted((pairs / "source").iterdir()))
    for name in ("source", "mask"):
        shutil.copytree(pairs / name, tmp_path / "in" / name)
    (tmp_path / "in" / "list.csv").write_text(f"source,mask\n{lines}")
    run(tmp_path / "in" / "list.csv", tmp_path / "out", shard_mb=0.0, min_actors=2, max_actors=2)
    parts, _ = list_output(str(tmp_path / "out"))
    assert len(parts) >= 8
    assert len(read_rows(str(tmp_path / "out"))[0]) == 40


def test_foreign_files_and_the_input_itself_are_not_overwritten(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(next(iter((pairs / "source").iterdir())), tmp_path / "out" / "part-0001.parquet")
    with pytest.raises(UsageError, match="no job of cleanplate made"):
        run(pairs, tmp_path / "out")
    with pytest.raises(UsageError, match="holds the input itself"):
        run(pairs, pairs)


@pytest.mark.slow
def test_scores_and_verdicts_are_the_same_in_either_place_of_scoring(tmp_path: Path) -> None:
    shared = run(SAMPLES, tmp_path / "shared", model="opencv", discriminator="tiny")
    pool = run(SAMPLES, tmp_path / "pool", model="opencv", discriminator="tiny", scoring="pool", min_actors=1, max_actors=1, num_cpus=0.5)
    one, two = read_rows(str(tmp_path / "shared"))[0], read_rows(str(tmp_path / "pool"))[0]
    assert one == two
    assert all(0.0 <= row["score"] <= 1.0 for row in one.values())
    assert sum(shared[name] for name in ("accepted", "uncertain", "rejected")) == 12 == pool["out"]
    accepted = [row for row in one.values() if row["verdict"] == "accepted"]
    assert all(row["target"] is not None for row in accepted)


def test_two_jobs_on_one_output_at_once(pairs: Path, tmp_path: Path) -> None:
    from core.lease import Lease
    from jobs.job_state import JobFiles

    lease = Lease.acquire(JobFiles(str(tmp_path / "out")).lease)
    try:
        with pytest.raises(LeaseHeld, match="another job"):
            run(pairs, tmp_path / "out")
    finally:
        lease.release()
    assert run(pairs, tmp_path / "out")["out"] == 40
    assert not storage.exists(str(tmp_path / "out" / "failures"))


def test_tiny_erases_the_samples_and_each_item_alone_alike(tmp_path: Path) -> None:
    names = ["barn", *sorted(path.stem for path in (SAMPLES / "source").iterdir() if path.stem != "barn")[:4]]

    def some(folder: Path, chosen: list[str]) -> Path:
        for role in ("source", "mask", "target"):
            (folder / role).mkdir(parents=True)
            for path in (SAMPLES / role).iterdir():
                if path.stem in chosen:
                    shutil.copy(path, folder / role)
        return folder

    for output, chosen in (("all", names), ("alone", names[:1])):
        run(some(tmp_path / f"{output}-in", chosen), tmp_path / output, model="tiny", discriminator="auto", origin="samples")
    together, alone = read_rows(str(tmp_path / "all"))[0], read_rows(str(tmp_path / "alone"))[0]
    assert together["barn"] == alone["barn"]
    assert len(together) == 5
    changed = [np.abs(picture(row["source"]).astype(int) - picture(row["erased"])).max() for row in together.values()]
    assert min(changed) > 10
