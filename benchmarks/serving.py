"""What the served graph costs beyond the eraser, and what it does under more load than it can take.

    python -m benchmarks.serving [--seconds 60] [--record benchmarks/records/DATE-serving]
    python -m benchmarks.serving --overload 1800 [--record benchmarks/records/DATE-serving-overload]

Both start ``cleanplate serve`` on a free port and end it. The bare eraser does the same in this process and one thread: decode, crop,
fill, paste, score, encode; with ``--batches`` crops in one network call. Every answer is compared with the bare one's bytes.

Latency is measured in turns, one bare erasure and one request of one client, so that what else the machine does falls on both. Throughput
is measured for 1, 8 and 32 clients that each send one request after the other, between two measurements of the bare eraser. ``--overload``
measures the capacity with 8 clients, then sends requests at even times at twice that rate, whether the earlier ones are answered or not,
and reads the memory of the server's processes all the while.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil
from urllib3.filepost import encode_multipart_formdata

from core.eraser import EraserSettings, load_eraser
from core.erasing import Erasure, candidate_seeds, fill_crops
from core.scoring import discriminator_for, load_scorer, score_results
from serving.networks import one_thread

ROOT: Final = Path(__file__).resolve().parent.parent
SAMPLES: Final = ROOT / "assets" / "samples"
ITEM: Final = "benchmark"
SAMPLE_EVERY_S: Final = 5.0
MOST_WAITING: Final = 256
"""Requests without an answer that the overload holds; above what the server lets in, so that no arrival is ever left out."""

Row = dict[str, Any]


def sample_pair() -> tuple[bytes, bytes]:
    """The first shipped photo and its mask."""
    first, second = (next(iter(sorted((SAMPLES / name).iterdir()))) for name in ("source", "mask"))
    return first.read_bytes(), second.read_bytes()


class Bare:
    """The eraser in one process and thread."""

    def __init__(self, model: str, pair: tuple[bytes, bytes]) -> None:
        one_thread(on_cpu=True)
        self.eraser = load_eraser(model, EraserSettings(device="cpu"))
        name = discriminator_for(model)
        self.scorer = load_scorer(name, device="cpu") if name else None
        self._pair = pair

    def erase(self, batch: int = 1) -> bytes:
        """The pair, so many times in one network call; the first result's bytes."""
        opened = [Erasure.open(*self._pair, self.eraser.rule, 100.0) for _ in range(batch)]
        fills = fill_crops(self.eraser, [one.crop for one in opened], candidate_seeds(ITEM, 0, 1) * batch)
        encoded = []
        for one, fill in zip(opened, fills, strict=True):
            results = one.results([fill])
            if self.scorer is not None:
                score_results(self.scorer, one.photo.pixels, one.mask.pixels, results)
            encoded.append(one.encode(results[0]))
        return encoded[0]


