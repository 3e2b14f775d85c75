"""Eve has the broker: every topic is hers to read and to write. Whom do gateways and coordinator believe?

On the shared plant she forges and repeats what she hears. What needs a coordinator that says something odd, or says
nothing any more, has a broker and one gateway of its own, and a coordinator that is played here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from fedmq_broker_config.run import LocalBroker
from fedmq_protocol import identity
from fedmq_protocol.messages import (
    Assignment,
    Birth,
    Message,
    Receipt,
    RoundKind,
    RoundPlan,
    Update,
    Verdict,
    Welcome,
    bitmap,
    check_of,
    split,
    to_bytes,
)
from fedmq_protocol.messages import from_bytes as message_of
from fedmq_protocol.session import Connection, MqttSession, Received
from fedmq_protocol.signing import CoordinatorSeals, key_to_pem
from fedmq_protocol.task import ModelSpec, Task, Windowing, initial_steps, model_digest, short
from fedmq_protocol.topics import Channel, coordinator_filters, parse
from processes import FEDERATION, PATIENCE_SECONDS, Program, fedmq, small_fleet
from redteam import FLOATS, MAIN, CertifiedSite, Eve, Outcome, Stand, cmd, down, plan_of, up
from redteam_payloads import Forger
from trust import TrustAuthority

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PLAN = down(Channel.PLAN)
VICTIM = "honest-1"


def real_plan(stand: Stand, eve: Eve, task: str = MAIN) -> tuple[RoundPlan, bytes]:
    """The next plan of a training round, as she hears it."""
    seen = len(eve.heard(PLAN))

    def found() -> list[tuple[RoundPlan, bytes]]:
        plans = [(plan_of(data), data) for data in eve.heard(PLAN)[seen:]]
        return [
            (plan, data)
            for plan, data in plans
            if plan is not None and plan.kind is RoundKind.TRAINING and stand.task_names.get(plan.lineage) == task
        ]

    eve.until(found, f"a plan of {task}")
    return found()[0]


def later(plan: RoundPlan) -> RoundPlan:
    """What every gateway would answer: the next round but many, open for long."""
    return msgspec.structs.replace(plan, round_id=plan.round_id + 1_000_000, closes_after=plan.closes_after + 600)


def nobody_believes(stand: Stand, eve: Eve, data: bytes, reason: str) -> None:
    """Every honest gateway says why it drops these bytes as a plan; the rounds go on, on the version that they were."""
    marks = {name: len(stand.gateway_log(name)) for name in stand.names}
    assert eve.publish(PLAN, data) == "Success"
    line = f"dropped {len(data)} bytes on {PLAN}: {reason}"
    for name in stand.names:
        stand.site.poll(
            lambda name=name: line in stand.gateway_log(name)[marks[name] :],  # type: ignore[misc]
            f"{line!r} in the log of {name}",
        )
    stand.honest_round_went_on()
    forged = plan_of(data)
    if forged is not None:
        answered = f"round {forged.round_id}: loss"
        assert all(stand.gateway_log(name).count(answered) <= 1 for name in stand.names)
        if forged.round_id >= 1_000_000:
            assert all(answered not in stand.gateway_log(name) for name in stand.names)


@pytest.fixture
def eve(stand: Stand) -> Iterator[Eve]:
    with stand.eve() as eve:
        eve.subscribe("#")
        yield eve


@pytest.mark.attack("unsigned plan")
def test_a_plan_without_a_signature_is_dropped(stand: Stand, eve: Eve, outcome: Outcome) -> None:
    plan, _ = real_plan(stand, eve)
    nobody_believes(stand, eve, to_bytes(later(plan)), "no seal, a signature expected")
    outcome("gateway: signature")


@pytest.mark.attack("plan signed with the wrong key")
def test_a_plan_signed_with_another_key_is_dropped(stand: Stand, eve: Eve, outcome: Outcome) -> None:
    plan, _ = real_plan(stand, eve)
    forged = later(plan)
    # Another root of the same name and version: all is right but the key.
    seals = TrustAuthority(FEDERATION).coordinator(time.time)
    data = seals.seal(PLAN, parse(PLAN), forged, to_bytes(forged))
    nobody_believes(stand, eve, data, "not signed by the coordinator's key of root 1")
    # A MAC is no signature, whoever made it.
    with stand.insider("mallory-signs") as mallory:
        where = cmd(mallory.name, Channel.RECEIPT)
        mac = mallory.seals.seal(up(mallory.name, Channel.ANSWER), parse(where), forged, to_bytes(forged))
    nobody_believes(stand, eve, mac, "a MAC, a signature expected")
    outcome("gateway: signature")


@pytest.mark.attack("signed plan, one bit flipped")
@pytest.mark.parametrize("place", ["signature", "body", "seal taken off"])
def test_a_plan_that_was_changed_on_its_way_is_dropped(stand: Stand, eve: Eve, outcome: Outcome, place: str) -> None:
    plan, data = real_plan(stand, eve)
    changed = bytearray(data)
    if place == "signature":
        changed[-1] ^= 1
        reason = "not signed by the coordinator's key of root 1"
    elif place == "body":
        # In the delta, where a message stays a message.
        assert isinstance(plan.delta, bytes)
        changed[bytes(data).index(plan.delta) + len(plan.delta) // 2] ^= 1
        reason = "not signed by the coordinator's key of root 1"
    else:
        changed = bytearray(split(data).plain)
        reason = "no seal, a signature expected"
    nobody_believes(stand, eve, bytes(changed), reason)
    outcome("gateway: signature, over the whole message")


@pytest.mark.attack("old signed plan, replayed")
def test_an_old_plan_that_is_told_again_changes_nothing(stand: Stand, eve: Eve, outcome: Outcome) -> None:
    old, data = real_plan(stand, eve)
    stand.honest_round_went_on(old.round_id)
    real_plan(stand, eve)
    before = {a.gateway: (a.counter, a.digest) for a in stand.site.ledger.answers(old.round_id)}
    marks = {name: len(stand.gateway_log(name)) for name in stand.names}
    heard = len(eve.messages)
    for _ in range(20):
        assert eve.publish(PLAN, data) == "Success"
    stand.honest_round_went_on()
    real_plan(stand, eve)
    # Nobody trains for it again, asks about it, or goes back to its version.
    for name in stand.names:
        said = stand.gateway_log(name)[marks[name] :]
        assert f"round {old.round_id}:" not in said
        assert "must catch up" not in said
        assert "joining again" not in said
    asked = [text for text, _, _ in eve.messages[heard:] if text.endswith(("/ask", "/status"))]
    assert asked == []
    assert {a.gateway: (a.counter, a.digest) for a in stand.site.ledger.answers(old.round_id)} == before
    outcome("gateway: rounds only go on")


@pytest.mark.attack("plan of another federation or task")
@pytest.mark.parametrize("of", ["federation", "task", "channel"])
def test_what_was_signed_for_another_place_is_dropped(stand: Stand, eve: Eve, outcome: Outcome, of: str) -> None:
    plan, data = real_plan(stand, eve, FLOATS if of == "task" else MAIN)
    if of == "federation":
        # Even with the right key: a coordinator of two federations must not be taken for itself.
        forged = later(plan)
        where = f"fl/1/works/down/{Channel.PLAN.value}"
        data = stand.keys.coordinator_seals().seal(where, parse(where), forged, to_bytes(forged))
    elif of == "channel":
        # A welcome's plan is signed on the welcome's topic.
        forged = later(plan)
        where = cmd(VICTIM, Channel.WELCOME)
        data = stand.keys.coordinator_seals().seal(where, parse(where), forged, to_bytes(forged))
    else:
        # The plan of one task under the number of the other.
        main = next(number for number, name in stand.task_names.items() if name == MAIN)
        found = split(data)
        swapped = found.covered.replace(_packed(plan.lineage), _packed(main))
        assert swapped != found.covered
        data = swapped + found.trailer
    nobody_believes(stand, eve, data, "not signed by the coordinator's key of root 1")
    outcome("gateway: the signature is over topic and lineage, too")


def _packed(number: int) -> bytes:
    return msgspec.msgpack.encode(number)


@pytest.mark.attack("receipt forged by another gateway")
def test_a_receipt_that_the_coordinator_did_not_give_is_dropped(stand: Stand, eve: Eve, outcome: Outcome) -> None:
    where = cmd(VICTIM, Channel.RECEIPT)
    plan, _ = real_plan(stand, eve)
    counter = max(a.counter for a in stand.site.answers_of(VICTIM))
    receipt = Receipt(round_id=plan.round_id, counter=counter, verdict=Verdict.NON_FINITE)
    mark = len(stand.gateway_log(VICTIM))
    assert eve.publish(where, to_bytes(receipt)) == "Success"
    with stand.insider("mallory-receipts") as mallory:
        # By way of the broker's owner, the other gateway gets past the ACL, and no further.
        data = mallory.seals.seal(where, parse(where), receipt, to_bytes(receipt))
        assert eve.publish(where, data) == "Success"
    for reason in ("no seal, a MAC expected", "its MAC is not of the key of this gateway's start"):
        stand.site.poll(lambda reason=reason: reason in stand.gateway_log(VICTIM)[mark:], reason)  # type: ignore[misc]
    stand.honest_round_went_on()
    assert "was not taken" not in stand.gateway_log(VICTIM)[mark:]
    outcome("gateway: MAC")


@pytest.mark.attack("publishes on another gateway's topic")
def test_an_answer_that_its_gateway_did_not_give_is_refused(stand: Stand, eve: Eve, outcome: Outcome) -> None:
    where = up(VICTIM, Channel.ANSWER)
    before = stand.refused_messages(Channel.ANSWER, "its MAC is not of the key")
    with stand.insider("mallory-speaks") as mallory:
        plan = mallory.next_plan(MAIN)
        payload = Forger(mallory.task(MAIN), plan, stand.steps(plan)).honest()
        update = Update(
            round_id=plan.round_id, base=plan.base_mark, counter=1 << 40, payload=payload, sent=0, received=0, loss=0
        )
        # Past the ACL, with a seal of its own for the victim's topic.
        assert eve.publish(where, mallory.seals.seal(where, parse(where), update, to_bytes(update))) == "Success"
        stand.site.poll(
            lambda: stand.refused_messages(Channel.ANSWER, "its MAC is not of the key") == before + 1, "the refusal"
        )
        mallory.decline(plan)
        assert stand.honest_round_went_on(plan.round_id).id == plan.round_id
    (answer,) = [a for a in stand.site.ledger.answers(plan.round_id) if a.gateway == VICTIM]
    assert answer.counter < 1 << 40
    outcome("coordinator: MAC")


@pytest.mark.attack("identity in the payload differs from the topic")
def test_a_birth_with_somebody_elses_card_is_refused(stand: Stand, eve: Eve, outcome: Outcome) -> None:
    where = up(VICTIM, Channel.STATUS)
    own = stand.keys.issue("mallory-card")
    nonce = bytes(range(8))
    seals = own.seals(nonce)
    birth = Birth(nonce=nonce, software="x", engines=(), signal_samples={}, sent=0, received=0, root=1, card=seals.card)
    reason = f"the card is not signed by the federation's issuer for {VICTIM}"
    before = stand.refused_messages(Channel.STATUS, reason)
    assert eve.publish(where, seals.seal(where, parse(where), birth, to_bytes(birth))) == "Success"
    stand.site.poll(lambda: stand.refused_messages(Channel.STATUS, reason) == before + 1, "the refusal")
    stand.honest_round_went_on()
    assert next(g for g in stand.site.ledger.gateways() if g.name == VICTIM).nonce != nonce
    outcome("coordinator: the card names its gateway")


# -- with a coordinator that is played here --------------------------------------------------------------------------


@dataclass(kw_only=True)
class Played:
    """One gateway process, and a coordinator with `seals` that says what a test lets it say."""

    seals: CoordinatorSeals
    session: MqttSession
    gateway: Program
    name: str
    births: list[Birth] = field(default_factory=list)
    lineage: int = field(default_factory=lambda: int(time.time()) - 1000)

    def say(self, where: str, message: Message) -> bytes:
        data = self.seals.seal(where, parse(where), message, to_bytes(message))
        assert self.session.publish(where, data)
        return data

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Take in births meanwhile."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.gateway.text()}"
            event = self.session.next(0.05)
            if isinstance(event, Received):
                message = message_of(parse(event.topic).spec, split(event.payload).plain)
                if isinstance(message, Birth):
                    assert message.card is not None
                    self.seals.know(self.name, message.nonce, message.card)
                    self.births.append(message)

    def welcome(self, task: Task) -> None:
        welcome = Welcome(
            nonce=self.births[-1].nonce, now=time.time(), roster=0, spread=0,
            tasks=(Assignment(lineage=self.lineage, counter=0, task=task),),
        )  # fmt: skip
        self.say(cmd(self.name, Channel.WELCOME), welcome)


@contextmanager
def played(stand: Stand, directory: Path, trust: TrustAuthority | None = None, **gateway: object) -> Iterator[Played]:
    """With the shared federation's keys, or with those of `trust` under the same certificates."""
    fleet = small_fleet(2)
    name = fleet.gateways[0].name
    keys = stand.keys
    with (
        LocalBroker(stand.broker_settings, directory=directory / "broker") as broker,
        CertifiedSite(directory, fleet, keys=keys, port=broker.port, gateway=gateway) as site,
    ):
        seals = keys.coordinator_seals() if trust is None else trust.coordinator(lambda: trust.expires - 1.0)
        if trust is not None:
            site.identity_of[name] = other_trust(stand, directory / "identity", name, trust)
        own = keys.coordinator_folder
        session = MqttSession(
            Connection(
                host="127.0.0.1", port=broker.port, client_id="coordinator", ca_file=keys.ca_file,
                cert_file=own / identity.CERTIFICATE, key_file=own / identity.CERTIFICATE_KEY,
            )
        )  # fmt: skip
        session.subscribe(*coordinator_filters(FEDERATION))
        session.start()
        try:
            found = Played(seals=seals, session=session, gateway=site.start_gateway(name), name=name)
            found.until(lambda: found.births, "the gateway's birth")
            yield found
        finally:
            session.stop(flush_seconds=1.0)


