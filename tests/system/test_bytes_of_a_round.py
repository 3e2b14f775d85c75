"""What a round costs besides the payloads, on a real broker, by the gateways' own count of their socket's bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_broker_config.run import LocalBroker
from fedmq_protocol.topics import Channel, Direction, topic
from processes import FEDERATION, Site, small_fleet

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ROUNDS = 10
SLACK = 2


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_round_costs_few_bytes_besides_the_payloads(tmp_path: Path, mosquitto: LocalBroker, protocol: str) -> None:
    """From one update to the next: an update, the plan with its acknowledgement, and whatever else may have passed."""
    with Site(
        tmp_path, small_fleet(3), port=mosquitto.port, rounds=ROUNDS, gateway={"connection.protocol": protocol}
    ) as site:
        site.start()
        site.wait_for_rest()
        site.finish()

        deltas = {version.number: len(version.delta) for version in site.ledger.versions(site.training()[0].lineage)}
        plan_topic = topic(FEDERATION, Direction.DOWN, Channel.PLAN)
        # Plan: header 3, length and text of its topic, packet id, no properties; then 24 of our own and the delta.
        down_most = 2 + 2 + len(plan_topic) + 2 + 24 + (6 if protocol == "5" else 0)
        for name in site.names:
            # Update: header 2, no topic but its number; then 17 of our own, 8 of scores on held-out windows, 2 of CPU
            # time and of what TCP/IP has added, 3 of battery and link, and the payload. And the plan's PUBACK.
            answer_topic = topic(FEDERATION, Direction.UP, Channel.ANSWER, name)
            up_most = 4 + 2 + 30 + (2 + 4 if protocol == "5" else 2 + len(answer_topic))
            updates = site.answers_of(name)
            assert len(updates) == ROUNDS
            # The first update of a connection carries topic and number. The mean, for an acknowledgement may be counted
            # in this round or the next.
            first, *others = updates[1:]
            plans = [site.ledger.round(update.round) for update in others]
            payloads = sum(update.payload_bytes for update in updates[1:-1])
            up = (others[-1].sent - first.sent - payloads) / len(others)
            brought = sum(deltas[plan.base] for plan in plans if plan is not None)
            down = (others[-1].received - first.received - brought) / len(others)
            assert {update.nonce for update in updates} == {first.nonce}
            assert up_most - SLACK <= up <= up_most + SLACK, f"{name}: {up} B up, {up_most} B expected"
            assert down_most - SLACK <= down <= down_most + SLACK, f"{name}: {down} B down, {down_most} B expected"
