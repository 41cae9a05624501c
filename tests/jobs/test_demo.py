"""What a newcomer runs first, as a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.config import VerifyConfig
from jobs.verify import verify
from tests.jobs.support import read_rows, run_command


def test_demo_ends_with_a_report_in_under_three_minutes(tmp_path: Path) -> None:
    done = run_command("demo", "--output", str(tmp_path / "demo"), timeout=300)
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.strip().splitlines()[-1])
    assert page.is_file()
    text = page.read_text()
    assert "nuthatch" in text
    assert text.count("data:image/") >= 12 * 3
    results, failures = read_rows(str(tmp_path / "demo" / "plates"))
    assert (len(results), len(failures)) == (12, 0)
    assert all(row["score"] is not None and row["verdict"] for row in results.values())
    assert all(row["source"]["bytes"] != row["erased"]["bytes"] for row in results.values())
    assert verify(VerifyConfig(input=str(tmp_path / "demo" / "plates")))["status"] == "finished"


def test_demo_leaves_a_folder_that_it_did_not_make_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    done = run_command("demo", "--output", str(tmp_path / "mine"), "--json")
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.slow
def test_json_summary_is_one_object_on_standard_output(pairs: Path, tmp_path: Path) -> None:
    places = ["--input", str(pairs), "--output", str(tmp_path / "out")]
    done = run_command("clean", *places, "--model", "opencv", "--discriminator", "none", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["in"] == summary["out"] + summary["failed"] == 40
