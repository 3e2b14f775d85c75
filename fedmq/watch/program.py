"""Settings to a watch: the one place where it is put together from its parts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fedmq_edge_node.alertbook import Alertbook, BookError
from fedmq_edge_node.machines import Machine, load_machines
from fedmq_firmware_bridge.store import Store
from fedmq_protocol.state import PlaceError, make_folder, open_state

from fedmq.bridge.program import check_store
from fedmq.bridge.times import parse_time
from fedmq.programs import crash_point
from fedmq.watch.kept import Kept
from fedmq.watch.outputs import MAX_COMMAND_BYTES, Mail, MqttOutput, Output, Webhook
from fedmq.watch.service import CRASH_POINTS, Watch
from fedmq.watch.settings import MqttSettings, WatchSettings
from fedmq.watch.unjudged import strangers

if TYPE_CHECKING:
    from fedmq_edge_node.watching import Model

__all__ = ["Models", "build_watch", "obey"]

log = logging.getLogger("fedmq.watch")

RUN_SECONDS = 5.0
"""For one batch of somebody's own model: judging waits for it."""


def build_watch(settings: WatchSettings) -> Watch:
    """A watch, not running yet. Machines that the store or the machines' file alone has are told in the log. Raises
    ValueError for a store, a book or machines that cannot be used."""
    crash = crash_point(CRASH_POINTS)
    machines = load_machines(settings.machines)
    if not machines:
        raise ValueError(f"{settings.machines}: expected a machine, got none: `fedmq machine add` writes one")
    check_store(settings.store)
    lock = _hold(settings.state_dir)
    book = Alertbook(settings.book)
    book.take_only(settings.faults)
    memory = None if settings.gateway_state is None else settings.gateway_state / "gateway.sqlite"
    watch = Watch(
        book=book,
        store=settings.store,
        machines=machines,
        policy=settings.judging.policy,
        kept=Kept(settings.kept, seconds=settings.keep_seconds, most_bytes=settings.keep_bytes),
        window_seconds=settings.window_seconds,
        every_seconds=settings.every_seconds,
        poll_seconds=settings.poll_seconds,
        commit_seconds=settings.commit_seconds,
        models=Models(memory, settings.engine, settings.tasks),
        outputs=_outputs(settings, book, machines),
        crash_point=crash,
        holds=lock,
    )
    with contextlib.closing(Store(settings.store)) as store:
        for name, why in strangers(machines, store.runs()).items():
            log.warning("%s: %s", name, why)
    return watch


