"""The figures of a coordinator: rounds, answers, bytes, model and fleet, from what `tallies` and `tasks` say. Pure.

Bytes are those of the report, to the last one. Single gateways have series of their own up
to a number, by their place in the roster, so that the same ones keep theirs; how many have none is a figure, and every
sum counts all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedmq_coordinator.report import Traffic
from fedmq_coordinator.tallies import FleetTally, TaskTally
from fedmq_protocol.condition import WAITING_STATES
from fedmq_protocol.messages import CatchUpKind, Verdict
from fedmq_protocol.reasons import Reason
from fedmq_protocol.topics import Channel

from fedmq.metrics.families import OTHER, Metric, Sample, histogram, states, word

__all__ = ["GATEWAYS_MOST", "METRICS", "Live", "samples"]

GATEWAYS_MOST = 200
"""Series of single gateways, where nobody says how many."""

ROUND_SECONDS = (1, 5, 15, 30, 60, 300, 900, 3600, 14_400, 86_400)

OUTCOMES = ("applied", "below quorum", "abandoned")
TASK_STATES = ("running", "paused", "stopped")
VERDICTS = frozenset(verdict.name.lower().replace("_", " ") for verdict in Verdict)
REASONS = frozenset(reason.name.lower() for reason in Reason)
KINDS = ("update", "statistics", "decline")
CATCH_UPS = frozenset(kind.name.lower() for kind in CatchUpKind)
CHANNELS = frozenset(channel.value for channel in Channel)
SOURCES = ("test set", "held-out windows")
MACHINE_STATES = ("stopped", "starting", "running", "stopping")
SEVERITIES = ("warning", "alarm")
METRIC_NAMES = ("macro-F1", "AUC", "R2", "RMSE")

_VERSION = re.compile(r"fedmq (\d{1,4}(\.\d{1,4}){1,3}([a-z.+-]{0,4}\d{0,6}){0,2})")


def _metric(name: str, kind: Any, about: str, *labels: str) -> Metric:
    return Metric(name=f"fedmq_{name}", kind=kind, about=about, labels=labels)


ROUNDS = _metric("rounds", "counter", "Rounds that have closed, by outcome.", "task", "outcome")
ROUND = _metric("round", "gauge", "Number of the newest round.", "task")
OPEN = _metric("round_open", "gauge", "1 while a round is open.", "task")
OPENED = _metric("round_opened_timestamp_seconds", "gauge", "When the newest round was opened, in Unix time.", "task")
CLOSED = _metric("round_closed_timestamp_seconds", "gauge", "When a round closed last, in Unix time.", "task")
APPLIED = _metric(
    "round_applied_timestamp_seconds", "gauge", "When a round that made a version closed last, in Unix time.", "task"
)
DRAWN = _metric("round_drawn", "gauge", "Gateways that the newest round asks.", "task")
ACCEPTED = _metric("round_accepted", "gauge", "Updates or statistics of the newest round that were accepted.", "task")
DECLINED = _metric("round_declined", "gauge", "Gateways that declined the newest round.", "task")
DURATION = _metric("round_duration_seconds", "histogram", "From a round's opening to its close, in seconds.", "task")
ANSWERS = _metric("answers", "counter", "Answers of gateways, by kind and verdict.", "task", "kind", "verdict")
DECLINES = _metric("declines", "counter", "Declines, by the gate that was shut.", "task", "reason")
OWED = _metric("updates_owed", "gauge", "Accepted updates that wait for the next version.", "task")
WIRE = _metric(
    "wire_bytes",
    "counter",
    "Socket bytes of all gateways, as they count them: every MQTT packet. up is sent by gateways.",
    "direction",
)
TASK_WIRE = _metric(
    "task_wire_bytes",
    "counter",
    "Of these, what belongs to a task's rounds, as the report has it; with one task alone, joining too.",
    "task",
    "direction",
)
PAYLOAD = _metric(
    "task_payload_bytes",
    "counter",
    "Coded deltas alone: of each answer up, and down to everyone who heard.",
    "task",
    "direction",
)
DENSE = _metric(
    "task_dense_bytes", "counter", "What float32 would have taken for the same updates.", "task", "direction"
)
RAW = _metric("raw_signal_bytes", "gauge", "The signal that gateways hold, uploaded once at 16 bits a sample.")
SAVED = _metric(
    "task_savings_ratio",
    "gauge",
    "How many times fewer bytes went over the wire, against dense float32 or the raw signal; below 1 it cost more.",
    "task",
    "against",
)
VERSION = _metric("model_version", "gauge", "Number of the newest version in the lineage.", "task")
SCORE = _metric("model_metric", "gauge", "Metric of the newest version that has one.", "task", "metric", "source")
LOSS = _metric("model_loss", "gauge", "Loss of that version.", "task", "source")
TASK_STATE = _metric("task_state", "gauge", "1 for the state that the task is in.", "task", "state")
CATCH_UP = _metric("catch_ups", "counter", "Catch-ups that were published.", "task", "kind")
CATCH_UP_BYTES = _metric("catch_up_bytes", "counter", "Bytes of their bodies.", "task", "kind")
REFUSED = _metric("refused_messages", "counter", "Messages that were none of the protocol, or too many.", "channel")
REFUSED_BYTES = _metric("refused_bytes", "counter", "Bytes of those messages.", "channel")
GATEWAYS = _metric("gateways", "gauge", "Gateways that the coordinator knows, present or absent.", "state")
ASIDE = _metric("gateways_set_aside", "gauge", "Gateways that are not asked for a while, asked in vain.", "task")
FLAGGED = _metric("gateways_flagged", "gauge", "Gateways that somebody should look at.", "task")
BATTERY_LOW = _metric(
    "gateways_battery_low", "gauge", "Gateways that told last of a battery below 20 %, and of no mains power."
)
LEFT_OUT = _metric(
    "gateways_left_out",
    "gauge",
    "Gateways without series of their own (metrics.gateways_most); every sum counts them.",
)
PRESENT = _metric("gateway_present", "gauge", "1 while the gateway is connected.", "gateway")
SEEN = _metric("gateway_last_seen_timestamp_seconds", "gauge", "When it was last heard, in Unix time.", "gateway")
ANSWERED = _metric(
    "gateway_last_answer_timestamp_seconds", "gauge", "When it last answered a round, in Unix time.", "gateway"
)
UPDATES = _metric("gateway_updates", "counter", "Its updates that were accepted.", "gateway")
GATEWAY_DECLINES = _metric("gateway_declines", "counter", "Its declines.", "gateway")
GATEWAY_WIRE = _metric(
    "gateway_wire_bytes", "counter", "Bytes on its socket, as it counts them.", "gateway", "direction"
)
BATTERY = _metric("gateway_battery_ratio", "gauge", "Charge of its battery as it told last, from 0 to 1.", "gateway")
MAINS = _metric("gateway_on_mains", "gauge", "1 where power comes from outside, as it told last.", "gateway")
METERED = _metric(
    "gateway_link_metered", "gauge", "1 where its link is paid for by volume, as it told last.", "gateway"
)
SOFTWARE = _metric("gateway_software", "info", "The version that it runs.", "gateway", "version")
CPU = _metric(
    "task_cpu_seconds", "counter", "CPU time of gateways' processes on the task, as far as they tell it.", "task"
)
MACHINES = _metric("fleet_machines", "gauge", "Machines that gateways watch and tell of, by what they do.", "state")
ALERTS = _metric("fleet_alerts", "gauge", "Alerts of these machines that wait for somebody.", "severity", "state")
DRIFTS = _metric(
    "fleet_drifts",
    "gauge",
    "Kinds of these machines of which many have drifted, and measures that have over all machines of a kind.",
)
LEDGER = _metric("ledger_bytes", "gauge", "Size of the ledger's files.")
FREE = _metric("state_free_bytes", "gauge", "Bytes that are free where the state directory is.")
CONNECTED = _metric("broker_connected", "gauge", "1 while the coordinator is connected with the broker.")

METRICS = (
    *(ROUNDS, ROUND, OPEN, OPENED, CLOSED, APPLIED, DRAWN, ACCEPTED, DECLINED, DURATION, ANSWERS, DECLINES, OWED),
    *(WIRE, TASK_WIRE, PAYLOAD, DENSE, RAW, SAVED, VERSION, SCORE, LOSS, TASK_STATE, CATCH_UP, CATCH_UP_BYTES),
    *(REFUSED, REFUSED_BYTES, GATEWAYS, ASIDE, FLAGGED, BATTERY_LOW, LEFT_OUT, PRESENT, SEEN, ANSWERED, UPDATES),
    *(GATEWAY_DECLINES, GATEWAY_WIRE, BATTERY, MAINS, METERED, SOFTWARE),
    *(CPU, MACHINES, ALERTS, DRIFTS, LEDGER, FREE, CONNECTED),
)


@dataclass(frozen=True, kw_only=True)
class Live:
    """What is not in the ledger; None where it is not known, as for who looks from elsewhere."""

    ledger_bytes: int | None = None
    free_bytes: int | None = None
    connected: bool | None = None

    def samples(self) -> Iterator[Sample]:
        for metric, value in ((LEDGER, self.ledger_bytes), (FREE, self.free_bytes), (CONNECTED, self.connected)):
            if value is not None:
                yield Sample(metric=metric, value=float(value))


def samples(state: Mapping[str, Any], tally: FleetTally, gateways_most: int = GATEWAYS_MOST) -> Iterator[Sample]:
    """`state` as `state_of_affairs` gives it."""
    for task in state["tasks"]:
        yield from _task(task)
    for told in tally.tasks:
        yield from _tally(told)
    yield from _fleet(state, tally, gateways_most)


def _task(task: Mapping[str, Any]) -> Iterator[Sample]:
    name = (task["name"],)
    yield from states(TASK_STATE, task["state"], TASK_STATES, task["name"])
    yield Sample(metric=VERSION, value=task["version"], labels=name)
    round_ = task["round"]
    if round_ is None:
        return
    yield Sample(metric=ROUND, value=round_["number"], labels=name)
    yield Sample(metric=OPEN, value=float(round_["closed_at"] is None), labels=name)
    yield Sample(metric=OPENED, value=round_["opened_at"], labels=name)
    yield Sample(metric=DRAWN, value=round_["drawn"], labels=name)
    yield Sample(metric=ACCEPTED, value=round_["accepted"], labels=name)
    yield Sample(metric=DECLINED, value=round_["declined"], labels=name)


def _tally(told: TaskTally) -> Iterator[Sample]:
    task = told.task
    outcomes: Counter[str] = Counter()
    for outcome, count in told.outcomes.items():
        outcomes[word(outcome, OUTCOMES)] += count
    for outcome in sorted({*OUTCOMES, *outcomes}):
        yield Sample(metric=ROUNDS, value=outcomes[outcome], labels=(task, outcome))
    for metric, at in ((CLOSED, told.closed_at), (APPLIED, told.applied_at)):
        if at is not None:
            yield Sample(metric=metric, value=at, labels=(task,))
    yield Sample(metric=DURATION, value=histogram(told.seconds, ROUND_SECONDS), labels=(task,))
    yield from _answers(told)
    yield Sample(metric=OWED, value=told.owed, labels=(task,))
    for metric, traffic in ((TASK_WIRE, told.wire), (PAYLOAD, told.payload), (DENSE, told.dense)):
        yield from _both(metric, traffic, task)
    yield from _score(told)
    for kind, (published, size) in told.catch_ups.items():
        labels = (task, word(kind, CATCH_UPS))
        yield Sample(metric=CATCH_UP, value=published, labels=labels)
        yield Sample(metric=CATCH_UP_BYTES, value=size, labels=labels)
    if told.cpu_seconds is not None:
        yield Sample(metric=CPU, value=told.cpu_seconds, labels=(task,))
    yield Sample(metric=ASIDE, value=told.set_aside, labels=(task,))
    yield Sample(metric=FLAGGED, value=told.flagged, labels=(task,))


def _answers(told: TaskTally) -> Iterator[Sample]:
    # Each kind is there from the first scrape on, so that its growth shows.
    answers: Counter[tuple[str, str]] = Counter({(kind, "accepted"): 0 for kind in KINDS})
    for name, count in told.answers.items():
        kind, _, verdict = name.partition(",")
        answers[word(kind, KINDS), word(verdict, VERDICTS)] += count
    for (kind, verdict), count in sorted(answers.items()):
        yield Sample(metric=ANSWERS, value=count, labels=(told.task, kind, verdict))
    reasons = Counter(dict.fromkeys(REASONS, 0))
    for reason, count in told.declines.items():
        reasons[word(reason, REASONS)] += count
    for reason, count in sorted(reasons.items()):
        yield Sample(metric=DECLINES, value=count, labels=(told.task, reason))


def _score(told: TaskTally) -> Iterator[Sample]:
    if told.metric is None:
        return
    source = word(told.metric_source or "", SOURCES)
    name = word(told.metric_name, METRIC_NAMES)
    yield Sample(metric=SCORE, value=told.metric, labels=(told.task, name, source))
    if told.loss is not None:
        yield Sample(metric=LOSS, value=told.loss, labels=(told.task, source))


def _fleet(state: Mapping[str, Any], tally: FleetTally, gateways_most: int) -> Iterator[Sample]:
    gateways = state["gateways"]
    present = sum(gateway["present"] for gateway in gateways)
    yield Sample(metric=GATEWAYS, value=present, labels=("present",))
    yield Sample(metric=GATEWAYS, value=len(gateways) - present, labels=("absent",))
    yield from _both(WIRE, Traffic(up=state["wire"]["sent"], down=state["wire"]["received"]))
    yield Sample(metric=RAW, value=tally.raw_bytes)
    yield from _junk(tally)
    yield from _machines(tally)
    yield from _savings(tally)
    updates: Counter[str] = Counter()
    declines: Counter[str] = Counter()
    for told in tally.tasks:
        updates.update(told.updates_of)
        declines.update(told.declines_of)
    yield Sample(metric=BATTERY_LOW, value=sum(g["vitals"] is not None and g["vitals"]["low"] for g in gateways))
    shown = gateways[:gateways_most]
    yield Sample(metric=LEFT_OUT, value=len(gateways) - len(shown))
    for gateway in shown:
        name = gateway["name"]
        yield Sample(metric=PRESENT, value=float(gateway["present"]), labels=(name,))
        yield Sample(metric=SEEN, value=gateway["last_seen"], labels=(name,))
        if gateway["answer"] is not None:
            yield Sample(metric=ANSWERED, value=gateway["answer"]["at"], labels=(name,))
        yield Sample(metric=UPDATES, value=updates[name], labels=(name,))
        yield Sample(metric=GATEWAY_DECLINES, value=declines[name], labels=(name,))
        yield from _both(GATEWAY_WIRE, Traffic(up=gateway["sent"], down=gateway["received"]), name)
        yield from _vitals(gateway)
        yield Sample(metric=SOFTWARE, value=1, labels=(name, _version(gateway["software"])))


def _vitals(gateway: Mapping[str, Any]) -> Iterator[Sample]:
    """What is not known is not on the page."""
    told = gateway["vitals"]
    if told is None:
        return
    charge = told["battery_pct"]
    known = ((BATTERY, None if charge is None else charge / 100), (MAINS, told["on_mains"]), (METERED, told["metered"]))
    for metric, value in known:
        if value is not None:
            yield Sample(metric=metric, value=float(value), labels=(gateway["name"],))


def _junk(tally: FleetTally) -> Iterator[Sample]:
    junk: dict[str, tuple[int, int]] = {"answer": (0, 0), "status": (0, 0)}
    for channel, (messages, size) in tally.refused.items():
        shown = word(channel, CHANNELS)
        before = junk.get(shown, (0, 0))
        junk[shown] = (before[0] + messages, before[1] + size)
    for channel, (messages, size) in sorted(junk.items()):
        yield Sample(metric=REFUSED, value=messages, labels=(channel,))
        yield Sample(metric=REFUSED_BYTES, value=size, labels=(channel,))


def _machines(tally: FleetTally) -> Iterator[Sample]:
    doing = Counter(dict.fromkeys(MACHINE_STATES, 0))
    for state, count in tally.machines.items():
        doing[word(state, MACHINE_STATES)] += count
    for state, count in doing.items():
        yield Sample(metric=MACHINES, value=count, labels=(state,))
    waiting = Counter({(severity, state): 0 for severity in SEVERITIES for state in WAITING_STATES})
    for name, count in tally.alerts.items():
        state, _, severity = name.partition(",")
        if state in WAITING_STATES:
            waiting[word(severity, SEVERITIES), state] += count
    for (severity, state), count in waiting.items():
        yield Sample(metric=ALERTS, value=count, labels=(severity, state))
    yield Sample(metric=DRIFTS, value=tally.drifts)


def _savings(tally: FleetTally) -> Iterator[Sample]:
    """As the report has them: dense float32 and the raw signal, each over what the task's rounds took on the wire."""
    for told in tally.tasks:
        for against, instead in (("dense", told.dense.total), ("raw", tally.raw_bytes)):
            if told.wire.total and instead:
                yield Sample(metric=SAVED, value=instead / told.wire.total, labels=(told.task, against))


def _both(metric: Metric, traffic: Traffic, *labels: str) -> Iterator[Sample]:
    yield Sample(metric=metric, value=traffic.up, labels=(*labels, "up"))
    yield Sample(metric=metric, value=traffic.down, labels=(*labels, "down"))


def _version(software: str) -> str:
    """Of what a gateway says that it is, no more than looks like a version of ours."""
    found = _VERSION.fullmatch(software)
    return found[1] if found else OTHER
