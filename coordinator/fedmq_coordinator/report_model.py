"""What a report holds: values and nothing else. How they are counted is in `report`, in words in `Report.rules`."""

from __future__ import annotations

from typing import Literal

import msgspec

from fedmq_coordinator.machines import SpreadLine
from fedmq_coordinator.money import Price
from fedmq_coordinator.report_view import View

__all__ = [
    "AsideLine",
    "CatchUpLine",
    "Comparison",
    "Factors",
    "FlagLine",
    "GatewayLine",
    "GroupLine",
    "IpBytes",
    "PersonalLine",
    "RefusedLine",
    "Report",
    "Reports",
    "RoundLine",
    "Savings",
    "Tail",
    "Traffic",
    "VerdictLine",
]


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the report, coded as it is."""


class Traffic(_Line, frozen=True, kw_only=True):
    """Bytes, seen from the gateways: up is sent, down is received."""

    up: int = 0
    down: int = 0

    @property
    def total(self) -> int:
        return self.up + self.down

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(up=self.up + other.up, down=self.down + other.down)


class Factors(_Line, frozen=True, kw_only=True):
    """How many times fewer bytes; below 1 federation cost more. None where there is nothing to divide."""

    dense_over_wire: float | None
    raw_over_wire: float | None
    dense_over_payload: float | None


class IpBytes(_Line, frozen=True, kw_only=True):
    """What a bill for a SIM card counts: bytes up and down together, with what TCP/IP and TLS put around them."""

    bytes: int
    counted_pct: float
    """Of the wire bytes, the share around which the gateways' own systems have counted; the rest is estimated."""
    formula: str


class Comparison(_Line, frozen=True, kw_only=True):
    """Another way to learn the same, beside what the federation has used at the IP level."""

    bytes: int | None
    """None: not known."""
    saved_bytes: int | None
    """Below 0: so many MORE were used than that way would have."""
    saved_money: float | None


class Savings(_Line, frozen=True, kw_only=True):
    """What was used, saved or lost, in bytes of a SIM card's bill and in money."""

    bytes: int
    money: float
    raw: Comparison
    """Uploading the signal, once."""
    dense: Comparison
    """Plain federated averaging in float32."""


class GroupLine(_Line, frozen=True, kw_only=True):
    """The gateways of one site, or with one tag."""

    name: str
    """Empty: gateways that have none."""
    gateways: int
    accepted: int
    declined: int
    wire: Traffic
    ip_bytes: int
    money: float
    dense: Traffic
    raw_bytes: int
    cpu_seconds: float | None


class Tail(_Line, frozen=True, kw_only=True):
    """Bytes that a process of a gateway has counted and not reported: how many is not known, only since when."""

    gateway: str
    since: float
    state: Literal["running", "away", "lost"]
    """running: comes with its next answer; away: not connected now; lost: the process ended without a last word."""


class RoundLine(_Line, frozen=True, kw_only=True):
    id: int
    lineage: int
    kind: str
    base: int
    version: int | None
    outcome: str
    opened_at: float
    closed_at: float | None
    seconds: float | None
    drawn: int
    answered: int
    accepted: int
    declined: int
    owed: int
    declines: dict[str, int]
    plan_bytes: int
    wire: Traffic
    payload: Traffic
    dense: Traffic
    metric: float | None
    loss: float | None
    metric_source: str | None
    level: int
    """How dense its updates were asked for: 0 is as dense as the task says."""
    late: int
    """Updates that were accepted after it had closed: they count in later rounds, and not in `accepted`."""
    training_loss: float | None
    """Mean over its updates, by their weights: what gateways told of their own training."""
    digest: str | None
    """sha256 of the model version that came of it, in hex."""
    ip_bytes: int
    """At the IP level, up and down together: see `Report.ip`."""
    cpu_seconds: float | None
    """Of its gateways' processes together, as those tell that do; None: none has."""


class GatewayLine(_Line, frozen=True, kw_only=True):
    name: str
    present: bool
    first_seen: float | None
    last_seen: float | None
    processes: int
    """How many of its processes reported bytes: one more than its restarts."""
    answered: int
    accepted: int
    declined: int
    declines: dict[str, int]
    last_round: int | None
    wire: Traffic
    joining: Traffic
    payload: Traffic
    dense: Traffic
    raw_bytes: int
    """The signal that it holds; in a span of time, what it gathered then."""
    ip_bytes: int
    money: float
    """Of the IP bytes."""
    cpu_seconds: float | None
    cosine: float | None
    """Mean over its updates in versions, each with the sum of the others in the same version."""
    conflicts: int
    """How often it sent other bytes for a round that it had answered."""
    tags: list[str]


