"""What happens to rounds when things go wrong, told with the real services on a broker in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from fedmq_compression.pipeline import CodecSpec, Contexts, decode
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node.gates import Vitals
from fedmq_edge_node.memory import GatewayState
from fedmq_edge_node.work import sent_by
from fedmq_protocol.messages import (
    AskModel,
    AskVerdict,
    Chunk,
    Decline,
    Missing,
    Receipt,
    RoundKind,
    RoundPlan,
    Update,
    Verdict,
    Welcome,
    from_bytes,
    to_bytes,
)
from fedmq_protocol.reasons import Reason
from fedmq_protocol.session import Received
from fedmq_protocol.topics import Channel, Direction, parse, spec, topic
from plant import FEDERATION, START, Plant, make_task


def message_of(received: Received) -> object:
    return from_bytes(parse(received.topic).spec, received.payload)


def sent(plant: Plant, kind: type) -> list[tuple[str, object]]:
    """Messages of a kind that passed the broker, each with the client that sent it."""
    found = []
    for published in plant.broker.log:
        if published.topic.endswith("/report"):
            continue
        message = from_bytes(parse(published.topic).spec, published.payload)
        if isinstance(message, kind):
            found.append((published.client_id, message))
    return found


@pytest.fixture
def undisturbed(tmp_path: Path) -> bytes:
    """Digest of the model that four gateways come to in five rounds when nothing goes wrong."""
    plant = Plant(tmp_path / "undisturbed")
    plant.run_to_rest()
    return plant.digest


def test_a_quiet_run_ends_with_one_model_everywhere(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.run_to_rest()
    assert plant.version == 5
    assert set(plant.digests().values()) == {plant.digest}
    rounds = plant.ledger.rounds()
    assert [r.kind for r in rounds] == ["statistics"] + ["training"] * 5
    assert {r.outcome for r in rounds} == {"applied"}
    assert all(g.state.pending is None for g in plant.gateways.values())


def test_the_same_run_twice_gives_the_same_model(tmp_path: Path, undisturbed: bytes) -> None:
    plant = Plant(tmp_path / "again")
    plant.run_to_rest()
    assert plant.digest == undisturbed


def test_learning_happens(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=15)
    plant.run_to_rest()
    metrics = [r.metric for r in plant.ledger.rounds() if r.metric is not None]
    assert metrics[-1] > metrics[0] + 0.2


def test_every_message_twice_changes_nothing(tmp_path: Path, undisturbed: bytes) -> None:
    plant = Plant(tmp_path / "twice")
    publish = plant.broker.publish

    def twice(client_id: str, topic: str, payload: bytes, retain: bool, qos: int = 1) -> bool:
        publish(client_id, topic, payload, retain, qos)
        return publish(client_id, topic, payload, retain, qos)

    plant.broker.publish = twice  # type: ignore[method-assign]
    plant.run_to_rest()
    assert plant.digest == undisturbed


def settled(plant: Plant) -> None:
    """Every update was accepted once, and every gateway knows it."""
    plant.run_until(lambda: all(g.state.pending is None for g in plant.gateways.values()))
    for name, gateway in plant.gateways.items():
        updates = [a for a in plant.ledger.answers() if a.gateway == name and a.kind == "update"]
        assert [a.verdict for a in updates] == ["accepted"] * len(updates)
        assert gateway.state.counter == updates[-1].counter == len(updates)


def test_a_quiet_run_needs_no_receipt_and_no_question(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.run_to_rest()
    settled(plant)
    assert not sent(plant, Receipt)
    assert not sent(plant, AskVerdict)


@pytest.mark.parametrize("pace", [{"interval_seconds": 600.0}, {"close_when_all_answered": False}])
def test_where_the_next_plan_is_far_off_a_receipt_comes_at_once(tmp_path: Path, pace: dict[str, Any]) -> None:
    plant = Plant(tmp_path, settings=RoundSettings(max_rounds=3, min_gateways=4, closing_seconds=60.0, **pace))
    plant.run_until(lambda: plant.coordinator.only.resting is not None, seconds=3000.0)
    assert len(sent(plant, Receipt)) == 3 * 4
    assert not sent(plant, AskVerdict)
    assert all(g.state.pending is None for g in plant.gateways.values())


def test_a_fleet_of_more_than_64_gets_receipts(tmp_path: Path) -> None:
    plant = Plant(tmp_path, gateways=65, rounds=1)
    plant.run_to_rest()
    settled(plant)
    assert len(sent(plant, Receipt)) == 65
    assert not any(m.accepted for _, m in sent(plant, RoundPlan) if isinstance(m, RoundPlan))


def test_a_lost_receipt_is_asked_for_and_the_first_verdict_comes_again(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=3, min_gateways=4, interval_seconds=600.0, closing_seconds=60.0)
    undisturbed = Plant(tmp_path / "undisturbed", settings=settings)
    undisturbed.run_until(lambda: undisturbed.coordinator.only.resting is not None, seconds=3000.0)
    plant = Plant(tmp_path / "lost", settings=settings)
    lost = 0

    def lose(client: str, received: Received) -> bool:
        nonlocal lost
        if client == "g1" and lost < 1 and isinstance(message_of(received), Receipt):
            lost += 1
            return True
        return False

    plant.lose = lose
    plant.run_until(lambda: plant.coordinator.only.resting is not None, seconds=3000.0)
    assert lost == 1
    assert len(sent(plant, AskVerdict)) == 1
    assert plant.digest == undisturbed.digest
    settled(plant)


@pytest.mark.parametrize("base", range(1, 5))
def test_a_lost_plan_that_brought_the_word_on_an_update_is_made_up_for_by_a_question(tmp_path: Path, base: int) -> None:
    plant = Plant(tmp_path, rounds=6)
    plant.lose = lambda client, received: (
        client == "g1" and isinstance(message := message_of(received), RoundPlan) and message.base == base
    )
    plant.run_to_rest()
    assert {client for client, _ in sent(plant, AskVerdict)} == {"g1"}
    # The round that g1 has not heard of stays open until its closing time: the others have receipts before they ask.
    assert [m.verdict for _, m in sent(plant, Receipt) if isinstance(m, Receipt)] == [Verdict.ACCEPTED] * 4
    settled(plant)
    assert set(plant.digests().values()) == {plant.digest}


def test_a_lost_update_is_sent_again_while_its_round_is_open(tmp_path: Path, undisturbed: bytes) -> None:
    plant = Plant(tmp_path / "lost")
    lost = 0

    def lose(client: str, received: Received) -> bool:
        nonlocal lost
        if client == "coordinator" and lost < 3 and isinstance(message_of(received), Update):
            lost += 1
            return True
        return False

    plant.lose = lose
    plant.run_to_rest()
    assert lost == 3
    assert plant.digest == undisturbed
    settled(plant)
    told = [m.verdict for _, m in sent(plant, Receipt) if isinstance(m, Receipt)]
    assert told.count(Verdict.UNKNOWN) == 3
    assert all(r.closed_at is not None and r.closed_at < r.closes_at for r in plant.ledger.rounds())


def test_a_question_waits_until_half_of_the_round_is_over(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=1, min_gateways=4, closing_seconds=100.0)
    plant = Plant(tmp_path, settings=settings)
    plant.lose = lambda client, received: client == "coordinator" and isinstance(message_of(received), Update)
    plant.run_until(lambda: sent(plant, Update))
    opened = plant.now
    plant.run_until(lambda: sent(plant, AskVerdict))
    assert 49.0 < plant.now - opened < 52.0
    plant.lose = lambda client, received: False
    plant.run_to_rest()
    settled(plant)


def test_a_plan_that_does_not_name_a_gateway_makes_it_ask_at_once_and_what_came_to_nothing_is_put_back(
    tmp_path: Path,
) -> None:
    settings = RoundSettings(max_rounds=3, min_gateways=4, closing_seconds=100.0)
    plant = Plant(tmp_path, settings=settings)
    plant.run_until(lambda: plant.version == 1)
    plant.lose = lambda client, received: (
        client == "coordinator"
        and isinstance(message_of(received), Update | AskVerdict)
        and parse(received.topic).gateway == "g1"
    )
    plant.run_until(lambda: plant.version == 2)
    before = len([client for client, _ in sent(plant, AskVerdict) if client == "g1"])
    plant.lose = lambda client, received: False
    for _ in range(20):
        plant.tick()
    assert len([client for client, _ in sent(plant, AskVerdict) if client == "g1"]) == before + 1
    told = [m.verdict for _, m in sent(plant, Receipt) if isinstance(m, Receipt)]
    assert told[-1] is Verdict.CLOSED
    plant.run_to_rest()
    assert all(g.state.pending is None for g in plant.gateways.values())
    told = [a.verdict for a in plant.ledger.answers() if a.gateway == "g1" and a.kind == "update"]
    assert told == ["accepted", "accepted"]


def test_an_update_that_goes_down_with_its_connection_is_sent_again(tmp_path: Path, undisturbed: bytes) -> None:
    plant = Plant(tmp_path / "cut")
    cut = 0
    publish = plant.broker.publish

    def cutting(client_id: str, where: str, payload: bytes, retain: bool, qos: int = 1) -> bool:
        nonlocal cut
        done = publish(client_id, where, payload, retain, qos)
        if client_id == "g2" and qos == 0 and cut < 3:
            cut += 1
            session = plant.session(plant.gateways["g2"])
            session.cut()
            session.heal()
        return done

    plant.broker.publish = cutting  # type: ignore[method-assign]
    plant.run_to_rest()
    assert cut == 3
    assert len([m for client, m in sent(plant, Update) if client == "g2"]) > 5
    assert plant.digest == undisturbed
    settled(plant)


@pytest.mark.parametrize("spoken", range(1, 8))
def test_a_coordinator_killed_between_commit_and_speech_leaves_nobody_without_a_word(
    tmp_path: Path, undisturbed: bytes, spoken: int
) -> None:
    """The round is closed and the next one open, or the run at rest, and nobody has heard of it."""
    plant = Plant(tmp_path / "killed")
    session = plant.coordinator_session
    publish, plans = session.publish, 0

    def dying(where: str, payload: bytes, **how: object) -> bool:
        nonlocal plans
        plans += where.endswith("/plan")
        return plans < spoken and publish(where, payload, **how)  # type: ignore[arg-type]

    session.publish = dying  # type: ignore[method-assign,assignment]
    plant.run_until(lambda: plans >= spoken)
    plant.kill_coordinator()
    plant.tick()
    plant.start_coordinator()
    plant.run_to_rest()
    assert plant.digest == undisturbed
    settled(plant)
    assert set(plant.digests().values()) == {plant.digest}


def test_after_a_restart_the_plan_says_again_whose_updates_were_accepted(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=3, min_gateways=4, interval_seconds=600.0, closing_seconds=60.0)
    plant = Plant(tmp_path, settings=settings)
    plant.vitals["g2"] = Vitals(battery_pct=1.0, on_mains=False)
    plant.run_until(lambda: plant.version == 1, seconds=3000.0)
    before = plant.coordinator.only.run.rest_plan(plant.now)
    assert before.accepted == 0b1011
    plant.kill_coordinator()
    plant.start_coordinator()
    assert plant.coordinator.only.run.rest_plan(plant.now) == before


def test_what_was_accepted_below_quorum_is_told_as_accepted(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=6, min_gateways=4, quorum_share=0.75, closing_seconds=10.0)
    plant = Plant(tmp_path, settings=settings)
    plant.run_until(lambda: plant.version == 1)
    for name in ("g0", "g1"):
        plant.vitals[name] = Vitals(battery_pct=1.0, on_mains=False)
    plant.run_until(lambda: any(r.outcome == "below quorum" for r in plant.ledger.rounds()))
    failed = next(r for r in plant.ledger.rounds() if r.outcome == "below quorum")
    plant.vitals.clear()
    plant.run_until(lambda: plant.book.has_round(failed.id + 1))
    plant.tick()
    told = [m for _, m in sent(plant, RoundPlan) if isinstance(m, RoundPlan) and m.round_id == failed.id + 1]
    assert {m.accepted for m in told} == {0b1100}
    plant.run_to_rest()
    settled(plant)


@pytest.mark.parametrize("cycles", range(12))
def test_a_gateway_killed_with_a_pending_update_hears_of_it_from_its_welcome(
    tmp_path: Path, undisturbed: bytes, cycles: int
) -> None:
    """Killed when the next round has opened: its welcome brings that round's plan, which settles the update."""
    plant = Plant(tmp_path / "killed")
    plant.run_until(lambda: plant.version == 2)
    for _ in range(cycles):
        plant.tick(0.01)
    pending = plant.gateways["g3"].state.pending
    plant.kill_gateway("g3")
    for _ in range(5):
        plant.tick(0.01)
    gateway = plant.start_gateway("g3")
    if pending is not None:
        assert gateway.state.counter >= pending.counter
    plant.run_to_rest()
    assert plant.digest == undisturbed
    settled(plant)


