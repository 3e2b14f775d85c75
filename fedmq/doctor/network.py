"""The way to the broker, step by step, and what its ACL really allows: found out by trying.

Each step needs the one before: name, TCP, TLS, MQTT. Then two things are tried that must fail and one that must not.
What is tried is harmless: a chunk of a transfer that does not exist, which a coordinator passes over in silence, in the
name of a gateway `doctor-probe` that is none, or on the own topic. Where messages are sealed, this one is not: then the
coordinator writes one line into its log, and counts one message that it has refused.

Rules it keeps:

- What comes of it counts. Mosquitto 2.0 grants every subscription and filters by its ACL as it delivers, so a granted
  subscription says nothing; a message that was delivered does. A forbidden message is told of with MQTT 5 (reason 0x87)
  and with MQTT 3.1.1 just disappears: there it stays unknown.
- Nobody is pushed out. A broker as it is rendered makes the client id of the user name, so a second connection with the
  identity of a program takes the place of the first. Whoever calls `try_mqtt` with an identity has seen that the
  program does not run. The session is clean and ends with the connection; it takes over what the broker kept for the
  program (up to 10 minutes of messages), which the next birth makes up for.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from fedmq_protocol.messages import Chunk, to_bytes
from fedmq_protocol.session import (
    MAX_PACKET_BYTES,
    Connected,
    ConnectFailed,
    Connection,
    Denied,
    Disconnected,
    MqttSession,
    Received,
)
from fedmq_protocol.topics import CHUNK_BYTES, ROOT, TABLE, Channel, Direction, topic

from fedmq.doctor.certificates import check_dates, describe
from fedmq.doctor.findings import Finding, failed, ok, unknown, warned

__all__ = [
    "PROBE",
    "Tried",
    "check_reachable",
    "connections_to",
    "is_loopback",
    "judge",
    "listeners",
    "peer_certificate",
    "refuses_strangers",
    "try_mqtt",
]

TIMEOUT_SECONDS = 5.0
PATIENCE_SECONDS = 10.0
"""For each thing that the broker is asked."""

PROBE = "doctor-probe"
"""The gateway in whose name must not be written."""

Role = Literal["gateway", "coordinator"]


def check_reachable(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Name, TCP, and TLS where it is spoken; stops at what fails. No word of MQTT is said, so nobody is disturbed."""
    where = f"{connection.host}:{connection.port}"
    try:
        found = socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        yield failed(
            "broker's name", f"{connection.host} is not known: {error}", "correct connection.host, or the name server"
        )
        return
    yield ok("broker's name", f"{connection.host} is {', '.join(dict.fromkeys(str(one[4][0]) for one in found))}")
    try:
        sock = socket.create_connection((connection.host, connection.port), TIMEOUT_SECONDS)
    except OSError as error:
        yield failed(
            "broker's port",
            f"{where}: {'nothing listens there' if isinstance(error, ConnectionRefusedError) else error}",
            "start the broker; see to connection.port (8883 with TLS), and to firewalls between",
        )
        return
    yield ok("broker's port", f"{where} accepts")
    with sock:
        if connection.uses_tls:
            yield from _check_tls(sock, connection, now)
            return
    yield (
        ok("TLS", "none: what is said stays on this machine")
        if is_loopback(connection.host)
        else warned(
            "TLS",
            f"none: whoever is on the way to {connection.host} reads and changes everything",
            "set connection.tls",
        )
    )


def _check_tls(sock: socket.socket, connection: Connection, now: datetime) -> Iterator[Finding]:
    try:
        context = _context(connection)
    except (OSError, ssl.SSLError) as error:
        yield failed("TLS", f"certificates cannot be used: {error}", "see to the files of [connection]")
        return
    try:
        with context.wrap_socket(sock, server_hostname=connection.host) as channel:
            data = channel.getpeercert(binary_form=True)
            yield ok("TLS", f"{channel.version()}, the broker's certificate is verified")
            if data is not None:
                yield check_dates("broker's certificate", x509.load_der_x509_certificate(data), now)
            yield _let_in(channel, connection)
    except ssl.SSLCertVerificationError as error:
        yield failed(
            "TLS", f"the broker's certificate is refused: {error.verify_message}", _advice(error.verify_message)
        )
        seen = peer_certificate(connection.host, connection.port)
        if seen is not None:
            yield check_dates("broker's certificate", seen, now)
            yield unknown("broker's CA", f"{describe(seen)} says that {seen.issuer.rfc4514_string()} signed it")
    except (OSError, ssl.SSLError) as error:
        said = error.reason if isinstance(error, ssl.SSLError) and error.reason else error
        yield failed(
            "TLS", f"the handshake failed: {said}", "does this port speak TLS? 8883 most often does, 1883 does not"
        )


