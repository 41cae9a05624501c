"""What one ingress replica holds, and the one way in which every route erases."""

from __future__ import annotations

import asyncio
import hashlib
import string
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Generic, ParamSpec, TypeVar
from urllib.parse import quote

import numpy as np

from core.crops import CropRule
from core.erasing import Erasure, candidate_seeds
from core.images import Photo, decode_photo
from core.masks import Mask, encode_mask
from core.perception.segmentation import Prompt, Segmentation, load_segmenter
from core.scoring import make_views
from serving.access import Access
from serving.graph import Graph
from serving.metrics import GraphMetrics
from serving.networks import FillJob, ModelChanged, ModelInfo
from serving.pictures import rgb_profile
from serving.problems import busy
from serving.settings import ServingSettings
from serving.store import ImageStore

if TYPE_CHECKING:
    from serving.review.desk import Desk  # which needs packages that a service without one does not

_VERSIONS: Final = 4
"""How often one request meets replicas of another version before it is told to come back."""
_PLAIN: Final = string.ascii_letters + string.digits + string.punctuation.replace("%", "") + " "

Given = ParamSpec("Given")
Found = TypeVar("Found")
Encoded = TypeVar("Encoded")
Encode = Callable[[Erasure, np.ndarray], Encoded]
"""What a route makes of a result, (H, W, 3) uint8, for its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseOptions:
    """What a request may choose; ``fit`` is ``crop`` (only the mask's surroundings pass the network) or ``whole`` (the photo does)."""

    item: str | None = None
    seed: int = 0
    candidates: int = 1
    steps: int | None = None
    model: str | None = None
    fit: str = "crop"


@dataclass(frozen=True, slots=True)
class Source:
    """A photo to erase from, the hash of its bytes (see ``source_digest``) and, of an upload, its ``rgb_profile``."""

    photo: Photo
    digest: hashlib.blake2b
    profile: bytes = b""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One result: the whole photo (H, W, 3) uint8; ``seed`` is that of its noise."""

    pixels: np.ndarray
    seed: int
    score: float | None


@dataclass(frozen=True, slots=True)
class Erased(Generic[Encoded]):
    """The candidates of a request, best first, what was encoded of them, in the same order, and where the time went."""

    item: str
    model: ModelInfo
    erasure: Erasure
    candidates: list[Candidate]
    encoded: list[Encoded]
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    @property
    def label(self) -> str:
        """As the ``model`` column of a record."""
        return f"{self.model.model}@{self.model.fingerprint}"

    @property
    def headers(self) -> dict[str, str]:
        """Enough to make the result again."""
        found = {
            "X-Cleanplate-Id": quote(self.item, safe=_PLAIN),
            "X-Cleanplate-Seed": str(self.best.seed),
            "X-Cleanplate-Model": quote(self.label, safe=_PLAIN),
        }
        if self.best.score is not None:
            found["X-Cleanplate-Score"] = f"{self.best.score:.6f}"
        return found


class Service:
    """The parts that routes use: graph, store, threads, decoded photos, admission."""

    def __init__(
        self, settings: ServingSettings, graph: Graph, store: ImageStore, keys: tuple[str, ...] = (), desk: Desk | None = None
    ) -> None:
        self.settings, self.graph, self.store, self.desk = settings, graph, store, desk
        self.access = Access(keys, settings.requests_per_minute)
        self.metrics = GraphMetrics("ingress")
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="ingress")
        self._kept: OrderedDict[tuple[str, str], Source] = OrderedDict()
        self._segmenter = load_segmenter(settings.segmenter, device=settings.device)
        self._working = 0
        self._working_megapixels = 0.0

    async def run(self, function: Callable[Given, Found], *args: Given.args, **kwargs: Given.kwargs) -> Found:
        """The function in one of the replica's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Room and time for one request. Raises Problem 503 where there is none, or where the deadline passes."""
        if self._working >= self.settings.max_ongoing:
            raise busy(f"{self._working} requests are in work here; try again")
        self._working += 1
        self.metrics.observe_working(self._working)
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                yield
        except TimeoutError:
            raise busy(f"the answer took longer than {self.settings.deadline_s:g} s; try again, or ask for less", after_s=5) from None
        finally:
            self._working -= 1
            self.metrics.observe_working(self._working)

    @asynccontextmanager
    async def room_for(self, megapixels: float) -> AsyncIterator[None]:
        """Memory for pictures of that many pixels. Raises Problem 503 where others hold it; one request alone always gets in."""
        if self._working_megapixels and self._working_megapixels + megapixels > self.settings.max_working_megapixels:
            raise busy(f"pictures of {self._working_megapixels:,.0f} megapixels are in work here; try again")
        self._working_megapixels += megapixels
        try:
            yield
        finally:
            self._working_megapixels = max(0.0, self._working_megapixels - megapixels)

    async def opened(self, data: bytes) -> Source:
        """A photo that comes with its request. Raises ItemError as ``decode_photo``."""
        photo, digest = await asyncio.gather(self.decode(data), self.run(source_digest, data))
        return Source(photo, digest)

    async def decode(self, data: bytes) -> Photo:
        """A picture of a caller's. Raises ItemError as ``decode_photo``."""
        return await self.run(decode_photo, data, max_megapixels=self.settings.max_megapixels)

    async def kept(self, image_id: str, result: str = "") -> Source:
        """An upload, or one of its results, decoded; the last few stay at hand. Raises Problem 404."""
        await self.run(self.store.check, image_id)
        found = self._kept.pop((image_id, result), None)
        if found is None:
            found = await self.run(self._open, image_id, result)
        self._kept[image_id, result] = found
        while self._kept and sum(kept.photo.pixels.size for kept in self._kept.values()) > self.settings.cache_megapixels * 3e6:
            self._kept.popitem(last=False)
        return found

    def _open(self, image_id: str, result: str) -> Source:
        upload = self.store.get(image_id)
        photo = decode_photo(upload.data, max_megapixels=self.settings.max_megapixels)
        source = Source(photo, source_digest(upload.data), rgb_profile(upload.data))
        chain = self.store.chain(image_id, result) if result else []
        if not chain:
            return source
        pixels = photo.pixels.copy()
        for step in chain:
            paint(pixels, decode_photo(step.patch, max_megapixels=10_000), step.x, step.y)
        source.digest.update(result.encode())
        return replace(source, photo=replace(photo, pixels=pixels))

    def forget(self, image_id: str) -> None:
        """Drop the decoded photos of an upload."""
        for key in [key for key in self._kept if key[0] == image_id]:
            del self._kept[key]

    async def segment(self, photo: Photo, prompt: Prompt) -> Segmentation:
        """The mask of what the prompt means. Raises UsageError and ItemError as the segmenter."""
        return await self.run(self._segmenter.segment, photo.pixels, prompt)

    async def erase(
        self, source: Source, mask: Mask, options: EraseOptions, encode: Encode[Encoded], *, best_only: bool = False
    ) -> Erased[Encoded]:
        """Erase, score, rank and encode (the best alone, if so wanted); by one version of the models, also while a new one rolls out."""
        for _ in range(_VERSIONS):
            try:
                return await self._erase(source, mask, options, encode, best_only)
            except ModelChanged:
                self.graph.forget()
        raise busy("a new version is rolling out; try again")

    async def _erase(
        self, source: Source, mask: Mask, options: EraseOptions, encode: Encode[Encoded], best_only: bool
    ) -> Erased[Encoded]:
        photo = source.photo
        name = options.model or self.settings.models[0].name
        clock = _Clock(self.metrics)
        info = await self.graph.describe(name)
        clock.lap("describe")
        item = await self.run(default_item_id, source.digest, mask) if options.item is None else options.item
        rule = _whole(info.rule) if options.fit == "whole" else info.rule
        erasure = await self.run(Erasure.of, photo, mask, rule)
        clock.lap("crop")
        seeds = candidate_seeds(item, options.seed, options.candidates)
        fills = await self.graph.fill(info, FillJob(info, erasure.crop, tuple(seeds), options.steps))
        clock.lap("erase")
        results = await self.run(erasure.results, fills)
        clock.lap("paste")
        later = best_only and len(results) > 1
        # the discriminator needs no thread of this replica: what is encoded whatever it says is encoded meanwhile
        scores, encoded = await asyncio.gather(
            self._scores(clock, photo, mask, results), self._encoded(clock, encode, erasure, [] if later else results)
        )
        # the first of equal ones wins, as in a job
        order = sorted(range(len(results)), key=lambda place: -(scores[place] or 0.0))
        found = [Candidate(results[place], seeds[place], scores[place]) for place in order]
        if later:
            encoded = await self._encoded(clock, encode, erasure, [found[0].pixels])
        else:
            encoded = [encoded[place] for place in order]
        return Erased(item, info, erasure, found, encoded, clock.laps_ms)

    async def _scores(self, clock: _Clock, photo: Photo, mask: Mask, results: Sequence[np.ndarray]) -> Sequence[float | None]:
        size = await self.graph.scorer_size()
        if size is None:
            return [None] * len(results)
        started = time.perf_counter()
        found = await self.graph.score(await self.run(make_views, size, photo.pixels, mask.pixels, results))
        clock.note("score", time.perf_counter() - started)
        return found

    async def _encoded(self, clock: _Clock, encode: Encode[Encoded], erasure: Erasure, results: Sequence[np.ndarray]) -> list[Encoded]:
        started = time.perf_counter()
        found = [await self.run(encode, erasure, result) for result in results]
        if results:
            clock.note("encode", time.perf_counter() - started)
        return found


class _Clock:
    """Times of the stages of one request."""

    def __init__(self, metrics: GraphMetrics) -> None:
        self.laps_ms: dict[str, float] = {}
        self._metrics, self._since = metrics, time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.note(stage, now - self._since)
        self._since = now

    def note(self, stage: str, seconds: float) -> None:
        """For a stage that others run beside."""
        self.laps_ms[stage] = round(seconds * 1000, 2)
        self._metrics.observe_stage(stage, seconds)


def source_digest(data: bytes) -> hashlib.blake2b:
    """The state of a hash that has seen a photo's bytes: the part of an item's id that needs them only once."""
    digest = hashlib.blake2b(len(data).to_bytes(8, "big"), digest_size=16)
    digest.update(data)
    return digest


def default_item_id(source: hashlib.blake2b, mask: Mask) -> str:
    """A hash (32 hex digits) of the photo's bytes and of the mask as ``encode_mask`` writes it, whatever file it came as."""
    digest = source.copy()
    digest.update(encode_mask(mask.pixels))
    return digest.hexdigest()


def paint(pixels: np.ndarray, patch: Photo, x: int, y: int) -> None:
    """Put a patch on a photo, in place; colours under transparency, too."""
    pixels[y : y + patch.height, x : x + patch.width] = patch.pixels


def _whole(rule: CropRule) -> CropRule:
    """The square around the whole photo: a context that no box falls short of."""
    return replace(rule, context=1e9)
