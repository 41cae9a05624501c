"""Replicas of the models are killed under load: every request is answered, with the right bytes."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from tests.jobs.support import start_command
from tests.serving.conftest import end, wait_for_url
from tests.serving.test_server import MASK, SOURCE

WAIT_S = 600


def replicas(driver: int, deployment: str) -> list[int]:
    """Processes of a deployment below the command that started their Ray."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::ServeReplica:cleanplate:{deployment}"):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def send(url: str) -> bytes:
    """One erasure; a 503 is waited out, as its Retry-After says."""
    files = {"image": SOURCE.read_bytes(), "mask": MASK.read_bytes()}
    while True:
        answer = requests.post(f"{url}/v1/erase", files=files, data={"id": "chaos"}, timeout=WAIT_S)
        if answer.status_code != 503:
            assert answer.status_code == 200, answer.text
            return answer.content
        time.sleep(float(answer.headers["retry-after"]))


def kill_some(driver: int, kills: int, stop: threading.Event) -> int:
    """Kill that many model replicas, one after the other is back; returns how many it were."""
    rng, done = random.Random(0), 0
    while done < kills and not stop.is_set():
        living = replicas(driver, "eraser") + replicas(driver, "discriminator")
        if len(living) == 2:
            os.kill(rng.choice(living), signal.SIGKILL)
            done += 1
        stop.wait(2)
    return done


@pytest.mark.slow
def test_killed_replicas_cost_no_answer(tmp_path: Path) -> None:
    process = start_command("serve", "--port", "0", "--json", "--store", str(tmp_path / "up"), log=tmp_path / "log", RAY_ADDRESS="")
    stop = threading.Event()
    try:
        url = wait_for_url(process, tmp_path / "log")
        wanted = send(url)
        with ThreadPoolExecutor(5) as pool:
            killing = pool.submit(kill_some, process.pid, 3, stop)
            answers = []
            while not killing.done() or len(answers) < 12:
                answers += list(pool.map(lambda _: send(url), range(4)))
            assert killing.result() == 3
        assert all(answer == wanted for answer in answers)
    finally:
        stop.set()
        end(process)
