"""Effect masks for a dataset on a real Ray: exactly the pairs that can be compared, all else kept, and nothing but the item decides."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.composing.annotations import Annotations
from core.composing.cast import read_lifted
from core.composing.collection import Collection, list_pictures
from core.composing.composer import Composer, ComposeSettings
from core.composing.light import to_linear, to_srgb
from core.errors import UsageError
from core.ledger import list_parts
from core.storage import storage_for
from jobs.config import VerifyConfig
from jobs.data_config import EffectsConfig
from jobs.effects import cutout_name, effects
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


def put_back(cutout: Path, target: np.ndarray) -> np.ndarray:
    """The lifted object of a file on a photo without it, (H, W, 3) uint8."""
    lifted = np.asarray(Image.open(cutout))
    share = lifted[..., 3:].astype(np.float32) / 255
    return to_srgb(to_linear(target) * (1 - share) + to_linear(np.ascontiguousarray(lifted[..., :3])) * share)


def run(data: Path, output: Path, **settings: Any) -> dict[str, Any]:
    return effects(EffectsConfig(input=str(data), output=str(output), **settings))


@pytest.mark.usefixtures("cluster")
def test_pairs_get_their_masks_and_others_a_reason(data: Path, tmp_path: Path) -> None:
    summary = run(data, tmp_path / "out", lift_cutouts=True)
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

    # what was lifted gives its photo back, and is what compose takes; nothing is lifted that the frame cuts off
    lifted = {read_lifted(path.read_bytes())["id"]: path for path in (tmp_path / "out" / "cutouts").iterdir()}  # type: ignore[index]
    assert lifted.keys() < rows.keys()
    assert len(lifted) == len(rows) - summary["warnings"]["cutout_touches_frame"] >= 1
    for name, path in lifted.items():
        assert path.name == cutout_name(name)
        source, target = (picture(rows[name][role]).astype(np.uint8) for role in ("source", "target"))
        error = np.mean((put_back(path, target).astype(np.float64) - source) ** 2)
        assert 10 * np.log10(255**2 / error) > 35
    (tmp_path / "photos").mkdir()
    place = np.where(np.arange(240)[:, None, None] < 130, (150, 180, 230), (120, 125, 80)) + np.random.default_rng(9).normal(
        0, 3, (240, 320, 3)
    )
    Image.fromarray(place.astype(np.uint8)).save(tmp_path / "photos" / "place.png")
    collection = Collection(
        list_pictures(str(tmp_path / "photos"), "photos"), list_pictures(str(tmp_path / "out" / "cutouts"), "cut-outs"), Annotations()
    )
    made = Composer(collection, ComposeSettings(size=128, negatives=0.0, max_objects=1)).compose("of-lifted")
    assert made.recipe["target"]["lifted"]["id"] in lifted
    assert (made.effect_mask > 0).sum() > (made.mask > 0).sum()

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
    with pytest.raises(UsageError, match="lift_cutouts: None -> True"):
        run(tmp_path / "out", again, lift_cutouts=True, **settings)


@pytest.mark.parametrize("name", ["a", "photos/één.jpg", "../../etc/passwd", ".hidden", "x" * 300, "é", ""])
def test_any_id_has_a_file_name_of_its_own(name: str) -> None:
    found = cutout_name(name)
    assert re.fullmatch(r"[\w-]{1,110}\.png", found, flags=re.ASCII)
    assert found != cutout_name(name + "2")


def test_wrong_settings_are_one_line() -> None:
    with pytest.raises(UsageError, match="--low 7 is above --high 6"):
        EffectsConfig(input="in", output="out", low=7, high=6)
    with pytest.raises(UsageError, match="high"):
        EffectsConfig(input="in", output="out", high=0)
