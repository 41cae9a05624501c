"""What one worker does with a block of items: fetch, decode, erase, score, encode, with the network never waiting for the codecs.

There is no Ray in it: a job runs it inside an actor, a benchmark or a test runs it in a plain loop. Items come out in the order in which
they went in, each as exactly one ``Outcome``, a record or a failure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from core import record
from core.crops import Fill
from core.eraser import Eraser
from core.erasing import Erasure, candidate_seeds, fill_crops
from core.errors import CleanplateError, ItemError, StorageUnavailable
from core.images import storable_source
from core.masks import encode_mask
from core.scoring import Scorer, score_results

FETCHES_A_THREAD: Final = 4
"""A read from an object store is milliseconds of waiting and no work, so that several lie under way for each thread that decodes."""


@dataclass(frozen=True, slots=True)
class RawItem:
    """An item as it was fetched: pictures as encoded bytes, with the names that they have in the input."""

    id: str
    source: bytes
    mask: bytes
    origin: str
    source_name: str | None = None
    mask_name: str | None = None
    target: dict[str, Any] | None = None
    effect_mask: dict[str, Any] | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: ``record`` (all columns) or ``failure`` (id, uri, stage, error, message); ``warnings`` are counted."""

    id: str
    record: dict[str, Any] | None = None
    failure: dict[str, str | None] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSettings:
    """How items are processed. Only the first group changes results."""

    seed: int = 0
    candidates: int = 1
    accept_above: float = 0.9
    uncertain_from: float = 0.5
    round: int | None = None
    image_format: str = "png"
    max_megapixels: float = 200.0

    threads: int = 2
    """Threads for decoding and encoding; ``FETCHES_A_THREAD`` times as many fetch."""
    lookahead: int = 4
    """Items that are prepared ahead of the network, above one batch."""


@dataclass(slots=True)
class _Work:
    """One item on its way. ``failure`` ends it; everything else fills up stage by stage."""

    id: str
    uri: str | None
    item: RawItem | None = None
    erasure: Erasure | None = None
    fills: list[Fill] = field(default_factory=list)
    results: list[np.ndarray] = field(default_factory=list)
    score: float | None = None
    chosen: int = 0
    outcome: Outcome | None = None


Fetched = Callable[[], RawItem]


