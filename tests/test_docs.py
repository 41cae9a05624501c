"""Every command in the docs that is marked ``<!-- run -->`` runs, in order, in one folder a page."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from jobs.main import COMMANDS, make_parser
from tests.jobs.support import ROOT, run_command

PAGES = sorted((ROOT / "docs").glob("*.md"))
MARKED = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)
FENCED = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def lines_of(blocks: list[str]) -> list[list[str]]:
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.startswith("cleanplate ")]


@pytest.mark.parametrize("page", [page for page in PAGES if MARKED.search(page.read_text())], ids=lambda page: page.name)
def test_marked_commands_run(page: Path) -> None:
    _clean_up()
    commands = lines_of(MARKED.findall(page.read_text()))
    assert commands
    try:
        for words in commands:
            done = run_command(*words[1:])
            assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    finally:
        _clean_up()


def _clean_up() -> None:
    """Remove what the pages' commands write."""
    for name in ("plates", "rescored"):
        shutil.rmtree(ROOT / "out" / name, ignore_errors=True)
    (ROOT / "out" / "report.html").unlink(missing_ok=True)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_every_command_and_flag_in_a_page_exists(page: Path) -> None:
    for words in lines_of(FENCED.findall(page.read_text())):
        assert words[1] in COMMANDS, words
        known = {flag for action in make_parser(words[1])._actions for flag in action.option_strings}
        assert {word for word in words[2:] if word.startswith("--")} <= known, words
