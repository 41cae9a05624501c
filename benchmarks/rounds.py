"""Two rounds of RORem's loop with a scripted annotator, killed at random, against the same run without a kill.

    python -m benchmarks.rounds --initial TRIPLETS --collection TRIPLETS --public PAIRS --output FOLDER [--kills 3]

The annotator knows the clean plates of the collection (the rounds never look at them), compares each result with them, and errs in 5 % of
the cases. Prints how long the runs took and on which kinds of steps, whether the ledgers are equal, and the table of the run.

``--damage`` starts from the embedded model with noise on its weights, so that trainings as short as these have something to learn.

Sizes are for two cores and twenty minutes: the embedded remover at its own size of 256 pixels, a discriminator of 128, few steps of each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from core import storage
from core.checkpoints import locate
from core.fetch import Fetcher
from core.images import Pixels, decode_photo
from core.labels import Label, label_of, write_labels
from core.ledger import list_parts, read_columns
from core.masks import decode_mask
from core.rounds.sampling import place_of
from core.rounds.settings import RoundsSettings
from core.rounds.steps import steps_of
from jobs.rounds_config import RoundsConfig, settings_of
from jobs.rounds_data import rows_of

SIGMA_PX: Final = 2.0
GROWTH_PX: Final = 9
ERRS: Final = 0.05


def residual(source: Pixels, erased: Pixels, truth: Pixels, effects: Pixels) -> float:
    """How much of the object and its effects is left, 0 = none, 1 = as in the source: blurred differences from the truth, in the region.

    All (H, W, 3) uint8, ``effects`` (H, W) uint8, 255 where the object or its effects are.
    """
    region = cv2.dilate(effects, np.ones((GROWTH_PX, GROWTH_PX), np.uint8)) > 0
    blurred = [cv2.GaussianBlur(picture.astype(np.float32), (0, 0), SIGMA_PX) for picture in (source, erased, truth)]
    before, after = (float(np.abs(picture - blurred[2])[region].mean()) for picture in blurred[:2])
    return after / max(before, 1e-6)


class Annotator:
    """A person who knows the clean plates, and errs.

    Args:
        truth: datasets or folders with targets, of the ids that are asked about.
        limit: a result with a greater residual is rejected.
        errs: share of the verdicts that are wrong; which ones follows from name and id.
    """

    def __init__(self, truth: Iterable[str], *, limit: float = 0.35, errs: float = ERRS, name: str = "a") -> None:
        self.rows = {row.id: row for uri in truth for row in rows_of(uri)}
        self.limit, self.errs, self.name = limit, errs, name

    def residual_of(self, dataset: str, shard: str, row: int) -> float:
        """Of one result of a dataset."""
        values = Fetcher(dataset).record_at(shard, row)
        item = self.rows[values["id"]]
        truth = Fetcher("/").fetch({name: getattr(item, name) for name in item.__slots__})
        source, erased = (decode_photo(values[name]["bytes"], max_megapixels=200).pixels for name in ("source", "erased"))
        if truth.target is None:
            raise ValueError(f"item {values['id']} has no clean plate; the annotator knows only what it is shown")
        target = decode_photo(truth.target["bytes"], max_megapixels=200).pixels
        effects = truth.effect_mask["bytes"] if truth.effect_mask else values["mask"]["bytes"]
        height, width = target.shape[:2]
        return residual(source, erased, target, decode_mask(effects, (width, height), max_megapixels=200).pixels)

    def accepts(self, item: str, left: float, voter: str) -> bool:
        """The verdict of one of several people, given the residual."""
        wrong = place_of(item, 0, f"errs {self.name} {voter}") < self.errs * 2**63
        return (left <= self.limit) != wrong

    def judge(self, dataset: str, wanted: Mapping[str, int]) -> dict[str, list[bool]]:
        """The verdicts, one a person, of the results in ``dataset`` whose ids are ``wanted`` from so many people."""
        found = {}
        for uri in list_parts(dataset):
            shard = storage.relative(dataset, uri)
            for row, item in enumerate(read_columns(uri, ("id",)).column("id").to_pylist()):
                if item in wanted:
                    left = self.residual_of(dataset, shard, row)
                    found[item] = [self.accepts(item, left, str(voter)) for voter in range(wanted[item])]
        return found


def answer(waiting: Mapping[str, Any], annotator: Annotator, *, database: str | None = None, labels: str | None = None) -> int:
    """Judge all that a queue waits for, in the desk's database or as a file of labels in a folder; returns the number of verdicts."""
    if labels is not None:
        found = annotator.judge(waiting["dataset"], dict.fromkeys(_ids(waiting["dataset"]), 1))
        written = [_label(item, votes) for item, votes in sorted(found.items())]
        return write_labels(storage.join(labels, f"{waiting['queue']}.parquet"), written)
    from serving.review.entries import Decision
    from serving.review.store import open_store

    store = open_store(str(database))
    try:
        wanted = {item: store.item(waiting["queue"], item) for item in _ids(waiting["dataset"])}
        asked = {item: entry.votes_wanted for item, entry in wanted.items() if entry is not None}
        decisions = [
            Decision(
                id=uuid.uuid4().hex,
                queue=waiting["queue"],
                item=item,
                annotator=f"scripted-{voter}",
                verdict="accepted" if good else "rejected",
                decided_at=time.time(),
            )
            for item, votes in annotator.judge(waiting["dataset"], asked).items()
            for voter, good in enumerate(votes)
        ]
        refused = [reason for reason in store.record_all(decisions) if reason]
        if refused:
            raise ValueError(f"{len(refused)} decisions were refused: {refused[0]}")
        return len(decisions)
    finally:
        store.close()


