"""The report's page: what is counted, which items are shown, and that nothing in the data can break out of its place."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from core.errors import StorageError, UsageError
from core.ledger import write_shard
from core.record import FAILURE_SCHEMA, RECORD_SCHEMA, empty_record, image_value, verdict_for
from core.report import even_picks, read_items, read_overview, render

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{cards}}\u202e"


class Page(HTMLParser):
    """The elements of a page, in order, as (name, attributes), and the text between them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def having(self, tag: str, name: str = "", part: str = "") -> list[dict[str, str | None]]:
        """Attributes of the elements ``tag`` whose attribute ``name`` has the word ``part``."""
        return [found for element, found in self.elements if element == tag and (not name or part in (found.get(name) or "").split())]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(name: str, score: float | None = None, size: tuple[int, int] = (48, 32), **values: Any) -> dict[str, Any]:
    """A record of ``size`` (width, height): a grey photo, a mask in its middle, a lighter erasure."""
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 255
    made: dict[str, Any] = {
        "id": name,
        "source": image_value(png(np.full((height, width, 3), 90, np.uint8))),
        "mask": image_value(png(mask)),
        "erased": image_value(png(np.full((height, width, 3), 200, np.uint8))),
        "origin": "test",
        "width": width,
        "height": height,
        "score": score,
        "verdict": verdict_for(score, accept_above=0.9, uncertain_from=0.5),
    }
    return empty_record(**{**made, **values})


def write_dataset(
    folder: Path, shards: list[list[dict[str, Any]]], failures: list[dict[str, Any]] | None = None, *, counts: int | None = None
) -> str:
    for number, rows in enumerate(shards):
        write_shard(str(folder / f"part-0001-{number:06d}.parquet"), pa.Table.from_pylist(rows, schema=RECORD_SCHEMA))
    if failures:
        write_shard(str(folder / "failures" / "part-0001-000000.parquet"), pa.Table.from_pylist(failures, schema=FAILURE_SCHEMA))
    if counts is not None:
        folder.mkdir(exist_ok=True, parents=True)
        configuration = {"threshold": 0.9, "uncertain": 0.5, "seed": 7, "eraser_model": "tiny", "origin": None}
        text = json.dumps({"counts": {"in": counts}, "configuration": configuration, "versions": {"torch": "9.9"}})
        (folder / "dataset.json").write_text(text)
    return str(folder)


def failure(number: int, error: str = "truncated", **values: Any) -> dict[str, Any]:
    return {
        "id": f"bad-{number}",
        "uri": f"/in/{number}.jpg",
        "stage": "decode",
        "error": error,
        "message": f"the photo {number} is cut off",
        **values,
    }


def make_page(folder: str, limit: int = 200, side: int = 64, title: str | None = None) -> bytes:
    overview = read_overview(folder, limit)
    return render(overview, read_items(overview, side), title)


def test_counts_items_and_configuration_are_those_of_the_dataset(tmp_path: Path) -> None:
    scores = [0.05, 0.5, 0.7, 0.93, 0.97, None]
    rows = [record(f"item-{index}", score, category="dog" if index == 2 else None) for index, score in enumerate(scores)]
    folder = write_dataset(tmp_path / "set", [rows[:2], rows[2:]], [failure(1), failure(2)], counts=8)
    overview = read_overview(folder, 0)
    assert overview.verdicts == Counter(accepted=2, uncertain=2, rejected=1, unscored=1)
    assert (overview.items_in, overview.out, overview.failed, overview.finished) == (8, 6, 2, True)
    assert overview.histogram.sum() == 5
    page = Page(make_page(folder))
    cards = page.having("article")
    # highest score first, what has none last
    assert [card["data-id"] for card in cards] == ["item-4", "item-3", "item-2", "item-1", "item-0", "item-5"]
    assert [card["data-verdict"] for card in cards] == ["accepted", "accepted", "uncertain", "uncertain", "rejected", "unscored"]
    assert cards[2]["data-category"] == "dog"
    for words in ("In 8", "Accepted 2", "Uncertain 2", "Rejected 1", "Unscored 1", "Failed 2", "Accepted of 5 judged 40.0 %"):
        assert words in page.text
    for words in (
        "48 × 32",
        "0.93",
        "accepted above 0.9",
        "uncertain from 0.5",
        "eraser_model tiny",
        "version of torch 9.9",
        "6 of 6 items",
    ):
        assert words in page.text
    assert "Job not finished" not in page.text


