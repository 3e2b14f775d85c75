"""A gateway that says no: what it says, what that costs it, and where it is counted."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from fedmq_broker_config.run import LocalBroker
from fedmq_protocol.session import publish_packet_bytes
from fedmq_protocol.topics import Channel, Direction, topic
from processes import FEDERATION, Site, fedmq, small_fleet

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ROUNDS = 6


def test_a_gateway_on_a_low_battery_declines_for_few_bytes_and_is_counted(
    tmp_path: Path, mosquitto: LocalBroker
) -> None:
    """What a decline costs: all socket bytes, up and down, that the gateway's own process counted from one decline to
    the next, less the one PUBLISH that brings the plan, which everyone gets whether he takes part or not. So the
    decline, both acknowledgements and whatever else may have passed are all in it."""
    fleet = small_fleet()
    tired = fleet.gateways[2].name
    with Site(
        tmp_path,
        fleet,
        port=mosquitto.port,
        rounds=ROUNDS,
        vitals={tired: {"battery_pct": 15.0, "on_mains": False}},
    ) as site:
        site.start()
        site.wait_for_rest()
        site.finish()

        assert site.answers_of(tired, "update") == []
        assert site.answers_of(tired, "statistics") == []
        declines = site.answers_of(tired, "decline")
        assert [decline.reason for decline in declines] == ["battery"] * (ROUNDS + 1)
        assert len(site.training("applied")) == ROUNDS, "the others went on"

        plan_topic = topic(FEDERATION, Direction.DOWN, Channel.PLAN)
        for earlier, later in pairwise(declines):
            row = site.ledger.round(later.round)
            assert row is not None
            assert later.nonce == earlier.nonce
            plan = publish_packet_bytes(plan_topic, row.plan_bytes, qos=1, mqtt5=True, expires=True)
            up, down = later.sent - earlier.sent, later.received - earlier.received
            assert down >= plan, "the plan itself is missing from the gateway's counters"
            assert 0 < up + down - plan < 200, f"round {later.round}: {up} up and {down} down, the plan {plan}"

        said = fedmq("report", "--state", str(site.state), "--json")
        assert said.returncode == 0, said.stderr
        report = json.loads(said.stdout)
        assert report["declines"] == {"battery": ROUNDS + 1}
        assert [line["declines"] for line in report["rounds"]] == [{"battery": 1}] * (ROUNDS + 1)
        by_name = {line["name"]: line for line in report["gateways"]}
        assert by_name[tired]["declined"] == ROUNDS + 1
        assert by_name[tired]["accepted"] == 0
