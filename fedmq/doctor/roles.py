"""Which checks a gateway, a coordinator and a broker need, in the order in which they build on one another.

Decides what may be tried. A gateway or coordinator that runs is not disturbed: with an identity (user name or
certificate) a second connection would push out the first, so then the way is followed up to TLS, which nobody notices,
and no further. Without an identity everything is tried, under a client id of its own.
"""

from __future__ import annotations

import itertools
import os
import pwd
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedmq_protocol.identity import CA_CERTIFICATE, CERTIFICATE, CERTIFICATE_KEY, REVOKED
from fedmq_protocol.settings import ConnectionSettings, SettingsError, load

from fedmq.doctor.certificates import check_certificate, check_names, check_revoked, read_certificates
from fedmq.doctor.clock import check_clock
from fedmq.doctor.files import can_tell, check_public, check_secret, check_state, is_open
from fedmq.doctor.findings import Finding, failed, ok, unknown, warned
from fedmq.doctor.identity import check_folder, kind_of
from fedmq.doctor.network import (
    Role,
    check_reachable,
    connections_to,
    is_loopback,
    judge,
    listeners,
    peer_certificate,
    probes,
    refuses_strangers,
    try_mqtt,
)

if TYPE_CHECKING:
    from fedmq_broker_config.settings import BrokerTable

__all__ = ["check_broker", "check_coordinator", "check_gateway"]

OLDEST_MOSQUITTO = (2, 0, 11)


def check_gateway(
    config: Path | None, overrides: Sequence[str], *, identity: Path | None, offline: bool, now: datetime
) -> Iterator[Finding]:
    from fedmq_edge_node.settings import GatewaySettings

    try:
        settings = load(GatewaySettings, config, overrides)
    except SettingsError as error:
        yield _no_settings(error, "fedmq gateway --example prints a right one")
        return
    yield from _settings_file(config)
    if settings.data_dir is not None:
        yield _readable("recordings", settings.data_dir)
    elif settings.bridge.store is not None:
        yield _readable("bridge's store", settings.bridge.store)
    if settings.watch_state is not None:
        yield _watchs_book(settings.watch_state)
    memory = settings.state_dir / "gateway.sqlite"
    yield from check_state("state", settings.state_dir)
    yield from check_clock(now, [memory, memory.with_name("gateway.sqlite-wal")])
    running = is_open(memory)
    yield from _check_connection(
        "gateway", settings.connection, settings.name, identity,
        running=running, who=f"a process has {memory} open",
        offline=offline, now=now,
    )  # fmt: skip


def check_coordinator(
    config: Path | None, overrides: Sequence[str], *, identity: Path | None, offline: bool, now: datetime
) -> Iterator[Finding]:
    from fedmq_coordinator import folder

    from fedmq.programs import ledger_path, load_coordinator

    try:
        settings = load_coordinator(config, overrides)
    except ValueError as error:
        # Also of a bundle that is none: it is part of the settings.
        yield _no_settings(error, "fedmq coordinator --example prints a right one")
        return
    yield from _settings_file(config)
    if settings.test_data is not None:
        yield _readable("test data", settings.test_data)
    lock = settings.state_dir / "lock"
    revoked, own = settings.revoked_file, identity or settings.connection.identity_dir
    if own is not None:
        yield from _coordinators_list(revoked or own / REVOKED, own, now)
    ledger = ledger_path(settings.state_dir)
    yield from check_state("state", settings.state_dir)
    yield from check_clock(now, [ledger, ledger.with_name(f"{ledger.name}-wal")])
    yield from _check_connection(
        "coordinator", settings.connection, settings.name, identity,
        running=folder.is_held(settings.state_dir) if can_tell(lock) else None, who=f"a process holds {lock}",
        offline=offline, now=now,
    )  # fmt: skip


def _coordinators_list(revoked: Path, folder: Path, now: datetime) -> Iterator[Finding]:
    """A coordinator goes by it for the cards of gateways; where there is none, nobody is revoked."""
    if os.path.isfile(revoked):
        yield from check_revoked("revoked certificates", revoked, folder / CA_CERTIFICATE, (), now)
    else:
        yield warned(
            "revoked certificates", f"{revoked} is not there: nobody is revoked", "name the broker's: revoked_file"
        )


