"""From a token to a federation that learns: identities of `fedmq ca` at a real Mosquitto, over real TLS."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker_fixtures import expect
from cryptography import x509
from fedmq_broker_config.render import BrokerSettings, Certificates, Guarded
from fedmq_broker_config.run import LocalBroker, find_mosquitto, free_port
from fedmq_broker_config.service import Guard
from fedmq_protocol import identity
from fedmq_protocol.session import Connected, ConnectFailed, Connection, Disconnected, MqttSession
from fedmq_protocol.signing import TrustError, read_card
from processes import FEDERATION, PATIENCE_SECONDS, Site, environment, fedmq, small_fleet

from fedmq.ca import enrolment, serving
from fedmq.ca.authority import Authority
from fedmq.ca.enrolment import EnrolmentError, enrol, renew
from fedmq.ca.serving import Server

pytestmark = pytest.mark.slow


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", federation=FEDERATION, hosts=["127.0.0.1"], years=10)


@contextmanager
def serving_ca(ca: Authority, hosts: tuple[str, ...] = ()) -> Iterator[Server]:
    """Its server in a thread of this process."""
    server = Server(lambda asker: Authority(ca.directory, asker=asker), ("127.0.0.1", 0), hosts=hosts, days=30)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stopping = True
        thread.join()


@contextmanager
def broker_of(ca: Authority, directory: Path, guard: Path) -> Iterator[LocalBroker]:
    """Mosquitto as it is rendered for certificates, with the CA's folder for it."""
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    own = ca.directory / "broker"
    access = Certificates(
        ca_file=own / "ca.crt",
        cert_file=own / "broker.crt",
        key_file=own / "broker.key",
        guarded=Guarded(revoked_file=ca.directory / "revoked.crl", directory=guard / "guard"),
    )
    settings = BrokerSettings(federation=FEDERATION, access=access)
    with LocalBroker(settings, directory=directory / "broker") as broker:
        yield broker


def url_of(server: Server) -> str:
    return f"https://127.0.0.1:{server.port}"


def session_of(port: int, where: Path, name: str) -> MqttSession:
    return MqttSession(
        Connection(
            host="127.0.0.1",
            port=port,
            client_id=name,
            tls=True,
            ca_file=where / "ca.crt",
            cert_file=where / "client.crt",
            key_file=where / "client.key",
        )
    )


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


# -- a federation ---------------------------------------------------------------------------------------------------