def other_trust(stand: Stand, folder: Path, name: str, trust: TrustAuthority) -> Path:
    """A gateway's identity with the certificate of the shared authority, and with card and roots of another one."""
    own = stand.keys.issue(name).folder
    assert own is not None
    folder.mkdir(mode=0o700)
    for part in (identity.CA_CERTIFICATE, identity.CERTIFICATE, identity.CERTIFICATE_KEY):
        (folder / part).write_bytes((own / part).read_bytes())
    (folder / identity.CARD).write_bytes(trust.card(name))
    (folder / identity.AGREEMENT_KEY).write_bytes(key_to_pem(trust.keys[name]))
    (folder / identity.TRUST).write_text(trust.chain.text(), encoding="ascii")
    for part in folder.iterdir():
        part.chmod(0o600)
    return folder


def a_task() -> Task:
    fleet = small_fleet(2)
    model = ModelSpec(kind="mlp", sizes=(22, 8, len(fleet.classes)))
    return Task(
        name="played", model=model, classes=fleet.classes,
        windowing=Windowing(sampling_rate_hz=fleet.sampling_rate_hz),
        initial=short(model_digest(initial_steps(model, 0, 12))),
    )  # fmt: skip


def a_plan(played: Played, task: Task, *, closes_in: float) -> RoundPlan:
    start = initial_steps(task.model, task.seed, task.grid_bits)
    return RoundPlan(
        round_id=1, lineage=played.lineage, kind=RoundKind.STATISTICS, base=0, model=check_of(model_digest(start)),
        closes_after=int(time.time() + closes_in) - played.lineage, drawn=bitmap([0]), accepted=0, since=1, level=0,
    )  # fmt: skip


