"""Stories in virtual time: gateways that lie, flood or fail, and what the coordinator makes of it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fedmq_coordinator.job import TaskPlan
from fedmq_coordinator.ledger import Answer, Ledger
from fedmq_coordinator.outbox import Outbox, Outgoing
from fedmq_coordinator.report import build, to_json
from fedmq_coordinator.report_html import to_html
from fedmq_coordinator.report_text import to_text
from fedmq_coordinator.run import Run
from fedmq_coordinator.settings import LimitSettings, RoundSettings
from fedmq_coordinator.status_text import status
from fedmq_protocol.messages import (
    AskChunks,
    AskModel,
    AskVerdict,
    CatchUp,
    Chunk,
    Message,
    Receipt,
    RoundPlan,
    Update,
    Verdict,
    Welcome,
    from_bytes,
)
from fedmq_protocol.task import Task, short
from fedmq_protocol.topics import Channel, parse
from fedmq_protocol.transfer import BUNDLE_CHUNK_BYTES
from numpy.typing import NDArray
from scripted_fleet import ScriptedFleet, ScriptedGateway, scripted_task

NAMES = [f"g{n}" for n in range(6)]
LIAR = "g2"


class Agreeing(ScriptedGateway):
    """Learns what all others learn, and something of its own."""

    factor = 1.0

    def delta(self, task: Task, plan: RoundPlan) -> NDArray[np.float32]:
        shared = np.random.default_rng(1).normal(0, 0.05, task.model.parameters).astype(np.float32)
        return np.float32(self.factor) * (shared + super().delta(task, plan))


class Negating(Agreeing):
    factor = -1.0


class Malforming(Agreeing):
    def payload(self, task: Task, plan: RoundPlan) -> bytes:
        return b"\x14\x05not a frame" if plan.base >= 2 else super().payload(task, plan)


class Growing(Agreeing):
    """Honest until version 6, then a thousand times as long."""

    def delta(self, task: Task, plan: RoundPlan) -> NDArray[np.float32]:
        return super().delta(task, plan) * np.float32(1.0 if plan.base < 6 else 200.0)


class Boasting(Agreeing):
    @property
    def signal_samples(self) -> dict[str, int]:
        return {"normal": 1 << 40}


class Alone(Negating):
    """Pulls against all others, and has recordings that nobody else has."""

    @property
    def signal_samples(self) -> dict[str, int]:
        return {"normal": 60 * 1024, "ball": 60 * 1024}


class Claiming(Negating):
    """Says that it has recordings of what is no class of the task, and none of one that is."""

    @property
    def signal_samples(self) -> dict[str, int]:
        return {"normal": 120 * 1024, "gold": 1024, "ball": 0}


def a_fleet(
    directory: Path,
    liar: type[ScriptedGateway] = Agreeing,
    *,
    rounds: int = 20,
    names: list[str] = NAMES,
    limits: LimitSettings | None = None,
    **settings: object,
) -> ScriptedFleet:
    plan = TaskPlan(
        task=scripted_task("pumps"),
        rounds=RoundSettings(max_rounds=rounds, min_gateways=len(names), closing_seconds=20, **settings),  # type: ignore[arg-type]
    )
    return ScriptedFleet(
        directory,
        tasks=[plan],
        tags=dict.fromkeys(names, ()),
        limits=limits or LimitSettings(catch_up_gather_seconds=0.0),
        made={name: liar if name == LIAR else Agreeing for name in names},
    )


def until_version(fleet: ScriptedFleet, version: int) -> None:
    fleet.run_until(lambda: fleet.coordinator.only.version >= version)


def receipts(gateway: ScriptedGateway) -> list[Verdict]:
    return [message.verdict for message in gateway.other if isinstance(message, Receipt)]


def answers_of(fleet: ScriptedFleet, name: str) -> list[Answer]:
    return [a for a in fleet.ledger.answers() if a.gateway == name and a.kind == "update"]


# -- who points away -------------------------------------------------------------------------------------------------


def test_who_turns_its_updates_round_is_flagged_and_nobody_else_and_it_is_told(tmp_path: Path) -> None:
    fleet = a_fleet(tmp_path, Negating, rounds=15)
    fleet.run_to_rest()

    (flag,) = fleet.coordinator.only.book.flags()
    assert (flag.gateway, flag.state, flag.reason) == (LIAR, "flagged", "against")
    assert flag.round <= 15
    assert {a.verdict for a in answers_of(fleet, LIAR)} == {"accepted"}, "it is only told of"
    report = build(fleet.ledger)
    assert report.findings[-1] == f"1 gateway should be looked at: {LIAR}."
    cosines = {line.name: line.cosine for line in report.gateways}
    assert cosines[LIAR] is not None
    assert cosines[LIAR] < -0.3
    assert all(cosine is not None and cosine > 0.1 for name, cosine in cosines.items() if name != LIAR)
    assert "Gateways that should be looked at" in to_text(report, 200)
    assert "Gateways that should be looked at" in to_html(report)
    assert json.loads(to_json(report))["flagged"][0]["gateway"] == LIAR
    assert f"{LIAR}: flagged (points away from the others)" in " ".join(status(fleet.ledger, fleet.now, 200).split())


def test_an_honest_fleet_has_no_flags_and_cosines_on_record(tmp_path: Path) -> None:
    fleet = a_fleet(tmp_path)
    fleet.run_to_rest()
    assert fleet.coordinator.only.book.flags() == []
    assert all(a.cosine is not None and a.norm is not None for name in NAMES for a in answers_of(fleet, name))


@pytest.mark.parametrize(("kind", "flags"), [(Alone, 0), (Claiming, 1)])
def test_who_alone_has_seen_a_class_is_not_flagged_for_pulling_its_way(
    tmp_path: Path, kind: type[ScriptedGateway], flags: int
) -> None:
    fleet = a_fleet(tmp_path, kind, rounds=15)
    until_version(fleet, 5)
    fleet.kill_coordinator()
    fleet.start_coordinator()  # labels are on record
    fleet.run_to_rest()
    assert len(fleet.coordinator.only.book.flags()) == flags


def test_a_coordinator_that_is_killed_each_round_comes_to_the_same_evidence(tmp_path: Path) -> None:
    def evidence(fleet: ScriptedFleet) -> object:
        book = fleet.coordinator.only.book
        flags = [(flag.gateway, flag.round, flag.evidence) for flag in book.flags()]
        return flags, book.get("norms"), [book.conduct(name) for name in NAMES], fleet.coordinator.only.model_digest

    undisturbed = a_fleet(tmp_path / "undisturbed", Negating, rounds=12)
    undisturbed.run_to_rest()
    fleet = a_fleet(tmp_path / "killed", Negating, rounds=12)
    for version in range(1, 12):
        until_version(fleet, version)
        fleet.kill_coordinator()
        fleet.start_coordinator()
    fleet.run_to_rest()

    found, expected = evidence(fleet), evidence(undisturbed)
    # Lineages begin at the same second of virtual time.
    assert found == expected


def test_where_the_settings_say_so_a_flagged_gateway_is_set_aside_until_it_is_readmitted(tmp_path: Path) -> None:
    limits = LimitSettings(catch_up_gather_seconds=0.0, flagged="set_aside")
    fleet = a_fleet(tmp_path, Negating, rounds=60, limits=limits)
    fleet.run_until(lambda: fleet.coordinator.only.book.flags())
    since = fleet.ledger.newest_round()
    until_version(fleet, 14)
    assert fleet.coordinator.only.members.aside == {LIAR}
    assert max(a.round for a in answers_of(fleet, LIAR)) <= since

    fleet.kill_coordinator()
    fleet.start_coordinator()
    until_version(fleet, 18)
    assert max(a.round for a in answers_of(fleet, LIAR)) <= since, "a restart lifts nothing"
    assert build(fleet.ledger).flagged[0].aside

    order = fleet.order("readmit", "pumps", gateway=LIAR)
    assert order.done
    until_version(fleet, fleet.coordinator.only.version + 2)
    assert max(a.round for a in answers_of(fleet, LIAR)) > since
    assert build(fleet.ledger).flagged == []
    # It goes on as before, and is flagged again, for what it has sent since.
    first_again = min(a.round for a in answers_of(fleet, LIAR) if a.round > since)
    fleet.run_until(lambda: fleet.coordinator.only.members.aside == {LIAR})
    (flag,) = fleet.coordinator.only.book.flags()
    assert (flag.state, flag.reason) == ("flagged", "against")
    assert flag.round >= first_again + 7


def test_what_it_sends_uninvited_is_refused_as_set_aside(tmp_path: Path) -> None:
    fleet = a_fleet(tmp_path, rounds=10)
    until_version(fleet, 3)
    assert fleet.order("set-aside", "pumps", gateway=LIAR).done
    until_version(fleet, 5)
    fleet.run_until(lambda: fleet.coordinator.only.run.round is not None)
    liar = fleet.gateways[LIAR]
    round_ = fleet.coordinator.only.run.round
    assert round_ is not None
    assert LIAR not in round_.asked
    before = len(receipts(liar))
    task = fleet.tasks[0].task
    liar.counters["pumps"] += 1
    uninvited = Update(
        round_id=round_.plan.round_id,
        base=round_.plan.base_mark,
        counter=liar.counters["pumps"],
        payload=liar.payload(task, round_.plan),
        sent=0,
        received=0,
        loss=1,
    )
    for _ in range(2):  # a repeat gets the same verdict
        liar.say(Channel.ANSWER, uninvited)
        fleet.tick()
        fleet.tick()
    assert receipts(liar)[before:] == [Verdict.SET_ASIDE] * 2
    fleet.run_to_rest()
    assert build(fleet.ledger).verdicts[0].verdict == "set aside"


def test_orders_that_cannot_be_carried_out_say_why(tmp_path: Path) -> None:
    fleet = a_fleet(tmp_path, rounds=4)
    until_version(fleet, 1)
    nobody = fleet.order("set-aside", "pumps", gateway="stranger")
    assert not nobody.done
    assert nobody.result == "no gateway 'stranger' takes part in this task: `fedmq status` lists them"
    assert fleet.order("set-aside", "pumps", gateway=LIAR).done
    twice = fleet.order("set-aside", "pumps", gateway=LIAR)
    assert twice.result == f"{LIAR} is set aside already"
    other = fleet.order("readmit", "pumps", gateway="g0")
    assert other.result == f"'g0' is neither set aside nor flagged; those that are: {LIAR}"
    assert fleet.order("readmit", "pumps", gateway=LIAR).done
    fleet.run_to_rest()


def test_who_is_refused_again_and_again_is_flagged(tmp_path: Path) -> None:
    fleet = a_fleet(tmp_path, Malforming, rounds=12, set_aside_after=0)
    fleet.run_to_rest()
    (flag,) = fleet.coordinator.only.book.flags()
    assert (flag.gateway, flag.reason) == (LIAR, "refused")
    assert "malformed 4" in flag.evidence


def test_other_bytes_for_the_same_round_are_counted_against_a_gateway(tmp_path: Path) -> None:
    fleet = a_fleet(tmp_path, rounds=8)
    liar = fleet.gateways[LIAR]
    seen: set[int] = set()

    def conflict() -> bool:
        for round_id, update in list(liar.sent.items()):
            if round_id not in seen:
                seen.add(round_id)
                liar.counters["pumps"] += 1
                liar.say(
                    Channel.ANSWER,
                    Update(
                        round_id=round_id,
                        base=update.base,
                        counter=liar.counters["pumps"],
                        payload=b"other bytes",
                        sent=0,
                        received=0,
                        loss=1,
                    ),
                )
        return bool(fleet.coordinator.only.book.flags())

    fleet.run_until(conflict)
    (flag,) = fleet.coordinator.only.book.flags()
    assert (flag.gateway, flag.reason) == (LIAR, "refused")
    assert "conflict 4" in flag.evidence
    assert next(line.conflicts for line in build(fleet.ledger).gateways if line.name == LIAR) >= 4


# -- how long an update may be ---------------------------------------------------------------------------------------


def test_an_update_far_longer_than_usual_is_refused_though_the_task_allows_it(tmp_path: Path) -> None:
    fleet = a_fleet(tmp_path, Growing, rounds=12)
    until_version(fleet, 8)
    bound = fleet.coordinator.only.run.watch.norm_bound
    fleet.kill_coordinator()
    fleet.start_coordinator()
    assert fleet.coordinator.only.run.watch.norm_bound == bound
    fleet.run_to_rest()

    by_base = {fleet.ledger.round(a.round).base: a for a in answers_of(fleet, LIAR)}  # type: ignore[union-attr]
    assert {by_base[n].verdict for n in range(6)} == {"accepted"}
    refused = [answer.verdict for base, answer in by_base.items() if base >= 6]
    assert refused == ["norm"] * 5, "and then it is not asked for a while"
    longest = max(a.norm or 0.0 for a in fleet.ledger.answers() if a.verdict == "accepted")
    assert by_base[7].norm is not None
    assert longest < by_base[7].norm < fleet.tasks[0].task.max_norm
    assert receipts(fleet.gateways[LIAR])[-1] is Verdict.NORM
    assert [flag.reason for flag in fleet.coordinator.only.book.flags()] == ["refused"]


# -- weight ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [NAMES, NAMES[:3], ["g0", LIAR]])
def test_a_boast_in_a_birth_gains_four_medians_at_most(tmp_path: Path, names: list[str]) -> None:
    fleet = a_fleet(tmp_path, Boasting, rounds=3, names=names)
    fleet.run_to_rest()
    weights = {a.gateway: a.weight for a in fleet.ledger.answers() if a.kind == "update"}
    assert weights[LIAR] <= 4 * weights["g0"]


def test_a_boast_gains_no_more_where_few_are_asked(tmp_path: Path) -> None:
    fleet = a_fleet(tmp_path, Boasting, rounds=12, fraction=0.34)
    fleet.run_to_rest()
    weights = {a.gateway: a.weight for a in fleet.ledger.answers() if a.kind == "update"}
    assert set(weights) == set(NAMES)
    assert weights[LIAR] == 4 * weights["g0"]


def test_a_birth_during_a_round_does_not_change_the_weight_in_it(tmp_path: Path) -> None:
    fleet = a_fleet(tmp_path, rounds=4)
    until_version(fleet, 1)
    fleet.run_until(lambda: fleet.coordinator.only.run.round is not None)
    run: Run = fleet.coordinator.only.run
    assert run.round is not None
    number = run.round.plan.round_id
    before = run.weight_of(LIAR, number)
    fleet.gateways[LIAR].__class__ = Boasting
    fleet.gateways[LIAR].born()
    events = []
    while (event := fleet.session.next(0)) is not None:
        events.append(event)
    fleet.coordinator.step([e for e in events if getattr(e, "topic", "").endswith("status")], fleet.now)
    assert fleet.coordinator.only.members.windows(LIAR) > 1_000_000
    assert run.weight_of(LIAR, number) == before


# -- how much ----------------------------------------------------------------------------------------------------------


def flood(fleet: ScriptedFleet, messages: Callable[[int], list[tuple[Channel, Message]]], seconds: float) -> None:
    """A thousand messages a second from the liar, beside what everybody does."""
    liar = fleet.gateways[LIAR]
    count = itertools.count()
    until = fleet.now + seconds
    while fleet.now < until:
        for _ in range(100):
            for channel, message in messages(next(count)):
                liar.say(channel, message)
        fleet.tick()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Message]]:
    """All that the coordinator says: to whom, and what."""
    heard: list[tuple[str, Message]] = []
    taken = Outbox.take

    def take(self: Outbox) -> list[Outgoing]:
        out = taken(self)
        for one in out:
            where = parse(one.topic)
            if where.channel is not Channel.REPORT:
                heard.append((where.gateway or "", from_bytes(where.spec, one.payload)))
        return out

    monkeypatch.setattr(Outbox, "take", take)
    return heard


def refused_for_rate(fleet: ScriptedFleet) -> dict[str, int]:
    return {channel: messages for channel, reason, messages, _ in fleet.ledger.refused() if reason == "rate"}


LIMITS = LimitSettings(catch_up_gather_seconds=0.0, messages_per_second=50, messages_burst=200, births_per_minute=10)


def test_a_flood_is_dropped_unread_and_the_rounds_of_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, said: list[tuple[str, Message]]
) -> None:
    quiet = a_fleet(tmp_path / "quiet", rounds=30)
    quiet.run_to_rest()
    began = [row.closed_at - row.opened_at for row in quiet.ledger.rounds() if row.closed_at]
    fleet = a_fleet(tmp_path / "flooded", rounds=30, limits=LIMITS, close_when_all_answered=True)
    until_version(fleet, 2)
    caplog.set_level(logging.WARNING)
    caplog.clear()
    said.clear()

    flood(fleet, lambda n: [(Channel.ASK, AskVerdict(round_id=1, counter=n, digest=bytes(8)))], seconds=10)

    answered = sum(isinstance(message, Receipt) and name == LIAR for name, message in said)
    assert answered <= 200 + 50 * 10 + 50
    lines = [record for record in caplog.records if "more than its share" in record.message]
    assert len(lines) == 1
    fleet.run_until(lambda: "ask" in refused_for_rate(fleet))
    fleet.gateways[LIAR].session.kill()
    fleet.run_for(11)
    assert sum(refused_for_rate(fleet).values()) >= 10_000 - answered - 50
    took = [
        max((a.received_at for a in fleet.ledger.answers(row.id) if a.gateway != LIAR), default=row.opened_at)
        - row.opened_at
        for row in fleet.ledger.rounds()
        if row.kind == "training" and row.closed_at
    ]
    assert max(took) < max(began) + 1.0


def test_who_asks_for_models_all_day_does_not_fill_the_links_of_the_others(
    tmp_path: Path, said: list[tuple[str, Message]]
) -> None:
    fleet = a_fleet(tmp_path, rounds=5, limits=LIMITS)
    fleet.run_to_rest()
    said.clear()
    lineage = fleet.coordinator.only.line.number
    flood(fleet, lambda n: [(Channel.ASK, AskModel(lineage=lineage, version=0))] if not n % 25 else [], seconds=60)
    assert sum(isinstance(message, CatchUp) for _, message in said) <= 10 + 10 + 1


def test_births_beyond_the_limit_are_not_answered_and_those_of_others_are(
    tmp_path: Path, said: list[tuple[str, Message]]
) -> None:
    fleet = a_fleet(tmp_path, rounds=5, limits=LIMITS)
    fleet.run_to_rest()
    said.clear()
    for n in range(100):
        fleet.gateways[LIAR].nonce = bytes([n]) * 8
        fleet.gateways[LIAR].born()
    fleet.gateways["g0"].nonce = b"restart!"
    fleet.gateways["g0"].born()
    fleet.tick()
    fleet.tick()
    welcomed = [name for name, message in said if isinstance(message, Welcome)]
    assert welcomed.count("g0") == 1
    assert 1 <= welcomed.count(LIAR) <= 10
    fleet.run_for(11)
    assert refused_for_rate(fleet)["status"] >= 90


def test_chunks_are_served_up_to_a_bound_that_lets_a_newcomer_fetch_everything(
    tmp_path: Path, said: list[tuple[str, Message]]
) -> None:
    bundle = bytes(range(256)) * 4_000  # of a megabyte
    limits = LimitSettings(catch_up_gather_seconds=0.0, served_bytes_per_minute=60_000)
    fleet = a_fleet(tmp_path, rounds=2, limits=limits)
    fleet.run_to_rest()
    job = fleet.coordinator.only
    task = job.plan.task
    digest = hashlib.sha256(bundle).digest()
    brought = msgspec.structs.replace(task, model=msgspec.structs.replace(task.model, bundle=digest))
    job.plan = dataclasses.replace(job.plan, bundle=bundle, task=brought)
    fleet.coordinator._rates.serve_at_once = 4 * len(bundle)
    said.clear()
    missing = tuple(range(-(-len(bundle) // BUNDLE_CHUNK_BYTES)))
    transfer = short(digest)
    for _ in range(100):
        fleet.gateways[LIAR].say(Channel.ASK, AskChunks(transfer=transfer, missing=missing))
        fleet.run_for(1)
    served = sum(len(message.data) for _, message in said if isinstance(message, Chunk))
    assert len(bundle) <= served <= 5 * len(bundle) + 100 * 1_000 + len(bundle)
    said.clear()
    fleet.gateways["g0"].say(Channel.ASK, AskChunks(transfer=transfer, missing=missing))
    fleet.run_for(1)
    assert sum(len(message.data) for name, message in said if isinstance(message, Chunk)) >= len(bundle)


def test_reasons_that_quote_what_came_do_not_fill_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for n in range(1_000):
        ledger.count_refused("answer", f"expected 3, got {n}", 10)
    ledger.count_refused("ask", "rate", 500, messages=25)
    rows = ledger.refused()
    assert len(rows) <= 66
    assert sum(messages for channel, _, messages, _ in rows if channel == "answer") == 1_000
    assert ("ask", "rate", 25, 500) in rows
    ledger.close()
