"""Who is let in at the broker: certificates that are none, or are somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_protocol.messages import AskVerdict, Leave, to_bytes
from fedmq_protocol.topics import Channel
from redteam import NOT_AUTHORIZED, Client, Outcome, Refused, Stand, cmd, up, wait_until
from redteam_keys import Keys

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def is_kept_out(stand: Stand, client: Client, said_by_broker: str) -> None:
    """No CONNACK comes, the broker's log says why, and the rounds go on."""
    before = len(stand.broker_log())
    with pytest.raises(Refused):
        client.connect()
    wait_until(lambda: said_by_broker in stand.broker_log()[before:], f"{said_by_broker!r} in the broker's log")
    assert " as nobody" not in stand.broker_log()[before:]
    assert f" as {client.client_id} (" not in stand.broker_log()[before:]
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
    assert next(g for g in stand.site.ledger.gateways() if g.name == "honest-1").present
    outcome("broker: a user name with + or # matches no pattern of the ACL")


def nonce_of(stand: Stand, name: str) -> bytes:
    """Of a gateway's present start: everyone who reads the ledger knows it."""
    return next(g.nonce for g in stand.site.ledger.gateways() if g.name == name)


def provoke_a_receipt(stand: Stand, name: str) -> None:
    """Somebody asks for a verdict, and hears it on its own topic."""
    with stand.insider(name) as asker:
        asker.say(Channel.ASK, AskVerdict(round_id=1, counter=1, digest=bytes(8)))
        asker.until(lambda: asker.heard(cmd(name, Channel.RECEIPT)), "a receipt")
