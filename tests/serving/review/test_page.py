"""The page in a real browser: every key counts once, whatever happens to network, server and page."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from serving.review.store import Store, open_store
from tests.serving.browser import open_browser, open_page
from tests.serving.review.support import SECONDS, DeskProcess, open_desk, scored, write_dataset

KEYS = {"a": "accepted", "ArrowRight": "accepted", "x": "rejected", "ArrowLeft": "rejected", " ": "unsure"}


def wait(page: Any, expression: str) -> Any:
    """Until a JavaScript expression holds. (playwright's own way needs eval, which the page's policy forbids.)"""
    deadline = time.monotonic() + SECONDS
    while True:
        value = page.evaluate(expression)
        if value:
            return value
        if time.monotonic() > deadline:
            told = page.evaluate("[document.getElementById('note').textContent, document.getElementById('sync').textContent]")
            raise AssertionError(f"waited for {expression}; the page says {told}")
        page.wait_for_timeout(50)


def visit(page: Any, desk: DeskProcess, name: str) -> None:
    page.on("pageerror", lambda error: pytest.fail(f"the page raised {error}"))
    page.goto(desk.info["links"][name])
    wait(page, "Boolean(window.desk?.shown)")


def press(page: Any, key: str) -> str:
    """Decide with a key, and wait for the next picture (or the end); returns the item that was before the eyes."""
    item = wait(page, "desk.shown?.id")
    count = page.evaluate("desk.history.length")
    page.keyboard.press(key)
    assert page.evaluate("desk.history.length") == count + 1
    wait(page, "Boolean(desk.shown) || desk.left === 0")
    return str(item)


def saved(page: Any) -> None:
    wait(page, "desk.outbox.waiting.length === 0 && document.getElementById('sync').dataset.state === 'saved'")


def log_of(store: Store) -> list[dict[str, Any]]:
    return list(store.log("review"))


def test_fifty_decisions_through_undo_reload_and_a_killed_server(tmp_path: Path) -> None:
    """One person: 50 items, undo, a reason, a reload in mid-way, the server killed with decisions on their way and started again."""
    dataset = write_dataset(tmp_path / "data", scored(50))
    flags = ("--annotators", "ann", "--repeats", "0", "--overlap", "0")
    keys = ["a", "x", "ArrowRight", " ", "ArrowLeft"] * 10
    expected: list[tuple[str, str]] = []
    with open_desk(dataset, tmp_path / "log", *flags) as desk, open_browser() as browser, open_page(browser) as page:
        visit(page, desk, "ann")
        assert "key=" not in page.url, "the key stays out of the address, and of the history"
        for key in keys[:10]:
            expected.append((press(page, key), KEYS[key]))
        # the last one, a rejection, gets a reason; then it is taken back, and decided otherwise
        page.keyboard.press("3")
        page.keyboard.press("3")
        item = expected[-1][0]
        page.keyboard.press("u")
        assert wait(page, "desk.shown?.id") == item
        assert press(page, "a") == item
        expected[-1] = (item, "accepted")
        for key in keys[10:20]:
            expected.append((press(page, key), KEYS[key]))
        saved(page)

        page.reload()
        wait(page, "Boolean(window.desk?.shown)")
        assert page.evaluate("desk.shown.id") not in {name for name, _ in expected}
        page.keyboard.press("Backspace")  # undo outlives the reload
        assert wait(page, "desk.shown?.id") == expected[-1][0]
        expected[-1] = (press(page, "x"), "rejected")

        saved(page)

        # what is decoded ahead can be judged while the server is dead
        wait(page, "desk.ahead.length > 8 && desk.ahead.slice(0, 8).every((item) => desk.pictures.known.get(item.id)?.made)")
        desk.kill()
        for key in keys[20:27]:
            expected.append((press(page, key), KEYS[key]))
        wait(page, "document.getElementById('sync').dataset.state === 'waiting'")
        assert page.evaluate("desk.outbox.waiting.length") == 7
        desk.start()
        for key in keys[27:]:
            expected.append((press(page, key), KEYS[key]))
        saved(page)
        wait(page, "document.getElementById('note').textContent.includes('Nothing is left')")
        assert page.evaluate("document.getElementById('count').textContent") == "50 of 50"
        latencies = page.evaluate("desk.latencies")
        assert len(latencies) >= 30
        assert all(entry["drawn"] >= 0 for entry in latencies)
        assert desk.stop() == 130
    store = open_store(f"sqlite:///{dataset}/.cleanplate/review.sqlite")
    rows = log_of(store)
    store.close()
    assert len({row["id"] for row in rows}) == len(rows), "nothing is in the log twice"
    assert Counter(row["kind"] for row in rows) == {"verdict": 52, "undo": 2, "reason": 1}
    undone = {row["about"] for row in rows if row["kind"] == "undo"}
    left = [(row["item"], row["verdict"]) for row in rows if row["kind"] == "verdict" and row["id"] not in undone]
    assert Counter(left) == Counter(expected), "every decision is there, once, as it was made"
    assert len({item for item, _ in left}) == 50
    assert {row["reason"] for row in rows if row["kind"] == "reason"} == {"shadow_left"}
    assert all(row["picture"] and row["milliseconds"] is not None and row["annotator"] == "ann" for row in rows if row["kind"] == "verdict")


def test_two_annotators_at_once_never_get_the_same_item(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", scored(30))
    flags = ("--annotators", "ann,ben", "--overlap", "0", "--repeats", "0")
    with open_desk(dataset, tmp_path / "log", *flags) as desk, open_browser() as browser:
        with open_page(browser) as ann, open_page(browser) as ben:
            visit(ann, desk, "ann")
            visit(ben, desk, "ben")
            done: dict[str, list[str]] = {"ann": [], "ben": []}
            for _ in range(13):
                done["ann"].append(press(ann, "a"))
                done["ben"].append(press(ben, "x"))
            saved(ann)
            saved(ben)
            stranger = ben.request.get(
                f"{desk.info['url'].replace('/review', '')}/v1/review/me", headers={"authorization": "Bearer ann.no"}
            )
            assert stranger.status == 401
    assert not set(done["ann"]) & set(done["ben"])
    store = open_store(f"sqlite:///{dataset}/.cleanplate/review.sqlite")
    assert {(row["item"], row["annotator"], row["verdict"]) for row in log_of(store)} == {
        *((item, "ann", "accepted") for item in done["ann"]),
        *((item, "ben", "rejected") for item in done["ben"]),
    }
    store.close()


def test_the_grid_starts_from_the_discriminators_opinion(tmp_path: Path) -> None:
    """A click turns one over, Enter saves the page, undo brings the page back; zoom, outline and blink change the picture."""
    dataset = write_dataset(tmp_path / "data", scored(40, width=480, height=320))
    with open_desk(dataset, tmp_path / "log", "--annotators", "ann", "--random", "0", "--overlap", "0") as desk, open_browser() as browser:
        with open_page(browser, viewport={"width": 1200, "height": 800}) as page:
            visit(page, desk, "ann")
            pixels = "document.getElementById('canvas').getContext('2d').getImageData(0, 0, 1200, 600).data"
            look = f"[...{pixels}].reduce((sum, value) => (sum * 31 + value) % 1e9)"
            seen = [page.evaluate(look)]
            page.keyboard.down("b")
            seen.append(page.evaluate(look))
            assert page.locator("#tag").text_content() == "Before"
            page.keyboard.up("b")
            assert page.evaluate(look) == seen[0]
            page.keyboard.press("m")
            seen.append(page.evaluate(look))
            page.keyboard.press("m")
            page.keyboard.press("z")
            wait(page, "desk.stage.rect.width === desk.stage.made.size.width")
            seen.append(page.evaluate(look))
            assert len(set(seen)) == len(seen)
            page.keyboard.press("?")
            assert page.locator("#sheet").is_visible()
            page.keyboard.press("Escape")

            page.keyboard.press("g")
            wait(page, "desk.inGrid && desk.grid.ready")
            tiles = page.evaluate("desk.grid.items.map(({ item, verdict }) => [item.id, verdict])")
            scores = {row["id"]: row["score"] for row in scored(40)}
            assert len(tiles) == sum(score > 0.9 or score < 0.1 for score in scores.values()) == 8
            assert all((verdict == "accepted") == (scores[item] > 0.5) for item, verdict in tiles)
            page.locator(".tile").nth(2).click()
            page.keyboard.press("Enter")
            saved(page)
            wait(page, "document.getElementById('note').textContent.includes('nothing of which')")
            page.keyboard.press("u")
            wait(page, "desk.grid.items.length === 8 && desk.grid.ready")
            flipped = page.evaluate("desk.grid.items[2].verdict")
            assert flipped != tiles[2][1]
            page.keyboard.press("Enter")
            saved(page)
            page.keyboard.press("g")
            wait(page, "Boolean(desk.shown)")
            assert page.evaluate("desk.shown.id") not in scores or abs(scores[page.evaluate("desk.shown.id")] - 0.5) <= 0.4
    store = open_store(f"sqlite:///{dataset}/.cleanplate/review.sqlite")
    labels = {label.id: label.verdict for label in store.labels("review")}
    rows = log_of(store)
    store.close()
    assert labels == {item: verdict if number != 2 else flipped for number, (item, verdict) in enumerate(tiles)}
    assert Counter(row["kind"] for row in rows) == {"verdict": 16, "undo": 8}
    assert {row["mode"] for row in rows if row["kind"] == "verdict"} == {"grid"}
