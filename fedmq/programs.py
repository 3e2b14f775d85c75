"""Settings to programs: the one place where a coordinator and a gateway are put together from their parts."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import logging
import os
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec
from fedmq_protocol.secrets import check_keys
from fedmq_protocol.session import Connection, MqttSession
from fedmq_protocol.settings import ConnectionSettings, Mistake, SettingsError, load
from fedmq_protocol.task import MAX_BUNDLE_BYTES, Objective, Task

from fedmq import __version__, welcome
from fedmq.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from fedmq_coordinator.audit import AuditLog
    from fedmq_coordinator.job import TaskPlan
    from fedmq_coordinator.ledger import Book, Ledger
    from fedmq_coordinator.run import Score
    from fedmq_coordinator.service import Coordinator
    from fedmq_coordinator.settings import (
        CoordinatorSettings,
        MoreTaskSettings,
        PersonalSettings,
        RoundSettings,
        TaskSettings,
    )
    from fedmq_edge_node.courier import Courier
    from fedmq_edge_node.memory import Memory
    from fedmq_edge_node.runtimes import Engine
    from fedmq_edge_node.samples import Targets
    from fedmq_edge_node.service import Gateway, Source
    from fedmq_edge_node.settings import GatewaySettings
    from fedmq_edge_node.vitals import Reader
    from fedmq_protocol.signing import CoordinatorSeals, GatewaySeals
    from numpy.typing import NDArray

__all__ = [
    "audit_log",
    "build_coordinator",
    "build_gateway",
    "crash_point",
    "evaluator",
    "ledger_path",
    "load_coordinator",
    "load_task",
    "metric_name_of",
    "open_ledger",
    "read_bundle",
    "recover",
    "render_site",
    "run_broker",
    "run_coordinator",
    "run_guard",
    "scorer",
    "settings_digest",
    "show_gateway",
    "socket_path",
    "task_plans",
    "vitals_reader",
]

log = logging.getLogger("fedmq.coordinator")


def connection_of(settings: ConnectionSettings, client_id: str) -> Connection:
    """Settings as the session takes them; secrets are read here. Raises ValueError for one that others may read."""
    if settings.identity_dir is not None and settings.identity_dir.is_dir():
        check_keys(settings.identity_dir)
    return Connection(
        host=settings.host,
        port=settings.port,
        client_id=client_id,
        protocol=settings.protocol,
        keepalive_seconds=settings.keepalive_seconds,
        username=settings.username,
        password=settings.password(),
        tls=settings.tls or settings.identity_dir is not None,
        ca_file=settings.ca_file or _own(settings, CA_CERTIFICATE),
        cert_file=settings.certificate_file or _own(settings, CERTIFICATE),
        key_file=settings.key_file or _own(settings, CERTIFICATE_KEY),
        reconnect_min_seconds=settings.reconnect_min_seconds,
        reconnect_max_seconds=settings.reconnect_max_seconds,
    )


CA_CERTIFICATE, CERTIFICATE, CERTIFICATE_KEY = "ca.crt", "client.crt", "client.key"
"""As `fedmq_protocol.identity` has them, which loads what only a sealed federation needs."""


def _own(settings: ConnectionSettings, name: str) -> Path | None:
    return None if settings.identity_dir is None else settings.identity_dir / name


class _Renewing:
    """The seals of a gateway's start, made again when its folder has another card. Raises TrustError."""

    def __init__(self, settings: GatewaySettings, nonce: bytes, memory: Memory) -> None:
        self._settings = settings
        self._nonce = nonce
        self._memory = memory
        self.first = _gateway_seals(settings, nonce, memory)
        self._card = None if self.first is None else self.first.card

    def __call__(self) -> GatewaySeals | None:
        if self._card is None:
            return None
        from fedmq_protocol import identity

        assert self._settings.connection.identity_dir is not None
        card = identity.read_card_file(self._settings.connection.identity_dir)
        if card == self._card:
            return None
        seals = _gateway_seals(self._settings, self._nonce, self._memory)
        self._card = card
        return seals


