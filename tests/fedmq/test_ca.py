"""The CA's folder: what is issued, to whom, and what is left when a command is cut short."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from fedmq_protocol import identity
from fedmq_protocol.signing import Chain, key_to_pem, public_bytes, read_card, read_ed25519, read_x25519

from fedmq.ca import certificates, folder, tokens
from fedmq.ca.authority import Authority, AuthorityError, Request, TokenRefused
from fedmq.ca.certificates import CertificateError
from fedmq.ca.enrolment import request as gateway_request
from fedmq.ca.folder import FolderError
from fedmq.ca.records import RecordError
from fedmq.cli import main

START = 1_800_000_000.0
DAY = 86_400


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> Authority:
    return Authority.create(tmp_path / "ca", federation="plant", hosts=["broker.plant"], years=10, clock=clock)


def a_request(directory: Path, name: str) -> Request:
    """Of keys that are made in `directory`."""
    csr, agreement = gateway_request(name, directory)
    return Request(csr=csr.read_bytes(), agreement=agreement.read_bytes())


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def card_of(where: Path, ca: Authority, name: str) -> tuple[int, bytes]:
    root = ca.chain().newest
    card = read_card((where / "card").read_bytes(), federation=root.federation, gateway=name, issuer=root.issuer)
    return card.serial, card.agreement


def revoked(ca: Authority) -> dict[int, str]:
    """Serial numbers of the list, each with its reason."""
    found = x509.load_pem_x509_crl((ca.directory / "revoked.crl").read_bytes())
    reasons = {}
    for entry in found:
        given = [e.value.reason.value for e in entry.extensions if isinstance(e.value, x509.CRLReason)]
        reasons[entry.serial_number] = given[0] if given else "unspecified"
    return reasons


# -- init -----------------------------------------------------------------------------------------------------------


def test_keys_are_for_their_owner_alone_wherever_they_lie(ca: Authority, tmp_path: Path) -> None:
    ca.issue("press-1", "gateway", days=30, out=tmp_path / "press-1")
    keys = list(tmp_path.rglob("*.key"))
    assert {path.name for path in keys} >= {"ca.key", "root.key", "issuer.key", "signing.key", "agreement.key"}
    for path in [*keys, ca.directory / "issued.jsonl", ca.directory / "tokens.jsonl", ca.directory / "audit.log"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in (ca.directory, ca.directory / "coordinator", ca.directory / "broker", tmp_path / "press-1"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_a_ca_is_made_with_the_identities_of_coordinator_and_broker(ca: Authority) -> None:
    own = ca.directory / "coordinator"
    root = identity.read_chain(own, "plant").newest
    assert root.version == 1
    assert public_bytes(identity.read_signing(own)) == root.coordinator
    assert public_bytes(identity.read_agreement(own)) == root.agreement
    assert load(own / "client.crt").subject.rfc4514_string() == "CN=coordinator"
    broker = load(ca.directory / "broker" / "broker.crt")
    names = broker.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.plant", "localhost"]
    assert {path.name for path in (ca.directory / "broker").iterdir()} == {
        "broker.crt", "broker.key", "ca.crt", "revoked.crl",
    }  # fmt: skip
    assert identity.RevokedList(ca.directory / "revoked.crl", ca.directory / "ca.crt")() == frozenset()


def test_a_ca_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="host name or an IP address"):
        Authority.create(tmp_path / "ca", federation="plant", hosts=["not a host"], years=1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="federation"):
        Authority.create(tmp_path / "ca", federation="a/b", hosts=[], years=1)
    Authority.create(tmp_path / "ca", federation="plant", hosts=[], years=1)
    with pytest.raises(AuthorityError, match="not empty"):
        Authority.create(tmp_path / "ca", federation="plant", hosts=[], years=1)
    with pytest.raises(AuthorityError, match="fedmq ca init"):
        Authority(tmp_path / "elsewhere")


# -- certificates ---------------------------------------------------------------------------------------------------


def test_certificate_and_card_of_a_gateway_have_one_serial_number_and_its_keys(ca: Authority, tmp_path: Path) -> None:
    where = ca.issue("press-1", "gateway", days=30, out=tmp_path / "press-1")
    certificate = load(where / "client.crt")
    serial, agreement = card_of(where, ca, "press-1")
    assert certificate.serial_number == serial
    assert 1 <= serial < 1 << 63
    assert agreement == public_bytes(identity.read_agreement(where))
    key = certificates.read_key((where / "client.key").read_bytes(), "client.key")
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(load(where / "ca.crt"))
    assert identity.read_chain(where, "plant").newest == ca.chain().newest


def test_without_a_folder_keys_stay_in_the_ca(ca: Authority) -> None:
    assert ca.issue("press-1", "gateway", days=30) == ca.directory / "identities" / "press-1"
    assert (ca.directory / "identities" / "press-1" / "client.key").is_file()


@pytest.mark.parametrize("name", ["+", "#", "a/b", "a+", "", "a b", "fedmq CA of plant", "a\nb", "é", "a" * 64])
def test_a_name_that_could_mean_more_than_one_is_not_issued(ca: Authority, tmp_path: Path, name: str) -> None:
    for doing in (
        lambda: ca.issue(name, "gateway", days=30),
        lambda: ca.token(name, "gateway", hours=1, replace=False),
        lambda: ca.card(name, b"", where="", serial=None, expires=START + DAY),
    ):
        with pytest.raises(ValueError, match="expected 1 to 63 letters"):
            doing()
    assert {one.name for one in ca.issued()} == {"coordinator", "broker"}


def test_a_name_in_force_is_not_issued_again_and_keeps_its_kind(ca: Authority, tmp_path: Path, clock: Clock) -> None:
    ca.issue("press-1", "gateway", days=30)
    with pytest.raises(AuthorityError, match="fedmq ca renew press-1"):
        ca.issue("press-1", "gateway", days=30, out=tmp_path / "other")
    ca.revoke("press-1", "key-compromise")
    with pytest.raises(AuthorityError, match="the name of a gateway"):
        ca.issue("press-1", "observer", days=30)
    with pytest.raises(AuthorityError, match="the name of a coordinator"):
        ca.issue("coordinator", "gateway", days=30)
    ca.issue("press-1", "gateway", days=30)
    clock.now += 31 * DAY
    ca.issue("press-1", "gateway", days=30)


def test_an_identity_is_not_written_over_another(ca: Authority, tmp_path: Path) -> None:
    ca.issue("press-1", "gateway", days=30, out=tmp_path / "there")
    before = (tmp_path / "there" / "client.key").read_bytes()
    with pytest.raises(AuthorityError, match="holds an identity already"):
        ca.issue("press-2", "gateway", days=30, out=tmp_path / "there")
    assert (tmp_path / "there" / "client.key").read_bytes() == before
    assert "press-2" not in {one.name for one in ca.issued()}


def test_nothing_outlives_the_ca(ca: Authority, clock: Clock) -> None:
    clock.now += 9.5 * 365 * DAY
    with pytest.raises(CertificateError, match="the CA's own certificate ends on"):
        ca.issue("press-1", "gateway", days=365)
    ca.issue("press-1", "gateway", days=30)


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> tuple[OSError | None, OSError | None]:
    """What went wrong for the server and for the client; a byte goes each way, for with TLS 1.3 a client hears only
    then that its certificate was refused."""
    ours, theirs = socket.socketpair()
    problems: list[OSError | None] = [None, None]

    def serve() -> None:
        try:
            with server.wrap_socket(ours, server_side=True) as secured:
                secured.sendall(secured.recv(1))
        except OSError as error:
            problems[0] = error
            ours.close()

    for end in (ours, theirs):
        end.settimeout(10)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(theirs, server_hostname=host) as secured:
            secured.sendall(b"x")
            assert secured.recv(1) in (b"x", b"")
    except OSError as error:
        problems[1] = error
        theirs.close()
    thread.join()
    return problems[0], problems[1]


def _contexts(ca: Authority, server: tuple[Path, Path], client: tuple[Path, Path]) -> tuple[ssl.SSLContext, ...]:
    serving, asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    serving.verify_mode = ssl.CERT_REQUIRED
    for context, own in ((serving, server), (asking, client)):
        context.load_cert_chain(*own)
        context.load_verify_locations(ca.directory / "ca.crt")
    return serving, asking


def test_a_gateway_cannot_stand_in_for_a_broker_nor_a_broker_for_a_gateway(tmp_path: Path) -> None:
    ca = Authority.create(tmp_path / "ca", federation="plant", hosts=["broker.plant"], years=10)
    where = ca.issue("broker.plant", "gateway", days=30)
    gateway = (where / "client.crt", where / "client.key")
    broker = (ca.directory / "broker" / "broker.crt", ca.directory / "broker" / "broker.key")
    assert _handshake(*_contexts(ca, broker, gateway), "broker.plant") == (None, None)
    _, refused = _handshake(*_contexts(ca, gateway, gateway), "broker.plant")
    assert "unsuitable certificate purpose" in str(refused)
    refused, _ = _handshake(*_contexts(ca, broker, broker), "broker.plant")
    assert "unsuitable certificate purpose" in str(refused)
    _, refused = _handshake(*_contexts(ca, broker, gateway), "elsewhere.plant")
    assert "ostname mismatch" in str(refused)


# -- requests -------------------------------------------------------------------------------------------------------


def test_keys_that_were_made_elsewhere_stay_there(ca: Authority, tmp_path: Path) -> None:
    asked = a_request(tmp_path / "gateway", "press-1")
    where = ca.issue("press-1", "gateway", days=30, request=asked, out=tmp_path / "answer")
    assert {path.name for path in where.iterdir()} == {"ca.crt", "trust", "card", "client.crt"}
    key = certificates.read_key((tmp_path / "gateway" / "client.key").read_bytes(), "client.key")
    assert load(where / "client.crt").public_key() == key.public_key()
    assert card_of(where, ca, "press-1")[1] == public_bytes(identity.read_agreement(tmp_path / "gateway"))


def _csr(names: list[str], key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    # A request may ask for what it likes: a CA, other names.
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("broker.plant")]), critical=False)
    )
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def test_a_request_decides_about_nothing_but_its_key(ca: Authority, tmp_path: Path) -> None:
    asked = Request(
        csr=_csr(["press-1"], certificates.new_key()), agreement=a_request(tmp_path / "g", "press-1").agreement
    )
    certificate = load(ca.issue("press-1", "gateway", days=30, request=asked) / "client.crt")
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_a_request_that_is_not_right_is_refused(ca: Authority, tmp_path: Path) -> None:
    good = a_request(tmp_path / "gateway", "press-1")
    key = certificates.new_key()
    der = bytearray(x509.load_pem_x509_csr(good.csr).public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
    private = key_to_pem(certificates.new_agreement_key())
    low = certificates.to_agreement_public(bytes(32))
    cases: list[tuple[bytes, bytes | None, str]] = [
        (_csr(["press-2"], key), good.agreement, "expected a request for 'press-1', got one for 'press-2'"),
        (_csr(["press-1", "coordinator"], key), good.agreement, "got one for 'press-1', 'coordinator'"),
        (_csr([], key), good.agreement, "no CN"),
        (_csr(["press-1"], rsa.generate_private_key(65537, 2048)), good.agreement, "P-256"),
        (_csr(["press-1"], ec.generate_private_key(ec.SECP521R1())), good.agreement, "P-256"),
        (forged, good.agreement, "not signed by the key that it brings"),
        (b"nothing", good.agreement, "expected a signing request in PEM"),
        (good.csr, None, "give its public agreement key"),
        (good.csr, private, "this is a private key"),
        (good.csr, good.csr, "expected a public key in PEM"),
        (good.csr, low, "not a key that anybody has drawn"),
    ]
    for csr, agreement, text in cases:
        with pytest.raises(ValueError, match=text) as caught:
            ca.issue("press-1", "gateway", days=30, request=Request(csr=csr, agreement=agreement))
        assert "PRIVATE" not in str(caught.value)
    assert "press-1" not in {one.name for one in ca.issued()}


# -- renewing and revoking ------------------------------------------------------------------------------------------


def test_a_renewal_keeps_the_keys_and_both_certificates_are_in_force(ca: Authority, clock: Clock) -> None:
    where = ca.issue("press-1", "gateway", days=30)
    before, card_before = load(where / "client.crt"), card_of(where, ca, "press-1")
    keys = {name: (where / name).read_bytes() for name in ("client.key", "agreement.key")}
    clock.now += 20 * DAY
    assert ca.renew("press-1", days=30) == where
    after, card_after = load(where / "client.crt"), card_of(where, ca, "press-1")
    assert after.public_key() == before.public_key()
    assert card_after[1] == card_before[1]
    assert after.serial_number == card_after[0] != before.serial_number
    assert {name: (where / name).read_bytes() for name in keys} == keys
    assert [one.is_in_force(clock.now) for one in ca.issued() if one.name == "press-1"] == [True, True]


def test_a_broker_keeps_its_hosts_unless_others_are_named(ca: Authority) -> None:
    def hosts() -> tuple[str, ...]:
        path = ca.directory / "broker" / "broker.crt"
        return certificates.read_certificate(path.read_bytes(), "broker.crt").hosts

    before = hosts()
    ca.renew("broker", days=30)
    assert hosts() == before
    ca.renew("broker", days=30, hosts=["10.0.0.5"])
    assert set(hosts()) == {"10.0.0.5", "localhost", "127.0.0.1"}


def test_revoking_takes_all_that_a_name_has(ca: Authority, clock: Clock) -> None:
    ca.issue("press-1", "gateway", days=30)
    ca.renew("press-1", days=30)
    ca.issue("press-2", "gateway", days=30)
    held = ca.revoke("press-1", "key-compromise")
    assert len(held) == 2
    assert revoked(ca) == {one.number: "keyCompromise" for one in held}
    for place in (ca.directory, ca.directory / "broker", ca.directory / "coordinator"):
        listed = identity.RevokedList(place / "revoked.crl", ca.directory / "ca.crt")
        assert listed() == {one.number for one in held}
    names = (ca.directory / "revoked.names").read_text().splitlines()
    assert names == [f"{one.serial} press-1" for one in held]
    with pytest.raises(AuthorityError, match="press-1 is revoked"):
        ca.renew("press-1", days=30)
    with pytest.raises(AuthorityError, match="nothing of press-1 is in force"):
        ca.revoke("press-1", "unspecified")
    with pytest.raises(AuthorityError, match="nothing was ever issued to 'press-9'"):
        ca.revoke("press-9", "unspecified")


def test_each_list_has_the_next_number_holds_for_years_and_is_never_older(ca: Authority, clock: Clock) -> None:
    def read() -> x509.CertificateRevocationList:
        return x509.load_pem_x509_crl((ca.directory / "revoked.crl").read_bytes())

    lists = [read()]
    for place in range(3):
        ca.issue(f"g{place}", "gateway", days=30)
        clock.now -= 3 * DAY  # a clock that was set right, backwards
        ca.revoke(f"g{place}", "unspecified")
        lists.append(read())
    numbers = [one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for one in lists]
    assert numbers == [1, 2, 3, 4]
    begins = [one.last_update_utc for one in lists]
    assert begins == sorted(begins)
    assert all(one.next_update_utc is not None for one in lists)
    assert all((one.next_update_utc - one.last_update_utc).days > 9 * 365 for one in lists if one.next_update_utc)


def test_a_name_that_has_new_keys_is_welcome_and_its_old_ones_are_not(ca: Authority) -> None:
    ca.issue("press-1", "gateway", days=30)
    (old,) = ca.revoke("press-1", "key-compromise")
    assert revoked(ca) == {old.number: "keyCompromise"}
    ca.issue("press-1", "gateway", days=30)
    # The broker's guard shuts out names, but those that were superseded.
    assert revoked(ca) == {old.number: "superseded"}
    (new,) = ca.revoke("press-1", "unspecified")
    assert revoked(ca) == {old.number: "keyCompromise", new.number: "unspecified"}


def test_publishing_copies_both_lists(ca: Authority, tmp_path: Path) -> None:
    ca.issue("press-1", "gateway", days=30)
    ca.revoke("press-1", "unspecified")
    with pytest.raises(AuthorityError, match="no such folder"):
        ca.publish(tmp_path / "etc")
    (tmp_path / "etc").mkdir()
    ca.publish(tmp_path / "etc")
    assert {path.name for path in (tmp_path / "etc").iterdir()} == {"revoked.crl", "revoked.names"}
    for name in ("revoked.crl", "revoked.names"):
        assert (tmp_path / "etc" / name).read_bytes() == (ca.directory / name).read_bytes()


# -- cards alone ----------------------------------------------------------------------------------------------------


def test_a_card_for_a_certificate_of_another_ca(ca: Authority, tmp_path: Path, clock: Clock) -> None:
    agreement = a_request(tmp_path / "gateway", "press-1").agreement
    assert agreement is not None
    root = ca.chain().newest
    card = ca.card("press-1", agreement, where="agreement.pub", serial=77, expires=START + 10 * DAY)
    found = read_card(card, federation="plant", gateway="press-1", issuer=root.issuer)
    assert (found.serial, found.expires) == (77, int(START + 10 * DAY))
    assert found.agreement == public_bytes(identity.read_agreement(tmp_path / "gateway"))
    ca.revoke("press-1", "unspecified")
    assert 77 in revoked(ca)
    with pytest.raises(AuthorityError, match="is revoked: issue a new certificate first"):
        ca.card("press-1", agreement, where="agreement.pub", serial=77, expires=START + 10 * DAY)
    ca.issue("press-2", "gateway", days=30)
    with pytest.raises(AuthorityError, match="has a certificate of this CA"):
        ca.card("press-2", agreement, where="agreement.pub", serial=78, expires=START + 10 * DAY)


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_works_once_and_the_same_request_hears_the_same_again(ca: Authority, tmp_path: Path) -> None:
    text = ca.token("press-1", "gateway", hours=24, replace=False)
    asked = a_request(tmp_path / "gateway", "press-1")
    first = ca.redeem(text, asked, days=30)
    # What was answered was lost on the way, and the gateway asks again.
    assert ca.redeem(text, asked, days=30) == first
    other = a_request(tmp_path / "other", "press-1")
    with pytest.raises(TokenRefused, match="has been used"):
        ca.redeem(text, other, days=30)
    with pytest.raises(TokenRefused, match="has been used, with another agreement key"):
        ca.redeem(text, Request(csr=asked.csr, agreement=other.agreement), days=30)
    assert [one.name for one in ca.issued()].count("press-1") == 1
    ca.revoke("press-1", "unspecified")
    with pytest.raises(TokenRefused, match="has been used"):
        ca.redeem(text, asked, days=30)


def test_a_token_is_for_its_name_and_its_time(ca: Authority, tmp_path: Path, clock: Clock) -> None:
    asked = a_request(tmp_path / "gateway", "press-1")
    text = ca.token("press-1", "gateway", hours=24, replace=False)
    with pytest.raises(CertificateError, match="expected a request for 'press-1', got one for 'press-2'"):
        ca.redeem(text, a_request(tmp_path / "other", "press-2"), days=30)
    clock.now += 24 * 3600
    with pytest.raises(TokenRefused, match="was good until") as caught:
        ca.redeem(text, asked, days=30)
    assert not caught.value.wrong
    clock.now -= 1
    ca.redeem(text, asked, days=30)


def test_a_token_that_nobody_made_is_told_apart(ca: Authority, tmp_path: Path, clock: Clock) -> None:
    asked = a_request(tmp_path / "gateway", "press-1")
    text = ca.token("press-1", "gateway", hours=24, replace=False)
    slip = ("A" if text[0] != "A" else "B") + text[1:]
    fingerprint = tokens.read(text).fingerprint
    other = Authority.create(tmp_path / "other", federation="plant", hosts=[], years=1, clock=clock)
    foreign = other.token("press-1", "gateway", hours=1, replace=False)
    for wrong in (slip, "", "AAAAA", text * 9, tokens.draw(fingerprint).text(), foreign):
        with pytest.raises(TokenRefused) as caught:
            ca.redeem(wrong, asked, days=30)
        assert caught.value.wrong
        assert wrong == "" or wrong not in str(caught.value)
    ca.redeem(text.lower().replace("-", " "), asked, days=30)


def test_a_newer_token_and_a_revocation_withdraw_what_is_open(ca: Authority, tmp_path: Path) -> None:
    asked = a_request(tmp_path / "gateway", "press-1")
    first = ca.token("press-1", "gateway", hours=24, replace=False)
    second = ca.token("press-1", "gateway", hours=24, replace=False)
    with pytest.raises(TokenRefused, match="was withdrawn"):
        ca.redeem(first, asked, days=30)
    ca.redeem(second, asked, days=30)
    third = ca.token("press-1", "gateway", hours=24, replace=True)
    ca.revoke("press-1", "key-compromise")
    with pytest.raises(TokenRefused, match="was withdrawn"):
        ca.redeem(third, asked, days=30)


def test_only_a_token_that_says_so_replaces_what_is_in_force(ca: Authority, tmp_path: Path) -> None:
    early = ca.token("press-1", "gateway", hours=24, replace=False)
    ca.issue("press-1", "gateway", days=30)
    asked = a_request(tmp_path / "gateway", "press-1")
    with pytest.raises(AuthorityError, match="press-1 has a certificate until"):
        ca.redeem(early, asked, days=30)
    with pytest.raises(AuthorityError, match="press-1 has a certificate until"):
        ca.token("press-1", "gateway", hours=24, replace=False)
    old = ca.issued()[-1]
    new = ca.redeem(ca.token("press-1", "gateway", hours=24, replace=True), asked, days=30)
    assert revoked(ca) == {old.number: "superseded"}
    assert new.issued.number not in revoked(ca)


def test_a_token_is_not_lost_where_nothing_came_of_it(
    ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine went down between the token's mark and the certificate."""
    text = ca.token("press-1", "gateway", hours=24, replace=False)
    asked = a_request(tmp_path / "gateway", "press-1")
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "issue", lambda *given, **more: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ca.redeem(text, asked, days=30)
    assert "press-1" not in {one.name for one in ca.issued()}
    ca.redeem(text, asked, days=30)


