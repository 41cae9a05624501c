"""Which items a step takes follows from the step alone; every item comes once an epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UsageError
from training.index import TrainingIndex
from training.order import WINDOW, Bucket, TrainingOrder, make_buckets, worker_lanes

SQUARE = (Bucket(64, 64),)


def index_of(count: int, per_group: int = 8, sizes: Any = None) -> TrainingIndex:
    numbers = np.arange(count)
    keys = np.random.Generator(np.random.PCG64(1)).integers(0, 2**64, count, dtype=np.uint64)
    size = np.full((count, 2), 512, np.int32) if sizes is None else np.asarray(sizes, np.int32)
    groups = (numbers // per_group).astype(np.int32)
    return TrainingIndex(
        "", (), np.zeros(count, np.int32), numbers.astype(np.int32), groups, keys, size, np.ones(count, np.uint8), (), "x"
    )


@given(count=st.integers(1, 300), batch=st.integers(1, 16), per_group=st.integers(1, 40), seed=st.integers(0, 5))
def test_an_epoch_takes_every_item_at_most_once_and_leaves_less_than_a_batch(count: int, batch: int, per_group: int, seed: int) -> None:
    if count < batch:
        with pytest.raises(UsageError, match="lower batch_size"):
            TrainingOrder(index_of(count, per_group), SQUARE, batch, seed)
        return
    order = TrainingOrder(index_of(count, per_group), SQUARE, batch, seed)
    steps = order.steps_in(0)
    for epoch in (0, 1):
        taken = np.concatenate([order.items(epoch * steps + place, slice(None))[1] for place in range(steps)])
        assert len(set(taken.tolist())) == len(taken) == steps * batch
    assert count - steps * batch < batch


@given(batch=st.integers(1, 40), workers=st.integers(1, 40))
def test_workers_share_a_batch_out_evenly(batch: int, workers: int) -> None:
    if workers > batch:
        with pytest.raises(UsageError, match="raise batch_size"):
            worker_lanes(batch, 0, workers)
        return
    lanes = [range(*worker_lanes(batch, rank, workers).indices(batch)) for rank in range(workers)]
    assert [lane for part in lanes for lane in part] == list(range(batch))
    assert max(map(len, lanes)) - min(map(len, lanes)) <= 1


def test_any_step_can_be_asked_for_first() -> None:
    items = index_of(200)
    order = TrainingOrder(items, SQUARE, 8, 3)
    straight = [order.items(step, slice(None))[1].tolist() for step in range(80)]
    for step in (79, 26, 25, 24, 3):
        assert TrainingOrder(items, SQUARE, 8, 3).items(step, slice(None))[1].tolist() == straight[step]
        assert TrainingOrder(items, SQUARE, 8, 3).items(step, slice(2, 5))[1].tolist() == straight[step][2:5]
    assert straight[:25] != straight[25:50]
    assert TrainingOrder(items, SQUARE, 8, 4).items(0, slice(None))[1].tolist() != straight[0]


def test_a_lane_reads_few_groups_in_a_window_and_a_batch_comes_of_many() -> None:
    order = TrainingOrder(index_of(32 * 64, per_group=32), SQUARE, 16, 0)
    plan = order.epoch(0)
    window = plan.item_SG[:WINDOW]
    assert all(len(set((window[:, lane] // 32).tolist())) <= 2 for lane in range(16))
    assert np.mean([len(set((row // 32).tolist())) for row in plan.item_SG]) > 13
    # what stands together in the data does not come in its order
    assert (np.diff(window[:, 0]) < 0).any()


def test_windows_cover_the_steps_and_keep_to_epochs() -> None:
    order = TrainingOrder(index_of(8 * 37), SQUARE, 8, 0)
    assert list(order.windows(5, 45)) == [range(5, 8), range(8, 16), range(16, 24), range(24, 32), range(32, 37), range(37, 45)]
    assert list(order.windows(7, 7)) == []


def test_buckets_have_the_area_of_their_square() -> None:
    assert make_buckets((512,), aspects=False) == (Bucket(512, 512),)
    buckets = make_buckets((512, 1024), aspects=True)
    assert len(set(buckets)) == len(buckets) == 14
    for bucket in buckets:
        side = 512 if bucket.width * bucket.height < 640**2 else 1024
        assert 0.85 < bucket.width * bucket.height / side**2 < 1.15
        assert bucket.width % 64 == bucket.height % 64 == 0


def test_photos_go_to_the_bucket_of_their_aspect_and_no_larger_than_they_are() -> None:
    buckets = make_buckets((512, 1024), aspects=True)
    sizes = [(600, 600)] * 40 + [(2000, 1333)] * 40 + [(1080, 1920)] * 40 + [(0, 0)] * 8
    order = TrainingOrder(index_of(128, sizes=sizes), buckets, 4, 0)
    seen: dict[int, set[Bucket]] = {}
    for step in range(order.steps_in(0) + order.steps_in(1)):
        bucket, items, _ = order.items(step, slice(None))
        for item in items.tolist():
            seen.setdefault(item // 40, set()).add(bucket)
    assert seen[0] == {Bucket(512, 512)}
    assert {bucket.width > bucket.height for bucket in seen[1]} == {True}
    assert {bucket.width < bucket.height for bucket in seen[2]} == {True}
    assert {bucket.width * bucket.height > 900_000 for bucket in seen[1]} == {False, True}
    assert seen[3] == {Bucket(512, 512)}


def test_an_epoch_without_a_whole_batch_still_has_a_step() -> None:
    sizes = [(2000, 2000)] * 6
    order = TrainingOrder(index_of(6, sizes=sizes), make_buckets((512, 1024), aspects=False), 3, 1)
    for step in range(12):
        bucket, items, _ = order.items(step, slice(None))
        assert len(items) == 3
        assert bucket in order.buckets


def test_several_seeds_differ_and_index_order_is_what_counts() -> None:
    items = index_of(64)
    other = replace(items, key_N=items.key_N[::-1].copy())
    assert TrainingOrder(items, SQUARE, 4, 0).items(0, slice(None))[1].tolist() == TrainingOrder(other, SQUARE, 4, 0).items(0, slice(None))[
        1
    ].tolist()
