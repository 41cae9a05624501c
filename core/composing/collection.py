"""The photos and cut-outs that pictures are composed of: listed once, fetched and decoded when drawn, the last ones kept in memory."""

from __future__ import annotations

import bisect
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Final, Generic, TypeVar

from core import storage
from core.composing.annotations import Annotations, ObjectNote, PhotoNote, parse_annotations
from core.composing.cutout import Cutout, decode_cutout
from core.composing.support import Support, SupportFinder, ground_by_colour
from core.errors import ItemError, ObjectMissing, StorageError, StorageUnavailable, UsageError
from core.images import Pixels, decode_photo

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
ANNOTATED_WEIGHT: Final = 6
"""How much oftener a photo with a known ground is drawn than one without."""
_CACHE_BYTES: Final = 256 * 2**20
_LARGEST_OBJECT: Final = 1 << 28

Decoded = TypeVar("Decoded", Pixels, Cutout)


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures below a folder: ``names`` relative to ``base``, in order, and a ``fingerprint`` of names and sizes."""

    base: str
    names: tuple[str, ...]
    fingerprint: str


def list_pictures(uri: str, noun: str) -> Listing:
    """All pictures below a folder, local or s3://, by suffix; hidden files are left out.

    Raises:
        UsageError: there are none; ``noun`` says of what.
    """
    base = storage.normalize_uri(uri)
    found = []
    for entry in storage.storage_for(base).list(base):
        path = PurePosixPath(storage.relative(base, entry.uri))
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts):
            found.append((str(path), entry.size))
    if not found:
        raise UsageError(f"{base} holds no {noun}; give a folder with pictures ({', '.join(SUFFIXES)})")
    found.sort()
    digest = hashlib.blake2b("\n".join(f"{name}\0{size}" for name, size in found).encode("utf-8", "surrogateescape"), digest_size=8)
    return Listing(base, tuple(name for name, _ in found), digest.hexdigest())


def read_annotations(uri: str) -> tuple[Annotations, str]:
    """The annotations in a file, local or s3://, and the fingerprint of its bytes; ``none`` for none.

    Raises:
        UsageError: there is no such file, or it is not of the layout in ``core.composing.annotations``.
    """
    if uri == "none":
        return Annotations(), "none"
    uri = storage.normalize_uri(uri)
    try:
        data = storage.storage_for(uri).read(uri, _LARGEST_OBJECT)
    except ObjectMissing as error:
        raise UsageError(f"there is no annotation file {uri}; give its path, or none") from error
    return parse_annotations(data, uri), hashlib.blake2b(data, digest_size=8).hexdigest()


class Collection:
    """Photos and cut-outs by number. Not to be shared among threads."""

    def __init__(self, photos: Listing, cutouts: Listing, annotations: Annotations, find_support: SupportFinder = ground_by_colour) -> None:
        self.photos, self.cutouts, self.annotations = photos, cutouts, annotations
        self._find_support = find_support
        self._supports: dict[int, Support | None] = {}
        known = (annotations.photo(name).kind != "scene" for name in photos.names)
        self._weights = list(accumulate(ANNOTATED_WEIGHT if yes else 1 for yes in known))
        self._by_pose = {
            poses: [number for number, name in enumerate(cutouts.names) if set(poses) & set(annotations.object(name).pose)]
            for poses in ("gf", "t", "f")
        }
        self._kept_photos: _Kept[Pixels] = _Kept(lambda pixels: pixels.nbytes)
        self._kept_cutouts: _Kept[Cutout] = _Kept(lambda cutout: cutout.nbytes)

    @property
    def poses(self) -> frozenset[str]:
        """The poses that any cut-out has, as ``Scene.poses`` names them."""
        return frozenset(poses for poses, numbers in self._by_pose.items() if numbers)

    def draw_photo(self, chance: float) -> int:
        """The number of a photo for ``chance`` from 0 to below 1."""
        return bisect.bisect_right(self._weights, int(chance * self._weights[-1]))

    def draw_cutout(self, poses: str, chance: float) -> int | None:
        """The number of a cut-out of one of the poses for ``chance`` from 0 to below 1; None where there is none."""
        numbers = self._by_pose[poses]
        return numbers[int(chance * len(numbers))] if numbers else None

    def photo_note(self, number: int) -> PhotoNote:
        return self.annotations.photo(self.photos.names[number])

    def object_note(self, number: int) -> ObjectNote:
        return self.annotations.object(self.cutouts.names[number])

    def photo(self, number: int) -> Pixels:
        """(H, W, 3) uint8. Raises ItemError where it cannot be had, StorageUnavailable where the store does not answer."""
        return self._kept_photos.get(number, lambda: decode_photo(_fetch(self.photos, number, "photo")).pixels)

    def support(self, number: int) -> Support | None:
        """Where feet may stand on a photo of which nothing is known; None where nothing can. Raises as ``photo``."""
        if number not in self._supports:
            self._supports[number] = self._find_support(self.photo(number))
        return self._supports[number]

    def cutout(self, number: int) -> Cutout:
        """Raises ItemError where it cannot be had or is no cut-out, StorageUnavailable where the store does not answer."""
        return self._kept_cutouts.get(number, lambda: decode_cutout(_fetch(self.cutouts, number, "cut-out")))


def _fetch(listing: Listing, number: int, noun: str) -> bytes:
    uri = storage.join(listing.base, listing.names[number])
    try:
        return storage.storage_for(uri).read(uri, _LARGEST_OBJECT)
    except StorageUnavailable:
        raise
    except StorageError as error:
        raise ItemError("fetch", "not_readable", f"the {noun} {listing.names[number]} cannot be read: {error}") from error


class _Kept(Generic[Decoded]):
    """The last decoded pictures, up to ``_CACHE_BYTES``, and the reasons why others could not be decoded."""

    def __init__(self, size_of: Callable[[Decoded], int]) -> None:
        self._size_of: Callable[[Decoded], int] = size_of
        self._kept: OrderedDict[int, Decoded] = OrderedDict()
        self._broken: dict[int, tuple[str, str, str]] = {}
        self._bytes = 0

    def get(self, number: int, decode: Callable[[], Decoded]) -> Decoded:
        if number in self._broken:
            raise ItemError(*self._broken[number])
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        try:
            found = decode()
        except ItemError as error:
            self._broken[number] = (error.stage, error.code, error.message)
            raise
        self._kept[number] = found
        self._bytes += self._size_of(found)
        while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= self._size_of(self._kept.popitem(last=False)[1])
        return found
