"""``cleanplate compose``: triplets with shadows from cut-outs and photos.

The plan is the list of ids; actors draw, compose and encode. The rest is ``jobs.runner``, as for ``clean``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import cv2
import pyarrow as pa
import ray

from core import storage
from core.collections.licences import UNKNOWN, check_accepted, licences_of, parse_accepted
from core.composing.annotations import Annotations
from core.composing.cast import LIFTED_FOLDER
from core.composing.collection import Collection, Listing, list_pictures, read_annotations
from core.composing.composer import Composer, ComposeSettings
from core.composing.encoding import ORIGIN, encode_record
from core.composing.support import RULE, SurfaceNetworks, ground_by_colour
from core.errors import StorageUnavailable, UsageError
from core.plan import PlanInfo, PlanRow
from core.readers import Input
from core.record import SCHEMA_VERSION
from core.workload import Outcome, failure
from jobs.cluster import Pools, plan_pools
from jobs.data_config import ComposeConfig
from jobs.runner import RunSettings, actor_stage, print_summary, run_job
from jobs.stages import Guarded, in_chunks

RECIPE_VERSION: Final = 2
"""Goes up with every change of ``core.composing`` that changes what comes out for a seed."""

_DECIDING: Final = ("count", "size", "seed", "negatives", "max_objects", "reflections", "image_format", "surfaces", "depth")


def run(config: ComposeConfig) -> int:
    """Run the job and print its summary."""
    print_summary("compose", compose(config), as_json=config.json)
    return 0


def compose(config: ComposeConfig) -> dict[str, Any]:
    """Run, or go on with, the job on ``config.output``; returns the summary. Raises CleanplateError as ``jobs.runner.run_job``."""
    output = storage.normalize_uri(config.output)
    for name in ("backgrounds", "cutouts"):
        folder = storage.normalize_uri(getattr(config, name))
        if f"{output}/".startswith(f"{folder}/"):
            raise UsageError(f"--output {output} is inside --{name}, which lists its pictures; give another folder")
    annotations, fingerprint = read_annotations(config.annotations)
    photos, cutouts = list_pictures(config.backgrounds, "photos"), list_pictures(config.cutouts, "cut-outs")
    job = ComposeJob(config, photos, cutouts, annotations, fingerprint)
    check_accepted(job.licences(), parse_accepted(config.accept_license))
    settings = RunSettings(
        input=config.backgrounds,
        origin=ORIGIN,
        **{field.name: getattr(config, field.name) for field in fields(RunSettings) if field.name not in ("input", "origin")},
    )
    return run_job(job, settings, Input("request", photos.base, job.rows))


@dataclass(frozen=True, slots=True)
class ComposeJob:
    """The composing job for ``jobs.runner``."""

    config: ComposeConfig
    photos: Listing
    cutouts: Listing
    annotations: Annotations
    annotations_fingerprint: str

    def rows(self) -> Iterator[PlanRow]:
        """The items: ids from 0 to the count."""
        for number in range(self.config.count):
            yield PlanRow(f"compose-{self.config.seed}-{number:09d}", origin=ORIGIN)

    def settings(self, source: str) -> dict[str, Any]:
        config = self.config
        return {
            "job": "compose",
            "schema_version": SCHEMA_VERSION,
            "recipe_version": RECIPE_VERSION,
            "backgrounds": source,
            "backgrounds_fingerprint": self.photos.fingerprint,
            "cutouts": self.cutouts.base,
            "cutouts_fingerprint": self.cutouts.fingerprint,
            "annotations": config.annotations,
            "annotations_fingerprint": self.annotations_fingerprint,
            "licences": self.licences(),
            **{name: getattr(config, name) for name in _DECIDING},
        }

    def pools(self) -> Pools:
        return plan_pools(self.config)

    def stages(self, rows: ray.data.Dataset, plan: PlanInfo, pools: Pools, monitor: Any) -> ray.data.Dataset:  # noqa: ARG002
        config = self.config
        made = ComposeSettings(
            size=config.size,
            seed=config.seed,
            negatives=config.negatives,
            max_objects=config.max_objects,
            reflections=config.reflections,
        )
        collection = ray.put((self.photos, self.cutouts, self.annotations))
        arguments = (collection, made, self._model(), config.image_format, (config.surfaces, config.depth), monitor)
        return actor_stage(rows, ComposeStage, arguments, pools, pools.min_actors, pools.max_actors)

    def licences(self) -> list[str]:
        """All licences that the annotations name for the listed pictures; for those that they do not, their dataset's, or ``unknown``."""
        named = {(self.photos.base, self.annotations.photo(name).licence) for name in self.photos.names} | {
            (self.cutouts.base, self.annotations.object(name).licence) for name in self.cutouts.names
        }
        found = {licence for _, licence in named if licence}
        for base in {base for base, licence in named if not licence}:
            found.update(_dataset_licences(base))
        return sorted(found)

    def _model(self) -> str:
        """What made the rows: the version of the recipe, and a fingerprint of photos, cut-outs and annotations."""
        parts = (self.photos.fingerprint, self.cutouts.fingerprint, self.annotations_fingerprint)
        return f"compose-{RECIPE_VERSION}@{hashlib.blake2b(' '.join(parts).encode(), digest_size=8).hexdigest()}"


def _dataset_licences(folder: str) -> list[str]:
    """The licences of the dataset that a folder of pictures is, or that it belongs to as the cut-outs that ``effects`` lifts do."""
    own = licences_of(folder)
    if own == [UNKNOWN] and folder.rsplit("/", 1)[-1] == LIFTED_FOLDER:
        return licences_of(storage.parent(folder))
    return own


class ComposeStage:
    """An actor of the pool: ids in, composed records out."""

    def __init__(
        self,
        collection: ray.ObjectRef[tuple[Listing, Listing, Annotations]],
        settings: ComposeSettings,
        model: str,
        image_format: Literal["jpeg", "png"],
        surfaces: tuple[str, str],
        monitor: Any,
    ) -> None:
        cv2.setNumThreads(1)
        find = ground_by_colour if surfaces[0] == RULE else SurfaceNetworks(*surfaces)
        self._composer = Composer(Collection(*ray.get(collection), find_support=find), settings)
        self._model, self._format = model, image_format
        self._guarded = Guarded(monitor, "compose")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        yield from in_chunks(self._guarded.run(batch.to_pylist(), self._process))

    def _process(self, rows: Iterator[dict[str, Any]]) -> Iterator[Outcome]:
        for row in rows:
            yield self._composed(row["id"])

    def _composed(self, item_id: str) -> Outcome:
        try:
            made = self._composer.compose(item_id)
            values = encode_record(made, item_id, seed=self._composer.settings.seed, model=self._model, format=self._format)
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one item costs one row
            return failure(item_id, None, error, "compose")
        return Outcome(item_id, record=values, warnings=tuple(sorted(set(made.warnings))))