def test_every_card_has_three_pictures_with_texts_at_the_asked_size(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [[record("wide", 0.4, (300, 150)), record("small", 0.95, (40, 60))]], counts=2)
    images = [image for image in Page(make_page(folder, side=100)).having("img") if image.get("src")]
    assert [image["alt"] for image in images] == [f"{label}: {name}" for name in ("small", "wide") for label in ("Before", "Mask", "After")]
    # smaller pictures stay as they are
    assert [(image["width"], image["height"]) for image in images] == [("40", "60")] * 3 + [("100", "50")] * 3
    pictures = [Image.open(io.BytesIO(base64.b64decode((image["src"] or "").split(",", 1)[1]))) for image in images]
    assert [picture.size for picture in pictures] == [(40, 60)] * 3 + [(100, 50)] * 3
    before, mask, after = (np.asarray(picture.convert("RGB")).astype(int) for picture in pictures[3:])
    assert abs(before - 90).max() < 8
    assert abs(after - 200).max() < 8
    red, _, blue = mask[18, 37]  # the middle of what is masked
    assert red - blue > 60
    assert abs(mask[45, 90] - 90).max() < 12  # and far from it


def test_the_histogram_has_its_bins_by_verdict(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [[record(f"{index}", float(np.float32(index / 20))) for index in range(21)]], counts=21)
    overview = read_overview(folder, 0)
    assert overview.histogram.sum(axis=1).tolist() == [1] * 19 + [2]
    assert overview.histogram.sum(axis=0).tolist() == [2, 9, 10, 0]
    bars = Page(make_page(folder)).having("rect")
    assert Counter(bar["class"] for bar in bars) == Counter(accepted=1, uncertain=9, rejected=10)


@pytest.mark.parametrize(
    ("scored", "unscored", "limit"), [(1000, 0, 50), (0, 1000, 50), (900, 100, 50), (3, 9000, 50), (9000, 1, 10), (51, 0, 50), (7, 7, 1)]
)
def test_picks_are_even_and_hold_the_ends(scored: int, unscored: int, limit: int) -> None:
    picks = even_picks(scored, unscored, limit).tolist()
    assert picks == sorted(set(picks))
    assert len(picks) == limit
    assert picks[0] >= 0
    assert picks[-1] < scored + unscored
    if scored and limit > 1:
        assert {0, scored - 1} <= set(picks)
    for kind in ([pick for pick in picks if pick < scored], [pick for pick in picks if pick >= scored]):
        steps = np.diff(kind)
        assert len(steps) == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize("limit", [0, 10, 11])
def test_no_limit_or_a_large_one_picks_all(limit: int) -> None:
    assert even_picks(6, 4, limit).tolist() == list(range(10))


def test_chosen_items_are_read_from_their_own_rows(tmp_path: Path) -> None:
    """Rows of several shards and row groups, of which only some are wanted; each card must show its own record."""
    order = np.random.default_rng(0).permutation(40)
    rows = [record(f"{number:02d}", number / 40, (40 + int(number), 32)) for number in order]
    write_dataset(tmp_path / "set", [rows[:25]], counts=40)
    table = pa.Table.from_pylist(rows[25:], schema=RECORD_SCHEMA)
    pq.write_table(table, tmp_path / "set" / "part-0001-000001.parquet", row_group_size=4)
    overview = read_overview(str(tmp_path / "set"), 9)
    items = sorted(read_items(overview, 384), key=lambda item: item.number)
    assert [item.number for item in items] == list(range(1, 10))
    assert [item.values["id"] for item in items] == ["39", "34", "29", "24", "20", "15", "10", "05", "00"]
    assert [item.size[0] for item in items] == [40 + int(item.values["id"]) for item in items]


