"""The page's mask: what is drawn, imported, grown and inverted is what is exported, pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from core.masks import encode_mask
from tests.pictures import random_mask
from tests.serving.browser import open_browser
from tests.serving.page_driver import SAMPLES, PageDriver, as_png, driven

WIDTH = HEIGHT = 512


@pytest.fixture(scope="module")
def page(server: str) -> Iterator[PageDriver]:
    with open_browser() as browser, driven(browser, server) as opened:
        opened.open(as_png(SAMPLES / "source" / "sitter.jpg"), "sitter.png")
        yield opened
        assert opened.complaints == []


@pytest.fixture(autouse=True)
def _clean(page: PageDriver) -> None:
    page.page.locator("#stage").focus()
    page.press("x", "b", "0")


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    """By a disc, the slow way: every offset within the radius."""
    padded = np.pad(mask, radius)
    height, width = mask.shape
    grown = np.zeros_like(mask)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dx * dx + dy * dy <= radius * radius:
                np.maximum(grown, padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width], out=grown)
    return grown


def test_a_mask_goes_in_and_comes_out(page: PageDriver) -> None:
    mask = random_mask(np.random.default_rng(1), WIDTH, HEIGHT)
    page.import_mask(mask)
    np.testing.assert_array_equal(page.mask(), mask)


def test_grow_and_shrink_are_by_a_disc(page: PageDriver) -> None:
    mask = random_mask(np.random.default_rng(2), WIDTH, HEIGHT)
    page.import_mask(mask)
    page.click("options-button")
    page.page.fill("#grow", "7")
    page.press("Escape")
    page.click("bigger")
    page.wait_status("grown by 7")
    grown = dilated(mask, 7)
    np.testing.assert_array_equal(page.mask(), grown)
    page.click("smaller")
    page.wait_status("shrunk by 7")
    # beyond the photo's edge there is nothing to shrink from
    np.testing.assert_array_equal(page.mask(), 255 - dilated(255 - grown, 7))
    page.press("Control+z", "Control+z")
    np.testing.assert_array_equal(page.mask(), mask)


def test_invert_twice_is_nothing(page: PageDriver) -> None:
    mask = random_mask(np.random.default_rng(3), WIDTH, HEIGHT)
    page.import_mask(mask)
    page.press("i")
    np.testing.assert_array_equal(page.mask(), 255 - mask)
    page.press("i")
    np.testing.assert_array_equal(page.mask(), mask)


def test_the_brush_goes_on_beyond_the_edge(page: PageDriver) -> None:
    page.stroke([(0.5, 0.5), (1.1, 0.5), (1.1, 0.8), (0.9, 0.8)])
    mask = page.mask()
    assert mask[256, 511] == 255
    assert mask[round(0.8 * 512), 500] == 255
    assert mask[round(0.65 * 512), 480] == 0


@pytest.mark.parametrize("tool", ["l", "m"])
def test_lasso_and_rectangle_fill(page: PageDriver, tool: str) -> None:
    page.press(tool)
    corners = [(0.25, 0.25), (0.25, 0.5), (0.75, 0.5), (0.75, 0.25)] if tool == "l" else [(0.25, 0.25), (0.75, 0.5)]
    page.stroke(corners)
    mask = page.mask()
    inside = mask[136:248, 136:376]
    assert (inside == 255).all()
    assert (mask > 0).sum() == pytest.approx(128 * 256, rel=0.03)
    page.stroke([(0.4, 0.3), (0.4, 0.45), (0.6, 0.45), (0.6, 0.3)] if tool == "l" else [(0.4, 0.3), (0.6, 0.45)], button="right")
    assert page.mask()[192, 256] == 0


def test_the_brush_has_the_size_that_it_shows(page: PageDriver) -> None:
    scale = page.frame_box()["width"] / WIDTH
    brush = int(page.page.locator("#brush-value").text_content())
    page.stroke([(0.5, 0.5), (0.5, 0.5)])
    area = (page.mask() > 0).sum()
    assert area == pytest.approx(np.pi * (brush / scale / 2) ** 2, rel=0.05)
    page.press("]", "]")
    assert int(page.page.locator("#brush-value").text_content()) > brush
    page.press("[", "[")
    assert int(page.page.locator("#brush-value").text_content()) == pytest.approx(brush, abs=1)


def test_zoom_does_not_change_what_was_drawn(page: PageDriver) -> None:
    page.stroke([(0.3, 0.3), (0.6, 0.6)])
    mask = page.mask()
    page.press("+", "+")
    page.page.mouse.wheel(0, -300)
    np.testing.assert_array_equal(page.mask(), mask)


def test_a_mask_of_another_size_is_brought_to_the_photo(page: PageDriver) -> None:
    small = random_mask(np.random.default_rng(4), WIDTH // 2, HEIGHT // 2)
    page.import_mask(small)
    np.testing.assert_array_equal(page.mask(), small.repeat(2, axis=0).repeat(2, axis=1))


def test_no_mask_is_said_and_nothing_is_sent(page: PageDriver) -> None:
    before = len(page.requests)
    page.press("Enter")
    page.wait_status("Brush over something first")
    assert not [request for request in page.requests[before:] if request.url.endswith("/erase")]


def test_alt_takes_away_and_shift_draws_straight_on(page: PageDriver) -> None:
    page.stroke([(0.2, 0.2), (0.2, 0.4)])
    page.stroke_with("Shift", [(0.7, 0.4)])
    mask = page.mask()
    assert mask[round(0.4 * HEIGHT), round(0.2 * WIDTH) : round(0.7 * WIDTH)].all()
    assert not mask[round(0.2 * HEIGHT), round(0.45 * WIDTH)]
    page.stroke_with("Alt", [(0.45, 0.35), (0.45, 0.45)])
    mask = page.mask()
    assert not mask[round(0.4 * HEIGHT), round(0.45 * WIDTH)]
    assert mask[round(0.4 * HEIGHT), round(0.3 * WIDTH)]


@pytest.mark.parametrize("way", ["space", "middle button"])
def test_the_photo_is_dragged_and_nothing_is_drawn(page: PageDriver, way: str) -> None:
    page.press("+", "+", "+")
    before = page.frame_box()
    if way == "space":
        page.stroke_with("Space", [(0.5, 0.5), (0.45, 0.46)])
    else:
        page.stroke([(0.5, 0.5), (0.45, 0.46)], button="middle")
    after = page.frame_box()
    assert after["width"] == pytest.approx(before["width"])
    assert after["x"] - before["x"] == pytest.approx(-0.05 * before["width"], abs=2)
    assert after["y"] - before["y"] == pytest.approx(-0.04 * before["height"], abs=2)
    page.stroke([(0.5, 0.5), (0.5, 0.55)])  # and the hand draws again
    mask = page.mask()
    assert mask[HEIGHT // 2, WIDTH // 2]
    assert not mask[: round(0.47 * HEIGHT)].any()


def test_a_mask_that_is_dropped_is_added(page: PageDriver) -> None:
    mask = random_mask(np.random.default_rng(5), WIDTH, HEIGHT)
    page.give("drop", encode_mask(mask), "my mask.png")
    page.wait_status("Mask added")
    np.testing.assert_array_equal(page.mask(), mask)
    page.press("x")
    page.wait_status("Mask cleared")
    page.give("drop", encode_mask(mask), "anything.png", shiftKey=True)
    page.wait_status("Mask added")
    np.testing.assert_array_equal(page.mask(), mask)
    assert page.page.locator("#file-name").text_content() == "sitter.png"


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_photo_that_is_dropped_or_pasted_opens(page: PageDriver, event: str) -> None:
    with page.page.expect_response(lambda response: response.url.endswith("/v1/images") and response.status == 201):
        page.give(event, as_png(SAMPLES / "source" / "sitter.jpg"), f"{event}.png")
    page.page.wait_for_function("name => document.getElementById('file-name').textContent === name", arg=f"{event}.png")
    page.stroke([(0.5, 0.5), (0.5, 0.6)])
    assert page.mask()[HEIGHT // 2, WIDTH // 2]
