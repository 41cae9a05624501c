"""Where objects may be in a photo and how large they are there: a pinhole camera over a ground plane, or a rule where nothing is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from core.composing.annotations import ObjectNote, PhotoNote
from core.composing.cutout import Cutout
from core.composing.support import Support

LEAST_SHARE: Final = 0.13
"""Longer side of the target over the side of the picture, at least."""
LARGEST_SHARE: Final = 0.72
LARGEST_ENLARGEMENT: Final = 1.6
"""How much larger than its file an object may become."""
_FOCAL: Final = 1.1
"""Focal length over the photo's longer side, of a common camera."""
_MARGIN: Final = 0.03
_FOOT_SHARE: Final = 0.3
"""Half of a foot's width over the object's."""


@dataclass(frozen=True, slots=True)
class Window:
    """The square of the photo that becomes the picture: left, top and side in photo pixels, and picture pixels per photo pixel."""

    x: int
    y: int
    side: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an object is, in photo pixels: the foot (for what lies or flies the middle of the box) and the height.

    ``altitude`` is the distance of a flying object's lowest point from the ground below it; ``pitch`` how much a length on the ground away
    from the camera is foreshortened.
    """

    x: float
    y: float
    height: float
    width: float
    lying: bool = False
    altitude: float = 0.0
    pitch: float = 0.2

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in photo pixels."""
        top = self.y - (self.height / 2 if self.lying else self.height + self.altitude)
        return self.x - self.width / 2, top, self.x + self.width / 2, top + self.height


