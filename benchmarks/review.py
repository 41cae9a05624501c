"""From a key to the next picture on the review desk: milliseconds, measured in the page of a real browser.

    python -m benchmarks.review --decisions 100

The desk runs as a process on loopback, with erasures of the shipped samples. ``drawn`` is from the key's event to the next picture drawn on
the canvas; ``painted`` to the message after the frame with it. What a frame costs in this browser on this machine, with nothing to draw,
is measured in between, since a headless browser paints in software and other work on the machine delays frames.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from core.images import decode_photo, encode_image
from core.ledger import write_shard
from core.masks import decode_mask
from core.record import RECORD_SCHEMA, empty_record, image_value

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "assets" / "samples"
_FRAME = """() => new Promise((done) => {
  const from = performance.now();
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => done(performance.now() - from);
    channel.port2.postMessage(null);
  });
})"""


def write_erasures(folder: Path, count: int, side: int) -> None:
    """A dataset of ``count`` records made of the samples, ``side`` pixels wide and high, erased by OpenCV."""
    names = sorted(path.stem for path in (SAMPLES / "source").iterdir())
    rows = []
    for number in range(count):
        name = names[number % len(names)]
        photo = decode_photo((SAMPLES / "source" / f"{name}.jpg").read_bytes())
        mask = decode_mask((SAMPLES / "mask" / f"{name}.png").read_bytes(), (photo.width, photo.height)).pixels
        source = cv2.resize(photo.pixels, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
        mask = cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)
        erased = cv2.inpaint(source, cv2.dilate(mask, np.ones((5, 5), np.uint8)), 3, cv2.INPAINT_TELEA).astype(np.uint8, copy=False)
        pictures = {"source": encode_image(source), "mask": cv2.imencode(".png", mask)[1].tobytes(), "erased": encode_image(erased)}
        values: dict[str, Any] = {role: image_value(data) for role, data in pictures.items()}
        rows.append(empty_record(id=f"{name}-{number:05}", origin="samples", width=side, height=side, **values))
    write_shard(str(folder / "part-0000-000000.parquet"), pa.Table.from_pylist(rows, RECORD_SCHEMA))


def measure(dataset: Path, decisions: int, pause_ms: int) -> tuple[list[dict[str, Any]], list[float]]:
    """What the page measured of each decision, and frames with nothing to draw, in ms."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "jobs.main", "review", "--input", str(dataset), "--port", "0", "--json", "--repeats", "0"]
    desk = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        assert desk.stdout is not None
        (link,) = json.loads(desk.stdout.readline())["links"].values()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(link)
            while page.evaluate("window.desk ? desk.ahead.filter(({id}) => desk.pictures.known.get(id)?.made).length : 0") < 16:
                page.wait_for_timeout(100)
            frames = []
            for _ in range(decisions):
                frames.append(float(page.evaluate(_FRAME)))
                page.keyboard.press("a")
                page.wait_for_timeout(pause_ms)
            measured = page.evaluate("desk.latencies")
            browser.close()
        return list(measured), frames
    finally:
        desk.send_signal(signal.SIGINT)
        desk.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--decisions", type=int, default=100)
    parser.add_argument("--side", type=int, default=1024, help="pixels of the pictures' sides")
    parser.add_argument("--pause-ms", type=int, default=600, help="between decisions, as a quick person needs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cleanplate-review-") as scratch:
        write_erasures(Path(scratch), options.decisions + 20, options.side)
        measured, frames = measure(Path(scratch), options.decisions, options.pause_ms)
    ready = [entry for entry in measured if entry["ready"] and entry["painted"] is not None]
    print("| | median, ms | 90 %, ms |\n| --- | --- | --- |")
    for name, values in (
        ("key to next picture drawn", [entry["drawn"] for entry in ready]),
        ("key to next picture painted", [entry["painted"] for entry in ready]),
        ("a frame with nothing to draw", frames),
    ):
        print(f"| {name} | {statistics.median(values):.1f} | {np.quantile(values, 0.9):.1f} |")
    print(f"\n{len(ready)} of {len(measured)} next pictures were decoded already; {options.side} x {options.side} pixels")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
