"""Settings, keys and the store of uploads, each by itself."""

from __future__ import annotations

import pytest

from core.errors import UsageError
from core.images import encode_image
from jobs.serve_config import ServeConfig
from serving import store as store_module
from serving.access import Access, read_keys
from serving.problems import Problem
from serving.settings import ServingSettings
from serving.store import ImageStore, Result, result_id
from tests.pictures import gradient


def test_settings_of_a_file() -> None:
    found = ServingSettings.of({"models": ["tiny", {"name": "fast", "model": "tiny", "steps": 2}], "max_replicas": 3, "deadline_s": 10})
    assert [model.name for model in found.models] == ["tiny", "fast"]
    assert (found.models[1].steps, found.max_replicas, found.deadline_s) == (2, 3, 10.0)


@pytest.mark.parametrize(
    "values",
    [{"colour": 1}, {"max_replicas": "many"}, {"max_replicas": 0}, {"models": []}, {"models": ["a", "a"]}, {"models": [{"steps": 1}]},
     {"min_replicas": 3, "max_replicas": 2}, {"model": "a", "models": ["b"]}, {"deadline_s": True}, {"batch_size": 1.5}],
)  # fmt: skip
def test_wrong_settings_are_one_line(values: dict[str, object]) -> None:
    with pytest.raises(UsageError) as raised:
        ServingSettings.of(values)
    assert "\n" not in str(raised.value)


def test_flags_win_over_the_file() -> None:
    file = {"applications": [{"args": {"model": "opencv", "max_queued": 5, "deadline_s": 9}}]}
    arguments = ServeConfig(**file, model="tiny", steps=2).arguments()  # type: ignore[arg-type]
    found = ServingSettings.of(arguments)
    assert (found.models[0].model, found.models[0].steps, found.max_queued, found.deadline_s) == ("tiny", 2, 5, 9.0)
    assert ServingSettings.of(ServeConfig(**file).arguments()).models[0].model == "opencv"  # type: ignore[arg-type]


def test_rate_refills_with_time() -> None:
    access = Access((), 60.0)
    for _ in range(10):
        access.check({}, "me", now=100.0)
    with pytest.raises(Problem):
        access.check({}, "me", now=100.0)
    access.check({}, "someone else", now=100.0)
    access.check({}, "me", now=101.0)


def test_short_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEANPLATE_API_KEYS", "short")
    with pytest.raises(UsageError, match="16"):
        read_keys(ServingSettings())


def put(store: ImageStore, size: int = 100) -> str:
    return store.put(bytes(size), "a.png", "png", 8, 8).id


def test_two_replicas_see_the_same(folder: str) -> None:
    one, two = ImageStore(folder, 10**6, 100), ImageStore(folder, 10**6, 100)
    image = put(one)
    assert two.get(image).data == bytes(100)
    patch = encode_image(gradient(8, 8))
    first = Result(result_id("a"), patch, "", 0, 0, "item", 1, None, "m")
    second = Result(result_id("b"), patch, first.id, 3, 4, "item", 2, 0.5, "m")
    for result in (first, second):
        two.put_result(image, result)
    assert one.chain(image, second.id) == [first, second]
    two.remove(image)
    for call in (lambda: one.get(image), lambda: one.get_result(image, first.id), lambda: one.put_result(image, first)):
        with pytest.raises(Problem):
            call()


def test_uploads_expire_and_the_oldest_make_room(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_800_000_000.0]
    monkeypatch.setattr(store_module.time, "time", lambda: now[0])
    monkeypatch.setattr(store_module, "_SWEEP_S", 0.0)
    store = ImageStore(folder, 2500, 50)
    first = put(store, 1000)
    now[0] += 10
    second = put(store, 1000)
    now[0] += 10
    third = put(store, 1000)  # there is room for two
    with pytest.raises(Problem):
        store.get(first)
    assert store.get(second)
    assert store.get(third)
    now[0] += 45
    with pytest.raises(Problem):
        store.get(second)
    assert store.get(third)
    with pytest.raises(Problem, match="larger"):
        put(store, 3000)


@pytest.mark.parametrize("name", ["", "..", "../" * 10, "0" * 32 + "\n", "A" * 32, "0" * 33])
def test_no_name_leaves_the_folder(folder: str, name: str) -> None:
    store = ImageStore(folder, 1000, 50)
    for call in (lambda: store.get(name), lambda: store.remove(name), lambda: store.check(name)):
        with pytest.raises(Problem):
            call()
