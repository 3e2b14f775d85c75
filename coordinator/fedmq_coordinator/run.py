"""The run of rounds: opens them by the schedule, restores the open one after a restart, closes and scores them.

Owns the open round, its weights and its running sum, what late updates need of closed rounds, who is set aside, and
whether the run rests. All in the ledger's running transaction: the service commits, and only then the outbox speaks.
Refuses to know connections and what an answer says.

Rounds of both ways of aggregation are the same but for who is asked, how many updates make a version and what counts
as such; docs/decisions/0011-buffered-rounds.md says why.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from fedmq_compression.pipeline import Decoded
from fedmq_protocol.logs import about
from fedmq_protocol.messages import (
    BlobRef,
    RoundKind,
    RoundPlan,
    Slot,
    Verdict,
    ask_after_seconds,
    bitmap,
    check_of,
    to_bytes,
)
from fedmq_protocol.topics import Channel
from fedmq_protocol.transfer import chunks, refer
from numpy.typing import NDArray

from fedmq_coordinator.absent import ABSENT, Absence, after_round, from_bytes, set_aside
from fedmq_coordinator.absent import to_bytes as absences_to_bytes
from fedmq_coordinator.aggregate import (
    AggregationRule,
    WeightedMean,
    most_windows,
    rule_named,
    staleness,
    weigh,
)
from fedmq_coordinator.cohort import BITMAP_FLEET, Turn, draw, following
from fedmq_coordinator.ledger import Answer, Book
from fedmq_coordinator.ledger import Round as RoundRow
from fedmq_coordinator.lineage import Lineage
from fedmq_coordinator.outbox import Outbox
from fedmq_coordinator.roster import Members
from fedmq_coordinator.rounds import Round, verdict_name
from fedmq_coordinator.schedule import may_resume, next_opening, reason_to_rest, rounds_tonight
from fedmq_coordinator.settings import LimitSettings, RoundSettings
from fedmq_coordinator.summary import round_summary
from fedmq_coordinator.watch import Watch

__all__ = ["Run", "Score"]

log = logging.getLogger("fedmq.coordinator")

RECEIPTS_BEFORE_QUESTIONS = 0.9
"""Share of the time until the first gateway would ask for its verdict, after which receipts are sent."""

ANSWER_RATE_ROUNDS = 20
"""Rounds over which the share of answers is looked at, to draw more where fewer answer."""

CLOSED_BELOW_QUORUM = 20
"""Closed rounds that are kept for late updates beyond two for each version that those may be behind: a fleet that
misses its quorum all day makes no versions, and its rounds must not pile up."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a version is worth."""

    metric: float
    loss: float


class _Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The open round, as it is kept for a restart."""

    plan: RoundPlan
    asked: tuple[str, ...]
    target: int
    quorum: int
    weights: dict[str, int]
    most_windows: float
    """For the weight of a gateway that came later."""


class _Closed(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a closed training round, for updates that come late."""

    plan: RoundPlan
    """Without delta and scaler."""
    most_windows: float
    weights: dict[str, int] = msgspec.field(default_factory=dict)
    """Of those who were asked, in a fleet of at most BITMAP_FLEET."""


class _Rest(msgspec.Struct, frozen=True, kw_only=True):
    """Why the run rests, and with how many windows in the fleet it came to that."""

    windows: int
    reason: str


