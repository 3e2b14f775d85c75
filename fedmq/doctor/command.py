"""The words of `fedmq doctor`. What it does is in `program`, which is imported only then."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedmq.arguments import add_settings

__all__ = ["add_parser"]

_EPILOG = """\
examples:
  fedmq doctor gateway --config gateway.toml
  fedmq doctor coordinator --config coordinator.toml --offline
  fedmq doctor broker --config broker.toml --directory /etc/mosquitto
  fedmq doctor gateway --config gateway.toml --json | jq '.findings[] | select(.status == "FAIL")'

Exit status: 0, or 1 where a check FAILs. "warn" works today; "unknown" could not be found out from here. A program that
runs is not disturbed: where it has an identity at the broker, MQTT and ACL are tried only while it is stopped.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check what a gateway, the coordinator or the broker rests on",
        description="Checks settings, files and their modes, disk, certificates, clock, the way to the broker, and by"
        " trying whether the broker's ACL is in force. Changes nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    roles = doctor.add_subparsers(dest="role", required=True, metavar="gateway|coordinator|broker")
    for role in ("gateway", "coordinator", "broker"):
        parser = roles.add_parser(
            role,
            help=f"with the settings of a {role}",
            description=f"Checks what a {role} rests on, with its own settings; run it on its machine, as its user.",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_settings(parser, f"{role}.toml", "connection.host=broker.plant" if role != "broker" else "port=8883")
        if role == "broker":
            parser.add_argument(
                "--directory",
                type=Path,
                default=Path("/etc/mosquitto"),
                metavar="DIR",
                help="where its mosquitto.conf and acl are (default: /etc/mosquitto)",
            )
            parser.add_argument(
                "--site", metavar="NAME", help="this is the broker of that site, as `fedmq broker site` made it"
            )
            parser.add_argument(
                "--identity",
                type=Path,
                action="append",
                default=[],
                metavar="DIR",
                help="an identity folder to check, too, such as the broker's; may be given several times",
            )
        else:
            parser.add_argument(
                "--identity", type=Path, metavar="DIR", help="its identity folder, where the settings name none"
            )
        parser.add_argument(
            "--offline", action="store_true", help="only what is on this machine: no connection is made"
        )
        parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
        parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from fedmq.doctor.program import run

    return run(arguments)
