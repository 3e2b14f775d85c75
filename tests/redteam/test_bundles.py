"""Bundles that are more than graphs and numbers: refused by who publishes them, and by who receives them.

On the gateway's side the one who attacks is the coordinator itself, or who has taken its place.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bundles import bundle_of
from fedmq_broker_config.run import LocalBroker
from fedmq_compression.frame import deflate
from fedmq_models.bundle import BundleError, from_bytes
from fedmq_models.graph import Node
from fedmq_protocol import identity
from fedmq_protocol.messages import (
    AskChunks,
    Assignment,
    Birth,
    Chunk,
    Decline,
    Message,
    RoundKind,
    RoundPlan,
    Welcome,
    bitmap,
    split,
    to_bytes,
)
from fedmq_protocol.messages import from_bytes as message_of
from fedmq_protocol.reasons import Reason
from fedmq_protocol.session import Connection, MqttSession, Received
from fedmq_protocol.task import Block, Codec, ModelSpec, Task, Windowing, initial_steps, model_digest, short
from fedmq_protocol.topics import Channel, Direction, coordinator_filters, parse, topic
from fedmq_protocol.transfer import BUNDLE_CHUNK_BYTES, chunks, refer
from processes import FEDERATION, PATIENCE_SECONDS, fedmq, small_fleet, write_toml
from redteam import CertifiedSite, Outcome, Stand

pytestmark = [pytest.mark.broker, pytest.mark.slow]

MODEL = ModelSpec(kind="mlp", sizes=(22, 8, 4))


class Trap:
    """Pickled, it makes a folder wherever somebody unpickles it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def file_of(content: bytes) -> bytes:
    """Head, digest and frame as they should be, around any content."""
    body = len(content).to_bytes(4, "big") + deflate(content)
    return b"FMQB\x01" + hashlib.sha256(body).digest() + body


def with_node(node: Node) -> bytes:
    """A bundle that is right but for one node of its training graph."""
    bundle = bundle_of(MODEL)
    graph = msgspec.structs.replace(bundle.grad, nodes=(node, *bundle.grad.nodes[1:]))
    return file_of(msgspec.msgpack.encode(msgspec.structs.replace(bundle, grad=graph)))


def first_node() -> Node:
    return bundle_of(MODEL).grad.nodes[0]


def pickled(trap: Path) -> bytes:
    return pickle.dumps(Trap(trap))


def pickled_content(trap: Path) -> bytes:
    return file_of(pickle.dumps(Trap(trap)))


def code(trap: Path) -> bytes:
    """A program where an operator's attribute is expected."""
    program = f"__import__('os').mkdir({str(trap)!r})"
    return with_node(msgspec.structs.replace(first_node(), attributes={**first_node().attributes, "axes": program}))


def foreign_operator(trap: Path) -> bytes:
    return with_node(msgspec.structs.replace(first_node(), op="com.example::Shell"))


BAD = [
    (pickled, "expected a bundle as `fedmq task build` makes it"),
    (pickled_content, "the bundle cannot be read"),
    (code, "expected axes as tuple, got"),
    (foreign_operator, "the operator 'com.example::Shell' is not among those of a task's graph"),
]


def test_the_measure_a_right_bundle_of_the_same_make_is_taken() -> None:
    assert from_bytes(with_node(first_node())).manifest == bundle_of(MODEL).manifest


@pytest.mark.attack("bundle with pickle, code or a foreign operator")
@pytest.mark.parametrize(("make", "reason"), BAD)
def test_the_coordinator_does_not_start_with_such_a_bundle(
    stand: Stand, outcome: Outcome, tmp_path: Path, make: Callable[[Path], bytes], reason: str
) -> None:
    trap = tmp_path / "trap"
    data = make(trap)
    with pytest.raises(BundleError):
        from_bytes(data)
    (tmp_path / "model.fedmq").write_bytes(data)
    write_toml(
        tmp_path / "coordinator.toml",
        {
            "state_dir": str(tmp_path / "state"),
            "task.name": "brought",
            "task.kind": "graph",
            "task.bundle": "model.fedmq",
            "task.classes": ["a", "b", "c", "d"],
            "connection.port": stand.port,
        },
    )
    ended = fedmq("coordinator", "--config", str(tmp_path / "coordinator.toml"))
    assert ended.returncode != 0
    assert reason in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not trap.exists()
    assert not (tmp_path / "state" / "ledger.sqlite").exists()
    stand.honest_round_went_on()
    outcome("coordinator: it does not start; nothing in a bundle is run before all of it is checked")


