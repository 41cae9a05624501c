"""The image: what its Dockerfile says, and (slow) that its lines run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra import check_image
from infra.check_image import Instruction
from tests.jobs.support import ROOT

IGNORED = (ROOT / ".dockerignore").read_text().split()


def test_nothing_is_wrong() -> None:
    instructions = check_image.read()
    assert list(check_image.problems(instructions, IGNORED)) == []
    assert [one.rest.split("=")[0] for one in instructions if one.word == "ARG"] == ["PYTHON_VERSION", "TORCH_INDEX"]
    assert max(one.stage for one in instructions) == 1


def test_every_package_of_ours_is_in_the_image() -> None:
    import tomllib

    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    targets = {target for _, target in check_image.copied(check_image.read())}
    assert {name.split(".")[0] for name in packages} <= targets


@pytest.mark.parametrize(
    ("word", "rest", "says"),
    [
        ("USER", "root", "runs as root"),
        ("ADD", "http://x/y.tar /", "use COPY"),
        ("FROM", "python:latest", "names no version"),
        ("RUN", "pip install torch", "not from constraints.txt"),
        ("COPY", "no-such-folder x", "there is no such file"),
        ("COPY", "tests tests", ".dockerignore keeps it away"),
    ],
)
def test_what_is_wrong_is_found(word: str, rest: str, says: str) -> None:
    instructions = [*check_image.read(), Instruction(1, word, rest)]
    assert any(says in text for text in check_image.problems(instructions, IGNORED))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_lines_run_in_a_clean_environment(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.check_image", "--run", str(tmp_path / "image")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=3400,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]} {done.stderr[-3000:]}"
