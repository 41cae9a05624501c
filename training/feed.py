"""From items of a step to a batch: reading, decoding, augmenting, and what a worker's share of a step looks like on its way.

A share is a function of the step, the lanes and the settings. Where it is worked out (threads of the trainer's process, or Ray Data's tasks
on any node), and when, changes nothing.

Legend for shape suffixes: B items of a share, H W picture sides in pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from core.errors import CleanplateError, ItemError, StorageUnavailable, UsageError
from core.fetch import Fetcher
from core.images import DEFAULT_MAX_MEGAPIXELS
from core.latent_cache import LATENTS_COLUMN, CachedMoments, LatentReader, LatentsUnusable
from core.parallel import map_ahead
from core.record import item_seed
from training.index import JUDGED, TARGET, TrainingIndex
from training.latents import ItemMoments, LatentSettings, check_augmentation, check_size, chosen, draw_choice, item_moments
from training.mask_augmentation import UNCHANGED
from training.negatives import NegativeSettings, judged_pair
from training.order import TrainingOrder, worker_lanes
from training.pair_augmentation import PairAugmentation, augment_pair
from training.triplets import AnswerColumn, TrainingPair, training_pair

if TYPE_CHECKING:
    from training.objective import Batch

Records = Mapping[int, dict[str, Any]]
JUDGEMENT_TRIES: Final = 16
_NO_LABEL: Final = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """What becomes of an item before the network sees it.

    Attributes:
        augmentation: crop, flip, colours and mask.
        judged: whether items are judged erasures (for a discriminator) and not pairs with a clean plate.
        negatives: how judged items are made of items that have a clean plate and no judgement.
        clean_plates: whether judged items bring their clean plate, where it is known.
        seed: of the training; an item's augmentation and noise depend on it, the item's id and the epoch.
        max_megapixels: larger photos are left out.
        latents: what is taken from the data's latents; None: nothing, and data need not have them.

    Raises:
        UsageError: latents are taken and colours changed.
    """

    augmentation: PairAugmentation = field(default_factory=PairAugmentation)
    judged: bool = False
    negatives: NegativeSettings = field(default_factory=NegativeSettings)
    clean_plates: bool = False
    seed: int = 0
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
    latents: LatentSettings | None = None

    def __post_init__(self) -> None:
        if self.latents is not None:
            check_augmentation(self.augmentation)


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A worker's items of one step, as arrays.

    Attributes:
        step, epoch: where in the training.
        source, target: (B, H, W, 3) uint8 RGB.
        mask, effect_mask: (B, H, W) uint8, 255 = set; effect masks are 0 where they are not known.
        has_effect: (B,) bool, where they are.
        label: (B,) float32, 0 to 1; -1 where nothing was judged.
        seeds: (B,) int64, of an item's random numbers in this epoch.
        problems: what could not be used, a line each; another item of the same step stands in its place.
        clean: (B, H, W, 3) uint8 RGB, clean plates of judged items; 0 where they are not known, None where they are not asked for.
        has_clean: (B,) bool, where they are known.
        target_moments, source_moments: (B, 2 L, h, w) float16 or float32, cached moments of the targets and of the conditioning pictures;
            None where these are to be encoded.
    """

    step: int
    epoch: int
    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    effect_mask: np.ndarray
    has_effect: np.ndarray
    label: np.ndarray
    seeds: np.ndarray
    problems: tuple[str, ...] = ()
    clean: np.ndarray | None = None
    has_clean: np.ndarray | None = None
    target_moments: np.ndarray | None = None
    source_moments: np.ndarray | None = None

    def row(self) -> dict[str, Any]:
        """One row of a Ray dataset: arrays as bytes, which pass through Arrow without being looked at."""
        given = {name: getattr(self, name) for name in _DTYPES}
        arrays = {name: np.ascontiguousarray(array).tobytes() for name, array in given.items() if array is not None}
        moments = {name: array.tobytes() for name in _MOMENTS if (array := getattr(self, name)) is not None}
        one = self.target_moments
        kind = {"moments_shape": list(one.shape), "moments_dtype": one.dtype.name} if one is not None else {}
        light = {"step": self.step, "epoch": self.epoch, "shape": list(self.mask.shape), "problems": list(self.problems)}
        return {**light, **arrays, **moments, **kind}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Share:
        """What ``row`` made."""
        size = tuple(int(side) for side in row["shape"])
        shapes = {"source": (*size, 3), "target": (*size, 3), "mask": size, "effect_mask": size, "clean": (*size, 3)}
        kept = {name: dtype for name, dtype in _DTYPES.items() if row.get(name) is not None}
        arrays = {name: np.frombuffer(row[name], dtype).reshape(shapes.get(name, size[:1])) for name, dtype in kept.items()}
        for name in _MOMENTS:
            if row.get(name) is not None:
                arrays[name] = np.frombuffer(row[name], str(row["moments_dtype"])).reshape([int(side) for side in row["moments_shape"]])
        return cls(int(row["step"]), int(row["epoch"]), problems=tuple(str(line) for line in row["problems"]), **arrays)

    def batch(self) -> Batch:
        """The same as tensors on the CPU."""
        import torch

        from training.objective import Batch

        def tensor(array: np.ndarray) -> torch.Tensor:
            # arrays out of Arrow are read-only, which torch warns of
            return torch.from_numpy(array if array.flags.writeable else array.copy())

        return Batch(
            source_BHW3=tensor(self.source),
            target_BHW3=tensor(self.target),
            mask_BHW=tensor(self.mask),
            effect_mask_BHW=tensor(self.effect_mask),
            has_effect_B=tensor(self.has_effect),
            label_B=None if (self.label < 0).any() else tensor(self.label),
            seeds_B=tensor(self.seeds),
            clean_BHW3=None if self.clean is None else tensor(self.clean),
            has_clean_B=None if self.has_clean is None else tensor(self.has_clean),
            target_moments_B2Lhw=None if self.target_moments is None else tensor(self.target_moments),
            source_moments_B2Lhw=None if self.source_moments is None else tensor(self.source_moments),
        )


