"""The desk's HTTP interface, and the command line around it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from core.errors import StorageUnavailable
from jobs.main import main
from serving.review.annotators import Annotators
from serving.review.app import LARGEST_BODY, make_app
from serving.review.dataset import read_candidates
from serving.review.desk import Desk
from serving.review.policy import Policy, choose
from serving.review.store import Store, open_store
from tests.serving.review.support import open_desk, scored, write_dataset

QUEUE = "review"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[tuple[Store, TestClient, dict[str, Any]]]:
    records = scored(24)
    source = write_dataset(tmp_path / "data", records)
    store = open_store(f"sqlite:///{tmp_path}/review.sqlite")
    policy = Policy(gold=0.3, random=0.5)
    gold = {"item-002": "accepted", "item-003": "rejected"}
    store.add_queue(QUEUE, choose(read_candidates(source), policy, gold), source=source, settings=policy.to_json())  # type: ignore[arg-type]
    client = TestClient(make_app(Desk.open(store, QUEUE)), raise_server_exceptions=False)
    client.headers["authorization"] = f"Bearer {Annotators(store).invite(['ann'])['ann']}"
    yield store, client, {values["id"]: values for values in records}
    store.close()


def test_nothing_but_the_page_is_open_without_a_key(desk: tuple[Store, TestClient, dict[str, Any]]) -> None:
    _, client, _ = desk
    paths = [("get", "me"), ("post", "next"), ("post", "decisions"), ("get", "pictures/erased?item=item-000")]
    for method, path in paths:
        for key in ("", "Bearer ann.wrong", "Bearer ", "Basic YTpi"):
            body = (
                {"json": {"decisions": [{"id": "x", "item": "item-000", "verdict": "accepted"}]} if path == "decisions" else {}}
                if method == "post"
                else {}
            )
            answer = client.request(method, f"/v1/review/{path}", headers={"authorization": key}, **body)
            assert answer.status_code == 401, path
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == 401
    for name, kind in (("", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css")):
        page = client.get(f"/review{name}", headers={"authorization": ""})
        assert page.status_code == 200
        assert page.headers["content-type"].startswith(kind)
        assert "script-src 'self'" in page.headers["content-security-policy"]
    for name in ("nothing.js", "..%2Frouter.py", "%2e%2e/router.py", ".%2e%2frouter.py"):
        assert client.get(f"/review/{name}").status_code == 404


def test_items_do_not_tell_the_score_or_what_is_gold(desk: tuple[Store, TestClient, dict[str, Any]]) -> None:
    _, client, records = desk
    items = client.post("/v1/review/next", json={"count": 30}).json()["items"]
    assert {name for item in items for name in item} == {"id", "width", "height", "category"}
    grid = client.post("/v1/review/next", json={"count": 30, "mode": "grid"}).json()["items"]
    assert grid
    assert all(item["preset"] == ("accepted" if records[item["id"]]["score"] > 0.5 else "rejected") for item in grid)


def test_pictures_are_the_stored_bytes(desk: tuple[Store, TestClient, dict[str, Any]]) -> None:
    _, client, records = desk
    for role in ("source", "mask", "erased"):
        answer = client.get(f"/v1/review/pictures/{role}", params={"item": "item-021"})
        assert answer.content == records["item-021"][role]["bytes"]
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = client.get(f"/v1/review/pictures/{role}", params={"item": "item-021"}, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304
    assert client.get("/v1/review/pictures/erased", params={"item": "nothing"}).status_code == 404
    assert client.get("/v1/review/pictures/target", params={"item": "item-021"}).status_code == 422


def test_decisions_are_taken_once_and_bad_ones_do_not_hold_up_the_others(desk: tuple[Store, TestClient, dict[str, Any]]) -> None:
    store, client, _ = desk
    rows = [
        {"id": "1", "item": "item-000", "verdict": "accepted", "milliseconds": 700, "session": "s", "sequence": 1, "decided_at": 1.5},
        {"id": "2", "item": "nothing", "verdict": "accepted"},
        {"id": "3", "item": "item-001", "verdict": "accepted", "reason": "blur"},
        {"id": "4", "item": "item-001", "verdict": "rejected", "reason": "blur"},
    ]
    for _ in range(2):
        answer = client.post("/v1/review/decisions", json={"decisions": rows}).json()
        assert answer["stored"] == ["1", "4"]
        assert {row["id"] for row in answer["refused"]} == {"2", "3"}
    log = list(store.log(QUEUE))
    assert [(row["id"], row["annotator"], row["milliseconds"]) for row in log] == [("1", "ann", 700), ("4", "ann", None)]
    assert answer["progress"]["decided"] == 2
    for body in (
        {"decisions": []},
        {"decisions": [{"id": "5", "item": "item-000", "verdict": "great"}]},
        {"decisions": [{"annotator": "ben", **rows[0]}]},
    ):
        refused = client.post("/v1/review/decisions", json=body)
        assert refused.status_code == 422
        assert refused.headers["content-type"] == "application/problem+json"


def test_what_is_too_large_is_refused_unread(desk: tuple[Store, TestClient, dict[str, Any]]) -> None:
    _, client, _ = desk
    assert client.post("/v1/review/decisions", content=b" " * (LARGEST_BODY + 1)).status_code == 413
    assert client.post("/v1/review/decisions", content=iter([b"{}"])).status_code == 411


def test_a_database_that_does_not_answer_is_503(desk: tuple[Store, TestClient, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    store, client, _ = desk

    def away(_: object) -> list[str | None]:
        raise StorageUnavailable("gone")

    monkeypatch.setattr(store, "record_all", away)
    answer = client.post("/v1/review/decisions", json={"decisions": [{"id": "1", "item": "item-000", "verdict": "accepted"}]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def test_a_record_that_moved_is_told_and_not_shown_as_another(desk: tuple[Store, TestClient, dict[str, Any]], tmp_path: Path) -> None:
    _, client, _ = desk
    write_dataset(tmp_path / "data", scored(24)[::-1])
    answer = client.get("/v1/review/pictures/erased", params={"item": "item-000"})
    assert answer.status_code == 404
    assert "no longer row" in answer.json()["detail"]


def test_the_command_from_links_to_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The desk is opened twice, somebody judges by HTTP; then report and export read the same log."""
    source = write_dataset(tmp_path / "data", scored(20))
    gold = tmp_path / "gold.parquet"
    with open_desk(source, tmp_path / "log", "--annotators", "ann,ben", "--items", "10") as desk:
        links = desk.info["links"]
        assert desk.info["new"] == desk.info["items"]
        assert 8 <= desk.info["items"] <= 10
        key = links["ann"].split("#key=")[1]
        base = desk.info["url"].replace("/review", "/v1/review")
        assert base.startswith("http://127.0.0.1:")
        with httpx2.Client(headers={"authorization": f"Bearer {key}"}, timeout=120) as client:
            items = client.post(f"{base}/next", json={"count": 4}).json()["items"]
            rows = [{"id": item["id"], "item": item["id"], "verdict": "accepted"} for item in items]
            assert client.post(f"{base}/decisions", json={"decisions": rows}).json()["stored"] == [item["id"] for item in items]
        desk.kill()
        desk.start()
        assert desk.info["links"] == links, "links stay the same"
        assert (desk.info["new"], desk.info["decided"]) == (0, 4)
        assert desk.stop() == 130
    assert main(["review", "--input", source, "--report", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["decided"], report["annotators"]["ann"]["accepted"]) == (4, 4)
    assert main(["review", "--input", source, "--report"]) == 0
    assert "4 decisions" in capsys.readouterr().out
    assert main(["review", "--input", source, "--export", "labels", "--output", str(gold), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"items": 4, "output": str(gold)}
    tasks = tmp_path / "answers.json"
    tasks.write_text(json.dumps([{"record_id": items[0]["id"], "id": 1, "verdict": "reject", "annotator": 9}]))
    assert main(["review", "--input", source, "--import-labelstudio", str(tasks), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"decisions": 1, "refused": 0}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--export", "labels"], "--export and --output go together"),
        (["--report", "--import-labelstudio", "x"], "one at a time"),
        (["--random", "2"], "--random is 2"),
        (["--report"], "there is no queue review"),
        (["--annotators", "a b", "--port", "0"], "a name has 1 to 64 letters"),
        (["--database", "mysql://x"], "cannot use the database"),
    ],
)
def test_wrong_calls_are_one_line(flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_dataset(tmp_path / "data", scored(2))
    assert main(["review", "--input", source, *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert says in error[-1]


def test_no_dataset_and_no_place_for_a_database_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["review", "--input", "s3://bucket/data"]) == 2
    assert "give --database" in capsys.readouterr().err
    assert main(["review", "--input", str(tmp_path / "none"), "--database", f"sqlite:///{tmp_path}/x.sqlite"]) == 2
    assert "holds no dataset" in capsys.readouterr().err