@pytest.mark.parametrize("moment", range(0, 60, 3))
def test_a_coordinator_killed_at_any_moment_comes_to_the_same_model(
    tmp_path: Path, undisturbed: bytes, moment: int
) -> None:
    plant = Plant(tmp_path / "killed")
    for _ in range(moment):
        plant.tick(0.01)
    plant.kill_coordinator()
    for _ in range(10):
        plant.tick(0.01)
    plant.start_coordinator()
    plant.run_to_rest()
    assert plant.digest == undisturbed
    assert set(plant.digests().values()) == {plant.digest}


@pytest.mark.parametrize("moment", range(0, 60, 3))
def test_a_gateway_killed_at_any_moment_is_back_in_its_round(tmp_path: Path, undisturbed: bytes, moment: int) -> None:
    plant = Plant(tmp_path / "killed")
    for _ in range(moment):
        plant.tick(0.01)
    plant.kill_gateway("g2")
    for _ in range(10):
        plant.tick(0.01)
    plant.start_gateway("g2")
    plant.run_to_rest()
    assert plant.digest == undisturbed


@pytest.mark.parametrize("moment", range(0, 60, 5))
def test_a_broker_that_forgets_everything_changes_nothing(tmp_path: Path, undisturbed: bytes, moment: int) -> None:
    plant = Plant(tmp_path / "restarted")
    for _ in range(moment):
        plant.tick(0.01)
    plant.broker.retained.clear()
    plant.broker.restart()
    plant.run_to_rest()
    assert plant.digest == undisturbed


