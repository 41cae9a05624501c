"""What a training takes of a dataset is found without reading a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.errors import UsageError
from core.fetch import Fetcher
from core.images import encode_image
from core.record import image_value
from tests.training.support import triplet, write_triplets
from training.index import EFFECTS, ERASED, JUDGED, TARGET, Selection, read_index

ERASURE = image_value(encode_image(np.zeros((96, 96, 3), np.uint8)))


def test_items_are_taken_by_what_they_have(folder: str) -> None:
    changed = {
        1: {"target": None},
        2: {"erased": ERASURE, "verdict": "rejected", "score": 0.2},
        3: {"erased": ERASURE, "verdict": "uncertain", "score": 0.6},
        4: {"verdict": "accepted"},
        6: {"effect_mask": None},
        5: {"target": None, "erased": ERASURE, "verdict": "accepted", "score": 0.95},
    }
    write_triplets(folder, 8, changed=changed)
    index = read_index(folder, Selection(judged=True, targets=True))
    found = (index.flags_N & ~np.uint8(EFFECTS)).tolist()
    assert found == [TARGET, TARGET | ERASED | JUDGED, TARGET | ERASED, TARGET, ERASED | JUDGED, TARGET, TARGET]
    assert ((index.flags_N & EFFECTS) > 0).tolist() == [True, True, True, True, True, False, True]
    assert index.size_N2.tolist() == [[96, 96]] * 7
    assert len(read_index(folder, Selection(judged=True, targets=False))) == 2
    # items without a score are not below any
    assert len(read_index(folder, Selection(min_score=0.5))) == 5
    record = index.record(Fetcher(index.base), 1, 100.0)
    assert record["id"] == "item-0002"
    assert record["source"]["bytes"] == triplet(2)["source"]["bytes"]


def test_a_folder_with_targets_is_taken(tmp_path: Path) -> None:
    for number in range(3):
        values = triplet(number)
        for role in ("source", "mask", "target"):
            (tmp_path / role).mkdir(exist_ok=True)
            (tmp_path / role / f"{number}.png").write_bytes(values[role]["bytes"])
    index = read_index(str(tmp_path), Selection())
    assert len(index) == 3
    assert index.record(Fetcher(index.base), 2, 100.0)["target"]["bytes"] == triplet(2)["target"]["bytes"]
    with pytest.raises(UsageError, match="3 items, none with a judged erasure"):
        read_index(str(tmp_path), Selection(judged=True, targets=False))


def test_what_is_held_out_follows_from_the_ids(tmp_path: Path) -> None:
    whole = read_index(write_triplets(str(tmp_path / "a"), 60), Selection())
    rest, held = whole.split(0.25)
    assert len(rest) + len(held) == 60
    assert 5 <= len(held) <= 25
    assert not set(rest.key_N.tolist()) & set(held.key_N.tolist())
    # the same items of a dataset that has grown, and of one in other shards
    grown = read_index(write_triplets(str(tmp_path / "b"), 80, shards=5), Selection()).split(0.25)[1]
    assert set(held.key_N.tolist()) == {key for key in grown.key_N.tolist() if key in set(whole.key_N.tolist())}
    with pytest.raises(UsageError, match=r"validation_share is 1\.0"):
        whole.split(1.0)


def test_fingerprints_tell_datasets_apart(tmp_path: Path) -> None:
    one = read_index(write_triplets(str(tmp_path / "a"), 6), Selection())
    assert one.fingerprint == read_index(str(tmp_path / "a"), Selection()).fingerprint
    assert one.fingerprint != read_index(write_triplets(str(tmp_path / "b"), 7), Selection()).fingerprint


def test_no_data_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 items, none with a target"):
        read_index(write_triplets(str(tmp_path), 2, target=None), Selection())
    with pytest.raises(UsageError, match="neither"):
        Selection(targets=False)