class AsideLine(_Line, frozen=True, kw_only=True):
    """A gateway that is not asked for a while."""

    gateway: str
    missed: int
    """Rounds in a row that it was asked in vain."""
    left: int
    """Rounds of its pause that are still to close, the open one counted."""


class FlagLine(_Line, frozen=True, kw_only=True):
    """A gateway that somebody should look at."""

    gateway: str
    since: float
    round: int
    """The newest one then."""
    reason: str
    """refused | against | ordered"""
    aside: bool
    """Not drawn, and what it sends is refused."""
    evidence: str


class VerdictLine(_Line, frozen=True, kw_only=True):
    """Answers that were not accepted."""

    kind: str
    verdict: str
    answers: int


class CatchUpLine(_Line, frozen=True, kw_only=True):
    kind: str
    published: int
    bytes: int
    askers: int
    """Gateways served, a gateway counted each time."""


class RefusedLine(_Line, frozen=True, kw_only=True):
    """Junk: messages that were no message of the protocol."""

    channel: str
    reason: str
    messages: int
    bytes: int


class PersonalLine(_Line, frozen=True, kw_only=True):
    """What a gateway found of its own variant of the version in service."""

    gateway: str
    version: int
    outcome: str
    """`PersonalOutcome` in lower case: it scores there where that is `serves`."""
    windows: int
    metric: float | None
    shared: float | None
    """Of the version in service, on the same held-out windows."""

    @property
    def serves(self) -> bool:
        return self.outcome == "serves"


class Report(_Line, frozen=True, kw_only=True):
    """Everything the ledger can say about bytes and accuracy. Sizes in bytes, times in unix seconds."""

    task: str
    metric_name: str
    view: View
    """Which part of the ledger it is of."""
    price: Price
    sentences: list[str]
    """What was saved or lost, in bytes and money, for everybody; three of them, or one where there is nothing yet."""
    gaps: list[str]
    """What this part of the ledger cannot say any more, in sentences; empty where it says everything."""
    savings: Savings
    findings: list[str]
    """The details in sentences, the most important one first."""
    wire: Traffic
    joining: Traffic
    """The part of `wire` that belongs to no round, and so to no task: nothing where there are several."""
    payload: Traffic
    dense: Traffic
    raw_bytes: int
    """The signal that the gateways hold, at 16 bits a sample; in a span of time, what they gathered in it."""
    ip: IpBytes
    factors: Factors
    wire_per_gateway_round_median: float | None
    seconds_median: float | None
    metric_first: float | None
    metric_last: float | None
    metric_last_round: int | None
    folded_rounds: int
    """Whose answers are summed up in the ledger."""
    below_quorum: list[int]
    owed: int
    declines: dict[str, int]
    verdicts: list[VerdictLine]
    catch_ups: list[CatchUpLine]
    refused: list[RefusedLine]
    tails: list[Tail]
    set_aside: list[AsideLine]
    flagged: list[FlagLine]
    """Gateways whose updates are refused again and again, or point away from the others'; or set aside by order."""
    personal: list[PersonalLine]
    """Of gateways that were asked for personal models and have told."""
    spreads: list[SpreadLine]
    """How machines hold now to what is normal for each, the farthest from it first; empty for a part of the ledger."""
    rounds: list[RoundLine]
    gateways: list[GatewayLine]
    groups: list[GroupLine]
    """By site, or by tag where that was asked for."""
    cpu_seconds: float | None
    rules: list[str]


class Reports(_Line, frozen=True, kw_only=True):
    """Of several tasks: each by itself, and what they came to together."""

    together: Report
    """Of all rounds, with joining, which belongs to no task. It has no metric, and of gateways no flags and trials."""
    tasks: list[Report]

    @property
    def of_no_task(self) -> int:
        """IP bytes of joining."""
        return self.together.ip.bytes - sum(one.ip.bytes for one in self.tasks)

    @property
    def note(self) -> str:
        """For people, beside the sums."""
        return (
            "Joining belongs to no task, and is in the sums alone. The signal is there once, and each task by itself is"
            " held against uploading all of it."
        )
