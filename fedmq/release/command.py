"""The words of `fedmq release`, and what it prints."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fedmq.arguments import add_settings
from fedmq.logs import add_log_format, start_logging

if TYPE_CHECKING:
    from fedmq.release.installing import State

__all__ = ["add_parser"]

_EPILOG = """\
where releases are made:
  fedmq release key --out release.key                          once; the line that it prints goes into settings
  scripts/wheelhouse wheels --platform manylinux_2_28_aarch64 --python-version 3.11
  fedmq release make wheels --version 0.2.0 --key release.key --out /srv/releases

on a gateway, by a timer:
  fedmq release pull --config /etc/fedmq/release.toml
  fedmq release show

docs/releases.md tells the whole story.
"""

_MAX_KEY_BYTES = 4096

_MAKE = """\
examples:
  fedmq release make wheels --version 0.2.0 --key release.key --out /srv/releases
  fedmq release make wheels-aarch64 wheels-x86_64 --version 0.2.0 --key release.key --out /srv/releases
  fedmq release make wheels --version 0.2.0-2 --key release.key --out /srv/releases      same fedmq, other wheels
  fedmq release make wheels-old --version 0.1.0 --key release.key --out /srv/releases    back, on purpose

The same again gives the index new dates: do so before it expires. Serve the folder with any HTTPS server.
"""

_PULL = """\
examples:
  fedmq release pull --example > /etc/fedmq/release.toml
  fedmq release pull --config /etc/fedmq/release.toml --now
  fedmq release pull --config /etc/fedmq/release.toml --now --again     also a release that failed here

