"""The `fedmq` command: reads the command line, and hands over to the part that does the work.

Heavy imports stand inside the functions: a gateway's process must not carry what only a workstation needs, and
`--help` should not wait for numpy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, Protocol

from fedmq import __version__
from fedmq.arguments import add_override, add_settings
from fedmq.logs import add_log_format, start_logging
from fedmq.metrics.command import add_metrics
from fedmq.metrics.command import add_parser as add_metrics_command
from fedmq.notify import Notifier

if TYPE_CHECKING:
    from fedmq_coordinator.ledger import Ledger
    from fedmq_coordinator.report_view import View

__all__ = ["main"]

_EPILOG = """\
examples:
  fedmq demo                                       the whole job on this machine, with simulated bearings
  fedmq broker                                     a broker for development, Mosquitto where it is installed
  fedmq coordinator --config coordinator.toml      opens rounds, aggregates, keeps the ledger
  fedmq coordinator --config FILE --http 8080      the same, with the dashboard as a web page
  fedmq gateway --config gateway.toml              trains on its own recordings when its gates allow
  fedmq bridge probe                               what sensors talk on serial ports, and at which rate
  fedmq bridge run --config bridge.toml            keeps what they say for a gateway to learn from
  fedmq machine add pump-3 --bearing 6205 --speed-rpm 1797     a machine, its bearing and its limits
  fedmq report --state /var/lib/fedmq --html savings.html
  fedmq task list --state /var/lib/fedmq           several tasks: how each stands; pause, promote, roll back
  fedmq export --c-int8 model.c --state /var/lib/fedmq --calibrate DIR      a model for a microcontroller
  fedmq doctor gateway --config gateway.toml       whether files, certificates, clock and broker are sound
  fedmq release pull --config release.toml         a signed release, tried, and taken back where it fails
  fedmq wire show                                  what crosses the broker, field by field
  fedmq bench codec --quick                        bytes and time of the codec beside its rivals
  fedmq simulate --faults all --schedules 100      a federation in virtual time, and everything that can go wrong
"""


_REPORT_EPILOG = """\
examples:
  fedmq report --state /var/lib/fedmq/coordinator --html savings.html
  fedmq report --state DIR --since 7d --by site                what each site used and saved in a week
  fedmq report --state DIR --since 2026-11-01 --until 2026-12-01 --by gateway --csv november.csv
  fedmq report --control SOCKET --gateway pump-3 --price-per-gb 4.50 --currency CHF
