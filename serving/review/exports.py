"""What people decided, for others: a file of labels, a dataset for the discriminator, RORem's meta.json, Label Studio's JSON."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import pyarrow as pa

from core import storage
from core.errors import UsageError
from core.labels import Label, write_labels
from core.ledger import ROW_GROUP_ROWS, list_parts, write_shard
from core.readers import open_parquet
from core.record import RECORD_SCHEMA, SCHEMA_VERSION, empty_record
from serving.review import label_studio
from serving.review.store import Store

Format = Literal["labels", "discriminator", "rorem", "labelstudio"]
Judged = tuple[dict[str, Any], Label]
_MAGIC: Final = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tif"), (b"MM\0*", "tif"))


def export(store: Store, queue: str, source: str, form: Format, output: str) -> dict[str, Any]:
    """Write what was decided of a queue's items and return counts; ``output`` is a file for ``labels``, else a folder that is empty.

    Args:
        store, queue: the log.
        source: the dataset that the queue is of.
        form: ``labels`` (``core.labels``); ``discriminator``: records with people's verdicts, without unsure and tied ones; ``rorem``:
            files and ``meta.json`` whose score is the share of accepting votes; ``labelstudio``: files, ``tasks.json`` and ``config.xml``.
        output: local or ``s3://``.

    Raises:
        UsageError: nothing was decided yet, or the output has the wrong name or is in use.
        StorageError: a store refused.
    """
    output, source = storage.normalize_uri(output), storage.normalize_uri(source)
    if form == "labels":
        if not output.endswith(".parquet"):
            raise UsageError(f"--output {output}: labels are one file, whose name ends in .parquet")
        return {"items": write_labels(output, store.labels(queue)), "output": output}
    labels = {label.id: label for label in store.labels(queue) if form != "discriminator" or label.accepted is not None}
    if not labels:
        raise UsageError(f"people have decided nothing of queue {queue} yet; there is nothing to export")
    if next(iter(storage.storage_for(output).list(output)), None) is not None:
        raise UsageError(f"--output {output} is not empty; give a new folder")
    if form == "discriminator":
        count = _write_dataset(source, labels, output)
    elif form == "rorem":
        count = _write_rorem(source, labels, output)
    else:
        count = _write_label_studio(store, queue, source, labels, output)
    return {"items": count, "output": output}


def labelled_records(part: str, labels: Mapping[str, Label]) -> Iterator[Judged]:
    """The records of a shard that have a label, with it; a few are in memory at a time."""
    file = open_parquet(part)
    columns = [name for name in RECORD_SCHEMA.names if name in file.schema_arrow.names]
    for batch in file.iter_batches(ROW_GROUP_ROWS, columns=columns):
        wanted = [row for row, name in enumerate(batch.column("id").to_pylist()) if name in labels]
        for values in batch.take(pa.array(wanted, pa.int64())).to_pylist() if wanted else ():
            yield empty_record(**values), labels[values["id"]]


def judged_record(record: Mapping[str, Any], label: Label) -> dict[str, Any]:
    """The record with people's verdict; an accepted erasure is the target where there is no ground truth, a rejected one never."""
    erased = record["erased"]
    # a target that is the erasure came of an earlier verdict, not of the world
    known = None if (record["target"] or {}).get("bytes") == erased["bytes"] else record["target"]
    return {**record, "verdict": label.verdict, "target": known or (erased if label.accepted else None)}


def _write_dataset(source: str, labels: Mapping[str, Label], output: str) -> int:
    verdicts: Counter[str] = Counter()
    parts = 0
    for part in list_parts(source):
        rows = [judged_record(record, label) for record, label in labelled_records(part, labels)]
        if rows:
            write_shard(storage.join(output, storage.relative(source, part)), pa.Table.from_pylist(rows, RECORD_SCHEMA))
            verdicts.update(row["verdict"] for row in rows)
            parts += 1
    total = verdicts.total()
    write_labels(storage.join(output, ".cleanplate", "labels.parquet"), labels.values())
    described = {
        "schema_version": SCHEMA_VERSION,
        "counts": {"in": total, "out": total, "failed": 0, **{f"verdict_{name}": count for name, count in sorted(verdicts.items())}},
        "failures": {},
        "configuration": {"made_by": "cleanplate review --export discriminator", "input": source},
        "parts": parts,
    }
    storage.storage_for(output).write(storage.join(output, "dataset.json"), json.dumps(described, indent=1, sort_keys=True).encode())
    return total


def _write_rorem(source: str, labels: Mapping[str, Label], output: str) -> int:
    """As RORem's discriminator data are: ``GT`` is the erasure, and ``score`` how good it is."""
    entries = []
    for part in list_parts(source):
        for record, label in labelled_records(part, labels):
            names = _write_pictures(record, output, {"source": "source", "mask": "mask", "erased": "GT"})
            entries.append({**names, "score": label.share})
    storage.storage_for(output).write(storage.join(output, "meta.json"), json.dumps(entries, indent=1).encode())
    return len(entries)


def _write_label_studio(store: Store, queue: str, source: str, labels: Mapping[str, Label], output: str) -> int:
    given: dict[str, list[dict[str, Any]]] = {}
    for vote in store.votes(queue):
        given.setdefault(vote["item"], []).append(vote)
    tasks = []
    for part in list_parts(source):
        for record, _ in labelled_records(part, labels):
            names = _write_pictures(record, output, {"source": "source", "mask": "mask", "erased": "erased"})
            tasks.append(label_studio.make_task(record, names, PurePosixPath(output).name, given[record["id"]]))
    for name, data in (("tasks.json", json.dumps(tasks, indent=1).encode()), ("config.xml", label_studio.CONFIG.encode())):
        storage.storage_for(output).write(storage.join(output, name), data)
    return len(tasks)


def _write_pictures(record: Mapping[str, Any], output: str, folders: Mapping[str, str]) -> dict[str, str]:
    """Write pictures of a record below ``<output>/<folder>/``, as they are stored; returns their names by folder."""
    stem = _file_name(record["id"])
    names = {}
    for role, folder in folders.items():
        data = record[role]["bytes"]
        suffix = next((name for magic, name in _MAGIC if data.startswith(magic)), "webp")
        names[folder] = f"{folder}/{stem}.{suffix}"
        storage.storage_for(output).write(storage.join(output, names[folder]), data)
    return names


def _file_name(item: str) -> str:
    """A name for a file that no other id has, and that tells the id where it can."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in item)[:80]
    return plain if plain == item else f"{plain}-{hashlib.blake2b(item.encode(), digest_size=6).hexdigest()}"
