"""`fedmq ca`, and `fedmq gateway enrol`, `renew` and `request`: the words of the command line, and what is printed.

Owns options, examples and tables. What is done, `authority`, `serving` and `enrolment` do; they are imported as a
command begins, for they load what most commands of fedmq do without.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fedmq.logs import add_log_format, start_logging

if TYPE_CHECKING:
    from fedmq.ca.authority import Authority, Request
    from fedmq.ca.records import Issued

__all__ = ["add_gateway_actions", "add_parser"]

_ABOUT = """\
Makes and keeps the identities of a federation: certificates for TLS, and the keys by which gateways and coordinator
believe each other whatever the broker does. Everything is in one folder (--dir), whose keys are the federation's: keep
it on a machine of few people, and copies of it. Keys on disk have no passphrase: the folder's disk should be encrypted.
"""

_EPILOG = """\
from nothing to a first gateway:

  fedmq ca init --federation plant --broker-host broker.plant.example
  fedmq ca serve --host ca.plant.example       while gateways are enrolled; in another window:
  fedmq ca token press-1                       and with what it prints, on the gateway:
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

_RENEW = """\
examples:
  fedmq ca renew press-1 --out press-1                       the same keys: client.crt and card are new
  fedmq ca renew press-1 --csr request.csr --agreement-key agreement.pub --out press-1
  fedmq ca renew broker --host broker.plant.example          other hosts for the broker; without, those it has

A gateway that reaches `fedmq ca serve` renews by itself: fedmq gateway renew.
"""

_REVOKE = """\
examples:
  fedmq ca revoke press-1 --reason key-compromise
  fedmq ca publish --to /etc/mosquitto/fedmq                 then the broker has to hear of it

Everything of the name that is in force is revoked, and its open tokens are withdrawn. The list is in DIR/revoked.crl.
"""

_LIST = """\
examples:
  fedmq ca list
  fedmq ca list --json | jq -r '.[] | select(.days_left < 30) | .name'
"""

_CARD = """\
examples:
  fedmq ca card press-1 --agreement-key agreement.pub --certificate press-1.crt --out card
  fedmq ca card press-1 --agreement-key agreement.pub --serial 3f21a4 --days 365 --out card

For plants whose certificates come from a company's CA: fedmq then makes the card alone, with the certificate's serial
number and end. A serial number of more than 63 bits does not fit a card, which then has one of its own; revoke such a
gateway both there and here.
"""

_ROTATE = """\
examples:
  fedmq ca rotate                                            new keys of the coordinator
  fedmq ca rotate --what root --root-key /media/safe/root.key
  fedmq ca rotate --what issuer                              all cards have to be renewed then

Give the new DIR/coordinator to the coordinator and restart it. Gateways follow by themselves, also those that were away
for several roots.
"""

_PUBLISH = """\
example:
  fedmq ca publish --to /etc/mosquitto/fedmq

Copies revoked.crl and revoked.names, each in one step, so that a broker that reads them meanwhile reads them whole.
"""

_ONE_TIME = """\
examples:
  fedmq ca token press-1                                     for one enrolment within 24 hours
  fedmq ca token press-1 --replace                           also while press-1 is in force: the old one is revoked

The token is printed once, and only its hash is kept. On the gateway:
  fedmq gateway enrol --ca https://HOST:8443 --token-file - --name press-1 --identity /etc/fedmq/identity
"""

_SERVE = """\
examples:
  fedmq ca serve --host ca.plant.example
  fedmq ca serve --host 10.0.0.5 --listen 10.0.0.5:8443 --days 180

It needs ca.key and issuer.key, and never root.key. Run it for as long as gateways are enrolled or renewed.
"""

_ENROL = """\
examples:
  fedmq gateway enrol --ca https://ca.plant.example:8443 --token-file - --name press-1 --identity /etc/fedmq/identity
  fedmq gateway enrol --ca https://10.0.0.5:8443 --token-file token --name press-1 --identity identity
"""

_GATEWAY_RENEW = """\
example, daily from a timer:
  fedmq gateway renew --ca https://ca.plant.example:8443 --identity /etc/fedmq/identity --if-days-left 30

The keys stay, and a gateway that runs takes the new certificate and card without a restart.
"""