def _gateway_seals(settings: GatewaySettings, nonce: bytes, memory: Memory) -> GatewaySeals | None:
    """Raises TrustError."""
    folder = settings.connection.identity_dir
    if folder is None:
        return None
    from fedmq_protocol import identity
    from fedmq_protocol.signing import Chain, GatewaySeals

    federation = settings.connection.federation
    chain = identity.read_chain(folder, federation)
    walked = memory.get("trust")
    if walked is not None:
        further = Chain.read(walked.decode(), federation)
        chain = further if further.newest.version > chain.newest.version else chain
    return GatewaySeals(
        federation=federation,
        gateway=settings.name,
        nonce=nonce,
        chain=chain,
        card=identity.read_card_file(folder),
        agreement=identity.read_agreement(folder),
        unix=time.time,
        keep=lambda longer: memory.put("trust", longer.text().encode()),
    )


def _coordinator_seals(settings: CoordinatorSettings) -> CoordinatorSeals | None:
    """Raises TrustError."""
    folder = settings.connection.identity_dir
    if folder is None:
        return None
    from fedmq_protocol import identity
    from fedmq_protocol.signing import CoordinatorSeals

    federation = settings.connection.federation
    revoked = settings.revoked_file or folder / identity.REVOKED
    return CoordinatorSeals(
        federation=federation,
        chain=identity.read_chain(folder, federation),
        signing=identity.read_signing(folder),
        agreement=identity.read_agreement(folder),
        unix=time.time,
        revoked=identity.RevokedList(revoked, folder / identity.CA_CERTIFICATE),
    )


def build_gateway(settings: GatewaySettings, alive: Callable[[], None] = lambda: None) -> Gateway:
    """A gateway, not running yet; `alive` as it has it. Raises ValueError for recordings, a memory or vitals that
    cannot be used."""
    from fedmq_edge_node.memory import Memory
    from fedmq_edge_node.proving import prover
    from fedmq_edge_node.runtimes import available_engines, make_engine, make_preparation, unknown_engine
    from fedmq_edge_node.service import CRASH_POINTS, Gateway, will
    from fedmq_edge_node.vitals import cpu_seconds, lower_priority

    if settings.engine not in ("auto", *available_engines()):
        raise ValueError(unknown_engine(settings.engine))
    lower_priority(settings.nice)
    _hold_memory_together()
    nonce = os.urandom(8)
    memory = Memory(memory_path(settings))
    seals = _Renewing(settings, nonce, memory)
    federation = settings.connection.federation
    session = MqttSession(connection_of(settings.connection, settings.name), will(federation, settings.name, nonce))
    reader = vitals_reader(settings)
    if settings.vitals_file is not None:
        reader.read()  # a file that cannot be read is told now
    return Gateway(
        name=settings.name,
        federation=federation,
        session=session,
        memory=memory,
        source=_source(settings),
        vitals=reader.read,
        limits=settings.gates,
        monotonic=time.monotonic,
        rng=Random(),  # noqa: S311 - jitter, not a secret
        nonce=nonce,
        software=f"fedmq {__version__}",
        ask_jitter_seconds=settings.ask_jitter_seconds,
        answer_jitter_seconds=settings.answer_jitter_seconds,
        look_every_seconds=settings.look_every_seconds,
        tags=settings.tags,
        tell_vitals=settings.tell_vitals,
        glance=reader.glance,
        engine=lambda task, bundle: make_engine(task.model, settings.engine, bundle),
        preparation=lambda bundle: make_preparation(bundle, settings.engine),
        prove=prover(settings.engine),
        engines=available_engines() if settings.engine == "auto" else (settings.engine,),
        seals=seals.first,
        renewed=seals,
        stale_seconds=settings.stale_hours * 3600,
        welcomed=lambda at: welcome.write(
            settings.state_dir, welcome.Welcomed(software=f"fedmq {__version__}", boot=nonce.hex(), at=at)
        ),
        alive=alive,
        courier=_courier(settings),
        crash_point=crash_point(CRASH_POINTS),
        cpu_seconds=cpu_seconds,
        beyond_bytes=lambda: session.bytes_beyond,
    )


