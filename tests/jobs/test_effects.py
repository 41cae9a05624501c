"""Effect masks for a dataset on a real Ray: exactly the pairs that can be compared, all else kept, and nothing but the item decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.composing.composer import Composer, ComposeSettings
from core.errors import UsageError
from core.ledger import list_parts
from core.storage import storage_for
from jobs.config import VerifyConfig
from jobs.data_config import EffectsConfig
from jobs.effects import effects
from jobs.verify import verify
from tests.core.composing.collections import open_collection, write_collection
from tests.jobs.support import picture, read_rows

COUNT, MOVED, BARE = 6, 2, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Composed pairs with their true effect masks aside; the background of one has moved, one has no target."""
    root = tmp_path_factory.mktemp("pairs")
    composer = Composer(open_collection(write_collection(root / "collection")), ComposeSettings(size=160, negatives=0.0))
    for number in range(COUNT):
        made = composer.compose(f"job-{number}")
        target = np.roll(made.target, 9, axis=1) if number == MOVED else made.target
        for name, pixels in (("source", made.source), ("mask", made.mask), ("target", target), ("truth", made.effect_mask)):
            (root / "data" / name).mkdir(parents=True, exist_ok=True)
            if (name, number) != ("target", BARE):
                Image.fromarray(pixels).save(root / "data" / name / f"pair-{number}.png")
    return root / "data"


def run(data: Path, output: Path, **settings: Any) -> dict[str, Any]:
    return effects(EffectsConfig(input=str(data), output=str(output), **settings))


@pytest.mark.usefixtures("cluster")
def test_pairs_get_their_masks_and_others_a_reason(data: Path, tmp_path: Path) -> None:
    summary = run(data, tmp_path / "out")
    rows, failures = read_rows(str(tmp_path / "out"))
    assert (summary["in"], summary["out"], summary["failed"]) == (COUNT, COUNT - 2, 2)
    assert {name: row["error"] for name, row in failures.items()} == {f"pair-{MOVED}": "background_moved", f"pair-{BARE}": "no_target"}
    assert failures[f"pair-{MOVED}"]["stage"] == "effects"
    overlaps = []
    for name, row in rows.items():
        found, mask = picture(row["effect_mask"]), picture(row["mask"])
        truth = np.asarray(Image.open(data / "truth" / f"{name}.png"))
        assert set(np.unique(found)) == {0, 255}
        assert found[mask > 0].all()
        overlaps.append(((found > 0) & (truth > 0)).sum() / ((found > 0) | (truth > 0)).sum())
        assert row["source"]["bytes"] == (data / "source" / f"{name}.png").read_bytes(), "all else stays"
        assert row["target"]["bytes"] == (data / "target" / f"{name}.png").read_bytes()
    assert np.median(overlaps) >= 0.8, overlaps
    counted = verify(VerifyConfig(input=str(tmp_path / "out")))
    assert (counted["out"], counted["lost"], counted["pictures that do not open"]) == (COUNT - 2, 0, 0)

    # a dataset is an input too; other blocks, other actors and a run that was cut off give the same bytes
    again = tmp_path / "again"
    settings: dict[str, Any] = {"block_rows": 1, "shard_mb": 0.0, "max_actors": 1}
    assert run(tmp_path / "out", again, **settings)["out"] == COUNT - 2
    lost = list_parts(str(again))[0]
    storage_for(lost).delete(lost)
    assert 0 < run(tmp_path / "out", again, **settings)["processed"] <= COUNT - 2
    repeated = read_rows(str(again))[0]
    for name, row in rows.items():
        assert repeated[name] == row
    assert json.loads((again / "dataset.json").read_text())["configuration"]["high"] == 6.0
    with pytest.raises(UsageError, match=r"high: 6\.0 -> 7\.0"):
        run(tmp_path / "out", again, high=7.0, **settings)


def test_wrong_settings_are_one_line() -> None:
    with pytest.raises(UsageError, match="--low 7 is above --high 6"):
        EffectsConfig(input="in", output="out", low=7, high=6)
    with pytest.raises(UsageError, match="high"):
        EffectsConfig(input="in", output="out", high=0)
