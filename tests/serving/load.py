"""Clients of a served graph: what one sends, many of them at once, and the processes that answer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import psutil
import requests

from tests.serving.test_server import MASK, SOURCE

WAIT_S: Final = 600
LOST_WAIT_S: Final = 2.0


def send(url: str, *, again: int = 0, **values: str) -> requests.Response:
    """One erasure. A 503 is waited out, as its Retry-After says; what was lost is sent ``again`` so many times.

    Lost is what got no answer, and a 500 or 502 that is no problem: the proxy says so where what answered has died.
    """
    files = {"image": SOURCE.read_bytes(), "mask": MASK.read_bytes()}
    while True:
        try:
            answer = requests.post(f"{url}/v1/erase", files=files, data={"id": "load", **values}, timeout=WAIT_S)
        except requests.ConnectionError:
            if not again:
                raise
        else:
            if answer.status_code == 503:
                time.sleep(float(answer.headers["retry-after"]))
                continue
            lost = answer.status_code in (500, 502) and answer.headers.get("content-type") != "application/problem+json"
            if not (lost and again):
                assert answer.status_code == 200, (answer.status_code, answer.text)
                return answer
        again -= 1
        time.sleep(LOST_WAIT_S)


@dataclass
class Load:
    """What clients that send one request after the other have got so far: how often each answer came, and how many each client had."""

    answers: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    rounds: list[int] = field(default_factory=list)
    failed: bool = False

    def wait_rounds(self, more: int) -> None:
        """Until every client has got so many further answers."""
        goal = [count + more for count in self.rounds]
        wait(
            lambda: self.failed or all(count >= wanted for count, wanted in zip(self.rounds, goal, strict=True)), "answers for every client"
        )
        assert not self.failed


@contextmanager
def under_load(url: str, clients: int, *, again: int = 0, **values: str) -> Iterator[Load]:
    """So many clients that send until the end; whatever one of them could not get is raised there."""
    load, stop, lock = Load(rounds=[0] * clients), threading.Event(), threading.Lock()

    def work(number: int) -> None:
        while not stop.is_set():
            try:
                answer = send(url, again=again, **values)
            except BaseException:
                load.failed = True
                raise
            with lock:
                load.answers[answer.headers["X-Cleanplate-Model"], answer.content] += 1
                load.rounds[number] += 1

    with ThreadPoolExecutor(clients) as pool:
        working = [pool.submit(work, number) for number in range(clients)]
        try:
            yield load
        finally:
            stop.set()
        for one in working:
            one.result()


def wait(condition: Callable[[], bool], what: str) -> None:
    """Until something is so."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"there were no {what} within {WAIT_S} s"
        time.sleep(0.5)


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
