"""What a training writes down as it goes: one JSON line a step, the same for TensorBoard, and pictures; on disk, with a copy elsewhere."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from core import storage
from core.errors import ObjectMissing, UsageError
from core.images import encode_image

log = logging.getLogger(__name__)

LINES: Final = "metrics.jsonl"
EVENTS: Final = "tensorboard"
PICTURES: Final = "pictures"
_RESERVED: Final = ("step", "nonfinite")
_PICTURE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class RunLog:
    """The log of one run, written by one process.

    A line of ``metrics.jsonl`` is ``{"step": 12, "loss": 0.25, ...}``, and its steps only rise. JSON has no word for values that are not
    finite: they are null, and ``"nonfinite": {"loss": "nan"}`` says what they were. Lines reach the operating system at once, so a killed
    process loses none; the disk itself and the copy get them at ``flush``.
    """

    def __init__(self, local_folder: Path, remote: str | None, tensorboard: bool) -> None:
        """Opens nothing yet.

        Args:
            local_folder: where files are written.
            remote: folder, local or ``s3://``, that gets a copy of them; None: there is none.
            tensorboard: whether TensorBoard's event files are written, too (to ``tensorboard/``); where its package is missing a warning
                is logged, and the run goes on without.
        """
        self._folder = local_folder
        self._remote = None if remote is None else storage.normalize_uri(remote)
        self._tensorboard = tensorboard
        self._file: BinaryIO | None = None
        self._events: Any = None
        self._last = -1
        self._count = 0
        self._copied: dict[str, int] = {}

    def resume(self, step: int) -> int:
        """Makes the file hold exactly the lines of the steps before ``step``, each once and in order; to be called before the first write.

        Where the copy has more of them than the disk (another machine went on, or the disk is new) it is taken. Lines of steps that will
        be made again, and a last line that was cut off in writing, are dropped.

        Args:
            step: the next one that will be made; 0 starts the log anew.

        Returns:
            How many lines there are.
        """
        self._begin(step)
        return self._count

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes the line of a step. A log that was not resumed goes on from the lines before ``step``.

        Args:
            step: above those written before.
            values: by name; None: not known at this step.

        Raises:
            UsageError: the step was written already, or a name is ``step`` or ``nonfinite``.
        """
        file = self._file if self._file is not None else self._begin(step)
        if step <= self._last:
            raise UsageError(f"step {step} is in the log already (the last is {self._last}); each is written once, in order")
        taken = [name for name in _RESERVED if name in values]
        if taken:
            raise UsageError(f"a logged value is called {taken[0]}, which the log uses itself; give it another name")
        file.write(_line(step, values))
        self._last = step
        if self._events is not None:
            for name, value in values.items():
                if value is not None:
                    self._events.add_scalar(name, value, global_step=step)

    def picture(self, step: int, name: str, array: npt.NDArray[np.uint8]) -> None:
        """Writes a picture to ``pictures/``, as PNG, over one of the same step and name.

        Args:
            name: letters, digits, ``_``, ``.`` and ``-``.
            array: (H, W, 3) uint8 RGB.

        Raises:
            UsageError: name, shape or dtype is another.
        """
        if not _PICTURE_NAME.fullmatch(name):
            raise UsageError(f"a logged picture is called {name!r}; allowed are letters, digits, _, . and -")
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise UsageError(f"picture {name} is {array.dtype} {array.shape}; a logged picture is uint8 (H, W, 3)")
        path = self._folder / PICTURES / f"step-{step:08d}-{name}.png"
        storage.LocalStorage().write(str(path), encode_image(array))
        self._copied.pop(f"{PICTURES}/{path.name}", None)
        if self._events is not None:
            self._events.add_image(name, array, global_step=step, dataformats="HWC")

    def flush(self) -> None:
        """Brings everything that was written to the disk, and then to the copy; files that have not grown since are not sent again.

        Raises:
            StorageError, StorageUnavailable: the copy cannot be written.
        """
        if self._file is not None:
            os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()
        if self._remote is None:
            return
        folders = [self._folder / EVENTS, self._folder / PICTURES]
        for path in [self._folder / LINES, *(path for folder in folders for path in sorted(folder.glob("*")))]:
            name = path.relative_to(self._folder).as_posix()
            size = path.stat().st_size if path.is_file() else None
            if size is None or path.name.startswith(".") or self._copied.get(name) == size:
                continue
            data = path.read_bytes()
            uri = storage.join(self._remote, name)
            storage.storage_for(uri).write(uri, data)
            self._copied[name] = len(data)

    def close(self) -> None:
        """Closes the files; what was written since the last ``flush`` stays on this machine."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._events is not None:
            self._events.close()
            self._events = None
        self._copied = {}

    def _begin(self, step: int) -> BinaryIO:
        self.close()
        path = self._folder / LINES
        lines = _lines_before(step, path.read_bytes() if path.is_file() else b"")
        if self._remote is not None:
            there = _lines_before(step, _read_or_nothing(storage.join(self._remote, LINES)))
            lines = there if len(there) > len(lines) else lines
        if len(lines) < step:
            log.warning("%s has %d lines of the %d steps before step %d; the others were lost in a crash", path, len(lines), step, step)
        storage.LocalStorage().write(str(path), b"".join(line + b"\n" for line in lines))
        self._last = max(step, 0) - 1
        self._count = len(lines)
        self._file = file = path.open("ab", buffering=0)
        if self._tensorboard:
            self._events = _event_writer(self._folder / EVENTS, step)
        return file


def _line(step: int, values: Mapping[str, float | None]) -> bytes:
    row: dict[str, Any] = {"step": step}
    nonfinite: dict[str, str] = {}
    for name, value in values.items():
        number = None if value is None else float(value)
        if number is not None and not math.isfinite(number):
            nonfinite[name] = str(number)
            number = None
        row[name] = number
    if nonfinite:
        row["nonfinite"] = nonfinite
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _lines_before(step: int, data: bytes) -> list[bytes]:
    """Whole lines with rising steps below ``step``."""
    lines: list[bytes] = []
    last = -1
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off in writing, or the nothing after the last line
        found = row.get("step") if isinstance(row, dict) else None
        if isinstance(found, int) and last < found < step:
            lines.append(line)
            last = found
    return lines


def _read_or_nothing(uri: str) -> bytes:
    try:
        return storage.storage_for(uri).read(uri)
    except ObjectMissing:
        return b""


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("no TensorBoard files are written: pip install tensorboard; %s has the same numbers", LINES)
        return None
    # TensorBoard shows no older values of the steps that are made again
    return SummaryWriter(log_dir=str(folder), purge_step=step)