Exit status: 0 where the release is current, or nothing is to be done; 1 with one line where it is not believed, not
reached, or was taken back.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    release = commands.add_parser(
        "release",
        help="upgrade gateways that nobody can reach: make signed releases, pull them",
        description="Gateways behind NAT fetch signed releases by themselves, try them, and go back where one fails.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = release.add_subparsers(dest="verb", required=True, metavar="VERB")

    key = verbs.add_parser(
        "key",
        help="make a key to sign releases with, and print its public part",
        description="Makes an Ed25519 key. Its file is for whoever makes releases, and for nobody else: who has it"
        " decides what runs on every gateway. What is printed goes into their settings.",
    )
    key.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to; it must not be there yet")
    key.set_defaults(run=_key)

    make = verbs.add_parser(
        "make",
        help="put wheelhouses into a folder to serve, with a signed index",
        description="Puts the files of wheelhouses, as scripts/wheelhouse fills them, into DIR, and signs the index.",
        epilog=_MAKE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    make.add_argument("wheelhouse", type=Path, nargs="+", metavar="WHEELHOUSE", help="one for each kind of machine")
    make.add_argument("--version", required=True, metavar="V", help="of fedmq in it, or that with -LABEL")
    make.add_argument("--key", type=Path, required=True, metavar="FILE", help="as `fedmq release key` made it")
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder that is served")
    make.add_argument(
        "--platform",
        action="append",
        default=[],
        metavar="TAG",
        help="what the wheelhouse is for, such as aarch64-python3.11, or any; may be given several times (default: what"
        " the names of its wheels say)",
    )
    make.add_argument("--channel", default="stable", metavar="NAME", help="of the folder (default: stable)")
    make.add_argument("--days", type=_days, default=90, metavar="N", help="until the index expires (default: 90)")
    make.set_defaults(run=_make)

    pull = verbs.add_parser(
        "pull",
        help="fetch the release, install it beside the others, switch, and go back where it fails",
        description="Fetches the index and what is missing, checks signature and hashes, installs the release beside"
        " the others, switches to it, and looks whether the gateway is welcomed. Else the one before comes back.",
        epilog=_PULL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(pull, "release.toml", "channel=beta")
    add_log_format(pull)
    pull.add_argument("--check", action="store_true", help="only read the settings, say what is wrong, and end")
    pull.add_argument("--now", action="store_true", help="do not wait a random time first")
    pull.add_argument("--again", action="store_true", help="try a release that failed here once more")
    pull.add_argument("--example", action="store_true", help="print a settings file with every key, and end")
    pull.set_defaults(run=_pull)

    show = verbs.add_parser(
        "show",
        help="what is installed, which is current, what the last pull came to",
        description="Releases on this machine, which is current, what failed here, and what the last pull came to.",
    )
    show.add_argument(
        "--root", type=Path, default=Path("/opt/fedmq"), metavar="DIR", help="the setting root (default: /opt/fedmq)"
    )
    show.add_argument("--json", action="store_true", help="print JSON instead of lines")
    show.set_defaults(run=_show)


def _days(text: str) -> int:
    days = int(text) if text.isdecimal() else 0
    if not 1 <= days <= 3650:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 3650, got {text}")
    return days


def _key(arguments: argparse.Namespace) -> None:
    from fedmq_protocol.signing import key_to_pem, public_bytes

    from fedmq.ca import certificates, folder
    from fedmq.release.index import ReleaseError, key_to_text

    if arguments.out.exists():
        raise ReleaseError(f"{arguments.out} is there already: what gateways believe would be lost with it")
    key = certificates.new_signing_key()
    folder.put(arguments.out, key_to_pem(key), folder.SECRET)
    print(f'release_key = "{key_to_text(public_bytes(key))}"')


def _make(arguments: argparse.Namespace) -> None:
    from fedmq_protocol.secrets import read_secret

    from fedmq.release.index import read_key
    from fedmq.release.making import make

    index = make(
        arguments.wheelhouse,
        version=arguments.version,
        key=read_key(read_secret(arguments.key, _MAX_KEY_BYTES), str(arguments.key)),
        out=arguments.out,
        platforms=arguments.platform,
        channel=arguments.channel,
        days=arguments.days,
        now=time.time(),
    )
    platforms = ", ".join(platform for build in index.builds for platform in build.platforms)
    print(
        f"release {index.version} of channel {index.channel} for {platforms} is in {arguments.out}: serial"
        f" {index.serial}, good until {_day(index.expires)}"
    )


def _pull(arguments: argparse.Namespace) -> None:
    from fedmq_protocol.settings import document, load

    from fedmq.release.settings import ReleaseSettings

    if arguments.example:
        print(document(ReleaseSettings), end="")
        return
    settings = load(ReleaseSettings, arguments.config, arguments.overrides)
    if arguments.check:
        return
    start_logging("info", arguments.log_format)
    from fedmq.programs import crash_point
    from fedmq.release.pulling import CRASH_POINTS, Pull, World

    os.umask(0o022)
    world = World(crash_point=crash_point(CRASH_POINTS), runs_from=Path(sys.prefix))
    print(Pull(settings, world).run(now=arguments.now, again=arguments.again))


def _show(arguments: argparse.Namespace) -> None:
    import msgspec

    from fedmq.release.installing import Releases

    releases = Releases(root=arguments.root, python=Path(sys.executable), seconds=60.0)
    state = releases.state()
    if arguments.json:
        shown = {
            "current": releases.current,
            "previous": releases.previous,
            "installed": [{"version": version, "whole": whole} for version, whole in releases.installed()],
            "state": state,
        }
        print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
        return
    for version, whole in releases.installed():
        marks = [name for name in ("current", "previous") if getattr(releases, name) == version]
        print(f"{version:<20} {', '.join(marks) if whole else 'cut short: the next pull makes it anew'}".rstrip())
    if releases.current is None:
        print(f"nothing is current in {arguments.root}")
    for line in _said(state):
        print(line)


def _said(state: State) -> list[str]:
    from fedmq.release.pulling import TRIES

    lines = []
    if state.trial is not None:
        lines.append(f"on trial: {state.trial.version}, after {state.trial.before}; the next pull goes on with it")
    for version, bad in state.bad.items():
        then = (
            "not tried again"
            if bad.given_up
            else f"tried {bad.tries} of {TRIES} times, and again once the one before works"
        )
        lines.append(f"failed: {version} on {_day(bad.at)}, {then}: {bad.why}")
    if state.checked_at:
        ended = "failed" if state.failed else "went well"
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(state.checked_at))
        lines.append(f"last pull {at} UTC, {ended}, serial {state.serial}: {state.outcome}")
    else:
        lines.append("no pull yet")
    return lines


def _day(unix: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(unix))
