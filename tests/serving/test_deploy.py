"""``serve deploy`` on a cluster that ``ray start`` made: two models in one replica, none while nothing is asked, versions that roll out."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.serve import LARGEST_MESSAGE
from tests.jobs.support import ROOT, environment
from tests.serving.conftest import make_client, with_parent
from tests.serving.load import WAIT_S, send, under_load, wait
from tests.serving.test_server import MASK, SOURCE

pytestmark = pytest.mark.slow

TINY = {"model": "tiny", "steps": 1}
OPENCV = {"model": "opencv"}
# as docs/cluster.md has it; without these Ray asks for a token where the user has one in a file, and for none where not
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Cluster:
    """A head node as ``ray start`` makes it, and what is deployed on it."""

    def __init__(self, folder: Path, dashboard: str) -> None:
        self._folder, self._dashboard = folder, dashboard
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"

    def deploy(self, **settings: Any) -> None:
        """``serve deploy`` of a file with these settings; returns before it is there."""
        settings = {"store": str(self._folder / "up"), "discriminator": "none", **settings}
        application = {"name": "cleanplate", "route_prefix": "/", "import_path": "serving.app:build", "args": settings}
        options = {"host": "127.0.0.1", "port": self._port}
        file = self._folder / "serving.yaml"
        file.write_text(yaml.safe_dump({"proxy_location": "HeadOnly", "http_options": options, "applications": [application]}))
        line = [sys.executable, "-m", "ray.serve.scripts", "deploy", "--address", self._dashboard, str(file)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=WAIT_S, env=environment(**TOKEN), cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def application(self) -> dict[str, Any]:
        with applications(self._dashboard, WAIT_S) as reply:
            found: dict[str, Any] = json.loads(reply.read())["applications"].get("cleanplate", {})
        return found

    def wait_running(self) -> None:
        """Until the last deployed version is there, whole."""
        wait(lambda: self.application().get("status") in ("RUNNING", "DEPLOY_FAILED"), "deployed application")
        assert self.application()["status"] == "RUNNING", self.application()

    def replicas(self, deployment: str) -> list[Any]:
        return list(self.application()["deployments"][deployment]["replicas"])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ray_head(tmp_path) as dashboard:
        yield Cluster(tmp_path, dashboard)


@contextmanager
def ray_head(folder: Path) -> Iterator[str]:
    """Address of the dashboard of a head node of its own."""
    head, dashboard, agent, client = free_ports(4)
    own = tempfile.mkdtemp(prefix="cp-", dir="/tmp")  # short: Ray makes sockets in it
    line = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus", "6", "--num-gpus", "0", "--port", str(head),
        "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent), "--ray-client-server-port", str(client),
        "--temp-dir", own, "--disable-usage-stats",
    ]  # fmt: skip
    log = folder / "ray.log"
    values = environment(RAY_SERVE_USE_GRPC_BY_DEFAULT="1", RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=LARGEST_MESSAGE, **TOKEN)
    with log.open("wb") as out:
        process = subprocess.Popen(with_parent(line), stdout=out, stderr=out, env=values, cwd=ROOT, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait(lambda: process.poll() is not None or answers(address), "dashboard")
        assert process.poll() is None, log.read_text()[-3000:]
        yield address
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
        for path in Path("/proc").iterdir():  # whatever the node left behind
            if path.name.isdigit() and belongs(path, own):
                os.kill(int(path.name), signal.SIGKILL)
        shutil.rmtree(own, ignore_errors=True)


def belongs(process: Path, folder: str) -> bool:
    """Whether a process was started by the node of that folder."""
    try:
        return folder.encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def applications(dashboard: str, timeout: float) -> Any:
    """The reply of the dashboard that tells what is deployed."""
    headers = {"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"}
    return urllib.request.urlopen(urllib.request.Request(f"{dashboard}/api/serve/applications/", headers=headers), timeout=timeout)


def answers(address: str) -> bool:
    try:
        with applications(address, 10):
            return True
    except OSError:
        return False


def expected(folder: Path, model: dict[str, Any]) -> tuple[str, bytes]:
    """Label and bytes of the erasure that ``send`` asks for, without Ray."""
    (folder / str(model["model"])).mkdir()
    client = make_client(folder / str(model["model"]), models=[{"name": "main", **model}])
    answer = client.post("/v1/erase", files={"image": SOURCE.read_bytes(), "mask": MASK.read_bytes()}, data={"id": "load"})
    assert answer.status_code == 200, answer.text
    return answer.headers["X-Cleanplate-Model"], answer.content


def test_two_models_scale_to_zero_and_new_versions_roll_out_under_load(cluster: Cluster, tmp_path: Path) -> None:
    tiny, opencv = expected(tmp_path, TINY), expected(tmp_path, OPENCV)
    one = [{"name": "main", **TINY}, {"name": "other", **OPENCV}]
    two = [{"name": "main", **OPENCV}, {"name": "other", **TINY}]
    # one model at a time in a replica: each request for the other one loads it anew
    cluster.deploy(models=one, models_per_replica=1, min_replicas=0, upscale_delay_s=0, downscale_delay_s=3)
    cluster.wait_running()
    with under_load(cluster.url, 2, model="main") as main, under_load(cluster.url, 2, model="other") as other:
        main.wait_rounds(3)
        other.wait_rounds(3)
    assert (set(main.answers), set(other.answers)) == ({tiny}, {opencv})

    wait(lambda: not cluster.replicas("eraser"), "moment without a replica")
    answer = send(cluster.url, model="main")
    assert (answer.headers["X-Cleanplate-Model"], answer.content) == tiny

    with under_load(cluster.url, 4, model="main") as load:
        load.wait_rounds(1)
        cluster.deploy(models=two)  # old replicas stop first, and requests wait
        wait(lambda: load.failed or opencv in load.answers, "answers of the new version")
        cluster.wait_running()
        load.wait_rounds(2)
        cluster.deploy(models=one, surge_percent=100)  # new replicas start first
        before = load.answers[tiny]
        wait(lambda: load.failed or load.answers[tiny] > before, "answers of the newest version")
        cluster.wait_running()
        load.wait_rounds(2)
    # never one model's name with the other's pixels, and none lost: a request that fails is raised by the load
    assert set(load.answers) == {tiny, opencv}