"""

_RECOVER_EPILOG = """\
example:
  systemctl stop fedmq-coordinator
  fedmq coordinator recover /backup/2026-05-01 --config coordinator.toml
  systemctl start fedmq-coordinator
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status: 0, or 1 after one clear line on stderr, or 2 for a wrong command line."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough (`fedmq report | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        # Every error of ours is a ValueError, with a text made for this line. A traceback is for bugs.
        print(f"fedmq {arguments.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedmq",
        description="Federated learning over MQTT for IoT gateways: rounds of a few hundred bytes, no raw signal sent.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedmq {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    broker = commands.add_parser(
        "broker",
        help="run a broker for development, or write the configuration of a real one",
        description="Runs Mosquitto where it is installed, else the embedded broker, and says which; or, with "
        "--render, writes mosquitto.conf and acl for a server and runs nothing.",
    )
    broker.add_argument("--broker", choices=("auto", "mosquitto", "embedded"), default="auto", help="default: auto")
    broker.add_argument("--directory", type=Path, help="where its files go (default: a temporary folder)")
    broker.add_argument("--render", type=Path, metavar="DIR", help="only write mosquitto.conf and acl into DIR")
    add_settings(broker, "broker.toml", "log_level=debug")
    _add_check(broker)
    add_override(broker, "--port", "port", "port on 127.0.0.1; 0 picks a free one (default: 1883)")
    add_override(broker, "--federation", "federation", "name in the topics that the ACL allows (default: plant)")
    broker.add_argument("--example", action="store_true", help="print a settings file with every key, and end")
    broker.set_defaults(run=_broker, action=None)
    actions = broker.add_subparsers(dest="action", metavar="[guard | site]")
    guard = actions.add_parser(
        "guard",
        help="cut off whose certificate is revoked",
        description="Runs beside Mosquitto until it is stopped (SIGTERM), as the same user: watches the list of revoked"
        " certificates (revoked_file), checks it, makes Mosquitto reload it and ends the connections of those who are"
        " newly on it. A list that does not pass is an error in the log, and the one before stays in force.",
    )
    add_settings(guard, "broker.toml", "log_level=debug")
    add_log_format(guard)
    guard.add_argument("--site", metavar="NAME", help="this is the broker of that site, as `fedmq broker site` made it")
    guard.set_defaults(run=_guard)
    site = actions.add_parser(
        "site",
        help="write the configuration of a broker on site, with its bridge",
        description="Writes mosquitto.conf and acl for the broker of one of the sites in the settings: it serves that"
        " site's gateways, and carries their topics to the federation's broker and back, and no others. The settings"
        " are those of the site's own broker: its address, port and certificates.",
    )
    site.add_argument("site", metavar="NAME", help="as it stands in the setting sites")
    site.add_argument("--render", type=Path, required=True, metavar="DIR", help="write mosquitto.conf and acl into DIR")
    site.add_argument("--upstream", required=True, metavar="HOST:PORT", help="the federation's broker, from the site")
    site.add_argument(
        "--identity",
        type=Path,
        default=Path("/etc/mosquitto/fedmq"),
        metavar="DIR",
        help="folder with the site's ca.crt, client.crt and client.key (default: /etc/mosquitto/fedmq)",
    )
    add_settings(site, "broker.toml", "log_level=debug")
    site.set_defaults(run=_site)

    coordinator = commands.add_parser(
        "coordinator",
        help="open rounds, aggregate, keep the ledger",
        description="Runs beside the broker until it is stopped (SIGTERM). Stopped or killed at any moment, it goes "
        "on where it was.",
    )
    add_settings(coordinator, "coordinator.toml", "log_level=debug")
    _add_check(coordinator)
    add_log_format(coordinator)
    add_metrics(coordinator)
    from fedmq.dashboard import add_http
    from fedmq.dashboard import add_parser as add_dashboard

    add_http(coordinator, "serve the dashboard there; a port alone is on 127.0.0.1 (short for --set http.listen=…)")
    coordinator.add_argument(
        "--new-lineage", action="store_true", help="learn afresh: a new scaler and the seeded start; the ledger stays"
    )
    coordinator.add_argument("--example", action="store_true", help="print a settings file with every key, and end")
    coordinator.set_defaults(run=_coordinator, action=None)
    actions = coordinator.add_subparsers(dest="action", metavar="[recover]")
    recover = actions.add_parser(
        "recover",
        help="put a backup in the place of the state directory",
        description="Checks the backup, moves what is in the state directory aside (nothing is deleted), puts the "
        "backup in its place and starts a new lineage from its newest version, for every task. Gateways follow when "
        "the coordinator is started; what they have learnt and not sent is set to zero. No coordinator may run.",
        epilog=_RECOVER_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recover.add_argument(
        "backup", type=Path, metavar="BACKUP", help="a copy of a state directory, or of its ledger with models beside"
    )
    add_settings(recover, "coordinator.toml", "log_level=debug")
    add_log_format(recover)
    recover.set_defaults(run=_recover)

    gateway = commands.add_parser(
        "gateway",
        help="take part in rounds with the recordings of one folder",
        description="Runs on a gateway until it is stopped (SIGTERM): checks battery, load and link, trains on its own "
        "windows, sends back a compressed delta. The raw signal stays here.",
    )
    add_settings(gateway, "gateway.toml", "log_level=debug")
    _add_check(gateway)
    add_log_format(gateway)
    add_metrics(gateway)
    gateway.add_argument("--example", action="store_true", help="print a settings file with every key, and end")
    gateway.add_argument(
        "--show",
        action="store_true",
        help="print of each task what is trained, what is in service and whether the gateway scores with a model of its"
        " own, and end; also while the gateway runs",
    )
    gateway.set_defaults(run=_gateway, action=None)
    from fedmq.ca.command import add_gateway_actions

    add_gateway_actions(gateway)

    from fedmq.tasks import add_parser as add_task
    from fedmq.tasks import add_place

    report = commands.add_parser(
        "report",
        help="bandwidth savings, from the coordinator's ledger",
        description="What was saved or lost, in bytes and money: in all, per round, gateway and site, against\n"
        "uploading the raw signal and against dense float32; declines by reason; accuracy by round. Reads the\n"
        "ledger alone, also while the coordinator runs.",
        epilog=_REPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_place(report)
    report.add_argument("--json", action="store_true", help="print JSON instead of a table")
    report.add_argument(
        "--csv",
        type=Path,
        nargs="?",
        const=Path("-"),
        metavar="FILE",
        help="write metrics and bytes as CSV, one line a round; print it where no FILE is named",
    )
    report.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page with charts")
    ago = "90m, 36h, 7d or 2w ago, or a date or time (UTC) such as 2026-11-01 or 2026-11-01T06:00"
    report.add_argument("--since", metavar="WHEN", help=f"only rounds that opened since then: {ago}")
    report.add_argument("--until", metavar="WHEN", help="only rounds that opened before then, said in the same way")
    for option, about in (
        ("gateway", "only this gateway"),
        ("site", "only gateways of this site: those with the tag site:NAME"),
        ("tag", "only gateways with this tag"),
    ):
        more = f"{about}; may be given several times"
        report.add_argument(f"--{option}", action="append", default=[], metavar="NAME", help=more)
    report.add_argument(
        "--by",
        choices=("round", "gateway", "site", "tag"),
        default="round",
        help="what the lines of the CSV are, and the table of the text (default: round, and a text with everything)",
    )
    report.add_argument(
        "--price-per-gb",
        type=float,
        metavar="PRICE",
        help="of the gateways' data (default: money.per_gb of the coordinator's settings)",
    )
    report.add_argument("--currency", metavar="CODE", help="of the price, such as EUR (default: money.currency)")
    report.add_argument("--task", metavar="NAME", help="of this task alone (default: of each)")
    report.set_defaults(run=_report)

    status = commands.add_parser(
        "status",
        help="what is going on: round, gateways, model",
        description="The round in progress, who has answered, who is here, and the model in force.",
    )
    add_place(status)
    status.add_argument("--watch", type=float, metavar="SECONDS", help="print it again every so often")
    status.add_argument("--task", metavar="NAME", help="of this task alone (default: of each)")
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, of all tasks and gateways, instead of a table")
    form.add_argument("--prometheus", action="store_true", help="print metrics as node_exporter's textfiles hold them")
    status.set_defaults(run=_status)

    from fedmq.auditing import add_parser as add_audit

    add_metrics_command(commands)
    add_task(commands)
    add_audit(commands)
    add_dashboard(commands)
    from fedmq.bridge.command import add_label
    from fedmq.bridge.command import add_parser as add_bridge
    from fedmq.ca.command import add_parser as add_ca
    from fedmq.doctor.command import add_parser as add_doctor
    from fedmq.export import add_parser as add_export
    from fedmq.release.command import add_parser as add_release
    from fedmq.watch.command import add_alert, add_watch
    from fedmq.watch.machines_command import add_parser as add_machine
    from fedmq.watch.replay_command import add_parser as add_replay
    from fedmq.wire.command import add_parser as add_wire

    add_bridge(commands)
    add_label(commands)
    add_machine(commands)
    add_watch(commands)
    add_alert(commands)
    add_export(commands)
    add_ca(commands)
    add_wire(commands)
    add_replay(commands)
    add_doctor(commands)
    add_release(commands)
    _add_demo(commands)
    _add_simulate(commands)
    _add_bench(commands)
    return parser


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="only read the settings, say what is wrong, and end")


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="the whole job on this machine: broker, coordinator and gateways, each its own process",
        description="Several gateways learn a bearing-fault model together over MQTT; the raw vibration stays in "
        "each gateway's process. Shows the rounds as they go, and ends with what was learnt and what it cost.",
    )
    data = demo.add_argument_group("data")
    data.add_argument(
        "--data",
        default="sim",
        metavar="sim|cwru:DIR|gearbox:DIR|cmapss:DIR|digits|serial:PORT|DIR",
        help="sim: simulated bearings; cwru:DIR: recordings of the CWRU Bearing Data Center, as .npz or .mat; "
        "gearbox:DIR: four accelerometers on a gearbox (OEDI 623), a .npz and a gateway for each load; digits: "
        "scikit-learn's handwritten digits, dealt out unevenly by --seed (needs scikit-learn); cmapss:DIR: NASA's "
        "turbofan engines, run to failure (for --model regressor); serial:PORT: a sensor on a serial port or Unix"
        " socket, live through a bridge, and a gateway for each of serial:LABEL=PORT,LABEL=PORT (without labels for"
        " --model autoencoder); DIR: your own, as "
        "DIR/<gateway>/<label>/*.{npy,csv,wav} (default: sim)",
    )
    data.add_argument(
        "--split",
        choices=("fault", "severity", "load", "sensor"),
        default="fault",
        help="what a gateway has seen (cwru): one fault type, one severity, or one motor load (default: fault); gearbox"
        " with sensor: a gateway for each accelerometer, with all loads",
    )
    data.add_argument(
        "--test-load", type=int, metavar="LOAD", help="this load is for testing only (cwru: in hp; gearbox: in %%)"
    )
    data.add_argument("--sampling-rate", type=_rate, metavar="HZ", help="of your own recordings that do not say it")
    data.add_argument(
        "--features",
        choices=("vibration-1", "raw"),
        help="of a window: 22 of each channel's vibration, or its samples as they are (default: what suits --data; "
        "vibration-1 for your own)",
    )
    data.add_argument("--channels", type=_positive, metavar="N", help="that recordings have (default for your own: 1)")
    data.add_argument(
        "--window", type=_positive, metavar="N", help="samples of a window; 1 where rows are windows (default: 2048)"
    )
    data.add_argument("--hop", type=_positive, metavar="N", help="samples from window to window (default: 1024)")
    data.add_argument(
        "--remaining-most",
        type=_rate,
        metavar="N",
        help="for a regressor on your own recordings, which run to failure: samples of life left that it tells apart",
    )
    data.add_argument(
        "--collect", type=_positive, default=64, metavar="N", help="windows of each serial port to begin with (64)"
    )
    demo.add_argument("--rounds", type=_positive, default=40, help="training rounds (default: 40)")
    demo.add_argument("--gateways", type=_positive, help="how many (sim: 7, digits: 8; others have what is there)")
    demo.add_argument("--seed", type=int, default=0, help="of initial weights, batches and simulation (default: 0)")
    learning = demo.add_argument_group("learning")
    learning.add_argument(
        "--model",
        choices=("softmax", "mlp", "autoencoder", "regressor", "cnn1d"),
        default="mlp",
        help="default: mlp",
    )
    learning.add_argument(
        "--bundle", type=Path, metavar="FILE", help="your own model in place of --model, as `fedmq task build` makes it"
    )
    learning.add_argument(
        "--engine",
        default="auto",
        choices=("auto", "onnxruntime", "litert", "tflite", "numpy"),
        help="what computes the model on gateways (default: auto)",
    )
    learning.add_argument(
        "--hidden", type=_sizes, metavar="N,N,…", help="hidden units, such as 64,128,64 (default: 32)"
    )
    learning.add_argument(
        "--codec",
        choices=("sparse", "dense", "8bit", "4bit"),
        default="sparse",
        help="sparse: the largest changes at 1 bit each; dense: float32 both ways, plain FedAvg (default: sparse)",
    )
    learning.add_argument(
        "--dial", type=_dial, metavar="0..1", help="from 0, fewest bytes, to 1, fewest rounds (default: 0.3)"
    )
    learning.add_argument("--local-epochs", type=_positive, help="passes over a gateway's windows in a round")
    learning.add_argument(
        "--personal",
        choices=("none", "head", "copy"),
        default="none",
        help="at the end the last version is released, and each gateway fits its last layer, or a copy of all, to its"
        " own windows; the table shows where that is better (default: none)",
    )
    learning.add_argument(
        "--personal-margin", type=_share, default=0.02, metavar="X", help="how much better it must be (default: 0.02)"
    )
    learning.add_argument(
        "--personal-epochs", type=_positive, default=10, metavar="N", help="passes over its own windows (default: 10)"
    )
    learning.add_argument(
        "--baselines",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also train each gateway alone, and all data pooled, to compare (default: yes)",
    )
    demo.add_argument(
        "--broker", default="auto", metavar="auto|mosquitto|embedded|HOST:PORT", help="which broker (default: auto)"
    )
    demo.add_argument(
        "--secure",
        action="store_true",
        help="with a certificate authority made for this run: TLS with client certificates, plans signed, updates and"
        " receipts with MACs (needs Mosquitto)",
    )
    demo.add_argument(
        "--gates",
        choices=("healthy", "real"),
        default="healthy",
        help="healthy: injected vitals, so that every gate is open; real: this machine's own (default: healthy)",
    )
    demo.add_argument(
        "--closing", type=float, default=30.0, metavar="SECONDS", help="a round's closing time (default: 30)"
    )
    demo.add_argument("--http", metavar="[HOST:]PORT", help="show it in a browser as it goes; 0 picks a free port")
    demo.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    demo.add_argument("--csv", type=Path, metavar="FILE", help="write metrics and bytes as CSV, one line a round")
    demo.add_argument(
        "--report", type=Path, metavar="FILE", help="where the HTML report goes (default: in the run's folder)"
    )
    demo.add_argument("--directory", type=Path, metavar="DIR", help="the run's folder (default: runs/<date and time>)")
    demo.add_argument("--no-progress", dest="progress", action="store_false", help="print only the result")
    demo.set_defaults(run=_demo)


