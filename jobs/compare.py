"""``cleanplate evaluate --compare``: erasures of several models in one table, with paired differences, and a contact sheet."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import PurePosixPath
from typing import Any, Final

import cv2
import numpy as np
import pyarrow.parquet as pq

from core import storage
from core.errors import ItemError, UsageError
from core.fetch import Fetcher
from core.images import Pixels, decode_photo, encode_image
from core.masks import decode_mask
from core.metrics.comparison import FIGURES
from core.metrics.pairing import Figures, as_csv, as_markdown, compared
from core.readers import open_input, parquet_source
from jobs.data_config import EvaluateConfig
from jobs.evaluate import LATENCY, PASTED, evaluate
from jobs.evaluate_networks import REMOVAL_FIGURES
from training.contact_sheet import contact_sheet, marked

SHEET_ROWS: Final = 8
SHEET_SIDE: Final = 256
_COMPARED: Final = ("score", *FIGURES, *REMOVAL_FIGURES, *(PASTED + name for name in FIGURES), LATENCY)


def run(config: EvaluateConfig) -> int:
    """Print the table, or with ``--json`` what ``compare`` returns."""
    found = compare(config)
    print(json.dumps(found) if config.json else as_markdown(found["table"]))
    return 0


def compare(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate ``config.input`` and every one of ``config.compare``, each into its own folder of ``config.output``, and compare them.

    Writes ``comparison.md``, ``comparison.csv``, ``comparison.json`` and ``sheet.png`` (a row an item: source with mask, each model's
    result, the truth) beside them.

    Returns:
        ``models`` (the summary of each, by name) and ``table`` (``core.metrics.pairing.compared``).

    Raises:
        UsageError: no output is given, or the inputs have no item in common.
        CleanplateError: as ``jobs.evaluate.evaluate``.
    """
    if not config.output:
        raise UsageError("--compare needs --output: the table and the figures of each model are written there")
    inputs = [config.input, *(part.strip() for part in config.compare.split(",") if part.strip())]
    output, names = storage.normalize_uri(config.output), _names(inputs)
    summaries, figures = {}, {}
    for name, uri in zip(names, inputs, strict=True):
        folder = storage.join(output, name)
        summaries[name] = evaluate(replace(config, input=uri, output=folder, compare=""))
        figures[name] = _figures(storage.join(folder, "metrics.parquet"))
    table = compared(figures, _COMPARED)
    store = storage.storage_for(output)
    store.write(storage.join(output, "comparison.md"), as_markdown(table).encode())
    store.write(storage.join(output, "comparison.csv"), as_csv(table).encode())
    found = {"models": summaries, "table": table}
    store.write(storage.join(output, "sheet.png"), encode_image(_sheet(config, inputs)))
    store.write(storage.join(output, "comparison.json"), json.dumps(found, indent=1).encode())
    return found


def _names(inputs: list[str]) -> list[str]:
    """The last part of each input, or the last two where these are equal."""
    for parts in range(1, 8):
        names = ["-".join(PurePosixPath(uri.removeprefix("s3://")).parts[-parts:]).replace("/", "") for uri in inputs]
        if len(set(names)) == len(names):
            return names
    raise UsageError(f"the same input is given twice: {', '.join(inputs)}")


def _figures(uri: str) -> Figures:
    rows = pq.read_table(parquet_source(uri)).to_pylist()
    return {row["id"]: {name: row[name] for name in _COMPARED} for row in rows}


def _sheet(config: EvaluateConfig, inputs: list[str]) -> Pixels:
    """Some items that all inputs have, evenly spaced, each picture fitted into a square."""
    opened = [open_input(uri) for uri in inputs]
    found = [{row.id: row for row in one.rows() if row.error is None} for one in opened]
    fetchers = [Fetcher(one.base) for one in opened]
    shared = sorted(set.intersection(*(set(rows) for rows in found)))
    rows = []
    for item in shared[:: max(1, len(shared) // SHEET_ROWS)][:SHEET_ROWS]:
        try:
            asked = [(fetcher, asdict(items[item])) for fetcher, items in zip(fetchers, found, strict=True)]
            records = [fetcher.fetch_record(row, config.max_megapixels) for fetcher, row in asked]
            source = decode_photo(records[0]["source"]["bytes"], max_megapixels=config.max_megapixels)
            mask = decode_mask(records[0]["mask"]["bytes"], (source.width, source.height), max_megapixels=config.max_megapixels)
            others = [*(values["erased"] for values in records), records[0]["target"]]
            pictures = [decode_photo(one["bytes"], max_megapixels=config.max_megapixels).pixels if one else None for one in others]
        except ItemError:  # counted by the evaluation
            continue
        rows.append([_fitted(one) for one in (marked(source.pixels, mask.pixels), *pictures)])
    return contact_sheet(rows) if rows else np.full((SHEET_SIDE, SHEET_SIDE, 3), 255, np.uint8)


def _fitted(picture: Pixels | None) -> Pixels:
    """The picture in the middle of a white square of the sheet's size; a white one for none."""
    square = np.full((SHEET_SIDE, SHEET_SIDE, 3), 255, np.uint8)
    if picture is not None:
        scale = SHEET_SIDE / max(picture.shape[:2])
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        top, left = (SHEET_SIDE - height) // 2, (SHEET_SIDE - width) // 2
        square[top : top + height, left : left + width] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return square
