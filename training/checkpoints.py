"""Checkpoints of a training in a folder, on disk or in S3: written so that a kill at any moment leaves the one before, kept by rule."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal

import torch
from torch.distributed.tensor import DTensor

from core import storage
from core.errors import ObjectMissing, StorageError, UsageError

log = logging.getLogger(__name__)

Content = bytes | Callable[[BinaryIO], None]
"""Of a file: its bytes, or what writes them (front to back, without seeking)."""
COMPLETE: Final = "complete.json"
_STEP_FOLDER: Final = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a checkpoint: bytes, and BLAKE2b of 32 bytes in hexadecimal."""

    size: int
    blake2b: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was written to its end.

    Attributes:
        step: steps that were made before it was taken, or as its writer counts them.
        uri: its folder.
        files: by name.
        metrics: as they were given to ``save``; None where a value was not finite.
    """

    step: int
    uri: str
    files: dict[str, StoredFile]
    metrics: dict[str, float | None]


class CheckpointStore:
    """The checkpoints below one folder, each in ``step-00000123/``; one process at a time writes.

    ``complete.json`` with sizes and sums of all files is written last: a folder without it, or with a file of another size, is no
    checkpoint.
    """

    def __init__(
        self,
        folder_uri: str,
        keep_last: int = 2,
        keep_best: int = 1,
        best: str | None = None,
        best_mode: Literal["min", "max"] = "min",
    ) -> None:
        """Touches nothing yet.

        Args:
            folder_uri: local path or ``s3://``.
            keep_last: newest ones that are kept.
            keep_best: best ones, by the metric ``best``, that are kept beside them.
            best: name of a metric; None: only the newest are kept.
            best_mode: whether a small or a large value is good.

        Raises:
            UsageError: a number out of its range, or a URI that cannot be used.
        """
        if keep_last < 1 or keep_best < 0:
            raise UsageError(f"keep_last is {keep_last} and keep_best {keep_best}; allowed are 1 or more, and 0 or more")
        if best_mode not in ("min", "max"):
            raise UsageError(f"best_mode is {best_mode}, which must be min or max")
        self._folder = storage.normalize_uri(folder_uri)
        self._store = storage.storage_for(self._folder)
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._best = best
        self._best_mode = best_mode

    def save(self, step: int, files: Mapping[str, Content], metrics: Mapping[str, float | None]) -> None:
        """Writes a checkpoint, in place of one of the same step, and then removes those that the rule does not keep.

        Args:
            step: from 0.
            files: by name, which may have folders (``model/config.json``).
            metrics: what is known of it, among them the one that says which is best.

        Raises:
            UsageError: a step below 0, no files, or a name that cannot be one.
            StorageError, StorageUnavailable: it cannot be written; the checkpoints before it are there.
        """
        if step < 0 or not files:
            raise UsageError(f"a checkpoint of step {step} with {len(files)} files; steps count from 0, and it needs at least one file")
        for name in files:
            if name == COMPLETE or not name or any(part in ("", ".", "..") for part in name.split("/")):
                raise UsageError(f"a checkpoint's file is called {name!r}; give a relative name other than {COMPLETE}")
        folder = self._uri(step)
        # what stood there stops being a checkpoint before any file of it is replaced
        self._store.delete(storage.join(folder, COMPLETE))
        written = {name: self._put(storage.join(folder, name), content) for name, content in files.items()}
        complete = {
            "step": step,
            "files": {name: {"size": file.size, "blake2b": file.blake2b} for name, file in written.items()},
            "metrics": {name: _finite(value) for name, value in metrics.items()},
        }
        self._store.write(storage.join(folder, COMPLETE), json.dumps(complete, indent=1, sort_keys=True, allow_nan=False).encode())
        self._prune(step)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None where there is none. A damaged one is passed over with a warning.

        Sizes are compared here, and sums where a file is read.
        """
        folders = self._listed()
        for step in sorted(folders, reverse=True):
            found = self._checkpoint(step, folders[step])
            if found is not None:
                return found
        return None

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, rising."""
        return [checkpoint.step for checkpoint in self._checkpoints(self._listed())]

    def read(self, checkpoint: Checkpoint, name: str) -> bytes:
        """The bytes of one of its files, as they were written.

        Raises:
            UsageError: it has no such file.
            StorageError: the file is gone, or is not what was written.
        """
        file = checkpoint.files.get(name)
        if file is None:
            raise UsageError(f"{checkpoint.uri} has no file {name}; it has {', '.join(sorted(checkpoint.files))}")
        data = self._store.read(storage.join(checkpoint.uri, name))
        if len(data) != file.size or hashlib.blake2b(data, digest_size=32).hexdigest() != file.blake2b:
            raise StorageError(f"{name} in {checkpoint.uri} is not what was written; remove that folder to resume from the one before")
        return data

    def _uri(self, step: int) -> str:
        return storage.join(self._folder, f"step-{step:08d}")

    def _put(self, uri: str, content: Content) -> StoredFile:
        if isinstance(content, bytes):
            self._store.write(uri, content)
            return StoredFile(len(content), hashlib.blake2b(content, digest_size=32).hexdigest())
        with self._store.create(uri) as file:
            summed = _SummedFile(file)
            content(summed)  # type: ignore[arg-type]  # a file to write into, which is all that it may be used for
        return StoredFile(summed.size, summed.sum.hexdigest())

    def _listed(self) -> dict[int, dict[str, int]]:
        """What is there, whole or not: sizes by name by step."""
        found: dict[int, dict[str, int]] = {}
        for entry in self._store.list(self._folder):
            folder, _, name = storage.relative(self._folder, entry.uri).partition("/")
            match = _STEP_FOLDER.fullmatch(folder)
            if match and name:
                found.setdefault(int(match.group(1)), {})[name] = entry.size
        return found

    def _checkpoints(self, folders: Mapping[int, Mapping[str, int]]) -> list[Checkpoint]:
        found = [self._checkpoint(step, folders[step]) for step in sorted(folders)]
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def _checkpoint(self, step: int, sizes: Mapping[str, int]) -> Checkpoint | None:
        folder = self._uri(step)
        if COMPLETE not in sizes:
            log.info("%s was not written to its end", folder)
            return None
        try:
            written = json.loads(self._store.read(storage.join(folder, COMPLETE)))
            files = {name: StoredFile(int(file["size"]), str(file["blake2b"])) for name, file in written["files"].items()}
            metrics = {name: _finite(value) for name, value in written["metrics"].items()}
        except ObjectMissing:
            return None  # removed since it was listed
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is passed over: its %s cannot be read (%s)", folder, COMPLETE, error)
            return None
        wrong = [name for name, file in files.items() if sizes.get(name) != file.size]
        if wrong:
            log.warning("%s is passed over: %s has %s bytes, not %d", folder, wrong[0], sizes.get(wrong[0], "no"), files[wrong[0]].size)
            return None
        return Checkpoint(step, folder, files, metrics)

    def _prune(self, saved: int) -> None:
        folders = self._listed()
        whole = self._checkpoints(folders)
        kept = {saved, *(checkpoint.step for checkpoint in whole[-self._keep_last :])}
        if self._best is not None:
            sign = 1 if self._best_mode == "min" else -1
            known = [(sign * value, -checkpoint.step) for checkpoint in whole if (value := checkpoint.metrics.get(self._best)) is not None]
            kept.update(-step for _, step in sorted(known)[: self._keep_best])
        gone = {checkpoint.step for checkpoint in whole}
        gone.update(step for step in folders if step < saved)
        for step in sorted(gone - kept):
            self._remove(step, folders[step])

    def _remove(self, step: int, names: Mapping[str, int]) -> None:
        # complete.json first: a kill in between leaves no checkpoint, rather than a damaged one
        for name in sorted(names, key=lambda name: (name != COMPLETE, name)):
            self._store.delete(storage.join(self._uri(step), name))
        if not storage.is_s3(self._folder):
            # the folder itself, with what a killed write left in it
            shutil.rmtree(self._uri(step), ignore_errors=True)


class _SummedFile(io.RawIOBase):
    """Passes on what is written, and sums it up."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.sum = hashlib.blake2b(digest_size=32)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        length = memoryview(data).nbytes
        self.sum.update(data)
        self.size += length
        return length