_SIMULATE = """\
Runs the real coordinator and real gateways in one process and in virtual time; network, broker, disks, clocks and
training times are made up from the seed. With --faults, each schedule (its seed is --seed plus its number) draws its
own fleet and faults, and every promise of docs/simulation.md is checked after every step: what breaks one is told as
the shortest story that still does. Without, it shows what a fleet would need: rounds, bytes, time, and with --target
how soon the model is good enough, so that settings can be held against each other with `--set rounds.KEY=VALUE`.
"""

_SIMULATE_EPILOG = """\
examples:
  fedmq simulate --faults all --schedules 1000
  fedmq simulate --faults all --seed 42 --trace trace.txt          one schedule again, line by line
  fedmq simulate --gateways 500 --rounds 100 --fraction 0.1 --link 2kB/s,300ms,5% --battery night
  fedmq simulate --data cwru:DIR --rounds 40 --speeds 1:20 --plot course.svg
  fedmq simulate --data cwru:DIR --rounds 200 --speeds 1:20 --target 0.95 --set rounds.aggregation=buffered
"""


def _add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    simulate = commands.add_parser(
        "simulate",
        help="a whole federation in virtual time: what faults do to it, or what a fleet would need",
        description=_SIMULATE,
        epilog=_SIMULATE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    simulate.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    simulate.add_argument(
        "--gateways", type=_positive, metavar="N", help="how many (default: 24 with faults, 10 without)"
    )
    simulate.add_argument(
        "--rounds", type=_positive, metavar="N", help="training rounds (default: 12 with faults, 40 without)"
    )
    faults = simulate.add_argument_group("faults")
    faults.add_argument(
        "--faults",
        choices=("none", "network", "crashes", "broker", "clocks", "slow", "disks", "all"),
        default="none",
        help="what goes wrong (default: none)",
    )
    faults.add_argument("--schedules", type=_positive, default=1, metavar="K", help="how many (default: 1)")
    faults.add_argument(
        "--jobs",
        type=_positive,
        default=1,
        metavar="N",
        help="processes that share the schedules, one for each core at most; the results are the same (default: 1)",
    )
    faults.add_argument(
        "--stories", type=int, default=3, metavar="N", help="broken promises whose shortest story is told (default: 3)"
    )
    faults.add_argument(
        "--shrink-runs", type=_positive, default=600, metavar="N", help="runs to find one story in (default: 600)"
    )
    faults.add_argument("--digests", action="store_true", help="print the digest of every schedule's trace")
    size = simulate.add_argument_group("sizing a fleet (without faults)")
    size.add_argument(
        "--link", metavar="RATE,LATENCY,LOSS", help="of every gateway, such as 2kB/s,300ms,5%% of segments"
    )
    size.add_argument("--speeds", default="1:1", metavar="SLOW:FAST", help="of gateways, as factors (default: 1:1)")
    size.add_argument(
        "--window-seconds",
        type=float,
        default=0.002,
        metavar="S",
        help="training time of one window on a gateway of speed 1, for each pass over it (default: 0.002)",
    )
    size.add_argument(
        "--battery",
        default="0",
        metavar="night|SHARE",
        help="gates that are shut: night, all but from 22:00 to 6:00 UTC; or a share of the gateways, others each hour"
        " (default: 0)",
    )
    size.add_argument("--stragglers", type=_dial, default=0.0, metavar="SHARE", help="gateways that take too long")
    size.add_argument(
        "--leavers", type=_dial, default=0.0, metavar="SHARE", help="trainings in which the gateway is killed"
    )
    size.add_argument(
        "--parameters", type=_positive, default=1000, metavar="N", help="of the model, about (default: 1000)"
    )
    size.add_argument("--windows", type=_positive, default=100, metavar="N", help="of each gateway (default: 100)")
    size.add_argument("--fraction", type=float, metavar="SHARE", help="short for --set rounds.fraction=SHARE")
    size.add_argument("--closing-seconds", type=float, metavar="S", help="short for --set rounds.closing_seconds=S")
    add_settings(size, "coordinator.toml; rounds, task and limits are used", "log_level=debug")
    data = simulate.add_argument_group("real recordings (without faults)")
    data.add_argument("--data", metavar="sim|cwru:DIR|gearbox:DIR|cmapss:DIR|digits|DIR", help="as for `fedmq demo`")
    data.add_argument("--split", choices=("fault", "severity", "load"), default="fault", help="as for `fedmq demo`")
    data.add_argument("--test-load", type=int, metavar="LOAD", help="as for `fedmq demo`")
    data.add_argument("--hidden", type=_sizes, metavar="N,N,…", help="hidden units (default: 32)")
    data.add_argument("--codec", choices=("sparse", "dense", "8bit", "4bit"), default="sparse", help="default: sparse")
    data.add_argument(
        "--target",
        type=float,
        metavar="X",
        help="say when the test metric was first X or more with two versions in a row: virtual time, version and round",
    )
    simulate.add_argument("--trace", type=Path, metavar="FILE", help="append everything that happens, line by line")
    simulate.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    simulate.add_argument("--plot", type=Path, metavar="FILE", help="draw metric or versions over time (.svg, .png)")
    simulate.add_argument(
        "--check", action=argparse.BooleanOptionalAction, default=True, help="check the promises (default: yes)"
    )
    simulate.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error", "critical"),
        default="critical",
        help="of coordinator and gateways (default: critical)",
    )
    simulate.add_argument("--no-progress", dest="progress", action="store_false", help="print only the result")
    simulate.set_defaults(run=_simulate)


