"""What a SIM card is billed, by the gateways' own word and counted on a cable: over TLS, with pings and a reconnect."""

from __future__ import annotations

import pytest
from cabled import Measured, measure
from fedmq_broker_config.run import LocalBroker
from veth import missing

pytestmark = [pytest.mark.broker, pytest.mark.slow]

TOLD_OFF_PCT = 2.0
"""What is on its way as the last word is said, that word itself, and how many segments end a connection."""


def measured(mosquitto: LocalBroker, **story: object) -> Measured:
    del mosquitto  # only to skip where there is none
    if why := missing():
        pytest.skip(why)
    return measure(**story)  # type: ignore[arg-type]


def test_gateways_tell_what_passes_with_pings_and_a_reconnect(mosquitto: LocalBroker) -> None:
    found = measured(mosquitto, story="", rounds=5, idle_seconds=12.0, reconnects=1)

    assert found.told_pct == 100
    assert abs(found.told_off_pct) <= TOLD_OFF_PCT, found
    # Pings and reconnects are what an estimate cannot know.
    assert found.estimated < found.counted
    assert found.cpu_seconds is not None
    assert found.cpu_seconds > 0
