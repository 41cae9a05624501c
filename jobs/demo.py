"""``cleanplate demo``: the main job on the shipped samples, through a real S3 server on this machine, ending with a report."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from core import storage
from core.errors import UsageError
from core.s3 import s3_client
from infra.object_store import LocalObjectStore
from jobs import clean, report
from jobs.config import CleanConfig, DemoConfig, ReportConfig
from jobs.progress import print_table
from jobs.runner import table_rows

log = logging.getLogger(__name__)

SAMPLES: Final = Path(__file__).resolve().parent.parent / "assets" / "samples"
BUCKET: Final = "cleanplate-demo"
_MARK: Final = ".cleanplate-demo"


def run(config: DemoConfig) -> int:
    """Run the demo; the report's path is the last line that it prints."""
    output = _fresh_folder(Path(config.output))
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="cleanplate-demo-") as scratch,
        LocalObjectStore(Path(scratch)) as store,
        _environment(store.environment),
    ):
        photos, plates = f"s3://{BUCKET}/photos", f"s3://{BUCKET}/plates"
        log.info("S3 server at %s; uploading the samples to %s", store.endpoint, photos)
        s3_client().create_bucket(Bucket=BUCKET)
        count = upload(SAMPLES, photos)
        log.info("%d files uploaded", count)
        summary = clean.clean(CleanConfig(input=photos, output=plates, model=config.model))
        page = output / "report.html"
        report.make(ReportConfig(input=plates, output=str(page), side=512, title="cleanplate demo"))
        download(plates, str(output / "plates"))
    summary |= {"output": str(output / "plates"), "report": str(page), "total_seconds": round(time.monotonic() - started, 1)}
    if config.json:
        print(json.dumps(summary))
        return 0
    print_table("clean", table_rows(summary))
    print(f"The dataset is in {output / 'plates'}. Open the report in a browser:\n{page.absolute()}")
    return 0


def upload(folder: Path, uri: str) -> int:
    """Put every file below ``folder`` under ``uri``; returns how many."""
    store = storage.storage_for(uri)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        store.write(storage.join(uri, path.relative_to(folder).as_posix()), path.read_bytes())
    return len(files)


def download(uri: str, folder: str) -> None:
    """Copy every object below ``uri`` into ``folder``, the leases apart."""
    source, target = storage.storage_for(uri), storage.storage_for(folder)
    for entry in source.list(uri):
        name = storage.relative(uri, entry.uri)
        if "/lease/" not in name:
            target.write(storage.join(folder, name), source.read(entry.uri))


def _fresh_folder(path: Path) -> Path:
    """An empty folder; one of an earlier demo is made anew, anything else is left alone."""
    if path.exists() and any(path.iterdir()):
        if not (path / _MARK).exists():
            raise UsageError(f"--output {path} is not empty, and no demo made it; give another folder")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / _MARK).touch()
    return path.absolute()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """The demo's own S3 server, whatever AWS settings the user has; they come back afterwards."""
    names = {name for name in os.environ if name.startswith("AWS_")} | set(values)
    before = {name: os.environ.get(name) for name in names}
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
