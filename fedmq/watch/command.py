"""`fedmq watch`, `fedmq alert` and `fedmq machine event`: the command's words, and what it prints."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fedmq.arguments import add_settings
from fedmq.logs import add_log_format, start_logging
from fedmq.metrics.command import add_metrics
from fedmq.watch import afar
from fedmq.watch.afar import add_place

if TYPE_CHECKING:
    from fedmq_edge_node.alertbook import Alert, Alertbook

__all__ = ["add_alert", "add_event", "add_watch"]

_WATCH_EPILOG = """\
examples:
  fedmq watch run --config watch.toml                            until it is stopped (SIGTERM)
  fedmq watch status --book /var/lib/fedmq/watch/alerts.sqlite   how each machine is, and what is not told yet
"""

_STATUS_EPILOG = """\
examples:
  fedmq watch status --book /var/lib/fedmq/watch/alerts.sqlite
  fedmq watch status --config watch.toml               also machines that nothing has been judged of, and why
  fedmq watch status --config watch.toml --machine pump-3

A line says what the machine did in its last window, when that was, its zone and velocity, and how much of what is
normal for it has been learnt. Until it is learnt ISO zones, bearing lines and a wide bound hold.
"""

_LIST_EPILOG = """\
examples:
  fedmq alert list --book /var/lib/fedmq/watch/alerts.sqlite       what waits for somebody
  fedmq alert list --machine pump-3 --all                          all that there has been of one machine
"""

_SHOW_EPILOG = """\
examples:
  fedmq alert show 12

Below its first lines stands what was at its limit: the value, the limit, what is typical since when, and the trend from
then until now. Then what has happened to it, and who did that.
"""

_EVENT_EPILOG = """\
examples:
  fedmq machine event pump-3 bearing-changed                  just now
  fedmq machine event pump-3 bearing-changed --at 08:00       this morning
  fedmq machine event fan-1 sensor-moved --at 2026-11-29T16:30
"""

_ALERT_EPILOG = """\
examples:
  export FEDMQ_BOOK=/var/lib/fedmq/watch/alerts.sqlite
  fedmq alert list                           what is open
  fedmq alert show 12                        what is behind it, and what has happened to it
  fedmq alert ack 12                         somebody is on it
  fedmq alert confirm 12 inner_race          it was that: its windows are labelled so
  fedmq alert confirm 12 --other unbalance   it was something that no classifier learns: its windows are left out
  fedmq alert confirm 12 ball --overlapping  it was that, and so were this machine's other alerts of that time
  fedmq alert dismiss 12                     it was nothing: its windows are labelled healthy

at the coordinator, for the alerts of all gateways:
  fedmq alert list --state /var/lib/fedmq/coordinator
  fedmq alert ack gateway-1/12 --control /run/fedmq/control.sock