@pytest.mark.broker
def test_a_federation_learns_with_identities_of_the_command_alone(tmp_path: Path, short_dir: Path) -> None:
    """Init, a token for one gateway, keys from the CA for the other; then three roots, of which one gateway misses two,
    and a revocation."""
    home = str(tmp_path / "ca")
    fleet = small_fleet(2)
    first, second = (own.name for own in fleet.gateways)

    def ca(*words: str) -> str:
        ended = fedmq("ca", *words, "--dir", home)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    ca("init", "--federation", FEDERATION, "--broker-host", "127.0.0.1")
    ca("issue", second, "--out", str(tmp_path / second))
    port = free_port()
    words = ["ca", "serve", "--dir", home, "--listen", f"127.0.0.1:{port}", "--host", "localhost"]
    with process(tmp_path / "serve.log", *words) as server:
        wait_for(lambda: "enrolment on port" in (tmp_path / "serve.log").read_text(), "the server")
        token = ca("token", first)
        where = str(tmp_path / first)
        asked = ["--ca", f"https://127.0.0.1:{port}", "--identity", where]
        ended = fedmq("gateway", "enrol", *asked, "--token-file", "-", "--name", first, input_text=token)
        assert ended.returncode == 0, ended.stderr
        assert f"the identity of {first} in federation {FEDERATION}" in ended.stdout
        before = load(tmp_path / first / "client.crt").serial_number
        assert "nothing to renew" in fedmq("gateway", "renew", *asked, "--if-days-left", "30").stdout
        assert load(tmp_path / first / "client.crt").serial_number == before
        assert "renewed for" in fedmq("gateway", "renew", *asked).stdout
        assert load(tmp_path / first / "client.crt").serial_number != before
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_SECONDS) == 0
    assert token.strip() not in (tmp_path / "serve.log").read_text()

    authority = Authority(tmp_path / "ca")
    own = {name: {"connection.identity_dir": str(tmp_path / name)} for name in (first, second)}
    coordinator = {"connection.identity_dir": str(tmp_path / "ca" / "coordinator"), "limits.head_hours": 1.0}
    with (
        broker_of(authority, tmp_path, short_dir) as broker,
        Site(
            tmp_path / "site",
            fleet,
            port=broker.port,
            rounds=1000,
            round_={"min_gateways": 1, "interval_seconds": 0.5, "closing_seconds": 10},
            coordinator=coordinator,
            gateway_of=own,
        ) as site,
    ):
        site.start()
        site.wait(lambda ledger: answered(site, first) and answered(site, second), "a sealed round of both")

        # One gateway is away while two roots come, whose keys are all new.
        site.stop(second)
        for what in (["coordinator", "root"], ["coordinator", "root"]):
            ca("rotate", *(word for one in what for word in ("--what", one)))
        site.stop("coordinator")
        had = {name: answered(site, name) for name in (first, second)}
        site.start_coordinator()
        site.wait(lambda ledger: answered(site, first) > had[first], "the one that was here to go on by root 3")
        assert identity.read_chain(tmp_path / second, FEDERATION).newest.version == 1
        site.start_gateway(second)
        site.wait(lambda ledger: answered(site, second) > had[second], "the one that was away to go on by root 3")

        # Out at once for the coordinator, by the list in its folder; at the broker from its next connection on.
        ca("revoke", first, "--reason", "key-compromise")
        site.wait(
            lambda ledger: {g.name: g.present for g in ledger.gateways()} == {first: False, second: True}, "its end"
        )
        had = {name: answered(site, name) for name in (first, second)}
        site.wait(lambda ledger: answered(site, second) > had[second] + 1, "rounds without it")
        assert answered(site, first) == had[first]


def answered(site: Site, name: str) -> int:
    """Updates of a gateway that count."""
    return sum(1 for answer in site.answers_of(name) if answer.verdict == "accepted")


@contextmanager
def process(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "fedmq", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
            start_new_session=True,
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.02)


# -- at the broker --------------------------------------------------------------------------------------------------


@pytest.mark.broker
def test_a_broker_takes_those_in_force_and_no_others(ca: Authority, tmp_path: Path, short_dir: Path) -> None:
    names = {name: ca.issue(name, "gateway", days=30) for name in ("press-1", "press-2")}
    other = Authority.create(tmp_path / "other", federation=FEDERATION, hosts=[], years=1)
    stranger = other.issue("press-1", "gateway", days=30)
    shutil.copy(ca.directory / "ca.crt", stranger / "ca.crt")
    as_client = shutil.copytree(ca.directory / "broker", tmp_path / "as-client")
    for name, end in (("client.crt", "broker.crt"), ("client.key", "broker.key")):
        (as_client / end).rename(as_client / name)
    with broker_of(ca, tmp_path, short_dir) as broker:
        for name, where in names.items():
            assert is_let_in(broker, where, name)
        assert not is_let_in(broker, stranger, "press-1")
        # The broker's own certificate is for servers alone.
        assert not is_let_in(broker, as_client, "broker")

        guard = Guard(broker.settings)
        guard.look()
        inside = session_of(broker.port, names["press-1"], "press-1")
        inside.start()
        try:
            expect(inside, Connected)
            ca.revoke("press-1", "key-compromise")
            guard.look()
            expect(inside, Disconnected)
        finally:
            inside.stop(flush_seconds=0)
        wait_for(lambda: not is_let_in(broker, names["press-1"], "press-1"), "the broker to refuse who is revoked")
        assert is_let_in(broker, names["press-2"], "press-2")
        again = ca.issue("press-1", "gateway", days=30, out=tmp_path / "again")
        ca.revoke("press-2", "unspecified")
        guard.look()
        wait_for(lambda: not is_let_in(broker, names["press-2"], "press-2"), "the broker to read the next list")
        assert is_let_in(broker, again, "press-1")
        assert not is_let_in(broker, names["press-1"], "press-1")
        assert guard.revocations is not None
        assert guard.revocations.shut_out == {"press-2"}