def _let_in(channel: ssl.SSLSocket, connection: Connection) -> Finding:
    """With TLS 1.3 a broker refuses a certificate after the handshake: then it says so, else it waits for a CONNECT."""
    channel.settimeout(1.0)
    try:
        closed = channel.recv(1) == b""
    except TimeoutError:
        return ok("own certificate at the broker", "is not refused" if connection.cert_file else "none is asked for")
    except OSError as error:
        said = str(error.reason) if isinstance(error, ssl.SSLError) else str(error)
    else:
        said = "the connection was closed" if closed else "something was said before MQTT began"
    return failed(
        "own certificate at the broker",
        f"is refused: {said}",
        "is it revoked, expired, or of another CA than the broker's ca_file? The broker's log has the reason",
    )


def _advice(said: str) -> str:
    if "mismatch" in said:
        return "reach the broker by a name or address that its certificate has, or have it issued for this one"
    if "expired" in said or "not yet valid" in said:
        return "compare the dates below with this machine's clock: one of the two is wrong"
    return "take the CA's certificate (ca_file) of the CA that has issued the broker's"


def _context(connection: Connection) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=connection.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if connection.cert_file is not None:
        context.load_cert_chain(connection.cert_file, connection.key_file)
    return context


def peer_certificate(host: str, port: int) -> x509.Certificate | None:
    """What a server shows, verified or not: only to be looked at. None where no handshake comes about."""
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_SECONDS) as sock,
            _unverified().wrap_socket(sock, server_hostname=host) as channel,
        ):
            data = channel.getpeercert(binary_form=True)
    except (OSError, ValueError):
        return None
    return None if data is None else x509.load_der_x509_certificate(data)


# -- MQTT -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Tried:
    """What the broker answered."""

    refused: str = ""
    """Why it let nobody in; empty where it did."""
    protocol: str = ""
    max_packet_bytes: int | None = None
    answered: bool = False
    """Whether it acknowledged everything that was tried."""
    denied: dict[str, str] = field(default_factory=dict)
    """Reasons by topic."""
    delivered: set[str] = field(default_factory=set)
    """Topics of what came in."""


def try_mqtt(connection: Connection, *, publish: tuple[str, ...] = (), subscribe: tuple[str, ...] = ()) -> Tried:
    """Connect, subscribe, publish with QoS 1, and take what comes until all of it is acknowledged."""
    tried = Tried()
    session = MqttSession(
        replace(connection, session_expiry_seconds=0, reconnect_min_seconds=1, reconnect_max_seconds=60)
    )
    session.subscribe(*subscribe)
    session.start()
    until = time.monotonic() + PATIENCE_SECONDS
    try:
        while (left := until - time.monotonic()) > 0:
            match session.next(min(left, 0.05)):
                case Connected() as event:
                    tried.protocol, tried.max_packet_bytes = event.protocol, event.max_packet_bytes
                    for where in publish:
                        session.publish(where, _HARMLESS)
                case ConnectFailed() as event:
                    tried.refused = event.reason
                    if event.retry_in_seconds != 0:
                        return tried
                    # It tries the other version of MQTT at once.
                case Disconnected() as event:
                    tried.refused = event.reason
                    return tried
                case Denied() as event:
                    tried.denied[event.topic] = event.reason
                case Received() as event:
                    tried.delivered.add(event.topic)
                case None:
                    # The broker answers in order: what was subscribed to and kept has come before the last PUBACK.
                    if tried.protocol and not session.outstanding:
                        tried.answered, tried.refused = True, ""
                        return tried
        tried.refused = "" if tried.protocol else (tried.refused or "no answer in time")
        return tried
    finally:
        session.stop(flush_seconds=0.5)