def test_what_comes_from_data_stays_text(tmp_path: Path) -> None:
    rows = [record(HOSTILE, 0.95, category=HOSTILE), record("plain", 0.1)]
    folder = write_dataset(
        tmp_path / "set", [rows], [failure(1, HOSTILE, id=HOSTILE, uri=HOSTILE, stage=HOSTILE, message=HOSTILE)], counts=3
    )
    values = json.loads((tmp_path / "set" / "dataset.json").read_text())
    values["configuration"].update({HOSTILE: HOSTILE, "surrogate": "\ud800", "threshold": HOSTILE, "listed": [HOSTILE]})
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(values))
    data = make_page(folder, title=HOSTILE)
    page = Page(data)
    assert len(page.having("script")) == 1
    assert all((image.get("src") or "data:image/webp;").startswith("data:image/webp;") for image in page.having("img"))
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert page.having("article")[0]["data-id"] == HOSTILE
    assert page.having("article")[0]["data-category"] == HOSTILE
    assert b"{{cards}}" in data  # as text: what is put in is not looked at for places to fill
    assert len(page.having("article")) == 2


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(tmp_path: Path) -> None:
    data = make_page(write_dataset(tmp_path / "set", [[record("a", 0.95)]], counts=1)).decode()
    addresses = re.findall(r"(?:src|href|action|poster)\s*=\s*[\"']([^\"']*)|url\(([^)]*)\)|@import\s+(\S+)", data)
    assert addresses
    assert all(part.startswith("data:") for found in addresses for part in found if part)
    assert "http://" not in data
    assert "https://" not in data
    script = data.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in data
    assert "default-src 'none'" in data


def test_failures_are_grouped_with_a_few_examples(tmp_path: Path) -> None:
    rows = [failure(number) for number in range(9)] + [failure(20, "empty_mask", uri=None)]
    page = Page(make_page(write_dataset(tmp_path / "set", [], rows, counts=10)))
    assert "truncated 9" in page.text
    assert page.text.index("truncated 9") < page.text.index("empty_mask 1")
    assert [f"bad-{number}" in page.text for number in range(9)] == [True] * 5 + [False] * 4
    assert "and 4 more" in page.text
    assert "No results." in page.text
    assert "Failed 10" in page.text


def test_an_empty_dataset_and_one_without_scores(tmp_path: Path) -> None:
    empty = Page(make_page(write_dataset(tmp_path / "empty", [[]], counts=0)))
    assert "No results." in empty.text
    assert "Nothing failed." in empty.text
    rows = [record(name) for name in ("b", "c", "a")]
    unscored = Page(make_page(write_dataset(tmp_path / "unscored", [rows], counts=3)))
    assert [card["data-id"] for card in unscored.having("article")] == ["a", "b", "c"]
    assert {card["data-score"] for card in unscored.having("article")} == {""}
    assert "No item has a score." in unscored.text
    assert not unscored.having("rect")


def test_a_job_that_is_not_finished(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [[record("a", 0.95)]], [failure(1)])
    (tmp_path / "set" / ".cleanplate" / "plan").mkdir(parents=True)
    (tmp_path / "set" / ".cleanplate" / "job.json").write_text(json.dumps({"settings": {"eraser_model": "tiny", "threshold": 0.9}}))
    (tmp_path / "set" / ".cleanplate" / "plan" / "plan.json").write_text(
        json.dumps({"items": 50, "files": [], "input": "/in", "base": "/in"})
    )
    text = Page(make_page(folder)).text
    assert "Job not finished: 2 of 50 items are done" in text
    assert "eraser_model tiny" in text
    for name in ("part-0001-000000.parquet", "failures/part-0001-000000.parquet"):
        (tmp_path / "set" / name).unlink()
    assert "Job not finished: 0 of 50 items are done" in Page(make_page(folder)).text


