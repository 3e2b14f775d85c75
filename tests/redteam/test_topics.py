"""Who may write and read what: a gateway with a certificate reaches for topics that are not its own."""

from __future__ import annotations

import msgspec
import pytest
from fedmq_protocol.condition import AlertState, Condition, MachineState
from fedmq_protocol.messages import AskVerdict, Birth, Decline, Receipt, Verdict, to_bytes
from fedmq_protocol.reasons import Reason
from fedmq_protocol.topics import Channel
from redteam import MAIN, NOT_AUTHORIZED, Insider, Outcome, Stand, cmd, down, up

pytestmark = [pytest.mark.broker, pytest.mark.slow]

VICTIM = "honest-1"


@pytest.mark.attack("publishes on another gateway's topic")
def test_nobody_speaks_under_another_gateways_name(stand: Stand, outcome: Outcome) -> None:
    with stand.insider("mallory-speaks") as mallory:
        plan = mallory.next_plan(MAIN)
        # If it were heard, the victim would have declined the round, and been born anew.
        decline = to_bytes(Decline(round_id=plan.round_id, reason=Reason.BATTERY, sent=0, received=0))
        birth = Birth(nonce=bytes(8), software="x", engines=(), signal_samples={}, sent=0, received=0)
        for qos in (1, 0):
            said = "" if qos == 0 else NOT_AUTHORIZED
            assert mallory.publish(up(VICTIM, Channel.ANSWER), decline, qos=qos) == said
            assert mallory.publish(up(VICTIM, Channel.STATUS), to_bytes(birth), qos=qos, retain=True) == said
        mallory.decline(plan)
        closed = stand.honest_round_went_on(plan.round_id)
        assert closed.id == plan.round_id
    (answer,) = [a for a in stand.site.ledger.answers(plan.round_id) if a.gateway == VICTIM]
    assert (answer.kind, answer.verdict) == ("update", "accepted")
    assert next(g for g in stand.site.ledger.gateways() if g.name == VICTIM).nonce != bytes(8)
    outcome("broker: ACL")


@pytest.mark.attack("gateway publishes a plan")
def test_a_gateway_opens_no_round(stand: Stand, outcome: Outcome) -> None:
    with stand.insider("mallory-plans") as mallory:
        plan = mallory.next_plan(MAIN)
        mallory.decline(plan)
        forged = msgspec.structs.replace(plan, round_id=plan.round_id + 1_000_000, closes_after=plan.closes_after + 60)
        data = to_bytes(forged)
        assert mallory.publish(down(Channel.PLAN), data) == NOT_AUTHORIZED
        assert mallory.publish(down(Channel.PLAN), data, retain=True) == NOT_AUTHORIZED
        mallory.publish(down(Channel.PLAN), data, qos=0)
        for channel in (Channel.CHUNK, Channel.MODEL, Channel.REPORT, Channel.FLEET):
            assert mallory.publish(down(channel), b"anything") == NOT_AUTHORIZED
        stand.honest_round_went_on()
        # It listens itself: a plan that had gone out would be here before the next one.
        later = mallory.next_plan(MAIN)
        mallory.decline(later)
        assert forged.round_id not in {plan.round_id for plan in mallory.plans}
    assert all(f"round {forged.round_id}" not in stand.gateway_log(name) for name in stand.names)
    assert {a.gateway for a in stand.site.ledger.answers(forged.round_id)} == set()
    outcome("broker: ACL")


@pytest.mark.attack("subscribes to another gateway's commands")
def test_nobody_reads_what_is_for_another_gateway(stand: Stand, outcome: Outcome) -> None:
    with stand.insider("mallory-beside") as beside, stand.insider("mallory-listens") as mallory:
        # Mosquitto grants a subscription and then delivers nothing: what counts is what comes.
        for pattern in ("#", "fl/1/plant/cmd/+/+", cmd(beside.name, Channel.RECEIPT), up(VICTIM, Channel.STATUS)):
            mallory.subscribe(pattern)
        beside.say(Channel.ASK, AskVerdict(round_id=1, counter=1, digest=bytes(8)))
        beside.until(lambda: beside.heard(cmd(beside.name, Channel.RECEIPT)), "a receipt")
        # After that receipt comes one of its own, on the same connection to the broker.
        mallory.say(Channel.ASK, AskVerdict(round_id=1, counter=1, digest=bytes(8)))
        mallory.until(lambda: mallory.heard(cmd(mallory.name, Channel.RECEIPT)), "a receipt of its own")
        stand.honest_round_went_on()
        foreign = {
            text for text, _, _ in mallory.messages if "/up/" in text or ("/cmd/" in text and mallory.name not in text)
        }
    assert foreign == set()
    outcome("broker: ACL; the subscription gets nothing")


