"""The broker's configuration as text: topic table and settings in, mosquitto.conf and ACL out. Pure.

Owns what a broker of a federation must be told: who may read and write which topic, and the bounds that keep one
client from taking the broker's memory. Refuses to know files and processes (see `run`).

The ACL names channels one by one, as the table does, so that nobody leaves retained messages under invented topics. A
gateway is its user name (`%u`), which is its certificate's CN where certificates are used; the client id (`%c`)
is whatever a client says and gives no right. What is rendered works on Mosquitto 2.0.11 and newer.

`pattern` lines hold for every user. Mosquitto looks at a user's own lines first, and at `deny` before all others: so
whoever is no gateway is denied the topics that the patterns would give a gateway of that name. A user name with `+` or
`#` gets nothing of a pattern, which Mosquitto sees to itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmq_protocol.topics import ROOT, TABLE, Direction, TopicSpec, check_name

__all__ = [
    "ACL_NAME",
    "CONF_NAME",
    "GUARD_USER",
    "Anonymous",
    "BrokerSettings",
    "Certificates",
    "Guarded",
    "Passwords",
    "Site",
    "Upstream",
    "example_files",
    "render_acl",
    "render_conf",
    "render_site_acl",
    "render_site_conf",
]

CONF_NAME = "mosquitto.conf"
ACL_NAME = "acl"

GUARD_USER = "fedmq-guard"
"""Who the guard is on its own listener. It may connect, and neither read nor write."""

_SOCKET_PATH_BYTES = 107
"""What Linux has room for in the address of a Unix socket."""


@dataclass(frozen=True)
class Anonymous:
    """Nobody says who they are. For one machine, where whoever can reach the broker could also read its files."""


@dataclass(frozen=True)
class Passwords:
    """User names and passwords, in a file that `mosquitto_passwd` writes. Without TLS they cross the net readable."""

    file: Path


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """What revocation takes: the list that somebody puts here, and the folder that Mosquitto and the guard share.

    Mosquitto reads its own copy of the list, which the guard replaces once it has checked the new one: a list that
    Mosquitto cannot read leaves it, at its next reload, with none at all.
    """

    revoked_file: Path
    """Revoked certificates, PEM, as the CA signed them."""
    directory: Path

    @property
    def list_file(self) -> Path:
        """The list as it was checked: what Mosquitto reads."""
        return self.directory / "revoked.crl"

    @property
    def acl_file(self) -> Path:
        return self.directory / ACL_NAME

    @property
    def socket(self) -> Path:
        """Where the guard connects in the name of a client that it cuts off."""
        return self.directory / "kick.sock"

    @property
    def password_file(self) -> Path:
        """The guard's password as Mosquitto keeps it, hashed."""
        return self.directory / "passwords"

    @property
    def secret_file(self) -> Path:
        """The guard's password as the guard says it."""
        return self.directory / "secret"


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """TLS, both sides with certificates: the CN of a client's certificate is its user name."""

    ca_file: Path
    cert_file: Path
    key_file: Path
    guarded: Guarded | None = None
    """None: no certificate can be revoked."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A broker on site that forwards for its gateways as one user, and may carry those and no others."""

    user: str
    gateways: tuple[str, ...]

    def __post_init__(self) -> None:
        check_name(self.user, "site")
        for gateway in self.gateways:
            check_name(gateway, f"gateway of site {self.user}")


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The federation's broker as the broker of a site reaches it, with the certificate of that site."""

    site: str
    host: str
    port: int
    ca_file: Path
    cert_file: Path
    key_file: Path

    def __post_init__(self) -> None:
        _word("upstream", self.host)
        _check_range("upstream port", self.port, 1, 65_535)


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """What a broker of one federation is told. Raises ValueError that names the field."""

    federation: str = "plant"
    coordinator: str = "coordinator"
    """User name of the coordinator."""
    sites: tuple[Site, ...] = ()
    observers: tuple[str, ...] = ()
    """User names that read every topic of the table and write none."""
    address: str = "127.0.0.1"
    port: int = 1883
    access: Anonymous | Passwords | Certificates = Anonymous()
    persistence_dir: Path | None = None
    """Where retained messages and kept sessions survive a restart; None keeps them in memory only."""
    autosave_seconds: int = 1
    """How often they are written. A broker that is killed loses what it acknowledged since then."""
    max_packet_bytes: int = 262_144
    max_queued_messages: int = 10_000
    """Kept for a client that is away or slow, then the newest are dropped. A whole fleet may answer at once."""
    max_queued_bytes: int = 16 << 20
    """The same in bytes."""
    max_inflight: int = 20
    max_connections: int = 10_000
    """Each takes a file descriptor of Mosquitto's, those that are still in their handshake, too."""
    max_keepalive_seconds: int = 3600
    """A client that is gone is noticed after one and a half times its keepalive."""
    session_hours: int = 1
    """When a kept session is forgotten, where its client set no time itself (MQTT 3.1.1)."""
    log: Literal["stdout", "syslog"] | Path = "stdout"
    user: str | None = None
    """System user that Mosquitto changes to when root starts it; None leaves that to Mosquitto (`mosquitto`)."""

    def __post_init__(self) -> None:
        check_name(self.federation, "federation")
        check_name(self.coordinator, "coordinator")
        _check_range("port", self.port, 1, 65_535)
        _check_range("autosave_seconds", self.autosave_seconds, 1, 86_400)
        _check_range("max_packet_bytes", self.max_packet_bytes, largest_packet_bytes(), 268_435_455)
        _check_range("max_queued_messages", self.max_queued_messages, 1, 1 << 31)
        _check_range("max_queued_bytes", self.max_queued_bytes, self.max_packet_bytes, 1 << 40)
        _check_range("max_inflight", self.max_inflight, 1, 65_535)
        _check_range("max_connections", self.max_connections, 1, 1_000_000)
        _check_range("max_keepalive_seconds", self.max_keepalive_seconds, 10, 65_535)
        _check_range("session_hours", self.session_hours, 1, 24 * 365)
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            raise ValueError(f"address: expected an IP address to listen on, got {self.address!r}") from None
        if isinstance(self.access, Anonymous) and not address.is_loopback:
            raise ValueError(
                f"address {self.address}: without passwords or certificates anyone who reaches the broker is every "
                "gateway; listen on 127.0.0.1, or set access"
            )
        if isinstance(self.access, Certificates) and self.access.guarded is not None:
            size = len(str(self.access.guarded.socket).encode())
            if size > _SOCKET_PATH_BYTES:
                raise ValueError(
                    f"guard_dir: a Unix socket there would have a path of {size} bytes, and "
                    f"{_SOCKET_PATH_BYTES} is the most; choose a folder with a shorter path"
                )
        owners = {self.coordinator: "the coordinator", GUARD_USER: "the guard"}
        if self.coordinator == GUARD_USER:
            raise ValueError(f"coordinator: the name {GUARD_USER!r} is already that of the guard")
        for observer in self.observers:
            check_name(observer, "observers")
            if observer in owners:
                raise ValueError(f"observers: the name {observer!r} is already that of {owners[observer]}")
            owners[observer] = "an observer"
        for site in self.sites:
            for name, what in ((site.user, f"site {site.user}"), *((g, f"site {site.user}") for g in site.gateways)):
                if name in owners:
                    raise ValueError(f"sites: the name {name!r} of {what} is already that of {owners[name]}")
                owners[name] = what
        if isinstance(self.access, Anonymous) and self.sites:
            raise ValueError("sites: a bridge is a user of its own, which needs passwords or certificates")
        if isinstance(self.access, Anonymous) and self.observers:
            raise ValueError("observers: an observer is a user of its own, which needs passwords or certificates")

    @property
    def guarded(self) -> Guarded | None:
        return self.access.guarded if isinstance(self.access, Certificates) else None

    def site(self, name: str) -> Site:
        """The site of that name; raises ValueError where there is none."""
        for site in self.sites:
            if site.user == name:
                return site
        known = ", ".join(site.user for site in self.sites) or "none"
        raise ValueError(f"sites: no site {name!r}; those of the settings are: {known}")


