"""What can be seen from outside of a gateway that was started anew: a note of its welcome."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_broker_config.run import LocalBroker
from processes import Site, small_fleet

from fedmq import __version__, welcome

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def test_each_start_of_a_gateway_is_welcomed_under_another_number(tmp_path: Path, mosquitto: LocalBroker) -> None:
    fleet = small_fleet()
    name = fleet.gateways[0].name
    with Site(tmp_path, fleet, port=mosquitto.port, rounds=1_000) as site:
        site.start()
        site.wait(lambda ledger: site.training("applied"), "a round")
        notes = {path.parent: welcome.read(path.parent) for path in tmp_path.rglob(welcome.WELCOME)}
        assert len(notes) == len(fleet.gateways)
        assert {note.software for note in notes.values() if note is not None} == {f"fedmq {__version__}"}
        before = set(notes.values())
        site.kill(name)
        site.start_gateway(name)
        site.poll(
            lambda: sum(welcome.read(where) not in before for where in notes) == 1, "its welcome after the new start"
        )
        site.finish()
