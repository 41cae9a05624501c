"""RORD: frames of fixed cameras before and after an object is gone: ``[<split>/]{img,gt,mask}/<clip>/<frame>``, masks as ``<frame>_M.png``.

Layout: what loaders of the release read, since its authors publish none (docs/data.md says which). In it the object may be black: their
own preparation writes masks inverted. So the side of the mask on which source and target differ decides, unless it is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np

from core.collections.builder import IMAGE_SUFFIXES, Builder, Built, Choice, failed, nothing_found
from core.collections.listing import scratch_table, visible_names
from core.images import Pixels, decode_picture
from core.masks import THRESHOLD, encode_mask
from core.plan import PlanRow
from core.readers import Input

_FOLDERS: Final = ("img", "gt", "mask")
_MASK_END: Final = "_M"


def open_rord(uri: str, origin: str, choice: Choice) -> Input:
    """A folder with ``img/``, ``gt/`` and ``mask/``, or with splits that have them."""
    return Input("rord collection", uri, lambda: _rows(uri, origin, choice))


def _place(path: PurePosixPath) -> tuple[str, str, str, str] | None:
    """(clip, frame, folder, name) of a file of the layout: the clip with what stands before img/, gt/ or mask/."""
    at = next((index for index, part in enumerate(path.parts[:-1]) if part in _FOLDERS), None)
    if at is None or path.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    kind = path.parts[at]
    clip = "/".join([*path.parts[:at], *path.parts[at + 1 : -1]])
    frame = path.stem.removesuffix(_MASK_END) if kind == "mask" else path.stem
    return clip, frame, kind, str(path)


def _rows(uri: str, origin: str, choice: Choice) -> Iterator[PlanRow]:
    places = (place for path in visible_names(uri) if (place := _place(path)))
    with scratch_table(("clip", "frame", "folder", "name"), places) as database:
        missing = [kind for kind in _FOLDERS if not database.execute("SELECT 1 FROM found WHERE folder = ? LIMIT 1", (kind,)).fetchone()]
        if missing:
            raise nothing_found(uri, "rord", f"no pictures in {' and in '.join(f'{kind}/' for kind in missing)} were found there")
        query = "SELECT clip, frame, folder, name FROM found ORDER BY clip, frame, folder, name"
        for clip, files in groupby(database.execute(query), key=lambda row: row[0]):
            frames: dict[str, dict[str, str]] = {}
            for _, frame, kind, name in files:
                frames.setdefault(frame, {}).setdefault(kind, name)
            yield from _clip_rows(clip, frames, origin, choice.frames_per_clip)


def _clip_rows(clip: str, frames: dict[str, dict[str, str]], origin: str, most: int) -> Iterator[PlanRow]:
    """Rows of one clip: all frames, or up to ``most`` of the complete ones, evenly spaced; one of them is the middle one."""
    after = [files["gt"] for files in frames.values() if "gt" in files]
    if len(after) == 1:  # the camera stands still: one clean frame is that of all
        frames = {frame: {**files, "gt": after[0]} for frame, files in frames.items() if "img" in files or "mask" in files}
    rows = [_row(f"{clip}/{frame}" if clip else frame, files, origin) for frame, files in sorted(frames.items())]
    if not most:
        yield from rows
        return
    complete = [row for row in rows if not row.error]
    if not complete:
        wrong = rows[0].message if rows else "it has no frames"
        yield failed(clip or "clip", origin, "unpaired", f"clip {clip} has no frame with img, mask and gt: {wrong}")
        return
    count = min(most, len(complete))
    for number in range(count):
        yield complete[(2 * number + 1) * len(complete) // (2 * count)]


def _row(item: str, files: Mapping[str, str], origin: str) -> PlanRow:
    row = PlanRow(item, files.get("img"), files.get("mask"), files.get("gt"), origin=origin)
    missing = [kind for kind in _FOLDERS if kind not in files]
    if missing:
        there = next(iter(files.values()))
        row.error, row.message = "unpaired", f"{there} has no frame of the same name in {' and '.join(missing)}; add it, or remove this"
    return row


class RordBuilder(Builder):
    """Turns a mask whose object is black."""

    def build(self, row: Mapping[str, Any]) -> Built:
        self.check(row)
        source, mask, target = (self.stored(row[name], name) for name in ("source", "mask", "target"))
        turned = self.choice.object_is == "black" or (self.choice.object_is == "auto" and self._is_black(source, mask, target))
        if turned:
            mask = {**mask, "bytes": encode_mask(255 - self._grey(mask))}
        built = self.assemble(row, source=source, mask=mask, target=target)
        return Built(built.record, (*built.warnings, "mask_inverted")) if turned else built

    def _grey(self, mask: Mapping[str, Any]) -> Pixels:
        picture = decode_picture(mask["bytes"], noun="mask", prefix="mask_", max_megapixels=self.limit)
        return np.where(picture.pixels.mean(axis=2) > THRESHOLD, 255, 0).astype(np.uint8)

    def _is_black(self, source: Mapping[str, Any], mask: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
        """Whether the pair differs more where the mask is black; where sizes differ, ``assemble`` says so."""
        before = decode_picture(source["bytes"], noun="photo", max_megapixels=self.limit).pixels
        after = decode_picture(target["bytes"], noun="target", prefix="target_", max_megapixels=self.limit).pixels
        white = self._grey(mask) > 0
        if before.shape != after.shape or white.shape != before.shape[:2] or white.all() or not white.any():
            return False
        change = np.abs(before.astype(np.int16) - after).max(axis=2)
        return bool(change[~white].mean() > change[white].mean())
