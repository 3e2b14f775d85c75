"""`fedmq bridge` and `fedmq label`: the command's words, and what it prints."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType

from fedmq.arguments import add_settings
from fedmq.logs import add_log_format, start_logging
from fedmq.metrics.command import add_metrics

__all__ = ["add_label", "add_parser"]

_EPILOG = """\
examples:
  fedmq bridge probe                                          what there is under /dev/serial/by-id, and how it talks
  fedmq bridge run --config bridge.toml                       until it is stopped (SIGTERM)
  fedmq bridge status --store /var/lib/fedmq/bridge.sqlite    how each sensor is
  fedmq bridge send-model model.img --port /dev/serial/by-id/… --sensor 1      a new model for a sensor's slot
  fedmq label --store /var/lib/fedmq/bridge.sqlite --machine pump-3 --from 08:00 --to 09:30 inner-race
"""

_LABEL_EPILOG = """\
examples:
  fedmq label --store FILE --machine pump-3 --from 2026-11-29T08:00 --to 2026-11-29T09:30 inner-race
  fedmq label --store FILE --machine pump-3 --from 2h --to now normal         the last two hours
  fedmq label --store FILE --machine pump-3 --from 08:00 --to 08:10 unlabelled    takes labels back
  fedmq label --store FILE --list
