"""A gateway behind 2 kB/s with one segment in five lost, and a link that breaks: transfers go on where they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_broker_config.run import LocalBroker
from fedmq_edge_node.transfers import UPLINK_CHUNK_BYTES
from fedmq_protocol.topics import CHUNK_BYTES
from processes import Site, small_fleet
from slow_link import SlowLink

pytestmark = [pytest.mark.broker, pytest.mark.slow]

HIDDEN = 310
PARAMETERS = 22 * HIDDEN + HIDDEN + HIDDEN * 4 + 4
UPDATE_BYTES = 4 * PARAMETERS
"""A dense float32 update, and about a delta of the model on the way down."""
DOWNLINK_CHUNK_BYTES = 2048
TALK_BYTES = 4_000
"""All that is no chunk, one way: joining three times, the statistics, plans, receipts, questions, acknowledgements."""


def test_rounds_complete_over_a_poor_link_and_chunks_are_not_sent_anew(tmp_path: Path, mosquitto: LocalBroker) -> None:
    assert UPDATE_BYTES > CHUNK_BYTES, "too small to go in chunks"
    fleet = small_fleet(2)
    far = fleet.gateways[0].name
    # It breaks when most of the update is up, and when most of the delta is down.
    most = int(0.8 * UPDATE_BYTES)
    with (
        SlowLink(
            "127.0.0.1", mosquitto.port, bytes_per_second=2_000, loss=0.2, cuts_up=(most,), cuts_down=(most,)
        ) as link,
        Site(
            tmp_path,
            fleet,
            port=mosquitto.port,
            rounds=1,
            task={"hidden": [HIDDEN], "codec.kind": "dense"},
            round_={"closing_seconds": 80, "first_gateways": 2, "min_gateways": 2},
            coordinator={"limits.chunk_bytes": DOWNLINK_CHUNK_BYTES},
            port_of={far: link.port},
        ) as site,
    ):
        site.start()
        site.wait_for_rest()
        site.finish()
        assert link.cuts == 2
        assert link.segments_lost > 20
        (row,) = site.training("applied")
        assert row.closed_at is not None
        assert row.closed_at <= row.closes_at + 1.0
        assert [answer.verdict for answer in site.answers_of(far)] == ["accepted"]
        site.assert_one_model_everywhere()
        # A cut costs what was in flight, a few chunks. To begin anew would cost `most`.
        assert link.bytes_up < UPDATE_BYTES + 2 * UPLINK_CHUNK_BYTES + TALK_BYTES < UPDATE_BYTES + most
        assert link.bytes_down < UPDATE_BYTES + 4 * DOWNLINK_CHUNK_BYTES + TALK_BYTES < UPDATE_BYTES + most
