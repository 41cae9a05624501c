"""The record: the columns of a dataset of object-removal triplets, and of its failures.

A dataset is a folder of Parquet shards (``part-*.parquet``) with ``dataset.json`` beside them; what failed is in
``failures/part-*.parquet``. Image columns are ``struct<bytes, path>`` and the schema carries Hugging Face feature metadata, so that
``datasets.load_dataset("parquet", data_files=".../part-*.parquet")`` shows them as pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pyarrow as pa

SCHEMA_VERSION: Final = 1
VERDICTS: Final = ("accepted", "rejected", "uncertain")

IMAGE: Final = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
IMAGE_COLUMNS: Final = ("source", "mask", "target", "effect_mask", "erased")
REQUIRED_COLUMNS: Final = ("id", "source", "mask", "origin", "width", "height")

# every field is nullable: datasets takes a column's feature from the metadata only where its field is what the feature would make
_FIELDS: Final = [
    pa.field("id", pa.string()),
    pa.field("source", IMAGE),
    pa.field("mask", IMAGE),
    pa.field("target", IMAGE),
    pa.field("effect_mask", IMAGE),
    pa.field("category", pa.string()),
    pa.field("origin", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("erased", IMAGE),
    pa.field("score", pa.float32()),
    pa.field("verdict", pa.string()),
    pa.field("seed", pa.int64()),
    pa.field("model", pa.string()),
    pa.field("round", pa.int32()),
]


def _feature(field: pa.Field) -> dict[str, str]:
    if field.type == IMAGE:
        return {"_type": "Image"}
    return {"dtype": {"float": "float32"}.get(str(field.type), str(field.type)), "_type": "Value"}


def _with_features(fields: Iterable[pa.Field]) -> pa.Schema:
    fields = list(fields)
    features = {field.name: _feature(field) for field in fields}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


RECORD_SCHEMA: Final = _with_features(_FIELDS)
FAILURE_SCHEMA: Final = _with_features(
    pa.field(name, pa.string(), nullable=name in {"uri"}) for name in ("id", "uri", "stage", "error", "message")
)


def image_value(data: bytes | None, path: str | None = None) -> dict[str, Any] | None:
    """One value of an image column; None for no picture."""
    return None if data is None else {"bytes": data, "path": path}


def empty_record(**values: Any) -> dict[str, Any]:
    """A record with every column present and null where no value is given.

    Raises:
        ValueError: a name is not a column of the record.
    """
    unknown = sorted(set(values) - set(RECORD_SCHEMA.names))
    if unknown:
        raise ValueError(f"no such column of the record: {', '.join(unknown)}; the columns are {', '.join(RECORD_SCHEMA.names)}")
    return {name: values.get(name) for name in RECORD_SCHEMA.names}


def record_problem(record: Mapping[str, Any]) -> str | None:
    """Why this is no valid record, in one line; None when it is one."""
    for name in REQUIRED_COLUMNS:
        if record.get(name) is None:
            return f"column {name} is missing or null; a record needs {', '.join(REQUIRED_COLUMNS)}"
    if not record["id"]:
        return "column id is empty"
    if record["width"] <= 0 or record["height"] <= 0:
        return f"size is {record['width']} x {record['height']}; both sides must be positive"
    score = record.get("score")
    if score is not None and not 0.0 <= score <= 1.0:
        return f"score is {score}; a score is a probability from 0 to 1"
    verdict = record.get("verdict")
    if verdict is not None and verdict not in VERDICTS:
        return f"verdict is {verdict!r}; allowed are {', '.join(VERDICTS)}"
    for name in IMAGE_COLUMNS:
        value = record.get(name)
        if value is not None and not value.get("bytes"):
            return f"column {name} has no bytes; a picture is stored inside the record"
    return None


def schema_problem(schema: pa.Schema) -> str | None:
    """Why files with this schema are no dataset of records, in one line; None when they are."""
    for name in REQUIRED_COLUMNS:
        if name not in schema.names:
            return f"column {name} is missing; found {', '.join(schema.names[:20])}"
    for name in ("id", "origin"):
        if schema.field(name).type not in (pa.string(), pa.large_string()):
            return f"column {name} is {schema.field(name).type}; it must be string"
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if not pa.types.is_struct(kind) or {field.name for field in kind} < {"bytes", "path"}:
                return f"column {name} is {kind}; an image column is struct<bytes: binary, path: string>"
    return None


def verdict_for(score: float | None, *, accept_above: float, uncertain_from: float) -> str | None:
    """``accepted`` strictly above ``accept_above``, ``uncertain`` from ``uncertain_from`` up to it, else ``rejected``.

    RORem, section 3.2, accepts above 0.9.
    """
    if score is None:
        return None
    if score > accept_above:
        return "accepted"
    return "uncertain" if score >= uncertain_from else "rejected"


def id_from_uris(source: str, mask: str) -> str:
    """A stable id (32 hex digits) for a pair that came without one: a hash of its two URIs as they were written.

    The URIs and not the bytes: an id must exist for an item whose bytes cannot be read, and be known before anything is fetched.
    """
    return hashlib.blake2b(f"{source}\0{mask}".encode(), digest_size=16).hexdigest()


def item_seed(item_id: str, seed: int, candidate: int = 0) -> int:
    """The seed (0 to 2**63 - 1) of the item's noise: a function of id, run seed and candidate, never of batch or worker."""
    digest = hashlib.blake2b(f"{seed}\0{candidate}\0{item_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
