"""The configuration of the commands that make and measure data: ``compose``, ``evaluate``, ``encode`` and ``effects``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import UsageError
from jobs.config import JobConfig, RunConfig, check_run, within


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeConfig(RunConfig):
    """Compose triplets with exact masks, shadows and clean plates from photos and cut-outs.

    Attributes:
        backgrounds: folder of photos without the objects; local or s3://
        cutouts: folder of pictures of one object each, with alpha; local or s3://
        annotations: JSON file with ground, camera and light of photos, and real size and pose of objects; none for none
        surfaces: where feet may stand on photos without a note: rule (colours), or Mask2Former (a folder, s3:// folder or hub id)
        depth: Depth Anything V2 (a folder, s3:// folder or hub id) that says which of these surfaces are flat; none for none
        count: triplets to make
        size: side of the pictures in pixels
        seed: seed of everything that is drawn; the same seed makes the same bytes on any number of workers
        negatives: share of triplets whose mask is on an empty place, so that the target is the source
        max_objects: most objects in a picture; one is the target, the others stay
        reflections: share of the pictures with a smooth floor in which it mirrors the objects
        image_format: how source and target are encoded: jpeg (quality 95, 4:4:4) or png
        accept_license: licences that the annotations name and that you may use although they are restricted, with commas
    """

    backgrounds: str
    cutouts: str
    annotations: str = "none"
    surfaces: str = "rule"
    depth: str = "none"
    count: int = 1000
    size: int = 512
    seed: int = 0
    negatives: float = 0.02
    max_objects: int = 3
    reflections: float = 0.5
    image_format: Literal["jpeg", "png"] = "jpeg"
    accept_license: str = ""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("count", 1, 10**9),
            ("size", 64, 4096),
            ("seed", 0, 2**63 - 1),
            ("negatives", 0.0, 1.0),
            ("max_objects", 1, 8),
            ("reflections", 0.0, 1.0),
        ):
            within(name, getattr(self, name), least, most)
        if self.depth != "none" and self.surfaces == "rule":
            raise UsageError("--depth looks at the surfaces that a network found; add --surfaces, or leave it out")
        check_run(self)

    @property
    def num_gpus(self) -> float:
        """Nothing here runs on a GPU."""
        return 0.0

    @property
    def threads(self) -> int:
        """An actor composes one picture after another."""
        return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Compare erasures with their clean plates and ask the discriminator, with and without background paste.

    Attributes:
        input: dataset with erasures, folder (source/, mask/, erased/, target/, effect_mask/) or manifest; local or s3://
        output: folder for metrics.parquet (one row an item), failures.parquet and metrics.json; the default only prints
        reference: dataset, folder or manifest with target (and effect_mask) of the same ids, where the input has none
        compare: other erasures of the same items, with commas between them; all go into one table, with paired differences from --input
        known_set: published set that --reference is a copy of (ober-test, rord-val-343, removalbench, rorem-500); its size is checked
        labels: file of labels that people gave these erasures (cleanplate review --export labels), for their success rate
        inception: TorchScript file of the Inception, for FID and KID; without one they are left out
        clip: folder of a CLIP model in transformers' layout, for CMMD; without one it is left out
        sam: folder of a Segment Anything model in transformers' layout, for ReMOVE and ReMOVE+; without one they are left out
        latency: items that the eraser of the input erases again, one at a time, for its seconds an image; 0 leaves that out
        discriminator: model whose discriminator scores what the input has no score of; none for stored scores only
        threshold: a score above this is a success
        lpips: auto leaves LPIPS out where its weights are not at hand, and says so; on fails then; off does without
        device: auto, cpu, cuda
        threads: threads that fetch, decode and compare; 0 is one per core
        max_megapixels: larger images are failures; guards against decompression bombs
        json: print the summary as one JSON object
    """

    input: str
    output: str | None = None
    reference: str | None = None
    compare: str = ""
    known_set: str = ""
    labels: str | None = None
    inception: str | None = None
    clip: str | None = None
    sam: str | None = None
    latency: int = 0
    discriminator: str = "tiny"
    threshold: float = 0.9
    lpips: Literal["auto", "on", "off"] = "auto"
    device: str = "auto"
    threads: int = 0
    max_megapixels: float = 200.0
    json: bool = False

    def __post_init__(self) -> None:
        within("latency", self.latency, 0, 1_000_000)
        within("threshold", self.threshold, 0.0, 1.0)
        within("threads", self.threads, 0, 1024)
        within("max_megapixels", self.max_megapixels, 0.001, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig(JobConfig):
    """Encode a dataset's pictures once, for trainings on their latents: square views of one size, their moments in both orientations.

    Attributes:
        input: dataset, folder (source/, mask/, target/, ...) or manifest with targets or erasures; local or s3://
        model: model whose autoencoder encodes; trainings of any model with the same autoencoder can use the result
        conditioning: source that the trained network is shown (masked, full, prefilled); auto is what the model's card says
        size: side of the views in pixels, as in the training's data.sizes; 0 is the size of the model's card
        dtype: precision of the stored moments; float16 (11 significant bits) takes half of the bytes
        min_actors: least number of encoding actors; 0 is automatic
        max_actors: largest number of encoding actors; 0 is automatic
        num_gpus: GPUs per actor, may be a fraction; the default is 1 where the cluster has GPUs, else 0
        threads: threads per actor for fetching, decoding and resizing; 0 is automatic
    """

    model: str = "tiny"
    conditioning: Literal["auto", "masked", "full", "prefilled"] = "auto"
    size: int = 0
    dtype: Literal["float16", "float32"] = "float16"
    num_gpus: float | None = None

    def __post_init__(self) -> None:
        if self.size and (self.size < 32 or self.size % 8):
            raise UsageError(f"--size is {self.size}; it must be 0 (the model's), or a multiple of 8 from 32")
        for name, least, most in (("size", 0, 4096),):
            within(name, getattr(self, name), least, most)
        check_run(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestConfig(JobConfig):
    """Make a dataset of a published collection: RORem, RORD, MuLAn, OBER, Open Images, COCO, a folder or a manifest.

    Attributes:
        format: layout of the collection
        input: the collection as docs/data.md shows it; local or s3://
        origin: name of the collection in the records; the default is the format (folder and manifest: the last part of --input)
        images: folder of the photos, where it is not below --input (coco, openimages)
        exclude: classes that are left out (coco, openimages): names with commas between them, or a text file with one a line
        frames_per_clip: frames taken of each clip (rord), evenly spaced; 0 is all, 1 the middle one
        split: splits that are taken (ober), with commas between them; the default is all
        subset: subsets that are taken (ober), with commas between them; the default is all
        object_is: what the object is painted in in the masks (rord); auto looks where the frame before differs from the one after
        accept_license: collections, with commas between them, whose licence you have read and may use although it is restricted
        threads: threads per actor for fetching and decoding; 0 is automatic
    """

    format: Literal["rorem", "rord", "mulan", "ober", "openimages", "coco", "folder", "manifest"]
    images: str | None = None
    exclude: str = ""
    frames_per_clip: int = 0
    split: str = ""
    subset: str = ""
    object_is: Literal["auto", "white", "black"] = "auto"
    accept_license: str = ""

    def __post_init__(self) -> None:
        for name, least, most in (("frames_per_clip", 0, 1_000_000),):
            within(name, getattr(self, name), least, most)
        check_run(self)
        for name, formats in (
            ("images", ("coco", "openimages")),
            ("exclude", ("coco", "openimages")),
            ("frames_per_clip", ("rord",)),
            ("split", ("ober",)),
            ("subset", ("ober",)),
        ):
            if getattr(self, name) and self.format not in formats:
                raise UsageError(f"--{name.replace('_', '-')} is for --format {' and '.join(formats)}, not for {self.format}; leave it out")

    @property
    def num_gpus(self) -> float:
        """Nothing here runs on a GPU."""
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectsConfig(JobConfig):
    """Find what each object changes besides its own pixels (shadow, reflection) by comparing photos with and without it.

    Attributes:
        input: dataset, folder (source/, mask/, target/, ...) or manifest with targets; local or s3://
        low: how far a changed part reaches, in units of the local noise
        high: what a changed part needs somewhere, in units of the local noise
        lift_cutouts: also write each object with its effects to OUTPUT/cutouts, as PNG with alpha that compose takes
    """

    low: float = 3.0
    high: float = 6.0
    lift_cutouts: bool = False
    max_failure_rate: float = 0.5

    def __post_init__(self) -> None:
        for name, least, most in (
            ("low", 1.0, 100.0),
            ("high", 1.0, 100.0),
        ):
            within(name, getattr(self, name), least, most)
        if self.low > self.high:
            raise UsageError(f"--low {self.low} is above --high {self.high}; lower the one or raise the other")
        check_run(self)

    @property
    def num_gpus(self) -> float:
        """Nothing here runs on a GPU."""
        return 0.0