_DTYPES: Final = {
    "source": np.dtype(np.uint8),
    "target": np.dtype(np.uint8),
    "mask": np.dtype(np.uint8),
    "effect_mask": np.dtype(np.uint8),
    "has_effect": np.dtype(bool),
    "label": np.dtype(np.float32),
    "seeds": np.dtype(np.int64),
    "clean": np.dtype(np.uint8),
    "has_clean": np.dtype(bool),
}
_MOMENTS: Final = ("target_moments", "source_moments")


class ShareMaker:
    """Makes shares. May be used by many threads; one row group of the data is kept for each."""

    def __init__(self, order: TrainingOrder, settings: FeedSettings) -> None:
        self.order, self.settings = order, settings
        self._local = threading.local()

    def read(self, steps: range, lanes: slice) -> Records:
        """The records of some lanes of a window of steps, by item; every run of neighbours in the data is read once.

        Those that cannot be read are not in it: ``share`` says why.
        """
        items = np.unique(np.concatenate([self.order.items(step, lanes)[1] for step in steps]))
        index = self.order.index
        found: dict[int, dict[str, Any]] = {}
        for item in items[np.lexsort((index.row_N[items], index.shard_N[items]))].tolist():
            try:
                found[item] = self._record(item)
            except (StorageUnavailable, LatentsUnusable):
                raise
            except CleanplateError:
                continue
        return found

    def share(self, step: int, lanes: slice, records: Records | None = None) -> Share:
        """The items of some lanes of a step; ``records``, by ``read``, saves reading them one by one.

        An item that cannot be used is replaced by the next of the same step that can, so that the number of items never changes and does
        not depend on who works the step out.

        Raises:
            ItemError: none of the step's items can be used.
            LatentsUnusable: the data's latents are of another autoencoder or size, or there are none.
            StorageUnavailable: the store does not answer.
        """
        bucket, items_G, epoch = self.order.items(step, slice(None))
        pairs: list[TrainingPair] = []
        moments: list[ItemMoments] = []
        seeds: list[int] = []
        problems: list[str] = []
        count = len(items_G)
        for lane in range(*lanes.indices(count)):
            for shift in range(count):
                place = (lane + shift) % count
                try:
                    neighbour = int(items_G[(place + 1) % count])
                    pair, found = self._pair(int(items_G[place]), neighbour, epoch, (bucket.width, bucket.height), records or {})
                except (StorageUnavailable, LatentsUnusable):
                    raise
                except CleanplateError as error:
                    problems.append(f"{self.order.index.place(int(items_G[place]))}: {error}")
                    continue
                pairs.append(pair)
                moments += [found] if found is not None else []
                # two copies of an item in one step have noise of their own
                seeds.append(item_seed(pair.id, self.settings.seed, epoch * count + shift))
                break
            else:
                raise ItemError("train", "no_items", f"none of the {count} items of step {step} can be used: {problems[-1]}")
        share = _stacked(step, epoch, pairs, moments, seeds, problems)
        return _with_clean_plates(share, pairs) if self.settings.clean_plates else share

    def _pair(
        self, item: int, neighbour: int, epoch: int, sides: tuple[int, int], records: Records
    ) -> tuple[TrainingPair, ItemMoments | None]:
        settings, flags_N = self.settings, self.order.index.flags_N
        judged = settings.judged and bool(flags_N[item] & JUDGED)
        pair = self._decoded(item, "erased" if judged else "target", records)
        if settings.judged and not judged:
            other = self._decoded(neighbour, "target", records) if neighbour != item and flags_N[neighbour] & TARGET else None
            for attempt in range(JUDGEMENT_TRIES):
                # an edit of which nobody could say whether it is good teaches nothing: another is made
                made = judged_pair(pair, other, settings.negatives, seed=settings.seed + attempt * 0x9E3779B9, epoch=epoch).pair
                if made.label is not None:
                    break
            else:
                raise ItemError("train", "no_judgement", f"record {pair.id}: none of {JUDGEMENT_TRIES} edits could be judged")
            pair = made
        if settings.latents is None:
            return augment_pair(pair, settings.augmentation, seed=settings.seed, epoch=epoch, sides=sides), None
        if settings.judged and not judged:
            raise LatentsUnusable("edits of items without a judgement have no latents; set data.synthetic or data.latents false")
        check_size((pair.source.shape[1], pair.source.shape[0]), sides)
        choice = draw_choice(pair.id, settings.augmentation, seed=settings.seed, epoch=epoch)
        record = records[item] if item in records else self._record(item)
        found = item_moments(
            CachedMoments.of(record[LATENTS_COLUMN]),
            settings.latents,
            "erased" if judged else "target",
            choice,
            masks_change=settings.augmentation.mask != UNCHANGED,
        )
        # the window of a picture of just that size is the whole picture
        return augment_pair(pair, chosen(settings.augmentation, choice), seed=settings.seed, epoch=epoch, sides=sides), found

    def _decoded(self, item: int, answer: AnswerColumn, records: Records) -> TrainingPair:
        record = records[item] if item in records else self._record(item)
        settings = self.settings
        return training_pair(record, answer=answer, clean_plate=settings.clean_plates, max_megapixels=settings.max_megapixels)

    def _record(self, item: int) -> dict[str, Any]:
        index = self.order.index
        if not hasattr(self._local, "fetcher"):
            self._local.fetcher, self._local.latents = Fetcher(index.base), LatentReader(index.base)
        record = index.record(self._local.fetcher, item, self.settings.max_megapixels)
        if self.settings.latents is not None:
            if not index.shards:
                raise LatentsUnusable(f"{index.base} holds single files, which have no latents; run cleanplate encode on them")
            record[LATENTS_COLUMN] = self._local.latents.value(index.shards[int(index.shard_N[item])], int(index.row_N[item]))
        return record