class Client:
    """One connection that sends the same request again and again, its body made once: the load should cost little itself."""

    def __init__(self, url: str, pair: tuple[bytes, bytes]) -> None:
        fields: dict[str, Any] = {"image": ("image", pair[0]), "mask": ("mask", pair[1]), "id": ITEM}
        self._body, self._type = encode_multipart_formdata(fields)
        place = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=600)

    def erase(self) -> tuple[int, bytes, str]:
        """Status, body and ``Retry-After`` of the answer."""
        try:
            self._connection.request("POST", "/v1/erase", self._body, {"Content-Type": self._type})
            answer = self._connection.getresponse()
            return answer.status, answer.read(), answer.headers.get("retry-after", "")
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return 0, b"", ""


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    return {f"p{share}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 1) for share in (50, 95, 99)}


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_latency(bare: Bare, client: Client, wanted: bytes, seconds: float) -> Row:
    """One bare erasure and one request in turns."""
    alone: list[float] = []
    served: list[float] = []

    def request() -> None:
        status, body, _ = client.erase()
        if (status, body) != (200, wanted):
            raise SystemExit(f"the server's answer is not the bare eraser's: status {status}, {len(body)} bytes")

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        alone.append(timed(bare.erase))
        served.append(timed(request))
    differences = [one - other for one, other in zip(served, alone, strict=True)]
    return {
        "pairs": len(alone),
        "bare": quantiles(alone),
        "served": quantiles(served),
        "overhead_p50_ms": round(1000 * (statistics.median(served) - statistics.median(alone)), 1),
        "median_of_differences_ms": round(1000 * statistics.median(differences), 1),
    }


def measure_bare(bare: Bare, batch: int, seconds: float) -> Row:
    """The bare eraser for a while; latencies are those of whole batches."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        times.append(timed(lambda: bare.erase(batch)))
    return {
        "side": f"bare, batch {batch}",
        "clients": 1,
        "answers": batch * len(times),
        "per_second": round(batch * len(times) / sum(times), 3),
        **quantiles(times),
    }


def measure_served(url: str, pair: tuple[bytes, bytes], wanted: bytes, clients: int, seconds: float) -> Row:
    """So many clients that each send one request after the other."""
    times: list[float] = []
    counts = {"busy": 0, "errors": 0}
    lock = threading.Lock()
    end = time.perf_counter() + seconds

    def work(_: int) -> None:
        client = Client(url, pair)
        while time.perf_counter() < end:
            started = time.perf_counter()
            status, body, retry_after = client.erase()
            took = time.perf_counter() - started
            with lock:
                if status == 200 and body == wanted:
                    times.append(took)
                else:
                    counts["busy" if status == 503 else "errors"] += 1
            if status == 503:
                time.sleep(float(retry_after or "1"))

    began, spent = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    elapsed = time.perf_counter() - began
    return {
        "side": "served",
        "clients": clients,
        "answers": len(times),
        "per_second": round(len(times) / elapsed, 3),
        **quantiles(times),
        **counts,
        "load_cpu_share": round((time.process_time() - spent) / elapsed, 3),
    }


class MemoryWatch:
    """Reads the memory of a process and all below it, by role, until closed."""

    def __init__(self, process: int) -> None:
        self._process = psutil.Process(process)
        self.samples: list[Row] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._closed.wait(SAMPLE_EVERY_S):
            roles: dict[str, float] = {}
            for process in [self._process, *self._process.children(recursive=True)]:
                try:
                    role, memory = _role(process.cmdline()), process.memory_info()
                except psutil.Error:
                    continue
                # without what is mapped from files and from the object store, which all of them share
                roles[role] = roles.get(role, 0.0) + (memory.rss - memory.shared) / 2**20
            roles = {role: round(size, 1) for role, size in sorted(roles.items())}
            self.samples.append({"s": round(time.monotonic() - began, 1), "total": round(sum(roles.values()), 1), **roles})

    def growth(self) -> dict[str, tuple[float, float]]:
        """Median MiB of the second and of the last tenth of the time, by role: caches fill during the first."""
        tenth = max(1, len(self.samples) // 10)
        early, late = self.samples[tenth : 2 * tenth] or self.samples, self.samples[-tenth:]
        roles = [role for role in self.samples[-1] if role != "s"]
        return {role: (_middle(early, role), _middle(late, role)) for role in roles}


def _middle(samples: list[Row], role: str) -> float:
    return statistics.median(row.get(role, 0.0) for row in samples)


def _role(line: list[str]) -> str:
    """Which part of the server a command line is; the rest of Ray is one part."""
    first = line[0] if line else ""
    for role in ("ingress", "eraser", "discriminator"):
        if first.startswith(f"ray::ServeReplica:cleanplate:{role}"):
            return role
    if first.startswith("ray::Proxy"):
        return "proxy"
    return "controller" if first.startswith("ray::ServeController") else "rest of ray"


def overload(url: str, pair: tuple[bytes, bytes], wanted: bytes, rate: float, seconds: float) -> Row:
    """Requests at even times, ``rate`` a second, whatever becomes of the earlier ones."""
    outcomes: Counter[str] = Counter()
    times: list[float] = []
    minutes: dict[int, Counter[str]] = {}
    lock, local = threading.Lock(), threading.local()
    began = time.perf_counter()

    def send() -> None:
        if not hasattr(local, "client"):
            local.client = Client(url, pair)
        started = time.perf_counter()
        status, body, retry_after = local.client.erase()
        took = time.perf_counter() - started
        if status == 200:
            outcome = "result" if body == wanted else "wrong bytes"
        elif status == 503:
            outcome = "503" if retry_after else "503 without Retry-After"
        else:
            outcome = f"status {status}" if status else "no answer"
        with lock:
            outcomes[outcome] += 1
            minutes.setdefault(int((started - began) // 60), Counter())[outcome] += 1
            if outcome == "result":
                times.append(took)

    sent = 0
    with ThreadPoolExecutor(MOST_WAITING) as pool:
        while (due := sent / rate) < seconds:
            time.sleep(max(0.0, began + due - time.perf_counter()))
            pool.submit(send)
            sent += 1
    return {
        "rate": round(rate, 3),
        "seconds": seconds,
        "sent": sent,
        "answered": sum(outcomes.values()),
        "outcomes": dict(outcomes),
        **quantiles(times),
        "by_minute": {minute: dict(found) for minute, found in sorted(minutes.items())},
    }


@contextmanager
def served(model: str, flags: list[str]) -> Iterator[tuple[int, str]]:
    """Process and address of a ``cleanplate serve`` of its own."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        command = [sys.executable, "-m", "jobs.main", "serve", "--port", "0", "--json", "--model", model, "--store", f"{folder}/up", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": "local"})
        try:
            while process.poll() is None:
                said = (Path(folder) / "log").read_text(errors="replace")
                ready = [line for line in said.splitlines() if line.startswith('{"url"')]
                if ready:
                    yield process.pid, str(json.loads(ready[0])["url"])
                    if process.poll() is not None:
                        raise SystemExit(f"the server ended by itself:\n{(Path(folder) / 'log').read_text(errors='replace')[-3000:]}")
                    return
                time.sleep(0.2)
            raise SystemExit(f"the server did not start:\n{said[-3000:]}")
        finally:
            process.terminate()
            process.wait(180)


