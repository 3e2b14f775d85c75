"""Machines and alerts as the dashboard shows them, and the verdicts that people give there.

Owns which of them stand on the overview, and what is told of one machine: its alerts with their trends, and what is
normal of machines of its kind, here and in the fleet. Values of the ledger come in, plain structs go out. An order goes
the way of all others: into the ledger and the audit log, by `control.place_alert_order`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from fedmq_protocol.sketch import Summary, SummaryError

from fedmq_coordinator.audit import AuditLog, local_user
from fedmq_coordinator.control import AlertOrder, ControlError, place_alert_order
from fedmq_coordinator.ledger import Ledger, Order
from fedmq_coordinator.machines import (
    WAITING,
    Alert,
    Drift,
    Evidence,
    Machine,
    Proposal,
    SpreadLine,
    by_machine,
    overlapping,
    spreads_of,
)
from fedmq_coordinator.roster import LABELS_OF

__all__ = ["AlertLine", "Conditions", "MachineView", "NormalLine", "conditions", "give_verdict", "machine_view"]

MOST_WAITING = 200
MOST_DECIDED = 30
MOST_OF_ONE_MACHINE = 50
MOST_MACHINES = 5000

FAULTS = ("ball", "imbalance", "inner_race", "looseness", "misalignment", "outer_race")
"""Suggested where a fault is to be named, beside the labels that the fleet has recordings of; others may be typed."""

HEALTHY = "normal"
SHARES = (0.5, 0.95, 0.99)


class _View(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the page, coded as it is."""


class AlertLine(_View, frozen=True, kw_only=True):
    place: str
    gateway: str
    machine: str
    sensor: str
    kind: str
    state: str
    severity: str
    level: float
    """1.0 is the limit."""
    label: str | None
    verdict: str | None
    opened_at: float
    to_at: float | None
    waits: bool
    evidence: list[Evidence]
    others: list[str]
    """Numbers and kinds of the machine's others that wait and overlap it in time."""
    orders: list[str]
    """What people have ordered of it, in words, oldest first."""


class Conditions(_View, frozen=True, kw_only=True):
    waiting: list[AlertLine]
    """Alarms first, then the newest."""
    waiting_in_all: int
    decided: list[AlertLine]
    """The newest ones."""
    machines: list[Machine]
    """Those that deserve a look first."""
    machines_in_all: int
    drifts: list[Drift]
    spreads: list[SpreadLine]
    """Over all machines of a kind, the farthest from normal first."""
    proposal: Proposal | None
    faults: list[str]


class NormalLine(_View, frozen=True, kw_only=True):
    """Of one measure, at machines of a kind."""

    measure: str
    band: str
    here: dict[str, float]
    """Quantiles of this gateway's machines of the kind, by share in per cent."""
    fleet: dict[str, float]
    """Medians over the gateways of theirs: the fleet's limits follow from them."""
    gateways: int


class MachineView(_View, frozen=True, kw_only=True):
    machine: Machine
    alerts: list[AlertLine]
    normal: list[NormalLine]
    faults: list[str]


def conditions(ledger: Ledger, task: str) -> Conditions:
    """Within a snapshot of the ledger."""
    waiting = ledger.alerts(states=WAITING)
    decided = [one for one in ledger.alerts(last=MOST_DECIDED + len(waiting)) if not one.waits][:MOST_DECIDED]
    shown = sorted(waiting, key=lambda one: (one.severity != "alarm", -one.opened_at))[:MOST_WAITING]
    machines = ledger.machines()
    beside = by_machine(waiting)
    return Conditions(
        waiting=[_line(ledger, one, beside) for one in shown],
        waiting_in_all=len(waiting),
        decided=[_line(ledger, one, beside) for one in decided],
        machines=sorted(machines, key=lambda one: (-one.level, not one.drift, one.gateway, one.name))[:MOST_MACHINES],
        machines_in_all=len(machines),
        drifts=ledger.fleet_drifts(),
        spreads=spreads_of(ledger),
        proposal=ledger.book(task).proposal() if task else None,
        faults=_faults(ledger),
    )


