"""Augmentation of a whole training pair at once: crop, size, mask, flip and colour.

Source, target and masks go through the same window and the same colour change, so that a pair that differs in the object and its effects
only does so afterwards. All draws come from one generator made of (seed, epoch, id): an item looks the same in an epoch whatever worker,
batch or restart it passes through. The steps and ranges are those of ObjectClear's released training code, with its errors left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from core.crops import take
from core.errors import UsageError
from core.images import Pixels
from core.masks import mask_at_size
from core.record import item_seed
from core.relighting import multiplied
from training.mask_augmentation import MaskAugmentation, augment_mask
from training.triplets import TrainingPair

_CROP_TRIES: Final = 8
_LEAST_DEPTH: Final = 0.01
_DEPTH_FACTORS: Final = (0.5, 6.0)
_DARKEST: Final = -1.0
_ROUNDING_BLUR: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAugmentation:
    """What is drawn for each item.

    Attributes:
        size: side of the training picture in pixels.
        flip: probability of a horizontal flip.
        brightness, contrast, saturation: each is multiplied by a factor uniform in [1 - x, 1 + x]; 0 leaves it.
        hue: the hue is turned by a whole number uniform in [-x, x], in 256ths of the circle; 0 leaves it.
        blank: probability of an item with nothing to remove: empty masks, and the source as its own target.
        shadow_depth: least and largest depth that a shadow is given, log-uniform; None: shadows stay as they are. The depth is the mean of
            |log(source / target)| over what of the effect mask lies outside the object mask. For pairs that differ by light alone, with
            the holes of both filled already (``training.exemplar_triplets``).
        mask: changes of the object mask.

    Raises:
        UsageError: a value outside its range.
    """

    size: int = 512
    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: int = 15
    blank: float = 0.0
    shadow_depth: tuple[float, float] | None = None
    mask: MaskAugmentation = field(default_factory=MaskAugmentation)

    def __post_init__(self) -> None:
        if self.size < 8:
            raise UsageError(f"size of training pictures is {self.size}; allowed are 8 pixels and more")
        for name in ("flip", "blank"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; a probability is 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; allowed are 0 (no change) to less than 1")
        if self.shadow_depth is not None and not are_depths(self.shadow_depth):
            raise UsageError(f"shadow_depth is {self.shadow_depth}; allowed are two numbers above 0, at most 1, the smaller one first")
        if not 0 <= self.hue <= 128:
            raise UsageError(f"hue is {self.hue}; allowed are 0 (no change) to 128 (any hue)")


class Window(NamedTuple):
    """A square of a photo in its pixels; x and y are negative, or the square ends beyond the photo, only where the photo is smaller."""

    x: int
    y: int
    side: int


class Rectangle(NamedTuple):
    """A part of a photo in its pixels, inside it."""

    x: int
    y: int
    width: int
    height: int


class ColourChange(NamedTuple):
    """One change for both pictures of a pair: three factors, and a turn of the hue in 256ths of the circle."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: int = 0


def pair_generator(item_id: str, *, seed: int, epoch: int) -> np.random.Generator:
    """The generator of an item's augmentation: a function of id, run seed and epoch, never of batch or worker.

    Raises:
        UsageError: a negative epoch.
    """
    if epoch < 0:
        raise UsageError(f"epoch is {epoch}; epochs count from 0")
    return np.random.Generator(np.random.PCG64(item_seed(f"augmentation\0{item_id}", seed, epoch)))


def augment_pair(
    pair: TrainingPair, settings: PairAugmentation, *, seed: int, epoch: int, sides: tuple[int, int] | None = None
) -> TrainingPair:
    """The pair as it is trained on in that epoch: ``sides`` (width, height), else (size, size); same id, score and verdict.

    The mask is changed at the training size, where its kernels are defined, and after the crop, so that a shape drawn around the object
    covers what the network sees of it. The effect mask is never grown: it says where source and target differ.

    Raises:
        UsageError: a negative epoch, or a pair with an empty mask.
    """
    rng = pair_generator(pair.id, seed=seed, epoch=epoch)
    width, height = sides or (settings.size, settings.size)
    window = draw_window(pair.mask, width, rng) if width == height else draw_rectangle(pair.mask, width, height, rng)
    size = (width, height)
    blank = bool(rng.random() < settings.blank)
    flip = bool(rng.random() < settings.flip)
    colour = draw_colour(settings, rng)
    source = picture_view(pair.source, window, size)
    answers = [answer for answer in (pair.target, pair.clean) if answer is not None]
    target, *clean = [source] * len(answers) if blank else [picture_view(answer, window, size) for answer in answers]
    mask = mask_view(pair.mask, window, size)
    effect_mask = None if pair.effect_mask is None else mask_view(pair.effect_mask, window, size)
    if blank:  # the effects go with the object: a loss on them would ask for an object that is not named
        mask = np.zeros_like(mask)
        effect_mask = None if effect_mask is None else np.zeros_like(effect_mask)
    else:
        mask = augment_mask(mask, rng, settings.mask)
    if settings.shadow_depth is not None and effect_mask is not None and not blank:
        source = at_depth(source, target, (effect_mask > 0) & (mask == 0), draw_depth(settings.shadow_depth, rng))
    source, target, *clean = change_colours(source, target, *clean, change=colour)
    if flip:
        source, target, mask, *clean = (np.ascontiguousarray(array[:, ::-1]) for array in (source, target, mask, *clean))
        effect_mask = None if effect_mask is None else np.ascontiguousarray(effect_mask[:, ::-1])
    return replace(pair, source=source, target=target, mask=mask, effect_mask=effect_mask, clean=clean[0] if clean else None)


