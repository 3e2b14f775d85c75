"""The state of things in an ssh window: what is going on, what needs somebody, in lines that fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from fedmq_coordinator.ledger import Flag, Ledger
from fedmq_coordinator.roster import SENSORS_OF
from fedmq_coordinator.status_text import LEAST_WIDTH, status
from fedmq_protocol.messages import SensorHealth
from hypothesis import given
from hypothesis import strategies as st
from ledgers import START, a_decline, a_gateway, a_round, a_wire, tell, write_plant

OPENED = START + 39 * 62.0
"""When the plant's last round opened."""
CODE = re.compile(r"\x1b\[\d+m")


@pytest.fixture
def plant(tmp_path: Path) -> Ledger:
    return write_plant(tmp_path / "ledger.sqlite")


def folded(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [LEAST_WIDTH, 80, 132])
def test_lines_fit_the_window(plant: Ledger, width: int) -> None:
    plant.save_gateway(replace(plant.gateways()[0], name="g" * 63, roster=9))
    plant.save_wire(a_wire("g" * 63, 10, 10))
    plant.commit()
    text = status(plant, OPENED + 20, width)
    assert max(map(len, text.splitlines())) <= width
    assert all(c.isprintable() or c == "\n" for c in text)


def test_a_window_that_is_too_small_gets_the_least() -> None:
    ledger = Ledger(Path(":memory:"))
    assert status(ledger, START, 10) == status(ledger, START, LEAST_WIDTH)


def test_the_round_the_missing_and_the_absent_are_named(plant: Ledger) -> None:
    text = status(plant, OPENED + 20)
    assert "39 (training) in progress" in text
    assert "closes in 40 s" in text
    assert "4 of 7 drawn: 4 accepted, 0 declined" in text
    assert re.search(r"missing +bay3-conveyor, bay3-mixer, boiler-feed", text)
    assert "version 38" in text
    assert "macro-F1 0.991" in text
    assert "6 present, 1 absent" in text
    assert re.search(r"bay3-mixer +ABSENT +4 min ago", text)


def test_savings_are_told_whichever_way_they_went(plant: Ledger) -> None:
    assert "192 times fewer than dense float32, 96.5 times fewer than the raw signal" in folded(status(plant, OPENED))
    plant.save_wire(a_wire("bay1-press", 10**9, 10**9))
    plant.commit()
    assert re.search(r"[\d.]+ times more than dense float32", folded(status(plant, OPENED)))


def test_the_last_rounds_stand_newest_first(plant: Ledger) -> None:
    rows = [line for line in status(plant, OPENED + 20).splitlines() if re.match(r" +3\d  ", line)]
    assert [int(row.split()[0]) for row in rows] == [39, 38, 37, 36, 35]
    assert "open" in rows[0]
    assert "7 of 7" in rows[1]


def test_an_overdue_round_asks_whether_the_coordinator_runs(plant: Ledger) -> None:
    assert folded(status(plant, OPENED + 3_600)).count("does the coordinator run?") == 2


def attention(text: str) -> list[str]:
    """What stands in the block, folded lines joined."""
    block = text[text.index("attention") :].split("\n\n")[0]
    return [line[10:] for line in block.splitlines()]


def test_nothing_needs_anybody_where_all_is_well(plant: Ledger) -> None:
    assert attention(status(plant, OPENED + 20)) == ["nothing needs anybody"]


def test_who_is_away_for_long_needs_somebody(plant: Ledger) -> None:
    plant.set_presence("bay3-mixer", False, OPENED - 7_200)
    plant.commit()
    assert attention(status(plant, OPENED + 20)) == ["bay3-mixer: absent for 2 h 00 min"]


def test_who_declines_again_and_again_is_named_with_the_reason_until_it_answers(plant: Ledger) -> None:
    book = plant.only
    book.close_round(39, at=OPENED + 30, outcome="applied", version=39)
    for number in (40, 41, 42):
        book.open_round(a_round(number, opened_at=OPENED + number, closed_at=OPENED + number + 1))
        book.save_answer(a_decline(number, "boiler-feed", "battery"))
    plant.commit()
    assert attention(status(plant, OPENED + 100)) == ["boiler-feed: has declined 3 rounds in a row: battery"]
    row = next(line for line in status(plant, OPENED + 100).splitlines() if line.startswith("boiler-feed"))
    assert "round 42: battery" in row