def _stacked(
    step: int, epoch: int, pairs: Sequence[TrainingPair], moments: Sequence[ItemMoments], seeds: Sequence[int], problems: Sequence[str]
) -> Share:
    sizes = sorted({pair.mask.shape for pair in pairs})
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sizes)
        raise UsageError(f"a batch has pictures of one size, got {listed}: augment them to one size first")
    sources = [each.source for each in moments if each.source is not None]
    return Share(
        step=step,
        epoch=epoch,
        source=np.stack([pair.source for pair in pairs]),
        target=np.stack([pair.target for pair in pairs]),
        mask=np.stack([pair.mask for pair in pairs]),
        effect_mask=np.stack([np.zeros_like(pair.mask) if pair.effect_mask is None else pair.effect_mask for pair in pairs]),
        has_effect=np.array([pair.effect_mask is not None for pair in pairs]),
        label=np.array([_NO_LABEL if pair.label is None else pair.label for pair in pairs], np.float32),
        seeds=np.array(seeds, np.int64),
        problems=tuple(problems),
        target_moments=np.stack([each.target for each in moments]) if moments else None,
        source_moments=np.stack(sources) if sources and len(sources) == len(pairs) else None,
    )


def _with_clean_plates(share: Share, pairs: Sequence[TrainingPair]) -> Share:
    plates = [np.zeros_like(pair.source) if pair.clean is None else pair.clean for pair in pairs]
    return replace(share, clean=np.stack(plates), has_clean=np.array([pair.clean is not None for pair in pairs]))