def test_a_finished_dataset_that_has_lost_items_says_so(tmp_path: Path) -> None:
    assert "5 items went in, and 1 are here" in Page(make_page(write_dataset(tmp_path / "set", [[record("a", 0.95)]], counts=5))).text


def test_pictures_that_cannot_be_shown_are_told_on_their_card(tmp_path: Path) -> None:
    rows = [
        record("no-erasure", 0.9, erased=None),
        record("broken-source", 0.8, source=image_value(b"nothing")),
        record("empty-mask", 0.7, mask=image_value(png(np.zeros((32, 48), np.uint8)))),
        record("broken-erasure", 0.6, erased=image_value(b"\x89PNG\r\n\x1a\nno")),
        record("truth", 0.5, erased=None, target=image_value(png(np.full((32, 48, 3), 10, np.uint8)))),
    ]
    page = Page(make_page(write_dataset(tmp_path / "set", [rows], counts=5)))
    assert len(page.having("article")) == 5
    assert len([image for image in page.having("img") if image.get("src")]) == 2 + 1 + 2 + 2 + 3
    for words in ("no erasure", "the photo is no picture", "the mask removes nothing", "the result is", "Ground truth"):
        assert words in page.text


def test_a_dataset_with_the_needed_columns_alone(tmp_path: Path) -> None:
    """As other programs write them; two schemas may stand beside each other."""
    names = ["id", "source", "mask", "origin", "width", "height"]
    folder = write_dataset(tmp_path / "set", [[record("full", 0.95)]])
    table = pa.Table.from_pylist([record("bare")], schema=RECORD_SCHEMA).select(names)
    write_shard(str(tmp_path / "set" / "part-0001-000001.parquet"), table)
    assert [card["data-id"] for card in Page(make_page(folder)).having("article")] == ["full", "bare"]


def test_what_is_no_dataset_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for folder, found in ((tmp_path, "photo.jpg"), (tmp_path / "absent", "nothing"), (tmp_path / "photo.jpg", "nothing")):
        with pytest.raises(UsageError, match=f"is no dataset: found {found}") as caught:
            read_overview(str(folder), 0)
        assert "\n" not in str(caught.value)
    write_shard(str(tmp_path / "other" / "part-0.parquet"), pa.table({"id": ["a"], "text": ["b"]}))
    with pytest.raises(UsageError, match="no shard of a dataset: column source is missing"):
        read_overview(str(tmp_path / "other"), 0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "part-0.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(StorageError, match="is damaged"):
        read_overview(str(tmp_path / "broken"), 0)
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "dataset.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        read_overview(str(tmp_path / "json"), 0)


def test_two_hundred_photos_stay_under_25_megabytes(tmp_path: Path) -> None:
    """The size of a full page, from one detailed photo: fine noise over a smooth ground packs worse than any photo of the samples."""
    generator = np.random.default_rng(0)
    smooth = np.linspace(40, 200, 512)[None, :, None] + np.zeros((512, 1, 3))
    pixels = np.clip(smooth + generator.normal(0, 12, (512, 512, 1)), 0, 255).astype(np.uint8)
    row = record("photo", 0.95, (512, 512), source=image_value(png(pixels)), erased=image_value(png(pixels[::-1].copy())))
    data = make_page(write_dataset(tmp_path / "set", [[row]], counts=1), side=384)
    empty = make_page(write_dataset(tmp_path / "empty", [[]], counts=0), side=384)
    assert 200 * (len(data) - len(empty)) + len(empty) < 25e6