def _courier(settings: GatewaySettings) -> Courier | None:
    if settings.watch_state is None:
        return None
    from fedmq_edge_node.courier import Courier

    return Courier(settings.watch_state / "alerts.sqlite", every_seconds=settings.watch_seconds)


def vitals_reader(settings: GatewaySettings) -> Reader:
    """What reads this machine's vitals, or the file that stands for them."""
    from fedmq_edge_node.vitals import FileVitals, VitalsReader

    if settings.vitals_file is None:
        return VitalsReader(towards=settings.connection.host)
    return FileVitals(path=settings.vitals_file)


def memory_path(settings: GatewaySettings) -> Path:
    return settings.state_dir / "gateway.sqlite"


def show_gateway(settings: GatewaySettings) -> list[str]:
    """`fedmq gateway --show`: how each task stands on this gateway, in lines. Raises StateError."""
    from fedmq_edge_node.memory import Memory
    from fedmq_edge_node.personal import belongs, describe
    from fedmq_edge_node.service import STALE

    if not memory_path(settings).is_file():
        return [f"nothing yet: no gateway has worked in {settings.state_dir}"]
    memory = Memory(memory_path(settings))
    states = memory.load()
    stale = memory.get(STALE)
    memory.close()
    lines = [] if states else ["no task yet"]
    if (note := welcome.read(settings.state_dir)) is not None:
        at = datetime.fromtimestamp(note.at, UTC)
        lines.insert(0, f"{note.software} was last welcomed by the coordinator at {at:%Y-%m-%d %H:%M:%S} UTC")
    if stale is not None:
        lines.insert(
            0, "ALERT: nothing new and signed by the coordinator for long: it is down, or somebody keeps it away"
        )
    for name, state in states.items():
        lines.append(f"{name}: version {state.version} of lineage {state.lineage} is in training")
        service, own = state.in_service, state.personal
        if service is None:
            lines.append("  nothing is in service: no version has been released to this gateway")
            continue
        lines.append(f"  version {service.version} of lineage {service.lineage} is in service")
        if own is not None and belongs(own, service):
            lines.append(f"  {describe(own.found, service.version)} ({own.policy.mode})")
    return lines


def _source(settings: GatewaySettings) -> Source:
    """Raises SampleError."""
    if settings.data_dir is not None:
        from fedmq_edge_node.folder import Folder

        return Folder(settings.data_dir)
    from fedmq_edge_node.sensors import Sensors

    bridge = settings.bridge
    assert bridge.store is not None  # the settings saw to it
    operating = {}
    if bridge.machines_file is not None:
        from fedmq_edge_node.machines import load_machines

        operating = {name: machine.operating for name, machine in load_machines(bridge.machines_file).items()}
    return Sensors(
        bridge.store,
        unix=time.time,
        kept=bridge.kept,
        machines=bridge.machines,
        fresh_seconds=bridge.fresh_seconds,
        windows=bridge.most_windows,
        renew_seconds=bridge.renew_seconds,
        operating=operating,
    )


def _hold_memory_together() -> None:
    """One arena for all threads, and freed memory back to the system: on glibc a runtime's short-lived tensors would
    otherwise stay as gaps, half as much again as the process needs. Elsewhere nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 1 << 17), (M_TRIM_THRESHOLD, 1 << 17)):
        mallopt(option, value)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""


def load_coordinator(path: Path | None, overrides: Sequence[str] = ()) -> CoordinatorSettings:
    """Settings of a coordinator. Where they say nothing of a task's layers, windowing, recipe or codec, its kind does,
    or its bundle's author. Raises SettingsError, and ValueError for a bundle that is none."""
    from fedmq_coordinator.settings import CoordinatorSettings

    settings = load(CoordinatorSettings, path, overrides)
    return load(CoordinatorSettings, path, overrides, _below(settings))


def _load_more(path: Path) -> MoreTaskSettings:
    from fedmq_coordinator.settings import MoreTaskSettings

    settings = load(MoreTaskSettings, path)
    return load(MoreTaskSettings, path, (), _below(settings))


