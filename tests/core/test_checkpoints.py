"""Model folders: found, refused with a reason, fetched from a bucket or a hub once, and known by their content."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from core import checkpoints, storage
from core.checkpoints import EMBEDDED, fingerprint, locate, needed_files, read_json
from core.errors import UsageError
from tests.conftest import S3
from tests.core.test_needed_files import SDXL
from tests.pictures import put

MODEL = {"model_index.json": b"{}", "unet/config.json": b'{"a": 1}', "unet/w.safetensors": bytes(range(256)) * 1000, "empty.json": b""}
FETCH = """
import sys
from pathlib import Path
from core import s3
from core.checkpoints import locate
real = s3.S3Storage.read_range
def counted(self, uri, start, length):
    with Path(sys.argv[2]).open("a") as log:
        log.write(uri + "\\n")
    return real(self, uri, start, length)
s3.S3Storage.read_range = counted
print(locate(sys.argv[1]))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLEANPLATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_embedded_and_local_models_are_where_they_are(tmp_path: Path) -> None:
    assert locate("tiny") == EMBEDDED["tiny"]
    assert (EMBEDDED["tiny"] / "model_index.json").is_file()
    assert locate(f"{tmp_path}/") == tmp_path


@pytest.mark.parametrize("model", ["tinny", "/no/such/folder", "./no/such", "a/b/c"])
def test_no_such_model_says_what_there_could_be(model: str) -> None:
    with pytest.raises(UsageError, match=r"^no model .*tiny.*s3://.*owner/name$") as caught:
        locate(model)
    assert model in str(caught.value)


def test_a_hub_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"no model nobody/nothing: .* the hub did not give it") as caught:
        locate("nobody/nothing")
    assert "\n" not in str(caught.value)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_empty_folder_in_a_bucket_is_no_model(s3: S3, cache: Path) -> None:
    bucket = s3.bucket("models")
    with pytest.raises(UsageError, match=f"no model at {bucket}/none"):
        locate(f"{bucket}/none")
    put(bucket, {f"none/{name}": data for name, data in MODEL.items()})
    assert (locate(f"{bucket}/none") / "unet" / "config.json").read_bytes() == MODEL["unet/config.json"]
    assert not [path for path in (cache / "models").iterdir() if path.suffix == ".partial"]


