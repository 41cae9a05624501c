"""What the served graph costs beyond the eraser: requests per second and latencies at 1, 8 and 32 clients over the bare eraser.

    python -m benchmarks.serving --url http://127.0.0.1:8000 [--seconds 30] [--record benchmarks/records/DATE-serving]

Start ``cleanplate serve`` first. The bare eraser does the same in this process, one request after the other: decode, crop, fill, paste,
score, encode. It runs before and after the clients, so that a machine that others use shows itself by the difference. Every answer is
compared with the bare one's bytes; an answer of 503 is counted, any other is an error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from core.eraser import EraserSettings, load_eraser
from core.erasing import Erasure, candidate_seeds, fill_crops
from core.scoring import discriminator_for, load_scorer, score_results
from serving.networks import one_thread

SAMPLES = Path(__file__).resolve().parent.parent / "assets" / "samples"
ITEM = "benchmark"


class Bare:
    """The eraser in one process and thread."""

    def __init__(self, model: str) -> None:
        one_thread(on_cpu=True)
        self.eraser = load_eraser(model, EraserSettings(device="cpu"))
        name = discriminator_for(model)
        self.scorer = load_scorer(name, device="cpu") if name else None

    def erase(self, source: bytes, mask: bytes) -> bytes:
        erasure = Erasure.open(source, mask, self.eraser.rule, 100.0)
        results = erasure.results(fill_crops(self.eraser, [erasure.crop], candidate_seeds(ITEM, 0, 1)))
        if self.scorer is not None:
            score_results(self.scorer, erasure.photo.pixels, erasure.mask.pixels, results)
        return erasure.encode(results[0])


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return {f"p{share}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 1) for share in (50, 95, 99)}


def measure_bare(bare: Bare, pair: tuple[bytes, bytes], seconds: float) -> dict[str, Any]:
    """The bare eraser for a while."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        started = time.perf_counter()
        bare.erase(*pair)
        times.append(time.perf_counter() - started)
    return {"side": "bare", "clients": 1, "answers": len(times), "per_second": round(len(times) / sum(times), 3), **quantiles(times)}


def measure_served(url: str, pair: tuple[bytes, bytes], wanted: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """So many clients that each send one request after the other."""
    times: list[float] = []
    counts = {"busy": 0, "errors": 0}
    lock = threading.Lock()
    end = time.perf_counter() + seconds

    def client(_: int) -> None:
        with requests.Session() as session:
            while time.perf_counter() < end:
                started = time.perf_counter()
                files = {"image": pair[0], "mask": pair[1]}
                answer = session.post(f"{url}/v1/erase", files=files, data={"id": ITEM}, timeout=600)
                took = time.perf_counter() - started
                with lock:
                    if answer.status_code == 200 and answer.content == wanted:
                        times.append(took)
                    else:
                        counts["busy" if answer.status_code == 503 else "errors"] += 1
                if answer.status_code == 503:
                    time.sleep(float(answer.headers.get("retry-after", "1")))

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    elapsed = time.perf_counter() - began
    found = quantiles(times) if times else {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    return {"side": "served", "clients": clients, "answers": len(times), "per_second": round(len(times) / elapsed, 3), **found, **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="address of a running cleanplate serve")
    parser.add_argument("--model", default="tiny", help="the model that it serves")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each line of the table")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--record", type=Path, help="folder for the numbers")
    arguments = parser.parse_args()
    pair = next(iter(sorted((SAMPLES / "source").iterdir()))).read_bytes(), next(iter(sorted((SAMPLES / "mask").iterdir()))).read_bytes()
    bare = Bare(arguments.model)
    wanted = bare.erase(*pair)
    rows = [measure_bare(bare, pair, arguments.seconds)]
    rows += [measure_served(arguments.url, pair, wanted, clients, arguments.seconds) for clients in arguments.clients]
    rows.append(measure_bare(bare, pair, arguments.seconds))
    per_second = statistics.mean(row["per_second"] for row in (rows[0], rows[-1]))
    lines = ["| side | clients | answers | per second | over bare | p50 ms | p95 ms | p99 ms | 503 | errors |", "|" + "---|" * 10]
    for row in rows:
        ratio = row["per_second"] / per_second
        values = [row["side"], row["clients"], row["answers"], row["per_second"], f"{ratio:.2f}", row["p50"], row["p95"], row["p99"]]
        lines.append("| " + " | ".join(map(str, [*values, row.get("busy", "-"), row.get("errors", "-")])) + " |")
    table = "\n".join(lines)
    print(table)
    if arguments.record:
        arguments.record.mkdir(parents=True, exist_ok=True)
        (arguments.record / "output.txt").write_text(table + "\n")
        (arguments.record / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
