"""A round, from its plan to its close. Pure: time, answers and what is on record come in, verdicts go out.

The life of a round:

    open ──update, decline──> open ──all asked have answered──────────> closed
                              open ──as many updates as hoped for─────> closed
                              open ──closing time─────────────────────> closed

A buffered round is the time of one version: it closes with `target` updates in its sum, whichever rounds they belong
to, and its quorum is just that.

    closed with at least `quorum` updates: applied, and a new version comes of it
    closed with fewer: below quorum; the version stands, what was accepted is owed to the next round

`admit` and `examine` decide on an update and change nothing; only after its verdict is on record does `count` change
the round.
Checks go from cheap to dear, and from "not now" to "never": an answer is put back into the gateway's residual unless
the answer itself is at fault. An update whose round has closed is admitted where the task says how many versions it
may be behind, and counts in another round; once a round's update was told to be over, it is over for ever, since
versions and rounds only go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedmq_compression.pipeline import Decoded, PayloadError
from fedmq_protocol.messages import RoundKind, RoundPlan, Verdict

__all__ = ["Judgement", "Record", "Round", "admit", "examine", "verdict_name", "verdict_of"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is on disk of a gateway's earlier answer."""

    round_id: int
    counter: int
    digest: bytes
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Judgement:
    verdict: Verdict
    repeat: bool = False
    """The verdict is an earlier one: nothing is to be written."""
    decoded: Decoded | None = None
    why: str = ""
    norm: float | None = None
    """Of what was decoded."""
    beyond: bool = False
    """Refused for being longer than what is usual, not than what the task allows."""


class Round:
    """One open round. `asked` is who was drawn, present and not set aside."""

    def __init__(
        self,
        plan: RoundPlan,
        *,
        asked: frozenset[str],
        target: int,
        quorum: int,
        close_when_answered: bool = True,
        buffered: bool = False,
    ) -> None:
        self.plan = plan
        self.asked = asked
        self.target = target
        self.quorum = quorum
        self._close_when_answered = close_when_answered
        self._buffered = buffered
        self.others = 0
        """Updates to earlier rounds that are in this one's sum: owed, or late."""
        self.late: set[str] = set()
        """Gateways whose late ones came while this round was open."""
        self.updates: set[str] = set()
        self.declines: set[str] = set()
        self.refused: set[str] = set()

    @property
    def answered(self) -> set[str]:
        return self.updates | self.declines | self.refused

    def drawn(self, gateway: str, roster: int) -> bool:
        return self.plan.draws(roster, gateway)

    def count(self, gateway: str, *, update: bool) -> None:
        """An accepted answer is on record."""
        (self.updates if update else self.declines).add(gateway)

    def count_owed(self) -> None:
        """An accepted update to an earlier round is in this one's sum: no answer to this one."""
        self.others += 1

    def count_late(self, gateway: str) -> None:
        """The same, and it has come just now."""
        self.others += 1
        self.late.add(gateway)

    @property
    def summed(self) -> int:
        """Updates in the sum, of whichever round."""
        return len(self.updates) + self.others

    @property
    def heard(self) -> set[str]:
        """Who has said something of use while it was open."""
        return self.updates | self.declines | self.late

    def failed(self, now: float) -> set[str]:
        """Who was asked in vain: sent what was refused, or stayed silent for as long as a round may take.

        Closed before its time, a round has not waited for the silent ones.
        """
        blamed = self.asked if now >= self.plan.closes_at else self.asked & self.refused
        return set(blamed) - self.heard

    def refuse(self, gateway: str) -> None:
        """A refused answer is on record: its verdict stands, so nothing more is to be waited for."""
        self.refused.add(gateway)

    def should_close(self, now: float) -> bool:
        if self.plan.kind is RoundKind.REST:
            return False
        if now >= self.plan.closes_at:
            return True
        if self._close_when_answered and self.asked and self.asked <= self.answered:
            return True
        if self._buffered:
            return self.summed >= self.target
        # Over-drawn: the rest was only asked in case somebody fails.
        return self.target < len(self.asked) and len(self.updates) >= self.target

    @property
    def has_quorum(self) -> bool:
        return (self.summed if self._buffered else len(self.updates)) >= max(1, self.quorum)


