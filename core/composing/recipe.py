"""How a picture was made, as JSON inside its mask's PNG file: it travels with the row, and is read without touching the photos."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any, Final

_KEYWORD: Final = b"recipe\0"
_IEND_BYTES: Final = 12


def with_recipe(png: bytes, recipe: dict[str, Any]) -> bytes:
    """The PNG with ``recipe`` in a tEXt chunk before its end; the pixels are not touched."""
    text = _KEYWORD + json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode("ascii")
    kind = b"tEXt"
    chunk = struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text))
    return png[:-_IEND_BYTES] + chunk + png[-_IEND_BYTES:]


def read_recipe(png: bytes) -> dict[str, Any] | None:
    """The recipe in a PNG; None where it has none."""
    at = 8
    while at + 12 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        if kind == b"tEXt" and png.startswith(_KEYWORD, at + 8):
            return dict(json.loads(png[at + 8 + len(_KEYWORD) : at + 8 + size]))
        at += 12 + size
    return None
