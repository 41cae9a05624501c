"""The ledger of a run of rounds: one object on storage for each step that is done, with where its output is and what went into it.

A step's fingerprint is of its settings and of what its inputs came to; a step whose entry has the same fingerprint is done, and is not done
again. The entry is put last, atomically: a step that was killed has none, and is begun again on the same output, where the jobs go on.
There is no time and no name of a machine in an entry, so two runs with the same inputs have equal ledgers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from core import storage
from core.errors import ObjectMissing, UsageError

FOLDER: Final = "ledger"
OUTPUTS: Final = "steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A step that is done.

    Attributes:
        step: its name.
        fingerprint: of its settings and inputs.
        inputs: what each step that it follows came to (``outcome``), by name.
        settings: all else that decides its results.
        output: folder below that of the run.
        result: what came of it, in numbers and short words.
        outside: fingerprint of what it took from the world (labels); empty where it is a function of the rest.
    """

    step: str
    fingerprint: str
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    output: str
    result: Mapping[str, Any] = field(default_factory=dict)
    outside: str = ""

    @property
    def outcome(self) -> str:
        """What the step came to, for the fingerprints of those that follow."""
        return self.fingerprint if not self.outside else digest([self.fingerprint, self.outside])


class StepLedger:
    """The entries of the run in ``folder`` (local or s3://)."""

    def __init__(self, folder: str) -> None:
        self.folder = storage.normalize_uri(folder)

    def read(self, step: str) -> Entry | None:
        """The entry of a step; None where it is not done.

        Raises:
            UsageError: the object is no entry.
        """
        uri = self._uri(step)
        try:
            return Entry(**json.loads(storage.storage_for(uri).read(uri)))
        except ObjectMissing:
            return None
        except (ValueError, TypeError) as error:
            raise UsageError(f"{uri} is no entry of a ledger ({error}); move it away, and the step is done again") from error

    def write(self, entry: Entry) -> None:
        """Put an entry, which says that its step is done."""
        uri = self._uri(entry.step)
        storage.storage_for(uri).write(uri, json.dumps(asdict(entry), indent=1, sort_keys=True).encode())

    def output(self, step: str, fingerprint: str) -> str:
        """Where a step with this fingerprint writes, relative to the folder: another place for other inputs, so nothing is written over."""
        return f"{OUTPUTS}/{step}-{fingerprint[:8]}"

    def entries(self) -> dict[str, Entry]:
        """All entries by step."""
        folder = storage.join(self.folder, FOLDER)
        names = [storage.relative(folder, entry.uri).removesuffix(".json") for entry in storage.storage_for(folder).list(folder)]
        return {name: entry for name in sorted(names) if (entry := self.read(name)) is not None}

    def _uri(self, step: str) -> str:
        return storage.join(self.folder, FOLDER, f"{step}.json")


def digest(value: Any) -> str:
    """32 hex digits that change with any part of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def data_fingerprint(uri: str) -> str:
    """Changes with the data at ``uri``: names, sizes and versions of the objects below it, or of the one that it is. No object is read.

    Raises:
        UsageError: there is nothing.
    """
    uri = storage.normalize_uri(uri)
    found = hashlib.blake2b(digest_size=16)
    count = 0
    listed = ((storage.relative(uri, one.uri), one.size, one.version) for one in storage.storage_for(uri).list(uri))
    for line in sorted(entry for entry in listed if not _hidden(entry[0])):
        found.update(f"{line}\n".encode(errors="replace"))
        count += 1
    if not count:
        try:
            data = storage.storage_for(uri).read(uri)
        except ObjectMissing as error:
            raise UsageError(f"there is nothing at {uri}; give a dataset, a folder or a manifest") from error
        found.update(data)
    return found.hexdigest()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no fingerprint")
