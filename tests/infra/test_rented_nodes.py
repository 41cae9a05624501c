"""Rented nodes: the file of ``ray up`` by Ray's own validation, and ``ray job submit`` to a cluster of two ``ray start``."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from infra.object_store import _free_ports
from jobs.config import VerifyConfig
from jobs.verify import verify
from tests.jobs.support import ROOT, read_rows, write_pairs

CONFIG = ROOT / "infra" / "cluster.yaml"


def validated(config: dict[str, Any]) -> dict[str, Any]:
    """The file as ``ray up`` fills it out; Ray's own schema has to take it."""
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    filled: dict[str, Any] = fillout_defaults(config)
    validate_config(filled)
    return filled


def test_ray_takes_the_cluster_file() -> None:
    filled = validated(yaml.safe_load(CONFIG.read_text()))
    types = filled["available_node_types"]
    assert types[filled["head_node_type"]]["resources"] == {"CPU": 0}, "the head holds the driver, and no actor"
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(kind.get("max_workers", 0) for kind in types.values()) >= filled["max_workers"]


def test_ray_refuses_what_is_misspelt() -> None:
    import jsonschema

    config = yaml.safe_load(CONFIG.read_text())
    config["available_node_types"]["gpu_spot"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validated(config)


def test_start_commands_have_flags_that_ray_start_has() -> None:
    from ray.scripts.scripts import start

    known = {flag for option in start.params for flag in option.opts}
    config = yaml.safe_load(CONFIG.read_text())
    lines = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    used = {word.split("=")[0] for line in lines for word in line.split() if word.startswith("--")}
    assert used <= known, used - known


@dataclass(frozen=True, slots=True)
class Started:
    """A cluster of two ``ray start`` on this machine."""

    address: str
    dashboard: str
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]]
    log: Path

    def text(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """Head and worker as processes of their own, with a token, on free ports, in a temporary folder of their own."""
    # sockets of Ray have long names: the folder's must be short
    folder = Path(tempfile.mkdtemp(prefix="cp", dir="/tmp"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ports = _free_ports(12)
    gcs, dashboard, client = ports[:3]

    def arguments(own: list[int]) -> list[str]:
        names = ("node-manager-port", "object-manager-port", "dashboard-agent-listen-port", "metrics-export-port")
        return [f"--{name}={port}" for name, port in zip(names, own, strict=True)]

    head = [f"--port={gcs}", "--head", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--num-cpus=1"]
    # a folder of its own, as on a machine of its own: in a shared one each node unpacks the working_dir over the other's, and takes the
    # current directory away from the driver that runs in it
    worker = [f"--address=127.0.0.1:{gcs}", "--num-cpus=2", f"--temp-dir={folder / 'w'}"]
    log = tmp_path / "ray.log"
    nodes: list[subprocess.Popen[bytes]] = []

    def start(words: list[str], own: list[int]) -> None:
        call = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        call += ["--object-store-memory=200000000", *words, *arguments(own)]
        with log.open("ab") as out:
            nodes.append(subprocess.Popen(call, stdout=out, stderr=out, env=environment, start_new_session=True, cwd=folder))

    try:
        start(head, ports[3:7])
        cluster = Started(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment, nodes, log)
        wait_for(cluster, 1)
        start(worker, ports[7:11])
        wait_for(cluster, 2)
        yield cluster
    finally:
        for node in reversed(nodes):
            end(node)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(cluster: Started, count: int) -> None:
    """Until so many nodes are alive, by Ray's own word."""
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    deadline = time.monotonic() + 400
    while True:
        try:
            asked = subprocess.run(
                [sys.executable, "-c", code, cluster.address],
                env=cluster.environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                cwd=cluster.environment["RAY_TMPDIR"],
            )
        except subprocess.TimeoutExpired:
            asked = None
        if asked is not None and asked.returncode == 0 and asked.stdout.strip().endswith(str(count)):
            return
        assert all(node.poll() is None for node in cluster.nodes), cluster.text()
        assert time.monotonic() < deadline, f"{asked.stderr[-2000:] if asked else 'no answer'} {cluster.text()}"
        time.sleep(0.5)


def end(node: subprocess.Popen[bytes]) -> None:
    """The node's processes, and nobody else's."""
    try:
        family = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    node.wait()


def submit(cluster: Started, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    call = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", cluster.dashboard, "--working-dir", str(ROOT), "--"]
    return subprocess.run(
        [*call, "python", "-m", "jobs.main", *words],
        env={**cluster.environment, **more},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_submitted_job_runs_with_the_repository_as_working_dir(started: Started, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "in", 60)
    call = ["clean", "--input", str(pairs), "--output", str(tmp_path / "out"), "--model", "opencv", "--discriminator", "none", "--json"]
    done = submit(started, *call)
    assert done.returncode == 0, f"{done.stdout[-3000:]} {done.stderr[-3000:]}"
    results, failures = read_rows(str(tmp_path / "out"))
    assert (len(results), len(failures)) == (60, 0)
    assert verify(VerifyConfig(input=str(tmp_path / "out")))["status"] == "finished"
    wrong = submit(started, "clean", "--input", str(tmp_path / "nothing"), "--output", str(tmp_path / "out2"))
    assert wrong.returncode != 0, "a failed job must end the submission with an error"
    without = {name: value for name, value in started.environment.items() if not name.startswith("RAY_AUTH")}
    refused = submit(
        Started(started.address, started.dashboard, {**without, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}, [], started.log),
        *call,
    )
    assert refused.returncode != 0, "a wrong token was let in"