class Feed(Protocol):
    """Where a worker's shares come from."""

    def shares(self, start: int, stop: int, rank: int, world_size: int) -> Iterator[Share]:
        """The worker's shares of the steps from ``start`` to before ``stop``, in order."""
        ...


class ThreadFeed:
    """A feed whose shares are made by threads of this process: for one machine, tests, and machines without Ray.

    Args:
        maker: makes them.
        threads: how many at a time.
        ahead: steps that are made before they are asked for.
    """

    def __init__(self, maker: ShareMaker, threads: int = 4, ahead: int = 8) -> None:
        self.maker, self.threads, self.ahead = maker, threads, ahead

    def shares(self, start: int, stop: int, rank: int, world_size: int) -> Iterator[Share]:
        """As ``Feed.shares``."""
        lanes = worker_lanes(self.maker.order.batch_size, rank, world_size)
        with ThreadPoolExecutor(1, "read") as reading, ThreadPoolExecutor(self.threads, "feed") as pool:
            read = map_ahead(reading, lambda steps: (steps, self.maker.read(steps, lanes)), self.maker.order.windows(start, stop), 2)
            steps = ((step, records) for window, records in read for step in window)
            yield from map_ahead(pool, lambda given: self.maker.share(given[0], lanes, given[1]), steps, self.ahead)


def held_out_batches(index: TrainingIndex, settings: FeedSettings, sides: int, batch_size: int, most: int) -> list[Share]:
    """Shares of held-out items for validation, at most ``most`` items: always the same, whatever the step.

    Colours, shadows, flips and masks stay as they are in the data; crops and noise are those of epoch 0.
    """
    from training.order import Bucket

    plain = replace(
        settings.augmentation,
        size=sides,
        flip=0.0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0,
        blank=0.0,
        shadow_depth=None,
        mask=UNCHANGED,
    )
    count = min(len(index), most)
    size = min(batch_size, count)
    if not size:
        return []
    maker = ShareMaker(TrainingOrder(index, (Bucket(sides, sides),), size, settings.seed), replace(settings, augmentation=plain))
    return [maker.share(step, slice(None)) for step in range(count // size)]