def test_a_round_closes_without_a_gateway_that_is_gone_and_it_catches_up_later(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=8, min_gateways=3, first_gateways=4, closing_seconds=20.0)
    plant = Plant(tmp_path, settings=settings)
    plant.lose = lambda client, received: client == "g3" and isinstance(message_of(received), RoundPlan)
    plant.run_until(lambda: len(plant.ledger.rounds()) == 1)
    plant.kill_gateway("g3")
    plant.lose = lambda client, received: False
    plant.run_until(lambda: plant.version == 2)
    first = plant.ledger.rounds()[0]
    assert first.closed_at is not None
    assert first.closed_at >= first.closes_at, "it waited for the one that might have come back"
    assert len(plant.ledger.answers(first.id)) == 3
    plant.start_gateway("g3")
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}
    last = [a.gateway for a in plant.ledger.answers() if a.round == plant.ledger.rounds()[-1].id]
    assert "g3" in last


def test_a_gateway_that_missed_deltas_catches_up_while_connected(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=8)
    plant.lose = lambda client, received: (
        client == "g0" and isinstance(message := message_of(received), RoundPlan) and 2 <= message.base <= 3
    )
    plant.run_to_rest()
    assert sent(plant, AskModel)
    assert set(plant.digests().values()) == {plant.digest}
    assert plant.ledger.catch_ups()