def test_four_processes_fetch_a_model_once(s3: S3, cache: Path, tmp_path: Path) -> None:
    bucket = s3.bucket("models")
    put(bucket, {f"m/{name}": data for name, data in MODEL.items()} | {"m/unet/w.bin": b"pickle", "m/photo.png": b"no model"})
    log = tmp_path / "log"
    command = [sys.executable, "-c", FETCH, f"{bucket}/m/", str(log)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    folders = {process.communicate(timeout=300)[0].strip() for process in processes}
    assert len(folders) == 1
    folder = Path(folders.pop())
    assert {name: (folder / name).read_bytes() for name in names(folder)} == MODEL
    assert sorted(log.read_text().split()) == sorted(f"{bucket}/m/{name}" for name, data in MODEL.items() if data)
    assert cache in folder.parents


def test_large_files_are_fetched_in_pieces(s3: S3, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(checkpoints, "_PIECE_BYTES", 1000)
    bucket = s3.bucket("models")
    data = bytes(range(251)) * 10
    put(bucket, {"m/w.safetensors": data})
    assert (locate(f"{bucket}/m") / "w.safetensors").read_bytes() == data


@pytest.mark.parametrize("left", [b"", bytes(300), b"\0" * 5000])
def test_a_killed_fetch_is_taken_up_where_it_ended(
    s3: S3, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes
) -> None:
    """A real process is killed in the middle of the second piece; what is too long for the file is thrown away."""
    bucket = s3.bucket("models")
    data = bytes(range(250)) * 16
    put(bucket, {"m/config.json": b"{}", "m/w.safetensors": data})
    code = FETCH.replace("with Path", "import time; time.sleep(600 if start else 0)\n    with Path").replace(
        "real =", "from core import checkpoints\ncheckpoints._PIECE_BYTES = 1000\nreal ="
    )
    process = subprocess.Popen([sys.executable, "-c", code, f"{bucket}/m", str(tmp_path / "log")])
    deadline = time.monotonic() + 400
    while not (list(cache.rglob("w.safetensors")) and len((tmp_path / "log").read_text().split()) == 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (unfinished,) = (cache / "models").glob("*.partial")
    if left:
        (unfinished / "w.safetensors").write_bytes(data[: len(left)] if len(left) < len(data) else left)
    asked: list[tuple[str, int]] = []
    real = checkpoints.storage.storage_for(bucket).__class__.read_range

    def counted(self: storage.Storage, uri: str, start: int, length: int) -> bytes:
        asked.append((uri.rpartition("/")[2], start))
        return bytes(real(self, uri, start, length))

    monkeypatch.setattr("core.s3.S3Storage.read_range", counted)
    folder = locate(f"{bucket}/m")
    assert (folder / "w.safetensors").read_bytes() == data
    assert asked == [("w.safetensors", len(left) if left and len(left) < len(data) else 0)]
    assert not unfinished.exists()


def test_a_fetch_that_breaks_off_leaves_no_model(s3: S3, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket("models")
    put(bucket, {f"m/{name}": data for name, data in MODEL.items()})
    with monkeypatch.context() as patch:
        patch.setattr("core.s3.S3Storage.read_range", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            locate(f"{bucket}/m")
    assert {path.suffix for path in (cache / "models").iterdir()} == {".lock", ".use", ".partial"}
    assert (locate(f"{bucket}/m") / "unet" / "w.safetensors").read_bytes() == MODEL["unet/w.safetensors"]


def test_new_weights_at_the_same_uri_are_seen(s3: S3, cache: Path) -> None:
    """Also of the same size; a process that reads the old ones keeps them, and later they are gone."""
    bucket = s3.bucket("models")
    put(bucket, {f"m/{name}": data for name, data in MODEL.items()})
    code = "import sys; from core.checkpoints import locate; print(locate(sys.argv[1]), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, f"{bucket}/m"]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    first = Path(reader.stdout.readline().strip())
    weights = bytes(reversed(MODEL["unet/w.safetensors"]))
    put(bucket, {"m/unet/w.safetensors": weights})

    def other_process() -> Path:
        return Path(subprocess.run(command, input="", capture_output=True, text=True, check=True).stdout.strip())

    second = other_process()
    assert second != first
    assert (second / "unet" / "w.safetensors").read_bytes() == weights
    assert (first / "unet" / "w.safetensors").read_bytes() == MODEL["unet/w.safetensors"]
    assert other_process() == second
    reader.communicate("")
    put(bucket, {"m/more.json": b"{}"})
    third = locate(f"{bucket}/m")
    assert names(third) == {*MODEL, "more.json"}
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == [third]


def test_a_model_that_changes_while_it_is_fetched_is_fetched_again(s3: S3, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket("models")
    put(bucket, {f"m/{name}": data for name, data in MODEL.items()})
    real, changes = checkpoints._download, iter([b'{"a": 2}', b'{"a": 3}'])

    def changed(uri: str, path: Path, size: int) -> None:
        real(uri, path, size)
        if uri.endswith("unet/config.json") and (data := next(changes, None)):
            put(bucket, {"m/unet/config.json": data})

    monkeypatch.setattr(checkpoints, "_download", changed)
    assert (locate(f"{bucket}/m") / "unet" / "config.json").read_bytes() == b'{"a": 3}'
    assert len([path for path in (cache / "models").iterdir() if path.is_dir()]) == 1


def test_a_part_alone_is_fetched_alone(s3: S3, cache: Path) -> None:  # noqa: ARG001
    bucket = s3.bucket("models")
    put(bucket, {f"m/{name}": b"{}" for name in SDXL})
    assert names(locate(f"{bucket}/m", ("vae", "scheduler"))) == {
        "model_index.json", "prompt_embeds.safetensors", "scheduler/scheduler_config.json", "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }  # fmt: skip
    whole = locate(f"{bucket}/m")
    assert locate(f"{bucket}/m", ("vae", "scheduler")).is_dir()
    assert whole.is_dir()


def test_what_is_not_fetched_yet_is_said(s3: S3, cache: Path) -> None:  # noqa: ARG001
    bucket = s3.bucket("models")
    put(bucket, {"m/config.json": b"{}"})
    with pytest.raises(UsageError, match="is not fetched yet"):
        locate(f"{bucket}/m", fetch=False)
    assert locate(f"{bucket}/m") == locate(f"{bucket}/m", fetch=False)


class Hub:
    """A server that answers as the hub does to its own client, for one repository; counts what is downloaded."""

    def __init__(self, files: dict[str, bytes], *, gated: bool = False) -> None:
        hub = self
        self.files, self.got, commit = files, Counter[str](), "0123456789abcdef0123456789abcdef01234567"
        oids = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if gated:
                    self.send_response(401)
                    self.send_header("X-Error-Code", "GatedRepo")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if path.startswith("/api/models/some/model/tree/"):
                    listed = [{"type": "file", "path": n, "size": len(d), "oid": oids[n]} for n, d in hub.files.items()]
                    self._send(json.dumps(listed).encode(), {})
                elif path.startswith("/api/models/some/model"):
                    listed = [{"rfilename": name} for name in hub.files]
                    self._send(json.dumps({"id": "some/model", "sha": commit, "siblings": listed}).encode(), {})
                elif (name := path.partition(f"/resolve/{commit}/")[2]) in hub.files:
                    hub.got[name] += self.command == "GET"
                    self._send(hub.files[name], {"ETag": f'"{oids[name]}"', "X-Repo-Commit": commit})
                else:
                    self.send_error(404)

            def _send(self, data: bytes, headers: dict[str, str]) -> None:
                self.send_response(200)
                for name, value in {**headers, "Content-Length": str(len(data)), "Content-Type": "application/json"}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def locate(self, folder: Path, *arguments: str, stopped: bool = False) -> subprocess.Popen[str]:
        """A process that prints where ``some/model`` is, with a hub cache in ``folder``."""
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{1 if stopped else self._server.server_port}",
            "HF_HUB_CACHE": str(folder),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        code = f"from core.checkpoints import locate\nprint(locate('some/model'{''.join(f', {text}' for text in arguments)}))"
        return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub({name: name.encode() for name in SDXL})
    yield server
    server.close()


def test_of_a_hub_model_only_needed_files_are_fetched_once(hub: Hub, tmp_path: Path) -> None:
    found = [process.communicate(timeout=300) for process in [hub.locate(tmp_path / "hub"), hub.locate(tmp_path / "hub")]]
    assert found[0][0] == found[1][0] != "", found[0][1]
    folder = Path(found[0][0].strip())
    assert names(folder) == set(needed_files(SDXL))
    assert hub.got == Counter(needed_files(SDXL))
    half, error = hub.locate(tmp_path / "other", "('unet',)", "precision='half'").communicate(timeout=300)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in names(Path(half.strip())), error
    assert "unet/diffusion_pytorch_model.safetensors" not in names(Path(half.strip()))


def test_a_hub_that_is_down_is_no_matter_where_the_model_is_here(hub: Hub, tmp_path: Path) -> None:
    first, error = hub.locate(tmp_path / "hub").communicate(timeout=300)
    assert first, error
    again, error = hub.locate(tmp_path / "hub", stopped=True).communicate(timeout=300)
    assert again == first, error
    nothing, error = hub.locate(tmp_path / "empty", stopped=True).communicate(timeout=300)
    assert not nothing
    assert "UsageError: no model some/model: it is no folder here, and the hub did not give it" in error


def test_a_gated_model_and_one_of_pickles_are_said(tmp_path: Path) -> None:
    for server, says in (
        (Hub({}, gated=True), "it is gated; accept its terms on its page at the hub, then set HF_TOKEN"),
        (Hub({"unet/config.json": b"{}", "unet/x.bin": b""}), "has unet/x.bin, a pickle, and no safetensors"),
        (Hub({"README.md": b""}), "there is nothing in that folder that a model is loaded from"),
    ):
        _, error = server.locate(tmp_path / "hub").communicate(timeout=300)
        server.close()
        assert says in error.splitlines()[-1]


def test_the_fingerprint_changes_with_the_content(tmp_path: Path) -> None:
    put(str(tmp_path), MODEL)
    seen = {fingerprint(tmp_path)}
    for name, data in (
        ("unet/config.json", b'{"a": 2}'),
        ("unet/w.safetensors", bytes(range(256)) * 999 + bytes(256)),
        ("unet/w.safetensors", bytes(range(256)) * 1001),
        ("more.json", b""),
    ):
        put(str(tmp_path), {name: data})
        seen.add(fingerprint(tmp_path))
    (tmp_path / "more.json").rename(tmp_path / "other.json")
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 6
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in seen)


def test_the_fingerprint_depends_on_nothing_else(tmp_path: Path) -> None:
    put(f"{tmp_path}/one", MODEL)
    time.sleep(0.01)
    put(f"{tmp_path}/two", {**dict(reversed(MODEL.items())), "README.md": b"words", ".cache/x.lock": b""})
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


def test_json_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no model_index\.json"):
        read_json(tmp_path / "model_index.json")
    for text, says in (("{", "is not JSON"), ("[]", "holds a JSON list")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UsageError, match=says):
            read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps({"a": [1]}))
    assert read_json(tmp_path / "x.json") == {"a": [1]}


def test_storage_of_a_model_is_addressed_without_its_slash(s3: S3, cache: Path) -> None:  # noqa: ARG001
    bucket = s3.bucket("models")
    put(bucket, {"m/a.json": b"{}"})
    assert locate(f"{bucket}/m") == locate(f"{bucket}/m/")
    storage.storage_for(bucket).delete(f"{bucket}/m/a.json")
    with pytest.raises(UsageError, match=f"no model at {bucket}/m"):
        locate(f"{bucket}/m")
