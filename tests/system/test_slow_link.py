"""A gateway behind 2 kB/s with one segment in five lost, and a link that breaks: transfers go on where they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_broker_config.run import LocalBroker
from processes import Site, small_fleet
from slow_link import SlowLink

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PARAMETERS = 22 * 96 + 96 + 96 * 4 + 4
UPDATE_BYTES = 4 * PARAMETERS
"""A dense float32 update, and about a delta of the model on the way down."""
CHUNK_BYTES = 2048
ROUNDS = 2


def test_rounds_complete_over_a_poor_link_and_chunks_are_not_sent_anew(tmp_path: Path, mosquitto: LocalBroker) -> None:
    fleet = small_fleet(2)
    far = fleet.gateways[0].name
    # It breaks in the middle of each transfer.
    link = SlowLink(
        "127.0.0.1", mosquitto.port, bytes_per_second=2_000, loss=0.2, cut_after_bytes=UPDATE_BYTES // 2, cuts=4
    )
    with (
        link,
        Site(
            tmp_path,
            fleet,
            port=mosquitto.port,
            rounds=ROUNDS,
            task={"hidden": [96], "codec.kind": "dense"},
            round_={"closing_seconds": 80, "first_gateways": 2, "min_gateways": 2},
            coordinator={"limits.chunk_bytes": CHUNK_BYTES},
            gateway={"chunk_bytes": CHUNK_BYTES},
            port_of={far: link.port},
        ) as site,
    ):
        site.start()
        site.wait_for_rest()
        site.finish()
        assert link.cuts == 4
        assert link.segments_lost > 20
        rounds = site.training("applied")
        assert len(rounds) == ROUNDS
        for row in rounds:
            assert row.closed_at is not None
            assert row.closed_at <= row.closes_at + 1.0
        assert len(site.answers_of(far)) == ROUNDS
        site.assert_one_model_everywhere()
        # One transfer a round each way. What a cut costs is what was in flight: a few chunks, not the whole.
        whole = ROUNDS * UPDATE_BYTES
        lost_at_cuts = link.cuts * 4 * CHUNK_BYTES
        joining = (1 + link.cuts) * 2_000
        assert link.bytes_up < 1.15 * whole + lost_at_cuts + joining