_HARMLESS = to_bytes(Chunk(transfer=b"\0doctor\0", index=0, data=b"\0"))


def probes(role: Role, federation: str, name: str, *, identified: bool) -> tuple[str, str, tuple[str, ...]]:
    """The topic that must be refused, the one that must not, and what is subscribed to."""
    own = topic(federation, *_OWN[role], name if role == "gateway" else PROBE)
    statuses = f"{ROOT}/{federation}/up/+/{Channel.STATUS.value}"
    report = topic(federation, Direction.DOWN, Channel.REPORT)
    if not identified:
        # Nobody can be told apart: all that an ACL can do is to know the topics of the table.
        return f"{ROOT}/{federation}/up/{PROBE}/{PROBE}", own, (statuses, report)
    forbidden = topic(federation, Direction.UP, Channel.CHUNK, PROBE)
    return forbidden, own, (statuses, f"{ROOT}/{federation}/cmd/{PROBE}/+", report)


_OWN: dict[Role, tuple[Direction, Channel]] = {
    "gateway": (Direction.UP, Channel.CHUNK),
    "coordinator": (Direction.CMD, Channel.CHUNK),
}
"""What each may write. The coordinator's goes to a gateway that is none."""


def judge(role: Role, federation: str, name: str, tried: Tried, *, identified: bool) -> Iterator[Finding]:
    """What the broker's answers say of it and of its ACL. Pure."""
    if tried.refused:
        yield failed(
            "MQTT", tried.refused, "see to user name, password and certificate; the broker's log says why it refused"
        )
        return
    yield ok("MQTT", f"the broker let us in, with MQTT {tried.protocol}")
    yield _packets(tried)
    if not tried.answered:
        yield unknown("ACL", "the broker did not acknowledge what was tried in time", "try again; see the broker's log")
        return
    forbidden, own, _ = probes(role, federation, name, identified=identified)
    told = tried.protocol == "5"
    if forbidden in tried.denied:
        yield ok("ACL, forbidden message", f"was refused: {tried.denied[forbidden]}" + ("" if identified else _ANYONE))
    elif not told:
        yield unknown(
            "ACL, forbidden message",
            "MQTT 3.1.1 does not tell whether a message was refused",
            'set connection.protocol = "auto" where the broker speaks MQTT 5, and try again',
        )
    elif identified:
        yield failed(
            "ACL, forbidden message",
            f"the broker took a message on {forbidden}: anyone can speak in another's name",
            "render the ACL (fedmq broker --render), put it in place, and start Mosquitto anew",
        )
    else:
        yield warned("ACL, forbidden message", f"the broker took a message on {forbidden}: it has no ACL", _NO_IDENTITY)
    if own in tried.denied:
        yield failed(
            "ACL, own message",
            f"{own} was refused: {tried.denied[own]}",
            f"is federation {federation!r} that of the broker, and is {name!r} the user name (or CN) that it sees?",
        )
    elif told:
        yield ok("ACL, own message", "was taken")
    else:
        yield unknown("ACL, own message", "MQTT 3.1.1 does not tell whether a message was refused")
    yield _reading(role, federation, tried, identified=identified)


_ANYONE = "; it cannot tell gateways apart all the same, for we have shown no identity"
_NO_IDENTITY = "fit for a trial on one machine; else give every program a certificate"


def _reading(role: Role, federation: str, tried: Tried, *, identified: bool) -> Finding:
    """Births are kept by the broker, so that whoever may read them gets some at once."""
    check = "ACL, others' messages" if role == "gateway" else "ACL, gateways' messages"
    births = [one for one in tried.delivered if one.startswith(f"{ROOT}/{federation}/up/")]
    if role == "coordinator":
        if births:
            return ok(check, f"{len(births)} gateways' births came")
        return unknown(check, "no birth came: no gateway has ever connected, or the ACL lets the coordinator read none")
    if births and identified:
        return failed(
            check,
            f"{len(births)} messages of gateways were delivered, such as {min(births)}",
            "render the ACL (fedmq broker --render), put it in place, and start Mosquitto anew",
        )
    if births:
        return warned(
            check, f"{len(births)} messages of gateways were delivered to us, who have no identity", _NO_IDENTITY
        )
    if topic(federation, Direction.DOWN, Channel.REPORT) in tried.delivered:
        return ok(check, "no gateway's message was delivered, and the report for all was")
    return unknown(check, "none was delivered; but the broker may keep none yet: try again after the first round")


