"""`fedmq task`: looks at the tasks of a coordinator, and leaves it orders.

Owns the command's words and its table. An order is a row in the coordinator's ledger; the coordinator takes it up in
its loop, within a second, and puts beside it what came of it. It comes there through the coordinator's control socket,
which looks at who gives it; or directly, by whoever may write to the coordinator's folder, and then it waits for the
next start where no coordinator runs. Either way it is in the audit log, with who gave it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmq.bundles import add_verbs

if TYPE_CHECKING:
    from fedmq_coordinator.tasks import Wish

__all__ = ["add_parser", "add_place", "socket_of"]

_LIST = """\
examples:
  fedmq task list --state /var/lib/fedmq/coordinator
  fedmq task list --state /var/lib/fedmq/coordinator --json | jq '.[].version'
"""

_PAUSE = """\
examples:
  fedmq task pause pumps --state DIR                  no round of it opens any more
  fedmq task pause pumps --tag line-2 --state DIR     gateways with this tag are not drawn, all others go on
"""

_RESUME = """\
examples:
  fedmq task resume pumps --state DIR                 goes on, with all gateways
  fedmq task resume pumps --tag line-2 --state DIR    gateways with this tag are drawn again
"""

_STOP = """\
example:
  fedmq task stop pumps --state DIR

It is over for good: its open round is given up, and gateways forget it. The ledger keeps what it was, and so do the
report and `fedmq task list`. To go on with the same data, give a task another name. To wait, pause it.
"""

_PROMOTE = """\
examples:
  fedmq task promote pumps --canary 5 --state DIR     the newest version for 5 % of the gateways, always the same ones
  fedmq task promote pumps --state DIR                for all
  fedmq task promote pumps --version 40 --tag line-2 --state DIR

Each gateway scores the version in shadow, on its own held-out windows, and puts it in service only where it is no worse
than what is there. `fedmq task list` shows how many have which.
"""

_ROLLBACK = """\
example:
  fedmq task rollback pumps --version 35 --state DIR

Training goes on from that older version, as version 1 of a new lineage; gateways follow, and what they have learnt and
not sent is set to zero. Where versions were released, it is put in service everywhere, without a comparison. The last
500 versions can be had, and those that were released.
"""


_SET_ASIDE = """\
example:
  fedmq task set-aside pumps press-4 --state DIR

The gateway is not drawn any more, and what it sends for this task is refused. What was accepted of it before counts.
It keeps the model, and hears of each new version. `readmit` takes it back.
"""

_READMIT = """\
example:
  fedmq task readmit pumps press-4 --state DIR

For a gateway that was set aside by order, and for one that `fedmq status` names as flagged: it takes part again, and is
judged as if it were new.
"""


_RETRAIN = """\
example:
  fedmq task retrain pumps --state DIR