def _check_connection(
    role: Role, settings: ConnectionSettings, name: str, identity: Path | None, *, running: bool | None, who: str,
    offline: bool, now: datetime,
) -> Iterator[Finding]:  # fmt: skip
    from fedmq.programs import connection_of

    folder = identity or settings.identity_dir
    if settings.password_file is not None:
        yield check_secret("password", settings.password_file)
    if folder is not None:
        named = {CA_CERTIFICATE: settings.ca_file, CERTIFICATE: settings.certificate_file}
        named[CERTIFICATE_KEY] = settings.key_file
        elsewhere = {file: path for file, path in named.items() if path is not None}
        yield from check_folder(folder, role, name=name, federation=settings.federation, now=now, elsewhere=elsewhere)
    elif settings.certificate_file is not None and settings.key_file is not None:
        yield check_public("certificate file", settings.certificate_file)
        yield check_secret("key file", settings.key_file)
        yield from check_certificate(
            "certificate", settings.certificate_file, settings.key_file, settings.ca_file, name=name, now=now
        )
    yield _running(role, running, who)
    try:
        connection = connection_of(settings, f"doctor-{os.urandom(4).hex()}")
        if identity is not None:
            connection = replace(
                connection, tls=True, ca_file=identity / CA_CERTIFICATE, cert_file=identity / CERTIFICATE,
                key_file=identity / CERTIFICATE_KEY,
            )  # fmt: skip
    except ValueError as error:
        yield failed("connection", str(error), "see to the files of [connection]")
        return
    if offline:
        yield unknown("broker", "was not tried: --offline")
        return
    identified = connection.username is not None or connection.cert_file is not None
    if not identified:
        told = "no user name and no certificate: whoever reaches the broker is everyone"
        yield warned("identity", told, "fit for a trial on one machine; else give every program a certificate")
    elif role == "gateway" and connection.cert_file is None and connection.username != name:
        yield failed(
            "identity",
            f"the user name is {connection.username!r}, the gateway is {name!r}: it may write under the former only",
            "give both the same name",
        )
    broken = False
    for finding in check_reachable(connection, now):
        broken = broken or finding.status.value == "FAIL"
        yield finding
    if broken:
        return
    if running:
        yield _connected(role, connection.host, connection.port)
    if identified and running is not False:
        yield unknown(
            "MQTT and ACL",
            f"were not tried: it would push out the {role} that {'runs' if running else 'may run'}",
            f"stop the {role} and try again" if running else f"run this as root or as the {role}'s user",
        )
        return
    forbidden, own, filters = probes(role, settings.federation, name, identified=identified)
    try:
        tried = try_mqtt(connection, publish=(forbidden, own), subscribe=filters)
    except ValueError as error:
        yield failed("MQTT", str(error), "see to the files of [connection]")
        return
    yield from judge(role, settings.federation, name, tried, identified=identified)


def _running(role: Role, running: bool | None, who: str) -> Finding:
    if running is None:
        return unknown(
            f"{role} at work", "cannot be found out as this user", f"run this as root or as the {role}'s user"
        )
    return ok(f"{role} at work", f"yes: {who}" if running else "no")


def _connected(role: Role, host: str, port: int) -> Finding:
    check = f"{role}'s connection"
    count = connections_to(host, port)
    if count is None:
        return unknown(check, "cannot be seen on this system")
    if count:
        return ok(check, f"{count} to {host}:{port} from this machine")
    return warned(check, f"none to {host}:{port} from this machine, though it runs", "see its log for the reason")


def _no_settings(error: ValueError, todo: str) -> Finding:
    return failed("settings", "; ".join(str(error).splitlines()), todo)


def _settings_file(config: Path | None) -> Iterator[Finding]:
    if config is not None:
        yield check_public("settings", config)
    else:
        yield ok("settings", "from the command line")


def _readable(check: str, path: Path) -> Finding:
    if not os.path.exists(path):
        return failed(check, f"{path} is not there", "correct the settings, or put it there")
    if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
        return failed(check, f"{path} cannot be read", "see to its owner; run this as the program's user")
    return ok(check, str(path))


def _watchs_book(folder: Path) -> Finding:
    """The gateway reads it, and writes there what people at the coordinator say."""
    book = folder / "alerts.sqlite"
    if not book.is_file():
        todo = "start the watch (fedmq watch run), or correct watch_state; the gateway looks again by itself"
        return warned("watch's book", f"{book} is not there: nothing is told of machines", todo)
    if not os.access(book, os.R_OK | os.W_OK) or not os.access(folder, os.W_OK | os.X_OK):
        todo = "let gateway and watch run as one user, or as two of a group that may write there"
        return failed("watch's book", f"{book} cannot be written", todo)
    return ok("watch's book", str(book))