def largest_packet_bytes() -> int:
    """A packet that holds the largest message of the topic table: payload, topic and header."""
    return max(row.max_bytes for row in TABLE) + 512


def render_conf(settings: BrokerSettings, acl_file: Path) -> str:
    """The text of mosquitto.conf. With a guard, the ACL is the guard's, and `acl_file` is not looked at."""
    head = [f"# Mosquitto for federation {settings.federation}, written by `fedmq broker --render`: change it there."]
    return "\n".join(head + _conf_lines(settings, acl_file)) + "\n"


def render_site_conf(settings: BrokerSettings, upstream: Upstream, acl_file: Path) -> str:
    """The text of mosquitto.conf for the broker of a site: it serves the site's gateways, and carries for them.

    `settings` are the site's broker's own: where it listens, which certificates it has. Raises ValueError for a site
    that they do not name.
    """
    site = settings.site(upstream.site)
    lines = [
        f"# Mosquitto of site {site.user} of federation {settings.federation}, written by `fedmq broker site`.",
        *_conf_lines(settings, acl_file),
        "",
        "# The bridge to the federation's broker, which knows it by its certificate and lets it carry this much.",
        "# One topic at a time, each in one direction: there is no way round in a circle, and nothing else crosses.",
        f"connection {site.user}",
        f"address {upstream.host}:{upstream.port}",
        # 3.1.1: a message that Mosquitto 2.0 carries by MQTT 5 loses its properties on the way anyway.
        "bridge_protocol_version mqttv311",
        f"remote_clientid {site.user}",
        "cleansession false",
        "try_private true",
        "notifications false",
        "bridge_attempt_unsubscribe false",
        "keepalive_interval 60",
        "restart_timeout 1 60",
        f"bridge_cafile {_path(upstream.ca_file)}",
        f"bridge_certfile {_path(upstream.cert_file)}",
        f"bridge_keyfile {_path(upstream.key_file)}",
    ]
    for gateway in site.gateways:
        for row in TABLE:
            if row.direction is Direction.UP:
                lines += [f"topic {_text(settings.federation, row, gateway)} out {row.qos}"]
            elif row.direction is Direction.CMD:
                lines += [f"topic {_text(settings.federation, row, gateway)} in {row.qos}"]
    lines += [
        f"topic {_text(settings.federation, row, '')} in {row.qos}" for row in TABLE if row.direction is Direction.DOWN
    ]
    return "\n".join(lines) + "\n"