def _ids(dataset: str) -> list[str]:
    return [item for uri in list_parts(dataset) for item in read_columns(uri, ("id",)).column("id").to_pylist()]


def _label(item: str, votes: Sequence[bool]) -> Label:
    return label_of(item, ["accepted" if vote else "rejected" for vote in votes], (), sampled_by="random", weight=1.0)


def ledger_of(folder: str) -> dict[str, bytes]:
    """The entries of a run as they lie on storage, by name."""
    ledger = storage.join(folder, "ledger")
    store = storage.storage_for(ledger)
    return {storage.relative(ledger, one.uri): store.read(one.uri) for one in store.list(ledger)}


@dataclass(slots=True)
class Played:
    """What a run took: seconds of the commands and of the annotator; verdicts, commands, and how many of these were killed."""

    ran: float = 0.0
    judged: float = 0.0
    verdicts: int = 0
    commands: int = 0
    killed: int = 0


def play(config: Path, folder: str, annotator: Annotator, *, kills: Sequence[int] = (), log: Path) -> Played:
    """Run ``cleanplate rounds run`` until nothing is left, with people in between.

    Args:
        kills: the process is killed, some random moment after the ledger has come to as many entries; each once.
    """
    left, played = sorted(kills), Played()
    chance = random.Random(len(left))
    while True:
        started = time.monotonic()
        answered = _run(config, folder, left, chance, log)
        played.ran += time.monotonic() - started
        played.commands += 1
        if answered is None:
            played.killed += 1
            continue
        if not answered["waiting"]:
            if answered["left"]:
                raise RuntimeError(f"the run ended with {answered['left']} to do; see {log}")
            return played
        started = time.monotonic()
        for waiting in answered["waiting"]:
            played.verdicts += answer(waiting, annotator, database=f"sqlite:///{folder}/review.sqlite")
        played.judged += time.monotonic() - started


def _run(config: Path, folder: str, kills: list[int], chance: random.Random, log: Path) -> dict[str, Any] | None:
    """One command to its end; None where it was killed on the way."""
    command = [sys.executable, "-m", "jobs.main", "rounds", "run", "--config", str(config), "--folder", folder, "--json"]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, start_new_session=True)
        try:
            while kills and process.poll() is None:
                if len(ledger_of(folder)) >= kills[0]:
                    try:
                        process.wait(chance.uniform(0, 20))
                    except subprocess.TimeoutExpired:
                        kills.pop(0)
                        os.kill(process.pid, signal.SIGKILL)
                        process.communicate()
                        return None
                else:
                    time.sleep(0.1)
            printed, _ = process.communicate()
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        raise RuntimeError(f"cleanplate rounds ended with {process.returncode}; see {log}")
    return dict(json.loads(printed.decode().strip().splitlines()[-1]))


def seconds_by_kind(log: Path, settings: RoundsSettings) -> dict[str, tuple[int, float]]:
    """How many steps of each kind a log tells of as done, and their seconds; of a step that was killed, those of the last try."""
    kinds = {step.name: step.kind for step in steps_of(settings)}
    found: dict[str, tuple[int, float]] = {}
    for name, seconds in re.findall(r"INFO (\S+): done in ([\d.]+) s", log.read_text(errors="replace")):
        count, total = found.get(kinds[name], (0, 0.0))
        found[kinds[name]] = (count + 1, total + float(seconds))
    return dict(sorted(found.items(), key=lambda one: -one[1][1]))