@pytest.mark.broker
def test_a_gateway_in_a_broker_s_place_is_not_believed(ca: Authority, tmp_path: Path, short_dir: Path) -> None:
    """Mosquitto with a gateway's certificate, at the address of the broker: a machine in the plant was broken into."""
    where = ca.issue("press-1", "gateway", days=30)
    own = ca.directory / "broker"
    shutil.copy(where / "client.crt", own / "broker.crt")
    shutil.copy(where / "client.key", own / "broker.key")
    other = ca.issue("press-2", "gateway", days=30)
    with broker_of(ca, tmp_path, short_dir) as broker:
        session = session_of(broker.port, other, "press-2")
        session.start()
        try:
            assert "purpose" in expect(session, ConnectFailed).reason
        finally:
            session.stop(flush_seconds=0)


def is_let_in(broker: LocalBroker, where: Path, name: str) -> bool:
    """By a TLS connection and the first packet: with TLS 1.3 a client hears only then whether it was refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(where / "ca.crt")
    context.load_cert_chain(where / "client.crt", where / "client.key")
    client = name.encode()
    body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(client).to_bytes(2, "big") + client
    try:
        with (
            socket.create_connection(("127.0.0.1", broker.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            secured.sendall(bytes([0x10, len(body)]) + body)
            return secured.recv(4) == b"\x20\x02\x00\x00"
    except (ssl.SSLError, ConnectionError):
        return False


# -- enrolment ------------------------------------------------------------------------------------------------------


def test_a_token_of_another_ca_is_not_shown_to_this_one(ca: Authority, tmp_path: Path) -> None:
    """Somebody in between answers with a CA of its own, of the same name."""
    other = Authority.create(tmp_path / "other", federation=FEDERATION, hosts=[], years=1)
    token = ca.token("press-1", "gateway", hours=1, replace=False)
    with serving_ca(other) as server, pytest.raises(EnrolmentError, match="is not the CA that made this token"):
        enrol(url_of(server), token, "press-1", tmp_path / "identity")
    assert {path.name for path in (tmp_path / "identity").iterdir()} == {"client.key", "agreement.key", "lock"}
    assert '"ca enrol"' not in (other.directory / "audit.log").read_text()
    with serving_ca(ca) as server:
        keys = (tmp_path / "identity" / "client.key").read_bytes()
        enrol(url_of(server), token, "press-1", tmp_path / "identity")
    assert (tmp_path / "identity" / "client.key").read_bytes() == keys


def test_one_who_shows_the_right_ca_without_its_key_is_not_shown_the_token(
    ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate of the CA is no secret; what counts is who can speak TLS in its name."""
    other = Authority.create(tmp_path / "other", federation=FEDERATION, hosts=[], years=1)
    real = Authority.public

    def public(self: Authority, name: str) -> bytes:
        return real(ca if name == "ca.crt" else self, name)

    monkeypatch.setattr(Authority, "public", public)
    token = ca.token("press-1", "gateway", hours=1, replace=False)
    with serving_ca(other) as server, pytest.raises(EnrolmentError, match="cannot be believed"):
        enrol(url_of(server), token, "press-1", tmp_path / "identity")
    assert '"ca enrol"' not in (other.directory / "audit.log").read_text()


