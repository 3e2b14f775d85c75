"""A federation under attack: real processes behind a real Mosquitto, and the clients of those who mean harm.

    with stand.insider("mallory") as mallory:
        plan = mallory.next_plan(MAIN)
        mallory.answer(plan, b"nonsense")
        assert stand.verdict(mallory, plan) == "malformed"
    stand.honest_round_went_on(plan.round_id)

`Stand` is the plant: broker with certificates, coordinator and honest gateways, whose rounds go on all the time, one
after the other. `Client` speaks MQTT and nothing else: it publishes any bytes anywhere, and tells what the broker says
of it. `Insider` is a gateway that was enrolled like any other and has turned: it joins, is drawn, and answers with what
a test gives it. Whatever it is asked besides it declines, so that no round waits for it. `Eve` has the broker: she
reads and writes every topic, but has nobody's keys.

Refuses to know what an attack is: tests bring the bytes.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import paho.mqtt.client as paho
from fedmq_broker_config.render import ACL_NAME, BrokerSettings, Certificates, Guarded
from fedmq_broker_config.render import Site as BridgedSite
from fedmq_broker_config.run import LocalBroker, write_configuration
from fedmq_coordinator.ledger import Answer, CatchUp, Ledger, Round
from fedmq_protocol.messages import (
    Birth,
    BlobRef,
    Decline,
    Leave,
    Message,
    MessageError,
    RoundKind,
    RoundPlan,
    Update,
    Welcome,
    from_bytes,
    split,
    to_bytes,
)
from fedmq_protocol.reasons import Reason
from fedmq_protocol.task import Task, initial_steps
from fedmq_protocol.topics import Channel, Direction, parse, spec, topic
from numpy.typing import NDArray
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from processes import FEDERATION, PATIENCE_SECONDS, Program, Site, small_fleet, write_toml
from redteam_keys import Identity, Keys

from fedmq.data import Fleet
from fedmq.programs import ledger_path

MAIN = "bearings"
"""The task that everybody learns: 8 bits a value, a third of the parameters."""
FLOATS = "floats"
"""A second one, dense float32, for gateways with its tag."""

ATTACKS = (
    "no certificate",
    "expired certificate",
    "certificate of another authority",
    "revoked certificate, new connection",
    "revoked while connected",
    "publishes on another gateway's topic",
    "gateway publishes a plan",
    "subscribes to another gateway's commands",
    "steals a client id",
    "certificate with CN + or #",
    "identity in the payload differs from the topic",
    "unsigned plan",
    "plan signed with the wrong key",
    "signed plan, one bit flipped",
    "old signed plan, replayed",
    "expired or frozen metadata",
    "plan of another federation or task",
    "bundle with pickle, code or a foreign operator",
    "duplicate delivery",
    "replay from an old round",
    "answer from a gateway that was not drawn",
    "zstd bomb",
    "truncated frame",
    "trailing second frame",
    "oversize message",
    "NaN, infinity and overflowing scale",
    "indices out of range, duplicate, unsorted",
    "wrong shape, dtype or version",
    "inflated sample count",
    "flood of 1,000 messages a second",
    "receipt forged by another gateway",
    "catch-up requests as an amplifier",
    "settings file writable by others",
    "symlink in the state directory",
    "site A's bridge poses as site B's gateway",
    "tells of another gateway's machines",
    "dashboard without a token",
    "dashboard, one wrong token after the other",
    "dashboard by a name that was made to point here",
    "order that another site's page sends",
    "script in a gateway's name",
    "path out of the dashboard's files",
    "slow, many and oversized requests to the dashboard",
)
"""In the order in which they are told. A test names its own with `@pytest.mark.attack`."""

SERVED_BYTES = 65_536
"""What one gateway may have the coordinator send it within a minute."""

CLOSING_SECONDS = 6
"""Of a round: how long one waits at most for an insider that was cut off."""

NOT_AUTHORIZED = "Not authorized"
"""The broker's word, in a PUBACK or SUBACK, where its ACL forbids something."""

TABLE_VARIABLE = "FEDMQ_REDTEAM_TABLE"