_BENCH_CODEC = """\
Trains federations in this process, for each data set, size of the model and density, with that density both ways, and
codes their real deltas: with the history of the model as context, without, and in the layouts that others use (Rice,
Elias-Fano, varint, int32 with zstd-19, roaring, bitmap). Bytes are held against log2 C(d, k) plus the entropy of the
signs, the least for supports that know nothing of earlier rounds; time against a copy of the dense float32 vector, on
one core, by numpy alone and, where numba is installed, as machine code. Every payload that is counted was decoded
again.
"""

_BENCH_EPILOG = """\
examples:
  fedmq bench codec                                simulated bearings, four sizes, seven densities: a few minutes
  fedmq bench codec --quick                        fewer of all, under a minute
  fedmq bench codec --data digits --data cwru:DIR --json codec.json --plot codec.svg
  fedmq bench codec --from codec.json --plot codec.png --markdown page.md
"""


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench", help="measure the parts of it, on this machine", description="Measures parts of fedmq on this machine."
    )
    parts = bench.add_subparsers(dest="bench", required=True, metavar="PART")
    codec = parts.add_parser(
        "codec",
        help="bytes and time of the codec on deltas from training, beside its rivals",
        description=_BENCH_CODEC,
        epilog=_BENCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    codec.add_argument(
        "--data",
        action="append",
        metavar="sim|cwru:DIR|gearbox:DIR|digits|DIR",
        help="as for `fedmq demo`; may be given several times (default: sim)",
    )
    codec.add_argument("--test-load", type=int, metavar="LOAD", help="of cwru and gearbox (default for cwru: 2)")
    codec.add_argument("--model", choices=("mlp", "autoencoder"), default="mlp", help="default: mlp")
    codec.add_argument("--quick", action="store_true", help="three sizes, three densities, 12 rounds")
    codec.add_argument(
        "--sizes", type=_counts, metavar="N,N,…", help="parameters, about (default: 2000,17000,100000,1000000)"
    )
    codec.add_argument(
        "--densities",
        type=_shares,
        metavar="X,X,…",
        help="shares of the coordinates that are sent (default: 0.001,0.0025,0.005,0.01,0.025,0.05,0.1)",
    )
    codec.add_argument(
        "--rounds", type=_positive, help="training rounds; half of them from 300,000 parameters on (default: 24)"
    )
    codec.add_argument("--seed", type=int, default=0, help="of initial weights, batches and simulation (default: 0)")
    codec.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="show what --json wrote earlier; nothing is measured"
    )
    codec.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    codec.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as .svg or .png (needs matplotlib)")
    codec.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the tables into this page, between its marks <!-- begin: fedmq bench codec --> and "
        "<!-- end: fedmq bench codec -->, or into a new one",
    )
    codec.add_argument("--no-progress", dest="progress", action="store_false", help="print only the result")
    codec.set_defaults(run=_bench_codec)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between, got {text!r}") from None
    if not all(100 <= count <= 10_000_000 for count in counts):
        raise argparse.ArgumentTypeError(f"expected 100 to 10,000,000 parameters, got {text!r}")
    return counts


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None
    if not all(0 < share < 1 for share in shares):
        raise argparse.ArgumentTypeError(f"expected densities above 0 and below 1, got {text!r}")
    return shares


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, got {text}")
    return share


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _dial(text: str) -> float:
    dial = float(text)
    if not 0 <= dial <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1, got {text}")
    return dial


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= 1e6:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 1,000,000, got {text}")
    return rate


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between, got {text!r}") from None
    if not all(0 < size <= 65_536 for size in sizes):
        raise argparse.ArgumentTypeError(f"expected sizes from 1 to 65536, got {text!r}")
    return sizes


