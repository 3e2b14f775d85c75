"""`fedmq task`: looks at the tasks of a coordinator, and leaves it orders.

Owns the command's words and its table. An order is a row in the coordinator's ledger; the coordinator takes it up in
its loop, within a second, and puts beside it what came of it. So no port is opened, nobody who cannot write to the
coordinator's folder gives orders, and an order that finds no coordinator running waits for its next start.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fedmq.bundles import add_verbs

__all__ = ["add_parser"]

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
        parser.add_argument(
            "--state", type=Path, required=True, metavar="DIR", help="the coordinator's state directory (its state_dir)"
        )
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
    rollback = verb("rollback", "let training go on from an older version", _ROLLBACK)
    rollback.add_argument("--version", type=_version, required=True, metavar="N", help="the version to go back to")
    add_verbs(verbs)
    rollback.add_argument("--lineage", type=int, metavar="N", help="of an earlier lineage (default: the one in force)")


# -- orders ----------------------------------------------------------------------------------------------------


def _order(arguments: argparse.Namespace) -> int:
    from fedmq_coordinator import folder
    from fedmq_coordinator.ledger import Ledger
    from fedmq_coordinator.tasks import Wish

    from fedmq.programs import ledger_path

    ledger = Ledger(ledger_path(arguments.state), visit=True)
    known = {row.name: row for row in ledger.tasks()}
    if arguments.task not in known:
        raise ValueError(f"no task {arguments.task!r} in {arguments.state}; there is {', '.join(known) or 'none yet'}")
    wish = Wish(
        verb=arguments.verb,
        tags=tuple(getattr(arguments, "tag", ())),
        version=getattr(arguments, "version", None),
        lineage=getattr(arguments, "lineage", None),
        canary_pct=getattr(arguments, "canary", 100.0),
        forced=getattr(arguments, "force", False),
        gateway=getattr(arguments, "gateway", ""),
    )
    number = ledger.order(wish.verb, arguments.task, wish.write(), time.time())
    ledger.commit()
    until = time.monotonic() + arguments.wait
    runs = folder.is_held(arguments.state)
    while runs:
        order = ledger.get_order(number)
        if order is not None and order.done_at is not None:
            if not order.done:
                raise ValueError(order.result or "it could not be carried out")
            print(f"{arguments.task}: {order.result}")
            return 0
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    why = "the coordinator has not carried it out yet" if runs else f"no coordinator runs in {arguments.state}"
    after = "it will as soon as it can" if runs else "the order waits for its next start"
    print(f"{why}: {after}", file=sys.stderr)
    return 0


# -- the list --------------------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> None:
    from fedmq.programs import open_ledger

    ledger = open_ledger(arguments.state)
    with ledger.snapshot():
        gateways = ledger.gateways()
        lines = [_line(ledger.book(row.name), gateways) for row in ledger.tasks()]
    if arguments.json:
        print(json.dumps(lines, indent=2))
        return
    if not lines:
        print("no task yet: the coordinator has not begun")
        return
    headings = ("task", "state", "lineage", "version", "rounds", "metric", "in service", "gateways")
    print(_table([headings, *(_row(line) for line in lines)]), end="")


def _line(book: Any, gateways: list[Any]) -> dict[str, Any]:
    row = book.row()
    lineage = int(book.get("lineage") or 0)
    version = book.last_version(lineage)
    tags = (book.get("tags") or b"").decode().split("\n")
    wanted = {tag for tag in tags if tag}
    members = [g for g in gateways if not wanted or wanted & g.tag_set]
    metric = book.last_metric()
    releases = book.releases()
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
        "metric": metric,
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
            for release in releases
        ],
        "in_service": dict(sorted(serving.items(), key=lambda item: int(item[0]))),
        "personal": dict(sorted(personal.items())),
        "tags": sorted(wanted),
        "gateways": len(members),
        "present": sum(g.present for g in members),
        "gateways_by_tag": dict(sorted(by_tag.items())),
    }


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