def test_the_measure_a_played_coordinator_is_believed(stand: Stand, tmp_path: Path) -> None:
    trust = TrustAuthority(FEDERATION)
    with played(stand, tmp_path, trust) as right:
        right.welcome(a_task())
        right.until(lambda: "joined lineage" in right.gateway.text(), "the gateway to join")


@pytest.mark.attack("expired or frozen metadata")
def test_what_is_signed_by_an_expired_root_is_dropped(stand: Stand, outcome: Outcome, tmp_path: Path) -> None:
    trust = TrustAuthority(FEDERATION, expires=int(time.time()) - 3600)
    with played(stand, tmp_path, trust) as late:
        late.welcome(a_task())
        late.until(lambda: "signed by keys of root 1, which expired on" in late.gateway.text(), "the refusal")
        assert "joined lineage" not in late.gateway.text()
        assert late.gateway.process.poll() is None
    stand.honest_round_went_on()
    outcome("gateway: the root's end")


@pytest.mark.attack("expired or frozen metadata")
def test_a_gateway_that_hears_nothing_new_raises_an_alert(stand: Stand, outcome: Outcome, tmp_path: Path) -> None:
    with played(stand, tmp_path, stale_hours=2 / 3600) as silent:
        task = a_task()
        silent.welcome(task)
        silent.until(lambda: "joined lineage" in silent.gateway.text(), "the gateway to join")
        # From here on somebody repeats one old plan, rightly signed, and keeps back all that is new.
        old = silent.say(PLAN, a_plan(silent, task, closes_in=-300))

        def alerted() -> bool:
            silent.session.publish(PLAN, old)
            return "ALERT: nothing new and signed by the coordinator" in silent.gateway.text()

        silent.until(alerted, "an alert")
        config = tmp_path / "gateways" / silent.name / "gateway.toml"
        assert "ALERT: nothing new and signed" in fedmq("gateway", "--config", str(config), "--show").stdout
        # With the first news it is over.
        silent.say(PLAN, a_plan(silent, task, closes_in=600))
        silent.until(lambda: "the coordinator is heard again" in silent.gateway.text(), "the end of the alert")
    stand.honest_round_went_on()
    outcome("gateway: an alert of its own, also shown by `fedmq gateway --show`", "noticed")