def centroid(mask: Pixels) -> tuple[int, int]:
    """x and y of the pixel that holds the mean of all set pixels of (H, W) uint8.

    Raises:
        UsageError: an empty mask.
    """
    moments = cv2.moments(mask, binaryImage=True)
    if not moments["m00"]:
        raise UsageError("a training pair's mask is empty; it must have at least one pixel of 255")
    return int(moments["m10"] / moments["m00"]), int(moments["m01"] / moments["m00"])


def draw_window(mask: Pixels, size: int, rng: np.random.Generator) -> Window:
    """A random square that contains the mask's centroid, its side uniform from ``size`` to the photo's shorter side.

    It lies inside the photo, whether that is upright or broad. A photo with a side below ``size`` is seen through a square of ``size``, at
    most of its longer side, and is mirrored beyond its edges (``core.crops.take``). A square in which nothing or everything is masked is
    drawn again: where the centroid lies in a gap, around the set pixel next to it, where the object is larger than the square, up to the
    whole photo.

    Args:
        mask: (H, W) uint8, 255 = remove, at least one pixel set.
        size: side of the training picture in pixels, the smallest square, so that nothing is enlarged that need not be.
        rng: the item's own.

    Raises:
        UsageError: an empty mask.
    """
    height, width = mask.shape
    least = min(size, max(height, width))
    most = max(least, min(height, width))
    whole = max(height, width)
    anchor = centroid(mask)
    for _ in range(_CROP_TRIES):
        side = int(rng.integers(least, most + 1))
        window = Window(_start(anchor[0], side, width, rng), _start(anchor[1], side, height, rng), side)
        seen = take(mask, *window)
        if seen.any() and not seen.all():
            return window
        if seen.any():
            least = most  # only a larger square can show what is around the object
        else:
            anchor = _nearest_set(mask, anchor)
    # full each time; the square of the longer side holds the whole photo, and so what is not masked
    return Window(_start(anchor[0], whole, width, rng), _start(anchor[1], whole, height, rng), whole)


def _start(point: int, side: int, extent: int, rng: np.random.Generator) -> int:
    """Where a window that contains ``point`` starts along an axis of ``extent`` pixels; centred where it is the longer one."""
    if side > extent:
        return (extent - side) // 2
    return int(rng.integers(max(0, point - side + 1), min(point, extent - side) + 1))


def _nearest_set(mask: Pixels, point: tuple[int, int]) -> tuple[int, int]:
    rows, columns = np.nonzero(mask)
    at = int(np.argmin((columns - point[0]) ** 2 + (rows - point[1]) ** 2))
    return int(columns[at]), int(rows[at])


def draw_rectangle(mask: Pixels, width: int, height: int, rng: np.random.Generator) -> Rectangle:
    """A random part of the photo with the sides' proportion that contains the mask's centroid; for aspect buckets.

    Its width is uniform from ``width`` (or what the photo allows) to the largest that fits. Where nothing or everything is masked in it, it
    is drawn again around a set pixel, and larger.

    Raises:
        UsageError: an empty mask.
    """
    rows, columns = mask.shape
    most = min(columns / width, rows / height)
    least = min(1.0, most)
    anchor = centroid(mask)
    for _ in range(_CROP_TRIES):
        scale = rng.uniform(least, most)
        across, down = max(1, min(columns, round(width * scale))), max(1, min(rows, round(height * scale)))
        part = Rectangle(_start(anchor[0], across, columns, rng), _start(anchor[1], down, rows, rng), across, down)
        seen = _seen(mask, part)
        if seen.any() and not seen.all():
            return part
        if seen.any():
            least = most
        else:
            anchor = _nearest_set(mask, anchor)
    return part