def _below(settings: CoordinatorSettings | MoreTaskSettings) -> dict[str, Any]:
    from fedmq_models.bundle import from_bytes

    from fedmq.defaults import advice, own_values

    if settings.task.bundle is None:
        return own_values(settings.task.kind, fraction=settings.rounds.fraction)
    return {"task": advice(from_bytes(read_bundle(settings.task.bundle)).manifest)}


def build_coordinator(
    settings: CoordinatorSettings, *, new_lineage: bool = False, alive: Callable[[], None] = lambda: None
) -> Coordinator:
    """A coordinator, not running yet. Raises ValueError for a ledger, a model or test data that cannot be used, and
    for a folder that another one works in."""
    from fedmq_compression import compiled
    from fedmq_coordinator import folder, money
    from fedmq_coordinator.ledger import Ledger
    from fedmq_coordinator.models import ModelStore
    from fedmq_coordinator.service import CRASH_POINTS, Coordinator

    # Where numba is installed, it compiles now (once, for some seconds) and not while the first round waits.
    compiled.active()
    tasks = task_plans(settings)
    crash = crash_point(CRASH_POINTS)
    lock = folder.hold(settings.state_dir)
    ledger = Ledger(ledger_path(settings.state_dir))
    # It becomes durable with the coordinator's first commit.
    ledger.put(money.MONEY, money.to_bytes(settings.money.price))
    return Coordinator(
        federation=settings.connection.federation,
        tasks=tasks,
        limits=settings.limits,
        fleet=settings.fleet,
        drift=settings.drift,
        session=MqttSession(connection_of(settings.connection, settings.name)),
        ledger=ledger,
        models=ModelStore(settings.state_dir / "models", crash_point=crash),
        new_lineage=new_lineage,
        seals=_coordinator_seals(settings),
        crash_point=crash,
        holds=lock,
        audit=audit_log(settings.state_dir),
        publish=settings.publish,
        alive=alive,
    )


def run_coordinator(coordinator: Coordinator, settings: CoordinatorSettings) -> None:
    """Until it is to stop: with its control socket, and with start and stop in the audit log. Raises ValueError."""
    from fedmq_coordinator.audit import AuditError, local_user

    audit, who, subject = audit_log(settings.state_dir), local_user(), f"coordinator {settings.name}"
    try:
        with _control(settings):
            audit.record(
                who=who,
                action="start",
                subject=subject,
                outcome=f"fedmq {__version__}, federation {settings.connection.federation}, settings"
                f" {settings_digest(settings)}",
            )
            coordinator.run()
    except BaseException as error:
        try:
            audit.record(who=who, action="stop", subject=subject, outcome=f"failed: {type(error).__name__}: {error}")
        except AuditError as unnoted:
            log.error("%s", unnoted)  # what ended the program is what is to be told
        raise
    audit.record(who=who, action="stop", subject=subject, outcome="in order")


def _control(settings: CoordinatorSettings) -> AbstractContextManager[object]:
    """The control socket, open. Raises ControlError."""
    from fedmq_coordinator.control import Control, Roles, Server

    wanted = settings.control
    if not wanted.enabled:
        return nullcontext()
    roles = Roles(operators=wanted.operators, viewers=wanted.viewers)
    for name in roles.strangers():
        log.warning("control: this machine knows no %s: nobody has a role by that name", name)
    control = Control(ledger_path(settings.state_dir), audit_log(settings.state_dir), roles)
    return Server(socket_path(settings), control, open_to_all=bool(wanted.operators or wanted.viewers))


def socket_path(settings: CoordinatorSettings) -> Path:
    from fedmq_coordinator.control import SOCKET

    return settings.control.socket or settings.state_dir / SOCKET


def audit_log(state_dir: Path) -> AuditLog:
    from fedmq_coordinator.audit import AUDIT_FILE, AuditLog

    return AuditLog(state_dir / AUDIT_FILE)


def settings_digest(settings: CoordinatorSettings) -> str:
    """sha256 over every setting, and over the files of further tasks: another digest is another configuration."""
    whole = hashlib.sha256(msgspec.json.encode(settings, enc_hook=str, order="sorted"))
    for file in settings.more_tasks:
        whole.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return f"sha256:{whole.hexdigest()}"