def _conf_lines(settings: BrokerSettings, acl_file: Path) -> list[str]:
    guarded = settings.guarded
    lines = [
        "",
        "# mosquitto.conf has one set of rules for all listeners unless told otherwise: every ACL line holds for all.",
        "per_listener_settings false",
        f"allow_anonymous {'true' if isinstance(settings.access, Anonymous) else 'false'}",
        *_password_lines(settings.access),
        f"acl_file {_path(acl_file if guarded is None else guarded.acl_file)}",
        "",
        *_listener_lines(settings),
        "",
        "# Bounds. Over max_packet_size a client is cut off; over the queue limits the newest message is dropped.",
        f"max_packet_size {settings.max_packet_bytes}",
        f"max_queued_messages {settings.max_queued_messages}",
        f"max_queued_bytes {settings.max_queued_bytes}",
        f"max_inflight_messages {settings.max_inflight}",
        f"max_keepalive {settings.max_keepalive_seconds}",
        f"persistent_client_expiration {settings.session_hours}h",
        "",
        *_persistence_lines(settings),
        "",
        "# Who came, under which name and from where, who was refused, who left.",
        "connection_messages true",
        f"log_dest {settings.log if isinstance(settings.log, str) else 'file ' + _path(settings.log)}",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_type information",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    ]
    if settings.user is not None:
        lines += [f"user {_word('user', settings.user)}"]
    return lines


def render_acl(settings: BrokerSettings, revoked: Collection[str] = ()) -> str:
    """The text of the ACL file: what is not named is forbidden, and who is revoked has nothing."""
    head = [f"# Who may do what in federation {settings.federation}: one line for each row of the topic table.", ""]
    body = _anonymous_rules(settings) if isinstance(settings.access, Anonymous) else _user_rules(settings, revoked)
    return "\n".join(head + body) + "\n"


def render_site_acl(settings: BrokerSettings, name: str, revoked: Collection[str] = ()) -> str:
    """The text of the ACL file for the broker of a site: its gateways, each by name, and nobody else."""
    site = settings.site(name)
    lines = [f"# Who may do what on the broker of site {site.user} of federation {settings.federation}."]
    for gateway in site.gateways:
        if gateway not in revoked:
            lines += ["", f"user {gateway}"]
            lines += [f"topic write {text}" for text in _patterns(settings.federation, (Direction.UP,), gateway)]
            lines += [
                f"topic read {text}"
                for text in _patterns(settings.federation, (Direction.CMD, Direction.DOWN), gateway)
            ]
    return "\n".join([*lines, *_shut_out(settings, revoked)]) + "\n"


def example_files() -> dict[str, str]:
    """What is committed under `broker_config/mosquitto/`, by its path there: a plant's server, a site's, a trial."""
    etc = Path("/etc/mosquitto")
    guarded = Guarded(revoked_file=etc / "fedmq/revoked.crl", directory=Path("/var/lib/fedmq-broker"))
    plant = BrokerSettings(
        address="0.0.0.0",  # noqa: S104 - every client shows a certificate
        port=8883,
        access=Certificates(
            ca_file=etc / "fedmq/ca.crt",
            cert_file=etc / "fedmq/broker.crt",
            key_file=etc / "fedmq/broker.key",
            guarded=guarded,
        ),
        sites=(Site(user="north", gateways=("press-1", "press-2")),),
        observers=("auditor",),
        persistence_dir=Path("/var/lib/mosquitto"),
        log="syslog",
        user="mosquitto",
    )
    upstream = Upstream(
        site="north",
        host="broker.example",
        port=8883,
        ca_file=etc / "fedmq/ca.crt",
        cert_file=etc / "fedmq/client.crt",
        key_file=etc / "fedmq/client.key",
    )
    loopback = BrokerSettings()
    return {
        CONF_NAME: render_conf(plant, guarded.acl_file),
        ACL_NAME: render_acl(plant),
        f"site/{CONF_NAME}": render_site_conf(plant, upstream, guarded.acl_file),
        f"site/{ACL_NAME}": render_site_acl(plant, "north"),
        f"loopback/{CONF_NAME}": render_conf(loopback, etc / ACL_NAME),
        f"loopback/{ACL_NAME}": render_acl(loopback),
    }


def _anonymous_rules(settings: BrokerSettings) -> list[str]:
    return [
        "# Without user names the broker cannot tell a gateway from the coordinator, nor one gateway from another:",
        "# each may write all that any of them may. Fit for a trial on the loopback address, and for nothing else.",
        *(f"topic readwrite {pattern}" for pattern in _patterns(settings.federation, tuple(Direction), "+")),
    ]


def _user_rules(settings: BrokerSettings, revoked: Collection[str]) -> list[str]:
    federation = settings.federation
    lines: list[str] = []
    if settings.coordinator not in revoked:
        lines += [
            "# The coordinator reads what gateways write, and writes what they read. It is no gateway.",
            f"user {settings.coordinator}",
            *_no_gateway(federation, settings.coordinator),
            *(f"topic read {pattern}" for pattern in _patterns(federation, (Direction.UP,), "+")),
            *(f"topic write {pattern}" for pattern in _patterns(federation, (Direction.DOWN, Direction.CMD), "+")),
            "",
        ]
    for site in settings.sites:
        if site.user in revoked:
            continue
        lines += [f"# A bridge: it carries {len(site.gateways)} gateways, each by name.", f"user {site.user}"]
        lines += _no_gateway(federation, site.user)
        for gateway in site.gateways:
            if gateway in revoked:
                continue
            lines += [f"topic write {pattern}" for pattern in _patterns(federation, (Direction.UP,), gateway)]
            lines += [f"topic read {pattern}" for pattern in _patterns(federation, (Direction.CMD,), gateway)]
        lines += [""]
    for observer in settings.observers:
        if observer not in revoked:
            lines += ["# An observer reads everything and writes nothing.", f"user {observer}"]
            lines += _no_gateway(federation, observer)
            lines += [f"topic read {pattern}" for pattern in _patterns(federation, tuple(Direction), "+")]
            lines += [""]
    lines += [
        "# A gateway writes and reads under its own user name, and reads what is for all. This holds for every user.",
        *(f"pattern write {pattern}" for pattern in _patterns(federation, (Direction.UP,), "%u")),
        *(f"pattern read {pattern}" for pattern in _patterns(federation, (Direction.CMD, Direction.DOWN), "%u")),
    ]
    return [*lines, *_shut_out(settings, revoked)]


def _no_gateway(federation: str, user: str) -> list[str]:
    """What the patterns would let a gateway of that name write."""
    return [f"topic deny {text}" for text in _patterns(federation, (Direction.UP,), user)]


def _shut_out(settings: BrokerSettings, revoked: Collection[str]) -> list[str]:
    lines: list[str] = []
    if settings.guarded is not None:
        lines += ["", "# The guard connects in order to cut others off; it has nothing to read or write."]
        lines += [f"user {GUARD_USER}", "topic deny #"]
    if revoked:
        lines += ["", "# Revoked: whatever connection one of these still has, nothing passes on it."]
        for name in sorted(revoked):
            lines += [f"user {_word('revoked', name)}", "topic deny #"]
    return lines


def _patterns(federation: str, directions: tuple[Direction, ...], gateway: str) -> list[str]:
    """Topics of the table in these directions, with `gateway` in the gateway's place."""
    return [_text(federation, row, gateway) for direction in directions for row in TABLE if row.direction is direction]


def _text(federation: str, row: TopicSpec, gateway: str) -> str:
    name = [] if row.direction is Direction.DOWN else [gateway]
    return "/".join([ROOT, federation, row.direction.value, *name, row.channel.value])


def _password_lines(access: Anonymous | Passwords | Certificates) -> list[str]:
    if isinstance(access, Passwords):
        return [f"password_file {_path(access.file)}"]
    if isinstance(access, Certificates) and access.guarded is not None:
        return [
            "# The guard's alone: where a certificate says who somebody is, Mosquitto asks for no password.",
            f"password_file {_path(access.guarded.password_file)}",
        ]
    return []


def _listener_lines(settings: BrokerSettings) -> list[str]:
    access = settings.access
    lines = [
        f"listener {settings.port} {settings.address}",
        f"max_connections {settings.max_connections}",
        "set_tcp_nodelay true",
    ]
    if isinstance(access, Anonymous):
        return ["# Everyone on this machine: the listener must stay on the loopback address.", *lines]
    # A client id is only a claim: with the user name in its place nobody can push out another client's session.
    lines += ["use_username_as_clientid true"]
    if isinstance(access, Passwords):
        return lines
    lines += [
        "# The CN of a client's certificate is its user name.",
        f"cafile {_path(access.ca_file)}",
        f"certfile {_path(access.cert_file)}",
        f"keyfile {_path(access.key_file)}",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
    ]
    if access.guarded is not None:
        lines += [f"crlfile {_path(access.guarded.list_file)}"]
        # First, so that it is there as soon as the port accepts.
        return [
            "# Where the guard cuts off who is revoked: it takes over the session of a client id that it names.",
            f"listener 0 {_path(access.guarded.socket)}",
            "max_connections 4",
            "",
            *lines,
        ]
    return lines


def _persistence_lines(settings: BrokerSettings) -> list[str]:
    if settings.persistence_dir is None:
        return ["# Retained messages and sessions end with the process.", "persistence false"]
    return [
        "# An acknowledged message is in memory until the next save: receipts of the coordinator make up for that.",
        "persistence true",
        # Mosquitto puts the file name behind this text as it stands.
        f"persistence_location {_path(settings.persistence_dir).rstrip('/')}/",
        f"autosave_interval {settings.autosave_seconds}",
    ]


def _path(path: Path) -> str:
    text = str(path)
    if not path.is_absolute() or any(ord(c) < 32 for c in text):
        raise ValueError(f"expected an absolute path without control characters, got {text!r}")
    return text


def _word(what: str, text: str) -> str:
    if not text or any(c.isspace() or ord(c) < 32 for c in text):
        raise ValueError(f"{what}: expected one word, got {text!r}")
    return text


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{what}: expected {low:,} to {high:,}, got {value:,}")