def test_a_newcomer_catches_up_from_nothing(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=6, settings=RoundSettings(max_rounds=6, min_gateways=3))
    plant.kill_gateway("g3")
    plant.run_until(lambda: plant.version >= 3)
    plant.start_gateway("g3")
    plant.run_to_rest()
    assert plant.digests()["g3"] == plant.digest


def test_a_gateway_on_a_low_battery_declines_and_the_others_go_on(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.vitals["g0"] = Vitals(battery_pct=15.0, on_mains=False)
    plant.run_to_rest()
    declines = [a for a in plant.ledger.answers() if a.kind == "decline"]
    assert {(a.gateway, a.reason) for a in declines} == {("g0", "battery")}
    assert len(declines) == 6
    assert plant.digests()["g0"] == plant.digest, "it listens all the same"


def test_below_quorum_the_version_stands_and_what_was_accepted_is_owed(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=8, min_gateways=4, quorum_share=0.75, closing_seconds=5.0)
    plant = Plant(tmp_path, settings=settings)
    plant.run_until(lambda: plant.version == 1)
    for name in ("g0", "g1"):
        plant.vitals[name] = Vitals(battery_pct=1.0, on_mains=False)
    plant.run_until(lambda: any(r.outcome == "below quorum" for r in plant.ledger.rounds()))
    failed = next(r for r in plant.ledger.rounds() if r.outcome == "below quorum")
    assert failed.version is None
    owed = plant.ledger.owed()
    assert {a.gateway for a in owed} == {"g2", "g3"}
    version = plant.version
    plant.vitals.clear()
    plant.run_until(lambda: plant.version == version + 1)
    assert not plant.ledger.owed()
    assert all(a.payload is None for a in plant.ledger.answers() if a.round <= failed.id)


def test_what_is_applied_owed_pending_and_left_is_what_was_learnt(tmp_path: Path) -> None:
    """Accepted payloads plus the residual are the sum of all deltas of a gateway, to float32 rounding."""
    plant = Plant(tmp_path, rounds=8)
    learnt = {name: np.zeros(plant.task.model.parameters) for name in plant.gateways}
    counted = {name: np.zeros(plant.task.model.parameters) for name in plant.gateways}
    seen: set[tuple[str, int]] = set()

    def watch(name: str, save: Callable[[GatewayState], None]) -> Callable[[GatewayState], None]:
        memory = plant.gateways[name]._memory

        def saving(state: GatewayState) -> None:
            before = memory.saved(plant.task.name)
            if state.pending is not None and (name, state.pending.counter) not in seen:
                # While it is pending the residual is y: what was learnt just now is y less the residual before. That
                # on disk is the y before where the plan to train on has settled it.
                seen.add((name, state.pending.counter))
                settled = 0.0 if before.pending is None else sent_by(before.pending, plant.task)
                learnt[name] += state.residual - (before.residual - settled)
                counted[name] += sent_by(state.pending, plant.task)
            save(state)

        return saving

    for name, gateway in plant.gateways.items():
        gateway._memory.save = watch(name, gateway._memory.save)  # type: ignore[method-assign]
    plant.run_to_rest()
    assert len(seen) == 8 * 4
    for name, gateway in plant.gateways.items():
        np.testing.assert_allclose(counted[name] + gateway.state.residual, learnt[name], atol=2e-5)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_or_counted_twice_whatever_is_lost_on_the_way_and_whoever_is_killed(
    tmp_path: Path, seed: int
) -> None:
    rng = Random(seed)
    settings = RoundSettings(max_rounds=12, min_gateways=2, first_gateways=4, quorum_share=0.5, closing_seconds=12.0)
    plant = Plant(tmp_path, settings=settings)
    parameters = plant.task.model.parameters
    learnt = {name: np.zeros(parameters) for name in plant.gateways}
    coded: dict[tuple[str, int], np.ndarray] = {}  # type: ignore[type-arg]

    def watch(name: str) -> None:
        memory = plant.gateways[name]._memory
        save = memory.save

        def saving(state: GatewayState) -> None:
            before, pending = memory.saved(plant.task.name), state.pending
            if pending is not None and (name, pending.counter) not in coded:
                coded[name, pending.counter] = sent_by(pending, plant.task)
                # Of an update that was pending until now a plan has said that it was accepted.
                settled = 0.0 if before.pending is None else coded[name, before.pending.counter]
                learnt[name] += state.residual - (before.residual - settled)
            save(state)

        memory.save = saving  # type: ignore[method-assign]

    for name in plant.gateways:
        watch(name)
    plant.run_until(lambda: plant.version == 1)
    plant.lose = lambda client, received: rng.random() < 0.1
    for _ in range(1500):
        plant.tick(0.02)
        event, name = rng.random(), rng.choice(["g0", "g1", "g2", "g3"])
        if event < 0.01:
            session = plant.session(plant.gateways[name])
            session.cut()
            session.heal()
        elif event < 0.015:
            plant.kill_gateway(name)
            plant.start_gateway(name)
            watch(name)
        elif event < 0.02:
            plant.kill_coordinator()
            plant.start_coordinator()
        elif event < 0.025:
            plant.broker.restart(keeps=rng.random() < 0.5)
    plant.lose = lambda client, received: False
    # Who has missed the last plan of all asks for its verdict, and comes to the last version when it joins again.
    plant.run_until(lambda: plant.coordinator.only.resting is not None)
    plant.run_until(lambda: all(g.state.pending is None for g in plant.gateways.values()))
    accepted = [a for a in plant.ledger.answers() if a.kind == "update" and a.verdict == "accepted"]
    assert len(accepted) > 12
    assert len({(a.gateway, a.counter) for a in accepted}) == len(accepted)
    for name, gateway in plant.gateways.items():
        counted = sum(coded[name, a.counter] for a in accepted if a.gateway == name)
        np.testing.assert_allclose(counted + gateway.state.residual, learnt[name], atol=2e-5)


def test_a_gateway_restored_in_the_middle_of_a_round_that_it_has_answered_sits_it_out(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=4)
    plant.run_until(lambda: plant.gateways["g0"].state.counter == 1)
    plant.kill_gateway("g0")
    image = (tmp_path / "g0" / "gateway.sqlite").read_bytes()
    plant.start_gateway("g0")
    plant.run_until(lambda: plant.version == 1)
    plant.lose = lambda client, received: (
        client == "coordinator" and isinstance(message_of(received), Update) and parse(received.topic).gateway == "g1"
    )
    plant.run_until(lambda: plant.version == 1 and _answered(plant) == {"g0", "g2", "g3"}, seconds=1000.0)
    plant.kill_gateway("g0")
    for file in (tmp_path / "g0").iterdir():
        file.unlink()
    (tmp_path / "g0" / "gateway.sqlite").write_bytes(image)
    gateway = plant.start_gateway("g0")
    plant.run_until(lambda: gateway._welcomed)
    for _ in range(20):
        plant.tick()
    assert _answered(plant) == {"g0", "g2", "g3"}, "the round is still open"
    assert gateway.state.pending is None
    assert not gateway.state.residual.any()
    plant.lose = lambda client, received: False
    plant.run_to_rest()
    settled(plant)


def _answered(plant: Plant) -> set[str]:
    round_ = plant.coordinator.only.run.round
    return set() if round_ is None else round_.answered


def test_a_lying_payload_is_refused_and_its_residual_discarded(tmp_path: Path) -> None:
    # With a pause between rounds: the refusal closes this one, and the next would train again at once.
    plant = Plant(tmp_path, settings=RoundSettings(max_rounds=5, interval_seconds=5.0, min_gateways=4))
    plant.run_until(lambda: plant.version == 1)
    publish = plant.broker.publish
    up = topic(FEDERATION, Direction.UP, Channel.ANSWER, "g1")

    def spoil(client_id: str, where: str, payload: bytes, retain: bool, qos: int = 1) -> bool:
        if where == up and isinstance(message := from_bytes(spec(Direction.UP, Channel.ANSWER), payload), Update):
            assert isinstance(message.payload, bytes)
            broken = replace_struct(message, payload=message.payload[:-1] + bytes([message.payload[-1] ^ 1]))
            payload = to_bytes(broken)
        return publish(client_id, where, payload, retain, qos)

    plant.broker.publish = spoil  # type: ignore[method-assign]
    plant.run_until(lambda: any(a.verdict == "malformed" for a in plant.ledger.answers()))
    plant.broker.publish = publish  # type: ignore[method-assign]
    plant.tick()
    assert plant.gateways["g1"].state.pending is None
    assert not plant.gateways["g1"].state.residual.any()
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}
    refused = next(a for a in plant.ledger.answers() if a.verdict == "malformed")
    row = plant.ledger.round(refused.round)
    assert row is not None
    assert row.closed_at is not None
    assert row.closed_at < row.closes_at, "the round waited for an answer that cannot come any more"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_decline_after_a_refused_answer_to_the_same_round_changes_nothing(tmp_path: Path, restarted: bool) -> None:
    plant = Plant(tmp_path)
    plant.run_until(lambda: plant.version == 1)
    answer = topic(FEDERATION, Direction.UP, Channel.ANSWER, "g1")
    plant.lose = lambda client, received: received.topic == answer  # the liar has its name
    plant.run_until(
        lambda: plant.coordinator.only.run.round is not None and len(plant.coordinator.only.run.round.answered) == 3
    )
    plant.lose = lambda client, received: False
    assert plant.coordinator.only.run.round is not None
    plan = plant.coordinator.only.run.round.plan
    lie = Update(
        round_id=plan.round_id, base=plan.base_mark, counter=99, payload=b"not a delta", sent=0, received=0, loss=0
    )
    plant.broker.publish("liar", answer, to_bytes(lie), False)
    plant.coordinator.step(plant._events(plant.coordinator_session), plant.now)
    assert [a.verdict for a in plant.ledger.answers(plan.round_id) if a.gateway == "g1"] == ["malformed"]
    if restarted:
        plant.kill_coordinator()
        plant.start_coordinator()
        plant.coordinator.step(plant._events(plant.coordinator_session), plant.now)
    decline = Decline(round_id=plan.round_id, reason=Reason.BATTERY, sent=0, received=0)
    plant.broker.publish("liar", answer, to_bytes(decline), False)
    plant.coordinator.step(plant._events(plant.coordinator_session), plant.now)
    assert [a.kind for a in plant.ledger.answers(plan.round_id) if a.gateway == "g1"] == ["update"]


