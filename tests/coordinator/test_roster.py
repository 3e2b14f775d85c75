"""The roster: the newest start of a gateway is the one on record, whatever comes late of an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.roster import Roster
from fedmq_protocol.messages import Birth, Decline, Leave
from fedmq_protocol.reasons import Reason
from fedmq_protocol.task import Windowing

OLD, NEW = b"old start", b"new start"


def birth(nonce: bytes, *, sent: int, windows: int) -> Birth:
    return Birth(
        nonce=nonce[:8],
        software="test",
        engines=("numpy",),
        signal_samples={"normal": 1024 * windows},
        sent=sent,
        received=0,
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
