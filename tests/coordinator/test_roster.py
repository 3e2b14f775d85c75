"""The roster: the newest start of a gateway is the one on record, whatever comes late of an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.roster import Roster
from fedmq_coordinator.vitals import LastVitals, battery_text, link_text, vitals_of, vitals_of_fleet
from fedmq_protocol.messages import Birth, Decline, Leave
from fedmq_protocol.reasons import Reason
from fedmq_protocol.task import Windowing
from fedmq_protocol.vitals import ToldVitals

OLD, NEW = b"old start", b"new start"


def birth(nonce: bytes, *, sent: int, windows: int, vitals: int | None = None) -> Birth:
    return Birth(
        nonce=nonce[:8],
        software="test",
        engines=("numpy",),
        signal_samples={"normal": 1024 * windows},
        sent=sent,
        received=0,
        vitals=vitals,
    )


@pytest.mark.parametrize("restarted", [False, True])
def test_a_birth_of_an_earlier_start_that_comes_late_does_not_replace_the_newer_one(
    restarted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(Path(":memory:"))
    roster = Roster(ledger, windowing=Windowing())
    roster.born("g", birth(OLD, sent=100, windows=5), 1.0)
    newer = roster.born("g", birth(NEW, sent=10, windows=7), 2.0)
    if restarted:
        roster = Roster(ledger, windowing=Windowing())
    assert roster.born("g", birth(OLD, sent=120, windows=5), 3.0) == newer
    assert roster.get("g") == newer
    assert "two gateways have this name" in caplog.text
    assert roster.heard("g", Decline(round_id=1, reason=Reason.CPU, sent=50, received=0), 4.0) == NEW[:8]
    roster.left("g", Leave(nonce=NEW[:8], clean=True, sent=60, received=0), 5.0)
    gateway = roster.get("g")
    assert gateway is not None
    assert not gateway.present
    assert {wire.nonce: wire.sent for wire in ledger.wires()} == {OLD[:8]: 120, NEW[:8]: 60}
    ledger.close()


FULL, EMPTY = ToldVitals(battery_pct=90, link="wifi"), ToldVitals(battery_pct=7, link="wifi")


def decline(sent: int, vitals: int | None) -> Decline:
    return Decline(round_id=1, reason=Reason.BATTERY, sent=sent, received=0, vitals=vitals)


def test_of_battery_and_link_the_latest_word_is_on_record_with_its_time() -> None:
    ledger = Ledger(Path(":memory:"))
    roster = Roster(ledger, windowing=Windowing())
    assert vitals_of_fleet(ledger) == {}
    roster.born("g", birth(OLD, sent=100, windows=5, vitals=FULL.code), 1.0)
    roster.born("h", birth(b"another!", sent=100, windows=5), 1.0)
    last = vitals_of(ledger, "g")
    assert last is not None
    assert (last.told, last.at, last.low) == (FULL, 1.0, False)
    roster.heard("g", decline(150, EMPTY.code), 2.0)
    # A coordinator that starts hears the birth again that the broker keeps: it is older than the answer.
    roster = Roster(ledger, windowing=Windowing())
    roster.born("g", birth(OLD, sent=100, windows=5, vitals=FULL.code), 3.0)
    last = vitals_of(ledger, "g")
    assert last is not None
    assert (last.told, last.at, last.low) == (EMPTY, 2.0, True)
    assert vitals_of_fleet(ledger) == {"g": last}, "the other one does not tell"
    roster.born("g", birth(NEW, sent=10, windows=5, vitals=FULL.code), 4.0)
    roster.born("g", birth(OLD, sent=500, windows=5, vitals=EMPTY.code), 5.0)
    last = vitals_of(ledger, "g")
    assert last is not None
    assert (last.told, last.at) == (FULL, 4.0), "an earlier start has no say"
    ledger.close()


def test_of_a_gateway_that_tells_no_more_nothing_is_kept() -> None:
    ledger = Ledger(Path(":memory:"))
    roster = Roster(ledger, windowing=Windowing())
    roster.born("g", birth(OLD, sent=100, windows=5, vitals=EMPTY.code), 1.0)
    roster.born("g", birth(NEW, sent=10, windows=5), 2.0)
    roster.heard("g", decline(20, None), 3.0)
    assert vitals_of(ledger, "g") is None
    ledger.close()


def test_what_other_software_wrote_there_is_taken_as_not_told() -> None:
    ledger = Ledger(Path(":memory:"))
    for stored in (b"", b"{}", b"\xff", b'{"at": "soon", "nonce": "", "sent": 1, "told": {}}'):
        ledger.put("vitals of g", stored)
        assert vitals_of(ledger, "g") is None
        assert vitals_of_fleet(ledger) == {}
    ledger.close()


@pytest.mark.parametrize(
    ("told", "battery", "link", "low"),
    [
        (None, None, None, False),
        (ToldVitals(), "", "", False),
        (ToldVitals(on_mains=True, link="ethernet", metered=False), "mains", "ethernet", False),
        (ToldVitals(on_mains=False, metered=True), "not on mains", "metered", False),
        (
            ToldVitals(battery_pct=80, on_mains=True, link="wifi", metered=True),
            "80 %, on mains",
            "wifi, metered",
            False,
        ),
        (ToldVitals(battery_pct=20, on_mains=False, link="wifi"), "20 %", "wifi", False),
        (ToldVitals(battery_pct=19, link="wifi"), "19 %", "wifi", True),
        (ToldVitals(battery_pct=5, on_mains=True), "5 %, on mains", "", False),
    ],
)
def test_battery_and_link_in_words(told: ToldVitals | None, battery: str | None, link: str | None, low: bool) -> None:
    last = None if told is None else LastVitals(at=1.0, nonce=OLD, sent=1, told=told)
    assert (battery_text(last), link_text(last), last is not None and last.low) == (battery, link, low)
