"""A federation whose messages are sealed, in virtual time: it learns as any other, and nobody else is heard."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
from fedmq_coordinator.settings import RoundSettings
from fedmq_protocol.messages import Birth, Receipt, RoundPlan, Verdict, from_bytes, split, to_bytes
from fedmq_protocol.session import Received
from fedmq_protocol.topics import Channel, Direction, parse, topic
from plant import FEDERATION, START, Plant
from trust import TrustAuthority

ON_PLAN = topic(FEDERATION, Direction.DOWN, Channel.PLAN)


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path, gateways=3, rounds=4, authority=TrustAuthority(FEDERATION))


def plans(plant: Plant) -> list[bytes]:
    """Every plan that was published, as it was."""
    heard: list[bytes] = []

    def listen(client: str, message: Received) -> bool:
        if message.topic == ON_PLAN and message.payload not in heard:
            heard.append(message.payload)
        return False

    plant.lose = listen
    return heard


def inject(plant: Plant, name: str, where: str, payload: bytes) -> None:
    """Somebody who owns the broker says something to a gateway, or to the coordinator."""
    gateway = plant.gateways[name]
    gateway.step(Received(where, payload), plant.now - START)


def refused(plant: Plant) -> dict[str, int]:
    return {reason: messages for _, reason, messages, _ in plant.ledger.refused()}


def test_a_sealed_federation_learns_the_same_model(plant: Plant, tmp_path: Path) -> None:
    plant.run_to_rest()
    open_one = Plant(tmp_path / "open", gateways=3, rounds=4)
    open_one.run_to_rest()
    assert plant.version == open_one.version > 0
    assert plant.digest == open_one.digest
    assert refused(plant) == {}


def test_plans_that_are_unsigned_or_changed_change_nothing(plant: Plant) -> None:
    heard = plans(plant)
    plant.run_until(lambda: plant.version == 2)
    before = plant.gateways["g0"].states
    plain = split(heard[-1]).plain
    plan = from_bytes(parse(ON_PLAN).spec, plain)
    assert isinstance(plan, RoundPlan)
    forged = to_bytes(msgspec.structs.replace(plan, round_id=plan.round_id + 50, accepted=7))
    changed = bytearray(heard[-1])
    changed[10] ^= 4
    for payload in (plain, forged, bytes(changed), forged + heard[-1][-64:]):
        inject(plant, "g0", ON_PLAN, payload)
    assert plant.gateways["g0"].states == before
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}


def test_old_plans_that_are_signed_move_nobody(plant: Plant) -> None:
    heard = plans(plant)
    plant.run_until(lambda: plant.version == 3)
    before = plant.gateways["g0"].state
    for payload in heard[:2]:
        inject(plant, "g0", ON_PLAN, payload)
    assert plant.gateways["g0"].state == before
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}


def test_a_forged_receipt_settles_nothing(plant: Plant) -> None:
    """An update that waits for its verdict goes on waiting."""
    plant.lose = lambda client, message: client == "coordinator" and message.topic.endswith("g0/answer")
    plant.run_until(lambda: plant.gateways["g0"].state.pending is not None)
    pending = plant.gateways["g0"].state.pending
    assert pending is not None
    receipt = Receipt(round_id=pending.round_id, counter=pending.counter, verdict=Verdict.ACCEPTED)
    where = topic(FEDERATION, Direction.CMD, Channel.RECEIPT, "g0")
    false = TrustAuthority(FEDERATION)
    forger = false.coordinator()
    forger.know("g0", plant.gateways["g0"]._nonce, false.card("g0"))
    inject(plant, "g0", where, to_bytes(receipt))
    inject(plant, "g0", where, forger.seal(where, parse(where), receipt, to_bytes(receipt)))
    assert plant.gateways["g0"].state.pending == pending
    plant.lose = lambda client, message: False
    plant.run_to_rest()


def test_a_revoked_gateway_is_heard_no_more_and_the_others_go_on(tmp_path: Path) -> None:
    authority = TrustAuthority(FEDERATION)
    settings = RoundSettings(max_rounds=6, min_gateways=2, closing_seconds=30)
    plant = Plant(tmp_path, gateways=3, settings=settings, authority=authority)
    plant.run_until(lambda: plant.version == 1)
    authority.revoked.add(authority.serials["g2"])
    last = plant.book.rounds()[-1].id
    plant.run_until(lambda: plant.version >= 4, seconds=2000)
    late = [a for row in plant.book.rounds() if row.id > last + 1 for a in plant.book.answers(row.id)]
    assert {answer.gateway for answer in late} == {"g0", "g1"}
    assert any("revoked" in reason for reason in refused(plant))
    # Nobody waits for it, though its connection stands.
    assert {row.name: row.present for row in plant.ledger.gateways()} == {"g0": True, "g1": True, "g2": False}
    assert [row.drawn for row in plant.book.rounds()][-2:] == [2, 2]


def test_after_a_restart_the_coordinator_knows_who_is_who(plant: Plant) -> None:
    plant.run_until(lambda: plant.version == 1)
    births = plant.births
    plant.kill_coordinator()
    plant.start_coordinator()
    plant.run_to_rest()
    assert plant.births == births
    assert set(plant.digests().values()) == {plant.digest}
    assert refused(plant) == {}


def test_a_fleet_walks_to_new_keys_while_it_learns(plant: Plant) -> None:
    assert plant.authority is not None
    plant.run_until(lambda: plant.version == 1)
    plant.kill_gateway("g2")
    plant.kill_coordinator()
    plant.authority.rotate()
    plant.authority.rotate()
    plant.start_coordinator()
    plant.start_gateway("g2")  # it was away for two roots
    plant.run_to_rest()
    assert {name: chain.newest.version for name, chain in plant.authority.kept.items()} == {"g0": 3, "g1": 3, "g2": 3}
    assert set(plant.digests().values()) == {plant.digest}


def test_heads_are_signed_while_nothing_happens_and_their_absence_is_told(plant: Plant) -> None:
    plant.stale_seconds = 0.5 * 3600
    plant.limits = dataclasses.replace(plant.limits, head_hours=0.2)
    plant.kill_coordinator()
    for name in list(plant.gateways):
        plant.kill_gateway(name)
    plant.start_coordinator()
    for name in plant.folders:
        plant.start_gateway(name)
    plant.run_to_rest()
    heard = plans(plant)
    until = plant.now + 3600
    plant.run_until(lambda: plant.now > until, seconds=4000)
    assert len(heard) >= 4
    assert not any(gateway.stale for gateway in plant.gateways.values())

    kept = heard[-1]
    plant.lose = lambda client, message: client == "g0"
    until = plant.now + 2400
    while plant.now < until:
        plant.tick(1.0)
        inject(plant, "g0", ON_PLAN, kept)  # somebody says the last one again and again
    assert plant.gateways["g0"].stale
    assert not plant.gateways["g1"].stale
    assert plant.gateways["g0"]._memory.get("stale") is not None

    plant.lose = lambda client, message: False
    plant.run_until(lambda: not plant.gateways["g0"].stale, seconds=4000)
    assert plant.gateways["g0"]._memory.get("stale") is None


def test_a_renewed_card_is_shown_at_the_next_connection(plant: Plant) -> None:
    """Of the same start: what it has pending goes on."""
    assert plant.authority is not None
    plant.run_until(lambda: plant.version == 1)
    gateway = plant.gateways["g0"]
    old = plant.authority.serials["g0"]
    plant.authority.serials["g0"] = 77
    plant.renewals["g0"] = plant.authority.gateway("g0", gateway._nonce, lambda: plant.now)
    plant.authority.revoked.add(old)  # replaced
    plant.session(gateway).cut()
    plant.tick()
    plant.session(gateway).heal()
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}
    assert {row.name for row in plant.ledger.gateways() if row.present} == {"g0", "g1", "g2"}


def test_a_birth_of_somebody_else_changes_no_record(plant: Plant) -> None:
    plant.run_until(lambda: plant.version == 1)
    false = TrustAuthority(FEDERATION)
    birth = Birth(
        nonce=b"another!", software="evil", engines=(), signal_samples={"normal": 1 << 40}, sent=0, received=0,
        root=1, card=false.card("g0"),
    )  # fmt: skip
    where = topic(FEDERATION, Direction.UP, Channel.STATUS, "g0")
    seals = false.gateway("g0", b"another!")
    known = plant.ledger.gateways()
    for payload in (to_bytes(birth), seals.seal(where, parse(where), birth, to_bytes(birth))):
        plant.coordinator.step([Received(where, payload)], plant.now)
    assert [row.samples for row in plant.ledger.gateways()] == [row.samples for row in known]
    assert sum(refused(plant).values()) == 2
    plant.run_to_rest()
