"""What ``cleanplate doctor`` looks at on a machine: one function a question, each answering with findings and never with an exception."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil
from packaging.requirements import Requirement

from core.checkpoints import cache_folder
from core.errors import CleanplateError, UsageError

Status = Literal["ok", "warning", "problem"]

PYTHON: Final = ((3, 11), (3, 13))
LEAST_OPEN_FILES: Final = 4096
STORE_SHARE: Final = 0.3
"""Ray's object store takes this share of the memory."""
SPILL_LIMIT: Final = 0.95
"""Ray stops to spill objects where a disk is fuller."""
PORTS: Final = {6379: "ray start --head (GCS)", 8265: "Ray's dashboard and ray job submit", 10001: "Ray client", 8000: "the served graph"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what it is, how it stands, and what to do where it is not well."""

    name: str
    status: Status
    found: str
    todo: str = ""


def check_python(version: tuple[int, int] = (sys.version_info.major, sys.version_info.minor)) -> Iterator[Finding]:
    """Python's version, and the installed packages against those that cleanplate asks for."""
    found = f"{version[0]}.{version[1]} ({platform.python_implementation()}, {sys.executable})"
    if PYTHON[0] <= version <= PYTHON[1]:
        yield Finding("Python", "ok", found)
    else:
        yield Finding("Python", "problem", found, "install Python 3.11, 3.12 or 3.13 and make the virtual environment with it")
    wrong = list(_wrong_packages())
    if wrong:
        yield Finding("packages", "problem", "; ".join(wrong), "pip install --constraint constraints.txt --editable '.[dev]', or make test")
    else:
        yield Finding("packages", "ok", f"ray {importlib.metadata.version('ray')}, torch {importlib.metadata.version('torch')}")


def _wrong_packages() -> Iterator[str]:
    try:
        needed = importlib.metadata.requires("cleanplate") or []
    except importlib.metadata.PackageNotFoundError:
        return  # a checkout or a working_dir of Ray: there is no list to compare with
    for text in needed:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{requirement.name} is missing"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, must be {requirement.specifier}"


def check_machine() -> Iterator[Finding]:
    """Cores, memory, the limit of open files."""
    cores = os.cpu_count() or 1
    word: Status = "ok" if cores > 1 else "warning"
    yield Finding(
        "cores", word, str(cores), "" if cores > 1 else "one core serves both actors and tasks: fine for the demo, slow for a job"
    )
    memory = psutil.virtual_memory()
    found = f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free"
    if memory.available < 2 * 2**30:
        yield Finding("memory", "warning", found, "a job needs about 1.5 GiB beside its model (docs/benchmarks.md): close other programs")
    else:
        yield Finding("memory", "ok", found)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < LEAST_OPEN_FILES:
        todo = f"ulimit -n 65536 in the shell that starts Ray (the hard limit is {hard})"
        yield Finding("open files", "warning", f"limit {soft}", todo)
    else:
        yield Finding("open files", "ok", f"limit {soft}")


def check_gpu() -> Iterator[Finding]:
    """GPUs, as torch sees them and as the driver does."""
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            found = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, capability {facts.major}.{facts.minor}"
            old = (facts.major, facts.minor) < (8, 0)
            todo = "it has no bfloat16: give --dtype float32" if old else ""
            yield Finding(f"GPU {number}", "warning" if old else "ok", found, todo)
        return
    driver = shutil.which("nvidia-smi")
    listed = subprocess.run([driver, "-L"], capture_output=True, text=True, timeout=60, check=False).stdout if driver else ""
    if "GPU" in listed:
        found = f"the driver has {len(listed.splitlines())}, torch {torch.__version__} sees none"
        yield Finding(
            "GPU", "problem", found, "install a CUDA build of torch (pip install torch --index-url https://download.pytorch.org/whl/cu128)"
        )
    else:
        yield Finding("GPU", "ok", "none; the models tiny, opencv and patchmatch need none, others do")


def check_space(shared: Path = Path("/dev/shm"), total_memory: int | None = None) -> Iterator[Finding]:
    """Shared memory for Ray's object store; disk for what Ray spills, and for fetched models."""
    wanted = STORE_SHARE * (total_memory or psutil.virtual_memory().total)
    if not shared.is_dir():
        yield Finding(
            "shared memory", "warning", f"no {shared}", "Ray keeps objects on disk then, which is slow; on a Mac that is as it is"
        )
    else:
        size = shutil.disk_usage(shared)
        found = f"{shared} {size.total / 2**30:.1f} GiB, {size.free / 2**30:.1f} free"
        if size.free < wanted * 0.9:
            todo = f"Ray would like {wanted / 2**30:.1f} GiB: docker run --shm-size, or an emptyDir of medium Memory at {shared}"
            yield Finding("shared memory", "warning", found, todo)
        else:
            yield Finding("shared memory", "ok", found)
    for name, folder, least in (
        ("disk for Ray", Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()), 5),
        ("disk for models", cache_folder(), 8),
    ):
        yield _disk(name, folder, least)