class Workload:
    """Processes items with one eraser and, where there is one, one discriminator. Not to be shared among threads."""

    def __init__(self, eraser: Eraser, settings: WorkSettings, scorer: Scorer | None = None) -> None:
        self.eraser, self.settings, self.scorer = eraser, settings, scorer
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="workload")
        self._fetches = FETCHES_A_THREAD * settings.threads
        self._fetchers = ThreadPoolExecutor(self._fetches, thread_name_prefix="fetch")
        self._batch = max(1, eraser.batch_size // max(1, settings.candidates))

    def close(self) -> None:
        """Stop the threads."""
        for pool in (self._fetchers, self._pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def run(self, items: Iterable[tuple[str, str | None, Fetched]]) -> Iterator[Outcome]:
        """Outcomes for items given as (id, URI for messages, function that fetches them), in order.

        Raises:
            StorageUnavailable: the store does not answer. Then no item is at fault and none is counted as failed.
        """
        source = self._fetched(items)
        preparing: deque[Future[_Work]] = deque()
        finishing: deque[Future[_Work] | _Work] = deque()
        window = self._batch + self.settings.threads + self.settings.lookahead
        exhausted = False
        while True:
            while not exhausted and len(preparing) < window:
                entry = next(source, None)
                if entry is None:
                    exhausted = True
                else:
                    preparing.append(self._pool.submit(self._prepare, entry))
            if preparing:
                batch = [preparing.popleft().result() for _ in range(min(self._batch, len(preparing)))]
                finishing.extend(self._through_network(batch))
            while finishing and (not preparing or len(finishing) > window or _ready(finishing[0])):
                yield self._outcome(finishing.popleft())
            if exhausted and not preparing and not finishing:
                return

    def _fetched(self, items: Iterable[tuple[str, str | None, Fetched]]) -> Iterator[Future[_Work]]:
        """Items in order, each being fetched; those that nobody has asked for yet lie under way, as encoded bytes."""
        waiting: deque[Future[_Work]] = deque()
        for entry in items:
            waiting.append(self._fetchers.submit(self._fetch, *entry))
            if len(waiting) > self._fetches:
                yield waiting.popleft()
        yield from waiting

    @staticmethod
    def _fetch(item_id: str, uri: str | None, fetch: Fetched) -> _Work:
        work = _Work(item_id, uri)
        with _Caught(work, "fetch"):
            work.item = fetch()
        return work

    def _prepare(self, fetched: Future[_Work]) -> _Work:
        """Decode and crop; for an eraser that may run in many threads, everything else too."""
        work = fetched.result()
        if work.outcome is None and work.item is not None:
            with _Caught(work, "decode"):
                work.erasure = Erasure.open(work.item.source, work.item.mask, self.eraser.rule, self.settings.max_megapixels)
        if self.eraser.thread_safe:
            self._fill([work])
            if self.scorer is None:
                self._finish(work)
        return work

    def _through_network(self, batch: list[_Work]) -> Iterator[Future[_Work] | _Work]:
        if self.eraser.thread_safe and self.scorer is None:
            yield from batch
            return
        if not self.eraser.thread_safe:
            self._fill(batch)
        if self.scorer is not None:
            for done in [self._pool.submit(self._paste, work) for work in batch]:
                done.result()
            self._score(batch)
        for work in batch:
            yield self._pool.submit(self._finish, work)

    def _fill(self, batch: Sequence[_Work]) -> None:
        """The network; a batch that fails is repeated item by item once, so that one poison image costs one item."""
        living = [work for work in batch if work.outcome is None and work.erasure is not None]
        if not living:
            return
        try:
            self._fill_together(living)
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one item did to the batch, the others must not suffer
            _stop_on_full_device(error, self.eraser.batch_size)
            for work in living:
                with _Caught(work, "erase"):
                    self._fill_together([work])

    def _fill_together(self, works: Sequence[_Work]) -> None:
        count = self.settings.candidates
        crops = [work.erasure.crop for work in works if work.erasure is not None for _ in range(count)]
        seeds = [seed for work in works for seed in candidate_seeds(work.id, self.settings.seed, count)]
        fills = fill_crops(self.eraser, crops, seeds)
        for index, work in enumerate(works):
            work.fills = fills[index * count : (index + 1) * count]

    def _paste(self, work: _Work) -> _Work:
        if work.outcome is None and work.erasure is not None and not work.results:
            with _Caught(work, "erase"):
                work.results = work.erasure.results(work.fills)
        return work

    def _score(self, batch: Sequence[_Work]) -> None:
        if self.scorer is None:
            return
        for work in batch:
            if work.outcome is None and work.erasure is not None:
                with _Caught(work, "score"):
                    scores = score_results(self.scorer, work.erasure.photo.pixels, work.erasure.mask.pixels, work.results)
                    work.chosen = int(np.argmax(scores))
                    work.score = scores[work.chosen]

    def _finish(self, work: _Work) -> _Work:
        self._paste(work)
        if work.outcome is None and work.item is not None and work.erasure is not None:
            with _Caught(work, "encode"):
                work.outcome = self._record(work, work.item, work.erasure)
        # only encoded bytes wait for their turn
        work.item = work.erasure = None
        work.fills, work.results = [], []
        return work

    def _record(self, work: _Work, item: RawItem, erasure: Erasure) -> Outcome:
        settings, photo, mask = self.settings, erasure.photo, erasure.mask
        erased = erasure.encode(work.results[work.chosen], settings.image_format)
        verdict = record.verdict_for(work.score, accept_above=settings.accept_above, uncertain_from=settings.uncertain_from)
        target = item.target or (record.image_value(erased) if verdict == "accepted" else None)
        values = record.empty_record(
            id=work.id,
            source=record.image_value(storable_source(item.source, photo), item.source_name),
            mask=record.image_value(encode_mask(mask.pixels), item.mask_name),
            target=target,
            effect_mask=item.effect_mask,
            category=item.category,
            origin=item.origin,
            width=photo.width,
            height=photo.height,
            erased=record.image_value(erased),
            score=work.score,
            verdict=verdict,
            seed=record.item_seed(work.id, settings.seed, work.chosen),
            model=f"{self.eraser.name}@{self.eraser.fingerprint}",
            round=settings.round,
        )
        return Outcome(work.id, record=values, warnings=("mask_resized",) if mask.resized else ())

    def _outcome(self, entry: Future[_Work] | _Work) -> Outcome:
        work = entry if isinstance(entry, _Work) else entry.result()
        if work.outcome is None:
            raise CleanplateError(f"item {work.id} left the workload without an outcome; this is a fault of cleanplate")
        return work.outcome


def failure(item_id: str, uri: str | None, error: BaseException, stage: str) -> Outcome:
    """The failure row for an exception; one that is not an ItemError is named by its class."""
    if isinstance(error, ItemError):
        values = {"id": item_id, "uri": uri, "stage": error.stage, "error": error.code, "message": error.message}
    else:
        text = " ".join(str(error).split())[:400]
        values = {"id": item_id, "uri": uri, "stage": stage, "error": type(error).__name__, "message": f"{type(error).__name__}: {text}"}
    return Outcome(item_id, failure=values)


class _Caught:
    """Turns whatever goes wrong with one item into that item's failure; a store that does not answer is nobody's fault and passes on."""

    def __init__(self, work: _Work, stage: str) -> None:
        self._work, self._stage = work, stage

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or isinstance(error, StorageUnavailable) or not isinstance(error, Exception):
            return False
        self._work.outcome = failure(self._work.id, self._work.uri, error, self._stage)
        return True


def _stop_on_full_device(error: Exception, batch_size: int) -> None:
    """A GPU that is too small fails every batch alike: that is the job's fault and not the items'."""
    if type(error).__name__ == "OutOfMemoryError":
        raise CleanplateError(
            f"the GPU's memory does not hold batches of {batch_size}; lower --batch-size (the results do not change)"
        ) from error


def _ready(entry: Future[_Work] | _Work) -> bool:
    return isinstance(entry, _Work) or entry.done()