_REQUEST = """\
example:
  fedmq gateway request --name press-1 --out /etc/fedmq/identity

Take request.csr and agreement.pub to the CA, and bring what is in press-1 then back into /etc/fedmq/identity:
  fedmq ca issue press-1 --csr request.csr --agreement-key agreement.pub --out press-1
"""

_DAYS = 365
_SOON_DAYS = 30
_ROOT_DAYS = 180


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

    renew = _verb(verbs, "renew", "a new certificate and card for a name in force or expired", _RENEW)
    _add_name(renew)
    _add_request(renew)
    _add_hosts(renew)
    _add_days(renew)
    renew.add_argument("--out", type=Path, metavar="FOLDER", help="where they go (default: in DIR)")
    renew.set_defaults(run=_renew)

    revoke = _verb(verbs, "revoke", "shut a name out: its certificates, cards and open tokens", _REVOKE)
    _add_name(revoke)
    revoke.add_argument(
        "--reason",
        choices=("unspecified", "key-compromise", "affiliation-changed", "cessation-of-operation"),
        default="unspecified",
        help="put into the list (default: unspecified)",
    )
    revoke.set_defaults(run=_revoke)

    listing = _verb(verbs, "list", "who there is, and until when", _LIST)
    listing.add_argument("--all", action="store_true", help="also what has expired or has a newer one of its name")
    listing.add_argument("--json", action="store_true", help="print JSON, of all, instead of a table")
    listing.set_defaults(run=_list)

    card = _verb(verbs, "card", "a card for a gateway whose certificate another CA has issued", _CARD)
    _add_name(card)
    card.add_argument(
        "--agreement-key", type=Path, required=True, metavar="FILE", help="its public agreement key (PEM)"
    )
    which = card.add_mutually_exclusive_group()
    which.add_argument(
        "--certificate", type=Path, metavar="FILE", help="its certificate: serial number and end are read"
    )
    which.add_argument("--serial", type=_serial, metavar="HEX", help="the certificate's serial number")
    _add_days(card)
    card.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the card goes")
    card.set_defaults(run=_card)

    rotate = _verb(verbs, "rotate", "go on to the next root, with new keys", _ROTATE)
    rotate.add_argument(
        "--what",
        action="append",
        choices=("coordinator", "root", "issuer"),
        help="whose keys are new; may be given several times (default: coordinator)",
    )
    rotate.add_argument("--root-key", type=Path, metavar="FILE", help="where root.key lies (default: in DIR)")
    _add_years(rotate, 10, "how long the new root holds")
    rotate.set_defaults(run=_rotate)

    publish = _verb(verbs, "publish", "copy the list of revoked certificates to where a broker reads it", _PUBLISH)
    publish.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a folder that is there")
    publish.set_defaults(run=_publish)

    token = _verb(verbs, "token", "a one-time token with which a gateway enrols itself", _ONE_TIME)
    _add_name(token)
    token.add_argument("--kind", choices=("gateway", "observer", "site"), default="gateway", help="default: gateway")
    token.add_argument("--hours", type=_whole(1, 24 * 30), default=24, metavar="N", help="how long (default: 24)")
    token.add_argument(
        "--replace", action="store_true", help="good also while the name is in force; what it has is revoked then"
    )
    token.set_defaults(run=_token)

    serve = _verb(verbs, "serve", "enrolment and renewal over HTTPS, until it is stopped (SIGTERM)", _SERVE)
    everywhere = ("0.0.0.0", 8443)  # noqa: S104 - for gateways elsewhere; what comes is bounded and checked
    serve.add_argument(
        "--listen", type=_listen, default=everywhere, metavar="ADDRESS:PORT", help="default: 0.0.0.0:8443"
    )
    serve.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME_OR_IP",
        help="how gateways reach it; may be given several times (default: this machine's name); localhost is added",
    )
    _add_days(serve)
    add_log_format(serve)
    serve.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help=argparse.SUPPRESS
    )
    serve.set_defaults(run=_serve)