def task_plans(settings: CoordinatorSettings) -> list[TaskPlan]:
    """The task of the settings, and those of the files that they name. Raises SettingsError, SampleError."""
    more = [_load_more(Path(file)) for file in settings.more_tasks]
    parts = [(settings.task, settings.rounds, settings.test_data, settings.personal)]
    parts += [(part.task, part.rounds, part.test_data, part.personal) for part in more]
    mistakes = [
        Mistake("task.name", f'"{parts[place][0].name}" is the name of another task already (in {file})')
        for place, file in enumerate(settings.more_tasks, start=1)
        if any(parts[place][0].name == earlier[0].name for earlier in parts[:place])
    ]
    if mistakes:
        raise SettingsError(mistakes)
    return [_task_plan(settings.limits.max_norm, *part) for part in parts]


def _task_plan(
    max_norm: float,
    settings: TaskSettings,
    rounds: RoundSettings,
    test_data: Path | None,
    personal: PersonalSettings,
) -> TaskPlan:
    from fedmq_coordinator.job import TaskPlan

    from fedmq.defaults import task_of

    bundle = b"" if settings.bundle is None else read_bundle(settings.bundle)
    task = task_of(settings, rounds, max_norm=max_norm, held_out_reports=test_data is None, bundle=bundle)
    evaluate, metric_name = None, metric_name_of(task)
    if test_data is not None:
        evaluate, metric_name = evaluator(task, test_data, bundle)
    return TaskPlan(
        task=task,
        rounds=rounds,
        evaluate=evaluate,
        metric_name=metric_name,
        bundle=bundle,
        personal=personal.policy,
    )


def read_bundle(path: Path) -> bytes:
    """Raises ValueError for a file that is not there or too large."""
    try:
        size = path.stat().st_size
        if size > MAX_BUNDLE_BYTES:
            raise ValueError(f"{path}: expected a bundle of at most {MAX_BUNDLE_BYTES:,} bytes, got {size:,}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: expected a bundle as `fedmq task build` makes it: {error.strerror}") from None


def crash_point(known: Sequence[str]) -> Callable[[str], None]:
    """What the environment variable FEDMQ_CRASH_AT="NAME[:N]" makes of it: at the N-th passing of NAME this process
    kills itself with SIGKILL, as a power cut would. Without it nothing happens. Raises ValueError for another name."""
    wanted = os.environ.get("FEDMQ_CRASH_AT", "")
    if not wanted:
        return lambda name: None
    name, _, number = wanted.partition(":")
    if name not in known or not (number or "1").isdigit():
        raise ValueError(f"FEDMQ_CRASH_AT: expected NAME or NAME:N with one of {', '.join(known)}; got {wanted!r}")
    left = int(number or 1)

    def passing(passed: str) -> None:
        nonlocal left
        if passed == name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return passing


def recover(settings: CoordinatorSettings, backup: Path) -> list[str]:
    """`fedmq coordinator recover`: what was done, in sentences. Raises ValueError, and has changed nothing then."""
    from fedmq_coordinator import folder
    from fedmq_coordinator.audit import local_user
    from fedmq_protocol.state import make_folder

    audit, who, subject = audit_log(settings.state_dir), local_user(), f"backup {backup}"
    make_folder(settings.state_dir)
    audit.record(who=who, action="recover", subject=subject, outcome="begins")
    try:
        done = folder.recover(settings.state_dir, backup, settings.connection.federation, now=time.time())
    except ValueError as error:
        audit.record(who=who, action="recover", subject=subject, outcome=f"failed: {error}")
        raise
    audit.record(who=who, action="recover", subject=subject, outcome="; ".join(done))
    return done


METRIC_NAMES = {"macro_f1": "macro-F1", "auc": "AUC", "r2": "R2", "rmse": "RMSE"}
"""As people read them. Without a test set an autoencoder's is R2: gateways know too few faults for an AUC."""

_METRICS: dict[Objective, str] = {"classify": "macro_f1", "reconstruct": "r2", "regress": "rmse"}


def metric_name_of(task: Task) -> str:
    """As people read it, where gateways measure the model on their own windows."""
    return METRIC_NAMES[_METRICS[task.objective]]


