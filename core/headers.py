"""The headers of picture files: what a file is, how large, which way up, and whether it may be decoded at all.

They are read here, before a library sees the file: the size limit has to come before anything is allocated, and a file that is cut off has
to be refused rather than filled up with grey.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

ALLOWED: Final = "JPEG, PNG, WebP, TIFF, BMP and GIF"

_MAGIC: Final[dict[bytes, str]] = {
    b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"GIF87a": "gif", b"GIF89a": "gif", b"BM": "bmp",
    b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff",
}  # fmt: skip
_REFUSED: Final[dict[bytes, str]] = {
    b"8BPS": "Photoshop", b"\0\0\1\0": "icon", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000", b"FUJIFILMCCD-RAW": "Fujifilm raw", b"IIRO": "Olympus raw", b"IIU\0": "Panasonic raw",
    b"\x76\x2f\x31\x01": "OpenEXR", b"DDS ": "DirectDraw", b"qoif": "QOI", b"gimp xcf": "GIMP", b"#?RADIANCE": "Radiance HDR",
    b"P4\n": "PBM", b"P5\n": "PGM", b"P6\n": "PPM", b"P2\n": "PGM", b"P3\n": "PPM",
}  # fmt: skip
_BRANDS: Final = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF",
                  b"crx ": "Canon raw"}  # fmt: skip
_OTHER_FILES: Final[dict[bytes, str]] = {b"%PDF": "a PDF", b"PK\3\4": "a ZIP archive", b"\x1f\x8b": "a gzip archive", b"<": "HTML or XML",
                                         b"{": "JSON", b"version https://git-lfs": "a Git LFS pointer"}  # fmt: skip


class Rejected(Exception):
    """Why a picture is refused. ``code`` as in ``decode_photo``; ``text`` goes on after "the photo" or "the mask"."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(slots=True)
class Header:
    """What the header says; width and height as stored. ``flaw`` is why the rest must not be decoded."""

    format: str
    width: int = 0
    height: int = 0
    orientation: int = 1
    flaw: Rejected | None = None
    channels: int = 3  # JPEG
    adobe: bool = False  # JPEG: written by Adobe's rules, so CMYK is inverted
    body: int = 0  # JPEG: where the picture data begin
    depth: int = 8  # PNG and TIFF: bits of a channel
    colour_key: int | None = None  # PNG: the grey value that stands for transparent
    min_is_white: bool = False  # TIFF


def cut_off(kind: str, size: int) -> Rejected:
    """For a file whose end is missing."""
    return Rejected("truncated", f"is cut off: the {kind} data end at {size:,} bytes, before the picture does; get the complete file")


def corrupt(kind: str, why: object) -> Rejected:
    """For a file that contradicts itself."""
    reason = " ".join(str(why).split())[:120] or "no reason given"
    return Rejected("corrupt", f"is a damaged {kind} file ({reason}); get it again or save it anew")


def unsupported(kind: str) -> Rejected:
    """For a picture that is whole, but of a kind that is not taken."""
    return Rejected("unsupported_format", f"is {kind}, which is not taken; allowed are {ALLOWED} with 1 to 16 bits: convert it")


def animated(kind: str) -> Rejected:
    """For a file of several pictures."""
    return Rejected("animated", f"holds more than one picture ({kind}); only single pictures are allowed: save one frame or page")


_MOST_VALUES: Final = 1 << 20  # a tag may claim as many as the file has bytes; 200 megapixels in tiles of 16 x 16 have fewer than this
_TIFF_TAGS: Final = frozenset({254, 256, 257, 258, 262, 273, 274, 277, 279, 284, 324, 325, 338, 339, 50706})