class FalseCoordinator:
    """Speaks as the coordinator: welcomes whoever is born to a task of its own, and sends the bundle when asked."""

    def __init__(self, stand: Stand, port: int, task: Task, data: bytes) -> None:
        own = stand.keys.coordinator_folder
        self.task = task
        self.data = data
        self.lineage = int(time.time())
        self.declines: list[Decline] = []
        self._seals = stand.keys.coordinator_seals()
        self._session = MqttSession(
            Connection(
                host="127.0.0.1", port=port, client_id="coordinator", ca_file=stand.keys.ca_file,
                cert_file=own / identity.CERTIFICATE, key_file=own / identity.CERTIFICATE_KEY,
            )
        )  # fmt: skip
        self._session.subscribe(*coordinator_filters(FEDERATION))

    def plan(self, round_id: int) -> RoundPlan:
        return RoundPlan(
            round_id=round_id, lineage=self.lineage, kind=RoundKind.TRAINING, base=0, model=0, closes_after=3600,
            drawn=bitmap([0]), accepted=0, since=1, level=0,
        )  # fmt: skip

    def run_until(self, condition: Callable[[], object]) -> None:
        self._session.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "waited in vain for the gateway's word"
            event = self._session.next(0.1)
            if isinstance(event, Received):
                where = parse(event.topic)
                if where.gateway is not None:
                    self._receive(where.gateway, message_of(where.spec, split(event.payload).plain))

    def _receive(self, gateway: str, message: Message) -> None:
        if isinstance(message, Birth):
            assert message.card is not None
            self._seals.know(gateway, message.nonce, message.card)
            assignment = Assignment(lineage=self.lineage, counter=0, task=self.task, plan=self.plan(1))
            welcome = Welcome(nonce=message.nonce, now=time.time(), roster=0, spread=0, tasks=(assignment,))
            self._say(topic(FEDERATION, Direction.CMD, Channel.WELCOME, gateway), welcome)
        elif isinstance(message, AskChunks):
            for chunk in chunks(self.data, refer(self.data, BUNDLE_CHUNK_BYTES), message.missing):
                self._say(topic(FEDERATION, Direction.CMD, Channel.CHUNK, gateway), chunk)
        elif isinstance(message, Decline):
            self.declines.append(message)

    def _say(self, where: str, message: Welcome | Chunk | RoundPlan) -> None:
        self._session.publish(where, self._seals.seal(where, parse(where), message, to_bytes(message)))

    def stop(self) -> None:
        self._session.stop(flush_seconds=1.0)


@pytest.mark.attack("bundle with pickle, code or a foreign operator")
@pytest.mark.parametrize(("make", "reason"), BAD)
def test_a_gateway_that_receives_such_a_bundle_refuses_it_and_declines(
    stand: Stand, outcome: Outcome, tmp_path: Path, make: Callable[[Path], bytes], reason: str
) -> None:
    trap = tmp_path / "trap"
    data = make(trap)
    model = ModelSpec(
        kind="graph", sizes=(22, 4), bundle=hashlib.sha256(data).digest(), bundle_bytes=len(data),
        parts=tuple(Block(shape=block.shape, limit=block.limit) for block in MODEL.blocks), loss="cross_entropy",
    )  # fmt: skip
    fleet = small_fleet(2)
    task = Task(
        name="brought", model=model, classes=fleet.classes, up=Codec(), down=Codec(),
        windowing=Windowing(sampling_rate_hz=fleet.sampling_rate_hz),
        initial=short(model_digest(initial_steps(model, 0, 12))),
    )  # fmt: skip
    with (
        LocalBroker(stand.broker_settings, directory=tmp_path / "broker") as broker,
        CertifiedSite(tmp_path, fleet, keys=stand.keys, port=broker.port) as site,
    ):
        gateway = site.start_gateway(fleet.gateways[0].name)
        false = FalseCoordinator(stand, broker.port, task, data)
        try:
            false.run_until(lambda: false.declines)
        finally:
            false.stop()
        assert [decline.reason for decline in false.declines] == [Reason.TASK]
        text = gateway.text()
        assert f"bundle {model.bundle.hex()[:16]} is refused: " in text
        assert reason in text
        assert "Traceback" not in text
        assert gateway.process.poll() is None, "it goes on, for its other tasks"
    assert not trap.exists()
    stand.honest_round_went_on()
    outcome("gateway: bundle refused, round declined; there is no code in a bundle that could run")
