"""A real browser for tests of pages: Debian's or any other Chromium on the path, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install 'cleanplate[dev]'")

FLAGS: Final = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip
PATIENCE_MS: Final = 120_000
"""How long a test waits for anything: other work may hold all cores."""


def chromium() -> str | None:
    """The path of a Chromium, from ``CLEANPLATE_CHROMIUM`` or the search path; None where there is none."""
    named = os.environ.get("CLEANPLATE_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def open_browser() -> Iterator[sync_api.Browser]:
    """A headless browser, closed at the end; the test is skipped where there is no Chromium. Not for use inside an event loop."""
    path = chromium()
    if path is None:
        pytest.skip("no chromium on the path; install Debian's package chromium, or name one in CLEANPLATE_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS), timeout=PATIENCE_MS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: sync_api.Browser, **context: object) -> Iterator[sync_api.Page]:
    """A page in a context of its own (own storage), with generous deadlines; ``context`` as in ``Browser.new_context``."""
    holder = browser.new_context(**context)
    holder.set_default_timeout(PATIENCE_MS)
    try:
        yield holder.new_page()
    finally:
        holder.close()
