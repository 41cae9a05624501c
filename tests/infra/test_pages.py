"""Pages that promise tests: each test that is named exists."""

from __future__ import annotations

import re

from tests.jobs.support import ROOT

NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")


def test_every_test_in_the_table_of_faults_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 10
    for row in rows:
        named = NAMED.findall(row)
        assert named, f"no test is named: {row}"
        for path, test in named:
            source = (ROOT / path).read_text()
            assert not test or f"def {test}(" in source, f"{path} has no {test}"
            for other in re.findall(r"`(test_\w+)`", row):
                assert any(f"def {other}(" in (ROOT / name).read_text() for name, _ in named), f"no test {other}"


def test_the_index_names_pages_that_exist() -> None:
    listed = set(re.findall(r"\(([\w.-]+\.md)\)", (ROOT / "docs" / "README.md").read_text()))
    assert {"plan.md", "cluster.md", "reliability.md", "runbook.md", "security.md"} <= listed
    assert all((ROOT / "docs" / name).is_file() for name in listed)