def test_of_a_token_the_disk_holds_a_hash(ca: Authority) -> None:
    text = ca.token("press-1", "gateway", hours=24, replace=False)
    secret = tokens.read(text).secret
    for path in ca.directory.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert text.encode() not in data
            assert secret not in data
            assert secret.hex().encode() not in data
    assert repr(tokens.read(text)) == f"TokenText({tokens.read(text).fingerprint.hex()[:8]}…)"


# -- renewal by a certificate ---------------------------------------------------------------------------------------


def test_who_shows_a_certificate_in_force_is_renewed_under_its_own_name(
    ca: Authority, tmp_path: Path, clock: Clock
) -> None:
    def shown(where: Path) -> bytes:
        return load(where / "client.crt").public_bytes(Encoding.DER)

    asked = a_request(tmp_path / "gateway", "press-1")
    where = ca.issue("press-1", "gateway", days=30, request=asked)
    assert ca.renew_held(shown(where), asked, days=30).issued.name == "press-1"
    with pytest.raises(CertificateError, match="expected a request for 'press-1'"):
        ca.renew_held(shown(where), a_request(tmp_path / "g2", "press-2"), days=30)
    other = Authority.create(tmp_path / "other", federation="plant", hosts=[], years=1, clock=clock)
    with pytest.raises(CertificateError, match="not issued by this federation's CA"):
        ca.renew_held(shown(other.issue("press-1", "gateway", days=30)), asked, days=30)
    clock.now += 30 * DAY
    with pytest.raises(AuthorityError, match="has expired: enrol again"):
        ca.renew_held(shown(where), asked, days=30)
    clock.now -= 5 * DAY
    ca.revoke("press-1", "key-compromise")
    with pytest.raises(AuthorityError, match="is revoked: enrol again"):
        ca.renew_held(shown(where), asked, days=30)