"""

_PROBE_SECONDS = 1.5
_BAUD = 921_600


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bridge = commands.add_parser(
        "bridge",
        help="sensors on serial ports: find them, keep what they say for gateways to learn from, see how they are",
        description="Sensors on serial ports and on topics of a local broker become checked, time-stamped readings\n"
        "in a store on disk, which gateways learn from (bridge.store in their settings).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = bridge.add_subparsers(dest="verb", required=True, metavar="VERB")

    run = verbs.add_parser(
        "run",
        help="read all ports, Modbus lines and topics of the settings until stopped",
        description="Reads all ports, Modbus lines and topics of the settings into the store. A port that vanishes is"
        " opened again; killed at any moment, it loses what came since its last flush and says so at its next start.",
    )
    add_log_format(run)
    add_metrics(run)
    add_settings(run, "bridge.toml", "flush_seconds=5")
    run.add_argument("--example", action="store_true", help="print a settings file with every key, and end")
    run.set_defaults(run=_run)

    probe = verbs.add_parser(
        "probe",
        help="find what talks on a port, and at which rate",
        description="Listens at one baud rate after another until something makes sense: the native stream, lines of"
        " JSON or CSV. Prints what it is, and the lines for the settings. No bridge may have the port open.",
    )
    probe.add_argument("port", nargs="*", help="device, Unix socket or tcp://HOST:PORT (default: /dev/serial/by-id/*)")
    probe.add_argument(
        "--baud", type=int, action="append", metavar="N", help="try this rate; may be given several times"
    )
    probe.add_argument(
        "--seconds", type=float, default=_PROBE_SECONDS, help=f"to listen at each rate (default: {_PROBE_SECONDS})"
    )
    probe.set_defaults(run=_probe)

    status = verbs.add_parser(
        "status",
        help="how each port and sensor is, from the store alone",
        description="How each port and sensor is: rate against what is promised, losses, clipping, flat lines, since"
        " when it is silent. As of the bridge's last flush.",
    )
    status.add_argument("--store", type=Path, required=True, metavar="FILE", help="the bridge's store")
    shown = status.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    shown.add_argument("--prometheus", action="store_true", help="print metrics as node_exporter's textfiles hold them")
    status.add_argument("--watch", type=float, metavar="SECONDS", help="print it again every so often")
    status.set_defaults(run=_status)

    send = verbs.add_parser(
        "send-model",
        help="send a model to a sensor that takes models over its line",
        description="Sends an image of `fedmq export --sensor-image` to one sensor, and waits until the sensor runs it"
        " or refuses it. Its old model runs on until then. Opens the port itself: no bridge may have it open.",
    )
    send.add_argument("image", type=Path, metavar="IMAGE", help="file of fedmq export --sensor-image")
    send.add_argument("--port", required=True, help="device, Unix socket or tcp://HOST:PORT")
    send.add_argument("--sensor", type=int, required=True, metavar="N", help="its number on the line")
    send.add_argument("--baud", type=int, default=_BAUD, metavar="N", help=f"bits a second (default: {_BAUD})")
    send.set_defaults(run=_send_model)


def add_label(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    label = commands.add_parser(
        "label",
        help="say what was the matter with a machine, and when",
        description="Gives a label to a machine's span of time in a bridge's store, also long after it was recorded\n"
        "and while the bridge runs. Of two for the same time the later one holds.",
        epilog=_LABEL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    label.add_argument("--store", type=Path, required=True, metavar="FILE", help="the bridge's store")
    label.add_argument("--machine", metavar="NAME", help="as the bridge's settings call it")
    label.add_argument(
        "--from", dest="from_at", metavar="TIME", help="since when; such as 2026-11-29T08:00, 08:00, 90m"
    )
    label.add_argument("--to", dest="to_at", metavar="TIME", default="now", help="until when (default: now)")
    label.add_argument("--list", action="store_true", help="list all labels instead")
    label.add_argument("label", nargs="?", help="such as normal or inner-race; unlabelled takes labels back")
    label.set_defaults(run=_label)


def _run(arguments: argparse.Namespace) -> None:
    # Set before numpy is imported: it computes nothing here that more threads would help.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from fedmq_protocol.settings import document, load

    from fedmq.bridge.settings import BridgeSettings

    if arguments.example:
        print(document(BridgeSettings), end="")
        return
    settings = load(BridgeSettings, arguments.config, arguments.overrides)
    start_logging(settings.log_level, arguments.log_format, settings.log_format)
    from fedmq.bridge.program import build_bridge
    from fedmq.metrics import running

    running.check(settings.metrics)
    bridge = build_bridge(settings)

    def stop(number: int, frame: FrameType | None) -> None:
        bridge.stopping = True
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with running.of_bridge(settings, bridge):
        bridge.run()


def _probe(arguments: argparse.Namespace) -> int:
    from fedmq_firmware_bridge.frames import AskHello, encode
    from fedmq_firmware_bridge.port import PortError, listen
    from fedmq_firmware_bridge.probing import BAUDS, probe

    by_id = Path("/dev/serial/by-id")
    ports = arguments.port or sorted(str(path) for path in (by_id.iterdir() if by_id.is_dir() else ()))
    if not ports:
        raise ValueError(f"expected a port: there is none in {by_id}. Name one, such as /dev/ttyUSB0")
    greeting = b"\0" + encode(AskHello(sensor=0xFFFF, sequence=0))
    silent = 0
    for place, port in enumerate(ports, start=1):

        def hear(baud: int, port: str = port) -> tuple[bytes, float]:
            return listen(port, baud, greeting, seconds=arguments.seconds)

        try:
            found = probe(hear, arguments.baud or BAUDS)
        except PortError as error:
            print(f"{error}", file=sys.stderr)
            silent += 1
            continue
        if found is None:
            print(f"{port}: nothing that is known, at any rate", file=sys.stderr)
            silent += 1
            continue
        baud, what = found
        print(f"# {port} at {baud} baud: {what.kind}; {what.refused} frames or lines made no sense")
        for line in what.about:
            print(f"#   {line}")
        print(what.settings(f"sensor-{place}", port, baud))
    return 1 if silent == len(ports) else 0


def _status(arguments: argparse.Namespace) -> None:
    from fedmq_firmware_bridge.store import Store

    from fedmq.bridge.showing import as_json, as_prometheus, as_text

    show = as_json if arguments.json else as_prometheus if arguments.prometheus else as_text
    store = Store(arguments.store)
    while True:
        if arguments.watch and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        print(show(store, time.time()), end="", flush=True)
        if not arguments.watch:
            return
        time.sleep(arguments.watch)


def _send_model(arguments: argparse.Namespace) -> int:
    from fedmq_firmware_bridge.downloads import Stage
    from fedmq_firmware_bridge.port import PortError
    from fedmq_models.sensor_image import MAX_BYTES, ImageError, from_bytes

    from fedmq.bridge.sending import open_alone, send_image

    if not 0 <= arguments.sensor < 0xFFFF:
        raise ValueError(f"--sensor: expected a number from 0 to 65,534, got {arguments.sensor}")
    with arguments.image.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        image = from_bytes(data)
    except ImageError as error:
        raise ValueError(f"{arguments.image} is no image of fedmq export --sensor-image: {error}") from None
    wire = open_alone(arguments.port, arguments.baud)
    try:
        download = send_image(
            wire,
            data,
            sensor=arguments.sensor,
            # Another one each time: an ack of an earlier download must not count.
            sequence=int.from_bytes(os.urandom(4), "little"),
            clock=time.monotonic,
            show=lambda text: print(text, flush=True),
        )
    except OSError as error:
        raise PortError(f"{arguments.port} has gone: {error}. Send the model again: what is there counts") from error
    finally:
        wire.close()
    frames = f"{download.sent_frames:,} orders, {download.repeated_frames:,} of them again"
    if download.stage is Stage.IN_FORCE:
        print(f"accepted: sensor {arguments.sensor} runs version {image.version} ({frames})")
        return 0
    print(f"not accepted: {download.reason} ({frames})", file=sys.stderr)
    return 1


def _label(arguments: argparse.Namespace) -> None:
    from fedmq_firmware_bridge.store import Store

    from fedmq.bridge.program import check_store
    from fedmq.bridge.times import parse_time

    check_store(arguments.store)
    store = Store(arguments.store)
    if arguments.list:
        _print_labels(store.labels())
        return
    missing = [
        flag
        for flag, value in (
            ("--machine", arguments.machine),
            ("--from", arguments.from_at),
            ("LABEL", arguments.label),
        )
        if value is None
    ]
    if missing:
        raise ValueError(f"expected {', '.join(missing)}; see fedmq label --help")
    now = datetime.now().astimezone()
    from_at, to_at = parse_time(arguments.from_at, now), parse_time(arguments.to_at, now)
    met = store.label(arguments.machine, from_at, to_at, arguments.label, noted_at=time.time())
    span = f"{arguments.machine} from {_shown(from_at)} to {_shown(to_at)}"
    print(f"{span}: {arguments.label}; {met} batches of samples so far")
    machines = store.machines()
    if machines and arguments.machine not in machines:
        print(f"note: no sensor is on a machine of that name; there are {', '.join(machines)}", file=sys.stderr)


def _print_labels(labels: Sequence[tuple[str, float, float, str]]) -> None:
    for machine, from_at, to_at, label in labels:
        print(f"{machine}  {_shown(from_at)}  {_shown(to_at)}  {label}")


def _shown(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