@pytest.mark.attack("receipt forged by another gateway")
def test_a_gateway_gives_no_receipts(stand: Stand, outcome: Outcome) -> None:
    with stand.insider("mallory-receipts") as mallory:
        plan = mallory.next_plan(MAIN)
        counter = max(a.counter for a in stand.site.answers_of(VICTIM))
        for verdict in (Verdict.NON_FINITE, Verdict.ACCEPTED):
            for known in (counter, counter + 1):
                forged = to_bytes(Receipt(round_id=plan.round_id, counter=known, verdict=verdict))
                assert mallory.publish(cmd(VICTIM, Channel.RECEIPT), forged) == NOT_AUTHORIZED
                mallory.publish(cmd(VICTIM, Channel.RECEIPT), forged, qos=0)
        mallory.decline(plan)
        closed = stand.honest_round_went_on(plan.round_id)
        assert closed.id == plan.round_id
    assert "was not taken" not in stand.gateway_log(VICTIM)
    outcome("broker: ACL")


@pytest.mark.attack("tells of another gateway's machines")
def test_a_gateway_tells_of_its_own_machines_alone(stand: Stand, outcome: Outcome) -> None:
    machine = MachineState(name="press-1", kind="press", state="running", zone="D", learnt_pct=100, level=300, at=1)
    alert = AlertState(
        number=1,
        machine="press-1",
        kind="vibration",
        state="open",
        severity="alarm",
        level=300,
        sensor="press-1-de",
        label=None,
        verdict=None,
        opened_at=1,
        from_at=1,
        to_at=None,
    )
    told = Condition(counter=1, book=b"book", since=0, upto=1, alerts=(alert,), machines=(machine,))
    ledger = stand.site.ledger
    with stand.insider("mallory-tells") as mallory, stand.eve() as eve:
        # By the broker's ACL she reaches no other gateway's topic, and with the ACL out of the way the MAC is not the
        # victim's: her own, none, and that of what she has said herself on her own topic.
        forged = mallory.wire(Channel.CONDITION, told)
        assert mallory.publish(up(VICTIM, Channel.CONDITION), forged) == NOT_AUTHORIZED
        mallory.publish(up(VICTIM, Channel.CONDITION), forged, qos=0)
        before = refused(stand)
        for data in (forged, to_bytes(told)):
            assert eve.publish(up(VICTIM, Channel.CONDITION), data) in SAID_YES
        stand.site.poll(lambda: refused(stand) >= before + 2, "both to be refused")
        # Measure: the same on her own topic is taken, and is a row of hers.
        mallory.say(Channel.CONDITION, told)
        stand.site.wait(lambda ledger: ledger.alerts(), "her own alert")
    assert {(one.gateway, one.name) for one in ledger.machines()} == {("mallory-tells", "press-1")}
    assert [one.place for one in ledger.alerts()] == ["mallory-tells/1"]
    assert {one.gateway for one in ledger.watches()} == {"mallory-tells"}
    outcome("broker: ACL; coordinator: MAC")


def refused(stand: Stand) -> int:
    """Messages on machines that the coordinator did not take for their seal."""
    return sum(messages for channel, _, messages, _ in stand.site.ledger.refused() if channel == "condition")


SAID_YES = ("Success", "No matching subscribers")


@pytest.mark.attack("site A's bridge poses as site B's gateway")
def test_a_sites_bridge_carries_its_own_gateways_and_no_others(stand: Stand, outcome: Outcome) -> None:
    keys = stand.keys
    site_a, site_b = keys.issue("site-a", "site"), keys.issue("site-b", "site")
    question = AskVerdict(round_id=1, counter=1, digest=bytes(8))
    with (
        Insider(stand, keys.issue("press-a"), via=site_a) as a,
        Insider(stand, keys.issue("press-b"), via=site_b) as b,
    ):
        # Each was born and welcomed by way of its own site; A's bridge reaches for B's gateway, and for one that has
        # a connection of its own.
        a.subscribe("fl/1/plant/cmd/+/+")
        data = b.wire(Channel.ASK, question)
        for where in (up("press-b", Channel.ASK), up(VICTIM, Channel.ASK), cmd("press-b", Channel.RECEIPT)):
            assert a.publish(where, data) == NOT_AUTHORIZED
        assert a.publish(down(Channel.PLAN), data) == NOT_AUTHORIZED
        a.publish(up("press-b", Channel.ASK), data, qos=0)
        # What is said to site B's gateway goes to B alone.
        b.say(Channel.ASK, question)
        b.until(lambda: b.heard(cmd("press-b", Channel.RECEIPT)), "press-b's receipt")
        a.say(Channel.ASK, question)
        a.until(lambda: a.heard(cmd("press-a", Channel.RECEIPT)), "press-a's receipt")
        stand.honest_round_went_on()
        assert {text for text, _, _ in a.messages if "/cmd/press-a/" not in text} == {down(Channel.PLAN)}
        assert len(b.heard(cmd("press-b", Channel.RECEIPT))) == 1, "A's question in B's name was answered"
    outcome("broker: ACL")
