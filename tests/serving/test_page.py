"""The page in a real browser, against a real server: whole sessions with real photos."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from tests.serving.browser import open_browser
from tests.serving.page_driver import SAMPLES, PageDriver, as_png, decoded, driven

OBJECT = (0.36, 0.72)
PATH = [(0.36, 0.63), (0.36, 0.72), (0.38, 0.8), (0.35, 0.84)]
ASIDE = [(0.7, 0.3), (0.8, 0.4)]
TRIPLETS = Path(os.environ.get("CLEANPLATE_TRIPLETS", Path(__file__).parents[3] / "shared" / "data" / "public"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def erased_by_api(origin: str, photo: bytes, mask: np.ndarray, name: str = "photo.png", **fields: object) -> np.ndarray:
    """What POST /v1/erase makes of the same inputs."""
    png = io.BytesIO()
    Image.fromarray(mask).save(png, "PNG")
    files = {"image": (name, photo), "mask": ("mask.png", png.getvalue())}
    answer = requests.post(f"{origin}/v1/erase", files=files, data=fields, headers={"Accept": "image/png"}, timeout=300)
    answer.raise_for_status()
    return decoded(answer.content)


def test_a_whole_session(browser: Any, server: str) -> None:
    photo = as_png(SAMPLES / "source" / "barn.jpg")
    original = decoded(photo)
    with driven(browser, server) as page:
        page.open(photo, "barn.png")
        before = page.colour(OBJECT)

        page.stroke(PATH)
        page.stroke(ASIDE)
        assert page.drawn(OBJECT)
        assert page.drawn((0.75, 0.35))
        page.press("Control+z")
        assert not page.drawn((0.75, 0.35))
        page.press("Control+Shift+z")
        assert page.drawn((0.75, 0.35))
        page.stroke([(0.68, 0.28), *ASIDE, (0.82, 0.42)], button="right")  # the right button takes away
        assert not page.drawn((0.75, 0.35))
        assert page.drawn(OBJECT)
        mask = page.mask()
        assert mask.shape == original.shape[:2]
        assert mask[int(OBJECT[1] * 512), int(OBJECT[0] * 512)] == 255

        page.press("Enter")
        page.wait_erased(1)
        name, saved = page.download()
        assert name == "barn_erased.png"
        expected = erased_by_api(server, photo, mask, seed=0, candidates=1)
        result = decoded(saved)
        np.testing.assert_array_equal(result[..., :3], expected[..., :3])
        assert (result[..., :3] != original).any()
        assert not page.drawn(OBJECT)

        after = page.colour(OBJECT)
        assert after != before
        page.page.keyboard.down("Tab")
        page.wait_colour(OBJECT, before)
        page.page.keyboard.up("Tab")
        page.wait_colour(OBJECT, after)
        page.press("\\")
        page.page.locator("#split").fill("100")
        page.wait_colour(OBJECT, before)
        page.page.locator("#split").fill("0")
        page.wait_colour(OBJECT, after)
        page.press("\\")

        page.press("u")
        page.wait_colour(OBJECT, before)
        assert page.drawn(OBJECT)  # the mask is back
        np.testing.assert_array_equal(page.mask(), mask)
        page.press("Shift+U")
        page.wait_colour(OBJECT, after)
        assert not page.drawn(OBJECT)

        page.click("options-button")
        page.page.locator("input[name=candidates][value='2']").check()
        page.press("Escape")
        page.press("r")
        page.wait_erased(2)
        scores = [int(text) for text in page.page.locator(".choice .score").all_text_contents()]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 2
        page.press("2")
        pressed = "() => document.querySelectorAll('.choice')[1].getAttribute('aria-pressed') === 'true'"
        page.page.wait_for_function(pressed)
        _, second = page.download()
        assert (decoded(second) != result).any()

        page.reload()
        page.wait_erased(2)
        page.page.wait_for_function(pressed)
        assert page.download()[1] == second
        page.press("u")  # from the second try back to the first
        page.wait_erased(1)
        np.testing.assert_array_equal(decoded(page.download()[1]), result)

        assert page.foreign_requests() == []
        assert page.complaints == []


def test_format_and_name_are_kept(browser: Any, server: str) -> None:
    photo = (SAMPLES / "source" / "dancer.jpg").read_bytes()
    with driven(browser, server) as page:
        page.open(photo, "my dancer.jpg")
        page.stroke([(0.48, 0.55), (0.48, 0.8)])
        page.press("Enter")
        page.wait_erased(1)
        name, saved = page.download()
        assert name == "my dancer_erased.jpg"
        assert saved[:3] == b"\xff\xd8\xff"
        assert page.complaints == []


def test_an_erase_by_keyboard_alone(browser: Any, server: str) -> None:
    with driven(browser, server) as page:
        focused = "document.activeElement.id"
        for _ in range(10):
            page.press("Tab")
            if page.page.evaluate(focused) == "open":
                break
        assert page.page.evaluate(focused) == "open"
        # the file dialog is the browser's own: that it is asked for is all that a page can do
        page.page.evaluate("() => { document.getElementById('photo-file').onclick = () => { window.asked = true; return false; }; }")
        page.press("Enter")
        page.page.wait_for_function("() => window.asked")
        page.page.set_input_files("#photo-file", SAMPLES / "source" / "parrot.jpg")
        page.page.wait_for_selector("body.editing")
        for _ in range(10):
            if page.page.evaluate(focused) == "stage":
                break
            page.press("Tab")
        assert page.page.evaluate(focused) == "stage"
        page.press("ArrowDown", "ArrowDown", "Space", *["ArrowRight"] * 6, "Space")
        page.wait_status("Pen up")
        assert page.drawn((0.52, 0.54))
        page.press("Enter")
        page.wait_erased(1)
        page.press("Tab")  # a tap leaves the photo, and does not compare
        page.page.wait_for_function("() => document.activeElement.id !== 'stage'")
        name, _ = page.saved(lambda: page.press("Control+s"))
        assert name == "parrot_erased.jpg"
        assert page.complaints == []


def test_what_a_screen_reader_is_told(browser: Any, server: str) -> None:
    with driven(browser, server) as page:
        page.open(as_png(SAMPLES / "source" / "walker.jpg"), "walker.png")
        nameless = page.page.evaluate("""() => [...document.querySelectorAll("button, input:not([type=file]), [role]")]
            .filter(one => !(one.getAttribute("aria-label") || one.getAttribute("aria-labelledby") || one.textContent.trim() || one.title
                || one.labels?.length || one.id === "status")).map(one => one.outerHTML)""")
        assert nameless == []
        status = page.page.locator("[role=status][aria-live=polite]")
        assert "walker.png" in status.text_content()
        page.press("h")
        assert page.page.locator("#help-sheet").is_visible()
        page.press("h")
        assert not page.page.locator("#help-sheet").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser: Any, server: str, scheme: str) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 3, "is_mobile": True, "has_touch": True}
    with driven(browser, server, color_scheme=scheme, **phone) as page:
        page.open((SAMPLES / "source" / "barn.jpg").read_bytes(), "barn.jpg")
        page.page.touchscreen.tap(*page.at((0.36, 0.7)))
        page.page.touchscreen.tap(*page.at((0.36, 0.76)))
        assert page.drawn((0.36, 0.7))
        page.page.locator("#erase").tap()
        page.wait_erased(1)
        outside = page.page.evaluate("""() => [...document.querySelectorAll("button, input[type=range]")].filter(one => {
            const box = one.getBoundingClientRect();
            return one.checkVisibility() && (box.left < 0 || box.right > innerWidth || box.top < 0 || box.bottom > innerHeight);
        }).map(one => one.id)""")
        assert outside == []
        small = page.page.evaluate("""() => [...document.querySelectorAll(".dock button, nav button")].filter(one => {
            const box = one.getBoundingClientRect();
            return one.checkVisibility() && (box.width < 36 || box.height < 36);
        }).map(one => one.id)""")
        assert small == []
        before = page.frame_box()
        _pinch(page)
        after = page.frame_box()
        assert after["width"] > 1.5 * before["width"]
        assert page.enabled("undo-erase")
        assert not page.drawn((0.5, 0.5))  # a pinch draws nothing
        assert page.complaints == []


def _pinch(page: PageDriver) -> None:
    (x, y), session = page.at((0.5, 0.5)), page.page.context.new_cdp_session(page.page)
    for kind, gap in [("touchStart", 30), ("touchMove", 45), ("touchMove", 60), ("touchMove", 75), ("touchEnd", None)]:
        points = [] if gap is None else [{"x": x - gap, "y": y, "id": 0}, {"x": x + gap, "y": y, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


@pytest.mark.slow
@pytest.mark.skipif(not TRIPLETS.is_dir(), reason="the evaluation photos are not here; name their folder in CLEANPLATE_TRIPLETS")
@pytest.mark.parametrize("number", ["0004", "0064", "0110", "0189"])
def test_real_photos_with_their_masks(browser: Any, server: str, number: str) -> None:
    photo = as_png(TRIPLETS / number / "source.jpg")
    mask = np.where(np.asarray(Image.open(TRIPLETS / number / "mask.png").convert("L")) > 127, 255, 0).astype(np.uint8)
    with driven(browser, server) as page:
        page.open(photo, f"{number}.png")
        page.import_mask(mask)
        np.testing.assert_array_equal(page.mask(), mask)
        page.press("Enter")
        page.wait_erased(1)
        expected = erased_by_api(server, photo, mask, seed=0, candidates=1)
        np.testing.assert_array_equal(decoded(page.download()[1])[..., :3], expected[..., :3])
        page.press("Control+z")  # there is no stroke to take back: the erase is, and its mask is there again
        np.testing.assert_array_equal(page.mask(), mask)
        assert page.complaints == []


@pytest.mark.slow
def test_a_photo_of_24_megapixels(browser: Any, server: str, tmp_path: Path) -> None:
    tile = np.asarray(Image.open(SAMPLES / "source" / "lighthouse.jpg").convert("RGB").resize((1500, 1000)))
    Image.fromarray(np.tile(tile, (4, 4, 1))).save(tmp_path / "large.jpg", quality=85)
    with driven(browser, server) as page:
        page.open((tmp_path / "large.jpg").read_bytes(), "large.jpg")
        sent = len(page.requests)
        page.stroke([(0.4, 0.4), (0.43, 0.42)])
        page.press("Enter")
        page.wait_erased(1)
        (erase,) = [request for request in page.requests[sent:] if request.url.endswith("/erase")]
        assert erase.sizes()["requestBodySize"] < 200_000
        assert erase.sizes()["responseBodySize"] < 6_000_000
        canvases = "[...document.querySelectorAll('#stage canvas')].every(one => one.width <= innerWidth * devicePixelRatio)"
        assert page.page.evaluate(canvases)
        for _ in range(12):
            page.page.mouse.wheel(0, -240)
        page.stroke([(0.43, 0.42), (0.4301, 0.4201)])  # where the pointer is: all else is far off the screen by now
        assert page.drawn((0.43, 0.42))
        page.press("Control+z")
        name, saved = page.download()
        assert name == "large_erased.jpg"
        assert decoded(saved).shape == (4000, 6000, 3)
        page.reload()
        page.wait_erased(1)
        assert page.complaints == []
