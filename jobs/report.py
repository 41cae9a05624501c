"""``cleanplate report``: one HTML page about the dataset that a job has written, or is writing."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core import storage
from core.errors import UsageError
from core.ledger import is_part
from core.report import Item, read_items, read_overview, render
from jobs.config import ReportConfig
from jobs.progress import LOG_SECONDS

log = logging.getLogger(__name__)


def run(config: ReportConfig) -> int:
    """Make the page and print where it is, or with ``--json`` the summary that ``make`` returns."""
    summary = make(config)
    print(json.dumps(summary) if config.json else summary["output"])
    return 0


def make(config: ReportConfig) -> dict[str, Any]:
    """Write the page in one piece; returns ``output`` (its URI), ``items`` (how many it shows) and ``failures`` (how many there are).

    Raises:
        UsageError: the input is no dataset, or the output has the name of a dataset's own file.
        StorageError: the store refused, or a shard is damaged.
    """
    output = storage.normalize_uri(config.output)
    name = output.rsplit("/", 1)[-1]
    if is_part(name) or name == "dataset.json":
        raise UsageError(f"--output {output} has the name of a dataset's own file; give the name of an HTML file")
    overview = read_overview(config.input, config.limit)
    total = len(overview.chosen)
    page = render(overview, _told(read_items(overview, config.side), total), config.title)
    storage.storage_for(output).write(output, page)
    log.info("%d items on the page, %.1f MB", total, len(page) / 1e6)
    return {"output": output, "items": total, "failures": overview.failed}


def _told(items: Iterable[Item], total: int) -> Iterator[Item]:
    """The same items, with a bar on a terminal and log lines elsewhere."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield from progress.track(items, total=total, description="pictures")
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            log.info("pictures of %d of %d items", done, total)
        yield item