def test_nobody_fills_the_disk_with_renewals(ca: Authority, tmp_path: Path) -> None:
    asked = a_request(tmp_path / "gateway", "press-1")
    shown = load(ca.issue("press-1", "gateway", days=30, request=asked) / "client.crt").public_bytes(Encoding.DER)
    for _ in range(20):
        ca.renew_held(shown, asked, days=30)
    before = len(ca.issued())
    with pytest.raises(AuthorityError, match="not again today"):
        ca.renew_held(shown, asked, days=30)
    assert len(ca.issued()) == before


# -- roots ----------------------------------------------------------------------------------------------------------


def _fits(ca: Authority) -> None:
    """The keys of the folder are those of its newest root."""
    root = ca.chain().newest
    own = ca.directory / "coordinator"
    assert public_bytes(read_ed25519((ca.directory / "root.key").read_bytes(), "root.key")) == root.root
    assert public_bytes(read_ed25519((ca.directory / "issuer.key").read_bytes(), "issuer.key")) == root.issuer
    assert public_bytes(read_ed25519((own / "signing.key").read_bytes(), "signing.key")) == root.coordinator
    assert public_bytes(read_x25519((own / "agreement.key").read_bytes(), "agreement.key")) == root.agreement
    assert identity.read_chain(own, "plant").newest == root
    assert not list(ca.directory.rglob("*.next"))


