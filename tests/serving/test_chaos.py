"""Replicas are killed under load: every request is answered, with the right bytes."""

from __future__ import annotations

import io
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml
from PIL import Image

from tests.serving.conftest import end, start_server, wait_for_url
from tests.serving.load import WAIT_S, replicas, send, under_load, wait
from tests.serving.test_server import MASK, SOURCE

pytestmark = pytest.mark.slow


@contextmanager
def served(folder: Path, **settings: object) -> Iterator[tuple[int, str]]:
    """Process and address of a ``cleanplate serve`` of its own."""
    (folder / "serving.yaml").write_text(yaml.safe_dump({"settings": {"store": str(folder / "up"), **settings}}))
    process = start_server("--config", str(folder / "serving.yaml"), log=folder / "log")
    try:
        yield process.pid, wait_for_url(process, folder / "log")
    finally:
        end(process)


def test_killed_replicas_of_models_cost_no_answer(tmp_path: Path) -> None:
    rng = random.Random(0)
    with served(tmp_path) as (server, url):
        wanted = send(url)
        with under_load(url, 4) as load:
            for _ in range(3):
                load.wait_rounds(1)
                wait(lambda: len(replicas(server, "eraser")) == len(replicas(server, "discriminator")) == 1, "replicas")
                os.kill(rng.choice(replicas(server, "eraser") + replicas(server, "discriminator")), signal.SIGKILL)
            load.wait_rounds(2)
        assert set(load.answers) == {(wanted.headers["X-Cleanplate-Model"], wanted.content)}


def test_killed_replicas_of_the_ingress_cost_clients_one_retry_and_no_upload(tmp_path: Path) -> None:
    rng = random.Random(1)
    with served(tmp_path, ingress_min_replicas=2, ingress_max_replicas=2, discriminator="none") as (server, url):
        wanted = send(url)
        photo = requests.post(f"{url}/v1/images", files={"image": (SOURCE.name, SOURCE.read_bytes())}, timeout=WAIT_S).json()
        first = set(replicas(server, "ingress"))
        with under_load(url, 4, again=1) as load:
            killed: set[int] = set()
            while not first <= killed or len(killed) < 3:
                wait(lambda: len(replicas(server, "ingress")) == 2, "replicas")
                load.wait_rounds(2)
                victim = rng.choice(sorted(first - killed) or replicas(server, "ingress"))
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
                load.wait_rounds(2)
        assert set(load.answers) == {(wanted.headers["X-Cleanplate-Model"], wanted.content)}
        # no replica that was there at the upload is there any more
        wait(lambda: len(replicas(server, "ingress")) == 2, "replicas")
        assert not first & set(replicas(server, "ingress"))
        whole = np.asarray(Image.open(io.BytesIO(wanted.content)).convert("RGB"))
        for _ in range(6):
            answer = requests.post(
                f"{url}/v1/images/{photo['id']}/erase", files={"mask": MASK.read_bytes()}, data={"id": "load"}, timeout=WAIT_S
            )
            assert answer.status_code == 200, answer.text
            result = answer.json()["results"][0]["id"]
            got = requests.get(f"{url}/v1/images/{photo['id']}/results/{result}?format=png", timeout=WAIT_S)
            assert got.status_code == 200, got.text
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(got.content)).convert("RGB")), whole)