"""

_EVENTS = ("bearing-changed", "replaced", "sensor-moved", "maintenance")
_BOOK = "FEDMQ_BOOK"


def add_watch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    watch = commands.add_parser(
        "watch",
        help="judge machines by what their sensors say, and raise alerts",
        description="Judges new windows of a bridge's store: by ISO zones, bearing lines, what is normal for each\n"
        "machine, and the models in service. What it finds is in the alertbook, and told as the settings say.",
        epilog=_WATCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = watch.add_subparsers(dest="verb", required=True, metavar="VERB")
    run = verbs.add_parser(
        "run",
        help="judge what the store has, and go on as more comes, until stopped",
        description="Runs beside bridge and gateway until it is stopped (SIGTERM). Killed at any moment, it goes on"
        " where it was: no alert is lost, and none raised twice.",
    )
    add_log_format(run)
    add_metrics(run)
    add_settings(run, "watch.toml", "poll_seconds=1")
    run.add_argument("--check", action="store_true", help="only read the settings, say what is wrong, and end")
    run.add_argument("--until-done", action="store_true", help="end once all is judged and told that can be told now")
    run.add_argument("--example", action="store_true", help="print a settings file with every key, and end")
    run.set_defaults(run=_run)
    status = verbs.add_parser(
        "status",
        help="how each machine is, and what is not told yet",
        description="How each machine is, also while the watch runs; which alerts wait; what has not been told.",
        epilog=_STATUS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_book(status)
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of lines")
    form.add_argument("--prometheus", action="store_true", help="print metrics as node_exporter's textfiles hold them")
    status.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the watch's settings: its book is taken, and machines that nothing has been judged of are told, with why",
    )
    status.add_argument("--machine", metavar="NAME", help="this machine only")
    status.set_defaults(run=_status)


def add_alert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    alert = commands.add_parser(
        "alert",
        help="see alerts, and say what they were",
        description="Alerts of a watch, also while it runs. What is said is noted with who said it; the watch then\n"
        "labels the alert's windows, and the next round learns from them.",
        epilog=_ALERT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = alert.add_subparsers(dest="verb", required=True, metavar="VERB")
    listed = verbs.add_parser(
        "list",
        help="alerts, newest first",
        description="A line for each alert, the newest first: its number, since when, the machine, and what it says.",
        epilog=_LIST_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed.add_argument("--machine", metavar="NAME", help="of this machine only")
    listed.add_argument("--all", action="store_true", help="confirmed, dismissed and cleared ones too")
    listed.add_argument("--json", action="store_true", help="print JSON instead of lines")
    _add_book(listed)
    add_place(listed)
    listed.set_defaults(run=_list)
    for verb, words in (
        ("show", "what is behind an alert, and what has happened to it"),
        ("ack", "somebody is on it"),
        ("confirm", "it was this fault, and its windows are labelled so; or another cause, and they are left out"),
        ("dismiss", "it was nothing; its windows are labelled healthy"),
    ):
        one = verbs.add_parser(
            verb,
            help=words,
            description=f"{words[0].upper()}{words[1:]}.",
            epilog=_SHOW_EPILOG if verb == "show" else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("alert", metavar="ALERT", help="its number; at the coordinator GATEWAY/NUMBER")
        if verb == "confirm":
            _add_cause(one)
        if verb in ("confirm", "dismiss"):
            one.add_argument(
                "--overlapping",
                action="store_true",
                help="and so were the machine's other alerts that overlap it in time and have no verdict: one cause"
                " often gives two or three",
            )
        if verb != "show":
            one.add_argument("--who", metavar="NAME", help="who says so (default: this user)")
            one.add_argument(
                "--wait",
                type=float,
                default=5.0,
                metavar="SECONDS",
                help="at the coordinator: how long to wait for the gateway to carry it out (default: 5)",
            )
        _add_book(one)
        add_place(one)
        one.set_defaults(run={"show": _show}.get(verb, _say))


def _add_cause(parser: argparse.ArgumentParser) -> None:
    cause = parser.add_mutually_exclusive_group(required=True)
    cause.add_argument("fault", nargs="?", metavar="KIND", help="such as inner_race; best a class of the task")
    cause.add_argument(
        "--other",
        metavar="WHAT",
        help="a cause that is no class, in your words, such as unbalance: nothing is learnt from the alert's windows,"
        " and no limit moves",
    )


def add_event(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`event` under `fedmq machine`."""
    event = verbs.add_parser(
        "event",
        help="the machine is another one since: learn anew what is normal for it",
        description="Starts a new baseline of this machine alone: its limits are learnt anew, and windows from before"
        " leave training (those of confirmed faults stay, unless the sensor has moved).",
        epilog=_EVENT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    event.add_argument("machine", metavar="MACHINE", help="its name")
    event.add_argument("event", choices=_EVENTS, metavar="EVENT", help=", ".join(_EVENTS))
    event.add_argument("--at", default="now", metavar="TIME", help="since when; such as 2026-11-29T08:00, 08:00, 90m")
    event.add_argument("--who", metavar="NAME", help="who says so (default: this user)")
    _add_book(event)
    event.set_defaults(run=_event)


def _add_book(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--book",
        type=Path,
        metavar="FILE",
        help=f"alerts.sqlite in the watch's state_dir, or that folder (default: the environment's {_BOOK})",
    )


def _book(arguments: argparse.Namespace) -> Alertbook:
    from fedmq_edge_node.alertbook import Alertbook

    path = arguments.book or (Path(os.environ[_BOOK]) if os.environ.get(_BOOK) else None)
    if path is None:
        raise ValueError(
            f"expected --book FILE, or {_BOOK} in the environment: alerts.sqlite in the watch's state_dir, such as"
            " --book /var/lib/fedmq/watch/alerts.sqlite"
        )
    return Alertbook.existing(path / "alerts.sqlite" if path.is_dir() else path)


def _run(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from fedmq_protocol.settings import document, load

    from fedmq.watch.settings import WatchSettings

    if arguments.example:
        print(document(WatchSettings), end="")
        return
    if arguments.config is None and not arguments.overrides:
        raise ValueError("expected --config FILE; `fedmq watch run --example` prints one to begin with")
    settings = load(WatchSettings, arguments.config, arguments.overrides)
    if arguments.check:
        return
    start_logging(settings.log_level, arguments.log_format, settings.log_format)
    from fedmq.metrics import running
    from fedmq.watch.program import build_watch

    running.check(settings.metrics)
    watch = build_watch(settings)

    def stop(number: int, frame: FrameType | None) -> None:
        watch.stopping = True
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with running.of_watch(settings):
        watch.run(until_done=arguments.until_done)


def _status(arguments: argparse.Namespace) -> None:
    unjudged: dict[str, str] = {}
    if arguments.config is not None:
        from fedmq_protocol.settings import load

        from fedmq.watch.settings import WatchSettings
        from fedmq.watch.unjudged import why_unjudged

        settings = load(WatchSettings, arguments.config, [])
        arguments.book = arguments.book or settings.book
        book = _book(arguments)
        unjudged = why_unjudged(settings, set(book.standings()))
    else:
        book = _book(arguments)
    if arguments.prometheus:
        from fedmq.watch.showing import as_prometheus

        print(as_prometheus(book.path), end="")
        return
    standings = book.standings()
    if arguments.machine is not None:
        _check_known(arguments.machine, [*standings, *unjudged])
        standings = {name: one for name, one in standings.items() if name == arguments.machine}
        unjudged = {name: why for name, why in unjudged.items() if name == arguments.machine}
    if arguments.json:
        outbox = [{"output": one[0], "state": one[1], "messages": one[2], "error": one[3]} for one in book.outbox()]
        print(
            json.dumps(
                {"machines": standings, "outbox": outbox} | ({"unjudged": unjudged} if unjudged else {}), indent=1
            )
        )
        return
    if not standings and not unjudged:
        print(
            "nothing has been judged yet: does `fedmq watch run` run, and has the bridge samples of a machine that is"
            " in the machines' file, by the same name? `fedmq watch status --config watch.toml` says what it lacks"
        )
    if len(standings) > 1:
        print(_summary(standings, book))
    for name, one in standings.items():
        print(f"{name}: {_standing(one)}")
        for alert in book.alerts(machine=name, states=("open", "acknowledged")):
            print(f"  alert {alert.id}: {_line(alert)}")
        for step in book.happenings(name)[:3]:
            print(f"  {_shown(step.at)} {step.what} by {step.who}: {step.text}")
    for name, why in unjudged.items():
        print(f"{name}: not judged yet: {why}")
    for output, state, count, error in book.outbox():
        print(f"{output}: {count} {state}" + (f" ({error})" if error else ""))


def _summary(standings: dict[str, dict[str, Any]], book: Alertbook) -> str:
    states = Counter(str(one["state"]) for one in standings.values())
    told = ", ".join(f"{count} {state}" for state, count in states.most_common())
    learnt = sum(bool(one.get("learning", {}).get("done")) for one in standings.values())
    from fedmq_protocol.condition import WAITING_STATES

    waiting = len(book.alerts(states=WAITING_STATES))
    alerts = (
        "no alert waits" if not waiting else f"{waiting} alert{'s wait' if waiting > 1 else ' waits'} for a verdict"
    )
    return f"{len(standings)} machines: {told}; what is normal is learnt of {learnt}; {alerts}"


def _check_known(machine: str, known: Sequence[str]) -> None:
    if machine not in known:
        raise ValueError(f"no machine {machine!r} has been judged; there are {', '.join(known) or 'none yet'}")


def _standing(one: dict[str, Any]) -> str:
    parts = [str(one["state"]), f"at {_shown(one['at'])}"]
    if one.get("zone"):
        parts.append(f"zone {one['zone']}")
    if "velocity" in one.get("values", {}):
        parts.append(f"{one['values']['velocity']:.2f} mm/s")
    learning = one.get("learning")
    if learning is not None:
        windows = f"learning what is normal: {learning['windows']:,} of {learning['wanted']:,} windows"
        parts.append("normal is learnt" if learning["done"] else windows)
    if one.get("unproven"):
        parts.append(f"{', '.join(one['unproven'])} at {one['band']}: not counted before it has been quiet there")
    if one.get("event"):
        parts.append(f"since {one['event']} on {_shown(one['baseline_at'])}")
    return ", ".join(parts)


def _list(arguments: argparse.Namespace) -> None:
    if afar.is_afar(arguments):
        afar.list_alerts(arguments)
        return
    from fedmq_edge_node.alertbook import STATES
    from fedmq_protocol.condition import WAITING_STATES

    states = STATES if arguments.all else WAITING_STATES
    book = _book(arguments)
    if arguments.machine is not None:
        _check_known(arguments.machine, list(book.standings()))
    alerts = book.alerts(machine=arguments.machine, states=states)
    if arguments.json:
        import msgspec

        print(msgspec.json.encode(alerts).decode())
        return
    for alert in alerts:
        others = ", ".join(str(one.id) for one in book.overlapping(alert)) if alert.state in WAITING_STATES else ""
        beside = f"; at the same time: {others}" if others else ""
        print(f"{alert.id:>5}  {_shown(alert.from_at)}  {alert.machine}  {_line(alert)}{beside}")
    if not alerts:
        print("no alerts" if arguments.all else "no alerts wait for anybody (--all shows the others)")


def _line(alert: Alert) -> str:
    named = alert.verdict or alert.label
    over = "" if alert.to_at is None else f", over since {_shown(alert.to_at)}"
    kind = f"{alert.kind} ({named})" if named else alert.kind
    return f"{alert.state}, {alert.severity}: {kind}, {alert.level:.2f} times its limit{over}"


def _show(arguments: argparse.Namespace) -> None:
    if afar.is_afar(arguments):
        afar.show(arguments)
        return
    from fedmq_protocol.condition import WAITING_STATES

    from fedmq.watch.outputs import evidence_line, named

    book = _book(arguments)
    alert = book.alert(_number(arguments.alert))
    print(f"alert {alert.id} of {alert.machine} ({alert.sensor}): {_line(alert)}")
    print(f"began {_shown(alert.from_at)}, raised {_shown(alert.opened_at)}")
    for one in alert.evidence:
        print(f"  {evidence_line(one)}")
    for step in book.steps(alert.id):
        level = f" at {step.level:.2f}" if step.level else ""
        print(f"{_shown(step.at)}  {step.what}{level} by {step.who}" + (f": {step.text}" if step.text else ""))
    if others := book.overlapping(alert):
        print(f"at the same time, with no verdict yet: {named(others)}")
    if alert.state in WAITING_STATES:
        faults = "|".join(book.faults()) or "KIND"
        if alert.state == "open":
            print(f"next: `fedmq alert ack {alert.id}` when somebody is on it,")
        print(f"{'then:' if alert.state == 'open' else 'next:'} `fedmq alert confirm {alert.id} {faults}`, or")
        print(f"      `fedmq alert confirm {alert.id} --other WHAT`, or")
        print(f"      `fedmq alert dismiss {alert.id}`, once it is known what it was")
        if others:
            print("      (with `--overlapping`: and so were the others)")


def _say(arguments: argparse.Namespace) -> None:
    from fedmq_protocol.condition import is_other, other_cause

    if getattr(arguments, "other", None) is not None:
        arguments.fault = other_cause(arguments.other)
    if afar.is_afar(arguments):
        afar.say(arguments)
        return
    book, at = _book(arguments), time.time()
    who = arguments.who or getpass.getuser()
    number = _number(arguments.alert)
    if arguments.verb == "ack":
        alerts = [book.acknowledge(number, who=who, at=at)]
    else:
        fault = getattr(arguments, "fault", None)
        alerts = book.decide(number, fault, who=who, at=at, overlapping=arguments.overlapping)
    for alert in alerts:
        print(f"alert {alert.id} of {alert.machine}: {_line(alert)}")
    whose = "its" if len(alerts) == 1 else "their"
    if arguments.verb == "confirm" and is_other(arguments.fault):
        print(f"the watch leaves {whose} windows out of training at its next look; no limit moves for it")
    elif arguments.verb == "confirm":
        print(f"the watch labels {whose} windows {arguments.fault} at its next look; the next round learns from them")
    elif arguments.verb == "dismiss":
        print(f"the watch labels {whose} windows healthy at its next look, and lets this machine be as it was then")


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"expected an alert's number, got {text!r}; GATEWAY/NUMBER needs --state or --control")
    return int(text)


def _event(arguments: argparse.Namespace) -> None:
    from fedmq.bridge.times import parse_time

    now = datetime.now().astimezone()
    at = parse_time(arguments.at, now)
    if at > now.timestamp():
        raise ValueError(f"--at: expected a time that has been, got {arguments.at}")
    book = _book(arguments)
    known = book.standings()
    if known:
        _check_known(arguments.machine, list(known))
    book.event(
        arguments.machine, arguments.event, who=arguments.who or getpass.getuser(), at=at, noted_at=now.timestamp()
    )
    print(f"{arguments.machine}: {arguments.event} at {_shown(at)}; what is normal is learnt anew from then on")


def _shown(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
