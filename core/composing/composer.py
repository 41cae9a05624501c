"""Composing one triplet: a photo, cut-outs on it with shadow and reflection, and the same without the target.

Item ``id`` of a seed is a pure function of the collection, the settings and the id. After OBER's simulated scenes (ObjectClear,
arXiv 2505.22636, section 3: several objects that hide parts of one another, one is the target and the others stay) and Syn4Removal
(SmartEraser, arXiv 2501.08279: pasted cut-outs), with shadows computed instead of lifted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final

import cv2
import numpy as np

from core.composing.annotations import ObjectNote
from core.composing.cast import place_cast
from core.composing.collection import Collection
from core.composing.cutout import SPRITE_RIM_PX, Cutout, Sprite, ground_line, make_sprite
from core.composing.light import Plane, luminance, to_linear, to_srgb
from core.composing.matching import match_to, white_level
from core.composing.scene import Place, Scene, Window, place_other, place_target
from core.composing.shadow import Lamp, Shades, draw_lamp, lying_shades, reflection, shaded, standing_shades
from core.errors import ItemError, UsageError
from core.images import Pixels
from core.record import item_seed

MASK_ALPHA: Final = 0.5
"""Opacity from which a pixel belongs to the object mask."""
EFFECT_FLOOR: Final = 0.001
EFFECT_SHARE: Final = 0.01
"""A pixel is changed where source and target differ by more than floor + share * target in linear light: about one level of 255."""
LEAST_VISIBLE: Final = 0.5
LEAST_MASK: Final = 0.003
"""Visible share of the target, and share of the picture that its mask covers, at least."""
_PHOTOS_TRIED: Final = 24
_CUTOUTS_TRIED: Final = 16
_SMOOTH_DETAIL: Final = 0.012
"""Mean fine detail over mean brightness, both in square roots of linear light, of a floor that looks smooth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeSettings:
    """What is made; all of it changes results.

    Attributes:
        size: side of the pictures in pixels.
        seed: 0 to 2**63 - 1.
        negatives: share of items, 0 to 1, whose mask is on an empty place: the target is the source.
        max_objects: most objects in a picture, the target included; 1 to 8.
        reflections: share, 0 to 1, of the pictures with a smooth floor in which it mirrors.
    """

    size: int = 512
    seed: int = 0
    negatives: float = 0.02
    max_objects: int = 3
    reflections: float = 0.5

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("size", self.size, 64, 4096),
            ("negatives", self.negatives, 0, 1),
            ("max_objects", self.max_objects, 1, 8),
            ("reflections", self.reflections, 0, 1),
        ):
            if not least <= value <= most:
                raise UsageError(f"{name.replace('_', ' ')} is {value}; it must be from {least} to {most}")


