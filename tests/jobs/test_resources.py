"""A job with an object store that is too small for it, and one that goes on with what another user began."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image

from core.ledger import list_output
from jobs.clean import clean
from jobs.config import CleanConfig, VerifyConfig
from jobs.verify import verify
from tests.jobs.support import ROOT, command, environment, read_rows

pytestmark = pytest.mark.slow

STORE_BYTES = 80_000_000
NOBODY = 65534


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty photos of 3 MB that no codec makes smaller: more than twice the object store."""
    folder = tmp_path_factory.mktemp("noise")
    for name in ("source", "mask"):
        (folder / name).mkdir()
    mask = np.zeros((1000, 1000), np.uint8)
    mask[400:440, 400:440] = 255
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 256, (1000, 1000, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "source" / f"{number:03d}.png", compress_level=0)
        Image.fromarray(mask).save(folder / "mask" / f"{number:03d}.png")
    return folder


@pytest.fixture
def small_store() -> Iterator[None]:
    ray.shutdown()
    ray.init(
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        address="local",
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("small_store")
def test_more_than_the_object_store_holds_is_cleaned_all_the_same(noise: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "opencv", "discriminator": "none", "max_actors": 1}
    # one block holds all: 180 MB of photos and as much of results beside a store of 80 MB
    summary = clean(CleanConfig(input=str(noise), output=str(tmp_path / "out"), block_rows=60, **settings))
    assert (summary["in"], summary["out"], summary["failed"]) == (60, 60, 0)
    results = read_rows(str(tmp_path / "out"))[0]
    assert all(row["source"]["bytes"] == (noise / "source" / f"{name}.png").read_bytes() for name, row in results.items())
    assert verify(VerifyConfig(input=str(tmp_path / "out")))["status"] == "finished"


WITHOUT_RIGHTS = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner", "--")
"""Takes away root's right to pass over the modes of files: to files of others it is another user."""


def call(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    words = [*before, *command(*arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=400, env=environment(), cwd=ROOT, check=False)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv to act as two users")
def test_another_user_is_told_what_is_missing_and_with_the_right_goes_on(pairs: Path, tmp_path: Path) -> None:
    small = ["--model", "opencv", "--discriminator", "none", "--origin", "users", "--shard-mb", "0", "--block-rows", "5"]

    def arguments(output: Path) -> list[str]:
        return ["clean", "--input", str(pairs), "--output", str(output), *small]

    whole, output = tmp_path / "whole", tmp_path / "out"
    for folder in (whole, output):
        first = call(*arguments(folder))
        assert first.returncode == 0, first.stderr
    for part in list_output(str(output))[0][::2]:
        Path(part).unlink()
    (output / "dataset.json").unlink()
    for path in (output, *output.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o755 if path.is_dir() else 0o644)
    refused = call(*arguments(output), before=WITHOUT_RIGHTS)
    assert refused.returncode in {1, 2}
    line = refused.stderr.strip().splitlines()[-1]
    assert str(output) in line, refused.stderr
    assert "ermission" in line
    assert "Traceback" not in refused.stderr
    for path in (output, *output.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    done = call(*arguments(output), before=WITHOUT_RIGHTS)
    assert done.returncode == 0, done.stderr
    assert read_rows(str(output)) == read_rows(str(whole))
    assert verify(VerifyConfig(input=str(output)))["status"] == "finished"
