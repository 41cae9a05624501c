"""The workload: in order, each item once, the same bytes whatever the batch, the threads or the neighbours; faults cost their own item."""

from __future__ import annotations

import gc
import hashlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from core import erasing, record
from core.crops import Crop, CropRule
from core.eraser import Eraser
from core.errors import CleanplateError, ItemError, StorageUnavailable
from core.images import Photo, decode_photo, encode_image
from core.workload import FETCHES_A_THREAD, Outcome, RawItem, Workload, WorkSettings
from tests.pictures import png, png_mask

POISON = (11, 22, 33)


class Scripted(Eraser):
    """Fills with a colour made of the seed. ``poison`` is raised for crops of the poison colour; ``batches`` logs what came together."""

    def __init__(self, *, batch_size: int = 1, thread_safe: bool = False, poison: Exception | None = None, pause: float = 0.0) -> None:
        self.name, self.fingerprint = "scripted", "1"
        self.rule = CropRule(size=32, context=2.0, feather_px=3)
        self.batch_size, self.thread_safe, self.poison, self.pause = batch_size, thread_safe, poison, pause
        self.batches: list[int] = []

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:
        self.batches.append(len(crops))
        time.sleep(self.pause)
        if self.poison and any((crop.pixels == POISON).all() for crop in crops):
            raise self.poison
        return [np.full_like(crop.pixels, colour(seed)) for crop, seed in zip(crops, seeds, strict=True)]


def colour(seed: int) -> list[int]:
    return list(hashlib.blake2b(str(seed).encode(), digest_size=3).digest())


