"""Objects on a disk and in a bucket behave alike: atomic and conditional writes, ranges, listing order, errors."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import storage
from core.errors import Conflict, ObjectMissing, ObjectTooLarge, StorageError, UsageError
from core.ledger import write_shard
from core.readers import parquet_source
from core.storage import ObjectReader
from tests.pictures import put


def test_what_is_written_is_read(folder: str) -> None:
    store, uri = storage.storage_for(folder), storage.join(folder, "a/b/ü x+%.bin")
    store.write(uri, b"first")
    store.write(uri, bytes(range(256)))
    assert store.read(uri) == bytes(range(256))
    assert store.size(uri) == 256
    assert storage.exists(uri)
    store.delete(uri)
    store.delete(uri)
    assert not storage.exists(uri)


def test_a_created_object_appears_whole_at_the_end(folder: str) -> None:
    store, uri = storage.storage_for(folder), storage.join(folder, "a/large")
    with store.create(uri) as file:
        for _ in range(3):
            file.write(bytes(range(256)) * 4096)
        file.flush()
        assert list(store.list(folder)) == []
    assert store.read(uri) == bytes(range(256)) * 4096 * 3


def test_an_error_while_creating_leaves_the_object_as_it_was(folder: str) -> None:
    store, uri = storage.storage_for(folder), storage.join(folder, "large")
    store.write(uri, b"before")

    def create_half() -> None:
        with store.create(uri) as file:
            file.write(b"half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        create_half()
    assert store.read(uri) == b"before"
    assert [entry.uri for entry in store.list(folder)] == [uri]


@pytest.mark.parametrize(("start", "length"), [(0, 0), (0, 5), (3, 0), (3, 4), (8, 2), (8, 100)])
def test_a_range_is_a_slice(folder: str, start: int, length: int) -> None:
    store, uri = storage.storage_for(folder), storage.join(folder, "x")
    store.write(uri, b"0123456789")
    assert store.read_range(uri, start, length) == b"0123456789"[start : start + length]


def test_a_missing_object_is_named(folder: str) -> None:
    store, uri = storage.storage_for(folder), storage.join(folder, "nothing.png")
    for call in (store.read, store.size, lambda uri: store.read_range(uri, 0, 1)):
        with pytest.raises(ObjectMissing) as caught:
            call(uri)
        assert uri in str(caught.value)
    assert list(store.list(storage.join(folder, "no/such/folder"))) == []


def test_large_objects_are_refused_before_they_are_read(folder: str) -> None:
    store, uri = storage.storage_for(folder), storage.join(folder, "large")
    store.write(uri, bytes(3 << 20))
    assert len(store.read(uri, 3 << 20)) == 3 << 20
    with pytest.raises(ObjectTooLarge, match=r"large has 3 MiB; at most 1 MiB"):
        store.read(uri, 1 << 20)


NAMES = ["a.txt", "a/b.txt", "a/b/c.txt", "a-b.txt", "a0.txt", "b", "b.c/d", "Z", "ä/x", ".hidden/x"]


def test_listing_finds_every_object_once(folder: str) -> None:
    put(folder, {name: name.encode() for name in NAMES})
    found = list(storage.storage_for(folder).list(folder))
    assert sorted(storage.relative(folder, entry.uri) for entry in found) == sorted(NAMES)
    assert all(entry.size == len(storage.relative(folder, entry.uri).encode()) for entry in found)
    below = storage.storage_for(folder).list(storage.join(folder, "a"))
    assert sorted(storage.relative(folder, entry.uri) for entry in below) == ["a/b.txt", "a/b/c.txt"]


def test_listing_goes_over_pages(s3: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from core import s3 as module

    bucket = s3.bucket("pages")  # type: ignore[attr-defined]
    put(bucket, {f"{index:02d}": b"" for index in range(12)})
    pages: list[int] = []

    def small_page(arguments: dict[str, str]) -> object:
        page = module.s3_client().list_objects_v2(**arguments, MaxKeys=5)
        pages.append(page["KeyCount"])
        return page

    monkeypatch.setattr(module, "_page", small_page)
    assert [entry.uri[-2:] for entry in storage.storage_for(bucket).list(bucket)] == [f"{index:02d}" for index in range(12)]
    assert pages == [5, 5, 2]


def test_one_of_many_conditional_writers_succeeds(folder: str) -> None:
    store, uri = storage.storage_for(folder), storage.join(folder, "once")
    barrier = threading.Barrier(8)

    def write(number: int) -> int | None:
        barrier.wait()
        try:
            store.write(uri, str(number).encode(), if_absent=True)
        except Conflict:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(write, range(8)) if number is not None]
    assert len(winners) == 1
    assert store.read(uri) == str(winners[0]).encode()


def test_a_reader_sees_the_whole_object_or_the_one_before(folder: str) -> None:
    store, uri = storage.storage_for(folder), storage.join(folder, "swap")
    versions = [bytes([value]) * 200_000 for value in range(6)]
    store.write(uri, versions[0])
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(store.read(uri))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        for version in versions:
            store.write(uri, version)
        stop.set()
        watching.result()
    assert seen
    assert set(seen) <= set(versions)


def test_parquet_is_read_by_ranges(folder: str) -> None:
    table = pa.table({"id": [str(number) for number in range(5000)], "large": [bytes(500)] * 5000})
    uri = storage.join(folder, "part-0.parquet")
    write_shard(uri, table)
    assert pq.read_table(parquet_source(uri), columns=["id"]).column("id").to_pylist() == table.column("id").to_pylist()
    assert pq.ParquetFile(parquet_source(uri)).metadata.num_rows == 5000


def test_an_object_reader_is_a_file(folder: str) -> None:
    uri, data = storage.join(folder, "text"), b"line 1\nline 2\n\xc3\xa4" * 3000
    storage.storage_for(folder).write(uri, data)
    raw = ObjectReader(storage.storage_for(folder), uri)
    assert (raw.seek(-2, io.SEEK_END), raw.read(), raw.read(5)) == (len(data) - 2, b"\xc3\xa4", b"")
    assert (raw.seek(7), raw.read(6), raw.seek(1, io.SEEK_CUR), raw.tell()) == (7, b"line 2", 14, 14)
    assert io.TextIOWrapper(io.BufferedReader(ObjectReader(storage.storage_for(folder), uri)), "utf-8").read() == data.decode()


def test_no_temporary_file_is_left_or_listed(tmp_path: Path) -> None:
    store = storage.LocalStorage()
    (tmp_path / ".cleanplate-tmp-dead").write_bytes(b"of a process that died")
    store.write(str(tmp_path / "x"), b"1", if_absent=True)
    with pytest.raises(Conflict):
        store.write(str(tmp_path / "x"), b"2", if_absent=True)
    assert [entry.uri for entry in store.list(str(tmp_path))] == [str(tmp_path / "x")]
    assert len(list(tmp_path.iterdir())) == 2


def test_linked_folders_are_listed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_bytes(b"1")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "source").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "input" / "broken").symlink_to(tmp_path / "nowhere")
    assert [entry.uri for entry in storage.LocalStorage().list(str(tmp_path / "input"))] == [str(tmp_path / "input/source/x")]


def test_local_errors_say_what_is_wrong(tmp_path: Path) -> None:
    store = storage.LocalStorage()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="is not a file"):
        store.read(str(tmp_path))
    with pytest.raises(StorageError, match="file/below"):
        store.write(str(tmp_path / "file" / "below"), b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError, match="loop"):
        store.read(str(tmp_path / "loop"))


def test_uris_are_normalised_and_joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.normalize_uri("data/x/") == f"{tmp_path}/data/x"
    assert storage.normalize_uri("file:///data/x") == "/data/x"
    assert storage.normalize_uri("~/x") == "/home/someone/x"
    assert storage.normalize_uri("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert storage.join("s3://bucket/a/", "/b/", "c") == "s3://bucket/a/b/c"
    assert storage.resolve("s3://bucket/a", "b/c.png") == "s3://bucket/a/b/c.png"
    assert storage.resolve("s3://bucket/a", "/data/c.png") == "/data/c.png"
    assert storage.resolve("/data", "s3://other/c.png") == "s3://other/c.png"
    assert storage.relative("s3://bucket/a", "s3://bucket/a/b/c") == "b/c"
    assert (storage.parent("/data/x"), storage.parent("s3://bucket/a"), storage.parent("/x")) == ("/data", "s3://bucket", "/")


@pytest.mark.parametrize(
    ("uri", "says"), [("", "empty path"), ("s3://", "names no bucket"), ("s3:///x", "names no bucket"), ("gs://b/x", "gs://")]
)
def test_uris_that_cannot_work_are_refused(uri: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        storage.normalize_uri(uri)