def _hold(state_dir: Path) -> IO[bytes]:
    """A lock that the kernel gives back: two watches would each judge everything. Raises BookError."""
    try:
        make_folder(state_dir)
        file = os.fdopen(open_state(state_dir / "lock", os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
    except (PlaceError, OSError) as error:
        raise BookError(f"cannot use the folder {state_dir}: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise BookError(f"another watch works in {state_dir}: stop it first, or name another folder") from None
    return file


def _outputs(settings: WatchSettings, book: Alertbook, machines: Mapping[str, Machine]) -> list[Output]:
    outputs: list[Output] = []
    if settings.mqtt.enabled:
        outputs.append(_mqtt(settings.mqtt, book, machines))
    outputs += [Webhook(one) for one in settings.webhook]
    outputs += [Mail(one) for one in settings.email]
    return outputs


def _mqtt(settings: MqttSettings, book: Alertbook, machines: Mapping[str, Machine]) -> MqttOutput:
    from fedmq_protocol.session import Connection, MqttSession
    from fedmq_protocol.settings import ConnectionSettings

    read = ConnectionSettings(username=settings.username, password_file=settings.password_file)
    session = MqttSession(
        Connection(
            host=settings.host,
            port=settings.port,
            client_id=settings.client_id,
            username=settings.username,
            password=read.password(),
            tls=settings.tls,
            ca_file=settings.ca_file,
        )
    )

    def on_order(payload: bytes) -> None:
        try:
            obey(book, payload, machines, datetime.now().astimezone())
        except ValueError as error:
            log.error("an order by MQTT: %s", error)

    return MqttOutput(session, settings.prefix, on_order if settings.orders else None)


def obey(book: Alertbook, payload: bytes, machines: Mapping[str, Machine], now: datetime) -> None:
    """An order as JSON: `{"alert": 12, "do": "confirm", "fault": "ball", "who": "ann"}`, or
    `{"machine": "pump-3", "do": "bearing-changed", "who": "ann"}`. Raises ValueError."""
    if len(payload) > MAX_COMMAND_BYTES:
        raise ValueError(f"expected at most {MAX_COMMAND_BYTES} bytes, got {len(payload)}")
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        raise ValueError("expected a JSON object") from None
    if not isinstance(said, dict) or not all(isinstance(said.get(key), str) for key in ("do", "who")):
        raise ValueError("expected an object with do and who as texts")
    do, who, at = said["do"], f"{said['who']} (MQTT)", now.timestamp()
    known = {"ack": {"alert"}, "confirm": {"alert", "fault"}, "dismiss": {"alert"}}
    keys = said.keys() - {"do", "who"}
    if do in known:
        overlapping = said.get("overlapping", False)
        if do != "ack" and isinstance(overlapping, bool):
            keys -= {"overlapping"}
        number = said.get("alert")
        if keys != known[do] or not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"{do}: expected the keys {', '.join(sorted(known[do]))}, alert as its number")
        if do == "ack":
            book.acknowledge(number, who=who, at=at)
            return
        fault = said.get("fault")
        if do == "confirm" and not isinstance(fault, str):
            raise ValueError("confirm: expected fault as a text")
        book.decide(number, fault, who=who, at=at, overlapping=overlapping)
        return
    if not {"machine"} <= keys <= {"machine", "at"} or not isinstance(said["machine"], str):
        raise ValueError("expected ack, confirm or dismiss with alert, or an event with machine")
    machine = said["machine"]
    if machine not in machines:
        raise ValueError(f"there is no machine {machine[:64]!r}")
    since = said.get("at", "now")
    if not isinstance(since, str):
        raise ValueError("expected at as a text, such as 2026-11-29T08:00")
    book.event(machine, do, who=who, at=parse_time(since, now), noted_at=at)


class Models:
    """The models in service in a gateway's memory. Called, it gives them where they may be others than before."""

    def __init__(self, memory: Path | None, engine: str, tasks: Sequence[str] = ()) -> None:
        self._memory = memory
        self._engine = engine
        self._tasks = tuple(tasks)
        self._seen: tuple[Any, ...] | None = None

    def __call__(self) -> Sequence[Model] | None:
        from fedmq_edge_node.bundles import Shelf
        from fedmq_edge_node.memory import Memory, StateError
        from fedmq_edge_node.opinions import in_service
        from fedmq_edge_node.runtimes import make_engine, make_preparation

        if self._memory is None:
            return None
        seen = tuple(_look(self._memory.with_name(self._memory.name + suffix)) for suffix in ("", "-wal"))
        if seen == self._seen or seen[0] is None:
            return None
        try:
            memory = Memory(self._memory)
            try:
                # It is the gateway's: looked at, and nothing written.
                shelf = Shelf(get=memory.get, put=_unwritten, drop=_unwritten)
                found = in_service(
                    memory.load(),
                    lambda task, bundle: make_engine(task.model, self._engine, bundle, RUN_SECONDS),
                    self._tasks,
                    bundles=shelf.find,
                    preparation=lambda bundle: make_preparation(bundle, self._engine, RUN_SECONDS),
                )
            finally:
                memory.close()
        except StateError as error:
            log.warning("the models in service cannot be read, and the last ones go on: %s", error)
            return None
        self._seen = seen
        return found


def _unwritten(*what: object) -> None:
    raise AssertionError("the watch writes nothing to a gateway's memory")


def _look(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns
