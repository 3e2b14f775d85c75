"""A real browser: Debian's chromium, by playwright's Python package. Neither is fetched here.

    with browser() as chromium:
        with visit(chromium, "http://127.0.0.1:8080/") as seen:
            seen.page.get_by_role("searchbox").fill("pump")
        # nothing went wrong in it, and nothing was asked of anybody else

A page's own policy lets nothing be evaluated, so `wait_for_function` cannot be used: wait for elements.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page

READY = "html[data-ready=true]"
PATIENCE_MS = 20_000


def missing() -> str:
    """Why there can be no browser; empty where there can."""
    if importlib.util.find_spec("playwright") is None:
        return "needs playwright: pip install 'fedmq[dev]'"
    if shutil.which("chromium") is None:
        return "needs chromium: apt-get install chromium"
    return ""


@contextmanager
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root has no sandbox of chromium's, and containers often none at all; what is opened is our own page.
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield chromium
        finally:
            chromium.close()


@dataclass(kw_only=True)
class Seen:
    """A page, and what it said and asked for."""

    page: Page
    devtools: CDPSession
    host: str
    faults: list[str] = field(default_factory=list)
    abroad: list[str] = field(default_factory=list)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector(READY, state="attached", timeout=PATIENCE_MS)

    def figures(self) -> dict[str, float]:
        """chromium's own counts of what a page cost: seconds of scripts, of layout, and others."""
        told = self.devtools.send("Performance.getMetrics")
        return {one["name"]: float(one["value"]) for one in told["metrics"]}


@contextmanager
def visit(chromium: Browser, url: str, *, faultless: bool = True, ready: bool = True, **context: Any) -> Iterator[Seen]:
    """A page of its own profile. Fails at its end where anything went wrong in it, or where it asked another host."""
    opened = chromium.new_context(**context)
    page = opened.new_page()
    seen = Seen(page=page, devtools=opened.new_cdp_session(page), host=urlsplit(url).netloc)
    # Before the page: it counts from here on.
    seen.devtools.send("Performance.enable")
    page.on("console", lambda said: seen.faults.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.faults.append(str(error)))
    page.on("request", lambda asked: None if _own(asked.url, seen.host) else seen.abroad.append(asked.url))
    try:
        page.goto(url)
        if ready:
            seen.ready()
        yield seen
    finally:
        opened.close()
    assert not seen.abroad, f"the page asked others: {seen.abroad}"
    assert not faultless or not seen.faults, f"faults in the page: {seen.faults}"


def _own(url: str, host: str) -> bool:
    return urlsplit(url).netloc == host
