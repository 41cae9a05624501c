"""Judged items for a discriminator, made on purpose from pairs with a clean plate.

RORem's discriminator learns from people's yes and no on erasures (section 3.2); its author speaks of augmented data beside them without
saying which. Where nobody has voted, the clean plate is a success, and failures are made of it: the object given back, another one put in
its place, classical inpainting, smears, seams, a shadow left behind. They are those that a discriminator which has only seen one eraser's
results takes for successes.

Every edit is a fill, which is pasted into the source, and a defect: where the fill is wrong.

Two rules keep the judgements honest. A failure is called one only where it measurably is: flat colour is no failure on a clear sky, and
such an edit is not judged at all. And what says nothing of success says nothing here: fills of both verdicts are pasted by the same soft
edge and get the same finish (JPEG, softness, grain, tone), so that none of these gives the answer away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import ItemError, UsageError
from core.masks import dilate, mask_box, soft_mask
from core.record import item_seed
from training.edit_scene import FEATHER, EditScene, Values
from training.triplets import TrainingPair

Finish = Literal["clean", "jpeg", "softened", "grain", "tone"]
Failure = Literal["unchanged", "part", "faded", "inserted", "classical", "blurred", "flat", "noise", "seam", "displaced", "shadow"]
JudgedKind = Literal["eraser", Finish, Failure]
"""How an item was made: an eraser's own result, a success by its finish, or a failure."""

Draw = Callable[[EditScene, np.random.Generator], tuple[Values, NDArray[np.bool_]] | None]

_CLASSICAL_SIDE: Final = 384


@dataclass(frozen=True, slots=True, kw_only=True)
class NegativeSettings:
    """What judged items are made of. The numbers of the failures are relative to each other.

    Attributes:
        accepted: probability of a success.
        finish: probability that a fill, good or bad, is coded as JPEG, softened, grained or shifted in tone, slightly.
        unchanged: the object is still there.
        part: some of it is.
        faded: it shows through.
        inserted: another item's object, or a copy of its own, stands in its place.
        classical: OpenCV's inpainting (Telea, or Navier-Stokes).
        blurred: a smear, of the object or of what is behind it.
        flat: one colour, often that of the surroundings.
        noise: noise about the colour of what is behind.
        seam: the right fill in another tone.
        displaced: what is behind, out of place.
        shadow: the object is gone and its shadow or reflection is not.

    Raises:
        UsageError: a probability is not within 0 to 1, a number is negative, or all are 0 where failures are asked for.
    """

    accepted: float = 0.5
    finish: float = 0.6
    unchanged: float = 1.0
    part: float = 1.5
    faded: float = 1.0
    inserted: float = 2.0
    classical: float = 2.0
    blurred: float = 1.5
    flat: float = 0.5
    noise: float = 0.5
    seam: float = 1.0
    displaced: float = 1.0
    shadow: float = 1.5

    def __post_init__(self) -> None:
        for name in ("accepted", "finish"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"negatives: {name} is {getattr(self, name)}; a probability is 0 to 1")
        for name, share in self.shares.items():
            if not 0 <= share < math.inf:
                raise UsageError(f"negatives: {name} is {share}; allowed are 0 (never) and more, relative to the other failures")
        if self.accepted < 1 and not any(self.shares.values()):
            raise UsageError("negatives: all failures are 0; give one of them a number above 0, or set accepted 1")

    @property
    def shares(self) -> Mapping[Failure, float]:
        """The failures' numbers by name."""
        return {name: float(getattr(self, name)) for name in get_args(Failure)}


@dataclass(frozen=True, slots=True)
class JudgedItem:
    """A judged item, and how it was made.

    Attributes:
        pair: its ``target`` is the edited picture; ``verdict`` is ``accepted``, ``rejected``, or None where nobody could say.
        kind: of the edit, so that metrics can be told by it.
    """

    pair: TrainingPair
    kind: JudgedKind


