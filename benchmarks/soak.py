"""A long `clean` on small images with everything planted that goes wrong, and exact accounting at its end.

    python -m benchmarks.soak --images 200000 --record benchmarks/records/DATE-soak/soak.json     # hours
    python -m benchmarks.soak --images 400 --actor-kill 15 --driver-kill 40                       # minutes

One photo in a hundred is cut short; an eraser actor is killed every `--actor-kill` seconds and the driver every `--driver-kill`, each time
followed by the same command. In the end every image must be a result or a failure, once, and exactly the planted ones must have failed.
Memory of the driver and its children is sampled all the while.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from PIL import Image

from core import storage
from core.ledger import read_columns, read_ledger

ACTOR: Final = "MapWorker(MapBatches(EraseStage))"
BAD_EVERY: Final = 100


def plant(folder: Path, count: int, side: int) -> set[str]:
    """Write ``count`` photos with masks; returns the ids of those that are broken."""
    for name in ("source", "mask"):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 255
    bad = set()
    for number in range(count):
        name = f"{number:07d}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "source" / name)
        Image.fromarray(mask).save(folder / "mask" / name)
        if number % BAD_EVERY == 7:
            path = folder / "source" / name
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            bad.add(f"{number:07d}")
    return bad


def family(driver: psutil.Process) -> list[psutil.Process]:
    try:
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_mib(processes: list[psutil.Process]) -> float:
    total = 0
    for process in processes:
        try:
            values = process.memory_info()
            total += values.rss - values.shared
        except psutil.Error:
            continue
    return total / 2**20


def soak(source: Path, output: Path, *, actor_kill: float, driver_kill: float, model: str) -> dict[str, Any]:
    """Run the job to its end, killing as it goes; returns what happened."""
    choose = random.Random(0)
    call = [sys.executable, "-m", "jobs.main", "clean", "--input", str(source), "--output", str(output), "--model", model]
    call += ["--discriminator", "none", "--shard-mb", "1", "--max-failure-rate", "1", "--json", "--block-rows", "16"]
    drivers = actors = 0
    samples: list[tuple[float, float]] = []
    started = time.monotonic()
    while True:
        job = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        driver = psutil.Process(job.pid)
        lives_until = time.monotonic() + choose.expovariate(1 / driver_kill) + driver_kill / 2
        next_actor = time.monotonic() + choose.expovariate(1 / actor_kill)
        while job.poll() is None:
            time.sleep(0.5)
            now = time.monotonic()
            mine = family(driver)
            samples.append((round(now - started, 1), round(memory_mib(mine), 1)))
            if now > next_actor:
                working = [process for process in mine if ACTOR in " ".join(_words(process))]
                if working:
                    actors += _kill(choose.choice(working))
                next_actor = now + choose.expovariate(1 / actor_kill)
            if now > lives_until:
                drivers += 1
                for process in mine:
                    _kill(process)
        text = job.communicate()[0]
        if job.returncode == 0:
            break
        if job.returncode not in (-signal.SIGKILL, 1):
            raise RuntimeError(f"the job ended with {job.returncode}")
    return {
        "seconds": round(time.monotonic() - started),
        "drivers killed": drivers,
        "actors killed": actors,
        "summary": json.loads(text),
        "memory": samples,
    }


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _kill(process: psutil.Process) -> int:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return 0
    return 1


def account(output: Path, count: int, bad: set[str]) -> dict[str, int]:
    """Raises RuntimeError where an image is lost, stands twice, or failed without having been planted (or set aside at its second kill)."""
    ledger = read_ledger(storage.normalize_uri(str(output)))
    failed = [row for uri in ledger.failure_parts for row in read_columns(uri, ("id", "error")).to_pylist()]
    planted = {row["id"] for row in failed if row["error"] != "crashed"}
    if len(ledger.ids) != count or ledger.ids.duplicates() or planted != bad:
        raise RuntimeError(
            f"{count} in, {len(ledger.ids)} out, {ledger.ids.duplicates()} twice, {len(planted ^ bad)} wrongly failed or not"
        )
    return {"in": count, "out": ledger.out, "failed": ledger.failed, "planted": len(bad), "set aside": len(failed) - len(planted)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--actor-kill", type=float, default=60.0, help="mean seconds between kills of an actor")
    parser.add_argument("--driver-kill", type=float, default=300.0, help="seconds that a driver lives, about")
    parser.add_argument("--model", default="opencv")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cleanplate-soak-") as scratch:
        bad = plant(Path(scratch, "in"), options.images, options.side)
        found = soak(
            Path(scratch, "in"), Path(scratch, "out"), actor_kill=options.actor_kill, driver_kill=options.driver_kill, model=options.model
        )
        found = {"cores": os.cpu_count(), "load": os.getloadavg()[0], **account(Path(scratch, "out"), options.images, bad), **found}
    print(json.dumps({name: value for name, value in found.items() if name != "memory"}, indent=1))
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
