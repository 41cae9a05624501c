"""What a job leaves in its output beside the dataset: plan, configuration, lease; in ``.cleanplate/``, which data loaders skip."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from core import storage
from core.errors import ObjectMissing, UsageError
from core.ledger import list_output

FOLDER: Final = ".cleanplate"


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Where the files of the job on one output are."""

    output: str

    @property
    def lease(self) -> str:
        return storage.join(self.output, FOLDER, "lease")

    @property
    def job(self) -> str:
        return storage.join(self.output, FOLDER, "job.json")

    @property
    def plan(self) -> str:
        return storage.join(self.output, FOLDER, "plan")

    @property
    def dataset(self) -> str:
        return storage.join(self.output, "dataset.json")


def read_object(uri: str) -> dict[str, Any] | None:
    """The JSON object at ``uri``; None where there is none."""
    try:
        return dict(json.loads(storage.storage_for(uri).read(uri)))
    except ObjectMissing:
        return None
    except ValueError as error:
        raise UsageError(f"{uri} is not JSON ({error}); it was not written by cleanplate: give another --output") from error


def write_object(uri: str, value: dict[str, Any]) -> None:
    """Put a JSON object atomically."""
    storage.storage_for(uri).write(uri, json.dumps(value, indent=1, sort_keys=True).encode())


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Which settings differ, each as ``name: old -> new``."""
    names = sorted(set(old) | set(new))
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]


def admit(files: JobFiles, settings: dict[str, Any], *, overwrite: bool) -> bool:
    """Let a job with these settings write to the output, or refuse; returns whether it goes on with one that was started before.

    To be called with the lease held. For a new job the output is empty afterwards; its ``job.json`` is the caller's to write, once the
    plan stands, so that a mistyped input leaves nothing behind.

    Raises:
        UsageError: the output belongs to a job with other settings (which are named), or holds shards that no job made.
    """
    before = read_object(files.job)
    if before is not None:
        changed = differences(before["settings"], settings)
        if not changed and not overwrite:
            return True
        if not overwrite:
            raise UsageError(
                f"the job in {files.output} was started with other settings ({'; '.join(changed)}): use those, give another --output, "
                "or start anew with --overwrite"
            )
    results, failures = list_output(files.output)
    if (results or failures) and not overwrite:
        raise UsageError(
            f"{files.output} holds {len(results) + len(failures)} shards that no job of cleanplate made: "
            "give another --output, or --overwrite"
        )
    store = storage.storage_for(files.output)
    # job.json goes last: until then a run without --overwrite is refused, so results of two configurations never mix
    for uri in [files.dataset, *results, *failures, *(entry.uri for entry in store.list(files.plan)), files.job]:
        store.delete(uri)
    return False
