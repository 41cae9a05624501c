"""A gloo process group of processes of this machine that leave it together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

PATIENCE_S = 300.0


@contextmanager
def gloo_group(rank: int, world: int, file: str) -> Iterator[None]:
    """Join the group that meets at ``file``; leave it when every rank has come to the end.

    A rank that closes its connections while another still reads from them fails the other one: that is no fault of what is tested. And the
    group talks over the loopback interface, whatever this machine's name resolves to.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    yield
    Path(f"{file}-left-{rank}").touch()
    deadline = time.monotonic() + PATIENCE_S
    while not all(Path(f"{file}-left-{other}").exists() for other in range(world)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {rank} waited {PATIENCE_S:g} s for the others to end")
        time.sleep(0.05)
    dist.destroy_process_group()
