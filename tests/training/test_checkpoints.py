"""A checkpoint is there whole or not at all, the rule says which are kept, and what is read is what was written."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from core import storage
from core.errors import StorageError, UsageError
from training.checkpoints import COMPLETE, BackgroundSaver, CheckpointStore, load_state, state_bytes


def names(folder: str) -> set[str]:
    return {storage.relative(folder, entry.uri) for entry in storage.storage_for(folder).list(folder)}


def files(step: int) -> dict[str, Any]:
    return {"config.json": b"{}", "model/weights": lambda file: file.write(bytes([step]) * 100)}


def saved(folder: str, *steps: int, **rule: Any) -> CheckpointStore:
    store = CheckpointStore(folder, **rule)
    for step in steps:
        store.save(step, files(step), {"loss": 1 / (step + 1)})
    return store


def put(folder: str, name: str, data: bytes) -> None:
    uri = storage.join(folder, name)
    storage.storage_for(uri).write(uri, data)


def test_what_was_saved_is_read(folder: str) -> None:
    assert CheckpointStore(folder).latest() is None
    store = saved(folder, 3, 12)
    found = store.latest()
    assert found is not None
    assert (found.step, found.metrics) == (12, {"loss": 1 / 13})
    assert store.read(found, "model/weights") == bytes([12]) * 100
    assert store.read(found, "config.json") == b"{}"
    assert store.steps() == [3, 12]
    assert "step-00000012/complete.json" in names(folder)


def test_complete_is_written_last_and_says_what_is_there(tmp_path: Path) -> None:
    seen: list[bool] = []
    place = tmp_path / "step-00000001"
    CheckpointStore(str(tmp_path)).save(
        1, {"a": lambda file: seen.append((place / COMPLETE).exists()) or file.write(b"xyz")}, {"nan": float("nan")}
    )
    written = json.loads((place / COMPLETE).read_text())
    assert seen == [False]
    assert (written["step"], written["files"]["a"]["size"], written["metrics"]) == (1, 3, {"nan": None})


def test_the_rule_keeps_the_last_and_the_best(folder: str) -> None:
    store = CheckpointStore(folder, keep_last=2, keep_best=1, best="loss")
    kept = []
    for step, loss in enumerate([3.0, 1.0, 2.0, float("nan"), 5.0, 1.0, 4.0, 0.5]):
        store.save(step, files(step), {"loss": loss})
        kept.append(store.steps())
    # of two as good, the newer is kept
    assert kept == [[0], [0, 1], [1, 2], [1, 2, 3], [1, 3, 4], [4, 5], [5, 6], [6, 7]]
    assert {name.split("/")[0] for name in names(folder)} == {"step-00000006", "step-00000007"}


def test_large_may_be_good_and_no_metric_means_newest_only(tmp_path: Path) -> None:
    scores = [0.2, 0.9, 0.1, 0.3]
    store = CheckpointStore(str(tmp_path / "max"), keep_last=1, keep_best=2, best="score", best_mode="max")
    other = CheckpointStore(str(tmp_path / "none"), keep_last=1, keep_best=2)
    for step, score in enumerate(scores):
        store.save(step, files(step), {"score": score})
        other.save(step, files(step), {"score": score})
    assert (store.steps(), other.steps()) == ([1, 3], [3])


def test_removed_checkpoints_leave_nothing(tmp_path: Path) -> None:
    left_by_a_kill = tmp_path / "step-00000001" / "model" / ".cleanplate-tmp-1"
    left_by_a_kill.parent.mkdir(parents=True)
    left_by_a_kill.write_bytes(b"half")
    saved(str(tmp_path), 1, 2, 3, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_older_ones_that_are_not_whole_are_removed_and_newer_ones_left(folder: str) -> None:
    put(folder, "step-00000002/config.json", b"{}")
    put(folder, "step-00000009/config.json", b"{}")
    put(folder, "notes.txt", b"not a checkpoint")
    store = saved(folder, 5)
    assert store.steps() == [5]
    assert names(folder) == {f"step-00000005/{name}" for name in ("config.json", "model/weights", COMPLETE)} | {
        "step-00000009/config.json",
        "notes.txt",
    }


@pytest.mark.parametrize("damage", ["shorter", "gone", "not json", "other json"])
def test_a_damaged_checkpoint_is_passed_over(folder: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    store = saved(folder, 1, 2)
    if damage == "gone":
        uri = storage.join(folder, "step-00000002/model/weights")
        storage.storage_for(uri).delete(uri)
    else:
        name, data = {"shorter": ("model/weights", b"x"), "not json": (COMPLETE, b"{"), "other json": (COMPLETE, b"[1]")}[damage]
        put(folder, f"step-00000002/{name}", data)
    with caplog.at_level(logging.WARNING):
        found = store.latest()
    assert found is not None
    assert found.step == 1
    assert "step-00000002 is passed over" in caplog.text
    store.save(3, files(3), {})
    assert store.steps() == [1, 3]


def test_damage_of_the_same_size_is_found_when_read(folder: str) -> None:
    store = saved(folder, 1)
    put(folder, "step-00000001/model/weights", bytes(100))
    found = store.latest()
    assert found is not None
    with pytest.raises(StorageError, match="not what was written"):
        store.read(found, "model/weights")
    with pytest.raises(UsageError, match=r"has no file x; it has config\.json, model/weights"):
        store.read(found, "x")


def test_an_error_in_the_middle_leaves_the_one_before(folder: str) -> None:
    def fails(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    store = saved(folder, 1)
    with pytest.raises((OSError, StorageError), match="disk full"):
        store.save(2, {"a": b"1", "b": fails}, {})
    found = store.latest()
    assert found is not None
    assert found.step == 1


KILLED = """
import os, signal, sys
from training.checkpoints import CheckpointStore
def die(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
store = CheckpointStore(sys.argv[1], keep_last=1)
store.save(1, {"a": b"one", "b": b"two"}, {})
store.save(int(sys.argv[2]), {"a": b"new", "b": die}, {})
"""


def test_a_kill_between_files_leaves_the_one_before(folder: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", KILLED, folder, "2"], env=environment, check=False, timeout=300)
    assert ended.returncode == -signal.SIGKILL
    store = CheckpointStore(folder, keep_last=1)
    found = store.latest()
    assert found is not None
    assert (found.step, store.read(found, "a")) == (1, b"one")
    store.save(2, {"a": b"new", "b": b"whole"}, {})
    assert store.steps() == [2]
    assert names(folder) == {"step-00000002/a", "step-00000002/b", f"step-00000002/{COMPLETE}"}


def test_a_step_saved_again_replaces_the_old_and_is_none_meanwhile(folder: str) -> None:
    store = saved(folder, 1, 2)
    seen: list[int] = []

    def look(file: BinaryIO) -> None:
        seen.extend(store.steps())
        file.write(b"new")

    store.save(2, {"a": look}, {})
    found = store.latest()
    assert seen == [1]
    assert found is not None
    assert (found.step, set(found.files), store.read(found, "a")) == (2, {"a"}, b"new")


@pytest.mark.parametrize("name", ["", COMPLETE, "../a", "/a", "a//b", "."])
def test_names_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="file is called"):
        CheckpointStore(str(tmp_path)).save(1, {name: b""}, {})
    assert not list(tmp_path.iterdir())


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"keep_last": 0}, {"keep_best": -1}, {"best_mode": "most"}]
    for rule in wrong:
        with pytest.raises(UsageError, match=next(iter(rule))):
            CheckpointStore(str(tmp_path), **rule)
    with pytest.raises(UsageError, match="at least one file"):
        CheckpointStore(str(tmp_path)).save(1, {}, {})


def test_a_state_comes_back_and_is_taken_when_it_is_given(folder: str) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimiser.step()
    state = {
        "optimiser": optimiser.state_dict(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "torch": torch.get_rng_state(),
        "python": random.Random(3).getstate(),
        "place": (1, [2.5, None, True], b"x", "y"),
    }
    content = state_bytes(state)
    kept = weight.detach().clone()
    average = optimiser.state_dict()["state"][0]["exp_avg"].clone()
    optimiser.step()
    state["half"].zero_()
    store = CheckpointStore(folder)
    store.save(1, {"state": content}, {})
    found = store.latest()
    assert found is not None
    loaded = load_state(store.read(found, "state"))
    assert torch.equal(loaded["optimiser"]["state"][0]["exp_avg"], average)
    assert torch.equal(loaded["half"], torch.ones(3, dtype=torch.bfloat16))
    assert torch.equal(loaded["torch"], state["torch"])
    assert (loaded["python"], loaded["place"]) == (state["python"], state["place"])
    again = torch.optim.AdamW([torch.nn.Parameter(kept)], lr=0.1)
    again.load_state_dict(loaded["optimiser"])


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"state\['a'\]\[1\] is a PosixPath"):
        state_bytes({"a": [1, tmp_path]})
    with pytest.raises(StorageError, match="cannot be read"):
        load_state(b"nonsense")


def test_a_state_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"a": tmp_path}, tmp_path / "state")
    with pytest.raises(StorageError, match="cannot be read"):
        load_state((tmp_path / "state").read_bytes())


def test_saves_go_on_in_the_background_one_at_a_time(tmp_path: Path) -> None:
    release, begun = threading.Event(), threading.Event()

    def slow(file: BinaryIO) -> None:
        begun.set()
        assert release.wait(30)
        file.write(b"slow")

    store = CheckpointStore(str(tmp_path))
    with BackgroundSaver(store) as saver:
        saver.submit(1, {"a": slow}, {})
        assert begun.wait(30)
        assert store.steps() == []
        threading.Timer(0.05, release.set).start()
        saver.submit(2, {"a": b"fast"}, {})
        assert 1 in store.steps()
    assert store.steps() == [1, 2]


def test_an_error_in_the_background_is_raised_once_at_the_next_call(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    saver = BackgroundSaver(store)

    def fails(_: BinaryIO) -> None:
        raise RuntimeError("no way")

    saver.submit(1, {"a": fails}, {})
    with pytest.raises(RuntimeError, match="no way"):
        saver.submit(2, {"a": b"x"}, {})
    saver.submit(3, {"a": b"x"}, {})
    saver.wait()
    assert store.steps() == [3]
    saver.submit(4, {"a": fails}, {})
    with pytest.raises(RuntimeError, match="no way"):
        saver.close()
