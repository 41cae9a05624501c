"""What a training needs before its first step, with Ray and without: items, the order they come in, and an output that is its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from core import storage
from core.errors import ObjectMissing, UsageError
from training.feed import Feed, FeedSettings, Share, ShareMaker, ThreadFeed, held_out_batches
from training.index import EFFECTS, Selection, TrainingIndex, read_index
from training.latents import latent_settings
from training.order import Bucket, TrainingOrder, make_buckets
from training.settings import TrainSettings

log = logging.getLogger(__name__)

SETTINGS_FILE: Final = "settings.json"
FREE: Final = ("steps", "micro_batch_size", "checkpoint_every", "validate_every", "picture_items", "keep_last", "keep_best", "log_every")
"""Settings of the loop that may differ when a training goes on."""


def data_facts(uri: str, index: TrainingIndex, held: TrainingIndex | None) -> dict[str, Any]:
    """What a model's card says of its data."""
    return {"uri": uri, "items": len(index), "held_out": len(held) if held is not None else 0, "fingerprint": index.fingerprint}


def read_items(settings: TrainSettings, data: str, validation: str | None) -> tuple[TrainingIndex, TrainingIndex | None]:
    """Items to train on and items held out.

    Raises:
        UsageError: there are none, or too few for a batch.
    """
    judged = settings.objective == "discriminator"
    selection = Selection(judged=judged, targets=not judged or settings.data.synthetic, min_score=settings.data.min_score)
    index = read_index(data, selection)
    if validation is not None:
        held = read_index(storage.normalize_uri(validation), selection)
    else:
        index, held = index.split(settings.data.validation_share)
        if settings.data.validation_share and not len(held):
            log.warning("a share of %g of %d items is none: nothing is held out for validation", settings.data.validation_share, len(index))
    remover = settings.remover
    if settings.objective == "remover" and remover.attention_weight > 0 and not (index.flags_N & EFFECTS).any():
        raise UsageError(
            f"the attention loss needs effect_mask, and no item of {data} has one: add it (docs/effects.md), or set "
            "remover.attention_weight 0"
        )
    TrainingOrder(index, buckets_of(settings), settings.data.batch_size, settings.loop.seed)
    return index, held if len(held) else None


def buckets_of(settings: TrainSettings) -> tuple[Bucket, ...]:
    """Sizes of training pictures."""
    return make_buckets(settings.data.sizes, aspects=settings.data.aspects)


def feed_settings(settings: TrainSettings) -> FeedSettings:
    """How items become pairs. Raises UsageError where latents are to be taken and the model cannot be found."""
    return FeedSettings(
        augmentation=settings.data.augmentation,
        judged=settings.objective == "discriminator",
        negatives=settings.data.negatives,
        clean_plates=settings.objective == "discriminator" and settings.discriminator.defect_weight > 0,
        seed=settings.loop.seed,
        max_megapixels=settings.data.max_megapixels,
        latents=latent_settings(settings),
    )


def held_out_shares(settings: TrainSettings, held: TrainingIndex | None) -> list[Share]:
    """The shares of validation."""
    if held is None or not settings.data.validation_items:
        return []
    size = min(settings.loop.micro_batch_size, settings.data.batch_size)
    return held_out_batches(held, feed_settings(settings), settings.data.sizes[0], size, settings.data.validation_items)


def thread_feed(settings: TrainSettings, index: TrainingIndex, threads: int = 4) -> Feed:
    """A feed without Ray."""
    order = TrainingOrder(index, buckets_of(settings), settings.data.batch_size, settings.loop.seed)
    return ThreadFeed(ShareMaker(order, feed_settings(settings)), threads)


@contextmanager
def admitted(folder: str, settings: TrainSettings, facts: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Lets a training go on in its own output, and no other, during the block.

    Where the block ends in a ``UsageError``, a training that had not begun before leaves nothing that would stand in the way of the next.

    Raises:
        UsageError: the output belongs to a training with other settings or data.
    """
    uri = storage.join(folder, SETTINGS_FILE)
    wanted = {"settings": settings.as_dict(), "fingerprint": facts["fingerprint"]}
    found = read_json(uri)
    if found is not None and not overwrite:
        changed = list(_differences(found["settings"], wanted["settings"]))
        if found["fingerprint"] != wanted["fingerprint"]:
            changed.append("the items of the data")
        if changed:
            raise UsageError(
                f"{folder} holds a training with other settings ({'; '.join(changed)}): use those, give another --output, or start anew "
                "with --overwrite"
            )
    elif found is not None:
        store = storage.storage_for(folder)
        for entry in list(store.list(folder)):
            if "/lease/" not in entry.uri:
                store.delete(entry.uri)
    storage.storage_for(uri).write(uri, json.dumps(wanted, indent=1, sort_keys=True).encode())
    try:
        yield
    except UsageError:
        if found is None:
            storage.storage_for(uri).delete(uri)
        raise


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [line for name in names for line in _differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)]
    if old == new or path.removeprefix("loop.") in FREE:
        return []
    return [f"{path}: {old!r} -> {new!r}"]


def read_json(uri: str) -> dict[str, Any] | None:
    """The JSON object at ``uri``; None where there is none.

    Raises:
        UsageError: it is something else.
    """
    try:
        return dict(json.loads(storage.storage_for(uri).read(uri)))
    except ObjectMissing:
        return None
    except ValueError as error:
        raise UsageError(f"{uri} is not JSON ({error}); it was not written by cleanplate: give another --output") from error
