"""The trainer loop in one process, without Ray: on a machine that has a device and no cluster, and in tests.

    python -m training.local remover --data FOLDER --output FOLDER [--recipe NAME] [--set data.batch_size=8 ...]

Settings, order, checkpoints and output are those of ``cleanplate train`` with one worker; either goes on with what the other began.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from core import storage
from core.errors import CleanplateError
from core.lease import Lease
from training.build import build_objective
from training.feed import Feed
from training.loop import FOLDER, TrainerLoop
from training.output import FINISHED_FILE, device_name, save_output
from training.preparation import admitted, data_facts, held_out_shares, read_items, read_json, thread_feed
from training.settings import TrainSettings, load_recipe

log = logging.getLogger(__name__)


class LocalSession:
    """The only worker."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.rank, self.world_size = 0, 1
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def report(self, values: dict[str, Any]) -> None:
        """Nobody listens."""

    def progress(self, values: dict[str, Any]) -> None:
        """A log line."""
        words = ", ".join(f"{name} {value:.5g}" for name, value in values.items() if isinstance(value, int | float))
        log.info("%s", words)


def train_locally(
    settings: TrainSettings,
    data: str,
    output: str,
    *,
    validation: str | None = None,
    device: torch.device | str | None = None,
    threads: int = 4,
    overwrite: bool = False,
    feed: Feed | None = None,
) -> dict[str, Any]:
    """Train, or go on with a training, in this process; returns the summary, as ``training.trainer.train`` does.

    Args:
        threads: that read and decode.
        feed: in place of the one that threads make.

    Raises:
        CleanplateError: as ``training.trainer.train``.
    """
    output = storage.normalize_uri(output)
    folder = storage.join(output, FOLDER)
    index, held = read_items(settings, storage.normalize_uri(data), validation)
    facts = data_facts(data, index, held)
    lease = Lease.acquire(storage.join(folder, "lease"))
    try:
        with admitted(folder, settings, facts, overwrite=overwrite):
            finished = read_json(storage.join(folder, FINISHED_FILE))
            if finished is not None and finished.get("steps") == settings.loop.steps:
                return finished
            session = LocalSession(device)
            with tempfile.TemporaryDirectory(prefix="cleanplate-train-") as scratch:
                objective = build_objective(settings, session.device)
                source = feed or thread_feed(settings, index, threads)
                loop = TrainerLoop(settings, objective, output, source, held_out_shares(settings, held), session, Path(scratch))
                trained, summary = loop.run()
            summary |= {"workers": 1, "device": device_name(session.device), "items": len(index)}
            save_output(trained, settings, output, folder, summary, facts)
            return summary
    finally:
        lease.release()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("objective", choices=["remover", "discriminator", "lcm"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--validation")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings over the recipe's, by dotted name")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        changes = {name: yaml.safe_load(value) for name, _, value in (item.partition("=") for item in options.set)}
        settings = load_recipe(options.recipe, options.objective, changes)
        summary = train_locally(
            settings,
            options.data,
            options.output,
            validation=options.validation,
            device=options.device,
            threads=options.threads,
            overwrite=options.overwrite,
        )
    except CleanplateError as error:
        print(f"training.local: {error}", file=sys.stderr)
        return error.exit_status
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
