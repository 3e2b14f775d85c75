"""The page in a browser: alone, with and without scripts, in the light and in the dark, wide and narrow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fedmq_coordinator.report import build, build_all
from fedmq_coordinator.report_html import to_html
from ledgers import split_plant, write_plant

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    ledger = write_plant(folder / "ledger.sqlite")
    file = folder / "report.html"
    file.write_text(to_html(build(ledger)), encoding="utf-8")
    return file


def test_it_asks_for_nothing_and_draws_its_charts_under_its_own_policy(browser: Any, page_file: Path) -> None:
    page = browser.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_selector("#chart-0-round canvas")
    assert page.locator(".chart canvas").count() == 3
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    page.close()


def test_a_page_of_two_tasks_draws_the_charts_of_each_and_leads_to_them(browser: Any, tmp_path: Path) -> None:
    ledger = write_plant(tmp_path / "ledger.sqlite")
    split_plant(ledger)
    file = tmp_path / "report.html"
    file.write_text(to_html(build_all(ledger)), encoding="utf-8")
    page = browser.new_page(viewport={"width": 360, "height": 800})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("#chart-1-round canvas")
    assert page.locator(".chart canvas").count() == 6
    page.get_by_role("link", name="fans").click()
    assert page.get_by_role("heading", name="Task fans").bounding_box()["y"] < 800
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert said == []
    page.close()


def test_without_scripts_the_sentences_the_chart_and_the_tables_are_there(browser: Any, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".answer p").count() == 3
    assert page.locator(".ways dd span").count() == 3
    assert page.locator(".ways dd span").nth(2).is_visible()
    assert page.locator("table.data tbody tr").count() > 47
    assert not page.locator(".charts").is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(browser: Any, page_file: Path, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.wait_for_selector("#chart-0-round canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What answers the question is on the first screen.
    box = page.locator(".answer p").nth(1).bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 800
    context.close()
