"""`fedmq alert` at the coordinator: alerts of all gateways, as these have told them, and orders for them.

An order is a row of the coordinator's ledger until the gateway says what came of it, which may take as long as that is
away. Who gives it is looked at as with `fedmq task`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmq_coordinator.control import AlertOrder

__all__ = ["add_place", "is_afar", "list_alerts", "place_of", "say", "show"]


def add_place(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--state", type=Path, metavar="DIR", help="at the coordinator: its state directory, for alerts of all gateways"
    )
    place.add_argument("--control", type=Path, metavar="SOCKET", help="the same by its control socket")


def is_afar(arguments: argparse.Namespace) -> bool:
    return arguments.state is not None or arguments.control is not None


def place_of(text: str) -> tuple[str, int]:
    """GATEWAY/NUMBER. Raises ValueError."""
    gateway, stroke, number = text.rpartition("/")
    if not stroke or not gateway or not number.isdecimal():
        raise ValueError(f"expected an alert as GATEWAY/NUMBER, such as gateway-1/12, got {text!r}")
    return gateway, int(number)


def _alerts(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from fedmq_coordinator import control
    from fedmq_coordinator.machines import alerts_of

    from fedmq.programs import open_ledger

    if arguments.control is not None:
        found: list[dict[str, Any]] = json.loads(
            control.ask(arguments.control, control.Look(what="alerts", form="json")).text
        )
        return found
    with contextlib.closing(open_ledger(arguments.state)) as ledger, ledger.snapshot():
        return alerts_of(ledger)


def _alert(arguments: argparse.Namespace) -> dict[str, Any]:
    gateway, number = place_of(arguments.alert)
    one = next((one for one in _alerts(arguments) if (one["gateway"], one["number"]) == (gateway, number)), None)
    if one is None:
        raise ValueError(f"no alert {arguments.alert} is on record; `fedmq alert list` names those that there are")
    return one


def list_alerts(arguments: argparse.Namespace) -> None:
    from fedmq_protocol.condition import WAITING_STATES

    alerts = [
        one
        for one in _alerts(arguments)
        if (arguments.all or one["state"] in WAITING_STATES) and arguments.machine in (None, one["machine"])
    ]
    if arguments.json:
        print(json.dumps(alerts, indent=1))
        return
    for one in alerts:
        print(f"{one['alert']:>16}  {_shown(one['from'])}  {one['machine']}  {_line(one)}{_beside(one)}")
    if not alerts:
        print("no alerts" if arguments.all else "no alerts wait for anybody (--all shows the others)")


def show(arguments: argparse.Namespace) -> None:
    one = _alert(arguments)
    print(f"alert {one['alert']} of {one['machine']} ({one['sensor']}): {_line(one)}{_beside(one)}")
    print(f"from {_shown(one['from'])}, told {_shown(one['opened_at'])}, heard {_shown(one['heard_at'])}")
    for what in one["evidence"]:
        was = "" if what["was"] is None else f", typically {what['was']:.3g}"
        whose = "the fleet's limit" if what["by"] == "fleet" else "a limit"
        print(f"  {what['name']} {what['value']:.3g} {what['unit']} at {whose} of {what['limit']:.3g}{was}")


def _line(one: dict[str, Any]) -> str:
    named = one["verdict"] or one["label"]
    over = "" if one["to"] is None else f", over since {_shown(one['to'])}"
    kind = f"{one['kind']} ({named})" if named else one["kind"]
    return f"{one['state']}, {one['severity']}: {kind}, {one['level']:.2f} times its limit{over}"


def _beside(one: dict[str, Any]) -> str:
    from fedmq_protocol.condition import WAITING_STATES

    others = [f"{one['gateway']}/{number}" for number in one["others"]] if one["state"] in WAITING_STATES else []
    return f"; at the same time: {', '.join(others)}" if others else ""


def say(arguments: argparse.Namespace) -> None:
    """An order for each alert that is meant. All are placed before any is waited for. Raises ValueError for those that
    could not be carried out, once all are told."""
    from fedmq_coordinator import control, folder

    gateway, number = place_of(arguments.alert)
    others = _alert(arguments)["others"] if getattr(arguments, "overlapping", False) else []
    until = time.monotonic() + arguments.wait
    socket = arguments.control
    runs = socket is not None or folder.is_held(arguments.state)
    if socket is None and runs and control.is_there(arguments.state / control.SOCKET):
        socket = arguments.state / control.SOCKET
    failed = []
    with contextlib.ExitStack() as placed:
        outcomes = []
        for one in (number, *others):
            order = control.AlertOrder(
                gateway=gateway,
                alert=one,
                what=arguments.verb,
                fault=getattr(arguments, "fault", ""),
                on_behalf=arguments.who or "",
            )
            by = _directly(arguments.state, order) if socket is None else _by_socket(socket, order)
            outcomes.append((f"{gateway}/{one}", placed.enter_context(by)))
        for place, outcome in outcomes:
            done, result = _awaited(outcome, until) if runs else (None, "")
            if done is None:
                print(f"alert {place}: ordered; {gateway} carries it out once it hears of it", file=sys.stderr)
            elif done:
                print(f"alert {place}: {result}")
            else:
                failed.append(f"alert {place}: {result or 'it could not be carried out'}")
    if failed:
        raise ValueError("; ".join(failed))


Outcome = tuple[bool | None, str]


def _awaited(outcome: Callable[[], Outcome], until: float) -> Outcome:
    """What came of an order, or that nothing has by then."""
    while (told := outcome())[0] is None and time.monotonic() <= until:
        time.sleep(0.05)
    return told


@contextlib.contextmanager
def _by_socket(socket: Path, order: AlertOrder) -> Iterator[Callable[[], Outcome]]:
    from fedmq_coordinator import control

    number = control.ask(socket, order).order

    def outcome() -> Outcome:
        answer = control.ask(socket, control.Outcome(order=number))
        return answer.done, answer.text

    yield outcome


@contextlib.contextmanager
def _directly(state: Path, order: AlertOrder) -> Iterator[Callable[[], Outcome]]:
    from fedmq_coordinator import control
    from fedmq_coordinator.audit import local_user
    from fedmq_coordinator.ledger import Ledger

    from fedmq.programs import audit_log, ledger_path

    with contextlib.closing(Ledger(ledger_path(state), visit=True)) as ledger:
        number = control.place_alert_order(ledger, audit_log(state), local_user(), order, time.time())

        def outcome() -> Outcome:
            row = ledger.get_order(number)
            return (None, "") if row is None or row.done_at is None else (row.done, row.result or "")

        yield outcome


def _shown(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
