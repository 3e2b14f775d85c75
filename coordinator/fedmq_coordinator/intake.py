"""What becomes of an answer: checked, put on record, counted, and told its verdict.

Owns updates that are still coming in chunks. Decides with `rounds`, writes into the ledger's running transaction, and
says nothing itself: receipts wait in the outbox for the commit. A repeat gets its first verdict again, for ever. An
update accepted for the first time has no receipt of its own where the next plan comes in time to bring it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fedmq_protocol.logs import about
from fedmq_protocol.messages import (
    AskVerdict,
    BlobRef,
    Chunk,
    Decline,
    Missing,
    Receipt,
    RoundKind,
    Statistics,
    Update,
    Verdict,
)
from fedmq_protocol.task import short
from fedmq_protocol.topics import Channel, Direction, topic
from fedmq_protocol.transfer import Incoming, TransferError, refer

from fedmq_coordinator import scaling
from fedmq_coordinator.ledger import Answer, Book
from fedmq_coordinator.lineage import Lineage, statistics_of
from fedmq_coordinator.outbox import Outbox
from fedmq_coordinator.roster import Members, beyond_bytes
from fedmq_coordinator.rounds import Judgement, Record, admit, examine, verdict_name, verdict_of
from fedmq_coordinator.run import Run

__all__ = ["Intake"]

log = logging.getLogger("fedmq.coordinator")

CHUNK_PAUSE_SECONDS = 2.0
"""An update in chunks that has been still for so long is asked for what is missing; then twice as long, and so on."""

LONGEST_PAUSE_SECONDS = 60.0


@dataclass(kw_only=True)
class _Transfer:
    """An update whose payload comes in chunks."""

    update: Update
    incoming: Incoming
    still_since: float
    pause: float = CHUNK_PAUSE_SECONDS


class Intake:
    def __init__(
        self, *, federation: str, ledger: Book, line: Lineage, roster: Members, run: Run, outbox: Outbox
    ) -> None:
        self._federation = federation
        self._ledger = ledger
        self._line = line
        self._roster = roster
        self._run = run
        self._outbox = outbox
        self._transfers: dict[str, _Transfer] = {}

    def on_update(self, name: str, update: Update, now: float) -> None:
        ref = update.payload if isinstance(update.payload, BlobRef) else refer(update.payload, 256)
        verdict = self._admit(name, update, short(ref.digest), now)
        if verdict is not None:
            self._conclude(name, update, b"", short(ref.digest), verdict, now)
            return
        if isinstance(update.payload, bytes):
            self._examine(name, update, update.payload, now)
            return
        try:
            # A dense float32 payload and its header: nothing of this task is longer.
            incoming = Incoming(update.payload, 4 * self._line.task.model.parameters + 1024)
        except TransferError as error:
            judgement = Judgement(verdict=Verdict.MALFORMED, why=str(error))
            self._conclude(name, update, b"", short(ref.digest), judgement, now)
            return
        under_way = self._transfers.get(name)
        if under_way is None or under_way.incoming.ref != update.payload:
            self._transfers[name] = _Transfer(update=update, incoming=incoming, still_since=now)

    def on_chunk(self, name: str, chunk: Chunk, now: float) -> None:
        transfer = self._transfers.get(name)
        if transfer is None or transfer.incoming.transfer != chunk.transfer:
            return
        with about(round=transfer.update.round_id):
            self._take_chunk(name, transfer, chunk, now)

    def _take_chunk(self, name: str, transfer: _Transfer, chunk: Chunk, now: float) -> None:
        # A slow link takes as long for the next one.
        transfer.pause = min(max(CHUNK_PAUSE_SECONDS, 2 * (now - transfer.still_since)), LONGEST_PAUSE_SECONDS)
        transfer.still_since = now
        try:
            if not transfer.incoming.add(chunk):
                return
        except TransferError as error:
            where = topic(self._federation, Direction.UP, Channel.CHUNK, name)
            log.warning("dropped %d bytes on %s: %s", len(chunk.data), where, error)
            return
        del self._transfers[name]
        try:
            payload = transfer.incoming.blob()
        except TransferError as error:
            judgement = Judgement(verdict=Verdict.MALFORMED, why=str(error))
            self._conclude(name, transfer.update, b"", chunk.transfer, judgement, now)
            return
        # The round may have closed while the chunks were coming.
        verdict = self._admit(name, transfer.update, chunk.transfer, now)
        if verdict is not None:
            self._conclude(name, transfer.update, payload, chunk.transfer, verdict, now)
        else:
            self._examine(name, transfer.update, payload, now)

    def ask_for_chunks(self, now: float) -> None:
        """Ask again for what is missing of updates that have been still for a while."""
        self._transfers = {n: t for n, t in self._transfers.items() if self._run.plan_of(t.update.round_id) is not None}
        for name, transfer in self._transfers.items():
            if now - transfer.still_since >= transfer.pause:
                transfer.still_since = now
                transfer.pause = min(2 * transfer.pause, LONGEST_PAUSE_SECONDS)
                missing = transfer.incoming.missing()
                self._outbox.command(
                    name, Channel.RECEIPT, Missing(transfer=transfer.incoming.transfer, missing=missing)
                )

    def _record(self, name: str, round_id: int) -> Record | None:
        """The gateway's answer to this round, or else its latest."""
        answer = self._ledger.answer(round_id, name)
        if answer is not None:
            return Record(
                round_id=answer.round,
                counter=answer.counter,
                digest=answer.digest,
                verdict=verdict_of(answer.verdict),
            )
        last = self._ledger.verdict(name)
        if last is None:
            return None
        return Record(round_id=last[0], counter=last[1], digest=last[2], verdict=verdict_of(last[3]))

    def _admit(self, name: str, update: Update, digest: bytes, now: float) -> Judgement | None:
        return admit(
            round_=self._run.round,
            newest_round=self._run.newest_round(),
            round_id=update.round_id,
            base=update.base,
            counter=update.counter,
            digest=digest,
            gateway=name,
            roster=self._roster.place(name),
            record=self._record(name, update.round_id),
            closed=self._run.closed_plan(update.round_id),
            version=self._line.version,
            staleness=self._line.task.staleness,
            now=now,
            aside=name in self._roster.aside,
        )

    def _examine(self, name: str, update: Update, payload: bytes, now: float) -> None:
        plan = self._run.plan_of(update.round_id)
        assert plan is not None  # the update was admitted
        judgement = examine(
            lambda: self._line.decode(payload, plan.level, plan.base),
            self._line.task.max_norm,
            self._run.watch.norm_bound,
        )
        self._conclude(name, update, payload, short(refer(payload, 256).digest), judgement, now)

    def _conclude(
        self, name: str, update: Update, payload: bytes, digest: bytes, judgement: Judgement, now: float
    ) -> None:
        """Put the verdict on record, count the update, and say so."""
        verdict = judgement.verdict
        if judgement.why:
            size = update.payload.length if isinstance(update.payload, BlobRef) else len(update.payload)
            where = topic(self._federation, Direction.UP, Channel.ANSWER, name)
            log.warning("refused %d bytes on %s, for round %d: %s", size, where, update.round_id, judgement.why)
        nonce = self._roster.heard(name, update, now)
        accepted = verdict is Verdict.ACCEPTED and not judgement.repeat
        late = False
        if not judgement.repeat and self._is_kept(update.round_id) and self._roster.get(name) is not None:
            counting = self._run.counting if accepted else None
            evaluation = update.evaluation
            answer = Answer(
                round=update.round_id,
                gateway=name,
                received_at=now,
                kind="update",
                verdict=verdict_name(verdict),
                reason=None,
                counter=update.counter,
                digest=digest,
                samples=self._roster.windows(name),
                weight=self._run.weight_of(name, update.round_id) if accepted else 0,
                payload_bytes=len(payload),
                dense_bytes=4 * self._line.task.model.parameters,
                nonce=nonce,
                sent=update.sent,
                received=update.received,
                held_out_metric=evaluation.metric / 1e4 if evaluation else None,
                held_out_loss=evaluation.loss / 1e4 if evaluation else None,
                held_out_windows=evaluation.windows if evaluation else None,
                owed=accepted and counting is None,
                payload=payload if accepted else None,
                training_loss=update.loss / 1e4,
                counted_in=counting,
                norm=judgement.norm,
                beyond=beyond_bytes(update),
                cpu=update.cpu,
            )
            late = answer.late
            self._ledger.save_answer(answer)
            self._ledger.save_verdict(name, update.round_id, update.counter, digest, verdict_name(verdict))
            if judgement.norm is not None and (accepted or judgement.beyond):
                self._run.watch.note_norm(name, judgement.norm, beyond=judgement.beyond)
            if judgement.decoded is not None:
                self._run.count(answer, judgement.decoded)
        if judgement.repeat and verdict is Verdict.CONFLICT:
            self._ledger.count_conflict(update.round_id, name)
        if not accepted and not judgement.repeat:
            self._run.refuse(name, update.round_id)
        # The next plan tells only of the round before it.
        if accepted and not late and self._run.receipts_at is not None:
            return
        self._outbox.command(
            name, Channel.RECEIPT, Receipt(round_id=update.round_id, counter=update.counter, verdict=verdict)
        )

    def _is_kept(self, round_id: int) -> bool:
        """Whether answers to the round are on record one by one."""
        round_ = self._run.round
        return (round_ is not None and round_.plan.round_id == round_id) or self._ledger.has_round(round_id)

    def tell_accepted(self, now: float) -> None:
        """Receipts for what was accepted so far in a round that takes longer than its gateways would wait."""
        if self._run.round is None or self._run.receipts_at is None or now < self._run.receipts_at:
            return
        self._run.receipts_at = None
        for answer in self._ledger.answers(self._run.round.plan.round_id):
            if answer.kind == "update" and answer.verdict == verdict_name(Verdict.ACCEPTED):
                receipt = Receipt(round_id=answer.round, counter=answer.counter, verdict=Verdict.ACCEPTED)
                self._outbox.command(answer.gateway, Channel.RECEIPT, receipt)

    def on_decline(self, name: str, decline: Decline, now: float) -> None:
        self._answer_without_payload(name, decline, "decline", b"", 0, now)

    def on_statistics(self, name: str, statistics: Statistics, now: float) -> None:
        try:
            told = statistics_of(statistics.count, statistics.mean + statistics.m2)
            scaling.check(told, self._line.task.model.sizes[0])
        except ValueError as error:
            where = topic(self._federation, Direction.UP, Channel.STATISTICS, name)
            log.warning("dropped statistics of %d bytes on %s: %s", len(statistics.mean), where, error)
            self._ledger.count_refused(Channel.STATISTICS.value, "statistics that cannot be", len(statistics.mean))
            return
        self._answer_without_payload(
            name, statistics, "statistics", statistics.mean + statistics.m2, statistics.count, now
        )

    def _answer_without_payload(
        self, name: str, answer: Decline | Statistics, kind: str, payload: bytes, samples: int, now: float
    ) -> None:
        """A decline, or statistics: neither changes anything on the gateway, so neither needs a verdict."""
        nonce = self._roster.heard(name, answer, now)
        place = self._roster.place(name)
        round_ = self._run.round
        if (
            round_ is None
            or place is None
            or round_.plan.round_id != answer.round_id
            or not round_.drawn(name, place)
            or name in round_.answered
            or (kind == "statistics") > (round_.plan.kind is RoundKind.STATISTICS)
            or (kind == "statistics" and name in self._roster.aside)
        ):
            return
        self._ledger.save_answer(
            Answer(
                round=answer.round_id,
                gateway=name,
                received_at=now,
                kind=kind,
                verdict=verdict_name(Verdict.ACCEPTED),
                reason=answer.reason.name.lower() if isinstance(answer, Decline) else None,
                counter=0,
                digest=b"",
                samples=samples,
                weight=0,
                payload_bytes=len(payload),
                dense_bytes=0,
                nonce=nonce,
                sent=answer.sent,
                received=answer.received,
                held_out_metric=None,
                held_out_loss=None,
                held_out_windows=None,
                owed=False,
                payload=payload or None,
                beyond=beyond_bytes(answer),
                cpu=answer.cpu,
            )
        )
        round_.count(name, update=kind == "statistics")

    def on_ask_verdict(self, name: str, ask: AskVerdict) -> None:
        record = self._record(name, ask.round_id)
        if record is not None and record.round_id == ask.round_id:
            same = record.digest == ask.digest and record.counter == ask.counter
            verdict = record.verdict if same else Verdict.CONFLICT
        elif self._run.plan_of(ask.round_id) is not None:
            verdict = Verdict.UNKNOWN
        else:
            verdict = Verdict.CLOSED
        self._outbox.command(
            name, Channel.RECEIPT, Receipt(round_id=ask.round_id, counter=ask.counter, verdict=verdict)
        )
