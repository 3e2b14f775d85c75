"""Real brokers as fixtures, and what tests do with sessions on them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from fedmq_broker_config.run import EmbeddedBroker, LocalBroker, embedded_version, find_mosquitto
from fedmq_protocol.session import Connected, Event, MqttSession, Session

PATIENCE_SECONDS = 10.0
"""How long a test waits for what must come; it fails then, and never measures."""

E = TypeVar("E")


@pytest.fixture
def mosquitto() -> Iterator[LocalBroker]:
    """Mosquitto with the rendered loopback configuration on a free port. Tests that use it are marked `broker`."""
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    with LocalBroker() as broker:
        yield broker


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path leaves room for a Unix socket, whatever the test is called."""
    with tempfile.TemporaryDirectory(prefix="fedmq-") as name:
        yield Path(name)


@pytest.fixture
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """The embedded broker on free ports."""
    if embedded_version() is None:
        pytest.skip("needs iotcore: pip install 'fedmq[demo]'")
    with EmbeddedBroker() as broker:
        yield broker


def expect(session: Session, kind: type[E], where: Callable[[E], bool] = lambda event: True) -> E:
    """The next event of a kind; other events on the way are skipped, and named when it does not come."""
    passed: list[Event] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        event = session.next(left)
        if isinstance(event, kind) and where(event):
            return event
        if event is not None:
            passed.append(event)
    raise AssertionError(f"expected {kind}, got {passed}")


def joined(session: MqttSession) -> Connected:
    """Wait until a session is connected and the broker has confirmed its subscriptions: the first comes earlier."""
    connected = expect(session, Connected)
    eventually(lambda: not session._unanswered, "confirmed subscriptions")
    return connected


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that no event tells of."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)