def admit(
    *,
    round_: Round | None,
    newest_round: int,
    round_id: int,
    base: int,
    counter: int,
    digest: bytes,
    gateway: str,
    roster: int | None,
    record: Record | None,
    closed: RoundPlan | None,
    version: int,
    staleness: int,
    now: float,
    aside: bool = False,
) -> Judgement | None:
    """What can be said of an update without decoding it; None when it deserves to be decoded.

    `base` is the update's mark of it. `record` is the gateway's answer to this very round, or else its latest one.
    `closed` is the round's plan where it was a training round of this lineage and has closed, as far back as that is
    kept; `version` is the one in force, and `staleness` how far behind it an update's base may be (0: none is late).
    `aside`: an operator, or the rule that he has set, does not want the gateway's updates.
    """
    if record is not None and record.round_id == round_id:
        if record.digest == digest and record.counter == counter:
            return Judgement(verdict=record.verdict, repeat=True)
        return Judgement(verdict=Verdict.CONFLICT, repeat=True, why="it answered this round before, with other bytes")
    if round_ is not None and round_.plan.round_id == round_id:
        plan = round_.plan
    elif round_id > newest_round:
        return Judgement(verdict=Verdict.ABANDONED, repeat=True, why="no such round was opened")
    elif closed is None or not staleness:
        return Judgement(verdict=Verdict.CLOSED, why="the round had closed")
    elif version - closed.base > staleness:
        why = (
            f"the round had closed, and the model is {version - closed.base} versions on, at most {staleness} expected"
        )
        return Judgement(verdict=Verdict.CLOSED, why=why)
    else:
        plan = closed
    if aside:
        return Judgement(verdict=Verdict.SET_ASIDE, why="the gateway is set aside until an operator readmits it")
    if plan.kind is not RoundKind.TRAINING or roster is None or not plan.draws(roster, gateway):
        return Judgement(verdict=Verdict.NOT_DRAWN, why="it was not drawn for this round")
    if base != plan.base_mark:
        return Judgement(
            verdict=Verdict.WRONG_BASE, why=f"trained from another model than the plan's version {plan.base}"
        )
    if now > plan.closes_at and not staleness:
        return Judgement(verdict=Verdict.CLOSED, why="past its closing time")
    if record is not None and counter <= record.counter:
        return Judgement(verdict=Verdict.ABANDONED, why=f"counter {counter} after {record.counter}: an old image?")
    return None


def examine(decode: Callable[[], Decoded], max_norm: float, usual: float | None = None) -> Judgement:
    """The verdict on an admitted update, from its content.

    `usual` is how long an update may be by what the fleet has sent so far; None where that is not known.
    """
    try:
        decoded = decode()
    except PayloadError as error:
        return Judgement(verdict=Verdict.MALFORMED, why=str(error))
    norm = decoded.norm()
    if not norm <= max_norm:
        return Judgement(verdict=Verdict.NORM, why=f"norm {norm:.3g}, at most {max_norm:g} expected", norm=norm)
    if usual is not None and norm > usual:
        why = f"norm {norm:.3g}, at most {usual:.3g} expected by the updates before it"
        return Judgement(verdict=Verdict.NORM, why=why, norm=norm, beyond=True)
    return Judgement(verdict=Verdict.ACCEPTED, decoded=decoded, norm=norm)


def verdict_name(verdict: Verdict) -> str:
    """As the ledger and the report have it."""
    return verdict.name.lower().replace("_", " ")


def verdict_of(name: str) -> Verdict:
    """The other way round."""
    return Verdict[name.upper().replace(" ", "_")]
