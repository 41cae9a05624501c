"""A long `clean` on small images with everything planted that goes wrong, and exact accounting at its end.

    python -m benchmarks.soak --images 200000 --record benchmarks/records/DATE-soak
    python -m benchmarks.soak --images 400 --actor-kill 15 --driver-kill 40                       # minutes

The photos lie in a real S3 server; between it and the job stands a proxy that answers 1 % of the requests with an error (500, SlowDown,
a reset, a cut body, in equal parts) and as many late. One photo in a hundred is cut short; an eraser actor is killed every `--actor-kill`
seconds and the driver with its whole Ray every `--driver-kill`, each time followed by the same command. In the end every image must be a
result or a failure, once, and exactly the planted ones must have failed (and those at which two processes were killed, set aside as
`crashed`). Memory of the driver and its children is sampled all the while, and drawn.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import psutil
from PIL import Image

from core import storage
from core.ledger import read_columns, read_ledger
from core.s3 import s3_client
from infra.object_store import LocalObjectStore
from tests.faulty_s3 import FaultyS3

ACTOR: Final = "MapWorker(MapBatches(EraseStage))"
BAD_EVERY: Final = 100
MASKS: Final = 16
SAMPLE_SECONDS: Final = 5.0
RATES: Final = {"500": 0.0025, "503": 0.0025, "reset": 0.0025, "truncated": 0.0025, "slow": 0.01}


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def plant(bucket: str, count: int, side: int) -> set[str]:
    """Put ``count`` photos, some masks and a manifest into a bucket; returns the ids of the photos that are broken."""
    store = storage.storage_for(bucket)
    for number in range(MASKS):
        mask = np.zeros((side, side), np.uint8)
        mask[side // 4 : side // 2, side // 4 : side // 2 + number] = 255
        store.write(f"{bucket}/mask/{number}.png", encoded(mask, "PNG"))

    def photo(number: int) -> None:
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        data = encoded(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), "JPEG")
        if number in bad:
            data = data[: len(data) // 2]
        store.write(f"{bucket}/source/{number:07d}.jpg", data)

    bad = set(range(7, count, BAD_EVERY))
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(photo, range(count)):
            pass
    lines = (f"{number:07d},source/{number:07d}.jpg,mask/{number % MASKS}.png" for number in range(count))
    store.write(f"{bucket}/list.csv", "\n".join(["id,source,mask", *lines]).encode())
    return {f"{number:07d}" for number in bad}


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


def soak(source: str, output: str, *, actor_kill: float, driver_kill: float, model: str) -> dict[str, Any]:
    """Run the job to its end, killing as it goes; returns what happened."""
    choose = random.Random(0)
    call = [sys.executable, "-m", "jobs.main", "clean", "--input", source, "--output", output, "--model", model]
    call += ["--discriminator", "none", "--shard-mb", "4", "--max-failure-rate", "1", "--json", "--origin", "soak"]
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
            if now - started >= SAMPLE_SECONDS * len(samples):
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


def account(output: str, count: int, bad: set[str]) -> dict[str, int]:
    """Raises RuntimeError where an image is lost, stands twice, or failed without having been planted (or set aside at its second kill)."""
    ledger = read_ledger(output)
    failed = [row for uri in ledger.failure_parts for row in read_columns(uri, ("id", "error")).to_pylist()]
    planted = {row["id"] for row in failed if row["error"] != "crashed"}
    crashed = {row["id"] for row in failed} - planted
    if len(ledger.ids) != count or ledger.ids.duplicates() or planted != bad - crashed:
        raise RuntimeError(
            f"{count} in, {len(ledger.ids)} out, {ledger.ids.duplicates()} twice, {len(planted ^ (bad - crashed))} wrongly failed or not"
        )
    return {"in": count, "out": ledger.out, "failed": ledger.failed, "planted": len(bad), "set aside": len(crashed)}


def drawn(samples: Sequence[tuple[float, float]], width: int = 900, height: int = 300) -> np.ndarray:
    """Memory over time as a picture, (height, width, 3) uint8: GiB upwards, minutes to the right."""
    left, below = 50, 30
    picture = np.full((height, width, 3), 255, np.uint8)
    most_s, most_mib = samples[-1][0], max(4096.0, 1.1 * max(value for _, value in samples))

    def place(seconds: float, mib: float) -> tuple[int, int]:
        across = left + (width - left - 10) * seconds / most_s
        return round(across), round((height - below) - (height - below - 10) * mib / most_mib)

    def write(text: str, at: tuple[int, int]) -> None:
        cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)

    for gib in range(int(most_mib / 1024) + 1):
        end = place(most_s, gib * 1024)
        cv2.line(picture, (left, end[1]), end, (225, 225, 225), 1)
        write(f"{gib} GiB", (4, end[1] + 4))
    for part in range(6):
        write(f"{most_s * part / 300:.1f} min", (max(0, place(most_s * part / 5, 0)[0] - 44), height - 10))
    cv2.polylines(picture, [np.array([place(*sample) for sample in samples], np.int32)], False, (160, 60, 20), 1, cv2.LINE_AA)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--actor-kill", type=float, default=60.0, help="mean seconds between kills of an actor")
    parser.add_argument("--driver-kill", type=float, default=300.0, help="seconds that a driver lives, about")
    parser.add_argument("--model", default="opencv")
    parser.add_argument("--record", type=Path, help="folder for the numbers and the picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cleanplate-soak-") as scratch, LocalObjectStore(Path(scratch, "s3")) as store:
        os.environ.update(store.environment)
        s3_client().create_bucket(Bucket="soak")
        began = time.monotonic()
        bad = plant("s3://soak", options.images, options.side)
        print(f"planted in {time.monotonic() - began:.0f} s", file=sys.stderr)
        proxy = FaultyS3(store.endpoint, seed=1)
        proxy.rates = dict(RATES)
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        found = soak(
            "s3://soak/list.csv", "s3://soak/out", actor_kill=options.actor_kill, driver_kill=options.driver_kill, model=options.model
        )
        faults = dict(proxy.met)
        proxy.close()
        os.environ["AWS_ENDPOINT_URL"] = store.endpoint
        found = {"cores": os.cpu_count(), **account("s3://soak/out", options.images, bad), "faults of the store": faults, **found}
    memory = found.pop("memory")
    print(json.dumps(found, indent=1))
    if options.record:
        options.record.mkdir(parents=True, exist_ok=True)
        (options.record / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.record / "memory.csv").write_text("seconds,mib\n" + "".join(f"{seconds},{mib}\n" for seconds, mib in memory))
        cv2.imwrite(str(options.record / "memory.png"), drawn(memory))


if __name__ == "__main__":
    main()