def judged_pair(
    pair: TrainingPair, other: TrainingPair | None, settings: NegativeSettings, *, seed: int, epoch: int
) -> JudgedItem:
    """A success or a failure made of a pair whose target is a clean plate; a pair with a verdict comes back as it is.

    The edit is a function of the two items, seed and epoch. It differs from the source within the effect mask (where that is unknown, where
    source and target differ next to the object), the mask, and a seam of some pixels around them, and nowhere else. ``score`` is dropped:
    it was another picture's.

    Args:
        pair: any size; its verdict, if it is accepted or rejected, is about the target as it is.
        other: whose object may be put in; of any size. Without one, or where it has no object, the pair's own is copied.
        settings: what is drawn.
        seed, epoch: of the draws, with the pair's id.

    Returns:
        The pair with the edit as its target. Its verdict is None where no failure that the settings allow can be told from the clean plate.

    Raises:
        ItemError: stage ``train``, code ``empty_mask``.
        UsageError: a negative epoch.
    """
    if epoch < 0:
        raise UsageError(f"epoch is {epoch}; epochs count from 0")
    if pair.label is not None:
        return JudgedItem(pair, "eraser")
    if not pair.mask.any():
        raise ItemError("train", "empty_mask", f"record {pair.id}: its mask is empty, and nothing can be judged; leave it out")
    rng = np.random.Generator(np.random.PCG64(item_seed(f"judgement\0{pair.id}", seed, epoch)))
    scene = EditScene.of(pair, other, feather=float(rng.uniform(0, FEATHER)))
    accepted = bool(rng.random() < settings.accepted)
    finish: Finish = _FINISHES[int(rng.integers(1, len(_FINISHES)))] if rng.random() < settings.finish else "clean"
    success = scene.mixed(_finished(scene.clean.astype(np.float32), finish, scene.unit, rng))
    if scene.failed(success, scene.region > 0):
        # this finish shows on this picture; it is left out of failures as well, or it would give them away
        finish, success = "clean", scene.mixed(scene.clean.astype(np.float32))
    if accepted:
        return JudgedItem(scene.judged(pair, success, "accepted"), finish)
    shares = {name: share for name, share in settings.shares.items() if share > 0}
    weights = np.array(list(shares.values())) / sum(shares.values())
    kinds = list(shares)
    kind: JudgedKind = "unchanged"
    edited = scene.source
    for place in rng.choice(len(kinds), len(kinds), replace=False, p=weights).tolist():
        drawn = _FAILURES[kinds[place]](scene, rng)
        if drawn is None:
            continue
        fill, defect = drawn
        kind, edited = kinds[place], scene.mixed(_finished(fill, finish, scene.unit, rng))
        if scene.failed(edited, defect):
            return JudgedItem(scene.judged(pair, edited, "rejected"), kind)
    return JudgedItem(scene.judged(pair, edited, None), kind)


def _finished(fill: Values, finish: Finish, unit: float, rng: np.random.Generator) -> Values:
    """A fill (h, w, 3) after one of the slight changes that any eraser's output may show."""
    if finish == "jpeg":
        stored = cv2.cvtColor(np.clip(np.rint(fill), 0, 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
        _, coded = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 96))])
        return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB), dtype=np.float32)
    if finish == "softened":  # as by an autoencoder: the finest detail is gone, and some grain is in its place
        fine = cv2.GaussianBlur(fill, (0, 0), float(rng.uniform(0.4, 0.9)) * max(1.0, unit))
        return _grained(np.asarray(fine, dtype=np.float32), float(rng.uniform(0, 1.5)), rng)
    if finish == "grain":
        return _grained(fill, float(rng.uniform(1, 3)), rng)
    if finish == "tone":
        return fill + np.clip(rng.normal(0, 1.2, 3), -2.5, 2.5).astype(np.float32)
    return fill


def _grained(fill: Values, levels: float, rng: np.random.Generator) -> Values:
    return fill + rng.standard_normal(fill.shape[:2], dtype=np.float32)[..., None] * np.float32(levels)


def _unchanged(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]]:  # noqa: ARG001  # nothing is drawn
    return scene.source.astype(np.float32), scene.mask > 0


def _part(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]]:
    """What lies on one side of a line through the object is kept, with its share of the shadow."""
    rows, columns = np.nonzero(scene.mask)
    angle = rng.uniform(0, 2 * math.pi)
    across = np.array([math.sin(angle), math.cos(angle)])
    limit = np.quantile(rows * across[0] + columns * across[1], rng.uniform(0.3, 0.75))
    height, width = scene.mask.shape
    over = np.arange(height)[:, None] * across[0] + np.arange(width) * across[1] > limit
    share = cv2.GaussianBlur(over.astype(np.float32), (0, 0), max(0.5, scene.unit))[..., None]
    return _blend(scene.source, scene.clean, share), over & (scene.mask > 0)


def _faded(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]]:
    return _blend(scene.source, scene.clean, np.float32(rng.uniform(0.3, 0.8))), scene.mask > 0