@dataclass(frozen=True, slots=True)
class Composition:
    """One triplet before encoding.

    Attributes:
        source, target: (S, S, 3) uint8 sRGB; equal byte for byte wherever ``effect_mask`` is 0, and everywhere in a negative.
        mask: (S, S) uint8, 255 where the target object is seen (in a negative: where one would be).
        effect_mask: (S, S) uint8, 255 on the mask and wherever the object changes the picture: shadow, reflection, soft edge.
        recipe: how it was made, ready for JSON.
        warnings: reasons for which photos or cut-outs that were drawn had to be left.
    """

    source: Pixels
    target: Pixels
    mask: Pixels
    effect_mask: Pixels
    category: str
    recipe: dict[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Actor:
    """An object that was given a place."""

    name: str
    note: ObjectNote
    cutout: Cutout
    place: Place


@dataclass(frozen=True, slots=True)
class _Stage:
    """All that stands before anything is painted; ``actors[0]`` is the target."""

    photo: str
    scene: Scene
    window: Window
    flipped: bool
    pixels: Pixels
    actors: list[_Actor]


@dataclass(frozen=True, slots=True)
class _Layer:
    """An object ready to be painted; ``mirror`` is its reflection, or what it brought along from its own photo, if any."""

    actor: _Actor
    sprite: Sprite
    shades: Shades
    mirror: tuple[Plane, Plane] | None
    how: dict[str, Any]


class Composer:
    """Composes items from one collection. Not to be shared among threads."""

    def __init__(self, collection: Collection, settings: ComposeSettings) -> None:
        self.collection, self.settings = collection, settings

    def compose(self, item_id: str) -> Composition:
        """The triplet of an id.

        Raises:
            ItemError: stage ``compose``, code ``nothing_fits``: no photo and cut-out of those drawn go together or can be read.
            StorageUnavailable: the store does not answer.
        """
        settings = self.settings
        rng = np.random.Generator(np.random.PCG64(item_seed(item_id, settings.seed)))
        negative = bool(rng.random() < settings.negatives)
        warnings: list[str] = []
        stage = self._draw_stage(rng, warnings)
        base = to_linear(stage.pixels)
        white = white_level(base)
        lamp = self._lamp(stage, white)
        mirror = self._mirror(stage, base, rng)
        layers = [self._layer(actor, stage, base, white, lamp, mirror, rng) for actor in stage.actors]
        target, others = layers[0], layers[1:]
        others, visible = _visible(target, others, settings.size)
        plate = _paint(base, lamp, others, settings.size)
        clean = to_srgb(plate)
        mask = np.where(visible > MASK_ALPHA, 255, 0).astype(np.uint8)
        if negative:
            source, effect = clean, mask
        else:
            full = _paint(base, lamp, [target, *others], settings.size)
            changed = (np.abs(full - plate) > EFFECT_FLOOR + EFFECT_SHARE * plate).any(axis=2)
            effect = np.where(changed | (mask > 0), 255, 0).astype(np.uint8)
            source = np.where(effect[..., None] > 0, to_srgb(full), clean)
        return Composition(
            source=source,
            target=clean,
            mask=mask,
            effect_mask=effect,
            category=target.actor.note.category or "object",
            recipe=_recipe(stage, lamp, mirror, target, others, negative=negative),
            warnings=tuple(warnings),
        )

    def _draw_stage(self, rng: np.random.Generator, warnings: list[str]) -> _Stage:
        """A photo and a target that fit each other, and others beside it."""
        least = int(np.ceil(LEAST_MASK * self.settings.size**2))
        for _ in range(_PHOTOS_TRIED):
            number = self.collection.draw_photo(rng.random())
            flipped = bool(rng.random() < 0.5)
            try:
                photo = self.collection.photo(number)
            except ItemError as error:
                warnings.append(f"photo_{error.code}")
                continue
            note = self.collection.photo_note(number)
            support = self.collection.support(number) if note.kind == "scene" else None
            scene = Scene(note, photo.shape[1], photo.shape[0], support)
            if min(photo.shape[:2]) < self.settings.size // 2:
                warnings.append("photo_too_small")
                continue
            if note.kind == "scene" and support is None:
                warnings.append("photo_without_ground")
                continue
            if scene.poses not in self.collection.poses:
                continue
            if flipped:
                scene, photo = scene.mirrored(), photo[:, ::-1]
            for _ in range(_CUTOUTS_TRIED):
                actor = self._draw_actor(scene, rng, warnings)
                found = None if actor is None else place_target(scene, actor.note, actor.cutout, self.settings.size, rng)
                if actor is None or found is None:
                    continue
                place, window, density = found
                if place.height * place.width * window.scale**2 * float((actor.cutout.alpha > 127).mean()) < 1.5 * least:
                    continue
                actors = [replace(actor, place=place)]
                actors += self._others(scene, actors[0], window, density, rng, warnings)
                return _Stage(
                    self.collection.photos.names[number], scene, window, flipped, _cropped(photo, window, self.settings.size), actors
                )
        reasons = f"; {', '.join(sorted(set(warnings)))}" if warnings else ""
        raise ItemError(
            "compose",
            "nothing_fits",
            f"none of {_PHOTOS_TRIED} photos went with any of {_CUTOUTS_TRIED} cut-outs{reasons}: give larger photos, say in --annotations "
            "where their ground is, or give cut-outs whose pose and size fit them",
        )

    def _draw_actor(self, scene: Scene, rng: np.random.Generator, warnings: list[str]) -> _Actor | None:
        number = self.collection.draw_cutout(scene.poses, rng.random())
        if number is None:
            return None
        try:
            cutout = self.collection.cutout(number)
        except ItemError as error:
            warnings.append(error.code if error.code.startswith("cutout") else f"cutout_{error.code}")
            return None
        name, note = self.collection.cutouts.names[number], self.collection.object_note(number)
        lifted = replace(note, category=cutout.how.get("category") or "object") if cutout.how else note
        return _Actor(name, lifted, cutout, _NOWHERE)

    def _others(
        self, scene: Scene, target: _Actor, window: Window, density: float, rng: np.random.Generator, warnings: list[str]
    ) -> list[_Actor]:
        """Up to ``max_objects`` - 1 others; none looks like another."""
        used = {target.name}
        wanted = int(rng.integers(0, self.settings.max_objects))
        found: list[_Actor] = []
        for _ in range(4 * wanted):
            if len(found) == wanted:
                break
            actor = self._draw_actor(scene, rng, warnings)
            if actor is None or actor.name in used:
                continue
            place = place_other(scene, actor.note, actor.cutout, target.place, window, density, rng)
            if place is not None:
                found.append(replace(actor, place=place))
                used.add(actor.name)
        return found

    def _lamp(self, stage: _Stage, white: float) -> Lamp:
        """One light a photo and not one an item: it is drawn from the photo's name; a turned photo has it turned."""
        digest = hashlib.blake2b(f"{self.settings.seed}\0{stage.photo}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
        note = stage.scene.note
        given = None if note.azimuth_deg is None else (-note.azimuth_deg if stage.flipped else note.azimuth_deg)
        lamp = draw_lamp(note.light, given, white, rng, top=note.kind == "top")
        return replace(lamp, azimuth_rad=-lamp.azimuth_rad) if stage.flipped else lamp

    def _mirror(self, stage: _Stage, base: Plane, rng: np.random.Generator) -> float:
        """Strength of reflections, 0 for none: on floors that are said to be smooth or, where nothing is known, look so."""
        chance, strength = rng.random(), float(rng.uniform(0.08, 0.22))
        note = stage.scene.note
        if note.kind in ("top", "sky") or note.smooth is False or chance >= self.settings.reflections:
            return 0.0
        if note.smooth:
            return 1.6 * strength
        if note.kind == "ground":
            return 0.0  # sand looks as smooth as water
        place, window = stage.actors[0].place, stage.window
        x, y = round((place.x - window.x) * window.scale), round((place.y - window.y) * window.scale)
        part = base[max(0, y - 8) : y + 64, max(0, x - 64) : x + 64]
        if min(part.shape[:2]) < 16:
            return 0.0
        grey = np.sqrt(luminance(np.ascontiguousarray(part)))
        detail = float(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 2)).mean())
        return strength if detail < _SMOOTH_DETAIL * float(grey.mean()) else 0.0

    def _layer(
        self, actor: _Actor, stage: _Stage, base: Plane, white: float, lamp: Lamp, mirror: float, rng: np.random.Generator
    ) -> _Layer:
        size, window, place = self.settings.size, stage.window, actor.place
        mirrored = bool(rng.random() < 0.5)
        turned = float(rng.uniform(0, 360)) if stage.scene.note.kind == "top" else 0.0
        turned = turned if actor.cutout.cast is None else 0.0  # its shadow would turn with it
        light, alpha = make_sprite(actor.cutout, place.height * window.scale, mirrored=mirrored, turned_deg=turned)
        x0, y0, x1, y1 = place.box
        x = round(((x0 + x1) / 2 - window.x) * window.scale - alpha.shape[1] / 2)
        y = round(((y0 + y1) / 2 - window.y) * window.scale - alpha.shape[0] / 2)
        a, b = ground_line(alpha)
        sprite = Sprite(light, alpha, x, y, (a + y - b * x, b))
        binary = not bool(((actor.cutout.alpha > 40) & (actor.cutout.alpha < 215)).mean() > 0.002)
        sprite, match = match_to(sprite, base, binary=binary, white=white, only_ground=stage.scene.note.kind == "top")
        kind, cast, altitude = stage.scene.note.kind, actor.cutout.cast, place.altitude * window.scale
        image = None
        if kind == "sky":
            shades = Shades.none(size)
        elif cast is not None:
            shades, rim = Shades.none(size), SPRITE_RIM_PX
            inner = (sprite.width - 2 * rim, sprite.height - 2 * rim)
            image = place_cast(cast, (sprite.x + rim, sprite.y + rim), inner, size, mirrored=mirrored, gain=match.gain)
        elif kind == "top":
            thickness = 0.3 * min(place.height, place.width) * window.scale
            shades = lying_shades(sprite, lamp, size, thickness)
        else:
            shades = standing_shades(sprite, place, lamp, size, altitude)
            if mirror and not altitude:
                image = reflection(sprite, mirror, size)
        how: dict[str, Any] = {
            "cutout": actor.name,
            "category": actor.note.category,
            "licence": actor.note.licence,
            "box": [x, y, x + sprite.width, y + sprite.height],
            "mirrored": mirrored,
            "turned_deg": round(turned, 2),
            "altitude_px": round(altitude, 2),
            "gain": [round(value, 4) for value in match.gain],
            "contrast": round(match.contrast, 4),
            "blur_px": match.blur_px,
        }
        if actor.cutout.how:
            how["lifted"] = dict(actor.cutout.how)
        return _Layer(actor, sprite, shades, image, how)


