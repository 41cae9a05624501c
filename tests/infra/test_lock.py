"""The lock: everything that the project asks for is pinned once and exactly."""

from __future__ import annotations

from pathlib import Path

from infra.check_lock import problems
from tests.jobs.support import ROOT

PROJECT = """
[project]
name = "mine"
dependencies = ["left>=2", "right", "mine[extra]"]
[project.optional-dependencies]
extra = ["Other_One<3"]
"""


def found(tmp_path: Path, lock: str) -> set[str]:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "constraints.txt").write_text(lock)
    return {text.split(":")[0] for text in problems(tmp_path / "pyproject.toml", tmp_path / "constraints.txt")}


def test_everything_is_pinned() -> None:
    assert list(problems(ROOT / "pyproject.toml", ROOT / "constraints.txt")) == []


def test_what_is_loose_is_found(tmp_path: Path) -> None:
    assert found(tmp_path, "left==2.1\nright==1.0  # why\nother-one==2.0\n") == set()
    assert found(tmp_path, "left==1.9\nright>=1.0\n") == {"left", "right>=1.0", "right", "Other_One"}
    assert found(tmp_path, "left==2.*\nright==1\nright==2\nother.one==2\n") == {"left==2.*", "left", "right"}