def evaluator(
    task: Task, directory: Path, bundle: bytes = b""
) -> tuple[Callable[[NDArray[np.float32], bytes | None], Score], str]:
    """Scores a model on a folder of recordings, cut into windows once; and the name of the metric."""
    from fedmq_edge_node.runtimes import make_engine, make_preparation
    from fedmq_edge_node.samples import load_test
    from fedmq_models.bundle import from_bytes

    opened = from_bytes(bundle) if bundle else None
    preparation = None if opened is None else make_preparation(opened)
    x, y = load_test(directory, task.windowing, task.classes, task.anomaly_label, preparation)
    return scorer(task, make_engine(task.model, bundle=opened), x, y)


def scorer(
    task: Task, engine: Engine, x: NDArray[np.float32], y: Targets
) -> tuple[Callable[[NDArray[np.float32], bytes | None], Score], str]:
    """Scores a model on windows as unscaled features `(n, features)` with labels `(n,)`; and the name of the metric."""
    from fedmq_coordinator.run import Score
    from fedmq_edge_node.trainer import evaluate
    from fedmq_edge_node.work import read_scaler

    most = task.windowing.remaining_most

    def score(flat: NDArray[np.float32], scaler: bytes | None) -> Score:
        found = evaluate(engine, flat, read_scaler(scaler, task).apply(x), y, task.objective, most)
        return Score(metric=found.metric, loss=found.loss)

    if task.objective == "reconstruct" and (y == 0).any() and (y != 0).any():
        return score, METRIC_NAMES["auc"]
    return score, metric_name_of(task)


def ledger_path(state_dir: Path) -> Path:
    return state_dir / "ledger.sqlite"


def open_ledger(state_dir: Path) -> Ledger:
    """To read, also while its coordinator runs. Raises LedgerError."""
    from fedmq_coordinator.ledger import Ledger

    return Ledger(ledger_path(state_dir), read_only=True)


def load_task(book: Book) -> Task:
    """As it is in force."""
    return msgspec.msgpack.decode(book.get("task_body") or b"", type=Task)


def run_broker(arguments: argparse.Namespace) -> None:
    """`fedmq broker`."""
    from dataclasses import replace

    from fedmq_broker_config.run import free_port, serve, write_configuration
    from fedmq_broker_config.settings import BrokerTable

    table = load(BrokerTable, arguments.config, arguments.overrides)
    settings = table.broker()
    if arguments.check:
        return
    if arguments.render is not None:
        for path in write_configuration(settings, arguments.render):
            print(f"wrote {path}", file=sys.stderr)
        return
    if table.port == 0:
        settings = replace(settings, port=free_port(table.address))
    serve(settings, spec=arguments.broker, directory=arguments.directory, say=lambda text: print(text, flush=True))


def run_guard(arguments: argparse.Namespace) -> None:
    """`fedmq broker guard`: until SIGTERM or SIGINT."""
    import threading

    from fedmq_broker_config.service import Guard
    from fedmq_broker_config.settings import BrokerTable

    guard = Guard(load(BrokerTable, arguments.config, arguments.overrides).broker(), site=arguments.site)
    notifier, stopping = Notifier(), threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        notifier.stopping()
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    notifier.ready()
    guard.run(stopping, notifier.alive)


def render_site(arguments: argparse.Namespace) -> None:
    """`fedmq broker site`."""
    from fedmq_broker_config.render import Upstream
    from fedmq_broker_config.run import write_site_configuration
    from fedmq_broker_config.settings import BrokerTable

    settings = load(BrokerTable, arguments.config, arguments.overrides).broker()
    host, colon, port = arguments.upstream.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ValueError(f"--upstream: expected HOST:PORT, got {arguments.upstream!r}")
    identity = arguments.identity.absolute()
    upstream = Upstream(
        site=arguments.site,
        host=host,
        port=int(port),
        ca_file=identity / "ca.crt",
        cert_file=identity / "client.crt",
        key_file=identity / "client.key",
    )
    for path in write_site_configuration(settings, upstream, arguments.render):
        print(f"wrote {path}", file=sys.stderr)