def test_a_birth_that_claims_more_signal_than_a_disk_holds_is_refused(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    birth = plant.gateways["g1"]._birth()
    huge = msgspec.structs.replace(birth, signal_samples={"normal": 1 << 62})
    plant.broker.publish("liar", topic(FEDERATION, Direction.UP, Channel.STATUS, "g1"), to_bytes(huge), False)
    plant.run_to_rest()
    assert [channel for channel, *_ in plant.ledger.refused()] == ["status"]


def replace_struct(message: Update, **changes: object) -> Update:
    import msgspec

    return msgspec.structs.replace(message, **changes)


def test_another_answer_to_the_same_round_is_a_conflict_and_counts_nothing(tmp_path: Path, undisturbed: bytes) -> None:
    plant = Plant(tmp_path / "conflict")
    verdicts: list[Verdict] = []
    publish = plant.broker.publish
    up = topic(FEDERATION, Direction.UP, Channel.ANSWER, "g1")

    def other_too(client_id: str, where: str, payload: bytes, retain: bool, qos: int = 1) -> bool:
        done = publish(client_id, where, payload, retain, qos)
        if where == up and isinstance(message := from_bytes(spec(Direction.UP, Channel.ANSWER), payload), Update):
            publish(client_id, where, to_bytes(replace_struct(message, payload=b"another", counter=10**6)), retain, qos)
        return done

    def listen(client: str, received: Received) -> bool:
        if client == "g1" and isinstance(message := message_of(received), Receipt):
            verdicts.append(message.verdict)
        return False

    plant.broker.publish = other_too  # type: ignore[method-assign]
    plant.lose = listen
    plant.run_to_rest()
    assert verdicts == [Verdict.CONFLICT] * 5
    assert plant.digest == undisturbed


def test_dense_float32_goes_in_chunks_and_lost_chunks_are_asked_for(tmp_path: Path) -> None:
    task = make_task(sizes=(22, 128, 64, 3), dense=True)
    plant = Plant(tmp_path, gateways=3, rounds=3, task=task)
    count = 0

    def lose(client: str, received: Received) -> bool:
        nonlocal count
        if isinstance(message_of(received), Chunk):
            count += 1
            return count % 5 == 1
        return False

    plant.lose = lose
    plant.run_to_rest()
    assert count > 10
    assert set(plant.digests().values()) == {plant.digest}
    assert [r.outcome for r in plant.ledger.rounds()] == ["applied"] * 4
    assert all(len(plant.ledger.answers(r.id)) == 3 for r in plant.ledger.rounds())


def test_an_upload_in_chunks_that_is_still_is_asked_about_more_and_more_rarely(tmp_path: Path) -> None:
    """On a slow link what is asked for is on its way already."""
    plant = Plant(tmp_path, gateways=1, rounds=1, task=make_task(sizes=(22, 128, 64, 3), dense=True))
    asked: list[float] = []

    def lose(client: str, received: Received) -> bool:
        message = message_of(received)
        if isinstance(message, Missing):
            asked.append(plant.now)
            return True
        return isinstance(message, Chunk) and client == "coordinator"

    plant.lose = lose
    plant.run_until(lambda: len(asked) == 4)
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert all(after > 1.5 * before for before, after in itertools.pairwise(pauses))


def test_a_large_catch_up_goes_in_chunks(tmp_path: Path) -> None:
    task = make_task(sizes=(22, 128, 64, 3), dense=True)
    settings = RoundSettings(max_rounds=4, min_gateways=2)
    plant = Plant(tmp_path, gateways=3, task=task, settings=settings)
    plant.kill_gateway("g2")
    plant.run_until(lambda: plant.version >= 2)
    plant.start_gateway("g2")
    plant.run_to_rest()
    assert plant.digests()["g2"] == plant.digest


def test_a_new_lineage_takes_everyone_along_and_forgets_residuals(tmp_path: Path, undisturbed: bytes) -> None:
    plant = Plant(tmp_path / "lineage", rounds=2)
    plant.run_to_rest()
    before = plant.lineage
    plant.kill_coordinator()
    plant.settings = replace(plant.settings, max_rounds=5)
    plant.start_coordinator(new_lineage=True)
    plant.run_to_rest()
    assert {g.state.lineage for g in plant.gateways.values()} == {plant.lineage} != {before}
    assert set(plant.digests().values()) == {plant.digest}
    assert plant.version == 5


def test_a_gateway_restored_from_an_old_image_starts_its_residual_again(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=8)
    plant.run_until(lambda: plant.version == 2)
    imaged = plant.gateways["g0"].state.counter
    plant.kill_gateway("g0")
    image = (tmp_path / "g0" / "gateway.sqlite").read_bytes()
    plant.start_gateway("g0")
    plant.run_until(lambda: plant.version == 5)
    plant.kill_gateway("g0")
    record = plant.book.verdict("g0")
    assert record is not None
    counter = record[1]
    for file in (tmp_path / "g0").iterdir():
        file.unlink()
    (tmp_path / "g0" / "gateway.sqlite").write_bytes(image)
    plant.settings = replace(plant.settings)
    gateway = plant.start_gateway("g0")
    old = gateway.state
    assert old.counter == imaged < counter
    assert old.residual.any()
    plant.run_until(lambda: gateway.state.counter >= counter)
    if gateway.state.counter == counter:
        assert not gateway.state.residual.any()
    assert gateway.state.pending is None or gateway.state.pending.counter > counter
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}