def state_bytes(state: Mapping[str, Any]) -> Callable[[BinaryIO], None]:
    """The content of a file that ``load_state`` reads. The state is copied to the CPU here and now, so it may change before it is written.

    Args:
        state: nested dicts, lists and tuples of tensors, numbers, strings, bytes and None.

    Raises:
        UsageError: anything else in it, among it tensors that are sharded over workers (gather them first).
    """
    copied = _copied(dict(state), "state")

    def write(file: BinaryIO) -> None:
        torch.save(copied, file)

    return write


def load_state(data: bytes) -> dict[str, Any]:
    """What was given to ``state_bytes``, on the CPU. Nothing but data is read: no code can be in it.

    Raises:
        StorageError: it is something else.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise StorageError(f"a checkpoint's state cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(state, dict):
        raise StorageError(f"a checkpoint's state is a {type(state).__name__}, not a dict")
    return state


class BackgroundSaver:
    """Saves checkpoints while the training goes on, one at a time; a context manager that waits for the last one."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def submit(self, step: int, files: Mapping[str, Content], metrics: Mapping[str, float | None]) -> None:
        """``CheckpointStore.save`` in the background, after the former one is done; what is given must not change any more.

        Raises:
            Exception: what the former save raised; the new one is not begun then.
        """
        self.wait()
        self._under_way = self._threads.submit(self._store.save, step, dict(files), dict(metrics))

    def wait(self) -> None:
        """Waits until what was submitted is saved.

        Raises:
            Exception: what the save raised; once.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """As ``wait``, and ends the thread."""
        try:
            self.wait()
        finally:
            self._threads.shutdown()

    def __enter__(self) -> BackgroundSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        # the error of the block is the one to tell
        try:
            self.close()
        except Exception:
            log.exception("a checkpoint could not be saved")


def _copied(value: Any, place: str) -> Any:
    if isinstance(value, DTensor):
        raise UsageError(f"{place} is sharded over workers; gather it before it is saved")
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(inner, f"{place}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        parts = [_copied(inner, f"{place}[{index}]") for index, inner in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise UsageError(f"{place} is a {type(value).__name__}; a state holds tensors, numbers, strings, bytes, None, dicts, lists and tuples")


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
