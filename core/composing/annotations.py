"""What is known of photos and cut-outs: ground, horizon, camera and light of a photo; real size and pose of an object.

The file is JSON with two lists. A photo of ``bgs``: ``file``, ``kind`` (ground, top: seen from above, sky, or scene: nothing known),
``hz`` (horizon line), ``rect`` (x0, x1, y0, y1 of the ground), both in fractions of the photo, ``cam`` (height of the camera, m), ``light``
(sun, soft or any), and if you like ``azimuth`` (degrees) and ``smooth`` (the floor mirrors). An object of ``objs``: ``file``, ``pose``
(letters: g stands, t lies or is seen from above, f flies), ``h`` (real height, m), ``category``. Either may have a ``licence``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from core.errors import UsageError

KINDS: Final = ("ground", "top", "sky", "scene")
LIGHTS: Final = ("sun", "soft", "any")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoNote:
    """What is known of a photo; the default knows nothing. Fractions are of its width and height, y from the top."""

    kind: str = "scene"
    horizon: float = 0.45
    rect: tuple[float, float, float, float] = (0.03, 0.97, 0.78, 0.97)
    """x0, x1, y0, y1 where objects may have their foot (or, for ``top`` and ``sky``, their middle)."""
    camera_m: float = 1.6
    light: str = "any"
    azimuth_deg: float | None = None
    """Where shadows point: 0 away from the camera, 90 to the right; None is drawn once per photo."""
    smooth: bool | None = None
    """Whether the floor mirrors; None: judged by the pixels."""
    licence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectNote:
    """What is known of a cut-out; the default is something a metre high that stands."""

    pose: str = "g"
    height_m: float = 1.0
    category: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Annotations:
    """Notes by file name; both maps may lack files."""

    photos: Mapping[str, PhotoNote] = field(default_factory=dict)
    objects: Mapping[str, ObjectNote] = field(default_factory=dict)

    def photo(self, name: str) -> PhotoNote:
        """The note of the photo whose path ends in ``name``'s last part."""
        return self.photos.get(PurePosixPath(name).name, PhotoNote())

    def object(self, name: str) -> ObjectNote:
        """The note of a cut-out; its category is from the file name where the note has none."""
        note = self.objects.get(PurePosixPath(name).name, ObjectNote())
        if note.category:
            return note
        return ObjectNote(pose=note.pose, height_m=note.height_m, licence=note.licence, category=category_of(name))


def category_of(name: str) -> str:
    """An object's class by its file name: words without numbers at either end, variants after ``@`` cut off, in lower case."""
    stem = PurePosixPath(name).stem.partition("@")[0]
    words = re.sub(r"^[\d\W_]+|[\d\W_]+$", "", stem.replace("_", " ").replace("-", " "))
    return words.lower() or stem.lower() or "object"


def parse_annotations(data: bytes, uri: str) -> Annotations:
    """Annotations from the bytes of the JSON file ``uri``.

    Raises:
        UsageError: it is no JSON of that layout, or a value is out of its range; the entry is named.
    """
    try:
        found = json.loads(data)
        photos, objects = found.get("bgs", []), found.get("objs", [])
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{uri} is no annotation file ({error}); it is a JSON object with the lists bgs and objs") from error
    return Annotations(
        {PurePosixPath(_file(entry, uri)).name: _photo(entry, uri) for entry in photos},
        {PurePosixPath(_file(entry, uri)).name: _object(entry, uri) for entry in objects},
    )


def _file(entry: Any, uri: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
        raise UsageError(f"{uri} has an entry without a file: {str(entry)[:80]}; each needs the name of its picture")
    return str(entry["file"])


def _photo(entry: dict[str, Any], uri: str) -> PhotoNote:
    base = PhotoNote()
    kind, light = entry.get("kind", base.kind), entry.get("light", base.light)
    if kind not in KINDS:
        raise UsageError(f"{uri}: kind of {entry['file']} is {kind!r}; it must be one of {', '.join(KINDS)}")
    if light not in LIGHTS:
        raise UsageError(f"{uri}: light of {entry['file']} is {light!r}; it must be one of {', '.join(LIGHTS)}")
    if kind == "ground" and not {"hz", "rect", "cam"} <= entry.keys():
        raise UsageError(f"{uri}: {entry['file']} is of kind ground and lacks hz, rect or cam; give all three, or kind scene")
    rect = entry.get("rect", base.rect)
    if not isinstance(rect, list | tuple) or len(rect) != 4 or not all(_number(value) and 0 <= value <= 1 for value in rect):
        raise UsageError(f"{uri}: rect of {entry['file']} is {rect!r}; it is [x0, x1, y0, y1] in fractions of the photo")
    if rect[0] >= rect[1] or rect[2] >= rect[3]:
        raise UsageError(f"{uri}: rect of {entry['file']} is {rect!r}; x0 must be below x1 and y0 below y1")
    horizon = _real(entry, "hz", base.horizon, -5, 1, uri)
    if kind == "ground" and horizon >= rect[2]:
        raise UsageError(f"{uri}: horizon {horizon:g} of {entry['file']} is not above its ground, which begins at {rect[2]:g}")
    return PhotoNote(
        kind=kind,
        horizon=horizon,
        rect=(float(rect[0]), float(rect[1]), float(rect[2]), float(rect[3])),
        camera_m=_real(entry, "cam", base.camera_m, 0.05, 1000, uri),
        light=light,
        azimuth_deg=_real(entry, "azimuth", 0, -360, 360, uri) if "azimuth" in entry else None,
        smooth=bool(entry["smooth"]) if "smooth" in entry else None,
        licence=_text(entry.get("licence")),
    )


def _object(entry: dict[str, Any], uri: str) -> ObjectNote:
    pose = entry.get("pose", "g")
    if not isinstance(pose, str) or not pose or set(pose) - set("gtf"):
        raise UsageError(f"{uri}: pose of {entry['file']} is {pose!r}; it is made of g (stands), t (lies), f (flies)")
    return ObjectNote(
        pose=pose,
        height_m=_real(entry, "h", 1.0, 0.001, 1000, uri),
        category=_text(entry.get("category")),
        licence=_text(entry.get("licence")),
    )


def _text(value: Any) -> str | None:
    return str(value) if value else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _real(entry: dict[str, Any], name: str, default: float, least: float, most: float, uri: str) -> float:
    value = entry.get(name, default)
    if not _number(value) or not least <= value <= most:
        raise UsageError(f"{uri}: {name} of {entry['file']} is {value!r}; it must be a number from {least:g} to {most:g}")
    return float(value)
