"""What runs on a cluster beside ``clean`` while its nodes come and go: one training after the other, and a served graph under requests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks.serving import Bare, Client, sample_pair
from tests.models import write_pipeline
from tests.training.support import write_triplets
from training.local import train_locally
from training.settings import load_recipe

STEPS: Final = 150
CHECKPOINT_EVERY: Final = 20
TRIES: Final = 60
"""How often a request is sent again, a second apart, before it counts as lost: Ray needs some seconds to see that a node is dead."""


class Trainings:
    """``cleanplate train`` on one to three workers, again and again until told to stop; a thread of its own."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address, self._folder, self._stopped = address, folder, threading.Event()
        self._data = write_triplets(str(folder / "data"), 24)
        self._model = str(write_pipeline(folder / "model", prompt_file=True))
        self._ended: list[Path] = []
        self._error: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            output = self._folder / f"out-{len(self._ended)}"
            call = [sys.executable, "-m", "jobs.main", "train", "remover", "--data", self._data, "--output", str(output)]
            call += ["--recipe", "smoke", "--model", self._model, "--size", "64"]
            call += ["--steps", str(STEPS), "--checkpoint-every", str(CHECKPOINT_EVERY)]
            call += ["--workers", "1", "--max-workers", "3", "--worker-cpus", "0.3", "--json", "--address", self._address]
            with (self._folder / "log").open("wb") as log:
                self._process = subprocess.Popen(call, stdout=log, stderr=log, start_new_session=True)
            if self._process.wait():
                self._error = (self._folder / "log").read_text(errors="replace")[-3000:]
                return
            self._ended.append(output)

    def kill(self) -> None:
        """End the training under way, where there is one, without a look at it."""
        self._stopped.set()
        _kill(self._process)

    def stop(self) -> dict[str, Any]:
        """Wait for the training under way and compare all with one process that nobody disturbed.

        Raises RuntimeError where a training failed, a step is missing or stands twice, or a loss is another one.
        """
        self._stopped.set()
        self._thread.join()
        if self._error is not None:
            raise RuntimeError(self._error)
        changes = {"model": self._model, "data.sizes": [64], "loop.steps": STEPS, "loop.checkpoint_every": CHECKPOINT_EVERY}
        alone = self._folder / "alone"
        train_locally(load_recipe("smoke", "remover", changes), self._data, str(alone), device="cpu")
        wanted = _curve(alone)
        furthest = 0.0
        for output in self._ended:
            found = _curve(output)
            if [step for step, _ in found] != list(range(STEPS)):
                raise RuntimeError(f"{output}: {len(found)} lines, {len(set(found))} of them different, for {STEPS} steps")
            furthest = max(furthest, *(abs(one - other) / abs(other) for (_, one), (_, other) in zip(found, wanted, strict=True)))
        return {"trainings": len(self._ended), "steps of each": STEPS, "largest relative difference of a loss": float(f"{furthest:.1e}")}


def _curve(output: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (output / "training" / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


class Requests:
    """``cleanplate serve`` on the cluster, and a client that sends a request each second; two threads and a process."""

    def __init__(self, address: str, folder: Path) -> None:
        pair = sample_pair()
        self._wanted = Bare("opencv", pair).erase()
        self._counts: Counter[str] = Counter()
        self._lost, self._longest_s = 0, 0.0
        self._stopped = threading.Event()
        settings: dict[str, float] = {"num_cpus": 0.05, "ingress_num_cpus": 0.05}
        settings |= {"ingress_min_replicas": 2, "ingress_max_replicas": 2, "scorer_min_replicas": 2, "scorer_max_replicas": 2}
        (folder / "serve.yaml").write_text(json.dumps({"settings": settings}))
        call = [sys.executable, "-m", "jobs.main", "serve", "--config", str(folder / "serve.yaml"), "--model", "opencv", "--port", "0"]
        call += ["--min-replicas", "2", "--max-replicas", "2", "--json", "--address", address]
        self._log = folder / "serve.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        self._thread = threading.Thread(target=self._run)
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise RuntimeError(self._log.read_text(errors="replace")[-3000:])
        self._client = Client(json.loads(line)["url"], pair)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(1.0):
            began = time.monotonic()
            for attempt in range(TRIES):
                status, body, _ = self._client.erase()
                outcome = "no answer" if not status else "wrong bytes" if status == 200 and body != self._wanted else str(status)
                self._counts["right, first try" if status == 200 and not attempt else outcome] += 1
                if status == 200:
                    break
                time.sleep(1)
            else:
                self._lost += 1
            self._longest_s = max(self._longest_s, time.monotonic() - began)

    def kill(self) -> None:
        """End the server without a look at what it answered."""
        self._stopped.set()
        _kill(self._process)

    def stop(self) -> dict[str, Any]:
        """Raises RuntimeError where an answer had wrong bytes, a request was never answered, or the server ended by itself."""
        self._stopped.set()
        self._thread.join()
        ended = self._process.poll() is not None
        if not ended:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(180)
        found = {"answers by kind": dict(self._counts), "never answered": self._lost, "longest wait, s": round(self._longest_s, 1)}
        if ended or self._lost or self._counts["wrong bytes"]:
            raise RuntimeError(f"{found}\n{self._log.read_text(errors='replace')[-3000:]}")
        return found