def settings_for(options: argparse.Namespace) -> dict[str, Any]:
    """The run's YAML."""
    training = {"loop.precision": "float32", "loop.log_every": 20, "loop.checkpoint_every": 10, "loop.validate_every": 0}
    training |= {"loop.picture_items": 0, "optimiser.warmup_steps": 2}
    own = {"data.sizes": [options.side], "data.batch_size": 4, "loop.micro_batch_size": 4}
    # the embedded model's own conditioning
    remover = training | own | {"remover.conditioning": "prefilled", "remover.latent_mask": "max", "data.validation_share": 0.0}
    remover |= {"loop.steps": options.steps, "optimiser.learning_rate": options.rate}
    judge = training | {"data.sizes": [128], "data.batch_size": 8, "loop.micro_batch_size": 8, "loop.steps": options.judge_steps}
    judge |= {"loop.ema_decay": 0.9}
    distilled = {"lcm": {"recipe": "tiny-lcm", "changes": training | own | {"loop.steps": options.steps}}} if options.lcm else {}
    return {
        "collections": [options.collection],
        "initial": [options.initial],
        "model": options.model,
        "discriminator": "tiny",
        "rounds": options.rounds,
        "human": {"items": options.human},
        "automatic": {"items": options.automatic, "audit": 0.5},
        "threshold": {"precision": 0.6, "confidence": 0.8, "least_labels": options.automatic // 2},
        "train": {
            "remover": {"recipe": "smoke", "changes": remover},
            "discriminator": {"recipe": "tiny-discriminator", "changes": judge},
            **distilled,
        },
        # the embedded discriminator is never surer than 0.9; its usual threshold would call nothing a success
        "evaluation": {"sets": {"public": options.public}, "judged": options.evaluated, "threshold": 0.65},
        # one actor: a second would load the networks anew for a dozen pictures
        "clean": {"max_actors": 1},
    }


def damaged(folder: Path, amount: float) -> str:
    """The embedded model with Gaussian noise on the weights of its UNet, of ``amount`` times each tensor's standard deviation; its path."""
    shutil.copytree(locate("tiny"), folder, dirs_exist_ok=True)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    noise = torch.Generator().manual_seed(0)
    weights = load_file(path)
    for name, value in weights.items():
        if value.ndim > 1:
            weights[name] = (value + amount * value.float().std() * torch.randn(value.shape, generator=noise)).to(value.dtype)
    save_file(weights, path)
    return str(folder)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("initial", "collection", "public", "output"):
        parser.add_argument(f"--{name}", required=True)
    sizes = {"rounds": 2, "human": 12, "automatic": 16, "steps": 16, "judge-steps": 32, "side": 256, "evaluated": 200, "kills": 3}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1.0e-5, help="learning rate of the remover")
    parser.add_argument("--runs", default="whole,killed", help="which runs, in this order; ledgers are compared where both are there")
    parser.add_argument("--damage", type=float, default=0.0, help="noise on the first model's weights, over their standard deviation")
    parser.add_argument("--lcm", action="store_true", help="distil at the end")
    parser.add_argument("--limit", type=float, default=0.35)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    output = Path(options.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    options.model = damaged(output / "model", options.damage) if options.damage else "tiny"
    config = output / "rounds.yaml"
    config.write_text(yaml.safe_dump(settings_for(options), sort_keys=False))
    annotator = Annotator([options.collection, options.public], limit=options.limit)
    settings = settings_of(RoundsConfig(action="run", folder=str(output / "whole"), **settings_for(options)))
    print("| run | commands | s | annotator, s | verdicts |\n| --- | --- | --- | --- | --- |", flush=True)
    chance = random.Random(options.seed)
    entries = len(steps_of(settings))
    names = [name for name in options.runs.split(",") if options.kills or name != "killed"]
    for name in names:
        # not after the last ones, which take no time to be killed in
        kills = [chance.randrange(1, entries * 4 // 5) for _ in range(options.kills)] if name == "killed" else []
        played = play(config, str(output / name), annotator, kills=kills, log=output / f"{name}.log")
        said = f"{name}, {played.killed} times, after {sorted(kills)} of {entries} steps" if kills else name
        print(f"| {said} | {played.commands} | {played.ran:.0f} | {played.judged:.0f} | {played.verdicts} |", flush=True)
    for name in names:
        spent = seconds_by_kind(output / f"{name}.log", settings)
        print(f"\n{name}: " + ", ".join(f"{kind} {seconds:.0f} s ({count})" for kind, (count, seconds) in spent.items()))
    if all((output / name).exists() for name in ("whole", "killed")):
        whole, killed = (ledger_of(str(output / name)) for name in ("whole", "killed"))
        different = [name for name in sorted(whole.keys() | killed.keys()) if whole.get(name) != killed.get(name)]
        print(f"\nentries that differ: {', '.join(different) or 'none'}")
    command = [sys.executable, "-m", "jobs.main", "rounds", "status", "--config", str(config), "--folder", str(output / names[-1])]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
