"""``cleanplate evaluate``: erasures against the truth and the discriminator, with and without background paste.

One process and threads, as ``verify``: the pictures of one item are in memory at a time for each thread, and of an item only its figures
are kept.
"""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from core import storage
from core.checkpoints import locate
from core.errors import CleanplateError, ItemError, StorageError, StorageUnavailable, UsageError
from core.fetch import Fetcher
from core.images import decode_photo
from core.labels import read_labels, success_rate
from core.masks import Mask, decode_mask
from core.metrics.comparison import FIGURES, Case, Figures
from core.metrics.fidelity import resize_to
from core.metrics.known_sets import check_known_set
from core.metrics.perceptual import Lpips
from core.metrics.statistics import bootstrap_mean, wilson_interval
from core.parallel import map_ahead
from core.plan import PlanRow
from core.readers import open_input
from core.record import FAILURE_SCHEMA
from core.scoring import Scorer, score_results
from core.workload import failure
from jobs.data_config import EvaluateConfig
from jobs.evaluate_latency import measure_latency
from jobs.evaluate_networks import REMOVAL_FIGURES, EvaluationNetworks
from jobs.progress import LOG_SECONDS

log = logging.getLogger(__name__)

PASTED: Final = "pasted_"
LATENCY: Final = "latency"
METRICS_SCHEMA: Final = pa.schema(
    [pa.field(name, pa.string()) for name in ("id", "origin", "category", "model")]
    + [pa.field("score", pa.float32())]
    + [pa.field(name, pa.float64()) for name in (*FIGURES, *(PASTED + name for name in FIGURES), *REMOVAL_FIGURES, LATENCY)]
)
"""One row an item; null where a figure has no meaning for it."""


