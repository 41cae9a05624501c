"""Headers that lie: reading one costs neither time nor memory, whatever it claims."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from core.headers import Rejected, read_header
from tests.malformed import picture, save


def tiff_claiming(values: int, times: int) -> bytes:
    """A TIFF whose strips are said to be ``values`` many, over and over."""
    tags = [(256, 3, 1, 64), (257, 3, 1, 48)] + [(273, 1, values, 200)] * times
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + bytes(values + 400)


def test_a_tag_with_as_many_values_as_the_file_has_bytes_is_refused() -> None:
    data = tiff_claiming(4_000_000, 10)
    tracemalloc.start()
    with pytest.raises(Rejected, match="tag 273 of 4,000,000 values") as caught:
        read_header(data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert caught.value.code == "corrupt"


def test_such_a_tag_in_exif_does_not_cost_the_photo() -> None:
    lie = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 274, 1, 1 << 30, 0) + bytes(4)
    head = read_header(save(picture(), "JPEG", exif=lie))
    assert (head.width, head.height, head.orientation, head.flaw) == (64, 48, 1, None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_every_kind_is_told_by_its_first_bytes(kind: str) -> None:
    head = read_header(save(picture(), kind))
    assert (head.format, head.width, head.height, head.flaw) == (kind.lower(), 64, 48, None)