def _packets(tried: Tried) -> Finding:
    largest = max(row.max_bytes for row in TABLE) + 512
    said = tried.max_packet_bytes
    if said is None:
        return unknown("largest packet", f"the broker names none; {largest:,} bytes are needed at most")
    if said < CHUNK_BYTES + 1024:
        return failed(
            "largest packet",
            f"{said:,} bytes: less than one chunk",
            f"set max_packet_size to {MAX_PACKET_BYTES} at the broker",
        )
    if said < largest:
        return warned(
            "largest packet",
            f"{said:,} bytes; with the largest chunks {largest:,} are needed",
            f"set max_packet_size to {MAX_PACKET_BYTES}",
        )
    return ok("largest packet", f"{said:,} bytes")


def refuses_strangers(host: str, port: int, *, tls: bool) -> Finding:
    """Whether somebody who shows nothing gets in."""
    let_in = failed(
        "strangers",
        "the broker lets in a client that shows nothing",
        "render the configuration, and start Mosquitto anew",
    )
    if not tls:
        tried = try_mqtt(Connection(host=host, port=port, client_id=f"doctor-{os.urandom(4).hex()}"))
        if tried.protocol:
            return let_in
        if "refused client" in tried.refused:
            return ok("strangers", "are refused: user name and password are asked for")
        return unknown("strangers", f"no answer came about: {tried.refused}")
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_SECONDS) as sock,
            _unverified().wrap_socket(sock, server_hostname=host) as channel,
        ):
            # After the handshake (TLS 1.3) or within it (1.2) a broker that asks for a certificate says so.
            channel.settimeout(1.0)
            channel.recv(1)
    except TimeoutError:
        return let_in
    except ssl.SSLError as error:
        return ok("strangers", f"are refused: {error.reason or 'the handshake ends'}")
    except OSError as error:
        return unknown("strangers", f"no handshake came about: {error}")
    return unknown("strangers", "the broker ended the connection without a word")


def _unverified() -> ssl.SSLContext:
    """For what is only looked at: nothing is said on such a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_loopback(host: str) -> bool:
    """Whether a connection there stays on this machine."""
    return host in ("localhost", "::1") or host.startswith("127.")


# -- what is open on this machine -------------------------------------------------------------------------------

_ESTABLISHED, _LISTEN = "01", "0A"
"""States of a socket (Linux, include/net/tcp_states.h)."""


def listeners(port: int) -> set[str] | None:
    """Addresses on which a TCP port is open on this machine; None where Linux does not tell."""
    every = _sockets()
    return (
        None if every is None else {local for state, local, number, _, _ in every if (state, number) == (_LISTEN, port)}
    )


def connections_to(host: str, port: int) -> int | None:
    """Connections of this machine, whoever's, to a server; None where Linux does not tell."""
    every = _sockets()
    if every is None:
        return None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = {str(one[4][0]) for one in found}
    return sum(state == _ESTABLISHED and number == port and to in addresses for state, _, _, to, number in every)


def _sockets() -> list[tuple[str, str, int, str, int]] | None:
    """State, own address and port, the other's address and port."""
    tables = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.is_file()]
    found = []
    for table in tables:
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()  # "sl local_address rem_address st …" (proc(5))
            found.append((words[3], *_address(words[1]), *_address(words[2])))
    return found if tables else None


def _address(text: str) -> tuple[str, int]:
    """Words of four bytes, each in this machine's order; IPv4 within IPv6 as IPv4."""
    words, _, port = text.partition(":")
    data = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    address = ipaddress.ip_address(data)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address), int(port, 16)
