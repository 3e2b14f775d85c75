"""What a gateway costs while there is nothing to do, and the memory it needs when there is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from counting_proxy import CountingProxy
from fedmq_broker_config.run import LocalBroker
from processes import Site, small_fleet

pytestmark = [pytest.mark.broker, pytest.mark.slow]

KEEPALIVE_SECONDS = 5
PERIODS = 2
DAY_SECONDS = 86_400


def test_an_idle_gateway_sends_little_and_a_gateway_is_small(tmp_path: Path, mosquitto: LocalBroker) -> None:
    """Bytes of whole keepalive periods, both ways, as a proxy before the broker sees them. A period at the usual 60 s
    has the same packets in it as one at 5 s, so a day has 1,440 times those of one period."""
    fleet = small_fleet(2)
    idle = fleet.gateways[0].name
    with (
        CountingProxy("127.0.0.1", mosquitto.port) as proxy,
        Site(
            tmp_path,
            fleet,
            port=mosquitto.port,
            rounds=10,
            gateway={"connection.keepalive_seconds": KEEPALIVE_SECONDS},
            port_of={idle: proxy.port},
        ) as site,
    ):
        site.start()
        site.wait_for_rest()
        # The acknowledgement of the last delta may still be on its way.
        time.sleep(0.5)
        before = proxy.bytes_up + proxy.bytes_down
        # One second more than the periods: a ping that is due at the end shall be in it.
        time.sleep(PERIODS * KEEPALIVE_SECONDS + 1.0)
        measured = proxy.bytes_up + proxy.bytes_down - before
        assert measured > 0, "not even a ping in two keepalive periods: nothing was measured"
        a_day = measured / PERIODS * DAY_SECONDS / 60
        assert a_day < 50_000, f"{measured} B in {PERIODS} keepalive periods: {a_day:,.0f} B a day"
        assert proxy.connections == 1, "it was not idle, it came back"

        for program in site.gateways():
            assert program.memory_bytes("VmHWM") < 60_000_000, program.name
        site.finish()