def test_a_rest_ends_when_enough_new_windows_have_come(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=3, min_gateways=4)
    plant = Plant(tmp_path, settings=settings)
    plant.run_to_rest()
    assert plant.version == 3
    plant.folders["g1"].windows += 150
    plant.folders["g1"].fresh = True
    plant.run_until(lambda: plant.version == 6)


def test_a_plan_of_another_lineage_makes_a_gateway_join_again(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.run_until(lambda: plant.version == 1)
    plan = RoundPlan(
        round_id=99,
        lineage=7,
        kind=RoundKind.TRAINING,
        base=0,
        model=0,
        closes_after=int(plant.now) + 60 - 7,
        drawn=0b1111,
        accepted=0,
        since=1,
        level=0,
    )
    births = len(sent(plant, Welcome))
    plant.broker.publish("someone", topic(FEDERATION, Direction.DOWN, Channel.PLAN), to_bytes(plan), False)
    plant.run_to_rest()
    assert len(sent(plant, Welcome)) > births
    assert {g.state.lineage for g in plant.gateways.values()} == {plant.lineage}


def test_only_some_are_drawn_and_everyone_has_a_turn(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=8, min_gateways=8, fraction=0.25, closing_seconds=10.0)
    plant = Plant(tmp_path, gateways=8, settings=settings)
    plant.run_to_rest()
    training = [r.id for r in plant.ledger.rounds() if r.kind == "training"]
    answers = [[a.gateway for a in plant.ledger.answers(r)] for r in training]
    assert all(len(names) == 2 for names in answers)
    assert sorted(name for names in answers[:4] for name in names) == sorted(plant.gateways)


def test_junk_on_every_topic_is_dropped_and_counted_and_the_run_goes_on(tmp_path: Path, undisturbed: bytes) -> None:
    plant = Plant(tmp_path / "junk")
    rng = np.random.default_rng(0)
    filters = [
        topic(FEDERATION, Direction.UP, channel, "g1")
        for channel in (Channel.STATUS, Channel.ANSWER, Channel.ASK, Channel.CHUNK)
    ] + [
        topic(FEDERATION, Direction.CMD, Channel.WELCOME, "g1"),
        topic(FEDERATION, Direction.CMD, Channel.RECEIPT, "g1"),
        topic(FEDERATION, Direction.DOWN, Channel.PLAN),
        topic(FEDERATION, Direction.DOWN, Channel.CHUNK),
    ]
    for _ in range(40):
        for where in filters:
            plant.broker.publish("junk", where, rng.bytes(int(rng.integers(1, 200))), False)
        plant.tick(0.01)
    plant.run_to_rest()
    assert plant.digest == undisturbed
    assert sum(messages for _, _, messages, _ in plant.ledger.refused()) == 40 * 4


def test_a_decline_for_a_gate_that_shuts_while_training_stops_the_work(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=4)
    gateway = plant.gateways["g0"]
    plant.run_until(lambda: plant.version == 1)
    readings: list[int] = []

    def read() -> Vitals:
        readings.append(gateway.state.answered)
        # Open when the round begins, shut at the next look.
        return Vitals() if readings.count(gateway.state.answered) == 1 else Vitals(battery_pct=3.0, on_mains=False)

    gateway._read_vitals = read
    gateway._vitals_every = 0.0
    plant.run_until(lambda: sent(plant, Decline))
    declines = [m for client, m in sent(plant, Decline) if client == "g0"]
    assert {m.reason for m in declines if isinstance(m, Decline)} == {Reason.BATTERY}
    assert not [m for client, m in sent(plant, Update) if client == "g0" and m.round_id == declines[0].round_id]


def test_the_codec_of_the_story_is_what_the_task_says(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=1)
    plant.run_to_rest()
    (_, update) = sent(plant, Update)[0]
    assert isinstance(update, Update)
    assert isinstance(update.payload, bytes)
    model = plant.task.model
    start = Contexts.of(np.zeros(model.parameters, dtype=np.int32), model.shapes)
    spec = CodecSpec(bits=1, density=0.1, step=2.0**-24)
    decoded = decode(update.payload, model.parameters, spec, contexts=start)
    assert decoded.indices is not None
    assert len(decoded.indices) == round(0.1 * plant.task.model.parameters)


@pytest.mark.parametrize("moment", range(0, 40, 4))
def test_nobody_turns_in_circles_while_the_broker_is_away_or_the_run_rests(tmp_path: Path, moment: int) -> None:
    plant = Plant(tmp_path)
    for _ in range(moment):
        plant.tick(0.01)
    plant.broker.stop()
    for _ in range(10):
        plant.tick(20.0)
    assert plant.coordinator.wait_seconds(plant.now) == 1.0
    assert {gateway.wait_seconds(plant.now - START) for gateway in plant.gateways.values()} == {1.0}
    plant.broker.start()
    plant.run_to_rest()
    for _ in range(100):
        plant.tick()
    assert plant.coordinator.wait_seconds(plant.now) > 0.5
    assert min(gateway.wait_seconds(plant.now - START) for gateway in plant.gateways.values()) > 0.5


def test_a_coordinator_that_lost_its_disk_starts_again_and_the_fleet_follows(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.run_until(lambda: plant.version == 4)
    before = plant.lineage
    plant.kill_coordinator()
    for file in [*tmp_path.glob("ledger.sqlite*"), *(tmp_path / "models").iterdir()]:
        file.unlink()
    plant.now += 3600.0
    plant.start_coordinator()
    plant.run_to_rest()
    assert plant.lineage != before
    assert {r.outcome for r in plant.ledger.rounds()} == {"applied"}
    assert all(len(plant.ledger.answers(r.id)) == 4 for r in plant.ledger.rounds())
    assert set(plant.digests().values()) == {plant.digest}


def test_a_new_lineage_on_an_older_backup_of_the_coordinator_takes_everyone_along(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.run_until(lambda: plant.version == 2)
    plant.kill_coordinator()
    backup = {file: file.read_bytes() for file in [*tmp_path.glob("ledger.sqlite*"), *(tmp_path / "models").iterdir()]}
    plant.start_coordinator()
    plant.run_until(lambda: plant.version == 4)
    plant.kill_coordinator()
    for file in [*tmp_path.glob("ledger.sqlite*"), *(tmp_path / "models").iterdir()]:
        file.unlink()
    for file, content in backup.items():
        file.write_bytes(content)
    plant.now += 3600.0
    plant.start_coordinator(new_lineage=True)
    plant.run_to_rest()
    assert plant.version == 5
    assert set(plant.digests().values()) == {plant.digest}


def test_a_recording_that_breaks_while_a_gateway_runs_does_not_end_it(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=6, min_gateways=4, interval_seconds=90.0, closing_seconds=20.0)
    plant = Plant(tmp_path, settings=settings)
    plant.run_until(lambda: plant.version == 1)
    plant.folders["g2"].fresh = True
    plant.run_until(lambda: not plant.folders["g2"].fresh)
    plant.folders["g2"].broken = True
    plant.session(plant.gateways["g2"]).cut()
    plant.session(plant.gateways["g2"]).heal()
    plant.run_until(lambda: plant.version == 3)
    plant.folders["g2"].broken = False
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}
    last = plant.ledger.rounds()[-1]
    assert "g2" in {a.gateway for a in plant.ledger.answers(last.id) if a.kind == "update"}
