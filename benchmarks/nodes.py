"""Nodes of a cluster that come and go at random while `clean` runs: nothing lost, nothing twice, and the throughput follows the nodes.

    python -m benchmarks.nodes --minutes 30 --record benchmarks/records/DATE-nodes
    python -m benchmarks.nodes --minutes 30 --beside train serve --record benchmarks/records/DATE-nodes

Several raylets on this machine are the nodes, of eight CPUs, room for two actors (Ray only counts them). The eraser keeps its caller
waiting for a known time an image, as a device does, so that the number of actors decides the throughput and not the cores of this machine.
Every 40 to 100 seconds a node is added or killed (never the head, which has no CPUs and so no actors). From the times at which shards were
written comes the throughput for each number of nodes that were there. With `--beside`, trainings and a served graph under requests run on
the same nodes (`benchmarks/node_load.py`): each training must make each step once, with the losses of a process that nobody disturbed, and
each request must have the right bytes in the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from ray.cluster_utils import Cluster

from benchmarks.node_load import Requests, Trainings
from core.ledger import read_ledger

SECONDS: Final = 0.4
MOST_NODES: Final = 3
ACTOR_CPUS: Final = 2.7
"""So that two actors fit on a node of eight, and no third."""
SETTLE_SECONDS: Final = 25.0
"""After a change of the nodes this long is not counted: actors load, and Ray notices a dead node after some seconds."""


def plant(folder: Path, count: int) -> None:
    for name in ("source", "mask"):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:32, 16:32] = 255
    for number in range(count):
        pixels = np.full((64, 64, 3), number % 251, np.uint8)
        Image.fromarray(pixels).save(folder / "source" / f"{number:06d}.png")
        Image.fromarray(mask).save(folder / "mask" / f"{number:06d}.png")


def add_node(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=8)


def drill(
    cluster: Cluster, nodes: list[Any], job: subprocess.Popen[bytes], output: Path, seed: int
) -> tuple[list[tuple[float, int]], dict[float, int]]:
    """Add and kill nodes until the job ends; returns (time, nodes) at each change, and images by the time their shard was seen."""
    choose = random.Random(seed)
    changes = [(time.time(), len(nodes))]
    written: dict[float, int] = {}
    seen: set[str] = set()
    change_at = time.time() + choose.uniform(40, 100)
    while job.poll() is None:
        time.sleep(1)
        for path in output.glob("part-*.parquet"):
            if path.name not in seen:
                seen.add(path.name)
                written[path.stat().st_mtime + len(seen) * 1e-6] = pq.ParquetFile(path).metadata.num_rows
        if time.time() > change_at:
            grow = len(nodes) == 1 or (len(nodes) < MOST_NODES and choose.random() < 0.5)
            if grow:
                nodes.append(add_node(cluster))
            else:
                cluster.remove_node(nodes.pop(choose.randrange(len(nodes))), allow_graceful=False)
            changes.append((time.time(), len(nodes)))
            change_at = time.time() + choose.uniform(40, 100)
            print(f"{time.time() - changes[0][0]:.0f} s: {len(nodes)} nodes, {sum(written.values())} images", file=sys.stderr, flush=True)
    return changes, written


def throughput(changes: list[tuple[float, int]], written: dict[float, int]) -> dict[int, dict[str, float]]:
    """For each number of nodes: seconds counted, images a second, over all stretches, without the time that a change takes."""
    seconds: dict[int, float] = defaultdict(float)
    images: dict[int, int] = defaultdict(int)
    ends = [when for when, _ in changes[1:]] + [max(written)]
    for (began, nodes), ended in zip(changes, ends, strict=True):
        start = began + SETTLE_SECONDS
        if ended > start:
            seconds[nodes] += ended - start
            images[nodes] += sum(count for when, count in written.items() if start < when <= ended)
    return {
        nodes: {"seconds": round(seconds[nodes]), "images a second": round(images[nodes] / seconds[nodes], 2)} for nodes in sorted(seconds)
    }


def account(output: Path, count: int) -> dict[str, int]:
    """Raises RuntimeError where an image is lost, stands twice, or failed for another reason than two deaths of its process."""
    ledger = read_ledger(str(output))
    if len(ledger.ids) != count or ledger.ids.duplicates() or ledger.out + ledger.failed != count:
        raise RuntimeError(f"{count} in, {ledger.out} out, {ledger.failed} failed, {ledger.ids.duplicates()} twice")
    return {"in": count, "out": ledger.out, "failed": ledger.failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="about how long the job takes with two nodes")
    parser.add_argument("--beside", nargs="*", choices=["train", "serve"], default=[], help="what else runs on the same nodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="folder for the numbers")
    options = parser.parse_args()
    # two nodes of two actors with one thread each
    count = int(options.minutes * 60 * 4 / SECONDS * 0.8)
    with tempfile.TemporaryDirectory(prefix="cleanplate-nodes-") as scratch:
        plant(Path(scratch, "in"), count)
        output = Path(scratch, "out")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        beside: dict[str, Trainings | Requests] = {}
        failed = False
        try:
            nodes = [add_node(cluster) for _ in range(2)]
            for name in options.beside:
                folder = Path(scratch, name)
                folder.mkdir()
                beside[name] = Trainings(cluster.address, folder) if name == "train" else Requests(cluster.address, folder)
            call = [sys.executable, "-m", "jobs.main", "clean", "--input", f"{scratch}/in", "--output", str(output), "--json"]
            call += ["--model", "benchmarks.planning:Timed", "--steps", str(round(SECONDS * 1000)), "--discriminator", "none"]
            call += ["--threads", "1", "--num-cpus", str(ACTOR_CPUS), "--min-actors", "1", "--max-actors", str(2 * MOST_NODES)]
            call += ["--shard-mb", "0", "--block-rows", "20", "--max-failure-rate", "1", "--address", cluster.address]
            with Path(scratch, "log").open("wb") as log:
                job = subprocess.Popen(call, stdout=log, stderr=log, start_new_session=True)
            changes, written = drill(cluster, nodes, job, output, options.seed)
            others: dict[str, Any] = {}
            for name, one in beside.items():
                try:
                    others[name] = one.stop()
                except RuntimeError as error:  # what the rest did is told all the same
                    others[name], failed = {"error": str(error)}, True
            if job.returncode:
                raise RuntimeError(Path(scratch, "log").read_text(errors="replace")[-3000:])
        finally:
            for one in beside.values():
                one.kill()
            cluster.shutdown()
        found: dict[str, Any] = {
            "cores of this machine": os.cpu_count(),
            **account(output, count),
            "seconds": round(max(written) - changes[0][0]),
            "nodes added": sum(after > before for (_, before), (_, after) in itertools.pairwise(changes)),
            "nodes killed": sum(after < before for (_, before), (_, after) in itertools.pairwise(changes)),
            "throughput by nodes": throughput(changes, written),
            **others,
        }
    print(json.dumps(found, indent=1))
    if options.record:
        options.record.mkdir(parents=True, exist_ok=True)
        (options.record / "nodes.json").write_text(json.dumps(found, indent=1) + "\n")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
