"""One task that goes on at the coordinator: its line of versions, its rounds and the answers to them, and who waits for
a model of its.

Owns what is said to those who missed something of the task: catch-ups, released versions, chunks of its bundle, each
once for all who asked within a short while. What becomes of rounds and answers is in `run` and `intake`, of the model
in `lineage`. Refuses to know the other tasks, the connection and the commit: `service` has those.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from fedmq_protocol.messages import (
    AskChunks,
    AskModel,
    Assignment,
    CatchUp,
    CatchUpKind,
    Held,
    PersonalPolicy,
    RoundPlan,
    Trial,
)
from fedmq_protocol.task import Task, short
from fedmq_protocol.topics import Channel
from fedmq_protocol.transfer import BUNDLE_CHUNK_BYTES, chunks, refer
from numpy.typing import NDArray

from fedmq_coordinator.intake import Intake
from fedmq_coordinator.ledger import FLAGGED, Gateway, Ledger, Release
from fedmq_coordinator.ledger import CatchUp as CatchUpRow
from fedmq_coordinator.ledger import Trial as TrialRow
from fedmq_coordinator.lineage import Lineage
from fedmq_coordinator.machines import Drift, FleetSpread, Proposal
from fedmq_coordinator.models import ModelError, ModelStore
from fedmq_coordinator.outbox import Outbox
from fedmq_coordinator.rates import Rates
from fedmq_coordinator.roster import Members, Roster
from fedmq_coordinator.run import Run, Score
from fedmq_coordinator.settings import LimitSettings, RoundSettings
from fedmq_coordinator.tasks import release_for

__all__ = ["Job", "TaskPlan"]

log = logging.getLogger("fedmq.coordinator")

CATCH_UP_SECONDS = 600
"""For so long a catch-up is worth something to those who asked."""


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """One task, and how its rounds go.

    `evaluate` scores `(P,) float32` with a scaler on a test set, where there is one.
    """

    task: Task
    rounds: RoundSettings = field(default_factory=RoundSettings)
    evaluate: Callable[[NDArray[np.float32], bytes | None], Score] | None = None
    metric_name: str = "metric"
    bundle: bytes = field(default=b"", repr=False)
    """Of a model that somebody brought: gateways ask for it."""
    personal: PersonalPolicy | None = None
    """What gateways make of a released version for themselves."""


MOST_BUNDLE_GATHER_SECONDS = 2.0
"""Who asks for chunks and gets none asks again, a few times, and then gives up for a minute."""


class Job:
    """One task that goes on: its line of versions, its rounds and the answers to them, and who waits for a model."""

    def __init__(
        self,
        plan: TaskPlan,
        *,
        federation: str,
        limits: LimitSettings,
        ledger: Ledger,
        models: ModelStore,
        roster: Roster,
        outbox: Outbox,
        rates: Rates,
        now: float,
        new_lineage: bool,
    ) -> None:
        self.plan = plan
        self._rates = rates
        self.name = plan.task.name
        self._federation = federation
        self._limits = limits
        self._outbox = outbox
        self._models = models
        self._ledger = ledger
        self.book = ledger.book(self.name, keep_payloads=limits.keep_payloads)
        # Before the first commit: whoever reads the ledger finds the names in it.
        self.book.put("metric_name", plan.metric_name.encode())
        self.book.put("tags", "\n".join(plan.rounds.tags).encode())
        self.book.put(FLAGGED, limits.flagged.encode())
        self._keep_same_task()
        self.book.put("task_body", msgspec.msgpack.encode(plan.task))
        if plan.bundle and self.book.get("bundle") != plan.bundle:
            self.book.put("bundle", plan.bundle)
        before = int(self.book.get("lineage") or 0)
        self.line = Lineage(
            federation, plan.task, self.book, models, now=now, start_new=new_lineage, bundle=plan.bundle
        )
        self.begun = ""
        """Why another lineage was started just now; empty where the one on record goes on."""
        if self.line.number != before:
            self.begun = "the first" if not before else "--new-lineage" if new_lineage else "the task was changed"
        self.members = Members(roster, windowing=plan.task.windowing, tags=frozenset(plan.rounds.tags))
        self._askers: dict[int, set[str]] = {}
        self._wanted: dict[int, set[str]] = {}
        self.asked_at: float | None = None
        self._fetching: dict[str, set[int]] = {}
        """Chunks of the bundle that gateways have asked for."""
        self._fetched_at: float | None = None
        self._sent: dict[bytes, bytes] = {}
        """Released versions that were sent lately, by the first bytes of their digest: chunks may be missing."""
        self._begin(now)

    def _keep_same_task(self) -> None:
        """A task that other software wrote is the same one where only fields have come that hold their defaults."""
        body = self.book.get("task_body")
        if body is None or self.book.get("task") == self.plan.task.digest:
            return
        try:
            if msgspec.msgpack.decode(body, type=Task) == self.plan.task:
                self.book.put("task", self.plan.task.digest)
        except msgspec.MsgspecError:
            return  # of another making: it starts another lineage

    def _begin(self, now: float) -> None:
        """The rounds of the line in force, from what is on record."""
        self.run = Run(
            ledger=self.book,
            line=self.line,
            roster=self.members,
            outbox=self._outbox,
            settings=self.plan.rounds,
            limits=self._limits,
            evaluate=self.plan.evaluate,
            now=now,
        )
        self.intake = Intake(
            federation=self._federation,
            ledger=self.book,
            line=self.line,
            roster=self.members,
            run=self.run,
            outbox=self._outbox,
        )
        self.heed()

    def heed(self) -> None:
        """Take over whether the task pauses, and for whom."""
        row = self.book.row()
        self.run.paused = row.state != "running"
        self.members.paused_tags = frozenset(row.paused_tags.split("\n")) - {""}

    def go_back(self, lineage: int, number: int, now: float) -> None:
        """Start another lineage from an older version. Raises ModelError, before anything is changed."""
        self.line.model(lineage, number)
        self.run.abandon(now)
        self.line.go_back(lineage, number, now)
        self._askers, self._wanted, self.asked_at = {}, {}, None
        self._begin(now)

    def pin(self, number: int) -> None:
        """See to it that a version's file is there as long as it is released. Raises ModelError."""
        steps = self.line.model(self.line.number, number)
        if not self._models.path(self.line.number, number).is_file():
            self._models.save(self.line.number, number, steps)

    def heed_drift(self, lasting: Sequence[Drift | FleetSpread], retrain: str, now: float) -> None:
        """Machines have drifted, many of a kind or all of them together, and for long: that is put to people, once,
        and where `retrain` is "open" the run goes on for it. No limit moves: what is normal is learnt anew only after
        an event of a machine."""
        mine = [one for one in lasting if self._concerns(one)]
        standing = self.book.proposal()
        if not mine:
            if standing is not None and standing.state == "proposed":
                self.book.save_proposal(msgspec.structs.replace(standing, state="over"))
            return
        began = min(one.since for one in mine if one.since is not None)
        if standing is not None and standing.state != "over" and standing.at >= began:
            return
        reason = "; ".join(one.reason for one in mine)
        proposal = Proposal(at=now, reason=reason, state="proposed")
        log.warning("task %r: %s", self.name, proposal.reason)
        if retrain == "open":
            self.run.wake(now)
            proposal = msgspec.structs.replace(proposal, state="opened", opened_at=now)
        self.book.save_proposal(proposal)

    def _concerns(self, drift: Drift | FleetSpread) -> bool:
        """Whether gateways of this task have such machines; and the score of a model is of its own task alone."""
        if drift.task not in (None, self.name):
            return False
        return any(
            self.members.get(machine.gateway) is not None
            for machine in self._ledger.machines()
            if machine.kind == drift.kind and (machine.drifting or isinstance(drift, FleetSpread))
        )

    @property
    def resting(self) -> str | None:
        """Why no round opens, or None."""
        return self.run.resting

    @property
    def version(self) -> int:
        """Number of the model version in force."""
        return self.line.version

    @property
    def model_digest(self) -> bytes:
        """sha256 of the model in force."""
        return self.line.digest

    def wait_seconds(self, now: float, most: float) -> float:
        wait = most
        if self.run.round is not None:
            wait = min(wait, self.run.round.plan.closes_at - now)
            if self.run.receipts_at is not None:
                wait = min(wait, self.run.receipts_at - now)
        elif self.run.opens_at is not None and not self.run.paused:
            wait = min(wait, self.run.opens_at - now)
        if self.asked_at is not None:
            wait = min(wait, self.asked_at + self._limits.catch_up_gather_seconds - now)
        if self._fetched_at is not None:
            wait = min(wait, self._fetched_at + self._bundle_gather_seconds - now)
        return wait

    def proceed(self, now: float) -> None:
        """What is due."""
        self._answer_askers(now)
        self._send_bundle(now)
        self.intake.ask_for_chunks(now)
        self.run.proceed(now)
        self.intake.tell_accepted(now)

    def plan_at_hand(self, now: float) -> RoundPlan | None:
        """The open round's, or one that asks nobody and brings what the last round came to; None before the first."""
        if self.run.round is not None:
            return self.run.round.plan
        return self.run.rest_plan(now) if self.line.version > 0 else None

    def assignment(self, gateway: Gateway, held: Sequence[Held], now: float) -> Assignment:
        """How the task stands, for one gateway."""
        record = self.book.verdict(gateway.name)
        plan = self.plan_at_hand(now)
        releases = self.book.last_release()
        if plan is not None and plan.scaler is not None:
            plan = msgspec.structs.replace(plan, scaler=None)  # the assignment brings it
        mine = (self.line.number, short(self.line.task.digest))
        return Assignment(
            lineage=self.line.number,
            counter=record[1] if record is not None else 0,
            task=None if any((h.lineage, h.task) == mine for h in held) else self.line.task,
            scaler=self.line.scaler,
            plan=plan,
            releases=releases,
            release=release_for(self.book, self.line.number, gateway) if releases else None,
            personal=self.plan.personal,
        )

    # -- questions ---------------------------------------------------------------------------------------------

    def on_ask_model(self, name: str, ask: AskModel, now: float) -> None:
        if self.members.get(name) is None:
            return
        if ask.wanted is not None:
            if ask.lineage != self.line.number:
                return  # a welcome tells it of the new one
            self._wanted.setdefault(ask.wanted, set()).add(name)
        else:
            have = ask.version if ask.lineage == self.line.number else -1
            self._askers.setdefault(have, set()).add(name)
        if self.asked_at is None:
            self.asked_at = now

    def _answer_askers(self, now: float) -> None:
        """Once for all who asked within a short while; one keyframe where that is cheaper than several ways."""
        if self.asked_at is None or now < self.asked_at + self._limits.catch_up_gather_seconds:
            return
        askers, self._askers, self.asked_at = self._askers, {}, None
        wanted, self._wanted = self._wanted, {}
        if askers:
            names_of = {have: sorted(names) for have, names in askers.items()}
            routes = {have: self.line.route(have) for have in askers}
            keyframe = self.line.route(-1)
            if len(routes) > 1 and sum(len(route.body) for route in routes.values()) >= len(keyframe.body):
                routes = {-1: keyframe}
                names_of = {-1: sorted(set().union(*askers.values()))}
            for have, route in routes.items():
                for name in names_of[have]:
                    self._rates.charge(name, len(route.body), now)
                count = len(askers.get(have, set())) or sum(map(len, askers.values()))
                self._send(route.kind, route.start, self.line.version, self.line.digest, route.body, count, now)
        for number, names in wanted.items():
            if any(release.version == number for release in self._releases()):
                try:
                    body = self.line.keyframe(number)
                except ModelError as error:
                    log.error("%s", error)
                    continue
                digest = self.line.digest_of(number)
                self._sent = dict([*self._sent.items(), (short(refer(body, 256).digest), body)][-4:])
                for name in names:
                    self._rates.charge(name, len(body), now)
                self._send(CatchUpKind.KEYFRAME, 0, number, digest, body, len(names), now)
            else:
                log.warning("%s ask for version %d, which is not released", ", ".join(sorted(names)[:5]), number)

    def _releases(self) -> Iterator[Release]:
        return (release for release in self.book.releases() if release.lineage == self.line.number)

    def _send(
        self, kind: CatchUpKind, start: int, number: int, digest: bytes, body: bytes, askers: int, now: float
    ) -> None:
        ref = refer(body, self._limits.chunk_bytes)
        chunked = len(body) > self._limits.chunk_bytes
        self._outbox.broadcast(
            Channel.MODEL,
            CatchUp(
                lineage=self.line.number,
                kind=kind,
                start=start,
                number=number,
                model=short(digest),
                body=ref if chunked else body,
                until=math.ceil(now) + CATCH_UP_SECONDS - self.line.number,
            ),
        )
        if chunked:
            for chunk in chunks(body, ref):
                self._outbox.broadcast(Channel.MODEL, chunk)
        log.info("catch-up to version %d by %s for %d", number, kind.name.lower(), askers)
        self.book.save_catch_up(
            CatchUpRow(
                at=now,
                kind=kind.name.lower(),
                from_version=start,
                to_version=number,
                bytes=len(body),
                askers=askers,
            )
        )

    @property
    def _bundle_gather_seconds(self) -> float:
        return min(self._limits.catch_up_gather_seconds, MOST_BUNDLE_GATHER_SECONDS)

    def _send_bundle(self, now: float) -> None:
        """Chunks of the bundle, each once for all who asked for it within a short while."""
        if self._fetched_at is None or now < self._fetched_at + self._bundle_gather_seconds:
            return
        fetching, self._fetching, self._fetched_at = self._fetching, {}, None
        bundle = self.plan.bundle
        for chunk in chunks(bundle, refer(bundle, BUNDLE_CHUNK_BYTES), sorted(set().union(*fetching.values()))):
            lacking = [name for name, missing in fetching.items() if chunk.index in missing]
            for name in lacking:
                self._rates.charge(name, len(chunk.data), now)
            if len(lacking) == 1:
                self._outbox.command(lacking[0], Channel.CHUNK, chunk)
            else:
                self._outbox.broadcast(Channel.MODEL, chunk)

    def on_ask_chunks(self, name: str, ask: AskChunks, now: float) -> bool:
        """Chunks of the bundle, of the newest delta, or of a catch-up that can be made again; False where it is none of
        this job."""
        bundle = self.plan.bundle
        if bundle and ask.transfer == short(self.plan.task.model.bundle):
            self._fetching.setdefault(name, set()).update(ask.missing)
            if self._fetched_at is None:
                self._fetched_at = now
            return True
        for blob in filter(None, [self.line.newest_delta, self.line.route(-1).body, self._sent.get(ask.transfer)]):
            ref = refer(blob, self._limits.chunk_bytes)
            if short(ref.digest) == ask.transfer:
                for chunk in chunks(blob, ref, ask.missing):
                    self._rates.charge(name, len(chunk.data), now)
                    self._outbox.command(name, Channel.CHUNK, chunk)
                return True
        return False

    def on_trial(self, name: str, trial: Trial, now: float) -> None:
        """A gateway tells what it has in service now, and whether it scores with a model of its own."""
        own = trial.personal
        self.book.save_trial(
            TrialRow(
                gateway=name,
                at=now,
                lineage=trial.lineage,
                version=trial.version,
                in_service=trial.in_service,
                windows=trial.windows,
                metric=trial.metric / 1e4,
                before=_told(trial.before),
                personal=None if own is None else own.outcome.name.lower(),
                personal_windows=0 if own is None else own.windows,
                personal_metric=None if own is None else _told(own.metric),
                shared_metric=None if own is None else _told(own.shared),
            )
        )


def _told(metric: int | None) -> float | None:
    """A metric that came in whole 1/10,000."""
    return None if metric is None else metric / 1e4
