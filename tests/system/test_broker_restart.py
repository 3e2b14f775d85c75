"""The broker dies in the middle of a run and comes back on the same port, having forgotten everything."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_broker_config.run import LocalBroker
from processes import Site, cwru_fleet, small_fleet

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def connections(site: Site) -> dict[str, int]:
    """How often each program was let in by a broker so far."""
    return {name: program.text().count("connected with MQTT") for name, program in site.programs.items()}


def wait_for_rounds(site: Site, count: int) -> None:
    site.wait(lambda ledger: len(site.training("applied")) >= count, f"{count} rounds")


def all_answered_since(site: Site, round_id: int) -> bool:
    """Whether a round opened after this one was answered by every gateway: each heard its plan."""
    late = [answer for answer in site.ledger.answers() if answer.round > round_id and answer.verdict == "accepted"]
    return {answer.gateway for answer in late} == set(site.names)


def test_everyone_is_back_after_the_broker_was_killed_and_after_it_was_restarted_in_order(
    tmp_path: Path, mosquitto: LocalBroker
) -> None:
    with Site(
        tmp_path, small_fleet(), port=mosquitto.port, rounds=12, round_={"interval_seconds": 0.4, "closing_seconds": 5}
    ) as site:
        site.start()
        wait_for_rounds(site, 2)
        mosquitto.kill()
        for program in site.programs.values():
            site.wait_for_log(program, "trying again in" if program is not site.coordinator else "127.0.0.1:")
        before = connections(site)
        newest = site.training()[-1].id
        mosquitto.start()
        site.wait(lambda ledger: all_answered_since(site, newest), "answers of everyone after the kill")
        assert all(now > before[name] for name, now in connections(site).items())

        before = connections(site)
        mosquitto.restart()
        newest = site.training()[-1].id
        site.wait(lambda ledger: all_answered_since(site, newest), "answers of everyone after the restart")
        assert all(now > before[name] for name, now in connections(site).items())

        site.wait_for_rest()
        site.finish()
        assert len(site.training("applied")) == 12
        site.assert_one_model_everywhere()


def test_a_run_on_real_recordings_ends_well_although_the_broker_was_killed(
    tmp_path: Path, mosquitto: LocalBroker
) -> None:
    """Metric on a motor load that no gateway has seen; seven gateways that know one fault type or none."""
    with Site(tmp_path, cwru_fleet(), port=mosquitto.port, rounds=40, round_={"interval_seconds": 0.1}) as site:
        site.start()
        wait_for_rounds(site, 12)
        mosquitto.kill()
        for program in site.gateways():
            site.wait_for_log(program, "trying again in")
        mosquitto.start()
        site.wait_for_rest()
        site.finish()
        rounds = site.training("applied")
        assert len(rounds) == 40
        assert rounds[-1].metric_source == "test set"
        assert rounds[-1].metric is not None
        assert rounds[-1].metric >= 0.98
        site.assert_one_model_everywhere()