_NOWHERE: Final = Place(x=0, y=0, height=0, width=0)


def _cropped(photo: Pixels, window: Window, size: int) -> Pixels:
    part = np.ascontiguousarray(photo[window.y : window.y + window.side, window.x : window.x + window.side])
    if window.side == size:
        return part
    way = cv2.INTER_AREA if window.side > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(part, (size, size), interpolation=way), np.uint8)


def _overlap(sprite: Sprite, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a sprite and the picture meet: in the picture, and in the sprite."""
    x0, y0 = max(sprite.x, 0), max(sprite.y, 0)
    x1, y1 = max(x0, min(sprite.x + sprite.width, size)), max(y0, min(sprite.y + sprite.height, size))
    own = (slice(y0 - sprite.y, y1 - sprite.y), slice(x0 - sprite.x, x1 - sprite.x))
    return (slice(y0, y1), slice(x0, x1)), own


def _visible(target: _Layer, others: list[_Layer], size: int) -> tuple[list[_Layer], Plane]:
    """The others that may stay, and the (S, S) visible opacity of the target: whoever hides too much of it is left out."""
    visible = np.zeros((size, size), np.float32)
    there, own = _overlap(target.sprite, size)
    visible[there] = target.sprite.alpha[own]
    least = max(LEAST_VISIBLE * float((target.sprite.alpha > MASK_ALPHA).sum()), LEAST_MASK * size * size)
    kept = []
    for layer in others:
        if layer.actor.place.y > target.actor.place.y:
            left = visible.copy()
            there, own = _overlap(layer.sprite, size)
            left[there] *= 1 - layer.sprite.alpha[own]
            if float((left > MASK_ALPHA).sum()) < least:
                continue
            visible = left
        kept.append(layer)
    return kept, visible


def _paint(base: Plane, lamp: Lamp, layers: list[_Layer], size: int) -> Plane:
    """(S, S, 3) linear light: the ground with all shadows, then reflections, then objects from far to near."""
    if not layers:
        return base
    ordered = sorted(layers, key=lambda layer: (layer.actor.place.y, layer.actor.name))
    shades = ordered[0].shades
    for layer in ordered[1:]:
        shades = shades.with_(layer.shades)
    picture = shaded(base, shades, lamp)
    for layer in ordered:
        if layer.mirror is not None:
            light, alpha = layer.mirror
            picture = picture * (1 - alpha[..., None]) + light
    for layer in ordered:
        there, own = _overlap(layer.sprite, size)
        picture[there] = picture[there] * (1 - layer.sprite.alpha[own][..., None]) + layer.sprite.light[own]
    return picture


def _recipe(stage: _Stage, lamp: Lamp, mirror: float, target: _Layer, others: list[_Layer], *, negative: bool) -> dict[str, Any]:
    return {
        "background": stage.photo,
        "background_licence": stage.scene.note.licence,
        "kind": stage.scene.note.kind,
        "window": [stage.window.x, stage.window.y, stage.window.side],
        "flipped": stage.flipped,
        "negative": negative,
        "light": {
            "sunny": lamp.sunny,
            "azimuth_deg": round(float(np.degrees(lamp.azimuth_rad)), 2),
            "length": round(lamp.length, 4),
            "softness": round(lamp.softness, 4),
            "cast": round(lamp.cast, 4),
            "contact": round(lamp.contact, 4),
            "tint": [round(value, 4) for value in lamp.tint],
        },
        "reflection": round(mirror, 4),
        "target": target.how,
        "others": [layer.how for layer in others],
    }