class Run:
    """`evaluate` scores `(P,) float32` with a scaler on a test set, where there is one."""

    def __init__(
        self,
        *,
        ledger: Book,
        line: Lineage,
        roster: Members,
        outbox: Outbox,
        settings: RoundSettings,
        limits: LimitSettings,
        evaluate: Callable[[NDArray[np.float32], bytes | None], Score] | None,
        now: float,
    ) -> None:
        self._ledger = ledger
        self._line = line
        self._roster = roster
        self._outbox = outbox
        self._settings = settings
        self._limits = limits
        self._pace = settings.pace
        self._evaluate = evaluate
        self._started_at = now
        self._make_rule = rule_named(settings.rule)
        self._buffered = settings.aggregation == "buffered"
        self.watch = Watch(ledger=ledger, lineage=line.number, limits=limits)
        roster.aside = self.watch.aside
        self.round: Round | None = None
        self._opened: _Opened | None = None
        """What is on disk of it."""
        closed = msgspec.msgpack.decode(ledger.get("closed") or b"\x90", type=list[_Closed])
        self._closed = {one.plan.round_id: one for one in closed if one.plan.lineage == line.number}
        self._absences = from_bytes(ledger.get(ABSENT))
        self.mean: AggregationRule | None = None
        """The open training round's sum so far, with late updates and what earlier rounds owe."""
        self.receipts_at: float | None = None
        """The open round's accepted updates hear of it from the next plan, or by receipts at this time if no plan has
        come by then; None: by a receipt each, at once."""
        self.opens_at: float | None = None
        self.resting: str | None = None
        """Why no round opens, or None."""
        self.paused = False
        """No round opens; one that is open goes on to its close."""
        newest = ledger.last_round()
        self._newest = 0 if newest is None else newest.id
        self._waits: tuple[object, ...] | None = None
        """What there was when it was found that no round is to open: without anything new it need not be asked again
        before `opens_at`."""
        self._between: dict[int, int] = {}
        """Rounds that have come since an earlier one, up to the open one."""
        opened = ledger.get("opened")
        if opened:
            self._reopen(msgspec.msgpack.decode(opened, type=_Opened))

    def _reopen(self, opened: _Opened) -> None:
        self._begin(opened)
        assert self.round is not None  # _begin has just made it
        for answer in self._ledger.answers(opened.plan.round_id):
            if answer.kind == "decline":
                self.round.count(answer.gateway, update=False)
            elif answer.verdict == verdict_name(Verdict.ACCEPTED):
                self.round.count(answer.gateway, update=True)
            else:
                self.round.refuse(answer.gateway)

    def _begin(self, opened: _Opened) -> None:
        """Make the open round, with all that is in its sum: what earlier rounds owe, and after a restart the rest."""
        plan = opened.plan
        self._between.clear()
        self.round = Round(
            plan,
            asked=frozenset(opened.asked),
            target=opened.target,
            quorum=opened.quorum,
            close_when_answered=self._settings.close_when_all_answered,
            buffered=self._buffered and plan.kind is RoundKind.TRAINING,
        )
        self._opened = opened
        self.receipts_at = self._receipts_due(plan)
        self.mean = None
        if plan.kind is not RoundKind.TRAINING:
            return
        self.mean = self._make_rule(self._line.task.model.parameters)
        for answer in self._ledger.summed(plan.round_id):
            asked = self._ledger.round(answer.round)
            # An answer is on record only for a round that is, and its payload is kept until a version holds it.
            assert asked is not None
            assert answer.payload is not None
            decoded = self._line.decode(answer.payload, asked.level, asked.base)
            self.mean.add(decoded, self._weight_in(plan.round_id, answer.round, answer.weight))
            if answer.round == plan.round_id:
                continue
            if answer.counted_in == plan.round_id:
                self.round.count_late(answer.gateway)
            else:
                self.round.count_owed()

    # -- what intake asks and tells ------------------------------------------------------------------------------

    @property
    def counting(self) -> int | None:
        """The round in whose sum an accepted update is now; None: it is owed to the next one."""
        return None if self.round is None or self.mean is None else self.round.plan.round_id

    def plan_of(self, round_id: int) -> RoundPlan | None:
        """Of the round that is open, or of a closed one to which an update counts still."""
        if self.round is not None and self.round.plan.round_id == round_id:
            return self.round.plan
        plan = self.closed_plan(round_id)
        if plan is None or self._line.version - plan.base > self._line.task.staleness:
            return None
        return plan

    def closed_plan(self, round_id: int) -> RoundPlan | None:
        """Of a training round of this lineage that has closed, as far back as late updates may need it.

        None for one whose answers are summed up: there is no place any more to put an update on record.
        """
        closed = self._closed.get(round_id)
        return closed.plan if closed is not None and self._ledger.has_round(round_id) else None

    def weight_of(self, name: str, round_id: int) -> int:
        """Of a gateway's update to a round with a plan: fixed when that opened, whatever the gateway says later.

        One that was not here then counts by what its last birth says, up to the fleet's median.
        """
        opened: _Opened | _Closed | None = self._opened
        if opened is None or opened.plan.round_id != round_id:
            opened = self._closed[round_id]
        fixed = opened.weights.get(name)
        if fixed is not None:
            return fixed
        return weigh(min(self._roster.windows(name), math.ceil(opened.most_windows / 4)), opened.most_windows)

    def count(self, answer: Answer, decoded: Decoded) -> None:
        """An accepted update is on record: into the open training round's sum, where there is one."""
        if self.round is not None and self.mean is not None:
            self.mean.add(decoded, self._weight_in(self.round.plan.round_id, answer.round, answer.weight))
            if answer.late:
                self.round.count_late(answer.gateway)
            else:
                self.round.count(answer.gateway, update=True)
        if answer.late and answer.gateway in self._absences:
            self._save_absences({name: a for name, a in self._absences.items() if name != answer.gateway})

    def refuse(self, name: str, round_id: int) -> None:
        """A refused answer is on record."""
        if self.round is not None and self.round.plan.round_id == round_id:
            self.round.refuse(name)

    def _weight_in(self, round_id: int, answer_round: int, weight: int) -> int:
        """Of an update in this round's sum: the less, the more rounds have opened since its own."""
        if answer_round == round_id:
            return weight
        waited = self._between.get(answer_round)
        if waited is None:
            waited = self._ledger.rounds_between(self._line.number, answer_round, round_id)
            self._between[answer_round] = waited
        return staleness(weight, waited, self._settings.staleness_exponent)

    # -- opening -------------------------------------------------------------------------------------------------

    def proceed(self, now: float) -> None:
        if self.round is not None:
            if self.round.should_close(now):
                self._close(self.round, now)
            else:
                return
        if self.round is None and not self.paused:
            around = self._roster.mark, self._newest, self._absences
            if around == self._waits and (self.opens_at is None or now < self.opens_at):
                return
            self._waits = around
            self._open_if_due(now)

    def abandon(self, now: float) -> None:
        """The open round is given up, and what its lineage was still owed: nothing more comes of either."""
        if self.round is not None:
            self._ledger.close_round(self.round.plan.round_id, at=now, outcome="abandoned", version=None)
        self._ledger.forget("opened")
        self._ledger.erase_payloads()
        self.round = self.mean = self.opens_at = self.receipts_at = self._waits = None

    def wake(self, now: float) -> bool:
        """A run that rests goes on, as if enough new windows had come; False where it does not rest."""
        if self._ledger.get("rest") is None:
            return False
        self._ledger.put("began", str(self.newest_round()).encode())
        self._ledger.forget("rest")
        self.resting = self._waits = None
        return True

    def tell_release(self, now: float) -> None:
        """The plan at hand goes out again, with the number of the newest release."""
        opened = self._ledger.get("opened")
        if self.round is not None and opened:
            plan = msgspec.structs.replace(self.round.plan, release=self._ledger.last_release() or None)
            self.round.plan = plan
            kept = msgspec.structs.replace(msgspec.msgpack.decode(opened, type=_Opened), plan=plan)
            self._ledger.put("opened", msgspec.msgpack.encode(kept))
            self.publish_plan(plan, now)
        elif self._line.version > 0:
            self.publish_plan(self.rest_plan(now), now)

    def _open_if_due(self, now: float) -> None:
        self.opens_at = None
        present = self._roster.present()
        needed = max(1, self._settings.min_gateways)
        if not self._line.has_scaling or self.newest_round() == 0:
            needed = max(needed, self._settings.first_gateways)
        # Who is set aside is here all the same: to set somebody aside does not bring a run to a stand.
        if not present or len(present) + self._roster.aside_here < needed:
            return
        windows = self._roster.all_windows
        if not self._may_go_on(windows, now):
            return
        if not self._is_due(windows, now):
            return
        kind = RoundKind.TRAINING if self._line.has_scaling else RoundKind.STATISTICS
        fraction = self._settings.fraction if kind is RoundKind.TRAINING else 1.0
        stood = self._ledger.get("turn") if fraction < 1 else None
        turn = following(
            None if stood is None else msgspec.json.decode(stood, type=Turn),
            fraction=fraction,
            answer_rate=self._answer_rate() if fraction < 1 else 1.0,
        )
        active = self._not_set_aside(present)
        cohort = draw(active, len(self._roster), fraction=fraction, seed=self._line.task.seed, turn=turn)
        if not cohort.asked:
            return
        names = sorted(cohort.asked)
        closes_at = math.ceil(now + self._settings.closing_seconds)
        plan = self._plan(kind, self._ledger.next_round(), cohort.drawn, closes_at)
        target = cohort.target
        quorum = max(self._settings.quorum_gateways, math.ceil(self._settings.quorum_share * target))
        if self._buffered and kind is RoundKind.TRAINING:
            target = quorum = min(self._settings.buffer_updates, len(names))
        counted = {name: self._roster.windows(name) for name in names}
        # Of the whole fleet: among few who are asked, one that says it had a million would be the median.
        most = most_windows(self._roster.fleet_windows())
        opened = _Opened(
            plan=plan,
            asked=tuple(names),
            target=target,
            quorum=quorum,
            weights={name: weigh(count, most) for name, count in counted.items()},
            most_windows=most,
        )
        self._ledger.put("opened", msgspec.msgpack.encode(opened))
        if kind is RoundKind.TRAINING:
            self._ledger.count_owed(plan.round_id)
        self._ledger.put("windows", str(windows).encode())
        if fraction < 1:
            self._ledger.put("turn", msgspec.json.encode(turn))
        self._ledger.open_round(
            RoundRow(
                id=plan.round_id,
                lineage=self._line.number,
                kind=kind.name.lower(),
                base=self._line.version,
                opened_at=now,
                closes_at=plan.closes_at,
                closed_at=None,
                outcome="open",
                drawn=len(names),
                plan_bytes=len(to_bytes(plan)) + (plan.delta.length if isinstance(plan.delta, BlobRef) else 0),
                version=None,
                metric=None,
                loss=None,
                metric_source=None,
                level=plan.level,
            )
        )
        self._newest = plan.round_id
        self._begin(opened)
        self.publish_plan(plan, now)

    def _not_set_aside(self, present: Mapping[str, int]) -> Mapping[str, int]:
        """Those of the gateways here that are to be asked; all, where too few would be left to make a version."""
        aside = set_aside(self._absences, self._nonces())
        left = {name: place for name, place in present.items() if name not in aside}
        return left if len(left) >= self._settings.quorum_gateways else present

    def _nonces(self) -> dict[str, bytes]:
        """Of those who fail to answer, as they were born last."""
        return {name: gateway.nonce for name in self._absences if (gateway := self._roster.get(name)) is not None}

    def _save_absences(self, absences: dict[str, Absence]) -> None:
        if absences != self._absences:
            self._absences = absences
            self._ledger.put(ABSENT, absences_to_bytes(absences))

    def _receipts_due(self, plan: RoundPlan) -> float | None:
        """When `receipts_at` is, for the round that opens with this plan."""
        opened = self._ledger.last_round()
        assert opened is not None  # a round is in the ledger before it begins
        next_plan = next_opening(
            self._pace,
            last_opened=opened.opened_at,
            last_closed=opened.opened_at
            if self._settings.close_when_all_answered or self._buffered
            else plan.closes_at,
            tonight=self._tonight(),
        )
        # A receipt costs half of a question with its answer, so it shall come before the first is asked.
        due = opened.opened_at + RECEIPTS_BEFORE_QUESTIONS * ask_after_seconds(plan.closes_at - opened.opened_at)
        return due if next_plan <= due and len(self._roster) <= BITMAP_FLEET else None

    def _tonight(self) -> int:
        """Rounds of the night's series so far; counted no further than the series is long."""
        openings = [] if self._pace.nightly is None else self._ledger.openings(self._pace.rounds_per_night)
        return rounds_tonight(self._pace, openings)

    def _is_due(self, windows: int, now: float) -> bool:
        """Whether the schedule lets the next round open, and enough new windows have come where it asks for any."""
        last = self._ledger.last_round()
        if last is not None:
            due = next_opening(
                self._pace,
                last_opened=last.opened_at,
                last_closed=last.closed_at or last.opened_at,
                failures=self._failures(),
                tonight=self._tonight(),
            )
        elif self._pace.nightly is not None:
            # A series of nights begins with a night, not with the start of this program.
            due = next_opening(self._pace, last_opened=self._started_at, last_closed=self._started_at)
        else:
            due = now
        self.opens_at = due if due > now else None
        fresh = windows - int(self._ledger.get("windows") or 0)
        if due > now:
            return False
        return fresh >= self._pace.new_windows_min or not self._ledger.training_rounds(self._line.number, most=1)

    def _may_go_on(self, windows: int, now: float) -> bool:
        """Whether the run goes on. When it comes to rest, that is said once, with the last delta, to everyone."""
        stored = self._ledger.get("rest")
        # The last round of the run before this one: it rested, and new windows woke it up.
        began = int(self._ledger.get("began") or 0)
        made = self._ledger.training_rounds(self._line.number, after=began, most=self._pace.max_rounds)
        metrics: list[float] = []
        if self._pace.target_metric is not None or self._pace.plateau_rounds:
            last = max(2, self._pace.plateau_rounds)
            metrics = self._ledger.metrics(
                self._line.number, after=began, last=last, direction=self._line.task.direction
            )
        reason = reason_to_rest(self._pace, rounds=made, metrics=metrics, direction=self._line.task.direction)
        if stored is not None:
            windows_at_rest = msgspec.json.decode(stored, type=_Rest).windows
            if may_resume(self._pace, windows_at_rest=windows_at_rest, windows_now=windows):
                log.info("%d new windows since the run came to rest: going on", windows - windows_at_rest)
                self._ledger.put("began", str(self.newest_round()).encode())
                reason = None
            if reason is None:
                self._ledger.forget("rest")
        elif reason is not None:
            log.info("at rest: %s", reason)
            self._ledger.put("rest", msgspec.json.encode(_Rest(windows=windows, reason=reason)))
            self.publish_plan(self.rest_plan(now), now)
        self.resting = reason
        return reason is None

    def _close(self, round_: Round, now: float) -> None:
        """Everything that the round came to, in the running transaction; the model's file is on disk before."""
        self.round = self._waits = None
        self._ledger.forget("opened")
        plan = round_.plan
        version, loss = None, None
        counted: set[str] = set()
        if not round_.has_quorum:
            outcome = "below quorum"
            self._ledger.owe(plan.round_id)
        elif plan.kind is RoundKind.STATISTICS:
            outcome = "applied"
            self._line.learn_scaler(plan.round_id)
        else:
            outcome = "applied"
            assert self.mean is not None  # a training round that has quorum has a sum
            loss = self._training_loss(plan.round_id)
            counted = self._compare(plan.round_id)
            version = self._line.apply(
                self.mean,
                plan.round_id,
                loss=loss,
                momentum=self._settings.server_momentum,
                learning_rate=self._settings.server_learning_rate,
                now=now,
            )
        self._ledger.close_round(plan.round_id, at=now, outcome=outcome, version=version, training_loss=loss)
        self._remember(plan)
        self._judge(counted | round_.refused, now)
        self._look_for_absent(round_, now)
        self._score(plan, version)
        if version is not None:
            self._line.prune()
        log.info(
            "round %d %s: %d updates%s, %d declines, %d refused, %d of %d silent",
            plan.round_id,
            outcome,
            len(round_.updates),
            f" and {round_.others} of earlier rounds" if round_.others else "",
            len(round_.declines),
            len(round_.refused),
            len(round_.asked - round_.answered),
            len(round_.asked),
        )
        self._tell_tools(round_, outcome)

    def _compare(self, round_id: int) -> set[str]:
        """Put on record where the updates of the version being made point; returns whose they are.

        Payloads are decoded once more: to keep what was decoded would take memory for every answer of a round.
        """
        names: set[str] = set()

        def updates() -> Iterator[tuple[Answer, Decoded, int]]:
            for answer in self._ledger.summed(round_id):
                asked = self._ledger.round(answer.round)
                assert asked is not None  # an answer is on record only for a round that is
                assert answer.payload is not None  # kept until a version holds it
                names.add(answer.gateway)
                decoded = self._line.decode(answer.payload, asked.level, asked.base)
                yield answer, decoded, self._weight_in(round_id, answer.round, answer.weight)

        total = self.mean
        if not isinstance(total, WeightedMean):
            # A rule that is no sum: what single updates are compared with is one all the same.
            total = WeightedMean(self._line.task.model.parameters)
            for _, decoded, weight in updates():
                total.add(decoded, weight)
        self.watch.compare(self._line.version + 1, total.total, updates())
        return names

    def _judge(self, names: set[str], now: float) -> None:
        """Flag those who give reason to; where the settings say so they are set aside by that."""
        alone = self._roster.sole_holders(self._line.task.classes)
        self.watch.judge(names, self.newest_round(), now, alone=alone)
        self._roster.aside = self.watch.aside

    def set_aside(self, name: str, now: float) -> None:
        """By order."""
        self.watch.set_aside(name, self.newest_round(), now)
        self._roster.aside = self.watch.aside

    def readmit(self, name: str, now: float) -> None:
        """By order; also one that was only flagged."""
        self.watch.readmit(name, self.newest_round(), now)
        self._roster.aside = self.watch.aside

    def _remember(self, plan: RoundPlan) -> None:
        """Keep of a closed round what an update to it may need that comes late."""
        most = self._line.task.staleness
        opened, self._opened = self._opened, None
        if not most or plan.kind is not RoundKind.TRAINING or opened is None:
            return
        plan = msgspec.structs.replace(plan, delta=None, scaler=None)
        weights = opened.weights if len(opened.weights) <= BITMAP_FLEET else {}
        self._closed[plan.round_id] = _Closed(plan=plan, most_windows=opened.most_windows, weights=weights)
        kept = [one for one in self._closed.values() if self._line.version - one.plan.base <= most]
        self._closed = {one.plan.round_id: one for one in kept[-(2 * most + CLOSED_BELOW_QUORUM) :]}
        self._ledger.put("closed", msgspec.msgpack.encode(list(self._closed.values())))

    def _look_for_absent(self, round_: Round, now: float) -> None:
        """Put on record who was asked in vain, and name those who are set aside for it."""
        nonces = {name: gateway.nonce for name in round_.asked if (gateway := self._roster.get(name)) is not None}
        before = self._absences
        self._save_absences(
            after_round(
                before,
                asked=round_.asked,
                failed=round_.failed(now),
                heard=round_.heard,
                nonces=nonces,
                patience=self._settings.set_aside_after,
            )
        )
        for name, absence in self._absences.items():
            if absence.left and (name not in before or absence.missed > before[name].missed):
                with about(gateway=name):
                    log.warning(
                        "%s was asked in vain in %d rounds in a row: set aside for %d",
                        name,
                        absence.missed,
                        absence.left,
                    )

    def _training_loss(self, round_id: int) -> float:
        """Mean over the updates in the round's sum, by their weights there."""
        told = [
            (self._weight_in(round_id, answered, weight), loss)
            for answered, weight, loss in self._ledger.summed_losses(round_id)
        ]
        return sum(weight * loss for weight, loss in told) / sum(weight for weight, _ in told)

    def _score(self, plan: RoundPlan, version: int | None) -> None:
        """On the test set where there is one. Else by the gateways, who score a plan's base on their held-out windows:
        what they say in this round belongs to the round that made its base."""
        if self._evaluate is not None:
            scored = version is not None or plan.kind is RoundKind.STATISTICS
            if scored and self._line.has_scaling:
                score = self._evaluate(self._line.parameters, self._line.scaler)
                self._ledger.set_metric(plan.round_id, metric=score.metric, loss=score.loss, source="test set")
            return
        made_base = self._ledger.version(self._line.number, plan.base)
        said = [a for a in self._ledger.answers(plan.round_id) if a.held_out_windows]
        if made_base is None or made_base.round is None or not said:
            return
        windows = sum(a.held_out_windows or 0 for a in said)
        # Exact sums: in whatever order answers come, the metric is the same to the last bit.
        self._ledger.set_metric(
            made_base.round,
            metric=math.fsum((a.held_out_metric or 0.0) * (a.held_out_windows or 0) for a in said) / windows,
            loss=math.fsum((a.held_out_loss or 0.0) * (a.held_out_windows or 0) for a in said) / windows,
            source="held-out windows",
        )

    def _tell_tools(self, round_: Round, outcome: str) -> None:
        """The small JSON topic for Telegraf, Node-RED and the like."""
        row = self._ledger.round(round_.plan.round_id)
        body = round_summary(
            round_,
            row,
            task=self._line.task.name,
            outcome=outcome,
            version=self._line.version,
            flagged=len(self.watch.flagged),
            metric_name=(self._ledger.get("metric_name") or b"metric").decode("utf-8", "replace"),
        )
        self._outbox.report(body)

    def _plan(self, kind: RoundKind, round_id: int, drawn: int | Slot, closes_at: int) -> RoundPlan:
        """The plan of a round from the newest version, the delta that made it, and what the last round accepted.

        All of it is on record, so that it can be made again at any time until the next round opens.
        """
        delta: bytes | BlobRef | None = self._line.newest_delta or None
        if isinstance(delta, bytes) and len(delta) > self._limits.chunk_bytes:
            delta = refer(delta, self._limits.chunk_bytes)
        # The first training plan brings the scaler that the statistics round has just learnt.
        first = kind is RoundKind.TRAINING and self._line.version == 0
        last = self.newest_round()
        accepted = self._ledger.accepted(last, self._line.number) if len(self._roster) <= BITMAP_FLEET else []
        places = [place for name in accepted if (place := self._roster.place(name)) is not None]
        return RoundPlan(
            round_id=round_id,
            lineage=self._line.number,
            kind=kind,
            base=self._line.version,
            model=check_of(self._line.digest),
            closes_after=closes_at - self._line.number,
            drawn=drawn,
            accepted=bitmap(places),
            since=round_id - last if last else 1,
            level=self._line.level,
            delta=delta,
            scaler=self._line.scaler if first else None,
            release=self._ledger.last_release() or None,
        )

    def rest_plan(self, now: float) -> RoundPlan:
        return self._plan(RoundKind.REST, self.newest_round() + 1, 0, int(now) + 1)

    def publish_plan(self, plan: RoundPlan, now: float) -> None:
        expiry = None if plan.kind is RoundKind.REST else max(1, int(plan.closes_at - now))
        self._outbox.broadcast(Channel.PLAN, plan, expiry_seconds=expiry)
        if isinstance(plan.delta, BlobRef):
            for chunk in chunks(self._line.newest_delta, plan.delta):
                self._outbox.broadcast(Channel.CHUNK, chunk, expiry_seconds=expiry)

    def _answer_rate(self) -> float:
        """Share of the drawn that answered with an update, over the last rounds."""
        lately = self._ledger.latest_training(self._line.number, ANSWER_RATE_ROUNDS)
        drawn = sum(r.drawn for r in lately)
        return self._ledger.updates_since(lately[0].id) / drawn if drawn else 1.0

    def _failures(self) -> int:
        """Rounds below quorum in a row, up to the last one; a buffered one that got updates has come further."""
        failures = self._ledger.failures()
        if not self._buffered or not failures:
            return failures
        latest = reversed(self._ledger.rounds(last=failures))
        return next((n for n, row in enumerate(latest) if self._ledger.accepted(row.id, row.lineage)), failures)

    def newest_round(self) -> int:
        """Of this task; 0 before the first."""
        return self._newest