class _Stoppable(Protocol):
    stopping: bool


def _stop_on_signal(program: _Stoppable, notifier: Notifier) -> None:
    """SIGTERM and SIGINT set `stopping`, and systemd hears of it; a second one ends the process at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        program.stopping = True
        notifier.stopping()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def _gateway(arguments: argparse.Namespace) -> None:
    # One thread, and the memory of one: set before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # One payload a round: the compiler would cost 130 MB of memory for less than a millisecond.
    os.environ.setdefault("FEDMQ_COMPILED", "0")
    from fedmq_edge_node.settings import GatewaySettings
    from fedmq_protocol.settings import document, load

    if arguments.example:
        print(document(GatewaySettings), end="")
        return
    settings = load(GatewaySettings, arguments.config, arguments.overrides)
    if arguments.check:
        return
    start_logging(settings.log_level, arguments.log_format, settings.log_format, gateway=settings.name)
    from fedmq.metrics import running
    from fedmq.programs import build_gateway, show_gateway

    if arguments.show:
        for line in show_gateway(settings):
            print(line)
        return
    running.check(settings.metrics)
    notifier = Notifier()
    gateway = build_gateway(settings, notifier.alive)
    _stop_on_signal(gateway, notifier)
    with running.of_gateway(settings, gateway):
        notifier.ready()
        gateway.run()


def _coordinator(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from fedmq_coordinator.settings import CoordinatorSettings
    from fedmq_protocol.settings import document

    if arguments.example:
        print(document(CoordinatorSettings), end="")
        return
    from fedmq.metrics import running
    from fedmq.programs import build_coordinator, load_coordinator, run_coordinator

    settings = load_coordinator(arguments.config, arguments.overrides)
    if arguments.check:
        return
    start_logging(settings.log_level, arguments.log_format, settings.log_format)
    running.check(settings.metrics)
    notifier = Notifier()
    coordinator = build_coordinator(settings, new_lineage=arguments.new_lineage, alive=notifier.alive)
    _stop_on_signal(coordinator, notifier)
    from fedmq.dashboard import beside

    with running.of_coordinator(settings, coordinator), beside(settings, arguments):
        notifier.ready()
        run_coordinator(coordinator, settings)


def _recover(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from fedmq_coordinator.settings import CoordinatorSettings
    from fedmq_protocol.settings import load

    settings = load(CoordinatorSettings, arguments.config, arguments.overrides)
    start_logging(settings.log_level, arguments.log_format, settings.log_format)
    from fedmq.programs import recover

    for sentence in recover(settings, arguments.backup):
        print(sentence)


def _broker(arguments: argparse.Namespace) -> None:
    from fedmq_broker_config.settings import BrokerTable
    from fedmq_protocol.settings import document

    from fedmq.programs import run_broker

    if arguments.example:
        print(document(BrokerTable), end="")
        return
    run_broker(arguments)


def _guard(arguments: argparse.Namespace) -> None:
    from fedmq.programs import run_guard

    start_logging("info", arguments.log_format)
    run_guard(arguments)


def _site(arguments: argparse.Namespace) -> None:
    from fedmq.programs import render_site

    render_site(arguments)


def _width() -> int:
    return shutil.get_terminal_size().columns


def _in_colour() -> bool:
    """Where a person looks, and has not said otherwise (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _report(arguments: argparse.Namespace) -> None:
    if arguments.control is not None:
        _report_by_socket(arguments)
        return
    from fedmq.programs import open_ledger

    ledger = open_ledger(arguments.state)
    from fedmq_coordinator import money, report
    from fedmq_coordinator.report_text import to_text

    view = _view(arguments)
    kept = money.from_bytes(ledger.get(money.MONEY))
    price = money.price_of(kept, per_gb=arguments.price_per_gb, currency=arguments.currency)
    if arguments.task is None:
        built = report.build_all(ledger, view=view, price=price)
    else:
        built = report.build(ledger, arguments.task, view=view, price=price)
    if arguments.html is not None:
        from fedmq_coordinator.report_html import to_html

        arguments.html.write_text(to_html(built), encoding="utf-8")
        print(f"wrote {arguments.html}", file=sys.stderr)
    if arguments.csv not in (None, Path("-")):
        arguments.csv.write_text(report.to_csv(built), encoding="utf-8", newline="")
        print(f"wrote {arguments.csv}", file=sys.stderr)
    if arguments.json:
        print(report.to_json(built).decode())
    elif arguments.csv == Path("-"):
        print(report.to_csv(built), end="")
    elif arguments.html is None and arguments.csv is None:
        print(to_text(built, _width()), end="")


def _report_by_socket(arguments: argparse.Namespace) -> None:
    """The coordinator makes it, as it makes it for itself."""
    from fedmq_coordinator.control import Look, ask

    view = _view(arguments)

    def made(form: Literal["text", "json", "csv", "html"]) -> str:
        look = Look(
            what="report",
            task=arguments.task,
            form=form,
            width=_control_width(),
            view=view,
            price_per_gb=arguments.price_per_gb,
            currency=arguments.currency,
        )
        return ask(arguments.control, look).text

    if arguments.html is not None:
        arguments.html.write_text(made("html"), encoding="utf-8")
        print(f"wrote {arguments.html}", file=sys.stderr)
    if arguments.csv not in (None, Path("-")):
        arguments.csv.write_text(made("csv"), encoding="utf-8", newline="")
        print(f"wrote {arguments.csv}", file=sys.stderr)
    if arguments.json:
        print(made("json"))
    elif arguments.csv == Path("-"):
        print(made("csv"), end="")
    elif arguments.html is None and arguments.csv is None:
        print(made("text"), end="")


def _view(arguments: argparse.Namespace) -> View:
    """The part of the ledger that the command line names. Raises ValueError."""
    import time

    from fedmq_coordinator.report_view import View, moment

    now = time.time()

    def when(option: str) -> float | None:
        text = getattr(arguments, option)
        try:
            return None if text is None else moment(text, now)
        except ValueError as error:
            raise ValueError(f"--{option}: {error}") from None

    return View(
        since=when("since"),
        until=when("until"),
        gateways=tuple(arguments.gateway),
        sites=tuple(arguments.site),
        tags=tuple(arguments.tag),
        by=arguments.by,
    )


def _control_width() -> int:
    return max(20, min(1000, _width()))


def _status(arguments: argparse.Namespace) -> None:
    import json
    import time

    if arguments.prometheus:
        from fedmq.metrics.gathering import by_control, by_ledger

        def parts() -> str:
            place = arguments.state if arguments.control is None else arguments.control
            return (by_ledger if arguments.control is None else by_control)(place)

    elif arguments.control is not None:
        from fedmq_coordinator.control import Look, ask

        def parts() -> str:
            form: Literal["json", "text"] = "json" if arguments.json else "text"
            look = Look(what="status", task=arguments.task, form=form, width=_control_width(), colour=_in_colour())
            return ask(arguments.control, look).text + ("\n" if arguments.json else "")

    else:
        from fedmq.programs import open_ledger

        ledger = open_ledger(arguments.state)
        from fedmq_coordinator.status_text import status
        from fedmq_coordinator.tasks import state_of_affairs

        def parts() -> str:
            if arguments.json:
                return json.dumps(state_of_affairs(ledger, time.time()), indent=2) + "\n"
            names = _task_names(ledger, arguments.task)
            return "\n".join(status(ledger, time.time(), _width(), name, colour=_in_colour()) for name in names)

    while True:
        if arguments.watch and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        print(parts(), end="", flush=True)
        if not arguments.watch:
            return
        time.sleep(arguments.watch)


def _task_names(ledger: Ledger, named: str | None) -> list[str | None]:
    """The task that was named, or each one; None stands for the only one, or for none at all."""
    if named is not None:
        return [named]
    names = [row.name for row in ledger.tasks()]
    return [None] if len(names) < 2 else list(names)


def _demo(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from fedmq.demo import DemoOptions, run

    # As a Ctrl-C: the demo ends the processes that it started, which run in sessions of their own.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    given = {name: getattr(arguments, name) for name in DemoOptions.__dataclass_fields__}
    return run(DemoOptions(**given))


def _simulate(arguments: argparse.Namespace) -> int:
    # One core, and small arrays: set before numpy is imported. Compiling would take longer than most simulations.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ.setdefault("FEDMQ_COMPILED", "0")
    from fedmq.simulate.program import run

    return run(arguments)


def _bench_codec(arguments: argparse.Namespace) -> None:
    # What is timed is one core: set before numpy is imported.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    from fedmq.bench.program import run_codec

    run_codec(arguments)
