"""Settings to programs: the one place where a coordinator and a gateway are put together from their parts."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import msgspec
from fedmq_protocol.session import Connection, MqttSession
from fedmq_protocol.settings import ConnectionSettings, load
from fedmq_protocol.task import Task

from fedmq import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from fedmq_coordinator.ledger import Ledger
    from fedmq_coordinator.run import Score
    from fedmq_coordinator.service import Coordinator
    from fedmq_coordinator.settings import CoordinatorSettings
    from fedmq_edge_node.service import Gateway
    from fedmq_edge_node.settings import GatewaySettings
    from numpy.typing import NDArray

__all__ = [
    "METRIC_NAMES",
    "build_coordinator",
    "build_gateway",
    "evaluator",
    "ledger_path",
    "load_task",
    "open_ledger",
    "run_broker",
]


def connection_of(settings: ConnectionSettings, client_id: str) -> Connection:
    """Settings as the session takes them; secrets are read here."""
    return Connection(
        host=settings.host,
        port=settings.port,
        client_id=client_id,
        protocol=settings.protocol,
        keepalive_seconds=settings.keepalive_seconds,
        username=settings.username,
        password=settings.password(),
        tls=settings.tls,
        ca_file=settings.ca_file,
        cert_file=settings.certificate_file,
        key_file=settings.key_file,
        reconnect_min_seconds=settings.reconnect_min_seconds,
        reconnect_max_seconds=settings.reconnect_max_seconds,
    )


def build_gateway(settings: GatewaySettings) -> Gateway:
    """A gateway, not running yet. Raises ValueError for recordings, a memory or vitals that cannot be used."""
    from fedmq_edge_node.folder import Folder
    from fedmq_edge_node.memory import Memory
    from fedmq_edge_node.service import Gateway, will
    from fedmq_edge_node.vitals import FileVitals, Reader, VitalsReader, lower_priority

    lower_priority(settings.nice)
    nonce = os.urandom(8)
    federation = settings.connection.federation
    session = MqttSession(connection_of(settings.connection, settings.name), will(federation, settings.name, nonce))
    if settings.vitals_file is None:
        reader: Reader = VitalsReader(towards=settings.connection.host)
    else:
        reader = FileVitals(path=settings.vitals_file)
        reader.read()  # a file that cannot be read is told now
    return Gateway(
        name=settings.name,
        federation=federation,
        session=session,
        memory=Memory(settings.state_dir / "gateway.sqlite"),
        source=Folder(settings.data_dir),
        vitals=reader.read,
        limits=settings.gates,
        monotonic=time.monotonic,
        rng=Random(),  # noqa: S311 - jitter, not a secret
        nonce=nonce,
        software=f"fedmq {__version__}",
        ask_jitter_seconds=settings.ask_jitter_seconds,
        answer_jitter_seconds=settings.answer_jitter_seconds,
        look_every_seconds=settings.look_every_seconds,
    )


def build_coordinator(settings: CoordinatorSettings, *, new_lineage: bool = False) -> Coordinator:
    """A coordinator, not running yet. Raises ValueError for a ledger, a model or test data that cannot be used."""
    from fedmq_compression import compiled
    from fedmq_coordinator.ledger import Ledger
    from fedmq_coordinator.models import ModelStore
    from fedmq_coordinator.service import Coordinator

    from fedmq.defaults import task_of

    # Where numba is installed, it compiles now (once, for some seconds) and not while the first round waits.
    compiled.active()
    task = task_of(
        settings.task,
        settings.rounds,
        max_norm=settings.limits.max_norm,
        held_out_reports=settings.test_data is None,
    )
    evaluate, metric_name = None, METRIC_NAMES["macro_f1" if task.classes else "r2"]
    if settings.test_data is not None:
        evaluate, metric_name = evaluator(task, settings.test_data)
    return Coordinator(
        federation=settings.connection.federation,
        task=task,
        rounds=settings.rounds,
        limits=settings.limits,
        session=MqttSession(connection_of(settings.connection, settings.name)),
        ledger=Ledger(ledger_path(settings.state_dir)),
        models=ModelStore(settings.state_dir / "models"),
        evaluate=evaluate,
        metric_name=metric_name,
        new_lineage=new_lineage,
    )


METRIC_NAMES = {"macro_f1": "macro-F1", "auc": "AUC", "r2": "R2"}
"""As people read them. Without a test set an autoencoder's is R2: gateways know too few faults for an AUC."""


def evaluator(task: Task, directory: Path) -> tuple[Callable[[NDArray[np.float32], bytes | None], Score], str]:
    """Scores a model on a folder of recordings, cut into windows once; and the name of the metric."""
    from fedmq_coordinator.run import Score
    from fedmq_edge_node.runtimes import NumpyEngine
    from fedmq_edge_node.samples import load_test
    from fedmq_edge_node.trainer import evaluate
    from fedmq_edge_node.work import read_scaler

    x, y = load_test(directory, task.windowing, task.classes, task.anomaly_label)
    engine = NumpyEngine(task.model)

    def score(flat: NDArray[np.float32], scaler: bytes | None) -> Score:
        found = evaluate(engine, flat, read_scaler(scaler, task).apply(x), y, task.classes)
        return Score(metric=found.metric, loss=found.loss)

    if task.classes:
        return score, METRIC_NAMES["macro_f1"]
    return score, METRIC_NAMES["auc" if (y == 0).any() and (y != 0).any() else "r2"]


def ledger_path(state_dir: Path) -> Path:
    return state_dir / "ledger.sqlite"


def open_ledger(state_dir: Path) -> Ledger:
    """To read, also while its coordinator runs. Raises LedgerError."""
    from fedmq_coordinator.ledger import Ledger

    return Ledger(ledger_path(state_dir), read_only=True)


def load_task(ledger: Ledger) -> Task:
    """The task in force."""
    return msgspec.msgpack.decode(ledger.get("task_body") or b"", type=Task)


def run_broker(arguments: argparse.Namespace) -> None:
    """`fedmq broker`."""
    from dataclasses import replace

    from fedmq_broker_config.run import free_port, serve, write_configuration
    from fedmq_broker_config.settings import BrokerTable

    table = load(BrokerTable, arguments.config, arguments.overrides)
    settings = table.broker()
    if arguments.render is not None:
        for path in write_configuration(settings, arguments.render):
            print(f"wrote {path}", file=sys.stderr)
        return
    if table.port == 0:
        settings = replace(settings, port=free_port(table.address))
    serve(settings, spec=arguments.broker, directory=arguments.directory, say=lambda text: print(text, flush=True))