def _inserted(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]] | None:
    """An object, half to all of the hole's size, on the clean plate; what reaches beyond the region is not pasted."""
    x0, y0, x1, y1 = mask_box(scene.mask)
    height, width = scene.other_mask.shape
    factor = min((x1 - x0) / width, (y1 - y0) / height) * rng.uniform(0.6, 1.0)
    size = (max(2, round(width * factor)), max(2, round(height * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    colours, alpha = (cv2.resize(array, size, interpolation=how).astype(np.float32) for array in (scene.other, scene.other_mask))
    if rng.random() < 0.5:
        colours, alpha = colours[:, ::-1], alpha[:, ::-1]
    left = x0 + int(rng.integers(0, max(1, x1 - x0 - size[0] + 1)))
    top = y0 + int(rng.integers(0, max(1, y1 - y0 - size[1] + 1)))
    height, width = scene.mask.shape
    right, bottom = min(width, left + size[0]), min(height, top + size[1])
    fill, share = scene.clean.astype(np.float32), np.zeros((height, width), np.float32)
    share[top:bottom, left:right] = alpha[: bottom - top, : right - left] / 255
    share = np.asarray(cv2.GaussianBlur(share, (0, 0), max(0.5, scene.unit)), dtype=np.float32)
    layer = fill.copy()
    layer[top:bottom, left:right] = colours[: bottom - top, : right - left]
    seen = (share > 0.5) & (scene.region > 0)
    return (_blend(layer, fill, share[..., None]), seen) if scene.holds(seen) else None


def _classical(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]]:
    """Of the object's hole alone, as it is mostly used, so that effects stay; or of the region. Large ones in a smaller copy."""
    hole = dilate(scene.mask if rng.random() < 0.5 else scene.region, max(1, round(3 * scene.unit)))
    method = cv2.INPAINT_TELEA if rng.random() < 0.7 else cv2.INPAINT_NS
    height, width = hole.shape
    factor = min(1.0, _CLASSICAL_SIDE / max(height, width))
    small = (max(8, round(width * factor)), max(8, round(height * factor)))
    view = cv2.resize(scene.source, small, interpolation=cv2.INTER_AREA) if factor < 1 else scene.source
    share = (cv2.resize(hole.astype(np.float32), small, interpolation=cv2.INTER_AREA) > 0) if factor < 1 else hole > 0
    filled = cv2.inpaint(np.ascontiguousarray(view), share.astype(np.uint8), float(rng.integers(3, 8)), method)
    if factor < 1:
        filled = cv2.resize(filled, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.where(hole[..., None] > 0, filled, scene.source).astype(np.float32), scene.mask > 0


def _blurred(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]]:
    picture = scene.source if rng.random() < 0.5 else scene.clean
    sigma = max(1.5, float(rng.uniform(0.08, 0.3)) * scene.extent)
    factor = min(1.0, 4 / sigma)  # a wide blur is the same on a small picture, and many times as fast
    height, width = scene.mask.shape
    small = (max(2, round(width * factor)), max(2, round(height * factor)))
    view = cv2.resize(picture.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    smear = cv2.GaussianBlur(view, (0, 0), sigma * factor)
    return np.asarray(cv2.resize(smear, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32), scene.region > 0


def _flat(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]]:
    colour = scene.around() if rng.random() < 0.7 else rng.uniform(0, 255, 3).astype(np.float32)
    return np.broadcast_to(colour, scene.clean.shape).astype(np.float32), scene.region > 0


def _noise(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]]:
    """Coloured noise of some pixels' grain."""
    height, width = scene.mask.shape
    grain = max(1.0, scene.unit * float(rng.uniform(0.5, 3)))
    coarse = rng.standard_normal((max(2, round(height / grain)), max(2, round(width / grain)), 3), dtype=np.float32)
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(rng.uniform(15, 50))
    mean = scene.clean[scene.region > 0].mean(axis=0).astype(np.float32)
    return np.asarray(mean + noise, dtype=np.float32), scene.region > 0


def _seam(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]]:
    """Lighter or darker by 8 to 35 levels, more or less alike in the three channels."""
    step = float(rng.uniform(8, 35)) * (1 if rng.random() < 0.5 else -1)
    shift = (step * rng.uniform(0.6, 1.2, 3)).astype(np.float32)
    return np.clip(scene.clean.astype(np.float32) + shift, 0, 255), scene.region > 0


def _displaced(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]]:
    """Moved by a sixth to all of the object's size; mirrored beyond the edges."""
    angle, distance = rng.uniform(0, 2 * math.pi), scene.extent * rng.uniform(1 / 6, 1)
    move = np.array([[1, 0, distance * math.cos(angle)], [0, 1, distance * math.sin(angle)]], np.float32)
    height, width = scene.mask.shape
    moved = cv2.warpAffine(scene.clean, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return moved.astype(np.float32), scene.region > 0


def _shadow(scene: EditScene, rng: np.random.Generator) -> tuple[Values, NDArray[np.bool_]] | None:
    left = (scene.region > 0) & (dilate(scene.mask, max(1, round(2 * scene.unit))) == 0)
    if not scene.holds(left):
        return None
    inside = soft_mask(scene.mask, float(rng.uniform(0, FEATHER)) * scene.unit)[..., None]
    return _blend(scene.clean, scene.source, inside), left


def _blend(over: NDArray[np.generic], under: NDArray[np.generic], share: Values | np.float32) -> Values:
    return np.asarray(over.astype(np.float32) * share + under.astype(np.float32) * (1 - share), dtype=np.float32)


_FINISHES: Final[tuple[Finish, ...]] = get_args(Finish)
_FAILURES: Final[dict[Failure, Draw]] = {
    "unchanged": _unchanged,
    "part": _part,
    "faded": _faded,
    "inserted": _inserted,
    "classical": _classical,
    "blurred": _blurred,
    "flat": _flat,
    "noise": _noise,
    "seam": _seam,
    "displaced": _displaced,
    "shadow": _shadow,
}
