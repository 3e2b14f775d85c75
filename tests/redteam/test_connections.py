"""Who is let in at the broker: certificates that are none, or are somebody else's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fedmq_protocol.messages import AskVerdict, Leave, to_bytes
from fedmq_protocol.topics import Channel
from redteam import MAIN, NOT_AUTHORIZED, Client, Insider, Outcome, Refused, Stand, cmd, up, wait_until
from redteam_keys import Keys
from redteam_payloads import Forger

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def is_kept_out(stand: Stand, client: Client, said_by_broker: str) -> None:
    """No CONNACK comes, the broker's log says why, and the rounds go on."""
    before = len(stand.broker_log())
    with pytest.raises(Refused):
        client.connect()
    wait_until(lambda: said_by_broker in stand.broker_log()[before:], f"{said_by_broker!r} in the broker's log")
    assert " as nobody" not in stand.broker_log()[before:]
    # The guard comes under the name that it shuts out, as itself, and once more a moment later.
    let_in = re.findall(rf" as {re.escape(client.client_id)} \((.*)\)", stand.broker_log()[before:])
    assert [line for line in let_in if not line.endswith("u'fedmq-guard'")] == []
    stand.honest_round_went_on()


@pytest.mark.attack("no certificate")
def test_who_shows_no_certificate_is_kept_out(stand: Stand, outcome: Outcome) -> None:
    is_kept_out(stand, stand.client(None), "peer did not return a certificate")
    outcome("broker: TLS handshake")


@pytest.mark.attack("expired certificate")
def test_a_certificate_that_is_out_of_date_is_kept_out(stand: Stand, outcome: Outcome) -> None:
    expired = stand.keys.forge("mallory-expired", begins_days=-3, days=1)
    is_kept_out(stand, stand.client(expired), "certificate verify failed")
    early = stand.keys.forge("mallory-early", begins_days=1, days=1)
    is_kept_out(stand, stand.client(early), "certificate verify failed")
    outcome("broker: TLS handshake")


@pytest.mark.attack("certificate of another authority")
@pytest.mark.parametrize("name", ["mallory-other", "honest-1", "coordinator"])
def test_a_certificate_of_another_authority_is_kept_out_whatever_its_name(
    stand: Stand, outcome: Outcome, tmp_path: Path, name: str
) -> None:
    # Its own name is that of ours, so that only the signature gives it away.
    other = Keys(tmp_path / "other").forge(name)
    before = len(stand.broker_log())
    with pytest.raises(Refused):
        stand.client(other, client_id=f"thief of {name}").connect()
    wait_until(lambda: "OpenSSL Error" in stand.broker_log()[before:], "the broker to say no")
    assert f" as {name} (" not in stand.broker_log()[before:]
    stand.honest_round_went_on()
    outcome("broker: TLS handshake")


@pytest.mark.attack("revoked certificate, new connection")
def test_a_revoked_certificate_is_kept_out(stand: Stand, outcome: Outcome) -> None:
    is_kept_out(stand, stand.client(stand.revoked), "certificate verify failed")
    outcome("broker: TLS handshake, by its list of revoked certificates")


@pytest.mark.attack("revoked while connected")
def test_who_is_revoked_while_connected_is_cut_off_and_stays_out(outcome: Outcome, tmp_path: Path) -> None:
    with Stand(tmp_path, guard=True) as own, own.insider("mallory-later") as mallory:
        plan = mallory.next_plan(MAIN)
        mallory.decline(plan)
        own.keys.revoke(mallory.name)
        mallory.until(lambda: mallory.ended is not None, "its connection to end", seconds=5.0)
        is_kept_out(own, own.client(own.keys.issue(mallory.name)), "certificate verify failed")
        own.site.poll(lambda: not own.is_present(mallory.name), "the coordinator to hear that it is gone")
        own.honest_round_went_on()
        # Nobody else was cut off on the way.
        assert all(own.gateway_log(name).count("connected with MQTT") == 1 for name in own.names)
    outcome("broker guard: cut off and shut out")