# -- the broker -------------------------------------------------------------------------------------------------


def check_broker(
    config: Path | None, overrides: Sequence[str], *, directory: Path, identities: Sequence[Path], offline: bool,
    now: datetime, site: str | None = None,
) -> Iterator[Finding]:  # fmt: skip
    from fedmq_broker_config.settings import BrokerTable

    try:
        table = load(BrokerTable, config, overrides)
    except SettingsError as error:
        yield _no_settings(error, "fedmq broker --example prints a right one")
        return
    yield from _settings_file(config)
    yield from _rendered(table, directory, site)
    yield _mosquitto()
    if table.user is not None:
        yield _user(table.user)
    if table.persistence_dir is None:
        yield warned("persistence", "none: births, reports and sessions end with the broker", "set persistence_dir")
    else:
        yield from check_state("persistence", table.persistence_dir)
    yield from check_clock(now, [directory / "mosquitto.conf"])
    if table.access == "passwords" and table.password_file is not None:
        yield check_secret("passwords", table.password_file)
    if table.access == "certificates":
        yield from _broker_certificates(table, now)
    yield from _guard(table)
    for folder in identities:
        kind = kind_of(folder)
        yield from check_folder(folder, kind, name=None, federation=table.federation, now=now)
    yield _access(table)
    if offline:
        yield unknown("listener", "was not tried: --offline")
    else:
        yield from _listener(table)


def _rendered(table: BrokerTable, directory: Path, site: str | None) -> Iterator[Finding]:
    """What is on disk is what the settings come to: an ACL that somebody has edited by hand is found here."""
    from fedmq_broker_config.render import ACL_NAME, CONF_NAME, render_acl, render_conf, render_site_acl

    settings = table.broker()
    guarded, shut_out = settings.guarded, _shut_out(table)
    acl = directory.resolve() / ACL_NAME if guarded is None else guarded.acl_file
    if site is None:
        wanted = {directory / CONF_NAME: render_conf(settings, acl), acl: render_acl(settings, shut_out)}
    else:
        yield unknown(CONF_NAME, "of a site's broker was not compared: whom it bridges to is no setting")
        wanted = {acl: render_site_acl(settings, site, shut_out)}
    for path, text in wanted.items():
        try:
            there = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "is no text"
            yield failed(
                path.name,
                f"{path}: {said}",
                f"fedmq broker --config FILE --render {directory}, or name another --directory",
            )
            continue
        if there == text:
            yield ok(path.name, f"{path} is what the settings come to")
        else:
            yield failed(
                path.name,
                f"{path} is not what the settings come to: {_difference(there, text)}",
                f"fedmq broker --config FILE --render {directory}, and start Mosquitto anew; change broker.toml only",
            )
        yield check_public(f"{path.name}'s mode", path)


def _shut_out(table: BrokerTable) -> frozenset[str]:
    """Who is on the list in force: the guard takes their rights out of the ACL. Nobody, where it cannot be read."""
    guarded = table.broker().guarded
    if guarded is None or table.ca_file is None:
        return frozenset()
    from fedmq_broker_config.revocation import RevocationError, read_revocations

    try:
        return read_revocations(guarded.list_file.read_bytes(), table.ca_file.read_bytes(), None).shut_out
    except (RevocationError, OSError):
        return frozenset()  # told of where the list itself is looked at


def _guard(table: BrokerTable) -> Iterator[Finding]:
    """What makes a revocation come true: the guard, its folder, and the list that it has put in force."""
    guarded = table.broker().guarded
    if guarded is None:
        return
    folder = guarded.directory
    if not os.path.isdir(folder):
        yield failed("guard's folder", f"{folder} is not there", "fedmq broker --render makes it")
        return
    mode = folder.stat().st_mode & 0o777
    if mode & 0o077:
        yield failed("guard's folder", f"{folder}: others may enter it ({mode:04o})", f"chmod 700 {folder}")
    else:
        yield ok("guard's folder", f"{folder}, mode {mode:04o}")
    yield check_secret("guard's password", guarded.secret_file)
    try:
        same = guarded.list_file.read_bytes() == guarded.revoked_file.read_bytes()
    except OSError as error:
        yield failed("list in force", f"{error.filename}: {error.strerror}", "see to the list, and to the guard's log")
        return
    if same:
        yield ok("list in force", f"is that of {guarded.revoked_file}")
    else:
        yield failed(
            "list in force",
            f"is another one than {guarded.revoked_file}: that has not been taken up",
            "is `fedmq broker guard` running beside Mosquitto? Its log says what is wrong with the list",
        )
    if guards():
        yield ok("guard", "runs")
    else:
        yield warned(
            "guard",
            "is not seen among the processes of this machine: who is revoked stays connected",
            "run fedmq broker guard beside Mosquitto",
        )


