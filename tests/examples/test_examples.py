"""Every example runs as a newcomer would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.jobs.support import ROOT, environment, start_command, write_pairs

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *words],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=cwd,
        env=environment(),
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]} {done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_says_how_it_is_called(path: Path, tmp_path: Path) -> None:
    assert f"python examples/{path.name}" in path.read_text()
    assert "usage:" in run(path.name, "--help", cwd=tmp_path)


@pytest.mark.slow
def test_clean_a_bucket(tmp_path: Path) -> None:
    write_pairs(tmp_path / "in", 6)
    text = run("clean_a_bucket.py", "in", "out", "--model", "opencv", cwd=tmp_path)
    assert "6 in = 6 out + 0 failed" in text
    assert "verify says: finished" in text
    assert (tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.slow
def test_train(tmp_path: Path) -> None:
    from tests.training.support import write_triplets

    data = write_triplets(str(tmp_path / "data"), 16)
    assert "is ready" in run("train.py", data, "model", "--steps", "2", cwd=tmp_path)


@pytest.mark.slow
def test_erase_over_http(tmp_path: Path) -> None:
    import json
    import signal
    import time

    log = tmp_path / "log"
    server = start_command("serve", "--port", "0", "--json", log=log)
    try:
        deadline = time.monotonic() + 300
        while not (lines := [line for line in log.read_text().splitlines() if line.startswith('{"url"')]):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        samples = ROOT / "assets" / "samples"
        names = [str(samples / "source" / "fig.jpg"), str(samples / "mask" / "fig.png"), "erased.png"]
        run("erase_over_http.py", *names, "--url", json.loads(lines[0])["url"], cwd=tmp_path)
        assert Image.open(tmp_path / "erased.png").size == Image.open(names[0]).size
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
