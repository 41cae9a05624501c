"""Training on cached latents equals encoding at the step: the same losses, whatever is drawn; and what does not fit is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from core import storage
from core.conditioning import ConditioningKind
from core.discriminator_config import DiscriminatorConfig
from core.errors import UsageError
from core.latent_cache import LATENTS_FIELD, LatentsUnusable
from core.latent_encoding import encode_pictures, vae_fingerprint
from core.ledger import write_shard
from core.model_card import ModelCard
from core.record import RECORD_SCHEMA
from jobs.encode import view_of_record
from tests.models import write_pipeline
from tests.random_models import random_prompt, random_unet, random_vae, scheduler
from tests.training.support import triplet, write_triplets
from training.discriminator import DiscriminatorObjective
from training.feed import FeedSettings, Share, ShareMaker, ThreadFeed, held_out_batches
from training.index import Selection, read_index
from training.latents import LatentSettings, latent_settings
from training.lcm import LcmObjective, LcmSettings
from training.mask_augmentation import UNCHANGED, MaskAugmentation
from training.objective import Batch, LoraSettings
from training.order import Bucket, TrainingOrder
from training.pair_augmentation import PairAugmentation
from training.preparation import feed_settings
from training.ray_feed import FeedPlan, RayFeed
from training.remover import RemoverObjective
from training.remover_parts import RemoverParts
from training.remover_settings import RemoverSettings
from training.settings import DataSettings, TrainSettings

SIZE, COUNT = 64, 6
PLAIN = PairAugmentation(size=SIZE, brightness=0, contrast=0, saturation=0, hue=0, mask=UNCHANGED)
VAE = vae_fingerprint(random_vae())


def write_cache(folder: Path, dtype: Any = "float32", kinds: tuple[ConditioningKind, ...] = ("masked", "prefilled")) -> str:
    """What cleanplate encode writes, of triplets that are broader than high and all judged; with several kinds of sources at once."""
    vae, rows = random_vae(), []
    for number in range(COUNT):
        record = triplet(number, width=120, height=80)
        erased = triplet(number + 50, width=120, height=80)["source"]
        view = view_of_record({**record, "erased": erased, "verdict": ("accepted", "rejected")[number % 2]}, SIZE, 200.0)
        found = [encode_pictures(vae, view.pictures, view.mask, kind, fingerprint=VAE, dtype=dtype) for kind in ("full", *kinds)]
        both = dataclasses.replace(found[0], moments={name: value for one in found for name, value in one.moments.items()})
        rows.append({**view.record, "latents": both.value()})
    for number in range(2):
        part = pa.Table.from_pylist(rows[number::2], RECORD_SCHEMA.append(LATENTS_FIELD))
        write_shard(storage.join(str(folder), f"part-0000-{number}.parquet"), part)
    return str(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_cache(tmp_path_factory.mktemp("cache"))


def maker(data: str, kind: ConditioningKind = "full", *, judged: bool = False, **changes: Any) -> ShareMaker:
    augmentation = dataclasses.replace(PLAIN, **changes)
    settings = FeedSettings(augmentation=augmentation, judged=judged, seed=3, latents=LatentSettings(vae=VAE, conditioning=kind))
    index = read_index(data, Selection(judged=judged, targets=not judged))
    return ShareMaker(TrainingOrder(index, (Bucket(SIZE, SIZE),), 3, 3), settings)


def parts(**changes: Any) -> RemoverParts:
    made = RemoverParts(random_unet(), random_vae(), scheduler("euler"), random_prompt(), ModelCard(size=SIZE))
    return dataclasses.replace(made, **{"null_prompt": random_prompt(9), **changes})


def uncached(batch: Batch) -> Batch:
    return dataclasses.replace(batch, target_moments_B2Lhw=None, source_moments_B2Lhw=None)


def encoded_pictures(vae: Any, call: Callable[[], Any]) -> tuple[Any, int]:
    """What ``call`` gives, and how many pictures ``vae`` encoded for it."""
    counts: list[int] = []
    hook = vae.encoder.register_forward_hook(lambda *call: counts.append(len(call[1][0])))
    try:
        return call(), sum(counts)
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", ["full", "masked", "prefilled"])
def test_a_removers_loss_is_that_of_encoding_at_the_step(cache: str, kind: ConditioningKind) -> None:
    objective = RemoverObjective(parts(), RemoverSettings(conditioning=kind))
    for share in ThreadFeed(maker(cache, kind)).shares(0, 4, 0, 1):
        batch = share.batch()
        cached, none = encoded_pictures(objective.parts.vae, lambda batch=batch: objective.loss(batch))
        fresh, both = encoded_pictures(objective.parts.vae, lambda batch=batch: objective.loss(uncached(batch)))
        assert (none, both) == (0, 6)
        torch.testing.assert_close(cached.total, fresh.total, atol=1e-6, rtol=1e-6)


def test_half_precision_changes_a_loss_by_little(tmp_path: Path) -> None:
    objective = RemoverObjective(parts(), RemoverSettings(conditioning="masked"))
    batch = maker(write_cache(tmp_path, "float16"), "masked").share(0, slice(None)).batch()
    assert batch.target_moments_B2Lhw is not None
    assert batch.target_moments_B2Lhw.dtype == torch.float16
    torch.testing.assert_close(objective.loss(batch).total, objective.loss(uncached(batch)).total, atol=1e-4, rtol=1e-3)


def test_the_source_is_encoded_where_masks_change(cache: str) -> None:
    changed = MaskAugmentation(dilate=1.0, erode=0.0)
    for kind, left in (("masked", 3), ("prefilled", 3), ("full", 0)):
        objective = RemoverObjective(parts(), RemoverSettings(conditioning=kind))  # type: ignore[arg-type]
        batch = maker(cache, kind, mask=changed).share(0, slice(None)).batch()  # type: ignore[arg-type]
        cached, encoded = encoded_pictures(objective.parts.vae, lambda batch=batch, objective=objective: objective.loss(batch))
        assert encoded == left
        torch.testing.assert_close(cached.total, objective.loss(uncached(batch)).total, atol=1e-6, rtol=1e-6)


def test_an_item_with_nothing_to_remove_is_its_own_target(cache: str) -> None:
    objective = RemoverObjective(parts(), RemoverSettings(conditioning="masked"))
    shares = list(ThreadFeed(maker(cache, "masked", blank=0.5)).shares(0, 4, 0, 1))
    blank = np.concatenate([~share.mask.any(axis=(1, 2)) for share in shares])
    assert 0 < blank.sum() < len(blank)
    for share in shares:
        cached, encoded = encoded_pictures(objective.parts.vae, lambda share=share: objective.loss(share.batch()))
        assert encoded == 0
        torch.testing.assert_close(cached.total, objective.loss(uncached(share.batch())).total, atol=1e-6, rtol=1e-6)
    # where masks change, sources are encoded whoever is in the batch
    changing = maker(cache, "masked", blank=1.0, mask=MaskAugmentation()).share(0, slice(None))
    assert changing.source_moments is None
    np.testing.assert_array_equal(changing.source, changing.target)


def test_distillation_takes_cached_latents(cache: str) -> None:
    made = LcmObjective(parts(card=ModelCard(size=SIZE, conditioning="masked")), LcmSettings(lora=LoraSettings(rank=2, alpha=2.0)))
    batch = maker(cache, "masked", mask=UNCHANGED).share(1, slice(None)).batch()
    cached, encoded = encoded_pictures(made.parts.vae, lambda: made.loss(batch))
    assert encoded == 0
    torch.testing.assert_close(cached.total, made.loss(uncached(batch)).total, atol=1e-6, rtol=1e-6)


def test_a_discriminator_takes_those_of_the_erasure(cache: str) -> None:
    made = DiscriminatorObjective(parts(), DiscriminatorConfig(size=SIZE, lora_rank=2, lora_alpha=2))
    batch = maker(cache, judged=True, mask=MaskAugmentation()).share(0, slice(None)).batch()
    cached, encoded = encoded_pictures(made.parts.vae, lambda: made.logits(batch))
    assert encoded == 0
    torch.testing.assert_close(cached, made.logits(uncached(batch)), atol=1e-5, rtol=1e-5)
    assert made.loss(batch).count == 3


def test_an_items_moments_depend_on_item_and_epoch_alone(cache: str) -> None:
    whole = list(ThreadFeed(maker(cache, "masked")).shares(0, 8, 0, 1))
    parts_of = [list(ThreadFeed(maker(cache, "masked"), threads=1).shares(3, 8, rank, 3)) for rank in range(3)]
    seen: dict[bytes, set[bytes]] = {}
    for step, share in enumerate(whole):
        assert share.target_moments is not None
        for moments, pixels in zip(share.target_moments, share.target, strict=True):
            seen.setdefault(min(pixels.tobytes(), np.ascontiguousarray(pixels[:, ::-1]).tobytes()), set()).add(moments.tobytes())
        if step >= 3:
            for name in ("target_moments", "source_moments", "target"):
                put_together = np.concatenate([getattr(part[step - 3], name) for part in parts_of])
                np.testing.assert_array_equal(put_together, getattr(share, name))
    assert len(seen) == COUNT
    # every picture has two orientations, and flips take both
    assert max(map(len, seen.values())) == 2
    again = Share.from_row(whole[0].row())
    for name in ("target_moments", "source_moments"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole[0], name))
        assert getattr(again, name).dtype == np.float32


def test_held_out_items_take_their_latents_too(cache: str) -> None:
    made = maker(cache, "masked", mask=MaskAugmentation())
    shares = held_out_batches(made.order.index, made.settings, SIZE, 2, 4)
    assert [len(share.seeds) for share in shares] == [2, 2]
    assert all(share.source_moments is not None for share in shares)


def test_a_cache_that_does_not_fit_is_refused_in_one_line(cache: str, tmp_path: Path) -> None:
    made = maker(cache)
    other = dataclasses.replace(made.settings, latents=LatentSettings(vae="0" * 32, conditioning="full"))
    with pytest.raises(LatentsUnusable, match=f"autoencoder {VAE[:12]} and the model's is 000000000000.*cleanplate encode"):
        list(ThreadFeed(ShareMaker(made.order, other)).shares(0, 1, 0, 1))
    larger = ShareMaker(TrainingOrder(made.order.index, (Bucket(96, 96),), 3, 3), made.settings)
    with pytest.raises(LatentsUnusable, match=r"64 x 64 pixels and training pictures are 96 x 96.*--size 96"):
        larger.share(0, slice(None))
    with pytest.raises(LatentsUnusable, match="no column latents; run cleanplate encode"):
        list(ThreadFeed(maker(write_triplets(str(tmp_path / "plain"), 4))).shares(0, 1, 0, 1))
    with pytest.raises(UsageError, match=r"changes colours or light \(hue 9\)"):
        FeedSettings(augmentation=dataclasses.replace(PLAIN, hue=9), latents=made.settings.latents)
    with pytest.raises(UsageError, match="shadow_depth to null"):
        FeedSettings(augmentation=dataclasses.replace(PLAIN, shadow_depth=(0.1, 0.2)), latents=made.settings.latents)


def test_what_a_training_takes_follows_from_its_settings(tmp_path: Path) -> None:
    model = str(write_pipeline(tmp_path / "model", prompt_file=True))
    data = DataSettings(sizes=(SIZE,), augmentation=PLAIN, latents=True, synthetic=False)
    fingerprints = set()
    for objective, kind in (("remover", "prefilled"), ("lcm", "masked"), ("discriminator", "full")):
        settings = TrainSettings(objective=objective, model=model, remover=RemoverSettings(conditioning="prefilled"), data=data)
        found = latent_settings(settings)
        assert found is not None
        assert found.conditioning == kind
        fingerprints.add(found.vae)
        assert feed_settings(settings).latents == found
    assert len(fingerprints) == 1
    assert feed_settings(TrainSettings(objective="remover", model=model)).latents is None
    for objective, changes, says in (
        ("remover", {"sizes": (64, 96)}, "one square size"),
        ("remover", {"aspects": True}, "one square size"),
        ("remover", {"augmentation": PairAugmentation()}, "changes colours"),
        ("discriminator", {"synthetic": True}, "edits them anew"),
    ):
        with pytest.raises(UsageError, match=says):
            TrainSettings(objective=objective, model=model, data=dataclasses.replace(data, **changes))


@pytest.mark.usefixtures("cluster")
def test_the_feed_on_ray_brings_the_same_moments(cache: str) -> None:
    made = [maker(cache, "masked", mask=mask) for mask in (UNCHANGED, MaskAugmentation())]
    plans = [FeedPlan(each.order.index, each.order.buckets, 3, 3, each.settings) for each in made]
    streams = [list(RayFeed(plan, task_cpus=0.5, tasks=1).shares(0, 3, 0, 1)) for plan in plans]
    for each, found, known in zip(made, streams, (True, False), strict=True):
        expected = list(ThreadFeed(each).shares(0, 3, 0, 1))
        for one, other in zip(expected, found, strict=True):
            for name in ("target", "target_moments", "source_moments"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert (other.source_moments is not None) == known
