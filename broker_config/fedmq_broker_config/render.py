"""The broker's configuration as text: topic table and settings in, mosquitto.conf and ACL out. Pure.

Owns what a broker of a federation must be told: who may read and write which topic, and the bounds that keep one
client from taking the broker's memory. Refuses to know files and processes (see `run`).

The ACL names channels one by one, as the table does, so that nobody leaves retained messages under invented topics. A
gateway is its user name (`%u`), which is its certificate's CN where certificates are used; the client id (`%c`)
is whatever a client says and gives no right. What is rendered works on Mosquitto 2.0.11 and newer.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmq_protocol.topics import ROOT, TABLE, Direction, check_name

__all__ = [
    "ACL_NAME",
    "CONF_NAME",
    "Anonymous",
    "BrokerSettings",
    "Certificates",
    "Passwords",
    "Site",
    "example_files",
    "render_acl",
    "render_conf",
]

CONF_NAME = "mosquitto.conf"
ACL_NAME = "acl"


@dataclass(frozen=True)
class Anonymous:
    """Nobody says who they are. For one machine, where whoever can reach the broker could also read its files."""


@dataclass(frozen=True)
class Passwords:
    """User names and passwords, in a file that `mosquitto_passwd` writes. Without TLS they cross the net readable."""

    file: Path


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """TLS, both sides with certificates: the CN of a client's certificate is its user name."""

    ca_file: Path
    cert_file: Path
    key_file: Path
    revoked_file: Path | None = None


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
class BrokerSettings:
    """What a broker of one federation is told. Raises ValueError that names the field."""

    federation: str = "plant"
    coordinator: str = "coordinator"
    """User name of the coordinator."""
    sites: tuple[Site, ...] = ()
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
        owners = {self.coordinator: "the coordinator"}
        for site in self.sites:
            for name, what in ((site.user, f"site {site.user}"), *((g, f"site {site.user}") for g in site.gateways)):
                if name in owners:
                    raise ValueError(f"sites: the name {name!r} of {what} is already that of {owners[name]}")
                owners[name] = what
        if isinstance(self.access, Anonymous) and self.sites:
            raise ValueError("sites: a bridge is a user of its own, which needs passwords or certificates")


def largest_packet_bytes() -> int:
    """A packet that holds the largest message of the topic table: payload, topic and header."""
    return max(row.max_bytes for row in TABLE) + 512


def render_conf(settings: BrokerSettings, acl_file: Path) -> str:
    """The text of mosquitto.conf."""
    lines = [
        f"# Mosquitto for federation {settings.federation}, written by `fedmq broker --render`: change it there.",
        "",
        "# mosquitto.conf has one set of rules for all listeners unless told otherwise; here there is one listener.",
        "per_listener_settings false",
        f"listener {settings.port} {settings.address}",
        "set_tcp_nodelay true",
        *_access_lines(settings.access),
        f"acl_file {_path(acl_file)}",
        "",
        "# Bounds. Over max_packet_size a client is cut off; over the queue limits the newest message is dropped.",
        f"max_packet_size {settings.max_packet_bytes}",
        f"max_queued_messages {settings.max_queued_messages}",
        f"max_queued_bytes {settings.max_queued_bytes}",
        f"max_inflight_messages {settings.max_inflight}",
        f"persistent_client_expiration {settings.session_hours}h",
        "",
        *_persistence_lines(settings),
        "",
        f"log_dest {settings.log if isinstance(settings.log, str) else 'file ' + _path(settings.log)}",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_type information",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
    ]
    if settings.user is not None:
        lines += [f"user {_word('user', settings.user)}"]
    return "\n".join(lines) + "\n"


def render_acl(settings: BrokerSettings) -> str:
    """The text of the ACL file: what is not named is forbidden."""
    head = [f"# Who may do what in federation {settings.federation}: one line for each row of the topic table.", ""]
    body = _anonymous_rules(settings) if isinstance(settings.access, Anonymous) else _user_rules(settings)
    return "\n".join(head + body) + "\n"