def _tiff_tags(data: bytes) -> tuple[dict[int, tuple[int, ...]], int]:
    """The integer tags of the first directory of TIFF bytes (EXIF has the same form), and the offset of the next directory, 0 if none."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    number = order + ("Q" if big else "I")
    inline = struct.calcsize(number)
    (at,) = struct.unpack_from(number, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    tags: dict[int, tuple[int, ...]] = {}
    for _ in range(count):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        (values,) = struct.unpack_from(number, data, at + 4)
        if code and tag in _TIFF_TAGS and tag not in tags:
            if values > _MOST_VALUES:
                raise IndexError(f"tag {tag} of {values:,} values")
            where = at + 4 + inline
            if values * struct.calcsize(order + code) > inline:
                (where,) = struct.unpack_from(number, data, where)
            tags[tag] = struct.unpack_from(f"{order}{values}{code}", data, where)
        at += 4 + 2 * inline
    return tags, int(struct.unpack_from(number, data, at)[0])


def _exif_orientation(exif: bytes) -> int:
    """1 to 8; 1 where the EXIF data are broken, because they are no reason to refuse a good picture."""
    try:
        value = _tiff_tags(exif.removeprefix(b"Exif\0\0"))[0].get(274, (1,))[0]
    except (struct.error, IndexError):
        return 1
    return value if 1 <= value <= 8 else 1


def _jpeg_header(data: bytes) -> Header:
    head, at = Header("jpeg"), 2
    while 0 <= (at := data.find(b"\xff", at)) <= len(data) - 4:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xD9 or end < at + 4:
            raise corrupt("JPEG", "its header ends before the picture")
        if end > len(data):
            break
        body = data[at + 4 : end]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, head.height, head.width, head.channels = struct.unpack_from(">BHHB", body)
            if marker > 0xC2 or precision != 8 or head.channels not in (1, 3, 4):
                head.flaw = unsupported(f"a rare kind of JPEG (process {marker & 15}, {precision} bits, {head.channels} channels)")
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            head.orientation = _exif_orientation(body)
        elif marker == 0xEE and body.startswith(b"Adobe"):
            head.adobe = True
        elif marker == 0xDA:
            head.body = end
            return head
        at = end
    raise cut_off("JPEG", len(data))


def _png_header(data: bytes) -> Header:
    if len(data) < 33:
        raise cut_off("PNG", len(data))
    head, at, colour = Header("png"), 33, data[25]
    if data[12:16] != b"IHDR":
        raise corrupt("PNG", "it does not begin with IHDR")
    head.width, head.height, head.depth = struct.unpack_from(">IIB", data, 16)
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = at + 8
        at = body + size + 4
        if at > len(data):
            break
        if kind == b"IEND":
            return head
        if kind == b"eXIf":
            head.orientation = _exif_orientation(data[body : body + size])
        elif kind == b"tRNS" and colour == 0 and size == 2:
            (head.colour_key,) = struct.unpack_from(">H", data, body)
        elif kind == b"fdAT":
            head.flaw = animated("animated PNG")
    head.flaw = head.flaw or cut_off("PNG", len(data))
    return head


def _webp_header(data: bytes) -> Header:
    head, at, frames = Header("webp"), 12, 0
    try:
        whole = struct.unpack_from("<I", data, 4)[0] + 8
        while at + 8 <= len(data):
            kind, size = struct.unpack_from("<4sI", data, at)
            body = at + 8
            if kind == b"VP8X":
                wide, wide_high, high, high_high = struct.unpack_from("<HBHB", data, body + 4)
                head.width, head.height = (wide | wide_high << 16) + 1, (high | high_high << 16) + 1
            elif kind == b"VP8 " and not head.width:
                wide, high = struct.unpack_from("<HH", data, body + 6)
                head.width, head.height = wide & 0x3FFF, high & 0x3FFF
            elif kind == b"VP8L" and not head.width:
                (bits,) = struct.unpack_from("<I", data, body + 1)
                head.width, head.height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            elif kind == b"EXIF":
                head.orientation = _exif_orientation(data[body : body + size])
            frames += kind == b"ANMF"
            at = body + size + (size & 1)
    except struct.error:
        raise cut_off("WebP", len(data)) from None
    if frames > 1:
        head.flaw = animated("animated WebP")
    elif whole > len(data):
        head.flaw = cut_off("WebP", len(data))
    return head


def _gif_header(data: bytes) -> Header:
    head, frames = Header("gif"), 0
    try:
        head.width, head.height, flags = struct.unpack_from("<HHB", data, 6)
        at = 13 + (6 << (flags & 7) if flags & 128 else 0)
        while data[at] != 0x3B:
            if data[at] == 0x2C:
                frames += 1
                left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, at + 1)
                if frames == 1:  # Pillow makes the screen larger where the frame hangs over; the limit has to know
                    head.width, head.height = max(head.width, left + wide), max(head.height, top + high)
                at += 11 + (6 << (flags & 7) if flags & 128 else 0)
            elif data[at] == 0x21:
                at += 2
            else:
                head.flaw = corrupt("GIF", f"unknown block {data[at]:#04x}")
                return head
            while data[at]:
                at += data[at] + 1
            at += 1
    except (IndexError, struct.error):
        head.flaw = cut_off("GIF", len(data))
        if not frames:
            raise head.flaw from None
    if frames > 1:
        head.flaw = animated("animated GIF")
    elif frames == 0:
        head.flaw = corrupt("GIF", "there is no picture in it")
    return head


def _bmp_header(data: bytes) -> Header:
    if len(data) < 54:
        raise cut_off("BMP", len(data))
    start, size = struct.unpack_from("<II", data, 10)
    wide, high, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", data, 18)
    head = Header("bmp", wide, abs(high))
    packed = size > 12 and data[30] not in (0, 3)
    if not packed and start + (wide * bits + 31) // 32 * 4 * abs(high) > len(data):
        head.flaw = cut_off("BMP", len(data))
    return head


def _tiff_header(data: bytes) -> Header:
    try:
        tags, following = _tiff_tags(data)
    except struct.error:
        raise cut_off("TIFF", len(data)) from None
    head = Header("tiff", tags.get(256, (0,))[0], tags.get(257, (0,))[0], _exif_orientation(data))
    bits, photometric = tags.get(258, (1,)), tags.get(262, (1,))[0]
    channels, head.depth, head.min_is_white = tags.get(277, (1,))[0], max(bits), photometric == 0
    parts = tags.get(273, tags.get(324, ()))
    ends = [start + size for start, size in zip(parts, tags.get(279, tags.get(325, ())), strict=False)]
    if 50706 in tags or tags.get(254, (0,))[0] & 1:
        head.flaw = unsupported("a camera's raw file (DNG or alike)")
    elif max(tags.get(339, (1,))) != 1 or head.depth not in (1, 2, 4, 8, 16):
        head.flaw = unsupported(f"a TIFF of {head.depth}-bit samples that are signed, floating-point or too wide")
    elif head.depth == 16 and not (
        (channels == 1 and photometric in (0, 1))
        or (photometric == 2 and tags.get(284, (1,))[0] == 1 and (channels == 3 or (channels == 4 and tags.get(338) == (2,))))
    ):
        head.flaw = unsupported("a rare kind of 16-bit TIFF (neither plain grey nor plain RGB)")
    elif following:
        head.flaw = animated("TIFF of several pages")
    elif max([*ends, *parts], default=0) > len(data):
        head.flaw = cut_off("TIFF", len(data))
    return head


# What reading beyond the end, or a number that makes no sense, can raise in the parsers above.
_PARSER_ERRORS: Final = (struct.error, LookupError, ValueError, OverflowError, TypeError, ZeroDivisionError)

_HEADERS: Final[dict[str, Callable[[bytes], Header]]] = {
    "jpeg": _jpeg_header, "png": _png_header, "webp": _webp_header, "gif": _gif_header, "bmp": _bmp_header, "tiff": _tiff_header,
}  # fmt: skip


def _sniff(data: bytes) -> str:
    """The format, from the first bytes alone: names and content types are wrong too often."""
    if not data:
        raise Rejected("empty_file", f"is an empty file (0 bytes); allowed are {ALLOWED}: upload it again")
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    raw = next((name for magic, name in _REFUSED.items() if data.startswith(magic)), None)
    raw = "Canon raw" if data[:2] == b"II" and data[8:10] == b"CR" else raw
    raw = _BRANDS.get(data[8:12], raw) if data[4:8] == b"ftyp" else raw
    if raw or start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        raise unsupported(f"a file of the kind {raw or 'SVG'}")
    if data[:4] == b"RIFF" and b"WEBP".startswith(data[8:12]):
        return "webp"
    for magic, name in _MAGIC.items():
        if data.startswith(magic):
            return name
        if magic.startswith(data):
            raise cut_off(name.upper(), len(data))
    guess = next((name for magic, name in _OTHER_FILES.items() if start.startswith(magic)), None)
    guess = "a video" if data[4:8] == b"ftyp" else guess or "something else"
    raise Rejected("not_an_image", f"is no picture but {guess} ({len(data):,} bytes); allowed are {ALLOWED}: check the link or the file")


def read_header(data: bytes) -> Header:
    """Header with width and height over 0, or Rejected."""
    name = _sniff(data)
    try:
        head = _HEADERS[name](data)
    except _PARSER_ERRORS as error:
        raise corrupt(name.upper(), error) from error
    if head.width <= 0 or head.height <= 0:
        raise head.flaw or corrupt(name.upper(), f"its header says {head.width} x {head.height} pixels")
    return head