class ByRed:
    """Scores an edited crop by the red of its middle."""

    size = 24

    def score(self, edited: Sequence[np.ndarray], source: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[float]:  # noqa: ARG002
        return [float(picture[12, 12, 0]) / 255 for picture in edited]


class Fixed(ByRed):
    def __init__(self, value: float | Exception) -> None:
        self.value = value

    def score(self, edited: Sequence[np.ndarray], source: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[float]:  # noqa: ARG002
        if isinstance(self.value, Exception):
            raise self.value
        return [self.value] * len(edited)


Entry = tuple[str, str | None, Callable[[], RawItem]]


def raw(item: str, source: bytes | None = None, **more: Any) -> RawItem:
    return RawItem(item, png(int(item) % 50) if source is None else source, png_mask(), "test", f"{item}.png", "m.png", **more)


def entries(count: int, delay: Callable[[int], float] = lambda _: 0.0) -> list[Entry]:
    def fetch(number: int) -> RawItem:
        time.sleep(delay(number))
        return raw(str(number))

    return [(str(number), f"s3://b/{number}", lambda number=number: fetch(number)) for number in range(count)]  # type: ignore[misc]


def run(items: list[Entry], eraser: Eraser, scorer: Any = None, **settings: Any) -> list[Outcome]:
    work = Workload(eraser, WorkSettings(**settings), scorer)
    try:
        return list(work.run(iter(items)))
    finally:
        work.close()


def one(
    eraser: Eraser | None = None, scorer: Any = None, source: bytes | None = None, more: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    (outcome,) = run([("7", None, lambda: raw("7", source, **(more or {})))], eraser or Scripted(), scorer, **settings)
    assert outcome.record is not None
    return outcome.record


def failed(outcomes: list[Outcome]) -> dict[str, tuple[str | None, str | None]]:
    assert all((outcome.record is None) != (outcome.failure is None) for outcome in outcomes)
    return {outcome.id: (outcome.failure["stage"], outcome.failure["error"]) for outcome in outcomes if outcome.failure}


@pytest.mark.parametrize("scorer", [None, ByRed()])
def test_results_depend_on_the_item_alone(scorer: ByRed | None) -> None:
    items = entries(13)
    expected = run(items, Scripted(), scorer, candidates=3, seed=4)
    assert [outcome.id for outcome in expected] == [str(number) for number in range(13)]
    assert not failed(expected)
    for batch_size, threads, lookahead, thread_safe in [(4, 1, 0, False), (7, 3, 9, False), (100, 2, 0, False), (1, 4, 2, True)]:
        eraser = Scripted(batch_size=batch_size, thread_safe=thread_safe)
        assert run(items, eraser, scorer, candidates=3, seed=4, threads=threads, lookahead=lookahead) == expected
    assert [outcome for item in items for outcome in run([item], Scripted(batch_size=4), scorer, candidates=3, seed=4)] == expected
    assert run(items[::-1], Scripted(batch_size=6), scorer, candidates=3, seed=4) == expected[::-1]
    assert run(items, Scripted(), scorer, candidates=3, seed=5) != expected


@pytest.mark.parametrize("thread_safe", [False, True])
def test_order_is_kept_however_long_things_take(thread_safe: bool) -> None:
    eraser = Scripted(batch_size=3, thread_safe=thread_safe)
    outcomes = run(entries(20, lambda number: 0.02 if number % 5 == 0 else 0.0), eraser, threads=4)
    assert [outcome.id for outcome in outcomes] == [str(number) for number in range(20)]


def test_the_network_gets_whole_batches_of_crops() -> None:
    eraser = Scripted(batch_size=6)
    run(entries(10), eraser, candidates=2)
    assert eraser.batches == [6, 6, 6, 2]


def test_a_record_says_how_it_was_made() -> None:
    made = one(seed=3, round=2)
    assert record.record_problem(made) is None
    assert (made["model"], made["seed"], made["round"], made["origin"]) == ("scripted@1", record.item_seed("7", 3), 2, "test")
    assert (made["width"], made["height"], made["score"], made["verdict"]) == (64, 48, None, None)
    assert made["source"] == {"bytes": png(7), "path": "7.png"}
    source, erased = decode_photo(png(7)).pixels, decode_photo(made["erased"]["bytes"]).pixels
    assert (erased[14:28, 20:34] == colour(made["seed"])).all()
    assert (erased[:8] == source[:8]).all()
    assert (decode_photo(made["mask"]["bytes"]).pixels[14:28, 20:34] == 255).all()


@pytest.mark.parametrize("thread_safe", [False, True])
def test_one_poison_item_in_a_batch_costs_one_item(thread_safe: bool) -> None:
    poison = encode_image(np.full((48, 64, 3), POISON, np.uint8))
    items = entries(9)
    items[4] = ("4", "s3://b/4", lambda: raw("4", poison))
    eraser = Scripted(batch_size=4, thread_safe=thread_safe, poison=RuntimeError("bad\nnumbers"))
    outcomes = run(items, eraser)
    assert failed(outcomes) == {"4": ("erase", "RuntimeError")}
    assert outcomes[4].failure == {
        "id": "4",
        "uri": "s3://b/4",
        "stage": "erase",
        "error": "RuntimeError",
        "message": "RuntimeError: bad numbers",
    }
    clean = run(entries(9), Scripted())
    assert [outcome for outcome in outcomes if outcome.id != "4"] == [outcome for outcome in clean if outcome.id != "4"]


class Wrong(Scripted):
    def __init__(self, change: Callable[[list[np.ndarray]], list[Any]]) -> None:
        super().__init__()
        self.change = change

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:
        return self.change(super().fill(crops, seeds))


@pytest.mark.parametrize(
    "change", [lambda f: f[1:], lambda f: [x[:-1] for x in f], lambda f: [x.astype(np.float32) for x in f], lambda f: f * 2]
)
def test_a_model_that_breaks_its_promise_is_named(change: Callable[[list[np.ndarray]], list[Any]]) -> None:
    outcomes = run(entries(1), Wrong(change))
    assert failed(outcomes) == {"0": ("erase", "bad_fill")}
    assert "scripted" in str(outcomes[0].failure)


def test_faults_of_every_stage_cost_their_item() -> None:
    def missing() -> RawItem:
        raise ItemError("fetch", "missing", "source is missing")

    def strange() -> RawItem:
        raise KeyError("x")

    items = entries(6)
    items[1], items[2], items[3] = ("1", "u", missing), ("2", None, strange), ("3", "u", lambda: raw("3", png(3)[:-30]))
    items[4] = ("4", "u", lambda: RawItem("4", png(4), b"no mask", "o"))
    outcomes = run(items, Scripted(batch_size=4), ByRed())
    assert failed(outcomes) == {
        "1": ("fetch", "missing"),
        "2": ("fetch", "KeyError"),
        "3": ("decode", "truncated"),
        "4": ("decode", "mask_not_an_image"),
    }
    assert [outcome.id for outcome in outcomes] == list("012345")


@pytest.mark.parametrize("value", [ValueError("no"), float("nan"), 2.0])
def test_a_scorer_that_fails_costs_one_item(value: Any) -> None:
    class Sometimes(Fixed):
        def score(self, edited: Sequence[np.ndarray], source: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[float]:
            is_one = edited[0][12, 12].tolist() == colour(record.item_seed("1", 0))
            return super().score(edited, source, masks) if is_one else ByRed().score(edited, source, masks)

    outcomes = run(entries(3), Scripted(batch_size=3), Sometimes(value))
    assert failed(outcomes) == {"1": ("score", "ValueError" if isinstance(value, ValueError) else "bad_score")}


@pytest.mark.parametrize("thread_safe", [False, True])
@pytest.mark.parametrize("where", ["fetch", "fill"])
def test_a_store_that_is_away_stops_the_work(where: str, thread_safe: bool) -> None:
    def away() -> RawItem:
        raise StorageUnavailable("no answer")

    items = entries(4)
    if where == "fetch":
        items[2] = ("2", None, away)
    eraser = Scripted(batch_size=2, thread_safe=thread_safe, poison=StorageUnavailable("no answer"))
    if where == "fill":
        items[2] = ("2", None, lambda: raw("2", encode_image(np.full((48, 64, 3), POISON, np.uint8))))
    with pytest.raises(StorageUnavailable, match="no answer"):
        run(items, eraser)


def test_a_full_device_stops_the_work() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    class Full(Scripted):
        def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:  # noqa: ARG002
            raise OutOfMemoryError("CUDA out of memory")

    with pytest.raises(CleanplateError, match="batches of 8; lower --batch-size"):
        run(entries(3), Full(batch_size=8))


def test_the_best_of_the_candidates_is_taken() -> None:
    for item in range(5):
        reds = [colour(record.item_seed(str(item), 0, candidate))[0] for candidate in range(4)]
        (outcome,) = run([entries(5)[item]], Scripted(batch_size=8), ByRed(), candidates=4)
        assert outcome.record is not None
        assert outcome.record["seed"] == record.item_seed(str(item), 0, int(np.argmax(reds)))
        assert outcome.record["score"] == pytest.approx(max(reds) / 255)
        assert decode_photo(outcome.record["erased"]["bytes"]).pixels[20, 27, 0] == max(reds)


@pytest.mark.parametrize(("score", "verdict"), [(0.71, "accepted"), (0.6999, "uncertain"), (0.3001, "uncertain"), (0.29, "rejected")])
def test_verdicts_and_targets_follow_the_score(score: float, verdict: str) -> None:
    truth = {"bytes": b"truth", "path": "gt.png"}
    made = one(scorer=Fixed(score), accept_above=0.7, uncertain_from=0.3)
    assert (made["verdict"], made["score"]) == (verdict, float(np.float32(score)))
    assert made["target"] == ({"bytes": made["erased"]["bytes"], "path": None} if verdict == "accepted" else None)
    given = one(scorer=Fixed(score), more={"target": truth, "effect_mask": truth, "category": "cat"}, accept_above=0.7, uncertain_from=0.3)
    assert (given["target"], given["effect_mask"], given["category"], given["verdict"]) == (truth, truth, "cat", verdict)


def test_alpha_and_format_of_the_result() -> None:
    alpha = np.tile(np.arange(64, dtype=np.uint8), (48, 1))
    made = one(source=encode_image(decode_photo(png(7)).pixels, alpha), image_format="webp")
    erased = decode_photo(made["erased"]["bytes"])
    assert erased.format == "webp"
    np.testing.assert_array_equal(erased.alpha, alpha)
    assert one(source=encode_image(np.zeros((48, 64, 3), np.uint8), format="webp"))["source"]["bytes"].startswith(b"\x89PNG")


def test_a_mask_of_another_size_is_a_warning() -> None:
    item = RawItem("1", png(1, 128, 96), png_mask(), "o")
    (outcome,) = run([("1", None, lambda: item)], Scripted())
    assert outcome.warnings == ("mask_resized",)


@pytest.mark.parametrize("scorer", [None, ByRed()])
@pytest.mark.parametrize("thread_safe", [False, True])
def test_few_photos_are_in_memory_and_items_are_taken_as_needed(
    thread_safe: bool, scorer: ByRed | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    living: weakref.WeakSet[Any] = weakref.WeakSet()
    lock, most, taken, given = threading.Lock(), 0, 0, 0

    class Watched:
        """Stands for the pixels of a photo, which cannot be watched themselves."""

    def decode(data: bytes, **more: Any) -> Photo:
        nonlocal most
        photo = decode_photo(data, **more)
        pixels = photo.pixels.view(Tracked)
        pixels.mark = Watched()  # type: ignore[attr-defined]
        with lock:
            living.add(pixels.mark)  # type: ignore[attr-defined]
            most = max(most, len(living))
        return Photo(pixels, photo.alpha, photo.format)

    class Tracked(np.ndarray):
        pass

    monkeypatch.setattr(erasing, "decode_photo", decode)

    def endless() -> Iterator[Entry]:
        nonlocal taken
        for entry in entries(150):
            taken += 1
            yield entry

    batch, threads, lookahead = 3, 2, 2
    window = batch + threads + lookahead
    work = Workload(
        Scripted(batch_size=batch, thread_safe=thread_safe, pause=0.001), WorkSettings(threads=threads, lookahead=lookahead), scorer
    )
    for _ in work.run(endless()):
        given += 1
        # fetches; a window less the batch that the network took; a window and that batch, finished behind a slow one, less the one given
        assert taken - given <= FETCHES_A_THREAD * threads + 2 * window - 1
    work.close()
    gc.collect()
    assert given == taken == 150
    assert most <= 2 * (window + batch)
    assert len(living) == 0


def test_a_slow_store_does_not_hold_finished_work_back() -> None:
    """What stands before a fetch that waits comes out meanwhile."""
    released = threading.Event()
    items = entries(12)

    def waiting() -> RawItem:
        released.wait(20)
        return raw("8")

    items[8] = ("8", None, waiting)
    work = Workload(Scripted(batch_size=2), WorkSettings(threads=2, lookahead=2))
    outcomes = work.run(iter(items))
    first = [next(outcomes).id for _ in range(4)]
    released.set()
    assert first + [outcome.id for outcome in outcomes] == [str(number) for number in range(12)]
    work.close()


def test_more_reads_are_under_way_than_threads_decode() -> None:
    """Each read of an object store waits: with two threads eight of them must be under way at once, or the network starves."""
    items = entries(16)
    together = threading.Barrier(4 * 2)

    def reading(name: str) -> RawItem:
        together.wait(20)
        return raw(name)

    work = Workload(Scripted(batch_size=1), WorkSettings(threads=2))
    outcomes = list(work.run((name, None, partial(reading, name)) for name, _, _ in items))
    assert [(outcome.id, outcome.failure) for outcome in outcomes] == [(name, None) for name, _, _ in items]
    work.close()