@dataclass(frozen=True, slots=True)
class Scene:
    """A photo's note with its size in pixels."""

    note: PhotoNote
    width: int
    height: int
    support: Support | None = None
    """Where feet may stand, of a photo of which nothing is known; None: anywhere in the note's ``rect``."""

    def mirrored(self) -> Scene:
        """The scene of the photo turned over its vertical middle line."""
        x0, x1, y0, y1 = self.note.rect
        azimuth = None if self.note.azimuth_deg is None else -self.note.azimuth_deg
        note = replace(self.note, rect=(1 - x1, 1 - x0, y0, y1), azimuth_deg=azimuth)
        return replace(self, note=note, support=None if self.support is None else self.support.mirrored())

    def holds(self, place: Place) -> bool:
        """Whether the ground is below all of an object's foot; always where a note or nothing says where the ground is."""
        if self.support is None or place.lying:
            return True
        return self.support.holds(place.x / self.width, place.y / self.height, _FOOT_SHARE * place.width / self.width)

    @property
    def poses(self) -> str:
        """Poses that fit: what stands on the ground, what lies seen from above, what flies in the sky."""
        return {"top": "t", "sky": "f"}.get(self.note.kind, "gf")

    def pixels_per_metre(self, y: float) -> float:
        """Of something upright whose foot is at row ``y`` of the photo: (v - hz) H / cam."""
        return max(0.0, (y - self.note.horizon * self.height) / self.note.camera_m)

    def object_height(self, note: ObjectNote, y: float) -> float:
        """Height in photo pixels of an object with its foot at row ``y``.

        Without a known ground: taller lower in the photo, and the fourth root of the real height, as small things are seen from near.
        """
        if self.note.kind == "ground":
            return note.height_m * self.pixels_per_metre(y)
        return 0.9 * (y - 0.45 * self.height) * (note.height_m / 1.7) ** 0.25

    def pitch(self, y: float) -> float:
        """Foreshortening of the ground at row ``y``: the tangent of the angle at which the camera looks at it, within reason."""
        focal = _FOCAL * max(self.width, self.height)
        return float(np.clip((y - self.note.horizon * self.height) / focal, 0.14, 0.7))

    def sides(self, size: int) -> tuple[int, int]:
        """Least and largest side of a window for pictures of ``size`` pixels; a photo is enlarged by a quarter at most."""
        whole = min(self.width, self.height)
        return min(whole, -(-size * 4 // 5)), whole


def place_target(scene: Scene, note: ObjectNote, cutout: Cutout, size: int, rng: np.random.Generator) -> tuple[Place, Window, float] | None:
    """A place for the target, the window around it and the density for the others; None where it does not fit.

    The density is photo pixels per metre where objects lie or fly, and a factor on ``Scene.object_height`` where they stand.
    The window is of random size and position, so that many different pictures come of one photo.
    """
    least, largest = scene.sides(size)
    x0, x1, y0, y1 = scene.note.rect
    x, y = rng.uniform(x0, x1) * scene.width, rng.uniform(y0, y1) * scene.height
    if scene.support is not None:
        across, down = scene.support.draw(rng)
        x, y = across * scene.width, down * scene.height
    share = float(np.exp(rng.uniform(np.log(LEAST_SHARE * 1.15), np.log(LARGEST_SHARE * 0.85))))
    if scene.note.kind in ("top", "sky"):
        side = int(rng.integers(least, largest + 1))
        longer = share * side * (0.6 if scene.note.kind == "sky" else 1.0)
        density = longer / note.height_m
        place = _free_place(cutout, x, y, longer)
    else:
        density = float(rng.uniform(0.8, 1.25)) if scene.note.kind == "scene" else float(rng.uniform(0.93, 1.07))
        height = density * scene.object_height(note, y)
        longer = height * max(1.0, cutout.aspect)
        lowest, highest = max(least, int(longer / LARGEST_SHARE)), min(largest, int(longer / LEAST_SHARE))
        if lowest > highest or longer <= 0:
            return None
        side = int(np.clip(longer / share, lowest, highest))
        place = _standing(scene, note, cutout, x, y, height, rng)
        if not scene.holds(place):
            return None
    scale = size / side
    if place.height * scale > LARGEST_ENLARGEMENT * cutout.pixels.shape[0]:
        return None
    window = _window_around(scene, place, side, scale, rng)
    return None if window is None else (place, window, density)


def place_other(
    scene: Scene, note: ObjectNote, cutout: Cutout, target: Place, window: Window, density: float, rng: np.random.Generator
) -> Place | None:
    """A place for another object in the same window, often so near the target that one hides a part of the other; None where none fits."""
    x0, x1, y0, y1 = (
        edge * length for edge, length in zip(scene.note.rect, (scene.width, scene.width, scene.height, scene.height), strict=True)
    )
    x0, x1 = max(x0, window.x + 0.06 * window.side), min(x1, window.x + 0.94 * window.side)
    y0, y1 = max(y0, window.y + 0.06 * window.side), min(y1, window.y + 0.97 * window.side)
    if x0 >= x1 or y0 >= y1:
        return None
    x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
    if rng.random() < 0.45:
        reach = 0.75 * max(target.width, 0.1 * window.side)
        x = float(np.clip(target.x + rng.uniform(-reach, reach), x0, x1))
    if scene.note.kind in ("top", "sky"):
        place = _free_place(cutout, x, y, density * note.height_m)
    else:
        place = _standing(scene, note, cutout, x, y, density * scene.object_height(note, y), rng)
    share = max(place.height, place.width) / window.side
    fits = 0.05 <= share <= 0.85 and scene.holds(place) and place.height * window.scale <= LARGEST_ENLARGEMENT * cutout.pixels.shape[0]
    return place if fits else None


def _free_place(cutout: Cutout, x: float, y: float, longer: float) -> Place:
    height = longer / max(1.0, cutout.aspect)
    return Place(x=x, y=y, height=height, width=height * cutout.aspect, lying=True)


def _standing(scene: Scene, note: ObjectNote, cutout: Cutout, x: float, y: float, height: float, rng: np.random.Generator) -> Place:
    altitude = 0.0
    if "g" not in note.pose:
        altitude = float(rng.uniform(0.6, 1.8)) * height
    return Place(x=x, y=y, height=height, width=height * cutout.aspect, altitude=altitude, pitch=scene.pitch(y))


def _window_around(scene: Scene, place: Place, side: int, scale: float, rng: np.random.Generator) -> Window | None:
    """A random window that holds the object with a margin; None where the photo has not so much around it."""
    margin = _MARGIN * side
    x0, y0, x1, y1 = place.box
    spans = []
    for low, high, length in ((x0, x1, scene.width), (y0, y1 + 0.02 * side, scene.height)):
        first, last = max(0.0, high + margin - side), min(float(length - side), low - margin)
        if first > last:
            return None
        spans.append(int(rng.uniform(first, last)))
    return Window(spans[0], spans[1], side, scale)
