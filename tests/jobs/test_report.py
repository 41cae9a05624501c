"""``cleanplate report`` as a command: what it prints and where it writes."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
import pytest

from core.errors import StorageError, UsageError
from infra.object_store import LocalObjectStore
from jobs.config import ReportConfig
from jobs.main import main
from jobs.report import run
from tests.core.test_report import Page, failure, record, write_dataset
from tests.jobs.support import run_command, summary_of


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    rows = [record(f"item-{number}", number / 10) for number in range(10)]
    return write_dataset(tmp_path / "set", [rows[:6], rows[6:]], [failure(1), failure(2)], counts=12)


def test_it_prints_the_path_alone(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "page.html"
    assert run(ReportConfig(input=dataset, output=str(output))) == 0
    assert capsys.readouterr().out == f"{output}\n"
    page = Page(output.read_bytes())
    assert len(page.having("article")) == 10
    assert page.text.startswith("set")


def test_json_is_one_object(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "page.html"
    assert main(["report", "--input", dataset, "--output", str(output), "--limit", "4", "--side", "32", "--title", "A & B", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(output), "items": 4, "failures": 2}
    page = Page(output.read_bytes())
    assert [card["data-id"] for card in page.having("article")] == ["item-9", "item-6", "item-3", "item-0"]
    assert "4 of 10 items, chosen evenly over the scores" in page.text
    assert "A & B" in page.text


def test_the_same_dataset_makes_the_same_page(dataset: str, tmp_path: Path) -> None:
    pages = [tmp_path / name for name in ("a.html", "b.html")]
    for page in pages:
        run(ReportConfig(input=dataset, output=str(page)))
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_wrong_call_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--input", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"{tmp_path} is no dataset" in said.err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["dataset.json", "part-0001-000000.parquet"])
def test_a_dataset_is_not_written_over(dataset: str, name: str) -> None:
    before = Path(dataset, name).read_bytes()
    with pytest.raises(UsageError, match="name of a dataset's own file"):
        run(ReportConfig(input=dataset, output=f"{dataset}/{name}"))
    assert Path(dataset, name).read_bytes() == before


def test_a_folder_as_output_is_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"not a file|cannot use"):
        run(ReportConfig(input=dataset, output=str(tmp_path)))


def test_a_bucket_in_and_a_bucket_out(dataset: str, tmp_path: Path) -> None:
    local = tmp_path / "local.html"
    run(ReportConfig(input=dataset, output=str(local), title="same"))
    store = LocalObjectStore(tmp_path / "store")
    store.start()
    try:
        keys = {"aws_access_key_id": store.access_key, "aws_secret_access_key": store.secret_key, "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=store.endpoint, **keys)
        client.create_bucket(Bucket="reports")
        for path in Path(dataset).rglob("*"):
            if path.is_file():
                client.put_object(Bucket="reports", Key=f"set/{path.relative_to(dataset)}", Body=path.read_bytes())
        arguments = ("--input", "s3://reports/set", "--output", "s3://reports/set/page.html", "--title", "same", "--json")
        summary = summary_of(run_command("report", *arguments, **store.environment))
        page = client.get_object(Bucket="reports", Key="set/page.html")["Body"].read()
    finally:
        store.kill()
    assert summary == {"output": "s3://reports/set/page.html", "items": 10, "failures": 2}
    assert page.decode().replace("s3://reports/set", dataset) == local.read_text()
