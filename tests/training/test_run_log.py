"""Whatever happens between two runs, each step is in the log once, in order, as it was written."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import storage
from core.errors import UsageError
from core.images import decode_photo
from training.run_log import EVENTS, LINES, RunLog


def rows(data: bytes) -> list[dict[str, Any]]:
    def no_constants(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=no_constants) for line in data.splitlines()]


def local_rows(folder: Path) -> list[dict[str, Any]]:
    return rows((folder / LINES).read_bytes())


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in local_rows(folder)]


def written(folder: Path, count: int, remote: str | None = None, flush_at: int | None = None) -> RunLog:
    run_log = RunLog(folder, remote, tensorboard=False)
    run_log.resume(0)
    for step in range(count):
        run_log.write(step, {"loss": step / 4})
        if step == flush_at:
            run_log.flush()
    return run_log


def test_lines_are_json_also_of_values_that_are_not_finite(tmp_path: Path) -> None:
    run_log = RunLog(tmp_path / "log", None, tensorboard=False)
    run_log.write(0, {"loss": 0.5, "mfu": None})
    run_log.write(1, {"loss": math.nan, "norm": -math.inf, "rate": np.float32(0.25)})
    run_log.close()
    assert local_rows(tmp_path / "log") == [
        {"step": 0, "loss": 0.5, "mfu": None},
        {"step": 1, "loss": None, "norm": None, "rate": 0.25, "nonfinite": {"loss": "nan", "norm": "-inf"}},
    ]


def test_a_step_is_written_once_and_in_order(tmp_path: Path) -> None:
    run_log = written(tmp_path, 3)
    for step in (2, 0, -1):
        with pytest.raises(UsageError, match="once"):
            run_log.write(step, {"loss": 1.0})
    with pytest.raises(UsageError, match="nonfinite"):
        run_log.write(3, {"nonfinite": 1.0})
    run_log.write(3, {"loss": 0.75})
    assert steps(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize("step", [0, 1, 4, 6])
def test_resume_keeps_exactly_the_steps_before(tmp_path: Path, step: int) -> None:
    written(tmp_path, 6).close()
    before = (tmp_path / LINES).read_bytes().splitlines()
    again = RunLog(tmp_path, None, tensorboard=False)
    assert again.resume(step) == step
    again.write(step, {"loss": -1.0})
    assert steps(tmp_path) == list(range(step + 1))
    assert (tmp_path / LINES).read_bytes().splitlines()[:-1] == before[:step]


def test_a_write_without_resume_goes_on(tmp_path: Path) -> None:
    written(tmp_path, 6).close()
    RunLog(tmp_path, None, tensorboard=False).write(4, {"loss": -1.0})
    assert steps(tmp_path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cut", range(1, 22))
def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path, cut: int) -> None:
    written(tmp_path, 3).close()
    whole = (tmp_path / LINES).read_bytes()
    torn = whole[:-cut]
    (tmp_path / LINES).write_bytes(torn)
    again = RunLog(tmp_path, None, tensorboard=False)
    kept = again.resume(3)
    # without its line break a line is whole all the same
    assert kept == (3 if cut == 1 else 2)
    again.write(3, {"loss": 9.0})
    assert steps(tmp_path) == [*range(kept), 3]


def test_a_killed_process_loses_no_line(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from training.run_log import RunLog\n"
        "log = RunLog(Path(sys.argv[1]), None, tensorboard=False)\n"
        "for step in range(50): log.write(step, {'loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(root)}, check=False, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL
    assert steps(tmp_path) == list(range(50))


@pytest.mark.parametrize("lost", ["disk", "part", "nothing"])
def test_the_copy_is_taken_where_it_has_more(tmp_path: Path, folder: str, lost: str) -> None:
    local = tmp_path / "local"
    written(local, 6, storage.join(folder, "copy"), flush_at=4).close()
    if lost == "disk":
        shutil.rmtree(local)
    if lost == "part":
        (local / LINES).write_bytes(b"".join((local / LINES).read_bytes().splitlines(keepends=True)[:2]))
    again = RunLog(local, storage.join(folder, "copy"), tensorboard=False)
    assert again.resume(6) == (6 if lost == "nothing" else 5)
    again.resume(4)
    again.write(4, {"loss": 4.0})
    again.flush()
    assert steps(local) == [0, 1, 2, 3, 4]
    uri = storage.join(folder, "copy", LINES)
    assert storage.storage_for(uri).read(uri) == (local / LINES).read_bytes()


def test_lines_that_were_lost_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        written(tmp_path, 3).resume(3)
        assert not caplog.records
        RunLog(tmp_path, None, tensorboard=False).resume(5)
    assert "3 lines of the 5 steps" in caplog.text


def test_pictures_are_kept_and_copied(tmp_path: Path, folder: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)
    run_log = RunLog(tmp_path / "local", storage.join(folder, "copy"), tensorboard=False)
    run_log.write(7, {"loss": 1.0})
    run_log.picture(7, "validation", pixels[::-1])
    run_log.flush()
    run_log.picture(7, "validation", pixels)
    run_log.flush()
    uri = storage.join(folder, "copy", "pictures", "step-00000007-validation.png")
    np.testing.assert_array_equal(decode_photo(storage.storage_for(uri).read(uri)).pixels, pixels)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("../x", np.zeros((2, 2, 3), np.uint8)),
        ("", np.zeros((2, 2, 3), np.uint8)),
        ("x", np.zeros((2, 2, 3))),
        ("x", np.zeros((2, 2), np.uint8)),
    ],
)
def test_wrong_pictures_are_refused(tmp_path: Path, name: str, array: Any) -> None:
    with pytest.raises(UsageError, match="picture"):
        RunLog(tmp_path, None, tensorboard=False).picture(0, name, array)


def test_what_has_not_grown_is_not_sent_again(tmp_path: Path) -> None:
    run_log = written(tmp_path / "local", 3, str(tmp_path / "copy"), flush_at=2)
    place = tmp_path / "copy" / LINES
    before = place.stat().st_mtime_ns, place.stat().st_ino
    run_log.flush()
    assert (place.stat().st_mtime_ns, place.stat().st_ino) == before


def test_tensorboard_reads_the_same_values(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    local, copy = tmp_path / "local", tmp_path / "copy"
    run_log = RunLog(local, str(copy), tensorboard=True)
    for step in range(4):
        run_log.write(step, {"loss": step / 4, "mfu": None})
    run_log.picture(3, "sheet", np.zeros((4, 4, 3), np.uint8))
    run_log.flush()
    run_log.resume(2)
    for step in (2, 3):
        run_log.write(step, {"loss": -float(step)})
    run_log.flush()
    run_log.close()
    for place in (local, copy):
        events = EventAccumulator(str(place / EVENTS)).Reload()
        assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 0.0), (1, 0.25), (2, -2.0), (3, -3.0)]
        assert events.Tags()["scalars"] == ["loss"]


def test_without_its_package_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        RunLog(tmp_path, None, tensorboard=True).write(0, {"loss": 1.0})
    assert "pip install tensorboard" in caplog.text
    assert steps(tmp_path) == [0]
