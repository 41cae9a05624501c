"""Every job that writes data, killed at work: the same command finishes the rest; nothing lost, nothing twice, the bytes of a whole run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from core.ledger import list_output
from jobs.config import VerifyConfig
from jobs.verify import verify
from tests.core.composing.collections import cutout
from tests.jobs.support import read_rows, run_command, start_command, summary_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COUNT, SIDE = 96, 256
CUT_OFF, MASKLESS = 5, 9
SMALL = ["--shard-mb", "0", "--block-rows", "2"]
TRIES = 5
"""A job may end before the kill on a machine that is busy with this test itself; then it is started anew."""


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triplets in the layout of RORem, which are folders of every other job, too; one photo is cut off, one mask is not there."""
    root = tmp_path_factory.mktemp("collection")
    for name in ("source", "mask", "target", "erased", "cutouts"):
        (root / name).mkdir()
    meta = []
    for number in range(COUNT):
        rng = np.random.default_rng(number)
        plate = rng.uniform((70, 70, 50), (150, 150, 80)) + cv2.GaussianBlur(rng.normal(0, 90, (SIDE, SIDE, 3)), (0, 0), 3)
        plate = np.clip(plate + np.where(np.arange(SIDE)[:, None, None] < 0.5 * SIDE, (60, 70, 100), 0), 0, 255)  # a sky
        x, y = (int(value) for value in rng.integers(30, SIDE - 110, 2))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        cv2.ellipse(mask, (x + 40, y + 40), (38, 30), 0, 0, 360, 255, -1)
        photo = plate.copy()
        photo[y + 62 : y + 82, x : x + 90] *= 0.7
        photo[mask > 0] = rng.uniform(0, 60, 3)
        name = f"item-{number:03d}"
        for role, pixels in (("source", photo), ("target", plate), ("erased", plate)):
            Image.fromarray(pixels.astype(np.uint8)).save(root / role / f"{name}.jpg", quality=95)
        if number != MASKLESS:
            Image.fromarray(mask).save(root / "mask" / f"{name}.png")
        meta.append({"source": f"source/{name}.jpg", "mask": f"mask/{name}.png", "GT": f"target/{name}.jpg"})
    broken = root / "source" / f"item-{CUT_OFF:03d}.jpg"
    broken.write_bytes(broken.read_bytes()[:900])
    (root / "meta.json").write_text(json.dumps(meta))
    for number in range(3):
        Image.fromarray(cutout(number)).save(root / "cutouts" / f"thing-{number}.png")
    return root


def parts(output: Path) -> int:
    return sum(len(uris) for uris in list_output(str(output)))


def measures(output: Path) -> int:
    return len(list((output / ".cleanplate" / "measures").glob("rows-*")))


@dataclass(frozen=True)
class Case:
    """A job: its command below a collection, how much it has written, and how many of its items are failures."""

    command: Callable[[Path], list[str]]
    failed: int
    progress: Callable[[Path], int] = parts


def _curate(root: Path) -> list[str]:
    return ["curate", "--input", f"{root}", "--dedupe", "--min-sharpness", "0", "--min-side", "64", "--per-category", "0", *SMALL]


CASES = {
    "ingest": Case(lambda root: ["ingest", "--format", "rorem", "--input", f"{root}", *SMALL], 2),
    "segment": Case(lambda root: ["segment", "--input", f"{root}/source", *SMALL], 1),
    "effects": Case(lambda root: ["effects", "--input", f"{root}", *SMALL], 2),
    "compose": Case(
        lambda root: [
            "compose", "--backgrounds", f"{root}/target", "--cutouts", f"{root}/cutouts", "--count", "200", "--size", "160", *SMALL
        ],
        0,
    ),
    "curate": Case(_curate, 2),
    "curate while it measures": Case(_curate, 2, measures),
    "score": Case(lambda root: ["score", "--input", f"{root}", "--discriminator", "tiny", *SMALL], 2),
    "encode": Case(lambda root: ["encode", "--input", f"{root}", "--size", "64", *SMALL], 2),
}  # fmt: skip


def killed(command: list[str], output: Path, progress: Callable[[Path], int], least: int) -> bool:
    """Start the job, SIGKILL its driver once it has written ``least`` files; returns whether it was still at work."""
    log = output.parent / f"{output.name}.log"
    job = start_command(*command, "--output", str(output), log=log)
    try:
        deadline = time.monotonic() + 600
        while progress(output) < least and job.poll() is None:
            assert time.monotonic() < deadline, f"the job wrote nothing: {log.read_text()}"
            time.sleep(0.02)
    finally:
        job.kill()
        job.wait()
    assert job.returncode in (0, -9), log.read_text()
    return not (output / "dataset.json").exists()


@pytest.mark.parametrize("name", CASES)
def test_a_killed_job_is_finished_by_the_same_command(name: str, collection: Path, tmp_path: Path) -> None:
    case = CASES[name]
    command = case.command(collection)
    whole = tmp_path / "whole"
    summary = summary_of(run_command(*command, "--output", str(whole), "--json", timeout=600))
    assert (summary["in"], summary["failed"]) == (summary["out"] + case.failed, case.failed)

    outputs = (tmp_path / f"out-{number}" for number in range(TRIES))
    output = next((output for output in outputs if killed(command, output, case.progress, 2)), None)
    assert output is not None, f"{TRIES} jobs ended before they were killed: the collection is too small"
    done = case.progress(output)
    killed(command, output, case.progress, done + 3)  # a second time, on what the first left
    resumed: dict[str, Any] = summary_of(run_command(*command, "--output", str(output), "--json", timeout=600))
    assert (resumed["in"], resumed["out"], resumed["failed"]) == (summary["in"], summary["out"], summary["failed"])
    if case.progress is parts:
        assert resumed["processed"] < resumed["in"], "all was done anew"
    assert read_rows(str(output)) == read_rows(str(whole))
    found = verify(VerifyConfig(input=str(output)))
    assert (found["status"], found["lost"], found["twice"]) == ("finished", 0, 0)
    print(f"{name}: killed after {done} files; {resumed['processed']} of {resumed['in']} items by the last run")