def table_of(rows: list[Row]) -> str:
    """The throughput's table; ``over bare`` is over the best bare batch size."""
    best = max(row["per_second"] for row in rows if row["side"].startswith("bare"))
    names = ("side", "clients", "answers", "per_second", "over_bare", "p50", "p95", "p99", "busy", "errors", "load_cpu_share")
    heads = ("side", "clients", "answers", "per second", "over bare", "p50 ms", "p95 ms", "p99 ms", "503", "errors", "cores of the load")
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        shown = {**row, "over_bare": f"{row['per_second'] / best:.2f}"}
        lines.append("| " + " | ".join(str(shown.get(name, "-")) for name in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each line of the table")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="of the bare eraser")
    parser.add_argument("--overload", type=float, metavar="SECONDS", help="send twice as much as the server can take, for so long")
    parser.add_argument("flags", nargs="*", help="further flags of cleanplate serve, after --")
    parser.add_argument("--record", type=Path, help="folder for the numbers")
    arguments = parser.parse_args()
    pair = sample_pair()
    bare = Bare(arguments.model, pair)
    wanted = bare.erase()
    found: dict[str, Any] = {"command": " ".join(["python -m benchmarks.serving", *sys.argv[1:]]), "load_average_before": os.getloadavg()}
    with served(arguments.model, arguments.flags) as (process, url):
        client = Client(url, pair)
        for _ in range(3):
            client.erase()
        if arguments.overload:
            report = _overloaded(process, url, pair, wanted, arguments.overload, found)
        else:
            found["latency"] = measure_latency(bare, client, wanted, arguments.seconds)
            rows = [measure_bare(bare, batch, arguments.seconds / 2) for batch in arguments.batches]
            rows += [measure_served(url, pair, wanted, clients, arguments.seconds) for clients in arguments.clients]
            rows += [measure_bare(bare, batch, arguments.seconds / 2) for batch in arguments.batches]
            found["rows"] = rows
            report = f"latency in turns: {json.dumps(found['latency'])}\n{table_of(rows)}"
    print(report)
    if arguments.record:
        arguments.record.mkdir(parents=True, exist_ok=True)
        (arguments.record / "output.txt").write_text(f"{found['command']}\n\n{report}\n")
        (arguments.record / "rows.json").write_text(json.dumps(found, indent=1) + "\n")


def _overloaded(process: int, url: str, pair: tuple[bytes, bytes], wanted: bytes, seconds: float, found: dict[str, Any]) -> str:
    capacity = measure_served(url, pair, wanted, 8, min(60.0, seconds))
    watch = MemoryWatch(process)
    try:
        load = overload(url, pair, wanted, 2 * capacity["per_second"], seconds)
        status, body, _ = Client(url, pair).erase()
    finally:
        watch.close()
    found.update(capacity=capacity, load=load, answer_afterwards=status == 200 and body == wanted, memory=watch.samples)
    lines = [
        f"capacity with 8 clients: {capacity['per_second']} a second",
        f"sent {load['sent']} at {load['rate']} a second in {seconds:g} s; answered {load['answered']}: {load['outcomes']}",
        f"results: p50 {load['p50']}, p95 {load['p95']}, p99 {load['p99']} ms",
        f"a request afterwards: {'the right bytes' if found['answer_afterwards'] else f'status {status}'}",
        "",
        "| memory, MiB | early | late |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {role} | {early:.0f} | {late:.0f} |" for role, (early, late) in watch.growth().items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
