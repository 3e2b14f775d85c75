"""The figures of a gateway: its gates and vitals, what it has answered, what that took. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from fedmq_edge_node.figures import Figures, TaskFigures
from fedmq_edge_node.gates import Limits, Vitals, shut_gates
from fedmq_protocol.reasons import Reason

from fedmq.metrics.families import Metric, Sample

__all__ = ["METRICS", "samples"]

MOST_CLASSES = 64
"""Of a task, whose windows are told one by one."""

GATES = (
    *(Reason.BATTERY, Reason.MAINS, Reason.CPU, Reason.MEMORY, Reason.TEMPERATURE, Reason.LINK, Reason.METERED),
    *(Reason.DATA_BUDGET, Reason.TIME_WINDOW, Reason.SAMPLES),
)


def _metric(name: str, kind: Any, about: str, *labels: str) -> Metric:
    return Metric(name=f"fedmq_edge_{name}", kind=kind, about=about, labels=labels)


CONNECTED = _metric("broker_connected", "gauge", "1 while it is connected with the broker.")
WELCOMED = _metric("welcomed", "gauge", "1 while the coordinator has welcomed it on this connection.")
STALE = _metric("stale", "gauge", "1 where nothing signed and new was heard for stale_hours.")
HEARD = _metric("coordinator_silent_seconds", "gauge", "Seconds since the coordinator was last heard, with news.")
GATE = _metric("gate_open", "gauge", "1 where the gate is open now, 0 where it is shut, by the reason.", "reason")
BATTERY = _metric("battery_ratio", "gauge", "Charge of the battery, from 0 to 1.")
MAINS = _metric("on_mains", "gauge", "1 where power comes from outside.")
IDLE = _metric("cpu_idle_ratio", "gauge", "Share of the CPU that other work leaves, from 0 to 1.")
MEMORY = _metric("memory_available_bytes", "gauge", "Bytes of memory that it may still take.")
TEMPERATURE = _metric("temperature_celsius", "gauge", "Temperature of the CPU.")
LINK = _metric("link_up", "gauge", "1 where the link towards the broker is up.")
METERED = _metric("link_metered", "gauge", "1 where data over that link is paid for by volume.")
ANSWERS = _metric("answers", "counter", "Rounds that it has answered, by kind.", "kind")
DECLINES = _metric("declines", "counter", "Rounds that it has declined, by reason.", "reason")
TRAININGS = _metric("trainings", "counter", "Trainings that it began.")
SECONDS = _metric("training_seconds", "counter", "Seconds that it trained.")
CPU = _metric("training_cpu_seconds", "counter", "CPU seconds of the process while it trained.")
WIRE = _metric("wire_bytes", "counter", "Bytes on its socket: every MQTT packet. up is sent.", "direction")
BUDGET = _metric("budget_used_bytes", "gauge", "Bytes of its data budget that are used, where it has one.", "period")
BUDGET_LIMIT = _metric("budget_bytes", "gauge", "Its data budget, where it has one.", "period")
VERSION = _metric("model_version", "gauge", "Version of the model in training that it has.", "task")
IN_SERVICE = _metric("model_in_service", "gauge", "Version of the model that scores, once one was released.", "task")
WINDOWS = _metric("windows", "gauge", "Its windows, once they are cut: for training, or held out.", "task", "use")
BY_LABEL = _metric("label_windows", "gauge", "Training windows by the task's class.", "task", "label")

METRICS = (
    *(CONNECTED, WELCOMED, STALE, HEARD, GATE, BATTERY, MAINS, IDLE, MEMORY, TEMPERATURE, LINK, METERED, ANSWERS),
    *(DECLINES, TRAININGS, SECONDS, CPU, WIRE, BUDGET, BUDGET_LIMIT, VERSION, IN_SERVICE, WINDOWS, BY_LABEL),
)


def samples(figures: Figures, vitals: Vitals, limits: Limits, now_local: datetime) -> Iterator[Sample]:
    """What is not known is not on the page: a machine without a battery has no charge."""
    yield Sample(metric=CONNECTED, value=float(figures.connected))
    yield Sample(metric=WELCOMED, value=float(figures.welcomed))
    yield Sample(metric=STALE, value=float(figures.stale))
    yield Sample(metric=HEARD, value=figures.heard_seconds)
    yield from _gates(figures, vitals, limits, now_local)
    yield from _vitals(vitals)
    tally = figures.tally
    answers = {"update": tally.updates, "statistics": tally.statistics, "decline": tally.declines.total()}
    for kind, count in answers.items():
        yield Sample(metric=ANSWERS, value=count, labels=(kind,))
    for reason in Reason:
        yield Sample(metric=DECLINES, value=tally.declines[reason], labels=(reason.name.lower(),))
    yield Sample(metric=TRAININGS, value=tally.trainings)
    yield Sample(metric=SECONDS, value=tally.training_seconds)
    yield Sample(metric=CPU, value=tally.training_cpu_seconds)
    yield Sample(metric=WIRE, value=figures.bytes_sent, labels=("up",))
    yield Sample(metric=WIRE, value=figures.bytes_received, labels=("down",))
    for period, used, limit in (
        ("day", figures.bytes_today, limits.daily_bytes),
        ("month", figures.bytes_month, limits.monthly_bytes),
    ):
        if limit is not None:
            yield Sample(metric=BUDGET, value=used, labels=(period,))
            yield Sample(metric=BUDGET_LIMIT, value=limit, labels=(period,))
    for task in figures.tasks:
        yield from _task(task)


def _gates(figures: Figures, vitals: Vitals, limits: Limits, now_local: datetime) -> Iterator[Sample]:
    counted = [(task.train_windows, task.min_windows) for task in figures.tasks if task.train_windows is not None]
    fewest, wanted = min(counted, key=lambda pair: pair[0] - pair[1], default=(0, 0))
    shut = {
        reason
        for reason, _ in shut_gates(
            vitals,
            limits,
            now_local=now_local,
            bytes_today=figures.bytes_today,
            bytes_month=figures.bytes_month,
            windows=fewest,
            min_windows=wanted,
            silent="silent" if figures.silent else "",
        )
    }
    for reason in GATES:
        yield Sample(metric=GATE, value=float(reason not in shut), labels=(reason.name.lower(),))


def _vitals(vitals: Vitals) -> Iterator[Sample]:
    known: tuple[tuple[Metric, float | None], ...] = (
        (BATTERY, None if vitals.battery_pct is None else vitals.battery_pct / 100),
        (MAINS, vitals.on_mains),
        (IDLE, None if vitals.cpu_idle_pct is None else vitals.cpu_idle_pct / 100),
        (MEMORY, vitals.memory_available_bytes),
        (TEMPERATURE, vitals.temperature_c),
        (LINK, vitals.link_up),
        (METERED, vitals.metered),
    )
    for metric, value in known:
        if value is not None:
            yield Sample(metric=metric, value=float(value))


def _task(task: TaskFigures) -> Iterator[Sample]:
    yield Sample(metric=VERSION, value=task.version, labels=(task.name,))
    if task.in_service is not None:
        yield Sample(metric=IN_SERVICE, value=task.in_service, labels=(task.name,))
    for use, windows in (("training", task.train_windows), ("held out", task.held_windows)):
        if windows is not None:
            yield Sample(metric=WINDOWS, value=windows, labels=(task.name, use))
    for label, windows in list(task.windows_by_class.items())[:MOST_CLASSES]:
        yield Sample(metric=BY_LABEL, value=windows, labels=(task.name, label))