Outcome = Callable[..., None]
"""What the fixture `outcome` is."""


class Refused(Exception):
    """The broker did not let a client in."""


# -- clients ---------------------------------------------------------------------------------------------------


class Client:
    """One MQTT 5 connection, raw. Everything that the broker says is kept: `messages` as (topic, bytes, retained)."""

    def __init__(
        self,
        stand: Stand,
        identity: Identity | None,
        *,
        client_id: str,
        will: tuple[str, bytes] | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self.stand = stand
        self.client_id = client_id
        self.messages: list[tuple[str, bytes, bool]] = []
        self.ended: str | None = None
        """Why the connection ended, or None."""
        self._changed = threading.Condition()
        self._connack: str | None = None
        self._acknowledged: dict[tuple[str, int], str] = {}
        context = ssl.create_default_context(cafile=ca_file or stand.keys.ca_file)
        if identity is not None:
            context.load_cert_chain(identity.cert_file, identity.key_file)
        self._paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        self._paho.tls_set_context(context)
        self._paho.max_inflight_messages_set(20)
        if will is not None:
            self._paho.will_set(will[0], will[1], qos=1)
        self._paho.on_connect = self._on_connect
        self._paho.on_connect_fail = lambda *_: self._end("no connection")
        self._paho.on_disconnect = lambda _c, _u, _f, reason, _p: self._end(str(reason))
        self._paho.on_publish = lambda _c, _u, mid, reason, _p: self._acknowledge("publish", mid, str(reason))
        self._paho.on_subscribe = lambda _c, _u, mid, reasons, _p: self._acknowledge("subscribe", mid, str(reasons[0]))
        self._paho.on_message = self._on_message

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> str:
        """The reason in the broker's CONNACK. Raises Refused where none comes, or it says no."""
        try:
            self._paho.connect("127.0.0.1", self.stand.port, keepalive=60)
        except (ssl.SSLError, OSError) as error:
            raise Refused(f"TLS: {error}") from error
        self._paho.loop_start()
        self.until(lambda: self._connack is not None or self.ended is not None, "the broker's answer")
        if self._connack != "Success":
            self._paho.loop_stop()
            raise Refused(f"CONNACK: {self._connack}; the connection: {self.ended}")
        return self._connack

    def close(self) -> None:
        self._paho.disconnect()
        self._paho.loop_stop()

    def cut(self) -> None:
        """End the connection without a word, as a cable that is pulled: the broker tells the last will."""
        sock = self._paho.socket()
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
        self.until(lambda: self.ended is not None, "the end of the connection")

    def publish(self, where: str, data: bytes, *, qos: int = 1, retain: bool = False) -> str:
        """The reason in the broker's PUBACK; with QoS 0 there is none, and it is empty."""
        mid = self.throw(where, data, qos=qos, retain=retain)
        return self._reason("publish", mid, f"the PUBACK of {len(data)} bytes on {where}") if qos else ""

    def throw(self, where: str, data: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """The same without waiting for the broker."""
        info = self._paho.publish(where, data, qos=qos, retain=retain)
        # A broker may hang up while a large message is still being written.
        cut = (MQTTErrorCode.MQTT_ERR_NO_CONN, MQTTErrorCode.MQTT_ERR_CONN_LOST)
        assert info.rc in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_QUEUE_SIZE, *cut), info
        return info.mid

    def subscribe(self, pattern: str) -> str:
        """The reason in the broker's SUBACK."""
        _, mid = self._paho.subscribe(pattern, qos=1)
        assert mid is not None
        return self._reason("subscribe", mid, f"the SUBACK of {pattern}")

    def heard(self, where: str) -> list[bytes]:
        """What has come on one topic so far."""
        with self._changed:
            return [data for text, data, _ in self.messages if text == where]

    def until(self, condition: Callable[[], object], what: str, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait for what this client is to hear."""
        with self._changed:
            came = self._changed.wait_for(lambda: bool(condition()), seconds)
        assert came, f"{self.client_id} waited in vain for {what}; the connection: {self.ended or 'stands'}"

    def _reason(self, kind: str, mid: int, what: str) -> str:
        self.until(lambda: (kind, mid) in self._acknowledged or self.ended is not None, what)
        return self._acknowledged.get((kind, mid), f"the connection ended: {self.ended}")

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._changed:
            self._connack = str(reason)
            self._changed.notify_all()

    def _acknowledge(self, kind: str, mid: int, reason: str) -> None:
        with self._changed:
            self._acknowledged[kind, mid] = reason
            self._changed.notify_all()

    def _end(self, reason: str) -> None:
        with self._changed:
            self.ended = reason
            self._changed.notify_all()

    def _on_message(self, _client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.messages.append((message.topic, bytes(message.payload), message.retain))
            self.take(message.topic, bytes(message.payload))
            self._changed.notify_all()

    def take(self, where: str, data: bytes) -> None:
        """A message has come; called in the connection's own thread."""


class Insider(Client):
    """A gateway that was enrolled, and has turned."""

    def __init__(
        self,
        stand: Stand,
        identity: Identity,
        *,
        via: Identity | None = None,
        tags: tuple[str, ...] = (),
        signal_samples: int = 40_000,
    ) -> None:
        """`via` is whose connection it comes by: its own, or that of a site's bridge."""
        self.name = identity.name
        self.nonce = os.urandom(8)
        self.seals = identity.seals(self.nonce)
        self.tags = tags
        self.signal_samples = signal_samples
        self.welcome: Welcome | None = None
        self.plans: list[RoundPlan] = []
        """Every plan that was heard."""
        self._tasks: dict[int, Task] = {}
        self._wanted: str | None = None
        self._needs_draw = True
        self._plan: RoundPlan | None = None
        self._leaving = False
        self._leave_again = 0.0
        will = to_bytes(Leave(nonce=self.nonce, clean=False))
        status = topic(FEDERATION, Direction.UP, Channel.STATUS, identity.name)
        tls = via or identity
        super().__init__(stand, tls, client_id=tls.name, will=(status, will))

    def __enter__(self) -> Self:
        super().__enter__()
        self.subscribe(f"fl/1/{FEDERATION}/cmd/{self.name}/+")
        self.subscribe(topic(FEDERATION, Direction.DOWN, Channel.PLAN))
        self.join()
        return self

    def close(self) -> None:
        """Leave in order, so that no round that is open or just opening waits for it."""
        if self.ended is None and self.welcome is not None:
            self._leaving = True
            if self._plan is not None:
                self.decline(self._plan)
            self.stand.site.poll(self._is_gone, f"{self.name} to be gone")
        super().close()

    def _is_gone(self) -> bool:
        if time.monotonic() > self._leave_again:
            # Who has sent too much is not heard at first.
            self._leave_again = time.monotonic() + 1.0
            self.say(Channel.STATUS, self._leave())
        ledger = self.stand.site.ledger
        heard = {plan.round_id for plan in list(self.plans)}
        still_open = {row.id for row in ledger.rounds() if row.outcome == "open"}
        known = [gateway for gateway in ledger.gateways() if gateway.name == self.name]
        return self.ended is not None or (still_open <= heard and not any(gateway.present for gateway in known))

    def _leave(self) -> Leave:
        return Leave(nonce=self.nonce, clean=True)

    def decline(self, plan: RoundPlan) -> None:
        """The answer "not now"."""
        decline = Decline(round_id=plan.round_id, reason=Reason.SAMPLES, sent=0, received=0)
        self.throw(self.own(Channel.ANSWER), self.wire(Channel.ANSWER, decline))

    def own(self, channel: Channel) -> str:
        """Its own topic."""
        return topic(FEDERATION, Direction.UP, channel, self.name)

    def say(self, channel: Channel, message: Message) -> str:
        """As a gateway says it: the PUBACK's reason."""
        return self.publish(self.own(channel), self.wire(channel, message))

    def wire(self, channel: Channel, message: Message, *, plain: bytes | None = None) -> bytes:
        """A message as it travels, with this gateway's seal; `plain` in place of its own bytes."""
        where = self.own(channel)
        return self.seals.seal(where, parse(where), message, to_bytes(message) if plain is None else plain)

    def join(self) -> None:
        """Be born, and welcomed."""
        self.be_born()
        self.until(lambda: self.welcome is not None, "its welcome")

    def be_born(self) -> None:
        birth = Birth(
            nonce=self.nonce,
            software="not what it seems",
            engines=("numpy",),
            signal_samples={"normal": self.signal_samples},
            sent=0,
            received=0,
            tags=self.tags,
            root=self.seals.root.version,
            card=self.seals.card,
        )
        self.say(Channel.STATUS, birth)

    def task(self, name: str) -> Task:
        with self._changed:
            return next(task for task in self._tasks.values() if task.name == name)

    def next_plan(self, task: str, *, drawn: bool = True) -> RoundPlan:
        """The next training round of a task that asks this gateway, or any such round where it need not be drawn."""
        self._needs_draw = drawn
        with self._changed:
            self._plan, self._wanted = None, task
        self.until(lambda: self._plan is not None, f"a plan of {task} that asks it")
        assert self._plan is not None
        return self._plan

    def answer(
        self, plan: RoundPlan, payload: bytes | BlobRef, *, base: int | None = None, counter: int | None = None
    ) -> Update:
        """An update with any payload."""
        update = Update(
            round_id=plan.round_id,
            base=plan.base_mark if base is None else base,
            counter=1000 + plan.round_id if counter is None else counter,
            payload=payload,
            sent=0,
            received=0,
            loss=10_000,
        )
        assert self.say(Channel.ANSWER, update) == "Success"
        return update

    def take(self, where: str, data: bytes) -> None:
        parsed = parse(where)
        try:
            message = from_bytes(parsed.spec, split(data).plain)
        except MessageError:
            return  # junk of another test
        if isinstance(message, Welcome) and message.nonce == self.nonce:
            self._tasks |= {one.lineage: one.task for one in message.tasks if one.task is not None}
            self.welcome = message
        elif isinstance(message, RoundPlan):
            self._take_plan(message)

    def _take_plan(self, plan: RoundPlan) -> None:
        self.plans.append(plan)
        task = self._tasks.get(plan.lineage)
        asked = self.welcome is not None and plan.draws(self.welcome.roster, self.name)
        known = self._wanted is not None and self._wanted == (self.stand.task_names.get(plan.lineage))
        if known and plan.kind is RoundKind.TRAINING and (asked or not self._needs_draw):
            self._plan, self._wanted = plan, None
        elif asked and task is not None and plan.kind is not RoundKind.REST:
            self.decline(plan)
            if self._leaving:
                # An answer is a sign of life.
                self.throw(self.own(Channel.STATUS), self.wire(Channel.STATUS, self._leave()))


class Eve(Client):
    """She owns the broker, or its ACL: every topic is hers to read and to write. Keys she has none but her own."""

    @property
    def plan_topic(self) -> str:
        return topic(FEDERATION, Direction.DOWN, Channel.PLAN)


# -- the plant -------------------------------------------------------------------------------------------------

EVE = "eve"
SITES = (
    BridgedSite(user="site-a", gateways=("press-a",)),
    BridgedSite(user="site-b", gateways=("press-b",)),
)


class OwnedBroker(LocalBroker):
    """The rendered configuration, and one line in its ACL that nobody but Eve knows of."""

    # A guard that finds somebody revoked writes the ACL anew, and without that line.

    def start(self) -> None:
        conf, acl = write_configuration(self.settings, self.directory)
        assert acl.name == ACL_NAME
        with acl.open("a", encoding="utf-8") as file:
            file.write(f"\nuser {EVE}\ntopic readwrite #\n")
        self._spawn([str(self._program), "-c", str(conf)], (self.settings.port,))


class CertifiedSite(Site):
    """A site whose programs have an identity each: TLS, and seals on what they say."""

    def __init__(self, directory: Path, fleet: Fleet, *, keys: Keys, **wishes: Any) -> None:
        super().__init__(directory, fleet, **wishes)
        self.keys = keys
        self.identity_of: dict[str, Path] = {"coordinator": keys.coordinator_folder}
        """Folders of those that have another one than the authority gives them."""

    def _connection(self, name: str) -> dict[str, Any]:
        folder = self.identity_of.get(name) or self.keys.issue(name).folder
        return super()._connection(name) | {"connection.identity_dir": str(folder)}


class TwoTasks(CertifiedSite):
    """The same with MAIN and FLOATS, whose rounds go on without an end."""

    def __init__(self, directory: Path, keys: Keys, *, port: int, honest: int, **wishes: Any) -> None:
        fleet = small_fleet(honest, samples=16_000)
        fleet = replace(
            fleet,
            name=MAIN,
            gateways=tuple(replace(own, name=f"honest-{n}") for n, own in enumerate(fleet.gateways, 1)),
        )
        more = directory / "floats.toml"
        write_toml(
            more,
            {
                "task.name": FLOATS,
                "task.classes": list(fleet.classes),
                "task.windowing.sampling_rate_hz": fleet.sampling_rate_hz,
                "task.codec.kind": "dense",
                "rounds.tags": [FLOATS],
                "rounds.min_gateways": honest,
                "rounds.interval_seconds": 1.0,
                "rounds.closing_seconds": CLOSING_SECONDS,
            },
        )
        coordinator = {"more_tasks": [str(more)], "rounds.tags": [], "limits.catch_up_gather_seconds": 0.2}
        coordinator |= {"revoked_file": str(keys.crl_file), "limits.served_bytes_per_minute": SERVED_BYTES}
        super().__init__(
            directory,
            fleet,
            keys=keys,
            port=port,
            rounds=1_000_000,
            task={"codec.up_bits": 8, "codec.least_density": 0.3, "codec.most_density": 0.3},
            round_={"interval_seconds": 0.5, "min_gateways": honest, "closing_seconds": CLOSING_SECONDS},
            coordinator=coordinator | wishes.pop("coordinator", {}),
            gateway={"tags": [FLOATS]} | wishes.pop("gateway", {}),
            **wishes,
        )

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            path = ledger_path(self.state)
            self.poll(lambda: _has_tasks(path, 2), "the coordinator to make its ledger")
            self._ledger = Ledger(path, read_only=True)
        return self._ledger

    def start_guard(self, settings: BrokerSettings) -> Program:
        """`fedmq broker guard`, for a broker with these settings."""
        access = settings.access
        assert isinstance(access, Certificates)
        assert access.guarded is not None
        config = self.directory / "broker.toml"
        write_toml(
            config,
            {
                "federation": settings.federation,
                "port": settings.port,
                "access": "certificates",
                "ca_file": str(access.ca_file),
                "certificate_file": str(access.cert_file),
                "key_file": str(access.key_file),
                "revoked_file": str(access.guarded.revoked_file),
                "guard_dir": str(access.guarded.directory),
                "sites": [f"{site.user}: {' '.join(site.gateways)}" for site in settings.sites],
            },
        )
        return self._start("guard", "broker", "guard", "--config", str(config))


def _has_tasks(path: Path, number: int) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    try:
        ledger = Ledger(path, read_only=True)
    except ValueError:
        return False  # it is just being made
    try:
        return len(ledger.tasks()) == number
    finally:
        ledger.close()


class Stand:
    """One plant for many tests. `names` are the honest gateways."""

    def __init__(self, directory: Path, *, honest: int = 2, guard: bool = False, **wishes: Any) -> None:
        """With a guard, somebody who is revoked is cut off; Eve's rights end then, too."""
        self.directory = directory
        self._guard = guard
        self.keys = Keys(directory)
        self.revoked = self.keys.issue("mallory-revoked")
        self.keys.revoke(self.revoked.name)
        access = Certificates(
            ca_file=self.keys.ca_file,
            cert_file=self.keys.broker_cert,
            key_file=self.keys.broker_key,
            guarded=Guarded(revoked_file=self.keys.crl_file, directory=directory / "guard"),
        )
        # What goes to the standard output of a child comes late: it is not a terminal.
        self._broker_log = directory / "mosquitto.log"
        settings = BrokerSettings(federation=FEDERATION, access=access, sites=SITES, log=self._broker_log)
        self.broker_settings = replace(settings, access=replace(access, guarded=None), log="stdout")
        """For another broker with the same certificates."""
        self.broker = OwnedBroker(settings, directory=directory / "broker")
        self.site = TwoTasks(directory, self.keys, port=self.broker.port, honest=honest, **wishes)
        self.names = self.site.names
        self.task_names: dict[int, str] = {}
        """By lineage."""

    @property
    def port(self) -> int:
        return self.broker.port

    def __enter__(self) -> Self:
        self.broker.start()
        try:
            if self._guard:
                self.site.start_guard(self.broker.settings)
            self.site.start()
            self.site.poll(lambda: len(self._rounds(MAIN, "applied")) >= 1, "a first round")
            self.site.poll(lambda: len(self._rounds(FLOATS, "applied")) >= 1, "a first round of the second task")
            for name in (MAIN, FLOATS):
                self.task_names[int(self.site.ledger.book(name).get("lineage") or 0)] = name
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.site.__exit__(kind, error, trace)
        self.broker.stop()

    # -- who attacks -------------------------------------------------------------------------------------------

    def client(self, identity: Identity | None, *, client_id: str | None = None, **wishes: Any) -> Client:
        """Somebody with this certificate, not connected yet."""
        said = client_id or ("nobody" if identity is None else identity.name)
        return Client(self, identity, client_id=said, **wishes)

    def insider(self, name: str, **wishes: Any) -> Insider:
        """An enrolled gateway that has turned, to be entered with `with`."""
        return Insider(self, self.keys.issue(name), **wishes)

    @contextmanager
    def eve(self) -> Iterator[Eve]:
        with Eve(self, self.keys.issue(EVE), client_id=EVE) as eve:
            yield eve

    # -- what came of it ---------------------------------------------------------------------------------------

    @property
    def coordinator_log(self) -> str:
        return self.site.coordinator.text()

    def gateway_log(self, name: str) -> str:
        return self.site.programs[name].text()

    def broker_log(self) -> str:
        return self._broker_log.read_text(encoding="utf-8", errors="replace")

    def program(self, name: str) -> Program:
        return self.site.programs[name]

    def newest_round(self) -> int:
        """Of any task."""
        return self.site.ledger.newest_round()

    def first_round(self) -> int:
        """The first training round of the main task."""
        return self._rounds(MAIN, "applied")[0].id

    def steps(self, plan: RoundPlan) -> NDArray[np.int32]:
        """The plan's base model, as everyone in the federation has it: read from the coordinator's disk, where it was
        before the plan was told."""
        if plan.base == 0:
            with self._task_of(plan) as task:
                return initial_steps(task.model, task.seed, task.grid_bits)
        path = self.site.state / "models" / f"model-{plan.lineage}-{plan.base}.i32"
        return np.frombuffer(path.read_bytes(), dtype="<i4").astype(np.int32)

    @contextmanager
    def _task_of(self, plan: RoundPlan) -> Iterator[Task]:
        import msgspec

        body = self.site.ledger.book(self.task_names[plan.lineage]).get("task_body")
        assert body is not None
        yield msgspec.msgpack.decode(body, type=Task)

    def verdict(self, who: Insider, plan: RoundPlan) -> str:
        """The ledger's word on an insider's update to a round."""

        def found() -> list[str]:
            return [
                answer.verdict
                for answer in self.site.ledger.answers(plan.round_id)
                if answer.gateway == who.name and answer.kind == "update"
            ]

        self.site.poll(found, f"a verdict on {who.name}'s update to round {plan.round_id}")
        (verdict,) = found()
        return verdict

    def answers(self, who: Insider, plan: RoundPlan) -> list[Answer]:
        """What the ledger has of an insider's answers to a round."""
        return [answer for answer in self.site.ledger.answers(plan.round_id) if answer.gateway == who.name]

    def refusal(self, who: Insider, round_id: int, reason: str) -> str:
        """The coordinator's log line of a refused update, which must say `reason`."""
        where = f"on {who.own(Channel.ANSWER)}, for round {round_id}: "

        def lines() -> list[str]:
            return [line for line in self.coordinator_log.splitlines() if where in line and "refused" in line]

        self.site.poll(lines, f"a line of {who.name}'s refused update to round {round_id}")
        assert reason in lines()[-1], lines()[-1]
        return lines()[-1]

    def catch_ups(self) -> list[CatchUp]:
        """What the coordinator has broadcast for who asked, in the main task."""
        return self.site.ledger.book(MAIN).catch_ups()

    def is_present(self, name: str) -> bool:
        """Whether the coordinator holds that a gateway is here."""
        return next(gateway for gateway in self.site.ledger.gateways() if gateway.name == name).present

    def refused_messages(self, channel: Channel, reason: str) -> int:
        """Messages on this channel that the coordinator counted as refused, for a reason that says this."""
        return sum(
            messages
            for where, why, messages, _ in self.site.ledger.refused()
            if where == channel.value and reason in why
        )

    def honest_round_went_on(self, since: int | None = None, task: str = MAIN) -> Round:
        """Wait until a round of the task, this one or newer, is applied with an update of every honest gateway.

        `since` is a round that was open at the attack, or None for any round that closes from now on.
        """
        first = self._first_from_now() if since is None else since

        def whole() -> list[Round]:
            return [
                row
                for row in self._rounds(task, "applied")
                if row.id >= first and set(self.names) <= self._accepted(row.id)
            ]

        self.site.poll(whole, f"a round of {task} from {first} on, with every honest gateway in it")
        return whole()[0]

    def _first_from_now(self) -> int:
        """The oldest round that is still open, or the one that comes next."""
        still_open = [row.id for row in self.site.ledger.rounds() if row.outcome == "open"]
        return min(still_open, default=self.newest_round() + 1)

    def _accepted(self, round_id: int) -> set[str]:
        answers = self.site.ledger.answers(round_id)
        return {a.gateway for a in answers if a.kind == "update" and a.verdict == "accepted"}

    def _rounds(self, task: str, outcome: str) -> list[Round]:
        rows = self.site.ledger.book(task).rounds()
        return [row for row in rows if row.kind == "training" and row.outcome == outcome]


# -- the table -------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Line:
    """What became of one attack."""

    attack: str
    outcome: str = "not tried"
    stopped_at: str = ""


def table_of(reports: list[tuple[str, bool, str, str]]) -> list[Line]:
    """One line for each attack, from (attack, whether the test passed, result, where it was stopped) of its tests."""
    lines = []
    for attack in ATTACKS:
        tests = [(passed, result, at) for name, passed, result, at in reports if name == attack]
        line = Line(attack=attack)
        if tests:
            results = dict.fromkeys(result for _, result, _ in tests if result)
            line.outcome = ", ".join(results) if all(passed for passed, _, _ in tests) else "NOT STOPPED"
        stops = dict.fromkeys(at for _, _, at in tests if at)
        # In the order in which a message comes by.
        line.stopped_at = "; ".join(sorted(stops, key=lambda at: not at.startswith("broker")))
        lines.append(line)
    return lines


def write_table(path: Path, lines: list[Line]) -> None:
    path.write_text(json.dumps([vars(line) for line in lines], indent=1) + "\n", encoding="utf-8")


def read_table(path: Path) -> list[Line]:
    return [Line(**one) for one in json.loads(path.read_text(encoding="utf-8"))]


def up(gateway: str, channel: Channel) -> str:
    return topic(FEDERATION, Direction.UP, channel, gateway)


def cmd(gateway: str, channel: Channel) -> str:
    return topic(FEDERATION, Direction.CMD, channel, gateway)


def down(channel: Channel) -> str:
    return topic(FEDERATION, Direction.DOWN, channel)


def plan_of(data: bytes) -> RoundPlan | None:
    """The plan in a message, or None."""
    try:
        message = from_bytes(spec(Direction.DOWN, Channel.PLAN), split(data).plain)
    except MessageError:
        return None
    return message if isinstance(message, RoundPlan) else None


def wait_until(condition: Callable[[], object], what: str) -> None:
    """For what no ledger and no client tells of."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
