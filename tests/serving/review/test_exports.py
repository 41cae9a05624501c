"""What leaves the desk is read by those for whom it is: training, ingest, Label Studio; and Label Studio's answers come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.collections.builder import Choice
from core.collections.formats import open_collection
from core.collections.rorem import RoremBuilder
from core.errors import UsageError
from core.fetch import Fetcher
from core.labels import read_labels
from serving.review.dataset import Pictures, read_candidates
from serving.review.entries import Decision
from serving.review.exports import export
from serving.review.label_studio import CONFIG, read_decisions
from serving.review.policy import Policy, choose
from serving.review.store import Store, open_store
from tests.serving.review.support import record, scored, write_dataset
from training.index import Selection, read_index
from training.triplets import training_pair

EXPORTED = Path(__file__).parents[2] / "data" / "label_studio_export.json"
QUEUE = "q"


@pytest.fixture
def judged(tmp_path: Path) -> Iterator[tuple[Store, str, list[dict[str, Any]]]]:
    """Thirty items of two shards; the first twelve are judged: even ones accepted, odd ones rejected, the last unsure."""
    records = scored(30)
    records[0]["target"] = record(0)["source"]  # ground truth of its own
    records[1]["target"] = records[1]["erased"]  # an earlier verdict's
    source = write_dataset(tmp_path / "data", records)
    store = open_store(f"sqlite:///{tmp_path}/review.sqlite")
    store.add_queue(QUEUE, choose(read_candidates(source), Policy()), source=source)
    for number in range(12):
        verdict = "unsure" if number == 11 else "rejected" if number % 2 else "accepted"
        reason = "blur" if number == 3 else None
        store.record(
            Decision(id=f"d{number}", queue=QUEUE, item=f"item-{number:03}", annotator="ann", verdict=verdict, reason=reason)  # type: ignore[arg-type]
        )
    yield store, source, records
    store.close()


def test_the_discriminator_takes_the_dataset_as_judged(judged: tuple[Store, str, list[dict[str, Any]]], tmp_path: Path) -> None:
    store, source, records = judged
    output = str(tmp_path / "judged")
    assert export(store, QUEUE, source, "discriminator", output) == {"items": 11, "output": output}
    index = read_index(output, Selection(judged=True, targets=False))
    assert len(index) == 11
    fetcher = Fetcher(output)
    pairs = {}
    for number in range(len(index)):
        values = index.record(fetcher, number, 200.0)
        pairs[values["id"]] = (training_pair(values, answer="erased"), values)
    for number in range(11):
        pair, values = pairs[f"item-{number:03}"]
        assert pair.label == (0.0 if number % 2 else 1.0)
        assert values["erased"]["bytes"] == records[number]["erased"]["bytes"]
    targets = {name: values["target"] for name, (_, values) in pairs.items()}
    assert targets["item-000"]["bytes"] == records[0]["target"]["bytes"], "ground truth stays"
    assert targets["item-001"] is None, "what people rejected is nobody's target"
    assert targets["item-002"]["bytes"] == records[2]["erased"]["bytes"], "what people accepted is one"
    assert json.loads(Path(output, "dataset.json").read_text())["counts"]["verdict_accepted"] == 6
    assert len(list(read_labels(f"{output}/.cleanplate/labels.parquet"))) == 11
    with pytest.raises(UsageError, match="is not empty"):
        export(store, QUEUE, source, "discriminator", output)


def test_labels_are_one_file(judged: tuple[Store, str, list[dict[str, Any]]], folder: str) -> None:
    store, source, _ = judged
    assert export(store, QUEUE, source, "labels", f"{folder}/labels.parquet")["items"] == 12
    assert list(read_labels(f"{folder}/labels.parquet")) == list(store.labels(QUEUE))
    with pytest.raises(UsageError, match=r"ends in \.parquet"):
        export(store, QUEUE, source, "labels", f"{folder}/labels.csv")


def test_rorems_layout_is_read_by_ingest(judged: tuple[Store, str, list[dict[str, Any]]], folder: str) -> None:
    store, source, records = judged
    assert export(store, QUEUE, source, "rorem", f"{folder}/rorem")["items"] == 12
    collection = open_collection("rorem", f"{folder}/rorem", None, Choice())
    builder = RoremBuilder(collection.base, 200.0, Choice())
    built = [builder.build({name: getattr(row, name) for name in row.__slots__}) for row in collection.rows()]
    verdicts = sorted(made.record["verdict"] for made in built)
    assert verdicts == ["accepted"] * 6 + ["rejected"] * 6
    assert {made.record["erased"]["bytes"] for made in built} == {values["erased"]["bytes"] for values in records[:12]}


def test_label_studio_and_back(judged: tuple[Store, str, list[dict[str, Any]]], tmp_path: Path) -> None:
    store, source, records = judged
    output = tmp_path / "desk"
    assert export(store, QUEUE, source, "labelstudio", str(output))["items"] == 12
    tasks = json.loads((output / "tasks.json").read_text())
    assert (output / "config.xml").read_text() == CONFIG
    for task in tasks:
        for role in ("source", "mask", "erased"):
            name = task["data"][role].removeprefix("/data/local-files/?d=desk/")
            values = next(values for values in records if values["id"] == task["data"]["record_id"])
            assert (output / name).read_bytes() == values[role]["bytes"]
        assert task["predictions"][0]["score"] == task["data"]["score"]
        assert [entry["from_name"] for entry in task["annotations"][0]["result"]][:1] == ["verdict"]
    decisions = read_decisions(str(output / "tasks.json"), QUEUE)
    assert {(row.item, row.verdict) for row in decisions if row.kind == "verdict"} == {
        (vote["item"], vote["verdict"]) for vote in store.votes(QUEUE)
    }
    assert [row.reason for row in decisions if row.kind == "reason"] == ["blur"]


def test_an_export_of_label_studio_becomes_decisions_once(judged: tuple[Store, str, list[dict[str, Any]]]) -> None:
    """Written by hand with the fields of published exports: annotators by number and by name, a skip, a history that differs."""
    store, _, _ = judged
    decisions = read_decisions(str(EXPORTED), QUEUE)
    told = [(row.item, row.annotator, row.kind, row.verdict, row.reason, row.milliseconds) for row in decisions]
    assert told == [
        ("item-000", "labelstudio-1", "verdict", "rejected", None, 3417),
        ("item-000", "labelstudio-1", "reason", None, "shadow_left", None),
        ("item-000", "labelstudio-1", "reason", None, "blur", None),
        ("item-000", "labelstudio-2", "verdict", "accepted", None, 1900),
        ("item-001", "labelstudio-ann@example.org", "verdict", "unsure", None, 5200),
        ("item-002", "labelstudio-ben@example.org", "verdict", "accepted", None, 1849),
    ]
    assert decisions[0].decided_at == pytest.approx(1790932443.120394)
    before = store.progress(QUEUE).votes
    for _ in range(2):
        assert store.record_all(read_decisions(str(EXPORTED), QUEUE)) == [None] * 6
    assert store.progress(QUEUE).votes == before + 4
    label = next(label for label in store.labels(QUEUE) if label.id == "item-000")
    assert (label.votes, label.accepted, label.reasons) == (3, True, ("blur", "shadow_left"))


def test_the_flat_export_is_read_too_and_what_is_none_is_told(tmp_path: Path) -> None:
    flat = tmp_path / "min.json"
    rows = [
        {"record_id": "a", "id": 1, "verdict": "reject", "reason": "blur", "annotator": 1, "annotation_id": 5, "lead_time": 2.0},
        {"record_id": "b", "id": 2, "verdict": "reject", "reason": {"choices": ["seam", "blur"]}, "annotator": 1, "annotation_id": 6},
        {"record_id": "c", "id": 3, "annotator": 1, "annotation_id": 7},
    ]
    flat.write_text(json.dumps(rows))
    assert [(row.item, row.verdict, row.reason) for row in read_decisions(str(flat), QUEUE)] == [
        ("a", "rejected", None), ("a", None, "blur"), ("b", "rejected", None), ("b", None, "seam"), ("b", None, "blur"),
    ]  # fmt: skip
    for text, says in (
        ("{", "is not JSON"),
        ('{"a": 1}', "no list of tasks"),
        ('[{"id": 4, "verdict": "accept"}]', "task 4 has no record_id"),
        ('[{"record_id": "a", "verdict": "maybe"}]', "'maybe'; known are accept"),
        ('[{"id": 1, "annotations": [{"result": 3}], "data": {"record_id": "a"}}]', "not as Label Studio writes it"),
    ):
        flat.write_text(text)
        with pytest.raises(UsageError, match=says):
            read_decisions(str(flat), QUEUE)


def test_pictures_come_as_they_are_stored_whatever_was_asked_before(tmp_path: Path) -> None:
    records = scored(12)
    records[5]["erased"] = None
    source = write_dataset(tmp_path / "data", records, shard_rows=5)
    table = read_candidates(source)
    assert len(table) == 11
    pictures = Pictures(source, cache_bytes=1)
    items = {item.id: item for item in choose(table, Policy())}
    by_id = {values["id"]: values for values in records}
    for item in [*items.values(), *items.values()]:
        for role in ("source", "mask", "erased"):
            found = pictures.get(item, role)
            assert found.data == by_id[item.id][role]["bytes"]
            assert found.media_type == "image/png"
