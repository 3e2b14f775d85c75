"""Beds for the stories of this folder, and what is kept and told of them.

A module names its machines in `MACHINES`; its tests share one bed, in their order. The plain suite skips all of it:
scripts/test-fleet sets FEDMQ_FLEET=1.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleetbed import Bed, Spec, why_not

HERE = Path(__file__).parent
_times: list[tuple[str, str, float]] = []


def pytest_configure() -> None:
    if os.environ.get("FEDMQ_FLEET") == "1":
        # Told to end, a run takes its machines down first.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    if not ours:
        return
    reason = why_not() if os.environ.get("FEDMQ_FLEET") == "1" else "boots machines: run scripts/test-fleet"
    for item in ours:
        item.add_marker(pytest.mark.fleet)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    """The module's machines, booted; gone when its last test is through."""
    module = request.module
    with Bed([spec if isinstance(spec, Spec) else Spec(spec) for spec in module.MACHINES]) as bed:
        try:
            yield bed
        finally:
            _times.extend((module.__name__.rpartition(".")[2], what, seconds) for what, seconds in bed.times)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    bed = getattr(item, "funcargs", {}).get("bed")
    if report.failed and bed is not None:
        report.sections.append(("journals", str(bed.save_journals(f"{item.path.stem}-{item.name}"))))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _times:
        terminalreporter.section("times on the bed")
        for story, what, seconds in _times:
            terminalreporter.write_line(f"{story:<28} {what:<52} {seconds:8.1f} s")
