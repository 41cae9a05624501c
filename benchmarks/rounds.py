"""Two rounds of RORem's loop with a scripted annotator, killed at random, against the same run without a kill.

    python -m benchmarks.rounds --initial TRIPLETS --collection TRIPLETS --public PAIRS --output FOLDER [--kills 3]

The annotator knows the clean plates of the collection (the rounds never look at them), compares each result with them, and errs in 5 % of
the cases. Prints the table of the run, how long each part took, and whether the ledgers are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import yaml

from core import storage
from core.fetch import Fetcher
from core.images import Pixels, decode_photo
from core.labels import Label, label_of, write_labels
from core.ledger import list_parts, read_columns
from core.masks import decode_mask
from core.rounds.sampling import place_of
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


def play(config: Path, folder: str, annotator: Annotator, *, kills: Sequence[int] = (), log: Path) -> tuple[float, float, int]:
    """Run ``cleanplate rounds run`` until nothing is left, with people in between.

    Args:
        kills: the process is killed, some random moment after the ledger has come to as many entries; each once.

    Returns:
        seconds of the commands, seconds of the annotator, verdicts.
    """
    left, ran, judged, verdicts = sorted(kills), 0.0, 0.0, 0
    chance = random.Random(len(left))
    while True:
        started = time.monotonic()
        answered = _run(config, folder, left, chance, log)
        ran += time.monotonic() - started
        if answered is None:
            continue
        if not answered["waiting"]:
            if answered["left"]:
                raise RuntimeError(f"the run ended with {answered['left']} to do; see {log}")
            return ran, judged, verdicts
        started = time.monotonic()
        for waiting in answered["waiting"]:
            verdicts += answer(waiting, annotator, database=f"sqlite:///{folder}/review.sqlite")
        judged += time.monotonic() - started


def _run(config: Path, folder: str, kills: list[int], chance: random.Random, log: Path) -> dict[str, Any] | None:
    """One command to its end; None where it was killed on the way."""
    command = [sys.executable, "-m", "jobs.main", "rounds", "run", "--config", str(config), "--folder", folder, "--json"]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, start_new_session=True)
        try:
            while kills and process.poll() is None:
                if len(ledger_of(folder)) >= kills[0]:
                    kills.pop(0)
                    try:
                        process.wait(chance.uniform(0, 20))
                    except subprocess.TimeoutExpired:
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


def settings_for(options: argparse.Namespace) -> dict[str, Any]:
    """The run's YAML."""
    training = {"data.sizes": [128], "data.batch_size": 8, "loop.micro_batch_size": 8, "loop.precision": "float32", "loop.log_every": 20}
    often = {"loop.checkpoint_every": 25, "loop.validate_every": 0, "loop.picture_items": 0}
    # the embedded model's own conditioning
    remover = training | often | {"remover.conditioning": "prefilled", "remover.latent_mask": "max", "data.validation_share": 0.0}
    remover |= {"loop.steps": options.steps, "optimiser.learning_rate": 1.0e-5}
    judge = training | often | {"data.sizes": [256], "loop.steps": options.judge_steps, "optimiser.learning_rate": 3.0e-4}
    distilled = {"lcm": {"recipe": "tiny-lcm", "changes": training | often | {"loop.steps": options.steps}}} if options.lcm else {}
    return {
        "collections": [options.collection],
        "initial": [options.initial],
        "model": "tiny",
        "discriminator": "tiny",
        "rounds": 2,
        "human": {"items": options.human},
        "automatic": {"items": options.automatic, "audit": 0.5},
        "threshold": {"precision": 0.6, "confidence": 0.8, "least_labels": 15},
        "train": {
            "remover": {"recipe": "smoke", "changes": remover},
            "discriminator": {"recipe": "tiny-discriminator", "changes": judge},
            **distilled,
        },
        "evaluation": {"sets": {"public": options.public}, "judged": options.evaluated},
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("initial", "collection", "public", "output"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in (("human", 30), ("automatic", 60), ("steps", 50), ("judge-steps", 100), ("evaluated", 200), ("kills", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lcm", action="store_true", help="distil at the end")
    parser.add_argument("--limit", type=float, default=0.35)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    output = Path(options.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    config = output / "rounds.yaml"
    config.write_text(yaml.safe_dump(settings_for(options), sort_keys=False))
    annotator = Annotator([options.collection, options.public], limit=options.limit)
    print("| run | commands (s) | annotator (s) | verdicts |\n| --- | --- | --- | --- |", flush=True)
    chance = random.Random(options.seed)
    entries = 0
    for name in ("whole", "killed") if options.kills else ("whole",):
        kills = [chance.randrange(1, entries) for _ in range(options.kills)] if name == "killed" else []
        ran, judged, verdicts = play(config, str(output / name), annotator, kills=kills, log=output / f"{name}.log")
        entries = len(ledger_of(str(output / name)))
        said = f"{name}, killed after {sorted(kills)} of {entries} steps" if kills else name
        print(f"| {said} | {ran:.0f} | {judged:.0f} | {verdicts} |", flush=True)
    if options.kills:
        whole, killed = (ledger_of(str(output / name)) for name in ("whole", "killed"))
        different = [name for name in sorted(whole.keys() | killed.keys()) if whole.get(name) != killed.get(name)]
        print(f"\nentries that differ: {', '.join(different) or 'none'}")
    command = [sys.executable, "-m", "jobs.main", "rounds", "status", "--config", str(config), "--folder", str(output / "whole")]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
