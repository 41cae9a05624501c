"""Files that must be refused, each with its reason, and strange files that must be taken. All of them are made here, byte for byte."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
WIDTH, HEIGHT = 64, 48


@dataclass(frozen=True)
class MalformedCase:
    """An item that must fail: ``source`` or ``mask`` is None where the object does not exist (code ``missing``, found by the fetcher)."""

    name: str
    source: bytes | None
    mask: bytes | None
    code: str
    says: str


@dataclass(frozen=True)
class ValidCase:
    """An item that must succeed: ``pixels`` (H, W, 3), ``alpha`` and ``mask_pixels`` are right within ``tolerance`` (masks exactly)."""

    name: str
    source: bytes
    mask: bytes
    pixels: Pixels
    alpha: Pixels | None
    mask_pixels: Pixels
    tolerance: int = 0


def picture() -> Pixels:
    """(48, 64, 3): smooth, so that JPEG keeps it, and different in every corner, so that no flip goes unseen."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([40 + 3 * x, 30 + 4 * y, 230 - 2 * x - y], axis=-1).astype(np.uint8)


def noise(seed: int = 0) -> Pixels:
    """(48, 64, 3) that does not compress, so that half of the file is half of the picture."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def object_mask() -> Pixels:
    """(48, 64): a rectangle off the middle."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 8:28] = 255
    return mask


def save(image: Pixels | Image.Image, kind: str, **options: Any) -> bytes:
    """The file that Pillow writes."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk with the right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, before: bytes = b"", *, end: bool = True) -> bytes:
    """A PNG from rows that carry their filter byte already; ``before`` are chunks in front of the picture data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + (chunk(b"IEND", b"") if end else b"")


def png_rows(samples: NDArray[Any]) -> bytes:
    """Unfiltered rows of (H, W) or (H, W, C) samples, big-endian."""
    big = samples.astype(samples.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in big)