def test_a_gateway_of_the_plant_cannot_take_the_place_of_the_server(ca: Authority, tmp_path: Path) -> None:
    where = ca.issue("localhost", "gateway", days=30)
    token = ca.token("press-1", "gateway", hours=1, replace=False)
    with serving_ca(ca) as server:
        server._tls.load_cert_chain(where / "client.crt", where / "client.key")
        with pytest.raises(EnrolmentError, match="cannot be believed"):
            enrol(url_of(server), token, "press-1", tmp_path / "identity")


def test_tokens_that_are_wrong_used_or_past_are_refused(
    ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = ca.token("press-1", "gateway", hours=1, replace=False)
    past = Authority(ca.directory, clock=lambda: time.time() - 7200).token("press-2", "gateway", hours=1, replace=False)
    good = ca.token("press-3", "gateway", hours=1, replace=False)
    never = ca.token("press-4", "gateway", hours=1, replace=False)
    ca.token("press-4", "gateway", hours=1, replace=False)
    with serving_ca(ca) as server:

        def refused(token: str, name: str, text: str) -> None:
            where = tmp_path / f"{name}-{text[:6]}"
            with pytest.raises(ValueError, match=text) as caught:
                enrol(url_of(server), token, name, where)
            assert token not in str(caught.value)
            assert not (where / "client.crt").exists()

        enrol(url_of(server), used, "press-1", tmp_path / "press-1")
        refused(used, "press-1", "has been used")
        refused(past, "press-2", "was good until")
        refused(never, "press-4", "was withdrawn")
        refused(good, "press-1", "expected a request for 'press-3', got one for 'press-1'")
        refused(good[:-1], "press-3", "not a token as")
        with pytest.raises(EnrolmentError, match="is an identity already"):
            enrol(url_of(server), good, "press-3", tmp_path / "press-1")
        enrol(url_of(server), good, "press-3", tmp_path / "press-3")


def test_a_gateway_whose_answer_was_lost_asks_again(
    ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = ca.token("press-1", "gateway", hours=1, replace=False)
    with serving_ca(ca) as server:
        with monkeypatch.context() as patch:
            real = serving._Handler._say

            def lose(handler: serving._Handler, status: int, data: bytes, kind: str = "application/json") -> None:
                if handler.command == "POST":
                    handler.connection.close()
                    raise ConnectionError("cut")
                real(handler, status, data, kind)

            patch.setattr(serving._Handler, "_say", lose)
            with pytest.raises(EnrolmentError, match="try again"):
                enrol(url_of(server), token, "press-1", tmp_path / "identity")
        enrol(url_of(server), token, "press-1", tmp_path / "identity")
    where = tmp_path / "identity"
    assert [one.serial for one in ca.issued() if one.name == "press-1"] == [
        f"{load(where / 'client.crt').serial_number:x}"
    ]
    root = identity.read_chain(where, FEDERATION).newest
    card = read_card((where / "card").read_bytes(), federation=FEDERATION, gateway="press-1", issuer=root.issuer)
    assert card.serial == load(where / "client.crt").serial_number


def test_an_observer_enrols_and_has_no_card(ca: Authority, tmp_path: Path) -> None:
    token = ca.token("dashboards", "observer", hours=1, replace=False)
    with serving_ca(ca) as server:
        enrol(url_of(server), token, "dashboards", tmp_path / "identity")
        renew(url_of(server), tmp_path / "identity", if_days_left=None)
    assert {path.name for path in (tmp_path / "identity").iterdir()} == {
        "ca.crt", "client.crt", "client.key", "trust", "lock",
    }  # fmt: skip


# -- renewal --------------------------------------------------------------------------------------------------------


@pytest.fixture
def enrolled(ca: Authority, tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    """A server, and the identity folder of press-1, good for 30 days."""
    with serving_ca(ca) as server:
        token = ca.token("press-1", "gateway", hours=1, replace=False)
        enrol(url_of(server), token, "press-1", tmp_path / "identity")
        yield server, tmp_path / "identity"


def test_a_renewal_is_due_by_days_or_by_another_issuer(ca: Authority, enrolled: tuple[Server, Path]) -> None:
    server, where = enrolled
    before = (where / "client.crt").read_bytes()
    assert "nothing to renew" in renew(url_of(server), where, if_days_left=5)
    assert (where / "client.crt").read_bytes() == before
    ca.rotate(["coordinator"], years=10)
    assert "nothing to renew" in renew(url_of(server), where, if_days_left=5)
    assert identity.read_chain(where, FEDERATION).newest.version == 2
    ca.rotate(["issuer"], years=10)
    assert "(root 3)" in renew(url_of(server), where, if_days_left=5)
    after = (where / "client.crt").read_bytes()
    assert after != before
    assert "renewed for press-1" in renew(url_of(server), where, if_days_left=40)
    assert (where / "client.crt").read_bytes() != after


def test_who_is_revoked_is_not_renewed(ca: Authority, enrolled: tuple[Server, Path]) -> None:
    server, where = enrolled
    ca.revoke("press-1", "key-compromise")
    with pytest.raises(EnrolmentError, match="is revoked: enrol again with a token"):
        renew(url_of(server), where, if_days_left=None)


def test_a_renewal_takes_a_certificate_of_this_ca(ca: Authority, enrolled: tuple[Server, Path], tmp_path: Path) -> None:
    server, where = enrolled
    other = Authority.create(tmp_path / "other", federation=FEDERATION, hosts=[], years=1)
    stranger = other.issue("press-1", "gateway", days=30)
    for name in ("client.crt", "client.key"):
        shutil.copy(stranger / name, where / name)
    with pytest.raises(EnrolmentError, match=r"enrol again|try again"):
        renew(url_of(server), where, if_days_left=None)
    assert [one.name for one in ca.issued()].count("press-1") == 1
    status, said = post(server, where / "ca.crt", "/renew", {"csr": "x"})
    assert (status, said["error"]) == (403, "renewal takes TLS with the certificate that is still in force")


def test_roots_that_do_not_follow_are_refused(ca: Authority, enrolled: tuple[Server, Path], tmp_path: Path) -> None:
    """Whoever holds the CA's own key, and not the root's, cannot lead a gateway elsewhere."""
    server, where = enrolled
    other = Authority.create(tmp_path / "other", federation=FEDERATION, hosts=[], years=1)
    for version in (1, 2):
        (ca.directory / "trust").write_text(other.chain().text())
        before = {path.name: path.read_bytes() for path in where.iterdir()}
        with pytest.raises(TrustError, match=r"is another than the one in trust|not signed by the key of root 1"):
            renew(url_of(server), where, if_days_left=None)
        assert {path.name: path.read_bytes() for path in where.iterdir()} == before, version
        other.rotate(["coordinator"], years=1)


@pytest.mark.parametrize("after", range(5))
def test_a_renewal_cut_short_leaves_a_folder_that_works(
    enrolled: tuple[Server, Path], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed between two of its renames."""
    server, where = enrolled
    real, done = enrolment.folder.os.replace, 0

    def replace(source: object, target: object) -> None:
        nonlocal done
        if threading.current_thread() is threading.main_thread():
            if done == after:
                raise KeyboardInterrupt
            done += 1
        real(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(enrolment.folder.os, "replace", replace)
        if after == 4:
            renew(url_of(server), where, if_days_left=None)
        else:
            with pytest.raises(KeyboardInterrupt):
                renew(url_of(server), where, if_days_left=None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(where / "client.crt", where / "client.key")
    root = identity.read_chain(where, FEDERATION).newest
    card = read_card((where / "card").read_bytes(), federation=FEDERATION, gateway="press-1", issuer=root.issuer)
    assert card.agreement == identity.read_agreement(where).public_key().public_bytes_raw()
    renew(url_of(server), where, if_days_left=None)
    assert {path.name for path in where.iterdir()} == {
        "agreement.key", "ca.crt", "card", "client.crt", "client.key", "lock", "trust",
    }  # fmt: skip


# -- who only knocks ------------------------------------------------------------------------------------------------


def post(
    server: Server, ca: Path, path: str, body: object, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str]]:
    context = ssl.create_default_context(cafile=str(ca))
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=context)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_an_address_that_tries_tokens_out_is_put_off(ca: Authority, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    with serving_ca(ca) as server:
        server.clock = lambda: now[0]
        tries = [post(server, ca.directory / "ca.crt", "/enrol", {"token": "x", "csr": ""})[0] for _ in range(7)]
        assert tries == [403] * 5 + [429] * 2
        now[0] = 61.0
        assert post(server, ca.directory / "ca.crt", "/enrol", {"token": "x", "csr": ""})[0] == 403
    assert sum("/enrol from 127.0.0.1 refused" in line.getMessage() for line in caplog.records) == 6


def test_what_is_no_request_of_ours_is_refused(ca: Authority) -> None:
    trusted = ca.directory / "ca.crt"
    with serving_ca(ca) as server:
        assert post(server, trusted, "/enrol", b"x" * (16 * 1024 + 1))[0] == 413
        assert post(server, trusted, "/enrol", b"", {"Content-Length": "-1"})[0] == 413
        assert post(server, trusted, "/enrol", b"", {"Content-Length": "9" * 30})[0] == 413
        assert post(server, trusted, "/enrol", b"[" * 10_000)[0] == 400
        assert post(server, trusted, "/enrol", {"csr": "x"})[0] == 400
        assert post(server, trusted, "/elsewhere", {})[0] == 404
        assert post(server, trusted, "/enrol/../ca.key", {})[0] == 404
        context = ssl.create_default_context(cafile=str(trusted))
        for path, status in (("/ca.crt", 200), ("/trust", 200), ("/revoked.crl", 200), ("/ca.key", 404), ("/", 404)):
            connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=30, context=context)
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == status, path
            data = response.read()
            assert b"PRIVATE" not in data
            assert status != 200 or data == (ca.directory / path[1:]).read_bytes()
            connection.close()
        # Headers without an end.
        with (
            socket.create_connection(("127.0.0.1", server.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            assert is_cut(secured, b"GET /trust HTTP/1.1\r\n" + b"a: b\r\n" * 50)


def is_cut(connection: ssl.SSLSocket, data: bytes) -> bool:
    """Whether the far side ends it before it has taken a megabyte."""
    try:
        for _ in range(1_000_000 // len(data)):
            connection.sendall(data)
    except OSError:
        return True
    return False


def test_connections_that_say_nothing_are_cut_and_keep_nobody_waiting(
    ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 1.0)
    with serving_ca(ca) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(serving.MAX_OF_ADDRESS + 4)]
        for one in silent:
            assert one.recv(1) == b"", "the server has ended it"
            one.close()
        wait_for(lambda: not server._addresses, "their threads to end")
        assert post(server, ca.directory / "ca.crt", "/elsewhere", {})[0] == 404


def test_the_server_has_a_certificate_for_its_hosts_and_keeps_it(ca: Authority) -> None:
    own = ca.serving(["ca.plant"])
    before = load(own.certificate)
    assert ca.serving(["ca.plant"]) == own
    assert load(own.certificate) == before
    ca.serving(["10.0.0.5"])
    assert load(own.certificate) != before
    soon = Authority(ca.directory, clock=lambda: time.time() + 320 * 86_400)
    renewed = load(soon.serving(["10.0.0.5"]).certificate)
    assert renewed.not_valid_after_utc.timestamp() > time.time() + 500 * 86_400