@pytest.mark.attack("revoked while connected")
def test_who_is_revoked_is_not_believed_even_where_the_broker_still_lets_it_speak(
    stand: Stand, outcome: Outcome
) -> None:
    with stand.insider("mallory-no-guard") as mallory:
        plan = mallory.next_plan(MAIN)
        mallory.decline(plan)
        stand.honest_round_went_on(plan.round_id)
        plan = mallory.next_plan(MAIN)
        # This broker has no guard.
        stand.keys.revoke(mallory.name)
        reason = f"the card of {mallory.name} is revoked"
        payload = Forger(mallory.task(MAIN), plan, stand.steps(plan)).honest()
        mallory.answer(plan, payload)
        stand.site.poll(lambda: stand.refused_messages(Channel.ANSWER, reason) == 1, "its answer to be refused")
        assert stand.answers(mallory, plan) == []
        mallory.cut()
        stand.honest_round_went_on(plan.round_id)
    # A birth under the old card changes nothing, either.
    again = Insider(stand, stand.keys.issue(mallory.name))
    again.connect()
    again.be_born()
    stand.site.poll(lambda: stand.refused_messages(Channel.STATUS, reason) >= 1, "its birth to be refused")
    again.cut()
    assert not stand.is_present(mallory.name)
    outcome("coordinator: the card's serial number is on the list")


@pytest.mark.attack("steals a client id")
@pytest.mark.parametrize("victim", ["honest-1", "coordinator"])
def test_a_stolen_client_id_pushes_nobody_out_and_gives_no_right(stand: Stand, outcome: Outcome, victim: str) -> None:
    own = stand.keys.issue(f"mallory-as-{victim}")
    with stand.client(own, client_id=victim) as thief:
        # The broker knows it by its certificate, whatever it said.
        assert f" as {own.name} (" in stand.broker_log()
        assert thief.publish(up("honest-1", Channel.STATUS), b"I am honest") == NOT_AUTHORIZED
        assert thief.publish(cmd("honest-2", Channel.RECEIPT), b"I am the coordinator") == NOT_AUTHORIZED
        stand.honest_round_went_on()
        assert thief.ended is None
    assert "another client came with our client id" not in stand.program(victim).text()
    assert stand.program(victim).text().count("connected with MQTT") == 1
    outcome("broker: the certificate's CN takes the client id's place")


@pytest.mark.attack("certificate with CN + or #")
@pytest.mark.parametrize("name", ["+", "#", "honest-1/answer/#"])
def test_a_name_that_is_a_pattern_matches_nobody_elses_topics(stand: Stand, outcome: Outcome, name: str) -> None:
    # What `fedmq ca` would never issue.
    careless = stand.keys.forge(name)
    leave = to_bytes(Leave(nonce=nonce_of(stand, "honest-1"), clean=True))
    with stand.client(careless, client_id="careless") as client:
        assert client.publish(up("honest-1", Channel.STATUS), leave) == NOT_AUTHORIZED
        client.publish(up("honest-1", Channel.STATUS), leave, qos=0)
        client.subscribe("#")
        # A receipt goes to somebody else meanwhile: see there that it does not come here.
        provoke_a_receipt(stand, f"mallory-beside-{len(name)}")
        stand.honest_round_went_on()
        assert client.messages == []
        assert f'dangerous username "{name}"' in stand.broker_log()
    assert stand.is_present("honest-1")
    outcome("broker: a user name with + or # matches no pattern of the ACL")


def nonce_of(stand: Stand, name: str) -> bytes:
    """Of a gateway's present start: everyone who reads the ledger knows it."""
    return next(g.nonce for g in stand.site.ledger.gateways() if g.name == name)


def provoke_a_receipt(stand: Stand, name: str) -> None:
    """Somebody asks for a verdict, and hears it on its own topic."""
    with stand.insider(name) as asker:
        asker.say(Channel.ASK, AskVerdict(round_id=1, counter=1, digest=bytes(8)))
        asker.until(lambda: asker.heard(cmd(name, Channel.RECEIPT)), "a receipt")
