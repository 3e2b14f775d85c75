"""`fedmq ca`, and `fedmq gateway enrol`, `renew` and `request`: the words of the command line, and what is printed.

Owns options, examples and tables. What is done, `authority`, `serving` and `enrolment` do; they are imported as a
command begins, for they load what most commands of fedmq do without.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmq.ca.authority import Authority, Request

__all__ = ["add_parser"]

_ABOUT = """\
Makes and keeps the identities of a federation: certificates for TLS, and the keys by which gateways and coordinator
believe each other whatever the broker does. Everything is in one folder (--dir), whose keys are the federation's: keep
it on a machine of few people, and copies of it. Keys on disk have no passphrase: the folder's disk should be encrypted.
"""

_EPILOG = """\
from nothing to a first gateway:
  fedmq ca init --federation plant --broker-host broker.plant.example
  fedmq ca token press-1                       and on the gateway:
  fedmq gateway enrol --ca https://ca.plant.example:8443 --token-file - --name press-1 --identity /etc/fedmq/identity

docs/identities.md tells which key lies where, and what to do when one is stolen.
"""

_INIT = """\
examples:
  fedmq ca init --federation plant --broker-host broker.plant.example --broker-host 10.0.0.5
  fedmq ca init --federation plant --dir /srv/fedmq-ca --years 15
"""

_ISSUE = """\
examples:
  fedmq ca issue press-1 --out press-1                       keys, certificate and card of a gateway
  fedmq ca issue press-1 --csr request.csr --agreement-key agreement.pub --out press-1
                                                             for keys that stay on the gateway
  fedmq ca issue north-broker --kind broker --host 10.0.7.2 --out north-broker
  fedmq ca issue dashboards --kind observer --out dashboards

Without --out an identity is in DIR/identities/NAME.
"""

_DAYS = 365
_SOON_DAYS = 30


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ca = commands.add_parser(
        "ca",
        help="make, renew and revoke the identities of gateways, coordinator and broker",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = ca.add_subparsers(dest="verb", required=True, metavar="VERB")
    init = _verb(verbs, "init", "make a CA, and the identities of broker and coordinator", _INIT)
    init.add_argument("--federation", required=True, metavar="NAME", help="its name, as in connection.federation")
    init.add_argument(
        "--broker-host",
        action="append",
        default=[],
        metavar="NAME_OR_IP",
        help="host name or address by which programs reach the broker; may be given several times; localhost and"
        " 127.0.0.1 are added",
    )
    _add_years(init, 10, "how long the CA's certificate and the first root hold")
    init.set_defaults(run=_init)

    issue = _verb(verbs, "issue", "an identity for a name that has none", _ISSUE)
    _add_name(issue)
    issue.add_argument(
        "--kind",
        choices=("gateway", "observer", "site", "broker", "coordinator"),
        default="gateway",
        help="gateway; observer: reads all, writes nothing; site: a broker that forwards for its gateways; broker;"
        " coordinator (default: gateway)",
    )
    _add_request(issue)
    _add_hosts(issue)
    _add_days(issue)
    issue.add_argument("--out", type=Path, metavar="FOLDER", help="where it goes, keys too (default: in DIR)")
    issue.set_defaults(run=_issue)


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str, epilog: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, default=Path("ca"), metavar="DIR", help="the CA's folder (default: ./ca)")
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the gateway or whoever it is, as at the broker and in topics")


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--csr", type=Path, metavar="FILE", help="signing request (PEM) of keys that were made elsewhere"
    )
    parser.add_argument(
        "--agreement-key", type=Path, metavar="FILE", help="with --csr of a gateway: its public agreement key (PEM)"
    )


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME_OR_IP",
        help="of a broker: how it is reached; may be given several times",
    )


def _add_days(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--days", type=_whole(1, 3650), default=_DAYS, metavar="N", help=f"how long it holds (default: {_DAYS})"
    )


def _add_years(parser: argparse.ArgumentParser, default: int, about: str) -> None:
    parser.add_argument(
        "--years", type=_whole(1, 30), default=default, metavar="N", help=f"{about} (default: {default})"
    )


class _Whole:
    """A type for argparse: a whole number from `low` to `high`."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = self._low - 1
        if not self._low <= value <= self._high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {self._low} to {self._high}, got {text!r}")
        return value


_whole = _Whole


def _init(arguments: argparse.Namespace) -> None:
    from fedmq.ca.authority import Authority

    made = Authority.create(
        arguments.dir, federation=arguments.federation, hosts=arguments.broker_host, years=arguments.years
    )
    where = made.directory
    ends = time.strftime("%Y-%m-%d", time.gmtime(made.chain().newest.expires))
    print(f"{where} is the CA of federation {arguments.federation} until {ends}. To go on:")
    print(f"  {where}/broker       to the broker (ca_file, certificate_file, key_file, revoked_file of broker.toml)")
    print(f"  {where}/coordinator  to the coordinator (its connection.identity_dir)")
    print(f"  {where}/root.key     to a safe: it is needed by `fedmq ca rotate` alone (--root-key)")
    print(f"  fedmq ca issue NAME --dir {where} --out FOLDER, or fedmq ca token NAME --dir {where}, for each gateway")
    if not arguments.broker_host:
        print(
            "The broker's certificate is for this machine alone: name its hosts with `fedmq ca renew broker --host …`."
        )


def _authority(arguments: argparse.Namespace) -> Authority:
    from fedmq.ca.authority import Authority

    return Authority(arguments.dir)


def _request(arguments: argparse.Namespace) -> Request | None:
    from fedmq.ca.authority import Request
    from fedmq.ca.folder import read

    if arguments.csr is None:
        if arguments.agreement_key is not None:
            raise ValueError("--agreement-key goes with --csr: both are made by `fedmq gateway request`")
        return None
    return Request(
        csr=read(arguments.csr),
        agreement=None if arguments.agreement_key is None else read(arguments.agreement_key),
        where=str(arguments.csr),
        agreement_where=str(arguments.agreement_key),
    )


def _issue(arguments: argparse.Namespace) -> None:
    if arguments.kind == "broker" and not arguments.host:
        raise ValueError("a broker's certificate needs --host: the name or address by which programs reach it")
    where = _authority(arguments).issue(
        arguments.name,
        arguments.kind,
        days=arguments.days,
        hosts=arguments.host,
        request=_request(arguments),
        out=arguments.out,
    )
    print(f"{where}: {arguments.kind} {arguments.name}, {_names(where)}")


def _names(where: Path) -> str:
    return ", ".join(sorted(path.name for path in where.iterdir() if path.is_file()))