def test_rounds_below_quorum_need_somebody_from_the_second_on(plant: Ledger) -> None:
    plant.only.close_round(39, at=OPENED + 60, outcome="below quorum", version=None)
    plant.commit()
    assert attention(status(plant, OPENED + 70)) == ["nothing needs anybody"]
    plant.only.open_round(a_round(40, opened_at=OPENED + 62, closed_at=OPENED + 100, outcome="below quorum"))
    plant.commit()
    assert attention(status(plant, OPENED + 110))[0] == "the last 2 rounds closed below quorum"


def test_who_is_flagged_comes_first(plant: Ledger) -> None:
    plant.set_presence("bay3-mixer", False, OPENED - 7_200)
    plant.only.save_flag(
        Flag(gateway="bay2-fan", at=OPENED, round=38, state="aside", reason="against", evidence="cosine -0.4")
    )
    plant.commit()
    first, *_ = attention(status(plant, OPENED + 20))
    assert first.startswith("bay2-fan: flagged (points away from the others")
    assert "set aside" in first


def test_a_fleet_where_much_is_amiss_does_not_fill_the_window(plant: Ledger) -> None:
    for place in range(7, 90):
        plant.save_gateway(a_gateway(f"g{place}", place, present=False, last_seen=OPENED - 10_000 + place))
    plant.commit()
    text = status(plant, OPENED + 20)
    assert len(attention(text)) == 13
    assert "more; --json has everything" in text
    assert len(text.splitlines()) < 60
    assert "70 more: absent ones are named first" in text


def test_sensors_that_are_not_well_are_named_as_their_gateways_told_last(plant: Ledger) -> None:
    well = SensorHealth(name="ventilator", rate_pct=100, silent_seconds=2)
    assert "sensors" not in status(plant, OPENED)
    plant.put(SENSORS_OF + "bay3-mixer", msgspec.json.encode((well,)))
    plant.commit()
    assert re.search(r"sensors +as last told, all well", status(plant, OPENED))
    dead = SensorHealth(name="\x1b[2Jmotor", rate_pct=0, silent_seconds=4_000)
    worn = SensorHealth(name="pump", rate_pct=80, silent_seconds=1, clipping=True, flat=True)
    plant.put(SENSORS_OF + "bay3-conveyor", msgspec.json.encode((well, dead, worn)))
    plant.commit()

    text = folded(status(plant, OPENED))

    assert "bay3-conveyor: sensors:" in text
    assert "motor silent for 4,000 s, at 0 % of its rate; pump at 80 % of its rate, clipping, flat" in text
    assert "amiss on 1 gateway" in text
    assert "ventilator" not in text
    assert "\x1b" not in text


def test_batteries_that_are_low_are_named_the_lowest_first(plant: Ledger) -> None:
    tell(plant, "bay1-press", battery_pct=20)
    tell(plant, "bay2-fan", battery_pct=5, on_mains=True)
    plant.commit()
    assert "battery:" not in status(plant, OPENED)
    tell(plant, "bay3-mixer", battery_pct=19, on_mains=False)
    tell(plant, "bay3-conveyor", battery_pct=4)
    plant.commit()
    text = folded(status(plant, OPENED))
    assert "2 gateways below 20 % battery: bay3-conveyor (4 %), bay3-mixer (19 %)" in text


def test_colours_only_repeat_what_the_words_say(plant: Ledger) -> None:
    plain, shaded = status(plant, OPENED + 3_600), status(plant, OPENED + 3_600, colour=True)
    assert "\x1b" not in plain
    assert CODE.search(shaded)
    assert CODE.sub("", shaded) == plain
    assert shaded.count("\x1b[0m") == len(CODE.findall(shaded)) / 2, "each is ended"


@given(st.text(max_size=80))
def test_nothing_that_came_from_elsewhere_moves_the_cursor(text: str) -> None:
    ledger = Ledger(Path(":memory:"))
    book = ledger.book("bearings")
    book.open_round(a_round(1, closed_at=None, outcome="open"))
    book.save_answer(a_decline(1, "a", text))
    ledger.save_gateway(a_gateway("a", 0, software=text, tags=text))
    ledger.put(
        SENSORS_OF + "a", msgspec.json.encode((SensorHealth(name=text[:16] or "s", rate_pct=0, silent_seconds=999),))
    )
    ledger.commit()
    shown = status(ledger, START)
    assert all(c.isprintable() or c == "\n" for c in shown)
    ledger.close()