def machine_view(ledger: Ledger, gateway: str, name: str) -> MachineView | None:
    """None where no such machine is on record."""
    with ledger.snapshot():
        machine = ledger.machine(gateway, name)
        if machine is None:
            return None
        alerts = ledger.alerts(gateway=gateway, machine=name, last=MOST_OF_ONE_MACHINE)
        beside = by_machine(ledger.alerts(gateway=gateway, machine=name, states=WAITING))
        limits = {(one.band, one.measure): one for one in ledger.merged_limits() if one.kind == machine.kind}
        own = {(one.band, one.measure): one for one in ledger.summaries(gateway) if one.kind == machine.kind}
        return MachineView(
            machine=machine,
            alerts=[_line(ledger, one, beside) for one in alerts],
            normal=[
                NormalLine(
                    measure=key[1],
                    band=key[0],
                    here={} if key not in own else _quantiles(own[key].sketch),
                    fleet={}
                    if key not in limits
                    else {_percent(s): v for s, v in limits[key].by_share.items() if s in SHARES},
                    gateways=0 if key not in limits else limits[key].gateways,
                )
                for key in sorted(own.keys() | limits.keys())
            ],
            faults=_faults(ledger),
        )


def _quantiles(sketch: bytes) -> dict[str, float]:
    try:
        summary = Summary.from_bytes(sketch)
        return {_percent(share): summary.quantile(share) for share in SHARES} if summary.count else {}
    except SummaryError:
        return {}  # other software may have written the file


def _percent(share: float) -> str:
    return f"{100 * share:g}"


def _line(ledger: Ledger, alert: Alert, beside: Mapping[tuple[str, str], Sequence[Alert]]) -> AlertLine:
    return AlertLine(
        place=alert.place,
        gateway=alert.gateway,
        machine=alert.machine,
        sensor=alert.sensor,
        kind=alert.kind,
        state=alert.state,
        severity=alert.severity,
        level=alert.level,
        label=alert.label,
        verdict=alert.verdict,
        opened_at=alert.opened_at,
        to_at=alert.to_at,
        waits=alert.waits,
        evidence=list(alert.evidence),
        others=[f"{one.number} ({one.kind})" for one in overlapping(alert, beside)],
        orders=[_order_text(order) for order in ledger.orders_of_alert(alert.gateway, alert.number)][-5:],
    )


_DONE = {"ack": "acknowledged", "confirm": "confirmed", "dismiss": "dismissed"}


def _order_text(order: Order) -> str:
    what = _DONE.get(order.verb, order.verb)
    if order.done is None:
        return f"{what}: waits for the gateway to hear of it"
    return what if order.done else f"{what}: the gateway could not, {order.result or 'and did not say why'}"


def _faults(ledger: Ledger) -> list[str]:
    """That a verdict may name: what the fleet has recordings of, and the usual ones."""
    known = {label for stored in ledger.told(LABELS_OF).values() for label in stored.decode().split("\n")}
    return sorted((known | set(FAULTS)) - {"", HEALTHY})


def give_verdict(
    ledger: Ledger,
    audit: AuditLog,
    *,
    place: str,
    what: str,
    fault: str,
    said_by: str,
    session: str,
    now: float,
    with_others: bool = False,
) -> int:
    """Put an order for a gateway's watch on record, and `with_others` one for each alert that waits and overlaps it;
    returns how many. Raises ControlError for what is no order, and LedgerError and AuditError where it cannot be put
    down."""
    gateway, _, number = place.rpartition("/")
    if not (number.isascii() and number.isdecimal() and len(number) < 19) or not 0 < len(gateway) < 64:
        raise ControlError(f"expected GATEWAY/NUMBER, got {place[:80]!r}")
    numbers = [int(number)]
    named = ledger.alert(gateway, numbers[0])
    if with_others and named is not None:
        waiting = by_machine(ledger.alerts(gateway=gateway, machine=named.machine, states=WAITING))
        numbers += [one.number for one in overlapping(named, waiting)]
    for one in numbers:
        order = _read(
            {
                "gateway": gateway,
                "alert": one,
                "what": what,
                "fault": fault,
                "on_behalf": f"{said_by or 'somebody'} (dashboard, session {session})",
            }
        )
        place_alert_order(ledger, audit, local_user(), order, now)
    return len(numbers)


def _read(values: dict[str, str | int]) -> AlertOrder:
    """As it would come by the control socket, with the same bounds."""
    try:
        return msgspec.convert({"ask": "alert-order"} | values, AlertOrder)
    except msgspec.ValidationError as error:
        raise ControlError(f"this is no order: {error}") from None
