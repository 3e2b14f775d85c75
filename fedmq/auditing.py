"""`fedmq audit`: shows the audit log of a folder, checks that nothing in it was changed, and tells its head.

Owns the command's words; what a log is and how it is checked is in `fedmq_coordinator.audit`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

__all__ = ["add_parser"]

_EPILOG = """\
examples:
  fedmq audit show --state /var/lib/fedmq/coordinator --last 20
  fedmq audit head --state /var/lib/fedmq/coordinator          write it down, or ship it to another machine
  fedmq audit verify --state /var/lib/fedmq/coordinator --head 5f1c…

Each line holds the hash of the one before, so that a line that was changed or taken out shows. Lines that were cut off
the end do not show by themselves, and neither does a log that was written anew from some line on: whoever may write the
file can do both. They show against a head that was noted elsewhere, with --head.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    audit = commands.add_parser(
        "audit",
        help="who ordered what, and whether anybody changed the record of it",
        description="Shows and checks an audit log: of a coordinator, or of the folder of a certificate authority.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = audit.add_subparsers(dest="verb", required=True, metavar="VERB")
    show = verbs.add_parser("show", help="print it, oldest first")
    show.add_argument("--json", action="store_true", help="print JSON, one line an entry, instead of text")
    show.add_argument("--last", type=_count, metavar="N", help="only so many of the newest")
    show.set_defaults(run=_show)
    verify = verbs.add_parser("verify", help="check the chain; status 1 where it does not hold")
    verify.add_argument(
        "--head", type=_head, metavar="HASH", help="as `fedmq audit head` told it earlier: it must still be there"
    )
    verify.set_defaults(run=_verify)
    head = verbs.add_parser(
        "head", help="print the hash of the last line, to be kept elsewhere, and how many there are"
    )
    head.set_defaults(run=_tell_head)
    for verb in (show, verify, head):
        verb.add_argument(
            "--state", type=Path, required=True, metavar="DIR", help="the folder in which audit.log lies (state_dir)"
        )


def _show(arguments: argparse.Namespace) -> None:
    import msgspec
    from fedmq_coordinator.audit import Entry

    from fedmq.programs import audit_log

    entries = list(audit_log(arguments.state).entries())
    for entry in entries[-arguments.last :] if arguments.last else entries:
        if arguments.json:
            broken = {"damaged": entry.decode("utf-8", "replace")} if isinstance(entry, bytes) else {}
            print(json.dumps(broken) if broken else msgspec.json.encode(entry).decode())
        elif isinstance(entry, Entry):
            note = "  (after a line that was cut short)" if entry.torn else ""
            print(_plain(f"{entry.time}  {entry.who}  {entry.action}  {entry.subject}: {entry.outcome}{note}"))
        else:
            print(_plain(f"damaged: {entry.decode('utf-8', 'replace')}"))


def _verify(arguments: argparse.Namespace) -> int:
    from fedmq.programs import audit_log

    log = audit_log(arguments.state)
    found = log.verify()
    problems = [f"line {finding.line} {finding.text}" for finding in found.findings]
    if arguments.head is not None and arguments.head not in found.heads:
        problems.append(f"no line has the hash {arguments.head}: lines were cut off the end, or written anew")
    for problem in problems:
        print(f"{log.path}: {problem}", file=sys.stderr)
    if problems:
        return 1
    torn = f"; {found.torn} after a power cut" if found.torn else ""
    print(f"{found.lines} lines, each follows from the one before{torn}; head {found.head}")
    return 0


def _tell_head(arguments: argparse.Namespace) -> None:
    from fedmq.programs import audit_log

    lines, head = audit_log(arguments.state).head()
    print(f"{head} {lines}")


def _plain(text: str) -> str:
    """What came from outside cannot move the cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _head(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(f"expected 64 hexadecimal digits, got {text!r}")
    return text