def test_the_next_root_changes_what_was_asked_for(ca: Authority) -> None:
    first = ca.chain()
    for what, parts in (
        ("coordinator", {"coordinator", "agreement"}),
        ("issuer", {"issuer"}),
        ("root", {"root"}),
    ):
        done = ca.rotate([what], years=10)  # type: ignore[list-item]
        changed = {
            p for p in ("root", "issuer", "coordinator", "agreement") if getattr(done.before, p) != getattr(done.now, p)
        }
        assert changed == parts
        _fits(ca)
    assert ca.chain().newest.version == 4
    assert first.walk(ca.chain().after(1)).newest == ca.chain().newest


def test_a_root_key_in_a_safe_is_named_and_changed_there(ca: Authority, tmp_path: Path) -> None:
    safe = tmp_path / "safe.key"
    (ca.directory / "root.key").rename(safe)
    ca.issue("press-1", "gateway", days=30)
    with pytest.raises(FolderError, match="--root-key"):
        ca.rotate(["coordinator"], years=10)
    before = safe.read_bytes()
    ca.rotate(["coordinator", "root"], years=10, root_key=safe)
    assert safe.read_bytes() != before
    assert public_bytes(read_ed25519(safe.read_bytes(), "")) == ca.chain().newest.root
    (tmp_path / "old.key").write_bytes(before)
    with pytest.raises(AuthorityError, match="is not the key of root 2"):
        ca.rotate(["coordinator"], years=10, root_key=tmp_path / "old.key")
    assert ca.chain().newest.version == 2