def add_gateway_actions(gateway: argparse.ArgumentParser) -> None:
    """`fedmq gateway enrol`, `renew` and `request`, beside the gateway itself."""
    actions = gateway.add_subparsers(dest="action", metavar="[enrol | renew | request]")

    def action(name: str, about: str, epilog: str) -> argparse.ArgumentParser:
        return actions.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    enrol = action("enrol", "make keys here, and get certificate and card from the CA by a one-time token", _ENROL)
    _add_ca(enrol)
    enrol.add_argument(
        "--token-file", type=Path, required=True, metavar="FILE|-", help="file with the token; -: from the keyboard"
    )
    enrol.add_argument("--name", required=True, help="the gateway's name, as the token is for it")
    _add_identity(enrol)
    enrol.set_defaults(run=_enrol)

    renew = action("renew", "get the next certificate and card from the CA, for the same keys", _GATEWAY_RENEW)
    _add_ca(renew)
    _add_identity(renew)
    renew.add_argument(
        "--if-days-left",
        type=_whole(0, 3650),
        metavar="N",
        help="only if no more days than these are left, or the card is of an earlier issuer (default: always)",
    )
    renew.set_defaults(run=_gateway_renew)

    request = action("request", "make keys here, and files for a CA that is reached by hand", _REQUEST)
    request.add_argument("--name", required=True, help="the gateway's name")
    request.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="its identity folder to be")
    request.set_defaults(run=_gateway_request)


def _add_ca(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ca", required=True, metavar="URL", help="of `fedmq ca serve`: https://HOST:8443")


def _add_identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--identity", type=Path, required=True, metavar="FOLDER", help="the identity folder (connection.identity_dir)"
    )


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


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text!r}")
        return value

    return read


def _serial(text: str) -> int:
    try:
        value = int(text.replace(":", ""), 16)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a serial number in hexadecimal, got {text!r}")
    return value


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        colon = ""
    if not colon or not port.isdigit() or not port.isascii() or int(port[:6]) > 65_535:
        raise argparse.ArgumentTypeError(f"expected an IP address and a port such as 0.0.0.0:8443, got {text!r}")
    return host, int(port)


def _init(arguments: argparse.Namespace) -> None:
    from fedmq.ca.authority import Authority

    made = Authority.create(
        arguments.dir, federation=arguments.federation, hosts=arguments.broker_host, years=arguments.years
    )
    where = made.directory
    ends = _day(made.chain().newest.expires)
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


def _renew(arguments: argparse.Namespace) -> None:
    where = _authority(arguments).renew(
        arguments.name,
        days=arguments.days,
        hosts=arguments.host,
        request=_request(arguments),
        out=arguments.out,
    )
    print(f"{where}: {arguments.name} renewed, {_names(where)}")


def _revoke(arguments: argparse.Namespace) -> None:
    authority = _authority(arguments)
    held = authority.revoke(arguments.name, arguments.reason)
    serials = ", ".join(one.serial for one in held) or "no certificate, open tokens alone"
    print(f"{arguments.name} is revoked: {serials}")
    print(f"The broker hears of it by the list: `fedmq ca publish --dir {arguments.dir} --to FOLDER`")


def _publish(arguments: argparse.Namespace) -> None:
    written = _authority(arguments).publish(arguments.to)
    print(f"wrote {' and '.join(map(str, written))}")


def _card(arguments: argparse.Namespace) -> None:
    from fedmq.ca.certificates import SERIAL_BITS, read_certificate
    from fedmq.ca.folder import put, read

    authority = _authority(arguments)
    serial, expires = arguments.serial, authority.now() + arguments.days * 86_400
    if arguments.certificate is not None:
        there = read_certificate(read(arguments.certificate), str(arguments.certificate), any_key=True)
        if there.name != arguments.name:
            raise ValueError(f"{arguments.certificate}: expected a certificate of {arguments.name}, got {there.name!r}")
        serial, expires = there.serial, there.expires.timestamp()
    if serial is not None and serial.bit_length() > SERIAL_BITS:
        print(
            f"The serial number {serial:x} has more than {SERIAL_BITS} bits: the card has one of its own. Revoke"
            f" {arguments.name} at the other CA and with `fedmq ca revoke {arguments.name}`.",
            file=sys.stderr,
        )
        serial = None
    where = str(arguments.agreement_key)
    card = authority.card(arguments.name, read(arguments.agreement_key), where=where, serial=serial, expires=expires)
    put(arguments.out, card)
    print(f"wrote {arguments.out}: the card of {arguments.name} until {_day(expires)}")


