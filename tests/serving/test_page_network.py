"""The page when the server is slow, busy, forgetful or locked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests

from tests.serving.browser import open_browser
from tests.serving.page_driver import SAMPLES, PageDriver, as_png, decoded, driven

FIRST = [(0.36, 0.63), (0.36, 0.84)]
SECOND = [(0.7, 0.7), (0.8, 0.7)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[PageDriver]:
    with driven(browser, server) as opened:
        opened.open(as_png(SAMPLES / "source" / "barn.jpg"), "barn.png")
        yield opened
        assert opened.foreign_requests() == []


class Held:
    """Erase requests wait on their way to the server until they are let go."""

    def __init__(self, page: PageDriver) -> None:
        self.page, self.routes, self.open = page.page, list[Any](), False
        self.page.route("**/erase", self._hold)

    def _hold(self, route: Any) -> None:
        if self.open:
            route.continue_()
        else:
            self.routes.append(route)

    def let_go(self) -> None:
        self.open = True
        for route in self.routes:
            route.continue_()


def test_escape_cancels_and_gives_the_strokes_back(page: PageDriver) -> None:
    held = Held(page)
    page.stroke(FIRST)
    mask = page.mask()
    with page.page.expect_event("request", lambda request: request.url.endswith("/erase")):
        page.press("Enter")
    page.page.wait_for_selector("body[data-jobs='1']")
    assert not page.drawn((0.36, 0.7))
    with page.page.expect_event("requestfailed", lambda request: request.url.endswith("/erase")):
        page.press("Escape")
    page.page.wait_for_selector("body[data-jobs='0']")
    assert page.drawn((0.36, 0.7))
    np.testing.assert_array_equal(page.mask(), mask)
    assert not page.enabled("download")
    held.routes.clear()
    held.let_go()
    page.press("Enter")
    page.wait_erased(1)


def test_strokes_are_taken_while_an_erase_runs(page: PageDriver) -> None:
    held = Held(page)
    page.stroke(FIRST)
    first = page.mask()
    with page.page.expect_event("request", lambda request: request.url.endswith("/erase")):
        page.press("Enter")
    page.stroke(SECOND)
    second = page.mask()
    assert second[358, 380] == 255
    assert second[358, 184] == 0
    page.press("Enter")
    page.page.wait_for_selector("body[data-jobs='2']")
    held.let_go()
    page.wait_erased(1)
    bases = [_field(request, "base") for request in page.requests if request.url.endswith("/erase")]
    assert bases[0] is None
    assert bases[1]  # the second works on the first's result
    both = decoded(page.download()[1])
    page.press("u")
    page.press("x")
    one = decoded(page.download()[1])
    assert ((one != both).any(axis=2) & (first == 0)).any()
    source = decoded(as_png(SAMPLES / "source" / "barn.jpg")).astype(int)
    # light may change a little beyond a stroke, where attention says so; what was drawn of the second is as in the photo again
    assert np.abs(one - source)[second > 0].mean() < 0.5
    erase = next(request.url for request in page.requests if request.url.endswith("/erase"))
    first_alone = requests.get(f"{erase.removesuffix('/erase')}/results/{bases[1]}", timeout=60)
    np.testing.assert_array_equal(one, decoded(first_alone.content))
    assert np.abs(both - source)[second > 0].mean() > 2


def _field(request: Any, name: str) -> str | None:
    """A text field of a multipart body."""
    body = request.post_data_buffer or b""
    marker = f'name="{name}"'.encode()
    if marker not in body:
        return None
    return body.split(marker, 1)[1].split(b"\r\n\r\n", 1)[1].split(b"\r\n", 1)[0].decode()


def test_a_photo_that_the_server_forgot_is_sent_again(page: PageDriver) -> None:
    page.stroke(FIRST)
    page.press("Enter")
    page.wait_erased(1)
    before = page.download()[1]
    erased = [request.url for request in page.requests if request.url.endswith("/erase")]
    assert requests.delete(erased[-1].removesuffix("/erase"), timeout=60).status_code == 204
    page.reload()
    assert page.download()[1] == before  # the photo was sent again, and the erase made again
    page.stroke(SECOND)
    page.press("Enter")
    page.page.wait_for_function("() => document.getElementById('status').textContent.startsWith('Erased')")
    assert (decoded(page.download()[1]) != decoded(before)).any()


def test_a_busy_server_is_asked_again(page: PageDriver) -> None:
    answers = []

    def busy(route: Any) -> None:
        answers.append(route)
        if len(answers) == 1:
            problem = {"title": "Busy", "status": 503, "detail": "all replicas are busy"}
            headers = {"Retry-After": "1", "Content-Type": "application/problem+json"}
            route.fulfill(status=503, headers=headers, body=json.dumps(problem))
        else:
            route.continue_()

    page.page.route("**/erase", busy)
    page.stroke(FIRST)
    page.press("Enter")
    page.wait_erased(1)
    assert len(answers) == 2


@pytest.mark.parametrize("fault", ["500 of a proxy", "no answer"])
def test_what_was_lost_is_asked_for_once_more(page: PageDriver, fault: str) -> None:
    asked = []

    def lose(route: Any) -> None:
        asked.append(route)
        if len(asked) > 1:
            route.continue_()
        elif fault == "no answer":
            route.abort()
        else:
            route.fulfill(status=500, content_type="text/plain", body="Internal Server Error")

    page.page.route("**/erase", lose)
    page.stroke(FIRST)
    page.press("Enter")
    page.wait_erased(1)
    assert len(asked) == 2


def test_a_fault_of_the_service_is_said_at_once(page: PageDriver) -> None:
    asked = []
    problem = {"title": "Internal Server Error", "status": 500, "detail": "the network failed"}

    def fail(route: Any) -> None:
        asked.append(route)
        route.fulfill(status=500, content_type="application/problem+json", body=json.dumps(problem))

    page.page.route("**/erase", fail)
    page.stroke(FIRST)
    page.press("Enter")
    page.wait_status("the network failed")
    assert len(asked) == 1


def test_a_refusal_is_said_and_the_strokes_stay(page: PageDriver) -> None:
    problem = {"title": "Wrong value", "status": 422, "detail": "steps is 900; it must be 1 to 200"}
    page.page.route("**/erase", lambda route: route.fulfill(status=422, content_type="application/problem+json", body=json.dumps(problem)))
    page.stroke(FIRST)
    page.press("Enter")
    page.wait_status("steps is 900; it must be 1 to 200")
    page.page.wait_for_selector("body[data-jobs='0']")
    assert page.drawn((0.36, 0.7))


def test_a_key_is_asked_for_and_sent(page: PageDriver) -> None:
    def locked(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.continue_()
        else:
            problem = {"title": "No key", "status": 401, "detail": "send Authorization: Bearer KEY"}
            route.fulfill(status=401, content_type="application/problem+json", body=json.dumps(problem))

    page.page.route("**/v1/**", locked)
    page.stroke(FIRST)
    page.press("Enter")
    page.page.wait_for_selector("#key-dialog[open]")
    page.page.fill("#key-dialog input", "open sesame")
    page.press("Enter")
    page.wait_erased(1)
    assert page.page.evaluate("sessionStorage.getItem('cleanplate.key')") == "open sesame"
    assert page.page.evaluate("localStorage.length") == 0


def test_a_click_selects_an_object(page: PageDriver) -> None:
    page.press("s")
    with page.page.expect_response("**/v1/segment") as waiting:
        page.stroke([(0.3, 0.58), (0.44, 0.88)])
    assert waiting.value.status == 200
    page.wait_status("Selected")
    mask = page.mask()
    assert 0 < (mask > 0).mean() < 0.2


def test_a_file_that_is_no_picture_is_refused(page: PageDriver) -> None:
    page.page.set_input_files("#photo-file", {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    page.wait_status("cannot show notes.jpg")
    assert page.page.locator("#file-name").text_content() == "barn.png"  # what was open stays open
