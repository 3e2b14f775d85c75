"""`fedmq report`: which part, at which price, and in which form."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from ledgers import write_plant

from fedmq.cli import main


@pytest.fixture
def state(tmp_path: Path) -> Path:
    ledger = write_plant(tmp_path / "ledger.sqlite")
    for place, gateway in enumerate(ledger.gateways()):
        ledger.save_gateway(replace(gateway, tags="site:north" if place < 3 else "site:south"))
    ledger.commit()
    ledger.close()
    return tmp_path


def report(state: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["report", "--state", str(state), *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_span_a_site_and_a_price_are_taken_from_the_command_line(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--since", "2025-10-09T09:00", "--until", "2025-10-10", "--site", "north", "--json")
    status, out, _ = report(state, capsys, *words, "--price-per-gb", "4.5", "--currency", "CHF")
    assert status == 0
    found = json.loads(out)
    assert found["view"]["sites"] == ["north"]
    assert [group["name"] for group in found["groups"]] == ["north"]
    assert 0 < len(found["rounds"]) < 40
    assert found["price"] == {"per_gb": 4.5, "currency": "CHF"}
    assert found["savings"]["money"] == pytest.approx(found["savings"]["bytes"] / 1e9 * 4.5)


def test_a_span_that_lies_before_everything_says_that_there_was_no_round(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = report(state, capsys, "--until", "2020-01-01")
    assert status == 0
    assert "No round was opened until 2020-01-01 UTC." in out


def test_csv_by_site_is_a_line_a_site(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = report(state, capsys, "--by", "site", "--csv")
    assert status == 0
    assert [line["site"] for line in csv.DictReader(io.StringIO(out))] == ["north", "south"]


def test_the_page_of_a_week_is_written(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = state / "week.html"
    status, out, err = report(state, capsys, "--since", "2025-10-09", "--html", str(page))
    assert (status, out) == (0, "")
    assert str(page) in err
    assert "only since 2025-10-09 UTC" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--since", "soon"), "--since: expected 90m, 36h, 7d or 2w, or a date"),
        (("--since", "2025-10-10", "--until", "2025-10-09"), "a beginning before the end"),
        (("--site", "west"), "no site 'west' in the ledger; there is 'north', 'south'"),
        (("--gateway", "bay9"), "no gateway 'bay9' in the ledger"),
        (("--price-per-gb", "-1"), "price per GB: expected a number from 0"),
        (("--price-per-gb", "nan"), "price per GB: expected a number from 0"),
        (("--currency", "euros"), "currency: expected three capital letters such as EUR, got 'euros'"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    state: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    status, out, err = report(state, capsys, *words)
    assert (status, out) == (1, "")
    assert told in err
    assert len(err.splitlines()) == 1