def _rotate(arguments: argparse.Namespace) -> None:
    what = arguments.what or ["coordinator"]
    done = _authority(arguments).rotate(what, years=arguments.years, root_key=arguments.root_key)
    own = arguments.dir / "coordinator"
    print(
        f"root {done.now.version} of {done.now.federation}, until {_day(done.now.expires)}, with new {', '.join(what)}"
    )
    print(f"  Give {own} to the coordinator (trust and its keys) and restart it: gateways follow by themselves.")
    if "root" in what:
        where = arguments.root_key or arguments.dir / "root.key"
        print(f"  {where} is the new root's key: the old one signs nothing any more. Copy it to the safe.")
    if "issuer" in what:
        print("  All cards have to be renewed: `fedmq gateway renew` on gateways that reach `fedmq ca serve`, else")
        print("  `fedmq ca renew NAME` for each. Until then the coordinator hears none of those gateways.")


def _token(arguments: argparse.Namespace) -> None:
    text = _authority(arguments).token(arguments.name, arguments.kind, hours=arguments.hours, replace=arguments.replace)
    print(f"for one enrolment of {arguments.name}, within {arguments.hours} hours:", file=sys.stderr)
    print(text)


def _serve(arguments: argparse.Namespace) -> None:
    start_logging(arguments.log_level, arguments.log_format)
    from fedmq.ca.authority import Authority
    from fedmq.ca.serving import Server

    hosts = arguments.host or [socket.gethostname()]
    server = Server(
        lambda asker: Authority(arguments.dir, asker=asker), arguments.listen, hosts=hosts, days=arguments.days
    )

    def stop(number: int, frame: FrameType | None) -> None:
        server.stopping = True
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.run()


# -- the list -------------------------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> None:
    authority = _authority(arguments)
    issued, now = authority.issued(), authority.now()
    last = {one.name: one.serial for one in issued}
    lines = [_line(one, now, newest=last[one.name] == one.serial) for one in issued]
    root = authority.chain().newest
    if arguments.json:
        print(json.dumps(lines, indent=2))
        return
    shown = [line for line in lines if arguments.all or line["newest"] or line["state"] == "revoked"]
    headings = ("name", "kind", "serial", "until", "state")
    rows = [headings, *((line["name"], line["kind"], line["serial"], line["until"], _said(line)) for line in shown)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(headings))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    soon = "; THE NEXT ONE IS DUE: fedmq ca rotate" if root.expires - now < _ROOT_DAYS * 86_400 else ""
    print(f"root {root.version} of {root.federation}, until {_day(root.expires)}{soon}")


def _line(one: Issued, now: float, *, newest: bool) -> dict[str, Any]:
    state = "revoked" if one.revoked is not None else "expired" if now >= one.expires else "in force"
    return {
        "name": one.name,
        "kind": one.kind,
        "serial": one.serial,
        "until": _day(one.expires),
        "expires": one.expires,
        "days_left": one.days_left(now),
        "state": state,
        "reason": one.reason,
        "card_alone": one.card_alone,
        "newest": newest,
    }


def _said(line: dict[str, Any]) -> str:
    if line["state"] == "revoked":
        return f"revoked ({line['reason']})"
    if line["state"] == "expired":
        return "EXPIRED" if line["newest"] else "expired, has a newer one"
    if not line["newest"]:
        return "in force, has a newer one"
    return f"EXPIRES IN {line['days_left']} DAYS" if line["days_left"] < _SOON_DAYS else "in force"


def _day(unix: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(unix))


# -- on the gateway -------------------------------------------------------------------------------------------------


def _enrol(arguments: argparse.Namespace) -> None:
    from fedmq.ca.enrolment import enrol

    print(enrol(arguments.ca, _token_of(arguments.token_file), arguments.name, arguments.identity))
    print(
        f"In gateway.toml: name = {arguments.name!r}, and under [connection] identity_dir = {str(arguments.identity)!r}"
    )


def _token_of(path: Path) -> str:
    from fedmq.ca.folder import read
    from fedmq.ca.tokens import MAX_TEXT

    if path == Path("-"):
        if sys.stdin.isatty():
            print("token: ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline(MAX_TEXT + 1)
    return read(path)[: MAX_TEXT + 1].decode("ascii", "replace")


def _gateway_renew(arguments: argparse.Namespace) -> None:
    from fedmq.ca.enrolment import renew

    print(renew(arguments.ca, arguments.identity, if_days_left=arguments.if_days_left))


def _gateway_request(arguments: argparse.Namespace) -> None:
    from fedmq.ca.enrolment import request

    written = request(arguments.name, arguments.out)
    print(f"for the CA: {' and '.join(map(str, written))}; the keys in {arguments.out} stay here")