def guards() -> int:
    """Processes of `fedmq broker guard` on this machine, as far as this user sees them."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile, or is not shown to us
        count += any(pair == (b"broker", b"guard") for pair in itertools.pairwise(words))
    return count


def _difference(there: str, wanted: str) -> str:
    pairs = zip([*there.splitlines(), "nothing more"], [*wanted.splitlines(), "nothing more"], strict=False)
    for number, (one, other) in enumerate(pairs, start=1):
        if one != other:
            return f"line {number} is {one!r}, expected {other!r}"
    return "its last line has another end"


def _mosquitto() -> Finding:
    from fedmq_broker_config.run import LocalBroker, find_mosquitto

    if find_mosquitto() is None:
        return warned("Mosquitto", "is not installed on this machine", "run this where the broker runs")
    version = LocalBroker().about.version
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not numbers:
        return unknown("Mosquitto", f"version {version}")
    if numbers < OLDEST_MOSQUITTO:
        least = ".".join(map(str, OLDEST_MOSQUITTO))
        return failed("Mosquitto", f"version {version}", f"install {least} or newer: the configuration is made for it")
    return ok("Mosquitto", f"version {version}")


def _user(name: str) -> Finding:
    try:
        return ok("user", f"{name}, number {pwd.getpwnam(name).pw_uid}")
    except KeyError:
        return failed("user", f"there is no user {name} on this machine", "make it, or correct user in the settings")


def _broker_certificates(table: BrokerTable, now: datetime) -> Iterator[Finding]:
    assert table.ca_file is not None  # the settings saw to it
    assert table.certificate_file is not None
    assert table.key_file is not None
    yield check_public("certificate file", table.certificate_file)
    yield check_secret("key file", table.key_file)
    yield from check_certificate(
        "certificate", table.certificate_file, table.key_file, table.ca_file, name=None, now=now
    )
    own = read_certificates(table.certificate_file)
    if not isinstance(own, str):
        yield check_names("certificate", own[0])
        yield from check_revoked("revoked certificates", table.revoked_file, table.ca_file, own[:1], now)


def _access(table: BrokerTable) -> Finding:
    if table.access == "anonymous":
        return warned(
            "access",
            f"anonymous on {table.address}: whoever is on this machine is everyone",
            'fit for a trial; else set access = "certificates"',
        )
    if table.access == "passwords" and not is_loopback(table.address):
        return warned(
            "access", f"passwords on {table.address} cross the network readable", 'set access = "certificates"'
        )
    return ok("access", f"{table.access} on {table.address}:{table.port}")


def _listener(table: BrokerTable) -> Iterator[Finding]:
    """Whether the broker that runs is the one of these settings."""
    found = listeners(table.port)
    if found is not None:
        if not found:
            yield failed("listener", f"nothing listens on port {table.port}", "start Mosquitto")
            return
        strange = found - {table.address}
        if strange:
            yield failed(
                "listener",
                f"port {table.port} is open on {', '.join(sorted(strange))}, the settings say {table.address}",
                "render the configuration, and start Mosquitto anew; see that no other listener is configured",
            )
        else:
            yield ok("listener", f"on {table.address}:{table.port}, as the settings say")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(table.address, table.address)  # noqa: S104 - what is compared
    try:
        socket.create_connection((host, table.port), 5.0).close()
    except OSError as error:
        yield failed("listener answers", f"{host}:{table.port}: {error}", "start Mosquitto; its log says why it ended")
        return
    yield ok("listener answers", f"{host}:{table.port}")
    if table.access == "certificates" and table.certificate_file is not None:
        yield _serves(table.certificate_file, host, table.port)
    if table.access != "anonymous":
        yield refuses_strangers(host, table.port, tls=table.access == "certificates")


def _serves(certificate: Path, host: str, port: int) -> Finding:
    own = read_certificates(certificate)
    served = peer_certificate(host, port)
    if isinstance(own, str) or served is None:
        return unknown("certificate in use", "no handshake came about, so it was not seen")
    if served != own[0]:
        return failed("certificate in use", f"the broker shows another one than {certificate}", "start Mosquitto anew")
    return ok("certificate in use", f"is that of {certificate}")
