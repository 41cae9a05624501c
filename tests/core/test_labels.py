"""Labels: the majority of votes, their file, and rates that are unbiased."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import storage
from core.errors import StorageError, UsageError
from core.labels import LABEL_SCHEMA, VERDICTS, Label, Verdict, label_of, read_labels, success_rate, weighted_rate, write_labels


@pytest.mark.parametrize(
    ("votes", "accepted", "share"),
    [
        (["accepted"], True, 1.0),
        (["rejected"], False, 0.0),
        (["unsure"], None, 0.0),
        (["accepted", "rejected"], None, 0.5),
        (["accepted", "unsure"], None, 0.5),
        (["accepted", "accepted", "rejected"], True, 2 / 3),
        (["rejected", "unsure", "rejected"], False, 0.0),
        (["accepted", "rejected", "unsure"], None, 1 / 3),
    ],
)
def test_a_label_is_what_more_than_half_say(votes: list[Verdict], accepted: bool | None, share: float) -> None:
    label = label_of("a", votes, (), sampled_by="random", weight=1.0)
    assert (label.accepted, label.share, label.votes) == (accepted, share, len(votes))
    assert label.verdict == {True: "accepted", False: "rejected", None: "uncertain"}[accepted]


@given(st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=9))
def test_the_order_of_votes_does_not_matter_and_opposite_votes_make_the_opposite(votes: list[Verdict]) -> None:
    label = label_of("a", votes, (), sampled_by="x", weight=1.0)
    assert label_of("a", votes[::-1], (), sampled_by="x", weight=1.0) == label
    opposite: dict[Verdict, Verdict] = {"accepted": "rejected", "rejected": "accepted", "unsure": "unsure"}
    turned = label_of("a", [opposite[vote] for vote in votes], (), sampled_by="x", weight=1.0)
    assert turned.accepted == (None if label.accepted is None else not label.accepted)


def test_reasons_come_with_the_most_named_first() -> None:
    reasons = ["seam", "blur", "object_left", "blur"]
    assert label_of("a", ["rejected"], reasons, sampled_by="x", weight=1.0).reasons == ("blur", "object_left", "seam")


def test_labels_survive_their_file_locally_and_in_a_bucket(folder: str) -> None:
    labels = [
        Label(f"item-{n}", (True, False, None)[n % 3], n / 30_000, 1 + n % 5, ("blur",) * (n % 2), "random", 1.0 + n) for n in range(25_000)
    ]
    uri = storage.join(folder, "labels.parquet")
    assert write_labels(uri, iter(labels)) == len(labels)
    assert list(read_labels(uri)) == labels
    assert write_labels(uri, labels[:2]) == 2
    assert list(read_labels(uri)) == labels[:2]


def test_an_error_while_labels_are_made_leaves_no_file(folder: str) -> None:
    def broken() -> Sequence[Label]:
        yield Label("a", True, 1.0, 1, (), "random", 1.0)
        raise RuntimeError("the database went away")

    uri = storage.join(folder, "labels.parquet")
    with pytest.raises(RuntimeError):
        write_labels(uri, broken())
    assert not storage.exists(uri)


def test_what_is_no_file_of_labels_is_told(tmp_path: object) -> None:
    other = f"{tmp_path}/other.parquet"
    pq.write_table(pa.table({"id": ["a"], "score": [0.5]}), other)
    with pytest.raises(UsageError, match="it lacks accepted, share, votes"):
        read_labels(other)
    with pytest.raises(StorageError):
        read_labels(f"{tmp_path}/none.parquet")
    row = {"id": "a", "accepted": True, "share": 1.5, "votes": 1, "reasons": [], "sampled_by": "x", "weight": 1.0}
    pq.write_table(pa.Table.from_pylist([row], LABEL_SCHEMA), other)
    with pytest.raises(UsageError, match="out of its range"):
        list(read_labels(other))


def test_rates_are_unbiased_over_many_samples() -> None:
    """A queue of the most doubtful items and an even draw, many times: both rates are right on average, the plain share of all is not."""
    rng = random.Random(0)
    truth = [(score := number / 400, rng.random() < score) for number in range(400)]
    whole = sum(good for _, good in truth) / len(truth)
    certain = {number for number, (score, _) in enumerate(truth) if 0.2 < score < 0.45}
    plain, even, weighted = [], [], []
    for _ in range(400):
        drawn = set(rng.sample(range(400), 40))
        labels = [
            label_of(
                str(number), ["accepted" if truth[number][1] else "rejected"], (),
                sampled_by="random" if number in drawn else "uncertain", weight=1.0 if number in certain else 10.0,
            )
            for number in sorted(certain | drawn)
        ]  # fmt: skip
        plain.append(sum(label.accepted is True for label in labels) / len(labels))
        found, weighed = success_rate(labels), weighted_rate(labels)
        assert found is not None
        assert weighed is not None
        assert found.low <= found.mean <= found.high
        even.append(found.mean)
        weighted.append(weighed)
    assert sum(even) / 400 == pytest.approx(whole, abs=0.02)
    assert sum(weighted) / 400 == pytest.approx(whole, abs=0.02)
    assert abs(sum(plain) / 400 - whole) > 0.05


def test_rates_of_nothing_are_none() -> None:
    unsure = [label_of("a", ["unsure"], (), sampled_by="random", weight=1.0)]
    assert success_rate(unsure) is None
    assert weighted_rate(unsure) is None
    assert success_rate([label_of("a", ["accepted"], (), sampled_by="uncertain", weight=1.0)]) is None