def run(config: EvaluateConfig) -> int:
    """Print the table, or with ``--json`` the summary that ``evaluate`` returns; with ``--compare`` those of ``jobs.compare``."""
    if config.compare:
        from jobs.compare import run as run_comparison

        return run_comparison(config)
    summary = evaluate(config)
    if config.json:
        print(json.dumps(summary))
    else:
        _print(summary)
    return 0


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate every item; writes to ``config.output`` where one is given.

    Returns:
        ``in``, ``out``, ``failed`` (in = out + failed), ``failures`` (reasons, counted), ``with_target``, ``scores_stored`` and
        ``scores_made``, ``left_out`` (what was not measured, and why), ``success_rate`` (of the discriminator, at ``threshold``),
        ``latency`` (of what ``metrics`` has the seconds: model, device, steps, side; None where it was not measured),
        ``metrics`` and ``metrics_pasted`` (of each figure ``mean``, ``low``, ``high`` and ``count``; 95 % intervals).

    Raises:
        UsageError: the input cannot be read as one; or LPIPS is wanted and its weights are missing.
        StorageUnavailable: the store does not answer.
        CleanplateError: not one item could be evaluated.
    """
    started = time.monotonic()
    evaluation = _Evaluation(config)
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for row, failed in _told(evaluation.outcomes()):
        if failed is not None:
            failures.append(failed)
        elif row is not None:
            rows.append(row)
    reasons = Counter(str(failed["error"]) for failed in failures)
    if not rows:
        first = f": {failures[0]['id']}: {failures[0]['message']}" if failures else ""
        raise CleanplateError(f"none of the {len(failures)} items of {evaluation.input.base} could be evaluated{first}")
    scores = [row["score"] for row in rows if row["score"] is not None]
    with_target = sum(row["psnr"] is not None for row in rows)
    left_out = dict(evaluation.left_out)
    if with_target < len(rows):
        left_out["figures against the truth"] = f"{len(rows) - with_target} of {len(rows)} items have no target"
    latency = evaluation.measure_latency(rows, left_out)
    accepted = sum(score > config.threshold for score in scores)
    labels = success_rate(read_labels(config.labels)) if config.labels else None
    if config.labels and labels is None:
        left_out["success of people"] = f"{config.labels} has no decided label of the random part"
    summary = {
        "input": storage.normalize_uri(config.input),
        "reference": storage.normalize_uri(config.reference) if config.reference else None,
        "in": len(rows) + len(failures),
        "out": len(rows),
        "failed": len(failures),
        "failures": dict(reasons.most_common()),
        "with_target": with_target,
        "left_out": left_out,
        "discriminator": config.discriminator,
        "scores_stored": len(scores) - evaluation.scores_made,
        "scores_made": evaluation.scores_made,
        "threshold": config.threshold,
        "success_rate": asdict(wilson_interval(accepted, len(scores))) if scores else None,
        "people_success_rate": asdict(labels) if labels else None,
        "distances": evaluation.networks.distances(),
        "latency": latency,
        "metrics": _estimates(rows, ("score", *FIGURES, *REMOVAL_FIGURES, LATENCY), ""),
        "metrics_pasted": _estimates(rows, FIGURES, PASTED),
        "seconds": round(time.monotonic() - started, 1),
    }
    if config.output:
        _write(storage.normalize_uri(config.output), rows, failures, summary)
    return summary


Outcome = tuple[dict[str, Any] | None, dict[str, Any] | None]


class _Evaluation:
    """What all items share: input, reference, networks."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self.input = open_input(config.input)
        self.left_out: dict[str, str] = {}
        self.scores_made = 0
        self._fetcher = Fetcher(self.input.base)
        self._reference: dict[str, PlanRow] = {}
        self._reference_fetcher = self._fetcher
        if config.reference:
            found = open_input(config.reference)
            self._reference_fetcher = Fetcher(found.base)
            self._reference = {row.id: row for row in found.rows()}
            check_known_set(config.known_set, len(self._reference))
        elif config.known_set:
            raise UsageError("--known-set says what --reference is; give the local copy of the set as --reference")
        self._lpips = self._load_lpips()
        self.networks = EvaluationNetworks(inception=config.inception, clip=config.clip, sam=config.sam, device=config.device)
        self.left_out |= self.networks.left_out
        self._scorer: Scorer | None = None
        self._networks = threading.Lock()

    def _load_lpips(self) -> Lpips | None:
        if self.config.lpips == "off":
            return None
        try:
            return Lpips(device=self.config.device)
        except UsageError as error:
            if self.config.lpips == "on":
                raise
            self.left_out["lpips"] = str(error)
            return None

    def outcomes(self) -> Iterator[Outcome]:
        """For every item, in the input's order, its row of ``METRICS_SCHEMA`` or its failure."""
        threads = self.config.threads or os.cpu_count() or 1
        with ThreadPoolExecutor(threads) as pool:
            yield from map_ahead(pool, self._outcome, _first_of_each(self.input.rows()), 2 * threads)

    def measure_latency(self, rows: list[dict[str, Any]], left_out: dict[str, str]) -> dict[str, Any] | None:
        """Puts the seconds of the first items into their rows, once nothing else runs here; returns what was measured."""
        if not self.config.latency:
            left_out[LATENCY] = "no --latency"
            return None
        by_id = {row["id"]: row for row in rows}
        asked = list(islice((item for item in self.input.rows() if item.error is None and item.id in by_id), self.config.latency))
        try:
            seconds, told = measure_latency(self.input.base, asked, self.config.device, self.config.max_megapixels)
        except UsageError as error:
            left_out[LATENCY] = str(error)
            return None
        for item, value in seconds.items():
            by_id[item][LATENCY] = value
        return told

    def _outcome(self, item: PlanRow) -> Outcome:
        row = asdict(item)
        try:
            return self._evaluate(row), None
        except StorageUnavailable:
            raise
        except (ItemError, StorageError, pa.ArrowException, OSError) as error:
            return None, failure(item.id, self._fetcher.uri(row), error, "evaluate").failure

    def _evaluate(self, row: dict[str, Any]) -> dict[str, Any]:
        config = self.config
        values = self._fetcher.fetch_record(row, config.max_megapixels)
        if not (values["erased"] or {}).get("bytes"):
            raise ItemError("evaluate", "nothing_erased", "the record has no erasure to evaluate; run cleanplate clean first")
        source = decode_photo(values["source"]["bytes"], max_megapixels=config.max_megapixels)
        erased = decode_photo(values["erased"]["bytes"], max_megapixels=config.max_megapixels).pixels
        score = values["score"]
        if score is None and config.discriminator != "none":
            mask = self._mask(values["mask"]["bytes"], (source.width, source.height)).pixels
            score = self._score(source.pixels, mask, resize_to(erased, source.height, source.width, "erasure"))
        found = {name: values[name] for name in ("id", "origin", "category", "model")} | {"score": score, LATENCY: None}
        target, effects = self._truth(values)
        if target is None:
            return {**dict.fromkeys(METRICS_SCHEMA.names), **found}
        truth = decode_photo(target, max_megapixels=config.max_megapixels)
        size = (truth.width, truth.height)
        case = Case(
            source=resize_to(source.pixels, truth.height, truth.width, "source"),
            truth=truth.pixels,
            mask=self._mask(values["mask"]["bytes"], size).pixels,
            effect_mask=self._mask(effects, size, "effect").pixels if effects is not None else None,
        )
        erased = resize_to(erased, truth.height, truth.width, "erasure")
        plain, pasted = (self._figures(case, picture) for picture in (erased, case.paste(erased)))
        self.networks.add(values["id"], erased, case.truth)
        removal = self.networks.removal(erased, case.source, case.mask, case.effect_mask)
        return found | asdict(plain) | {PASTED + name: value for name, value in asdict(pasted).items()} | removal

    def _figures(self, case: Case, picture: Any) -> Figures:
        figures = case.compare(picture)
        if self._lpips is None:
            return figures
        with self._networks:
            return figures.with_lpips(self._lpips.distance(picture, case.truth))

    def _truth(self, values: dict[str, Any]) -> tuple[bytes | None, bytes | None]:
        """The clean plate and the effect mask; a target that is the erasure itself came of a verdict, not of the world."""
        images: dict[str, bytes | None] = {name: (values[name] or {}).get("bytes") for name in ("target", "effect_mask")}
        if images["target"] == values["erased"]["bytes"]:
            images["target"] = None
        known = self._reference.get(values["id"])
        if known is not None:
            item = self._reference_fetcher.fetch(asdict(known))
            for name, value in (("target", item.target), ("effect_mask", item.effect_mask)):
                images[name] = (value or {}).get("bytes") or images[name]
        return images["target"], images["effect_mask"]

    def _mask(self, data: bytes, size: tuple[int, int], noun: str = "") -> Mask:
        try:
            return decode_mask(data, size, max_megapixels=self.config.max_megapixels)
        except ItemError as error:
            if not noun:
                raise
            raise ItemError(error.stage, f"{noun}_{error.code}", f"{noun} mask: {error.message}") from error

    def _score(self, source: Any, mask: Any, erased: Any) -> float:
        with self._networks:
            if self._scorer is None:
                from core.discriminator import Discriminator  # diffusers takes seconds to import; stored scores need none of it

                self._scorer = Discriminator(locate(self.config.discriminator), device=self.config.device)
            self.scores_made += 1
            return score_results(self._scorer, source, mask, [erased])[0]