def _disk(name: str, folder: Path, least_gib: int) -> Finding:
    there = folder
    while not there.exists():
        there = there.parent
    size = shutil.disk_usage(there)
    found = f"{folder}: {size.free / 2**30:.1f} GiB free of {size.total / 2**30:.1f}"
    if not os.access(there, os.W_OK):
        return Finding(name, "problem", f"{there} is not writable", "allow it, or set RAY_TMPDIR or CLEANPLATE_CACHE to another folder")
    if 1 - size.free / size.total > SPILL_LIMIT or size.free < least_gib * 2**30:
        return Finding(name, "warning", found, f"keep {least_gib} GiB and 5 % free: above 95 % Ray spills no more and the job stops")
    return Finding(name, "ok", found)


def check_ports(ports: dict[int, str] = PORTS) -> Iterator[Finding]:
    """Whether something listens where Ray and the served graph would."""
    taken = []
    for port, user in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(f"{port} ({user})")
    if taken:
        todo = "fine if that is your own Ray cluster or service; else stop it, or give other ports (ray start --port)"
        yield Finding("ports", "warning", f"taken: {', '.join(taken)}", todo)
    else:
        yield Finding("ports", "ok", f"free: {', '.join(map(str, ports))}")


def check_models(models: list[str]) -> Iterator[Finding]:
    """Whether the files of each model are here, and whole."""
    from core.checkpoints import locate
    from core.eraser import is_network
    from core.model_check import check_model
    from core.model_files import find_model

    for model in models:
        name = f"model {model}"
        if not is_network(model):
            yield Finding(name, "ok", "needs no files")
            continue
        try:
            locate(model, fetch=False)
            parts = check_model(find_model(model, fetch=False))
        except UsageError as error:
            yield Finding(name, "problem", str(error), f"cleanplate models pull {model}")
            continue
        faults = [f"{part.part}: {part.fault}" for part in parts if not part.ok]
        if faults:
            yield Finding(name, "problem", "; ".join(faults), f"fetch it again: cleanplate models pull {model}")
        else:
            yield Finding(name, "ok", f"{len(parts)} parts, {sum(part.bytes or 0 for part in parts) / 1e6:,.0f} MB, whole")


def check_demo() -> Iterator[Finding]:
    """Whether the demo's S3 server is installed."""
    from infra.object_store import find_weed

    try:
        yield Finding("S3 server for the demo", "ok", str(find_weed()))
    except UsageError as error:
        yield Finding("S3 server for the demo", "warning", "not installed", str(error))


def check_ray(address: str | None) -> Iterator[Finding]:
    """A Ray cluster that answers: the one at the address, or a new one; every node runs a task and tells its versions."""
    import ray

    from jobs.cluster import ray_cluster

    own = (platform.python_version(), ray.__version__)
    try:
        with ray_cluster(address):
            nodes = [node for node in ray.nodes() if node["Alive"]]
            probe = ray.remote(num_cpus=0)(_versions)
            tasks = [probe.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote() for node in nodes]
            versions = ray.get(tasks, timeout=120)
            resources = {name: value for name, value in ray.cluster_resources().items() if name in {"CPU", "GPU"}}
    except (CleanplateError, ray.exceptions.RayError) as error:
        token = "; a cluster with token authentication wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or ~/.ray/auth_token (docs/cluster.md)"
        yield Finding("Ray", "problem", " ".join(str(error).split())[:300], f"start one with ray start --head, or correct --address{token}")
        return
    found = f"{len(nodes)} nodes, {', '.join(f'{value:g} {name}s' for name, value in resources.items())}"
    others = {version for version in versions if version != own}
    if others:
        todo = "give every node the same image: Ray needs the same Python and the same Ray everywhere"
        yield Finding("Ray", "problem", f"{found}; here {own}, there {sorted(others)}", todo)
    elif resources.get("CPU", 0) < 2:
        yield Finding("Ray", "problem", found, "actors and tasks need two CPUs: add nodes, or leave --address away")
    else:
        yield Finding("Ray", "ok", found)


def _versions() -> tuple[str, str]:
    import platform

    import ray

    return platform.python_version(), ray.__version__
