"""What people may order of a task while it runs, how it stands, and what a release means for one gateway.

Owns the rules of pause, resume, stop, promote, roll back, set aside and readmit: each is checked first, and then
changes the task in the ledger's running transaction. Refuses to know how an order came here (`service` takes it out of
the ledger) and who hears of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fedmq_protocol.messages import Release
from fedmq_protocol.task import short
from msgspec import Meta

from fedmq_coordinator.audit import Who
from fedmq_coordinator.ledger import Book, Gateway, Ledger, Order, Round
from fedmq_coordinator.ledger import Release as ReleaseRow
from fedmq_coordinator.machines import WAITING, spreads_of
from fedmq_coordinator.vitals import vitals_of_fleet

if TYPE_CHECKING:
    from fedmq_coordinator.job import Job

__all__ = ["VERBS", "AlertWish", "OrderError", "Wish", "in_canary", "release_for", "standing", "state_of_affairs"]

VERBS = ("pause", "resume", "stop", "promote", "rollback", "set-aside", "readmit", "retrain")


_Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""What SQLite can look for."""


class OrderError(ValueError):
    """An order that cannot be carried out; nothing has changed."""


class Wish(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is ordered, beside the task's name."""

    verb: str
    tags: tuple[Annotated[str, Meta(min_length=1, max_length=32)], ...] = ()
    version: _Number | None = None
    """None: the newest."""
    lineage: _Number | None = None
    """None: the one in force."""
    canary_pct: Annotated[float, Meta(gt=0, le=100)] = 100.0
    forced: bool = False
    gateway: Annotated[str, Meta(max_length=63)] = ""
    by: Who | None = None
    """Who ordered it; None where other software wrote the row."""

    def told(self) -> str:
        """All but verb and task, for people."""
        parts = [f"version {self.version}"] if self.version is not None else []
        parts += [f"lineage {self.lineage}"] if self.lineage is not None else []
        parts += [f"gateway {self.gateway}"] if self.gateway else []
        parts += [f"tags {', '.join(self.tags)}"] if self.tags else []
        parts += [f"{self.canary_pct:g} %"] if self.canary_pct != 100 else []
        parts += ["without a comparison"] if self.forced else []
        return f": {'; '.join(parts)}" if parts else ""

    @classmethod
    def read(cls, order: Order) -> Wish:
        """Raises OrderError for a row that is none: the file may be written by other software."""
        try:
            return msgspec.msgpack.decode(order.details, type=cls)
        except msgspec.MsgspecError as error:
            raise OrderError(f"order {order.id} cannot be read: {error}") from error

    def write(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def carry_out(self, job: Job, now: float) -> str:
        """Change the task; returns what there is to say. Raises OrderError or ModelError, before anything changes."""
        match self.verb:
            case "pause":
                return self._pause(job)
            case "resume":
                return self._resume(job, now)
            case "stop":
                return self._stop(job, now)
            case "promote":
                return self._promote(job, now)
            case "rollback":
                return self._roll_back(job, now)
            case "set-aside":
                return self._set_aside(job, now)
            case "readmit":
                return self._readmit(job, now)
            case "retrain":
                return self._retrain(job, now)
        raise OrderError(f"expected {', '.join(VERBS)}, got {self.verb!r}")

    def _pause(self, job: Job) -> str:
        row = job.book.row()
        paused = set(row.paused_tags.split("\n")) - {""}
        if self.tags:
            job.book.set_state(row.state, "\n".join(sorted(paused | set(self.tags))))
        else:
            job.book.set_state("paused", row.paused_tags)
        job.heed()
        going = "" if job.run.round is None else f"; round {job.run.round.plan.round_id} goes on to its close"
        if self.tags:
            return f"gateways with the tag {' or '.join(self.tags)} are not drawn any more{going}"
        return f"no round opens any more{going}"

    def _resume(self, job: Job, now: float) -> str:
        row = job.book.row()
        paused = set(row.paused_tags.split("\n")) - {""}
        if self.tags:
            strange = set(self.tags) - paused
            if strange:
                raise OrderError(
                    f"gateways with the tag {' or '.join(sorted(strange))} do not pause; paused tags:"
                    f" {', '.join(sorted(paused)) or 'none'}"
                )
            job.book.set_state(row.state, "\n".join(sorted(paused - set(self.tags))))
        else:
            job.book.set_state("running", "")
        job.heed()
        if self.tags:
            return f"gateways with the tag {' or '.join(self.tags)} take part again"
        return "goes on" if job.resting is None else f"goes on, and rests: {job.resting}"

    def _stop(self, job: Job, now: float) -> str:
        open_round = job.run.round
        job.run.abandon(now)
        job.book.set_state("stopped", "")
        given_up = "" if open_round is None else f" Round {open_round.plan.round_id} is given up."
        return f"is over after version {job.version}; the ledger keeps it.{given_up}"

    def _promote(self, job: Job, now: float) -> str:
        if self.lineage not in (None, job.line.number):
            raise OrderError(
                f"expected a version of lineage {job.line.number}, the one in force: roll back to reach older ones"
            )
        number = job.version if self.version is None else self.version
        if not 1 <= number <= job.version:
            raise OrderError(
                "there is no version to promote yet"
                if job.version == 0
                else f"expected a version from 1 to {job.version}, got {number}"
            )
        job.pin(number)
        release = job.book.last_release() + 1
        job.book.save_release(
            ReleaseRow(
                number=release,
                at=now,
                lineage=job.line.number,
                version=number,
                canary_pct=self.canary_pct,
                tags="\n".join(sorted(self.tags)),
                forced=self.forced,
            )
        )
        job.run.tell_release(now)
        whom = "every gateway" if not self.tags else f"gateways with the tag {' or '.join(self.tags)}"
        if self.canary_pct < 100:
            whom = f"{self.canary_pct:g} % of {'the gateways' if not self.tags else whom}"
        how = "without a comparison" if self.forced else "where it is no worse than what is there"
        return f"release {release}: version {number} for {whom}, {how}"

    def _roll_back(self, job: Job, now: float) -> str:
        lineage = job.line.number if self.lineage is None else self.lineage
        if self.version is None:
            raise OrderError(f"name a version: 1 to {job.version} of lineage {job.line.number}")
        served = job.book.last_release()
        if not job.book.owns(lineage):
            raise OrderError(f"lineage {lineage} is none of this task: {', '.join(map(str, job.book.lineages()))}")
        job.go_back(lineage, self.version, now)
        text = f"lineage {job.line.number} goes on from version {self.version} of lineage {lineage}"
        if served:
            # What is in service now came of what the plant turned its back on.
            job.book.save_release(
                ReleaseRow(
                    number=served + 1,
                    at=now,
                    lineage=job.line.number,
                    version=1,
                    canary_pct=100.0,
                    tags="",
                    forced=True,
                )
            )
            text += f"; release {served + 1} puts it in service everywhere"
        job.run.publish_plan(job.run.rest_plan(now), now)
        return text

    def _set_aside(self, job: Job, now: float) -> str:
        if job.members.get(self.gateway) is None:
            raise OrderError(f"no gateway {self.gateway!r} takes part in this task: `fedmq status` lists them")
        if self.gateway in job.members.aside:
            raise OrderError(f"{self.gateway} is set aside already")
        job.run.set_aside(self.gateway, now)
        return f"{self.gateway} is set aside: not drawn any more, and what it sends is refused, until it is readmitted"

    def _readmit(self, job: Job, now: float) -> str:
        flag = job.run.watch.flag_of(self.gateway)
        if flag is None:
            named = ", ".join(sorted(flag.gateway for flag in job.run.watch.flagged)) or "none"
            raise OrderError(f"{self.gateway!r} is neither set aside nor flagged; those that are: {named}")
        job.run.readmit(self.gateway, now)
        return f"{self.gateway} takes part again, and its flag is lifted"

    def _retrain(self, job: Job, now: float) -> str:
        woke = job.run.wake(now)
        proposal = job.book.proposal()
        if proposal is not None and proposal.state == "proposed":
            job.book.save_proposal(msgspec.structs.replace(proposal, state="opened", opened_at=now))
        if not woke:
            return "its rounds go on anyway, by its schedule"
        return "goes on with further rounds, by its schedule, until it rests again; no limit of a machine moves for it"


class AlertWish(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is ordered of an alert, beside the verb and its place."""

    book: bytes
    """Of the gateway: another book's alert of this number is another alert."""
    fault: str = ""
    said_by: str = ""
    """Who said so, for the gateway's book."""
    by: Who | None = None

    @classmethod
    def read(cls, order: Order) -> AlertWish:
        """Raises OrderError."""
        try:
            return msgspec.msgpack.decode(order.details, type=cls)
        except msgspec.MsgspecError as error:
            raise OrderError(f"order {order.id} cannot be read: {error}") from error

    def write(self) -> bytes:
        return msgspec.msgpack.encode(self)


def standing(book: Book, gateways: Sequence[Gateway]) -> dict[str, Any]:
    """How a task stands, as `fedmq task list --json` has it."""
    row = book.row()
    lineage = int(book.get("lineage") or 0)
    version = book.last_version(lineage)
    tags = (book.get("tags") or b"").decode().split("\n")
    wanted = {tag for tag in tags if tag}
    members = [g for g in gateways if not wanted or wanted & g.tag_set]
    trials = book.trials()
    serving = Counter(f"{trial.in_service}" for trial in trials)
    personal = Counter(trial.personal for trial in trials if trial.personal is not None)
    by_tag: Counter[str] = Counter()
    for gateway in members:
        by_tag.update(gateway.tag_set)
    return {
        "name": row.name,
        "state": row.state if row.configured or row.state == "stopped" else "not in the settings",
        "paused_tags": sorted(tag for tag in row.paused_tags.split("\n") if tag),
        "lineage": lineage,
        "version": 0 if version is None else version.number,
        "rounds": book.count_rounds(),
        "metric": book.last_metric(),
        "metric_name": (book.get("metric_name") or b"metric").decode("utf-8", "replace"),
        "releases": [
            {
                "number": release.number,
                "lineage": release.lineage,
                "version": release.version,
                "canary_pct": release.canary_pct,
                "tags": [tag for tag in release.tags.split("\n") if tag],
                "forced": release.forced,
                "at": release.at,
            }
            for release in book.releases()
        ],
        "in_service": dict(sorted(serving.items(), key=lambda item: int(item[0]))),
        "personal": dict(sorted(personal.items())),
        "tags": sorted(wanted),
        "gateways": len(members),
        "present": sum(g.present for g in members),
        "gateways_by_tag": dict(sorted(by_tag.items())),
    }


ANSWERED_ROUNDS = 200
"""So many newest rounds are looked through for what a gateway answered last."""


def state_of_affairs(ledger: Ledger, now: float) -> dict[str, Any]:
    """What `fedmq status --json` prints: each task's newest round, and each gateway with its last answer. For programs
    that wait for something, such as an upgrade for a gateway to be back."""
    with ledger.snapshot():
        last = {answer[0]: answer[1:] for answer in ledger.last_answers(ANSWERED_ROUNDS)}
        vitals = vitals_of_fleet(ledger)
        tasks = [(row, ledger.book(row.name)) for row in ledger.tasks()]
        sent: Counter[str] = Counter()
        received: Counter[str] = Counter()
        for wire in ledger.wires():
            sent[wire.gateway] += wire.sent
            received[wire.gateway] += wire.received
        return {
            "now": now,
            "wire": {"sent": sent.total(), "received": received.total()},
            "tasks": [
                {
                    "name": row.name,
                    "state": row.state,
                    "lineage": (lineage := int(book.get("lineage") or 0)),
                    "version": 0 if (version := ledger.last_version(lineage)) is None else version.number,
                    "rounds": book.count_rounds(),
                    "proposal": None if (proposal := book.proposal()) is None else msgspec.to_builtins(proposal),
                    "round": None if (round_ := book.last_round()) is None else _round_of(round_, ledger),
                }
                for row, book in tasks
            ],
            "machines": {
                "watched": len(ledger.machines()),
                "messages": sum(watch.messages for watch in ledger.watches()),
                "bytes": sum(watch.bytes for watch in ledger.watches()),
                "alerts_waiting": sum(n for (state, _), n in ledger.count_alerts().items() if state in WAITING),
                "drift": [
                    {
                        "kind": drift.kind,
                        "since": drift.since,
                        "machines": drift.machines,
                        "drifting": drift.drifting,
                        "gateways": drift.gateways,
                        "measures": drift.measures.split("\n"),
                    }
                    for drift in ledger.fleet_drifts()
                ],
                "spreads": msgspec.to_builtins(spreads_of(ledger)),
            },
            "gateways": [
                {
                    "name": gateway.name,
                    "present": gateway.present,
                    "software": gateway.software,
                    "first_seen": gateway.first_seen,
                    "last_seen": gateway.last_seen,
                    "sent": sent[gateway.name],
                    "received": received[gateway.name],
                    "tags": sorted(gateway.tag_set),
                    "vitals": None if gateway.name not in vitals else vitals[gateway.name].as_json(),
                    "answer": None
                    if gateway.name not in last
                    else dict(zip(("round", "at", "kind", "verdict", "reason"), last[gateway.name], strict=True)),
                }
                for gateway in ledger.gateways()
            ],
        }


def _round_of(round_: Round, ledger: Ledger) -> dict[str, Any]:
    answers = ledger.answers(round_.id)
    return {
        "number": round_.id,
        "kind": round_.kind,
        "outcome": round_.outcome,
        "opened_at": round_.opened_at,
        "closes_at": round_.closes_at,
        "closed_at": round_.closed_at,
        "drawn": round_.drawn,
        "answers": len(answers),
        "accepted": sum(answer.kind != "decline" and answer.verdict == "accepted" for answer in answers),
        "declined": sum(answer.kind == "decline" for answer in answers),
    }


def in_canary(task: str, gateway: str, percent: float) -> bool:
    """Whether a gateway is among the first: the same ones for every release of a task, and more as it grows."""
    hashed = int.from_bytes(hashlib.sha256(f"{task}:{gateway}".encode()).digest()[:8], "big")
    return hashed % 1_000_000 < percent * 10_000


def release_for(book: Book, lineage: int, gateway: Gateway) -> Release | None:
    """The newest release that is for this gateway, of the lineage in force: others cannot be fetched."""
    for row in reversed(book.releases()):
        if row.lineage != lineage:
            continue
        tags = set(row.tags.split("\n")) - {""}
        if tags and tags.isdisjoint(gateway.tag_set):
            continue
        version = book.version(lineage, row.version)
        if version is not None and in_canary(book.name, gateway.name, row.canary_pct):
            return Release(version=row.version, model=short(version.digest), forced=row.forced)
    return None
