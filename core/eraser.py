"""The eraser: what every model that takes an object out of a photo looks like to jobs and serving."""

from __future__ import annotations

import abc
import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import cv2
import numpy as np

from core.crops import Crop, CropRule, Fill, make_crop, paste
from core.errors import UsageError
from core.exemplar import complete

FusionKind = Literal["attention", "mask", "none"]
CompileMode = Literal["off", "blocks", "full", "graphs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EraserSettings:
    """What a caller may choose; None leaves the choice to the model."""

    steps: int | None = None
    """Network calls per image."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 is off."""
    context: float | None = None
    """Side of the crop over the longer side of the mask's box."""
    dilate_px: int | None = None
    """Growth of the mask in pixels of the network's size."""
    device: str = "auto"
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``."""
    dtype: str = "auto"
    """``float32`` or ``bfloat16``; ``auto`` is float32 on a CPU, bfloat16 on a GPU."""
    batch_size: int = 16
    """Images per network call on a GPU; on a CPU it is always one."""
    lcm_lora: str | None = None
    """LCM LoRA that is merged into the network: a file, a folder, ``s3://`` or a hub id."""
    fusion: FusionKind | None = None
    """Which pixels of the output may enter the photo: ``mask``, ``attention`` or ``none``."""
    compile: CompileMode = "off"
    """``torch.compile``: ``off``, ``blocks`` (quick to start), ``full``, ``graphs`` (full, with CUDA graphs, for small batches)."""


class Eraser(abc.ABC):
    """Fills crops. An implementation says how its crops look (``rule``) and fills them; cropping and pasting are common to all.

    ``fill`` must give an item the same bytes in every batch.
    """

    name: str
    """What the ``model`` column says."""
    fingerprint: str
    """Changes whenever the weights or the algorithm do."""
    rule: CropRule
    batch_size: int = 1
    """Crops that ``fill`` likes to get at once."""
    thread_safe: bool = False
    """Whether ``fill`` may run in several threads at once."""
    loads_files: ClassVar[bool] = False
    """Whether the constructor takes (model, settings) and not settings alone."""
    reads_soft: ClassVar[bool] = True
    """Whether ``fill`` looks at ``Crop.soft``; the served graph sends it only where it is read."""

    @abc.abstractmethod
    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> Sequence[np.ndarray | Fill]:
        """One filled picture (S, S, 3) uint8 RGB for every crop; ``seeds`` (0 to 2**63 - 1) make the noise, one a crop.

        A ``Fill`` instead of an array also says which pixels beyond the crop's own soft mask may enter the photo.
        """

    def with_steps(self, steps: int) -> Eraser:  # noqa: ARG002 - most algorithms have none
        """This eraser with another number of network calls per image, on the same networks; itself where there is no such number."""
        return self

    @classmethod
    def identity(cls, model: str, settings: EraserSettings) -> dict[str, object]:
        """All that decides this model's results, found out without loading a network: name, fingerprint, settings in force.

        A job keeps it in its configuration, and refuses to go on where it differs.
        """
        eraser = cls(settings)  # type: ignore[call-arg]
        rule = eraser.rule
        return {
            "model": model,
            "fingerprint": eraser.fingerprint,
            "context": rule.context,
            "dilate_px": rule.dilate_px,
            "feather_px": rule.feather_px,
        }

    def erase(self, pixels: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
        """The photo (H, W, 3) uint8 without what the mask (H, W) uint8 (255 = remove) covers; equal to it outside the soft mask."""
        crop = make_crop(pixels, mask, self.rule)
        return paste(pixels, crop, self.fill([crop], [seed])[0])


class OpenCVEraser(Eraser):
    """Telea's fast-marching inpainting (``cv2.inpaint``), at the photo's resolution: the classical baseline."""

    thread_safe = True

    def __init__(self, settings: EraserSettings) -> None:
        self.name = "opencv"
        self.radius_px = 5
        self.fingerprint = f"opencv-{cv2.__version__}-telea-{self.radius_px}"
        self.rule = CropRule(
            size=None, context=settings.context or 1.5, dilate_px=3 if settings.dilate_px is None else settings.dilate_px, feather_px=2
        )

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:  # noqa: ARG002 - there is no noise in it
        return [cv2.inpaint(crop.pixels, ((crop.soft > 0) * np.uint8(255)), self.radius_px, cv2.INPAINT_TELEA) for crop in crops]


class PatchMatchEraser(Eraser):
    """Texture copied from around the hole, patch by patch (``core.exemplar``), at the photo's resolution: the better classical one."""

    thread_safe = True

    def __init__(self, settings: EraserSettings) -> None:
        self.name = "patchmatch"
        self.fingerprint = f"patchmatch-1-{cv2.__version__}"
        self.rule = CropRule(
            size=None,
            context=settings.context or 3.0,
            dilate_px=3 if settings.dilate_px is None else settings.dilate_px,
            feather_px=2,
            least_side=256,
        )

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:  # noqa: ARG002 - its noise never changes
        return [complete(crop.pixels, crop.soft > 0) for crop in crops]


class NullEraser(Eraser):
    """Gives every photo back unchanged: it measures the system around a model."""

    thread_safe = True

    def __init__(self, settings: EraserSettings) -> None:  # noqa: ARG002 - nothing to choose
        self.name = "null"
        self.fingerprint = "null-1"
        self.rule = CropRule(size=None, context=1.0, dilate_px=0, feather_px=0, least_side=8)

    def fill(self, crops: Sequence[Crop], seeds: Sequence[int]) -> list[np.ndarray]:  # noqa: ARG002 - there is no noise in it
        return [crop.pixels for crop in crops]


_BUILT_IN: Final[dict[str, type[Eraser]]] = {"opencv": OpenCVEraser, "patchmatch": PatchMatchEraser, "null": NullEraser}


def load_eraser(model: str, settings: EraserSettings) -> Eraser:
    """The eraser that ``--model`` names: ``opencv``, ``patchmatch``, ``null``, ``tiny``, a folder, a hub id, or ``package.module:Class``.

    The last is a class of one's own; it gets the settings as its only argument and must be an ``Eraser``.

    Raises:
        UsageError: there is no such model, or its files are not what they should be.
    """
    kind = _class_for(model)
    return kind(model, settings) if kind.loads_files else kind(settings)  # type: ignore[call-arg]


def identity(model: str, settings: EraserSettings) -> dict[str, object]:
    """What decides the results of ``model`` (see ``Eraser.identity``). Raises UsageError as ``load_eraser`` does."""
    return _class_for(model).identity(model, settings)


def is_network(model: str) -> bool:
    """Whether ``model`` is a folder or name of network weights, and no built-in algorithm or class of one's own."""
    return model not in _BUILT_IN and not (":" in model and "://" not in model)


def _class_for(model: str) -> type[Eraser]:
    if model in _BUILT_IN:
        return _BUILT_IN[model]
    if not is_network(model):
        return _own_class(model)
    from core.diffusion import DiffusionEraser  # torch and diffusers take seconds to import

    return DiffusionEraser


def _own_class(name: str) -> type[Eraser]:
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except Exception as error:  # a module of the caller's may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"model {name}: cannot import {module_name} ({reason}); put it on the Python path of every node") from error
    if not (isinstance(found, type) and issubclass(found, Eraser)):
        raise UsageError(f"model {name}: {class_name} of {module_name} is {found!r}; it must be a subclass of core.eraser.Eraser")
    if inspect.isabstract(found):
        raise UsageError(f"model {name}: {class_name} has no fill(); an eraser defines it")
    return found
