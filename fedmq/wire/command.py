"""The words of `fedmq wire`. What it does is in `program`, which is imported only then."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedmq.arguments import add_override, add_settings

__all__ = ["add_parser"]

_EPILOG = """\
examples:
  fedmq wire show                                  all traffic of federation plant at 127.0.0.1:1883, live
  fedmq wire show --seconds 600 --json > wire.jsonl
  fedmq wire show --config wire.toml               with TLS, as an observer whom the ACL lets read
  fedmq wire fields --markdown                     what every field tells: the table of docs/data-flows.md

A field with * was computed from recordings. What could not be explained has a line that begins with !.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    wire = commands.add_parser(
        "wire",
        help="see what crosses the broker, field by field",
        description="Shows what crosses the broker, so that anyone can see what leaves a gateway, and what does not.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = wire.add_subparsers(dest="verb", required=True, metavar="VERB")
    show = verbs.add_parser(
        "show",
        help="decode the traffic of a federation, live",
        description="Reads everything on the federation's topics and publishes nothing. Ends with a summary: on Ctrl-C,"
        " or after --seconds. Where the broker asks for an identity, give the observer one of its own: with that of a"
        " program it would push that program out.",
    )
    add_settings(
        show, "wire.toml", "connection.host=broker.plant", help_config="settings in TOML: a table [connection]"
    )
    for key in ("host", "port", "federation"):
        add_override(show, f"--{key}", f"connection.{key}", f"short for --set connection.{key}={key.upper()}")
    show.add_argument("--seconds", type=_seconds, metavar="N", help="end after so many seconds (default: on Ctrl-C)")
    show.add_argument("--json", action="store_true", help="print one line of JSON a message, and one of the summary")
    show.add_argument("--example", action="store_true", help="print a settings file with every key, and end")
    show.set_defaults(run=_show)

    fields = verbs.add_parser(
        "fields",
        help="every field that leaves a gateway, and what it tells",
        description="Prints the tables of docs/data-flows.md, from the types of the messages and the topic table.",
    )
    fields.add_argument("--markdown", action="store_true", help="as it stands in docs/data-flows.md (it always does)")
    fields.add_argument("--write", type=Path, metavar="PAGE", help="renew the tables in this page, between its marks")
    fields.set_defaults(run=_fields)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 31_536_000:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most a year of seconds, got {text}")
    return seconds


def _show(arguments: argparse.Namespace) -> None:
    from fedmq.wire.program import show

    show(arguments)


def _fields(arguments: argparse.Namespace) -> None:
    from fedmq.wire.program import fields

    fields(arguments)