def _seen(pixels: Pixels, window: Window | Rectangle) -> Pixels:
    if isinstance(window, Window):
        return take(pixels, *window)
    return pixels[window.y : window.y + window.height, window.x : window.x + window.width]


def picture_view(pixels: Pixels, window: Window | Rectangle, sides: tuple[int, int]) -> Pixels:
    """(H, W, 3) uint8 through a window, made ``sides`` (width, height) large: averaged over areas when smaller, cubic when enlarged."""
    view = _seen(pixels, window)
    if view.shape[1::-1] != sides:
        view = np.asarray(cv2.resize(view, sides, interpolation=cv2.INTER_AREA if view.shape[1] > sides[0] else cv2.INTER_CUBIC), np.uint8)
    return np.ascontiguousarray(view)


def mask_view(mask: Pixels, window: Window | Rectangle, sides: tuple[int, int]) -> Pixels:
    """(H, W) uint8 of 0 and 255 through a window, made ``sides`` (width, height) large, again of 0 and 255.

    A cell is set as soon as any pixel of it is, for object masks and effect masks alike: no rim of the object stays visible beside the mask
    (``core.masks.mask_at_size``, as at inference), and what lies outside the effect mask is averaged from pixels outside it only, so
    that source and target stay equal there. Nearest neighbour promises neither.
    """
    view = _seen(mask, window)
    if view.shape[1::-1] != sides:
        view = mask_at_size(view, sides)
    return np.ascontiguousarray(view, dtype=np.uint8)


def draw_colour(settings: PairAugmentation, rng: np.random.Generator) -> ColourChange:
    """A colour change within the settings' ranges."""
    reach = np.array([settings.brightness, settings.contrast, settings.saturation])
    brightness, contrast, saturation = (1 + rng.uniform(-1, 1, 3) * reach).tolist()
    return ColourChange(brightness, contrast, saturation, int(rng.integers(-settings.hue, settings.hue + 1)))


def change_colours(source: Pixels, *others: Pixels, change: ColourChange) -> list[Pixels]:
    """All pictures (H, W, 3) uint8 RGB with the same function of each pixel: where they were equal, they still are, bit for bit.

    Contrast pivots on one grey for all, the mean luminance of the source. (Each picture's own mean, as in the reference code, shifts the
    background of one against that of the other.) Values are rounded to nearest once, at the end.
    """
    if change == ColourChange():
        return [source, *others]
    pivot = float(cv2.cvtColor(source, cv2.COLOR_RGB2GRAY).mean()) / 255 * change.brightness
    return [_changed(picture, change, pivot) for picture in (source, *others)]


def _changed(pixels: Pixels, change: ColourChange, pivot: float) -> Pixels:
    values = pixels.astype(np.float32) * np.float32(change.brightness / 255)
    values = values * np.float32(change.contrast) + np.float32(pivot * (1 - change.contrast))
    grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)[..., None]
    values = np.clip(values * np.float32(change.saturation) + grey * np.float32(1 - change.saturation), 0, 1)
    if change.hue:
        hsv = cv2.cvtColor(values, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = np.mod(hsv[..., 0] + np.float32(change.hue * 360 / 256), np.float32(360))
        values = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.float32, copy=False)
    return np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)


def are_depths(depths: Sequence[float]) -> bool:
    """Whether these are a least and a largest depth of shadows: above 0, at most 1."""
    return len(depths) == 2 and 0 < depths[0] <= depths[1] <= 1


def draw_depth(depths: tuple[float, float], rng: np.random.Generator) -> float:
    """A depth between these two, log-uniform."""
    low, high = depths
    return low * (high / low) ** float(rng.random())


def at_depth(source: Pixels, target: Pixels, shadow: NDArray[np.bool_], depth: float) -> Pixels:
    """The source with its shadow as deep as is asked for, (H, W, 3) uint8; texture, and what is equal in both pictures, stay.

    Args:
        source, target: (H, W, 3) uint8, which differ by light alone.
        shadow: (H, W), where depth is measured; the change is made everywhere.
        depth: mean of |log(source / target)| there. It is reached by a factor of 1/2 to 6 of that logarithm; a shadow of less than a
            hundredth is rounding, and stays.
    """
    if not shadow.any():
        return source
    # at this blur rounding to bytes does not grow into noise, and the edges of shadows stay
    values = source.astype(np.float32)
    light = cv2.GaussianBlur(np.log((values + 1) / (target.astype(np.float32) + 1)), (0, 0), _ROUNDING_BLUR)
    own = float(np.abs(light).mean(axis=2)[shadow].mean())
    if own < _LEAST_DEPTH:
        return source
    factor = np.float32(np.clip(depth / own, *_DEPTH_FACTORS))
    return multiplied(values, np.exp((factor - 1) * np.maximum(light, _DARKEST)))
