"""The page as a person uses it: what tests draw, press and see on it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.serving.browser import open_page

SAMPLES: Final = Path(__file__).parents[2] / "assets" / "samples"
Pixels = NDArray[np.uint8]
Point = tuple[float, float]

_PIXEL = """([x, y]) => {
  const canvas = document.querySelector("canvas.photo");
  const data = canvas.getContext("2d").getImageData(x * devicePixelRatio, y * devicePixelRatio, 1, 1).data;
  return [...data.slice(0, 3)];
}"""
_DRAWN = """([x, y]) => {
  const canvas = document.querySelector("canvas.mask");
  return canvas.getContext("2d").getImageData(x * devicePixelRatio, y * devicePixelRatio, 1, 1).data[3] > 127;
}"""


_GIVEN = """async ({ event, data, name, kind, more }) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([await (await fetch(`data:${kind};base64,${data}`)).blob()], name, { type: kind }));
  const options = { bubbles: true, cancelable: true, ...more };
  document.body.dispatchEvent(event === "paste"
    ? new ClipboardEvent(event, { ...options, clipboardData: transfer })
    : new DragEvent(event, { ...options, dataTransfer: transfer }));
}"""


def decoded(data: bytes) -> Pixels:
    """(H, W, 3) or, for one channel, (H, W) uint8."""
    return np.asarray(Image.open(io.BytesIO(data)))


def as_png(path: Path) -> bytes:
    """A photo without loss, so that what comes back can be compared pixel by pixel."""
    with io.BytesIO() as buffer:
        Image.open(path).convert("RGB").save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


class PageDriver:
    """One open page. Points on the photo are fractions of its width and height."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page, self.origin = page, origin
        self.requests: list[Any] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request))  # a builtin method cannot be a handler
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.goto()

    def _said(self, message: Any) -> None:
        # the browser's advice about many reads of a canvas is about the reads that tests make
        if message.type in {"error", "warning"} and "willReadFrequently" not in message.text:
            self.complaints.append(message.text)

    def goto(self) -> None:
        self.page.goto(self.origin + "/")
        self.wait_ready()

    def wait_ready(self) -> None:
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def reload(self) -> None:
        self.page.wait_for_selector("html[data-saved=yes]", state="attached")
        self.page.reload()
        self.wait_ready()

    def open(self, data: bytes, name: str) -> None:
        """Open a photo, and wait until the server has it."""
        kind = "image/png" if name.endswith(".png") else "image/jpeg"
        with self.page.expect_response(lambda response: response.url.endswith("/v1/images") and response.status == 201):
            self.page.set_input_files("#photo-file", {"name": name, "mimeType": kind, "buffer": data})
        self.page.wait_for_selector("body.editing")

    def frame_box(self) -> dict[str, float]:
        """Where the photo is on the screen once what was asked for is drawn: x, y, width, height."""
        # it is drawn in the next frame, and the one after it begins when that is done
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box: dict[str, float] = self.page.locator(".frame").bounding_box()
        return box

    def places(self, points: Sequence[Point]) -> list[Point]:
        """Points of the photo on the screen."""
        box = self.frame_box()
        return [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points]

    def at(self, point: Point) -> Point:
        """A point of the photo on the screen."""
        return self.places([point])[0]

    def stroke(self, points: Sequence[Point], button: str = "left") -> None:
        first, *rest = self.places(points)
        self.page.mouse.move(*first)
        self.page.mouse.down(button=button)
        for place in rest:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up(button=button)

    def stroke_with(self, key: str, points: Sequence[Point], button: str = "left") -> None:
        """A stroke while a key is held."""
        self.page.keyboard.down(key)
        try:
            self.stroke(points, button)
        finally:
            self.page.keyboard.up(key)

    def give(self, event: str, data: bytes, name: str, kind: str = "image/png", **more: bool) -> None:
        """Drop or paste a file, as the browser tells the page of it; ``more`` are keys that are held (``shiftKey``)."""
        encoded = base64.b64encode(data).decode()
        self.page.evaluate(_GIVEN, {"event": event, "data": encoded, "name": name, "kind": kind, "more": more})

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def wait_erased(self, choices: int) -> None:
        """Wait until no erase is under way and the strip shows so many candidates."""
        self.page.wait_for_selector("body[data-jobs='0']")
        self.page.wait_for_function("count => document.querySelectorAll('.choice').length === count", arg=choices)

    def wait_status(self, words: str) -> None:
        self.page.wait_for_function("words => document.getElementById('status').textContent.includes(words)", arg=words)

    def colour(self, point: Point) -> list[int]:
        """What the screen shows there of photo and results."""
        return list(self.page.evaluate(_PIXEL, self.at(point)))

    def drawn(self, point: Point) -> bool:
        """Whether the mask on the screen covers the point."""
        return bool(self.page.evaluate(_DRAWN, self.at(point)))

    def wait_colour(self, point: Point, expected: Sequence[int], tolerance: int = 2) -> None:
        """Wait until the screen shows a colour: a result fades in."""
        self.page.wait_for_function(
            f"([place, colour, tolerance]) => ({_PIXEL})(place).every((value, i) => Math.abs(value - colour[i]) <= tolerance)",
            arg=[self.at(point), [int(value) for value in expected], tolerance],
        )

    def enabled(self, element: str) -> bool:
        return bool(self.page.locator(f"#{element}").is_enabled())

    def saved(self, trigger: Any) -> tuple[str, bytes]:
        """Name and bytes of the file that ``trigger()`` makes the browser save."""
        with self.page.expect_download() as waiting:
            trigger()
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    def download(self) -> tuple[str, bytes]:
        return self.saved(lambda: self.page.click("#download"))

    def mask(self) -> Pixels:
        """The exported mask, (H, W) of 0 and 255."""
        _, data = self.saved(lambda: self.page.evaluate("document.getElementById('export-mask').click()"))
        grey = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert set(np.unique(grey)) <= {0, 255}
        return grey

    def import_mask(self, mask: Pixels) -> None:
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "PNG")
        self.page.set_input_files("#mask-file", {"name": "mask.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
        self.wait_status("Mask added")

    def click(self, element: str) -> None:
        """Press a control, wherever it is on the page."""
        self.page.evaluate("id => document.getElementById(id).click()", element)

    def foreign_requests(self) -> list[str]:
        """Addresses that were asked and are not of the page's own server."""
        urls = [request.url for request in self.requests]
        return [url for url in urls if urlsplit(url).scheme not in {"blob", "data"} and not url.startswith(self.origin + "/")]


@contextmanager
def driven(browser: Any, origin: str, **context: object) -> Iterator[PageDriver]:
    """A page of its own in its own storage, closed at the end."""
    with open_page(browser, **context) as page:
        yield PageDriver(page, origin.rstrip("/"))
