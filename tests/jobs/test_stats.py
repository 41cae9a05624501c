"""Counts of a dataset, and a page that stands alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from core.errors import UsageError
from core.ledger import write_shard
from core.record import RECORD_SCHEMA, empty_record, image_value
from core.statistics import gather
from jobs.stats import page, run, summary
from jobs.stats_config import StatsConfig


def png(share: float) -> bytes:
    mask = np.zeros((100, 100), np.uint8)
    mask[: round(100 * share)] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [
        empty_record(
            id=f"item-{number}", source=image_value(b"never opened"), mask=image_value(png(0.03 if number else 0.4)), origin="here",
            category="<b>cat</b>" if number % 2 else None, width=1000,
            height=300 if number < 3 else 5000, score=0.95 if number == 1 else None,
            verdict="accepted" if number == 1 else None,
        )
        for number in range(5)
    ]  # fmt: skip
    rows[4]["mask"]["bytes"] = b"no picture"
    for part in range(2):
        table = pa.Table.from_pylist(rows[3 * part : 3 * part + 3], schema=RECORD_SCHEMA)
        write_shard(str(tmp_path / "data" / f"part-0001-{part:06d}.parquet"), table)
    return tmp_path / "data"


def test_everything_is_counted_once(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = gather(str(dataset))
    values = summary(found)
    assert values["items"] == 5
    assert values["categories"] == {"none": 3, "<b>cat</b>": 2}
    assert values["origins"] == {"here": 5}
    assert values["verdicts"] == {"none": 4, "accepted": 1}
    assert {name: count for name, count in values["shorter side"].items() if count} == {"256 to 384 px": 3, "768 to 1024 px": 2}
    assert {name: count for name, count in values["mask area"].items() if count} == {"2 to 5 %": 3, "30 to 50 %": 1}
    assert {name: count for name, count in values["score"].items() if count} == {"0.9 to 1": 1}
    assert values["unreadable masks"] == 1
    assert run(StatsConfig(input=str(dataset), output=str(tmp_path / "page.html"), json=True)) == 0
    assert json.loads(capsys.readouterr().out) == values
    written = (tmp_path / "page.html").read_text()
    assert written == page(found, str(dataset))
    assert "<b>" not in written
    assert "&lt;b&gt;cat&lt;/b&gt;" in written
    assert "http" not in written
    assert run(StatsConfig(input=str(dataset), masks=False)) == 0
    assert "items" in capsys.readouterr().out
    assert sum(gather(str(dataset), masks=False).areas) == 0


def test_no_dataset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no dataset"):
        gather(str(tmp_path))