def _first_of_each(rows: Iterator[PlanRow]) -> Iterator[PlanRow]:
    """The same rows; the second and later ones of an id fail, since twice the same item would weigh double."""
    seen: set[str] = set()
    for row in rows:
        if row.id in seen and row.error is None:
            row.error, row.message = "duplicate_id", f"id {row.id} stands in the input before; ids must be unique: the first one was taken"
        seen.add(row.id)
        yield row


def _estimates(rows: list[dict[str, Any]], names: tuple[str, ...], prefix: str) -> dict[str, dict[str, float]]:
    """Of each figure the mean over the items that have it, with its interval; figures that no item has are left out."""
    columns = {name: [row[prefix + name] for row in rows if row[prefix + name] is not None] for name in names}
    return {name: asdict(bootstrap_mean(np.array(values))) for name, values in columns.items() if values}


def _write(output: str, rows: list[dict[str, Any]], failures: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """metrics.json last: where it stands, the tables beside it are whole."""
    store = storage.storage_for(output)
    for name, found, schema in (("metrics.parquet", rows, METRICS_SCHEMA), ("failures.parquet", failures, FAILURE_SCHEMA)):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(found, schema), buffer, compression="zstd")
        store.write(storage.join(output, name), buffer.getvalue())
    store.write(storage.join(output, "metrics.json"), json.dumps(summary, indent=1).encode())


def _told(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """The same outcomes, with a log line every few seconds."""
    last = time.monotonic()
    for done, outcome in enumerate(outcomes, start=1):
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            log.info("%d items evaluated", done)
        yield outcome


_LEAST_COLUMNS: Final = 120
"""A narrower table would cut the figures off; a terminal wraps it."""
_DIGITS: Final = {"psnr": 2, "seam": 2}
_UNITS: Final[dict[str, str]] = {"psnr": " (dB)", "seam": " (levels)", LATENCY: " (s an image)"}


def _print(summary: dict[str, Any]) -> None:
    table = Table(title=f"{summary['out']:,} items evaluated, {summary['failed']:,} failed", title_justify="left")
    for heading in ("mean [95 % interval]", "as it is", "background pasted", "items"):
        table.add_column(heading, justify="left" if heading.startswith("mean") else "right", no_wrap=True)
    for name in dict.fromkeys((*summary["metrics"], *summary["metrics_pasted"])):
        kind = name.split("_")[0]
        plain, pasted = summary["metrics"].get(name), summary["metrics_pasted"].get(name)
        words = [_words(found, _DIGITS.get(kind, 4)) for found in (plain, pasted)]
        table.add_row(name.replace("_", " ") + _UNITS.get(kind, ""), *words, f"{(plain or pasted)['count']:,}")
    rate = summary["success_rate"]
    if rate:
        scored = f"{rate['count']:,}"
        table.add_row(f"share with score > {summary['threshold']:g}", _words(rate, 3), "", scored)
    if summary["people_success_rate"]:
        table.add_row("success of people", _words(summary["people_success_rate"], 3), "", f"{summary['people_success_rate']['count']:,}")
    for name, found in summary["distances"].items():
        table.add_row(name, f"{found['value']:.4f}", "", f"{found['count']:,}")
    Console(width=max(Console().width, _LEAST_COLUMNS), soft_wrap=True).print(table)
    if summary["latency"]:
        told = ", ".join(f"{name} {value}" for name, value in summary["latency"].items() if value is not None)
        print(f"latency is of {told}: one image at a time")
    for name, reason in summary["left_out"].items():
        print(f"left out: {name}: {reason}")
    for reason, count in summary["failures"].items():
        print(f"failed: {reason}: {count:,}")


def _words(found: dict[str, float] | None, digits: int) -> str:
    return "" if found is None else f"{found['mean']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
