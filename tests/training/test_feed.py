"""A share is a function of the step and the lanes: threads, Ray's tasks, one worker or three, all make the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import ray

from core.errors import ItemError, UsageError
from core.images import encode_image
from core.record import image_value
from tests.training.support import triplet, write_triplets
from training.feed import FeedSettings, Share, ShareMaker, ThreadFeed, held_out_batches
from training.index import Selection, read_index
from training.order import Bucket, TrainingOrder, make_buckets
from training.pair_augmentation import PairAugmentation
from training.ray_feed import FeedPlan, RayFeed

SETTINGS = FeedSettings(augmentation=PairAugmentation(size=64), seed=3)
SQUARE = (Bucket(64, 64),)


def maker(folder: str, batch: int = 4, buckets: tuple[Bucket, ...] = SQUARE, settings: FeedSettings = SETTINGS) -> ShareMaker:
    index = read_index(folder, Selection(judged=settings.judged))
    return ShareMaker(TrainingOrder(index, buckets, batch, settings.seed), settings)


def same(one: Share, other: Share) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(Share))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_triplets(str(tmp_path_factory.mktemp("data")), 18)


def test_workers_shares_put_together_are_the_batch(data: str) -> None:
    whole = list(ThreadFeed(maker(data)).shares(0, 9, 0, 1))
    assert [share.step for share in whole] == list(range(9))
    assert [share.epoch for share in whole] == [0] * 4 + [1] * 4 + [2]
    for world in (2, 3):
        parts = [list(ThreadFeed(maker(data)).shares(0, 9, rank, world)) for rank in range(world)]
        for step, share in enumerate(whole):
            for name in ("source", "target", "mask", "effect_mask", "seeds"):
                put_together = np.concatenate([getattr(part[step], name) for part in parts])
                np.testing.assert_array_equal(put_together, getattr(share, name))


def test_a_feed_goes_on_where_it_is_asked_to(data: str) -> None:
    whole = list(ThreadFeed(maker(data), threads=3, ahead=5).shares(0, 20, 0, 1))
    later = list(ThreadFeed(maker(data), threads=1, ahead=1).shares(7, 20, 0, 1))
    assert all(same(one, other) for one, other in zip(whole[7:], later, strict=True))
    assert not same(whole[0], whole[4])


@pytest.mark.usefixtures("cluster")
def test_ray_makes_the_same_shares(data: str) -> None:
    settings = dataclasses.replace(SETTINGS, seed=3)
    index = read_index(data, Selection())
    plan = FeedPlan(ray.put(index), make_buckets((64, 96), aspects=True), 2, 3, settings)
    threads = ThreadFeed(ShareMaker(TrainingOrder(index, plan.buckets, 2, 3), settings))
    for rank, start in ((0, 0), (1, 11)):
        expected = list(threads.shares(start, 24, rank, 2))
        made = list(RayFeed(plan, task_cpus=0.5, tasks=2).shares(start, 24, rank, 2))
        assert all(same(one, other) for one, other in zip(expected, made, strict=True))
    assert list(RayFeed(plan).shares(4, 4, 0, 1)) == []


def test_a_share_becomes_a_batch(data: str) -> None:
    share = maker(data).share(0, slice(1, 3))
    batch = share.batch()
    assert batch.source_BHW3.shape == (2, 64, 64, 3)
    assert batch.has_effect_B is not None
    assert batch.has_effect_B.all()
    assert batch.label_B is None
    assert batch.seeds_B is not None
    assert batch.seeds_B.tolist() == share.seeds.tolist()
    assert same(Share.from_row(share.row()), share)


def test_noise_differs_between_epochs_and_not_between_runs(data: str) -> None:
    seeds = {
        epoch: {int(seed) for share in ThreadFeed(maker(data)).shares(4 * epoch, 4 * epoch + 4, 0, 1) for seed in share.seeds}
        for epoch in (0, 1)
    }
    assert len(seeds[0]) == len(seeds[1]) == 16
    assert not seeds[0] & seeds[1]


def test_a_bad_item_is_replaced_by_another_of_the_step(tmp_path: Path) -> None:
    broken = {"source": image_value(triplet(5)["source"]["bytes"][:200])}
    folder = write_triplets(str(tmp_path), 8, changed={5: broken})
    share = maker(folder, batch=8).share(0, slice(None))
    assert len(share.source) == 8
    assert len(share.problems) == 1
    assert "row 1 of" in share.problems[0]
    assert "the photo is cut off" in share.problems[0]
    assert len(set(share.seeds.tolist())) == 8
    # whoever works out the lane finds the same item in the bad one's place
    alone = [maker(folder, batch=8).share(0, slice(lane, lane + 1)) for lane in range(8)]
    np.testing.assert_array_equal(np.concatenate([one.source for one in alone]), share.source)
    assert sum(len(one.problems) for one in alone) == 1


def test_a_step_of_bad_items_alone_says_so(tmp_path: Path) -> None:
    small = image_value(encode_image(np.zeros((8, 8, 3), np.uint8)))
    folder = write_triplets(str(tmp_path), 4, target=small)
    with pytest.raises(ItemError, match=r"none of the 4 items of step 0 can be used: row . of .*: the target is 8 x 8"):
        maker(folder).share(0, slice(None))


def test_judged_items_come_with_their_labels(tmp_path: Path) -> None:
    erasure = triplet(1)["target"]
    changed = {number: {"erased": erasure, "verdict": "accepted" if number % 2 else "rejected", "target": None} for number in range(6)}
    folder = write_triplets(str(tmp_path), 12, changed=changed)
    settings = FeedSettings(augmentation=PairAugmentation(size=64), judged=True)
    shares = list(ThreadFeed(maker(folder, batch=12, settings=settings)).shares(0, 4, 0, 1))
    labels = np.concatenate([share.label for share in shares])
    assert set(labels.tolist()) == {0.0, 1.0}
    assert shares[0].batch().label_B is not None


def test_judged_items_bring_their_clean_plates_where_they_are_known(tmp_path: Path) -> None:
    # every third item was judged and has a clean plate, every third was judged and has none; of the others an edit is made
    erasure = triplet(1)["target"]
    judged = {"erased": erasure, "verdict": "rejected"}
    changed: dict[int, dict[str, object]] = dict.fromkeys(range(0, 12, 3), judged)
    changed |= {number: judged | {"target": None} for number in range(1, 12, 3)}
    folder = write_triplets(str(tmp_path), 12, changed=changed)
    plain = FeedSettings(augmentation=PairAugmentation(size=64, flip=1.0), judged=True, clean_plates=True)
    share = maker(folder, batch=12, settings=plain).share(0, slice(None))
    known, clean = share.has_clean, share.clean
    assert known is not None
    assert clean is not None
    assert int(known.sum()) == 8
    assert not clean[~known].any()
    # the plate went the way of the photo: beside the object and its shadow they are the same
    beside = (share.mask == 0) & (share.effect_mask == 0) & known[:, None, None]
    np.testing.assert_array_equal(clean[beside], share.source[beside])
    inside = (share.mask > 0) & known[:, None, None]
    assert np.abs(clean[inside].astype(int) - share.source[inside]).mean() > 10
    batch = Share.from_row(share.row()).batch()
    assert batch.clean_BHW3 is not None
    np.testing.assert_array_equal(batch.clean_BHW3.numpy(), clean)
    assert same(Share.from_row(share.row()), share)
    without = maker(folder, batch=12, settings=dataclasses.replace(plain, clean_plates=False)).share(0, slice(None))
    assert without.clean is None
    np.testing.assert_array_equal(without.target, share.target)


def test_validation_is_always_on_the_same_pictures(data: str) -> None:
    index = read_index(data, Selection())
    shares = held_out_batches(index, SETTINGS, 64, batch_size=4, most=10)
    assert [len(share.source) for share in shares] == [4, 4]
    assert all(same(*pair) for pair in zip(shares, held_out_batches(index, SETTINGS, 64, batch_size=4, most=10), strict=True))
    assert held_out_batches(index, SETTINGS, 64, batch_size=4, most=0) == []


def test_too_many_workers_are_refused(data: str) -> None:
    with pytest.raises(UsageError, match="5 workers share a batch of 4"):
        next(ThreadFeed(maker(data)).shares(0, 1, 4, 5))
