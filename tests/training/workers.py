"""A worker process of test_parallelism.py: the trainer loop over gloo, without Ray.

Run as ``python -m tests.training.workers RANK WORLD FILE SETTINGS DATA OUTPUT``; SETTINGS is JSON of changes to the recipe ``smoke``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from core import storage
from tests.training.process_group import gloo_group
from training.build import build_objective
from training.loop import FOLDER, TrainerLoop
from training.output import save_output
from training.preparation import data_facts, held_out_shares, read_items, thread_feed
from training.settings import load_recipe


class GlooSession:
    """A worker of the process group of this process."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cpu")

    def report(self, values: dict[str, Any]) -> None:
        """Nobody listens."""

    def progress(self, values: dict[str, Any]) -> None:
        """Nobody watches."""


def main(rank: int, world: int, file: str, changes: str, data: str, output: str) -> None:
    """Trains to the end."""
    torch.set_num_threads(1)
    with gloo_group(rank, world, file):
        _train(rank, changes, data, output)


def _train(rank: int, changes: str, data: str, output: str) -> None:
    settings = load_recipe("smoke", "remover", json.loads(changes))
    index, held = read_items(settings, data, None)
    shares = held_out_shares(settings, held) if rank == 0 or settings.loop.strategy == "fsdp" else []
    loop = TrainerLoop(settings, build_objective(settings), output, thread_feed(settings, index), shares, GlooSession(), Path(output))
    trained, summary = loop.run()
    if rank == 0:
        save_output(trained, settings, output, storage.join(output, FOLDER), summary, data_facts(data, index, held))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
