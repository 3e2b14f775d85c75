"""What a connection costs at the IP level, as the kernel counts it."""

from __future__ import annotations

import socket
import struct
import sys

import pytest
from broker_fixtures import eventually, joined
from fedmq_broker_config.run import LocalBroker
from fedmq_protocol.carried import carried, parse
from fedmq_protocol.session import Connection, MqttSession

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")


def info(*, options: int, received: int, out: int, in_: int, sent: int) -> bytes:
    """As linux/tcp.h lays it out."""
    told = bytearray(232)
    told[5] = options
    struct.pack_into("=Q", told, 128, received)
    struct.pack_into("=II", told, 136, out, in_)
    struct.pack_into("=Q", told, 200, sent)
    return bytes(told)


@pytest.mark.parametrize(
    ("ipv6", "options", "header", "syn"), [(False, 1, 52, 8), (False, 0, 40, 20), (True, 1, 72, 8), (True, 0, 60, 20)]
)
def test_each_segment_has_its_headers_and_each_syn_its_options(ipv6: bool, options: int, header: int, syn: int) -> None:
    found = parse(info(options=options, received=3_000, out=7, in_=5, sent=900), ipv6=ipv6)
    assert found == (900 + 3_000 + 12 * header + 2 * syn, header)


def test_an_older_kernel_tells_too_little() -> None:
    assert parse(bytes(192), ipv6=False) is None


@linux
def test_a_connection_tells_its_bytes_with_what_is_around_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            before = carried(near)
            near.sendall(b"x" * 1_000)
            assert len(far.recv(2_000)) == 1_000
            after = carried(near)
    assert before is not None
    assert after is not None
    assert 3 * 40 <= before[0] < 400, "a handshake"
    assert after[0] - before[0] >= 1_000 + before[1]


@linux
def test_what_is_no_tcp_connection_tells_nothing() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert carried(one) is None


@linux
@pytest.mark.broker
def test_a_session_adds_up_its_connections(mosquitto: LocalBroker) -> None:
    place = Connection(
        host="127.0.0.1", port=mosquitto.port, client_id="g", reconnect_min_seconds=0.05, reconnect_max_seconds=0.2
    )
    session = MqttSession(place)
    assert session.bytes_beyond == 0
    session.start()
    try:
        joined(session)
        first = session.bytes_beyond
        assert first is not None
        # At least a handshake of three segments, and headers on what was said.
        assert first >= 5 * 40
        mosquitto.restart()
        joined(session)
        assert (session.bytes_beyond or 0) >= first + 5 * 40
        before = session.bytes_beyond or 0
        session.publish("fl/1/plant/up/g/answer", b"x" * 100)
        eventually(lambda: session.outstanding == 0, "an acknowledgement")
        assert (session.bytes_beyond or 0) > before
    finally:
        session.stop(flush_seconds=1.0)
    assert (session.bytes_beyond or 0) > 0
