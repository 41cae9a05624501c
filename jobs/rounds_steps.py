"""What each step of a run of rounds does: the jobs and trainings that there are, called with outputs of the steps before it.

A step writes below its own folder and nowhere else, and may be killed at any moment: called again with the same inputs, it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Final

import numpy as np

from core import storage
from core.checkpoints import locate
from core.discriminator_config import find_discriminator
from core.eraser import identity
from core.errors import CleanplateError, UsageError
from core.labels import Label, read_labels, success_rate, write_labels
from core.plan import PLAN_SCHEMA, PlanRow
from core.readers import Input
from core.rounds.duplicates import KnownPhotos
from core.rounds.ledger import Entry, data_fingerprint, digest
from core.rounds.promotion import decide
from core.rounds.sampling import FIRST, choose_for_people, is_held_out, next_items, place_of
from core.rounds.settings import RoundsSettings, TrainingSettings
from core.rounds.steps import Step
from core.rounds.threshold import choose_threshold, measure
from jobs.clean import CleanJob, choose_discriminator, eraser_settings
from jobs.config import CleanConfig
from jobs.data_config import EvaluateConfig
from jobs.evaluate import evaluate
from jobs.rounds_data import Chosen, merge, photo_signatures, rows_of
from jobs.rounds_labels import QUEUE_SCHEMA, LabelSource, label_source, read_table, write_table
from jobs.rounds_results import figure_by_item, is_kept, judged_results, light_rows, plan_row, rounded
from jobs.runner import RunSettings, run_job
from jobs.train import plan_workers
from jobs.train_config import TrainConfig
from training.settings import ObjectiveName, TrainSettings, load_recipe
from training.trainer import train

SAMPLE, QUEUE, LABELS, PHOTOS, ERASED = "sample.parquet", "queue.parquet", "labels.parquet", "photos.bin", "erased"
METRICS: Final = "metrics"
_TRAINED: Final = ("steps", "items", "loss", "validation_loss", "calibration_auroc", "calibration_accuracy")
"""Figures of a training that are the same however often it was killed."""
WITHOUT_CLUSTER: Final = ("queue", "labels", "threshold", "promotion")
"""Kinds of steps that need no Ray."""


class WaitingForPeople(CleanplateError):
    """A step needs labels that are not there yet."""

    def __init__(self, queue: str, have: int, wanted: int, dataset: str, words: str) -> None:
        super().__init__(f"waiting for {wanted - have:,} of {wanted:,} labels of {queue}: {words}")
        self.queue, self.have, self.wanted, self.dataset, self.words = queue, have, wanted, dataset, words


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step: for its entry."""

    result: dict[str, Any]
    outside: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A step that is to be done.

    Attributes:
        step: which.
        output: its folder, a whole URI.
        follows: entries of the steps that it follows, by part.
    """

    step: Step
    output: str
    follows: Mapping[str, Entry]


class RoundsSteps:
    """The steps of one run."""

    def __init__(self, settings: RoundsSettings) -> None:
        self.settings = settings
        self.folder = storage.normalize_uri(settings.folder)
        self.source: LabelSource = label_source(settings)
        self._fingerprints: dict[str, str] = {}

    def settings_for(self, step: Step) -> dict[str, Any]:
        """All that decides what a step makes, besides the steps that it follows."""
        settings = self.settings
        found: dict[str, Any] = {"kind": step.kind, "count": step.count}
        if step.kind == "guard":
            found["data"] = self._data(settings.evaluation.sets.values())
        elif step.kind == "sample":
            found |= {"data": self._data(settings.collections), "seed": settings.seed, "radius": settings.evaluation.radius}
        elif step.kind == "erase":
            found |= {"clean": dict(settings.clean), "seed": settings.seed, "round": step.round, **self._models(step)}
        elif step.kind == "queue":
            found |= {"random": self._random_share(step), "seed": settings.seed}
            found |= {"votes": settings.labels.votes, "overlap": settings.labels.overlap}
        elif step.kind == "labels":
            found["usual"] = settings.threshold.usual
        elif step.kind == "threshold":
            found["threshold"] = asdict(settings.threshold)
        elif step.kind == "data" and not step.follows.keys() - {"guard"}:
            found |= {"data": self._data(self._given(step)), "radius": settings.evaluation.radius}
        elif step.kind == "discriminator-data":
            found |= {"held_out": settings.train.held_out, "synthetic": self._takes_triplets}
        elif step.kind in ("remover", "discriminator", "lcm"):
            recipe = self._recipe(step, "-").as_dict()
            found |= {"recipe": recipe | {"model": None}, **(self._models(step) if "remover" not in step.follows else {})}
        elif step.kind == "evaluate":
            judge = settings.evaluation.discriminator or settings.discriminator
            found |= {"data": self._data(settings.evaluation.sets.values()), "sets": list(settings.evaluation.sets), **self._models(step)}
            found |= {"clean": dict(settings.clean), "seed": settings.seed, "threshold": settings.evaluation.threshold}
            found["judge"] = self._discriminator_fingerprint(judge)
        elif step.kind == "promotion":
            found |= {"guard": settings.evaluation.guard, "threshold": settings.evaluation.threshold}
        return found

    def perform(self, call: Call) -> Outcome:
        """Do a step, or go on with it.

        Raises:
            WaitingForPeople: labels are missing; they were asked for.
            CleanplateError: as the job that it runs.
        """
        doing: dict[str, Callable[[Call], Outcome]] = {
            "guard": self._guard,
            "sample": self._sample,
            "erase": self._erase,
            "queue": self._queue,
            "labels": self._labels,
            "threshold": self._threshold,
            "data": self._merge,
            "discriminator-data": self._judged_data,
            "remover": self._train,
            "discriminator": self._train,
            "lcm": self._train,
            "evaluate": self._evaluate,
            "promotion": self._promotion,
        }
        return doing[call.step.kind](call)

    def _guard(self, call: Call) -> Outcome:
        rows = [row for uri in self.settings.evaluation.sets.values() for row in rows_of(uri)]
        known = KnownPhotos(np.concatenate(photo_signatures(rows, targets=True)), self.settings.evaluation.radius)
        uri = storage.join(call.output, PHOTOS)
        storage.storage_for(uri).write(uri, known.to_bytes())
        return Outcome({"items": len(rows), "photos": len(known)})

    def _known(self, call: Call) -> KnownPhotos | None:
        if "guard" not in call.follows:
            return None
        uri = storage.join(self._uri(call.follows["guard"]), PHOTOS)
        return KnownPhotos.of_bytes(storage.storage_for(uri).read(uri), self.settings.evaluation.radius)

    def _sample(self, call: Call) -> Outcome:
        """The next photos of the collections, without those that look like one of an evaluation set."""
        known, settings = self._known(call), self.settings
        after = int(call.follows["after"].result["last"]) if "after" in call.follows else FIRST
        taken: list[PlanRow] = []
        duplicates = 0
        while len(taken) < call.step.count:
            rows = chain.from_iterable(rows_of(uri) for uri in settings.collections)
            drawn = next_items(rows, call.step.count - len(taken), after=after, seed=settings.seed)
            if not drawn:
                break
            after = drawn[-1][0]
            found = [row for _, row in drawn]
            looks = photo_signatures(found) if known is not None else []
            fresh = [row for row, look in zip(found, looks, strict=True) if not known.near(look).any()] if known is not None else found
            duplicates += len(found) - len(fresh)
            # a clean plate that a collection has is none of the eraser's business
            taken += [replace(row, target=None, effect_mask=None) for row in fresh]
        if not taken:
            raise UsageError(f"{call.step.name}: the collections have no items left; add some, or lower the sizes of the stages")
        write_table(storage.join(call.output, SAMPLE), [asdict(row) for row in taken], PLAN_SCHEMA)
        return Outcome({"items": len(taken), "wanted": call.step.count, "near_duplicates": duplicates, "last": after})

    def _erase(self, call: Call) -> Outcome:
        sample = storage.join(self._uri(call.follows["sample"]), SAMPLE)
        config = self._clean_config(call.step, sample, storage.join(call.output, ERASED), call.follows)
        found = Input("sample", self.folder, lambda: (PlanRow(**row) for row in read_table(sample)))
        summary = run_job(CleanJob(config, choose_discriminator(config)), RunSettings.of(config), found)
        return Outcome({name: summary[name] for name in ("in", "out", "failed")})

    def _clean_config(self, step: Step, source: str, output: str, follows: Mapping[str, Entry], **values: Any) -> CleanConfig:
        model = self.remover_of(follows)
        judge = self._uri(follows["discriminator"]) if "discriminator" in follows else self.settings.discriminator
        given = {"model": model, "discriminator": judge, "seed": self.settings.seed, "round": step.round or None}
        return CleanConfig(input=source, output=output, **{**given, **self.settings.clean, **values})

    def _queue(self, call: Call) -> Outcome:
        """Which results people see, in which order."""
        erased, settings = self._erased(call.follows), self.settings
        rows = {row["id"]: row for row in light_rows(erased, ("score", "model", "category", "seed", "round", "width", "height"))}
        scores = [(item, row["score"]) for item, row in rows.items()]
        chosen = choose_for_people(scores, call.step.count, random_share=self._random_share(call.step), seed=settings.seed)
        several = settings.labels.overlap * 2**63
        queue = [
            rows[one.id]
            | {"sampled_by": one.sampled_by, "weight": one.weight}
            | {"votes": max(settings.labels.votes, 3 if place_of(one.id, settings.seed, "overlap") < several else 1)}
            for one in chosen
        ]
        write_table(storage.join(call.output, QUEUE), queue, QUEUE_SCHEMA)
        return Outcome({"items": len(queue), "random": sum(one.sampled_by == "random" for one in chosen)})

    def _random_share(self, step: Step) -> float:
        return self.settings.human.random if step.stage == "people" and "-evaluation-" not in step.name else 1.0

    def _labels(self, call: Call) -> Outcome:
        entry = call.follows["queue"]
        queue = read_table(storage.join(self._uri(entry), QUEUE))
        name, dataset = f"{call.step.name.removesuffix('-labels')}-{entry.fingerprint[:8]}", self._erased(call.follows)
        self.source.offer(name, dataset, queue)
        wanted = {row["id"]: row["votes"] for row in queue}
        several = not self.settings.labels.folder
        labels = [one for one in self.source.labels(name) if one.id in wanted and (not several or one.votes >= wanted[one.id])]
        if len(labels) < len(wanted):
            raise WaitingForPeople(name, len(labels), len(wanted), dataset, self.source.words(name, dataset))
        labels.sort(key=lambda one: one.id)
        write_labels(storage.join(call.output, LABELS), labels)
        rate = success_rate(labels)
        result = {
            "labels": len(labels),
            "accepted": sum(one.accepted is True for one in labels),
            "undecided": sum(one.accepted is None for one in labels),
            "success_rate": rounded(asdict(rate)) if rate else None,
            "measured": rounded(measure(judged_results(queue, labels, random_only=True), self.settings.threshold.usual)),
        }
        return Outcome(result, outside=digest([asdict(one) for one in labels]))

    def _threshold(self, call: Call) -> Outcome:
        """The threshold that people's random part bears out, and what it comes to."""
        labels = self._read_labels(call.follows["labels"])
        rows = light_rows(self._erased(call.follows), ("score", "model", "category"))
        judged = judged_results(rows, list(labels.values()))
        choice = choose_threshold(judged, self.settings.threshold)
        kept = sum(is_kept(row, labels, choice.threshold) for row in rows)
        found = {"run": len(rows), "kept": kept, **asdict(choice), "measured": measure(judged, choice.threshold)}
        return Outcome(rounded(found))

    def _merge(self, call: Call) -> Outcome:
        """The triplets that a remover is trained on: those that were given, and all erasures that were accepted so far."""
        given = self._given(call.step) if not call.follows.keys() - {"guard"} else ()
        chosen = [Chosen(row, "triplet") for uri in given for row in rows_of(uri)]
        for part, entry in call.follows.items():
            if entry.settings["kind"] == "data":
                chosen += [Chosen(row, "triplet") for row in rows_of(self._uri(entry))]
            elif part.endswith("-erased"):
                stage = part.removesuffix("-erased")
                labels = self._read_labels(call.follows[f"{stage}-labels"])
                limit = call.follows.get(f"{stage}-threshold")
                threshold = float(limit.result["threshold"]) if limit is not None else None
                erased = self._erased({"erased": entry})
                rows = [row for row in self._in_order(erased, "score", "category", "origin") if is_kept(row, labels, threshold)]
                chosen += [Chosen(plan_row(erased, row), "accepted") for row in rows]
        if not chosen:
            raise CleanplateError(f"{call.step.name}: there is nothing to train on: people accepted no result; judge more, or give initial")
        return Outcome(merge(call.output, chosen, self._known(call)))

    def _judged_data(self, call: Call) -> Outcome:
        """What a discriminator is trained on: all that people judged so far; some of it held out for its calibration."""
        parts: dict[bool, list[Chosen]] = {False: [], True: []}
        for part, entry in call.follows.items():
            if not part.endswith("-erased"):
                continue
            labels = self._read_labels(call.follows[f"{part.removesuffix('-erased')}-labels"])
            erased = self._erased({"erased": entry})
            for row in self._in_order(erased, "category", "origin"):
                label = labels.get(row["id"])
                if label is not None and label.accepted is not None:
                    use = Chosen(plan_row(erased, row), "judged_accepted" if label.accepted else "judged_rejected")
                    parts[is_held_out(row["id"], self.settings.train.held_out)].append(use)
        judged = len(parts[False])
        if self._takes_triplets and "initial" in call.follows:
            parts[False] += [Chosen(row, "triplet") for row in rows_of(self._uri(call.follows["initial"]))]
        found = merge(storage.join(call.output, "train"), parts[False], None)
        held = merge(storage.join(call.output, "held"), parts[True], None) if parts[True] else {"items": 0}
        return Outcome({"judged": judged, "items": found["items"], "held_out": held["items"]})

    def _in_order(self, dataset: str, *columns: str) -> list[dict[str, Any]]:
        """As ``light_rows``, in the order of the sample: the same whatever was killed, and neighbours are mostly neighbours in a shard."""
        return sorted(light_rows(dataset, columns), key=lambda row: (place_of(row["id"], self.settings.seed), row["id"]))

    @cached_property
    def _takes_triplets(self) -> bool:
        recipe = self.settings.train.discriminator
        return load_recipe(recipe.recipe, "discriminator", dict(recipe.changes)).data.synthetic

    def _train(self, call: Call) -> Outcome:
        data, validation = self._uri(call.follows["data"]), None
        if call.step.kind == "discriminator":
            validation = storage.join(data, "held") if call.follows["data"].result["held_out"] else None
            data = storage.join(data, "train")
        settings = self._recipe(call.step, self.remover_of(call.follows))
        config = TrainConfig(objective=settings.objective, data=data, output=call.output, validation=validation)
        summary = train(settings, plan_workers(config, settings))
        return Outcome(rounded({name: summary[name] for name in _TRAINED if name in summary}))

    def _recipe(self, step: Step, model: str) -> TrainSettings:
        objective: ObjectiveName = step.kind  # type: ignore[assignment]
        chosen: TrainingSettings | None = getattr(self.settings.train, step.kind)
        if chosen is None:
            raise UsageError(f"train.{step.kind} is not given")
        changes = {**chosen.changes, "model": model if step.kind != "discriminator" else chosen.changes.get("model", self.settings.model)}
        return load_recipe(chosen.recipe, objective, changes)

    def _evaluate(self, call: Call) -> Outcome:
        evaluation, found = self.settings.evaluation, {}
        judge = evaluation.discriminator or self.settings.discriminator
        more: dict[str, Any] = {"discriminator": judge, "threshold": evaluation.threshold, "uncertain": min(0.5, evaluation.threshold)}
        if "lcm" in call.follows:
            more |= {"lcm_lora": self._uri(call.follows["lcm"]), "steps": 4}
        for number, (name, uri) in enumerate(evaluation.sets.items()):
            # the results of the first set may be shown to people
            erased = storage.join(call.output, ERASED if number == 0 else f"{ERASED}-{number}")
            config = self._clean_config(call.step, uri, erased, call.follows, **more)
            run_job(CleanJob(config, choose_discriminator(config)), RunSettings.of(config))
            asked = EvaluateConfig(
                input=erased, output=storage.join(call.output, f"{METRICS}-{number}"), discriminator="none", threshold=evaluation.threshold
            )
            summary = evaluate(asked)
            means = {figure: estimate["mean"] for figure, estimate in summary["metrics"].items()}
            found[name] = rounded({**means, "items": summary["out"], "success_rate": summary["success_rate"]})
        return Outcome(found)

    def _promotion(self, call: Call) -> Outcome:
        """Which remover the run goes on with."""
        new, evaluated, before = call.follows["new"].output, call.follows["evaluation"].output, call.follows.get("before")
        stood, best = (before.result["stands"], before.result["best"]) if before is not None else (None, call.follows["base"].output)
        guard = self.settings.evaluation
        one, other = (figure_by_item(f"{self.folder}/{folder}/{METRICS}-0", guard.guard, guard.threshold) for folder in (best, evaluated))
        found = decide(one, other)
        result = {"promoted": found.promoted, "stands": new if found.promoted else stood, "best": evaluated if found.better else best}
        return Outcome(rounded(result | {"difference": asdict(found.difference) if found.difference else None}))

    def remover_of(self, follows: Mapping[str, Entry]) -> str:
        """The model that a step erases with or trains on from: the one that it follows, or the one that stood when that was decided."""
        entry = follows.get("remover")
        output = entry.output if entry is not None else None
        if entry is not None and entry.settings["kind"] == "promotion":
            output = entry.result["stands"]
        return storage.join(self.folder, output) if output is not None else self.settings.model

    def _given(self, step: Step) -> tuple[str, ...]:
        return self.settings.final if step.stage == "final" else self.settings.initial

    def _uri(self, entry: Entry) -> str:
        return storage.join(self.folder, entry.output)

    def _erased(self, follows: Mapping[str, Entry]) -> str:
        return storage.join(self._uri(follows["erased"]), ERASED)

    def _read_labels(self, entry: Entry) -> dict[str, Label]:
        return {one.id: one for one in read_labels(storage.join(self._uri(entry), LABELS))}

    def _data(self, uris: Any) -> list[str]:
        for uri in uris:
            if uri not in self._fingerprints:
                self._fingerprints[uri] = data_fingerprint(uri)
        return [self._fingerprints[uri] for uri in uris]

    def _models(self, step: Step) -> dict[str, Any]:
        """Identity of the models that a step takes from the settings and not from another step."""
        found: dict[str, Any] = {}
        if "remover" not in step.follows:
            config = CleanConfig(input="-", output="-", **{"model": self.settings.model, **self.settings.clean})
            found["model"] = identity(self.settings.model, eraser_settings(config, "cpu"))["fingerprint"]
        if step.kind == "erase" and "discriminator" not in step.follows:
            found["discriminator"] = self._discriminator_fingerprint(self.settings.discriminator)
        return found

    def _discriminator_fingerprint(self, name: str) -> str | None:
        if name == "none":
            return None
        if name not in self._fingerprints:
            self._fingerprints[name] = find_discriminator(locate(name)).fingerprint()
        return self._fingerprints[name]