def tiff(samples: NDArray[Any], *, order: str = "<", more: dict[int, tuple[int, int]] | None = None) -> bytes:
    """An uncompressed TIFF of (H, W) or (H, W, 3) samples; ``more`` maps a tag to (type, value) and wins."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    body = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    bits, bits_at = samples.dtype.itemsize * 8, 8 + len(body)
    tags = {256: (4, width), 257: (4, height), 258: (3, bits), 259: (3, 1), 262: (3, 1 if channels == 1 else 2), 273: (4, 8),
            277: (3, channels), 278: (4, height), 279: (4, len(body)),
            339: (3, 3 if samples.dtype.kind == "f" else 1)} | (more or {})  # fmt: skip
    at = bits_at + 8
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at) + body + struct.pack(order + "4H", *[bits] * 4)
    out += struct.pack(order + "H", len(tags))
    for tag in sorted(tags):
        kind, value = tags[tag]
        if tag == 258 and channels > 1:
            out += struct.pack(order + "HHII", tag, 3, channels, bits_at)
        else:
            out += struct.pack(order + "HHI", tag, kind, 1) + struct.pack(order + ("H" if kind == 3 else "I"), value).ljust(4, b"\0")
    return out + bytes(4)


def exif(orientation: int) -> bytes:
    """EXIF data with the orientation and nothing else."""
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


def _frames(count: int = 3) -> list[Image.Image]:
    return [Image.fromarray(noise(seed)) for seed in range(count)]


def _adler_broken(data: bytes) -> bytes:
    """A PNG whose picture data fail their own checksum although the chunk's checksum is right."""
    return png(WIDTH, HEIGHT, 8, 2, b"").replace(chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", zlib.compress(data)[:-4] + b"abcd"))


def _sources() -> list[tuple[str, bytes, str, str]]:
    """(name, source, code, part of the message)."""
    jpeg, progressive = save(noise(), "JPEG", quality=90), save(noise(), "JPEG", quality=90, progressive=True)
    plain, webp, lossless = save(noise(), "PNG"), save(noise(), "WEBP", quality=90), save(noise(), "WEBP", lossless=True)
    gif, bmp, raw_tiff = save(Image.fromarray(noise()).quantize(64), "GIF"), save(noise(), "BMP"), save(noise(), "TIFF")
    lzw, cmyk = save(noise(), "TIFF", compression="tiff_lzw"), save(Image.fromarray(noise()).convert("CMYK"), "JPEG")
    scan, rows = jpeg.index(b"\xff\xda"), png_rows(noise())
    frame = gif.index(struct.pack("<BHHHH", 0x2C, 0, 0, WIDTH, HEIGHT))
    sof, ihdr = jpeg.index(b"\xff\xc0"), plain.index(b"IHDR")
    cut = [(f"jpeg cut to {size} bytes", jpeg[:size], "truncated", "cut off") for size in (2, 3, 12, sof + 6, scan + 5, scan + 40)]
    for name, data in {"jpeg": jpeg, "progressive jpeg": progressive, "cmyk jpeg": cmyk, "png": plain, "webp": webp,
    "lossless webp": lossless,
                       "gif": gif, "bmp": bmp, "tiff": raw_tiff, "lzw tiff": lzw}.items():  # fmt: skip
        cut += [(f"{name} cut at {part:.0%}", data[: int(len(data) * part)], "truncated", "cut off") for part in (0.5, 0.97)]
    short = {"jpeg": jpeg, "png": plain, "gif": gif}
    cut += [(f"{name} without its last byte", data[:-1], "truncated", "cut off") for name, data in short.items()]
    cut += [
        ("jpeg with zeros for its second half", jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2), "truncated", "cut off"),
        ("jpeg cut and closed again", jpeg[: len(jpeg) // 2].rstrip(b"\xff") + b"\xff\xd9", "truncated", "cut off"),
        ("png cut inside its signature", plain[:5], "truncated", "cut off"),
        ("png cut inside its header", plain[:20], "truncated", "cut off"),
        ("png without an end", png(WIDTH, HEIGHT, 8, 2, rows, end=False), "truncated", "cut off"),
        ("webp cut inside its header", webp[:14], "truncated", "cut off"),
        ("gif cut inside its header", gif[:9], "truncated", "cut off"),
        ("tiff cut inside its directory", b"II*\0\x08\0\0\0\x0a\0\0\x01", "truncated", "cut off"),
    ]
    no_image = {
        "text": b"This is not a picture, whatever its name says.\n", "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "json": b'{"error": {"code": "AccessDenied"}}', "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "zip": b"PK\3\4\x14\0\0\0\x08\0" + bytes(64),
        "mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64),
        "s3 error": b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
        "gzip": b"\x1f\x8b\x08\0" + bytes(20), "zeros": bytes(4096), "random bytes": noise(7).tobytes()[:2000], "one byte": b"x",
        "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(32),
    }  # fmt: skip
    refused = {
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "avif": b"\0\0\0\x1cftypavif\0\0\0\0mif1miaf" + bytes(64),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>', "svg in xml": b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg width="9"/>',
        "psd": b"8BPS\0\1" + bytes(40), "icon": b"\0\0\1\0\1\0" + bytes(40), "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
        "jpeg xl": b"\xff\x0a" + bytes(40), "canon raw": b"II*\0\x10\0\0\0CR\2\0" + bytes(40),
        "fuji raw": b"FUJIFILMCCD-RAW 0201" + bytes(60),
        "dng": tiff(noise(), more={254: (4, 1), 50706: (4, 1)}), "thumbnail of a raw file": tiff(noise(), more={254: (4, 1)}),
        "openexr": b"\x76\x2f\x31\x01\2\0\0\0" + bytes(40), "pnm": b"P6\n8 8\n255\n" + bytes(192),
        "lossless jpeg": jpeg.replace(b"\xff\xc0", b"\xff\xc3"),
        "12-bit jpeg": jpeg[: sof + 4] + b"\x0c" + jpeg[sof + 5 :], "float tiff": tiff(noise()[..., 0].astype(np.float32)),
        "float colour tiff": tiff(noise().astype(np.float32)), "double tiff": tiff(noise()[..., 0].astype(np.float64)),
        "signed 16-bit tiff": tiff(noise()[..., 0].astype(np.uint16), more={339: (3, 2)}),
        "32-bit tiff": tiff(noise()[..., 0].astype(np.uint32)),
        "16-bit cmyk tiff": tiff(np.dstack([noise(), noise()[..., 0]]).astype(np.uint16), more={262: (3, 5)}),
    }  # fmt: skip
    middle = len(plain) // 2
    damaged = {
        "png with a wrong checksum in its header": plain[: ihdr + 17] + b"\0\0\0\0" + plain[ihdr + 21 :],
        "png with a flipped bit in its data": plain[:middle] + bytes([plain[middle] ^ 1]) + plain[middle + 1 :],
        "png with a flipped bit in a checksum": plain[:-13] + bytes([plain[-13] ^ 1]) + plain[-12:],
        "png whose data are too short": png(WIDTH, HEIGHT, 8, 2, rows[: len(rows) // 2]), "png with a wrong adler": _adler_broken(rows),
        "png with an unknown filter": png(WIDTH, HEIGHT, 8, 2, b"\x09" + rows[1:]),
        "png of impossible depth": png(WIDTH, HEIGHT, 7, 2, rows),
        "png without a palette": png(WIDTH, HEIGHT, 8, 3, rows), "png of 0 x 0": png(0, 0, 8, 2, b""), "png of 0 x 5": png(0, 5, 8, 2, b""),
        "png with text first": plain[:8] + chunk(b"tEXt", b"a\0b") + plain[8:],
        "jpeg of height 0": jpeg[: sof + 5] + b"\0\0" + jpeg[sof + 7 :],
        "jpeg without tables": b"\xff\xd8" + jpeg[sof:], "jpeg that ends before its picture": b"\xff\xd8\xff\xd9\xff\xd9" + bytes(20),
        "webp without its start code": webp.replace(b"\x9d\x01\x2a", bytes(3)), "gif of 0 x 0": gif[:6] + bytes(4) + b"\0\0\0;",
        "gif without a picture": gif[:13] + bytes(3 * (2 << (gif[10] & 7))) + b";",
        "tiff without a size": tiff(noise(), more={256: (4, 0)}),
        "tiff with noise for lzw": lzw[:8] + noise(4).tobytes()[: len(lzw) // 3] + lzw[8 + len(lzw) // 3 :],
        "bmp of 7 bits": bmp[:28] + b"\x07\0" + bmp[30:], "gif with an unknown block": gif[:-1] + b"\x99\x01\0;",
    }  # fmt: skip
    header_bomb = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    deflated = zlib.compress(bytes((20000 // 8 + 1) * 20000), 9)
    bombs = {
        "png bomb in its header": b"\x89PNG\r\n\x1a\n" + header_bomb + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "png deflate bomb": png(20000, 20000, 1, 0, b"").replace(chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", deflated)),
        "jpeg bomb": jpeg[: sof + 5] + b"\xff\xdc\xff\xdc" + jpeg[sof + 9 :], "gif bomb": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "webp bomb": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\x0f\xff\xff\x0f",
        "bmp bomb": bmp[:18] + struct.pack("<ii", 50000, -50000) + bmp[26:],
        "tiff bomb": tiff(noise(), more={256: (4, 1 << 30), 257: (4, 1 << 30)}),
        "gif bomb in its frame": gif[:frame] + struct.pack("<BHHHH", 0x2C, 60000, 60000, 5000, 5000) + gif[frame + 9 :],
    }  # fmt: skip
    first, *others = _frames()
    moving = {
        "animated gif": save(first.quantize(16), "GIF", save_all=True, append_images=[f.quantize(16) for f in others]),
        "animated png": save(first, "PNG", save_all=True, append_images=others),
        "animated webp": save(first, "WEBP", save_all=True, append_images=others),
        "tiff of three pages": save(first, "TIFF", save_all=True, append_images=others),
    }
    small = {f"{kind.lower()} of 1 x 1": save(noise()[:1, :1], kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")}
    small |= {"png of 7 x 40": save(noise()[:40, :7], "PNG"), "tiff of 64 x 7": save(noise()[:7], "TIFF")}
    groups = [("not_an_image", "no picture", no_image), ("unsupported_format", "not taken", refused), ("corrupt", "damaged", damaged),
              ("too_large", "--max-megapixels", bombs), ("animated", "more than one", moving),
              ("too_small", "sides of 8", small)]  # fmt: skip
    listed = [(name, data, code, says) for code, says, group in groups for name, data in group.items()]
    return [("empty file", b"", "empty_file", "0 bytes"), *cut, *listed]


def _masks() -> list[tuple[str, bytes, str, str]]:
    good = save(object_mask(), "PNG")
    ghost = np.dstack([np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.where(object_mask() > 0, 90, 0).astype(np.uint8)])
    speck = np.zeros((HEIGHT * 8, WIDTH * 8), np.uint8)
    speck[0, 0] = 255
    return [
        ("mask is an empty file", b"", "mask_empty_file", "0 bytes"),
        ("mask is text", b"no mask here", "mask_not_an_image", "no picture"),
        ("mask is html", b"<html>503</html>", "mask_not_an_image", "HTML"),
        ("mask is svg", b"<svg/>", "mask_unsupported_format", "SVG"),
        ("mask is cut off", good[:-20], "mask_truncated", "cut off"),
        ("mask is a jpeg cut off", save(noise(), "JPEG")[:-60], "mask_truncated", "cut off"),
        ("mask with a flipped bit", good[:50] + bytes([good[50] ^ 8]) + good[51:], "mask_corrupt", "checksum"),
        ("mask is a bomb", png(60000, 60000, 1, 0, b""), "mask_too_large", "--max-megapixels"),
        ("mask is animated", save(_frames()[0], "GIF", save_all=True, append_images=_frames()[1:]), "mask_animated", "more than one"),
        ("mask of 1 x 1", save(object_mask()[:1, :1], "PNG"), "mask_too_small", "sides of 8"),
        ("mask is black", save(np.zeros((HEIGHT, WIDTH), np.uint8), "PNG"), "empty_mask", "removes nothing"),
        ("mask is white", save(np.full((HEIGHT, WIDTH), 255, np.uint8), "PNG"), "full_mask", "removes all"),
        ("mask of 0 and 1", save(object_mask() // 255, "PNG"), "empty_mask", "brightest value is 1"),
        ("mask of 0 and 127", save(object_mask() // 2, "PNG"), "empty_mask", "brightest value is 127"),
        ("mask of 128 and 255", save(object_mask() // 2 + 128, "PNG"), "full_mask", "removes all"),
        ("mask of faint alpha", save(ghost, "PNG"), "empty_mask", "brightest value is 90"),
        ("mask of one clear colour", save(np.zeros((HEIGHT, WIDTH, 4), np.uint8), "PNG"), "empty_mask", "removes nothing"),
        ("mask on its side", save(np.ascontiguousarray(object_mask().T), "PNG"), "mask_size_mismatch", "48 x 64"),
        ("mask too wide", save(np.zeros((HEIGHT, WIDTH + 3), np.uint8), "PNG"), "mask_size_mismatch", "within 2 %"),
        ("mask that vanishes when made smaller", save(speck, "PNG"), "empty_mask", "once it has the photo's"),
    ]  # fmt: skip


@cache
def malformed_corpus() -> list[MalformedCase]:
    """Every item that has to become one failure row, with the code and a part of the message."""
    photo, mask = save(picture(), "PNG"), save(object_mask(), "PNG")
    cases = [MalformedCase(name, data, mask, code, says) for name, data, code, says in _sources()]
    cases += [MalformedCase(name, photo, data, code, says) for name, data, code, says in _masks()]
    return [*cases, MalformedCase("no source", None, mask, "missing", ""), MalformedCase("no mask", photo, None, "missing", "")]


def _stored(upright: Pixels, orientation: int) -> Pixels:
    """What a camera stores so that the orientation brings back ``upright``."""
    turned = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1), 6: np.rot90(upright),
              7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1)}[orientation]  # fmt: skip
    return np.ascontiguousarray(turned)


def _valid(name: str, source: bytes, pixels: Pixels, alpha: Pixels | None = None, tolerance: int = 0) -> ValidCase:
    return ValidCase(name, source, save(object_mask(), "PNG"), pixels, alpha, object_mask(), tolerance)


def _valid_sources() -> list[ValidCase]:
    smooth, rough, grey = picture(), noise(), noise()[..., 0]
    fine = {"quality": 97, "subsampling": 0}
    jpeg = save(smooth, "JPEG", **fine)
    three = np.repeat(grey[..., None], 3, axis=2)
    deep = np.random.default_rng(5).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    deep[0, :4] = [[0, 128, 129], [65535, 65407, 65406], [385, 386, 257], [32767, 32768, 256]]
    eight = np.rint(deep.astype(np.float64) * 255 / 65535).astype(np.uint8)
    eight_grey, bits = np.repeat(eight[..., :1], 3, axis=2), (grey > 127).astype(np.uint8) * 255
    alpha = noise(9)[..., 0].copy()
    alpha[:10] = 0
    rgba, indexed = np.dstack([rough, alpha]), Image.fromarray(rough).quantize(32)
    colours = np.array(indexed.convert("RGB"))
    key = int(np.array(indexed)[0, 0])
    flat = np.full((HEIGHT, WIDTH, 3), (200, 120, 40), np.uint8)
    planes = [Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)) for value in (55, 135, 215, 0)]
    ink = save(Image.merge("CMYK", planes), "JPEG", quality=100)
    adobe = ink.index(b"Adobe")
    # The same four planes read as YCCK: Y, Cb and Cr give the inks' CMY (inverted by Adobe's rule), black stays.
    y, cb, cr = 255 - 55, 255 - 135, 255 - 215
    ycck = 255 - np.clip([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], 0, 255)
    plain_ink = ink[: adobe - 4] + ink[adobe + 12 :]
    bad_exif = jpeg[:2] + b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff" + jpeg[2:]
    cases = [_valid(f"png, orientation {o}", save(_stored(rough, o), "PNG", exif=exif(o)), rough) for o in range(1, 9)]
    turned = {o: save(_stored(smooth, o), "JPEG", exif=exif(o), **fine) for o in range(1, 9)}
    cases += [_valid(f"jpeg, orientation {o}", data, smooth, None, 4) for o, data in turned.items()]
    cases += [_valid(f"tiff, orientation {o}", tiff(_stored(rough, o), more={274: (3, o)}), rough) for o in (3, 6)]
    cases += [_valid(f"16-bit tiff, orientation {o}", tiff(_stored(deep, o), more={274: (3, o)}), eight) for o in (2, 8)]
    mpo = save(Image.fromarray(smooth), "MPO", save_all=True, append_images=[Image.fromarray(rough)], **fine)
    clear = np.where(np.array(indexed) == key, 0, 255).astype(np.uint8)
    keyed = png(WIDTH, HEIGHT, 8, 0, png_rows(grey), chunk(b"tRNS", struct.pack(">H", int(grey[0, 0]))))
    cases += [
        _valid("webp, orientation 6", save(_stored(rough, 6), "WEBP", lossless=True, exif=exif(6)), rough),
        _valid("png with transparency, orientation 5", save(_stored(rgba, 5), "PNG", exif=exif(5)), rough, alpha),
        _valid("progressive jpeg", save(smooth, "JPEG", progressive=True, **fine), smooth, None, 4),
        _valid("jpeg with restart markers", save(smooth, "JPEG", restart_marker_rows=1, **fine), smooth, None, 4),
        _valid("jpeg of one grey, like missing data", save(np.full_like(smooth, 128), "JPEG"), np.full_like(smooth, 128)),
        _valid("grey jpeg", save(smooth[..., 0], "JPEG", quality=97), np.repeat(smooth[..., :1], 3, axis=2), None, 4),
        _valid("mpo, first picture", mpo, smooth, None, 4),
        _valid("jpeg with a video behind it", jpeg + b"\0\0\0\x20ftypmp42" + bytes(500), smooth, None, 4),
        _valid("jpeg with broken exif", bad_exif, smooth, None, 4),
        _valid("jpeg with orientation 77", save(smooth, "JPEG", exif=exif(77), **fine), smooth, None, 4),
        _valid("jpeg with a colour profile", save(smooth, "JPEG", icc_profile=bytes(200), **fine), smooth, None, 4),
        _valid("cmyk jpeg by Adobe's rule", ink, flat, None, 3),
        _valid("cmyk jpeg without Adobe's mark", plain_ink, np.zeros_like(flat), None, 3),
        _valid("ycck jpeg", ink[: adobe + 11] + b"\2" + ink[adobe + 12 :], np.full_like(flat, np.rint(ycck)), None, 4),
        _valid("palette png", save(indexed, "PNG"), colours),
        _valid("palette png with a clear colour", save(indexed, "PNG", transparency=key), colours, clear),
        _valid("gif", save(indexed, "GIF"), colours),
        _valid("grey png", save(grey, "PNG"), three),
        _valid("grey png with a clear grey", keyed, three, np.where(grey == grey[0, 0], 0, 255).astype(np.uint8)),
        _valid("grey png with alpha", save(Image.fromarray(np.dstack([grey, alpha]), "LA"), "PNG"), three, alpha),
        _valid("rgba png", save(rgba, "PNG"), rough, alpha),
        _valid("rgba webp", save(rgba, "WEBP", lossless=True, exact=True), rough, alpha),
        _valid("1-bit png", save(Image.fromarray(bits).convert("1"), "PNG"), np.repeat(bits[..., None], 3, axis=2)),
        _valid("1-bit tiff", save(Image.fromarray(bits).convert("1"), "TIFF"), np.repeat(bits[..., None], 3, axis=2)),
        _valid("16-bit grey png", png(WIDTH, HEIGHT, 16, 0, png_rows(deep[..., 0])), eight_grey),
        _valid("16-bit rgb png", png(WIDTH, HEIGHT, 16, 2, png_rows(deep)), eight),
        _valid("16-bit grey tiff", tiff(deep[..., 0]), eight_grey),
        _valid("16-bit grey tiff, white is 0", tiff(~deep[..., 0], more={262: (3, 0)}), eight_grey),
        _valid("16-bit rgb tiff, big-endian", tiff(deep, order=">"), eight),
        _valid("16-bit rgb tiff, lzw", cv2.imencode(".tiff", deep[..., ::-1])[1].tobytes(), eight),
        _valid("lzw tiff", save(rough, "TIFF", compression="tiff_lzw"), rough),
        _valid("bmp", save(rough, "BMP"), rough),
        _valid("animated png of one frame", save(rough, "PNG", save_all=True, append_images=[]), rough),
        _valid("png with bytes behind it", save(rough, "PNG") + b"behind", rough),
    ]  # fmt: skip
    return cases


def _valid_masks() -> list[ValidCase]:
    source, pixels, mask = save(picture(), "PNG"), picture(), object_mask()
    black, white = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    soft = np.where(mask > 0, 128, 127).astype(np.uint8)
    large = mask.repeat(2, axis=0).repeat(2, axis=1)
    two = Image.fromarray(mask // 255, "P")
    two.putpalette([0, 0, 0, 255, 255, 255])
    files = {
        "mask of 1 bit": save(Image.fromarray(mask).convert("1"), "PNG"), "mask in rgb": save(np.dstack([mask] * 3), "PNG"),
        "mask in black with alpha": save(np.dstack([black, mask]), "PNG"),
        "mask in white with alpha": save(np.dstack([white, mask]), "WEBP", lossless=True, exact=True),
        "mask in white, opaque": save(np.dstack([mask, mask, mask, np.full_like(mask, 255)]), "PNG"),
        "mask with a palette": save(two, "PNG"),
        "mask of 16 bits": save(mask.astype(np.uint16) * 257, "PNG"), "mask just around the threshold": save(soft, "PNG"),
        "mask twice as large": save(large, "PNG"), "mask as jpeg": save(mask, "JPEG", quality=100),
        "mask as gif": save(Image.fromarray(mask), "GIF"),
        "mask as tiff": save(mask, "TIFF"), "mask with orientation 8": save(_stored(mask, 8), "PNG", exif=exif(8)),
    }  # fmt: skip
    return [ValidCase(name, source, data, pixels, None, mask) for name, data in files.items()]


@cache
def unusual_but_valid() -> list[ValidCase]:
    """Every strange item that has to be taken, with the pixels that must come out."""
    return [*_valid_sources(), *_valid_masks()]