For when `fedmq status` says that many machines are not what they were: a run that rests goes on, by its schedule, until
it rests again. Nothing that a watch goes by changes: limits stay until somebody notes an event of a machine.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    task = commands.add_parser(
        "task",
        help="list, pause, stop, promote or roll back tasks while the coordinator runs",
        description="Looks at the tasks of a coordinator, and changes how they go on, while it runs or before it does.",
    )
    verbs = task.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, about: str, epilog: str, *, tags: str | None = None) -> argparse.ArgumentParser:
        parser = verbs.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_place(parser)
        if name == "list":
            return parser
        parser.add_argument("task", metavar="NAME", help="the task, as `fedmq task list` has it")
        parser.add_argument(
            "--wait",
            type=_seconds,
            default=5.0,
            metavar="SECONDS",
            help="how long to wait for the coordinator to carry it out (default: 5)",
        )
        if tags is not None:
            parser.add_argument("--tag", action="append", default=[], metavar="TAG", help=tags)
        parser.set_defaults(run=_order)
        return parser

    listing = verb("list", "how each task stands", _LIST)
    listing.add_argument("--json", action="store_true", help="print JSON instead of a table")
    listing.set_defaults(run=_list)
    only = "only gateways with this tag; may be given several times"
    verb("pause", "open no more rounds; one that is open goes on to its close", _PAUSE, tags=only)
    verb("resume", "open rounds again", _RESUME, tags=only)
    verb("stop", "end a task for good", _STOP)
    promote = verb("promote", "put a version in service, where it is no worse than what is there", _PROMOTE, tags=only)
    promote.add_argument("--version", type=_version, metavar="N", help="which (default: the newest)")
    promote.add_argument(
        "--canary", type=_percent, default=100.0, metavar="PERCENT", help="of the gateways, at first (default: all)"
    )
    promote.add_argument("--force", action="store_true", help="in service without a comparison")
    for name, about, epilog in (
        ("set-aside", "draw a gateway no more, and refuse what it sends", _SET_ASIDE),
        ("readmit", "let a gateway take part again that was set aside or flagged", _READMIT),
    ):
        verb(name, about, epilog).add_argument("gateway", metavar="GATEWAY", help="as `fedmq status` has it")
    verb("retrain", "let a run that rests go on with further rounds", _RETRAIN)
    rollback = verb("rollback", "let training go on from an older version", _ROLLBACK)
    rollback.add_argument("--version", type=_version, required=True, metavar="N", help="the version to go back to")
    add_verbs(verbs)
    rollback.add_argument("--lineage", type=int, metavar="N", help="of an earlier lineage (default: the one in force)")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Which coordinator: by its folder or its socket."""
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--state", type=Path, metavar="DIR", help="the coordinator's state directory (its state_dir)")
    place.add_argument(
        "--control",
        type=Path,
        metavar="SOCKET",
        help="the coordinator's control socket, for those whom its settings name as operators or viewers",
    )


def socket_of(arguments: argparse.Namespace) -> Path | None:
    """The socket that was named."""
    return None if arguments.control is None else Path(arguments.control)


# -- orders ----------------------------------------------------------------------------------------------------


def _order(arguments: argparse.Namespace) -> int:
    from fedmq_coordinator import control, folder
    from fedmq_coordinator.tasks import Wish

    wish = Wish(
        verb=arguments.verb,
        tags=tuple(getattr(arguments, "tag", ())),
        version=getattr(arguments, "version", None),
        lineage=getattr(arguments, "lineage", None),
        canary_pct=getattr(arguments, "canary", 100.0),
        forced=getattr(arguments, "force", False),
        gateway=getattr(arguments, "gateway", ""),
    )
    until = time.monotonic() + arguments.wait
    socket = socket_of(arguments)
    runs = socket is not None or folder.is_held(arguments.state)
    if socket is None and runs and control.is_there(arguments.state / control.SOCKET):
        socket = arguments.state / control.SOCKET
    placed = _directly(arguments.state, arguments.task, wish) if socket is None else _by_socket(socket, arguments, wish)
    with placed as outcome:
        while runs:
            done, result = outcome()
            if done is not None:
                if not done:
                    raise ValueError(result or "it could not be carried out")
                print(f"{arguments.task}: {result}")
                return 0
            if time.monotonic() > until:
                break
            time.sleep(0.05)
    why = "the coordinator has not carried it out yet" if runs else f"no coordinator runs in {arguments.state}"
    after = "it will as soon as it can" if runs else "the order waits for its next start"
    print(f"{why}: {after}", file=sys.stderr)
    return 0


Outcome = tuple[bool | None, str]
"""Whether an order was carried out, None: not yet; and what there is to say."""


@contextlib.contextmanager
def _by_socket(socket: Path, arguments: argparse.Namespace, wish: Wish) -> Iterator[Callable[[], Outcome]]:
    """Give the order to the coordinator that listens there; then asks what came of it."""
    from fedmq_coordinator import control

    number = control.ask(socket, control.Order(task=arguments.task, wish=wish)).order

    def outcome() -> Outcome:
        answer = control.ask(socket, control.Outcome(order=number))
        return answer.done, answer.text

    yield outcome


@contextlib.contextmanager
def _directly(state: Path, task: str, wish: Wish) -> Iterator[Callable[[], Outcome]]:
    """Put the order into the ledger's file; then looks there what came of it."""
    from fedmq_coordinator import control
    from fedmq_coordinator.audit import local_user
    from fedmq_coordinator.ledger import Ledger

    from fedmq.programs import audit_log, ledger_path

    with contextlib.closing(Ledger(ledger_path(state), visit=True)) as ledger:
        known = [row.name for row in ledger.tasks()]
        if task not in known:
            raise ValueError(f"no task {task!r} in {state}; there is {', '.join(known) or 'none yet'}")
        number = control.place_order(ledger, audit_log(state), local_user(), task, wish, time.time())

        def outcome() -> Outcome:
            order = ledger.get_order(number)
            return (None, "") if order is None or order.done_at is None else (order.done, order.result or "")

        yield outcome


# -- the list --------------------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> None:
    from fedmq_coordinator import control
    from fedmq_coordinator.tasks import standing

    from fedmq.programs import open_ledger

    socket = socket_of(arguments)
    if socket is not None:
        lines = json.loads(control.ask(socket, control.Look(what="tasks", form="json")).text)
    else:
        ledger = open_ledger(arguments.state)
        with ledger.snapshot():
            gateways = ledger.gateways()
            lines = [standing(ledger.book(row.name), gateways) for row in ledger.tasks()]
    if arguments.json:
        print(json.dumps(lines, indent=2))
        return
    if not lines:
        print("no task yet: the coordinator has not begun")
        return
    headings = ("task", "state", "lineage", "version", "rounds", "metric", "in service", "gateways")
    print(_table([headings, *(_row(line) for line in lines)]), end="")


def _row(line: dict[str, Any]) -> tuple[str, ...]:
    state = line["state"]
    if line["paused_tags"]:
        state += f" (not {', '.join(line['paused_tags'])})"
    served = ", ".join(f"v{version} on {count}" for version, count in line["in_service"].items())
    if line["personal"]:
        served += f" (personal on {line['personal'].get('serves', 0)})"
    if line["releases"]:
        newest = line["releases"][-1]
        share = "" if newest["canary_pct"] == 100 else f" to {newest['canary_pct']:g} %"
        served = f"release {newest['number']}: v{newest['version']}{share}; {served or 'no gateway has told yet'}"
    by_tag = ", ".join(f"{tag} {count}" for tag, count in line["gateways_by_tag"].items())
    gateways = f"{line['present']} of {line['gateways']} here" + (f" ({by_tag})" if by_tag else "")
    metric = "" if line["metric"] is None else f"{line['metric_name']} {line['metric']:.3f}"
    return (
        line["name"],
        state,
        str(line["lineage"]),
        str(line["version"]),
        str(line["rounds"]),
        metric,
        served or "nothing",
        gateways,
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    """Columns two spaces apart. What came from settings and gateways, such as tags, cannot move the cursor."""
    plain = [tuple("".join(c if c.isprintable() else "?" for c in cell) for cell in row) for row in rows]
    widths = [max(len(row[place]) for row in plain) for place in range(len(plain[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in plain]
    return "\n".join(lines) + "\n"


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected 0 to 3,600 seconds, got {text}")
    return seconds


def _version(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a version, 0 or more, got {text}")
    return number


def _percent(text: str) -> float:
    percent = float(text)
    if not 0 < percent <= 100:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 100 percent, got {text}")
    return percent