@pytest.mark.parametrize("after", range(12))
def test_a_rotation_cut_short_leaves_keys_that_fit(ca: Authority, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Whatever rename was the last one: the next command finds the old root and its keys, or the new ones."""
    done = 0
    real = folder.os.replace

    def replace(source: object, target: object) -> None:
        nonlocal done
        if done == after:
            raise KeyboardInterrupt
        done += 1
        real(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(folder.os, "replace", replace)
        patch.setattr(Path, "replace", lambda self, target: replace(self, target))
        try:
            ca.rotate(["root", "issuer", "coordinator"], years=10)
            whole = True
        except KeyboardInterrupt:
            whole = False
    ca.issue("press-1", "gateway", days=30)
    _fits(ca)
    version = ca.chain().newest.version
    assert version in ((2,) if whole else (1, 2))
    ca.rotate(["coordinator"], years=10)
    assert ca.chain().newest.version == version + 1
    assert Chain.read(ca.chain().text()).newest == ca.chain().newest


def test_after_another_issuer_a_renewal_gives_a_card_of_it(ca: Authority) -> None:
    where = ca.issue("press-1", "gateway", days=30)
    ca.rotate(["issuer"], years=10)
    with pytest.raises(ValueError, match="not signed by the federation's issuer"):
        card_of(where, ca, "press-1")
    ca.renew("press-1", days=30)
    card_of(where, ca, "press-1")
    assert identity.read_chain(where, "plant").newest.version == 2


# -- the folder -----------------------------------------------------------------------------------------------------


def test_two_commands_at_once_lose_nothing(ca: Authority, clock: Clock) -> None:
    problems: list[Exception] = []

    def work(place: int) -> None:
        try:
            own = Authority(ca.directory, clock=clock)
            for turn in range(3):
                own.issue(f"g{place}-{turn}", "gateway", days=30)
            own.revoke(f"g{place}-0", "unspecified")
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert {one.name for one in ca.issued()} >= {f"g{place}-{turn}" for place in range(6) for turn in range(3)}
    assert len(revoked(ca)) == 6
    assert certificates.list_number((ca.directory / "revoked.crl").read_bytes()) == 7


def test_a_command_waits_for_another_and_says_so_when_it_is_too_long(tmp_path: Path) -> None:
    with (
        folder.locked(tmp_path),
        pytest.raises(FolderError, match="another command works in"),
        folder.locked(tmp_path, 0),
    ):
        pass
    with folder.locked(tmp_path, 0):
        pass


def test_files_that_cannot_be_written_leave_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put_all(tmp_path, {"a": b"old", "b.key": b"old"})
    real, calls = folder._write, []

    def full(path: Path, data: bytes, mode: int) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(path, data, mode)

    monkeypatch.setattr(folder, "_write", full)
    with pytest.raises(FolderError, match="No space left"):
        folder.put_all(tmp_path, {"a": b"new", "b.key": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b.key": b"old"}


def test_a_damaged_record_is_named(ca: Authority) -> None:
    with (ca.directory / "issued.jsonl").open("ab") as file:
        file.write(b'{"name": "x"}\n')
    with pytest.raises(RecordError, match=r"issued.jsonl, line 3"):
        ca.issue("press-1", "gateway", days=30)


def test_a_wrong_ca_key_makes_nothing(ca: Authority) -> None:
    (ca.directory / "ca.key").write_bytes(certificates.to_pem(certificates.new_key()))
    with pytest.raises(CertificateError, match=r"ca\.key is not the key of ca\.crt"):
        ca.issue("press-1", "gateway", days=30)
    (ca.directory / "issuer.key").write_bytes((ca.directory / "root.key").read_bytes())
    assert "press-1" not in {one.name for one in ca.issued()}


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fedmq(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        status = main(["ca", *words, "--dir", str(tmp_path / "ca")])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_the_words_of_the_command(tmp_path: Path, fedmq: Callable[..., tuple[int, str, str]]) -> None:
    said = []

    def good(*words: str) -> str:
        status, out, err = fedmq(*words)
        assert status == 0, err
        said.append(out + err)
        return out

    assert "root.key" in good("init", "--federation", "plant", "--broker-host", "broker.plant")
    good("issue", "press-1", "--out", str(tmp_path / "press-1"), "--days", "20")
    good("issue", "north", "--kind", "broker", "--host", "10.0.7.2")
    good("renew", "broker")
    csr, agreement = gateway_request("press-2", tmp_path / "g2")
    good("issue", "press-2", "--csr", str(csr), "--agreement-key", str(agreement))
    _, other = gateway_request("press-3", tmp_path / "g3")
    good("card", "press-3", "--agreement-key", str(other), "--serial", "3f:21", "--out", str(tmp_path / "card"))
    good("card", "press-3", "--agreement-key", str(other), "--serial", "f" * 20, "--out", str(tmp_path / "card"))
    assert "has more than 63 bits" in said[-1]
    token = good("token", "press-4").strip()
    assert tokens.read(token)
    text = good("list")
    assert "press-1" in text
    assert "EXPIRES IN 19 DAYS" in text or "EXPIRES IN 20 DAYS" in text
    rows = {row["name"]: row for row in json.loads(good("list", "--json"))}
    assert rows["press-1"]["kind"] == "gateway"
    assert rows["press-1"]["state"] == "in force"
    good("revoke", "press-1", "--reason", "key-compromise")
    assert "revoked (key-compromise)" in good("list")
    (tmp_path / "etc").mkdir()
    good("publish", "--to", str(tmp_path / "etc"))
    assert "All cards have to be renewed" in good("rotate", "--what", "issuer")
    assert "root 3" in good("rotate")

    audit = (tmp_path / "ca" / "audit.log").read_text()
    assert {json.loads(line)["action"] for line in audit.splitlines()} >= {
        f"ca {verb}" for verb in ("init", "issue", "renew", "card", "token", "revoke", "publish", "rotate")
    }
    everything = "".join(said) + audit
    assert everything.count(token) == 1
    for path in tmp_path.rglob("*.key"):
        for line in path.read_text().splitlines():
            assert line.startswith("-----") or line not in everything


def test_mistakes_are_one_line_that_says_what_to_do(tmp_path: Path, fedmq: Callable[..., tuple[int, str, str]]) -> None:
    assert fedmq("list") == (1, "", f"fedmq ca: {tmp_path}/ca holds no CA: make one with `fedmq ca init --federation "
                                    f"NAME --dir {tmp_path}/ca`, or name its folder with --dir\n")  # fmt: skip
    fedmq("init", "--federation", "plant")
    for words, text in (
        (("issue", "north", "--kind", "broker"), "needs --host"),
        (("issue", "press-1", "--host", "h"), "hosts are for a broker"),
        (("issue", "press-1", "--csr", "nowhere.csr"), "nowhere.csr: not there"),
        (("issue", "press-1", "--agreement-key", "x.pub"), "goes with --csr"),
        (("renew", "press-1"), "nothing was ever issued to 'press-1'"),
        (("token", "coordinator"), "the name of a coordinator"),
    ):
        status, out, err = fedmq(*words)
        assert (status, out) == (1, "")
        assert text in err
        assert err.count("\n") == 1
    refused = [json.loads(line) for line in (tmp_path / "ca" / "audit.log").read_text().splitlines()]
    assert refused[-1]["outcome"].startswith("refused: ")
