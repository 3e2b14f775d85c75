"""A program that loses its power in the middle of a round, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_broker_config.run import LocalBroker
from fedmq_coordinator.ledger import Ledger
from processes import Site, small_fleet

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def open_without(ledger: Ledger, name: str) -> int | None:
    """Number of an open training round that everyone but this gateway has answered, or None."""
    row = ledger.last_round()
    if row is None or row.kind != "training" or row.closed_at is not None or row.drawn < 4:
        return None
    answered = {answer.gateway for answer in ledger.answers(row.id)}
    return row.id if name not in answered and len(answered) == row.drawn - 1 else None


def test_a_gateway_killed_mid_round_is_not_waited_for_past_closing_time_and_catches_up(
    tmp_path: Path, mosquitto: LocalBroker
) -> None:
    fleet = small_fleet()
    victim = fleet.gateways[1].name
    with Site(
        tmp_path,
        fleet,
        port=mosquitto.port,
        rounds=12,
        round_={"closing_seconds": 4, "interval_seconds": 0.5},
        # It takes its time over every plan, so that there is a middle of the round to be killed in.
        gateway_of={victim: {"answer_jitter_seconds": 2.0}},
    ) as site:
        site.start()
        site.wait(lambda ledger: len(site.training("applied")) >= 2, "two rounds")
        cut_round = 0
        while not cut_round:
            site.wait(lambda ledger: open_without(ledger, victim), "a round that waits for one gateway")
            site.kill(victim)
            row = site.ledger.last_round()
            assert row is not None
            if site.ledger.answer(row.id, victim) is None and row.closed_at is None:
                cut_round = row.id
            else:  # its answer was on its way when it died: that is another story
                site.start_gateway(victim)
        counted_before = len(site.answers_of(victim))

        # At least one round opens and closes without it: that delta it has never heard of.
        site.wait(lambda ledger: (r := ledger.round(cut_round + 1)) and r.closed_at, "a round without the gateway")
        cut = site.ledger.round(cut_round)
        assert cut is not None
        assert cut.closed_at is not None
        assert cut.closed_at >= cut.closes_at, "the round closed before its time, though one answer was missing"
        assert cut.outcome == "applied"
        assert {a.gateway for a in site.ledger.answers(cut_round)} == set(site.names) - {victim}
        # The broker's last will told of it, so the next round did not ask it and did not wait.
        after = site.ledger.round(cut_round + 1)
        assert after is not None
        assert after.drawn == 3

        site.gateway_of = {}
        back = site.start_gateway(victim)
        site.wait(lambda ledger: len(site.answers_of(victim)) >= counted_before + 2, "two more answers of the gateway")
        assert "caught up to version" in back.text()
        assert site.ledger.catch_ups()
        site.wait_for_rest()
        site.finish()
        assert len(site.training("applied")) == 12
        site.assert_one_model_everywhere()


def test_a_coordinator_killed_mid_round_goes_on_with_the_same_round(tmp_path: Path, mosquitto: LocalBroker) -> None:
    fleet = small_fleet()
    slow = fleet.gateways[0].name
    with Site(
        tmp_path,
        fleet,
        port=mosquitto.port,
        rounds=4,
        gateway_of={slow: {"answer_jitter_seconds": 2.0}},
    ) as site:
        site.start()
        site.wait(lambda ledger: site.training("applied"), "a round")
        site.wait(lambda ledger: open_without(ledger, slow), "a round that waits for one gateway")
        site.kill("coordinator")
        cut = site.ledger.last_round()
        assert cut is not None
        assert cut.closed_at is None
        counted = {answer.gateway: answer.digest for answer in site.ledger.answers(cut.id)}
        assert counted

        back = site.start_coordinator()
        site.wait_for_rest()
        site.finish()
        assert "resumed lineage 1" in back.text()
        closed = site.ledger.round(cut.id)
        assert closed is not None
        assert closed.outcome == "applied"
        assert closed.opened_at == cut.opened_at
        answers = {answer.gateway: answer for answer in site.ledger.answers(cut.id)}
        assert set(answers) == set(site.names), "somebody's answer was lost"
        assert {name: answers[name].digest for name in counted} == counted, "an answer on disk was replaced"
        assert all(answer.verdict == "accepted" for answer in answers.values())
        assert len(site.training("applied")) == 4
        site.assert_one_model_everywhere()