def example_files() -> dict[str, str]:
    """What is committed under `broker_config/mosquitto/`, by its path there: a plant's server, and a loopback trial."""
    etc = Path("/etc/mosquitto")
    plant = BrokerSettings(
        address="0.0.0.0",  # noqa: S104 - every client shows a certificate
        port=8883,
        access=Certificates(
            ca_file=etc / "certs/ca.crt", cert_file=etc / "certs/server.crt", key_file=etc / "certs/server.key"
        ),
        persistence_dir=Path("/var/lib/mosquitto"),
        log="syslog",
    )
    loopback = BrokerSettings()
    return {
        CONF_NAME: render_conf(plant, etc / ACL_NAME),
        ACL_NAME: render_acl(plant),
        f"loopback/{CONF_NAME}": render_conf(loopback, etc / ACL_NAME),
        f"loopback/{ACL_NAME}": render_acl(loopback),
    }


def _anonymous_rules(settings: BrokerSettings) -> list[str]:
    return [
        "# Without user names the broker cannot tell a gateway from the coordinator, nor one gateway from another:",
        "# each may write all that any of them may. Fit for a trial on the loopback address, and for nothing else.",
        *(f"topic readwrite {pattern}" for pattern in _patterns(settings.federation, tuple(Direction), "+")),
    ]


def _user_rules(settings: BrokerSettings) -> list[str]:
    federation = settings.federation
    lines = [
        "# The coordinator reads what gateways write, and writes what they read.",
        f"user {settings.coordinator}",
        *(f"topic read {pattern}" for pattern in _patterns(federation, (Direction.UP,), "+")),
        *(f"topic write {pattern}" for pattern in _patterns(federation, (Direction.DOWN, Direction.CMD), "+")),
    ]
    for site in settings.sites:
        lines += ["", f"# A bridge: it carries {len(site.gateways)} gateways, each by name.", f"user {site.user}"]
        for gateway in site.gateways:
            lines += [f"topic write {pattern}" for pattern in _patterns(federation, (Direction.UP,), gateway)]
            lines += [f"topic read {pattern}" for pattern in _patterns(federation, (Direction.CMD,), gateway)]
    lines += [
        "",
        "# A gateway writes and reads under its own user name, and reads what is for all. This holds for every user.",
        *(f"pattern write {pattern}" for pattern in _patterns(federation, (Direction.UP,), "%u")),
        *(f"pattern read {pattern}" for pattern in _patterns(federation, (Direction.CMD, Direction.DOWN), "%u")),
    ]
    return lines


def _patterns(federation: str, directions: tuple[Direction, ...], gateway: str) -> list[str]:
    """Topics of the table in these directions, with `gateway` in the gateway's place."""
    return [
        "/".join(
            [ROOT, federation, row.direction.value]
            + ([] if row.direction is Direction.DOWN else [gateway])
            + [row.channel.value]
        )
        for direction in directions
        for row in TABLE
        if row.direction is direction
    ]


def _access_lines(access: Anonymous | Passwords | Certificates) -> list[str]:
    if isinstance(access, Anonymous):
        return [
            "",
            "# Everyone on this machine: the listener must stay on the loopback address.",
            "allow_anonymous true",
        ]
    # A client id is only a claim: with the user name in its place nobody can push out another client's session.
    lines = ["", "allow_anonymous false", "use_username_as_clientid true"]
    if isinstance(access, Passwords):
        return [*lines, f"password_file {_path(access.file)}"]
    lines += [
        "# The CN of a client's certificate is its user name.",
        f"cafile {_path(access.ca_file)}",
        f"certfile {_path(access.cert_file)}",
        f"keyfile {_path(access.key_file)}",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
    ]
    if access.revoked_file is not None:
        lines += [f"crlfile {_path(access.revoked_file)}"]
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
