"""The broker's settings: what `broker.toml` may say. `broker_config/broker.example.toml` is rendered from them.

Owns the keys that people write. What they come to, and the checks of what belongs together, is in `render`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fedmq_protocol.settings import Table
from msgspec import Meta

from fedmq_broker_config.render import Anonymous, BrokerSettings, Certificates, Guarded, Passwords, Site

__all__ = ["BrokerTable"]

_DEFAULT = BrokerSettings()

SiteText = Annotated[
    str,
    Meta(
        pattern=r"^[^:\s]+:( +\S+)+\Z",
        max_length=65_536,
        extra={"expected": 'a site and its gateways such as "north: press-1 press-2"'},
    ),
]


@dataclass(frozen=True, kw_only=True)
class BrokerTable(Table):
    """Settings of the MQTT broker. Run it, or write Mosquitto's own files, with: fedmq broker --config FILE"""

    federation: Annotated[str, Meta(description="Name of the federation in the topics that the ACL allows.")] = (
        _DEFAULT.federation
    )
    coordinator: Annotated[str, Meta(description="User name of the coordinator.")] = _DEFAULT.coordinator
    address: Annotated[
        str, Meta(description="IP address to listen on. Without passwords or certificates a loopback address only.")
    ] = _DEFAULT.address
    port: Annotated[int, Meta(ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")] = _DEFAULT.port
    access: Annotated[
        Literal["anonymous", "passwords", "certificates"],
        Meta(
            description='How clients prove who they are. "anonymous" is for trials on one machine; with "certificates"'
            " a client's CN is its user name."
        ),
    ] = "anonymous"
    password_file: Annotated[
        Path | None,
        Meta(examples=["/etc/mosquitto/passwords"], description='For "passwords": a file of mosquitto_passwd.'),
    ] = None
    ca_file: Annotated[
        Path | None,
        Meta(examples=["/etc/mosquitto/fedmq/ca.crt"], description='For "certificates": the CAs that sign clients.'),
    ] = None
    certificate_file: Annotated[
        Path | None, Meta(examples=["/etc/mosquitto/fedmq/broker.crt"], description="The broker's own certificate.")
    ] = None
    key_file: Annotated[Path | None, Meta(examples=["/etc/mosquitto/fedmq/broker.key"], description="Its key.")] = None
    revoked_file: Annotated[
        Path | None,
        Meta(
            examples=["/etc/mosquitto/fedmq/revoked.crl"],
            description="List of revoked certificates as the CA signed it. `fedmq broker guard` watches it, and must"
            " run beside Mosquitto.",
        ),
    ] = None
    guard_dir: Annotated[
        Path | None,
        Meta(
            examples=["/var/lib/fedmq-broker"],
            description="Folder that Mosquitto and the guard share: the list as it was checked, the ACL, the guard's"
            " socket and password. Its owner alone may enter it. Required where there is a revoked_file.",
        ),
    ] = None
    sites: Annotated[
        tuple[SiteText, ...],
        Meta(
            examples=[("north: press-1 press-2",)],
            description="Brokers on site that forward for their gateways, each as one user: it may carry those and"
            " no others.",
        ),
    ] = ()
    observers: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=63)], ...],
        Meta(
            max_length=256,
            examples=[("auditor",)],
            description="User names that may read every topic of the federation and write none.",
        ),
    ] = ()
    persistence_dir: Annotated[
        Path | None,
        Meta(
            examples=["/var/lib/mosquitto"],
            description="Folder where retained messages and kept sessions survive a restart. Without it they do not.",
        ),
    ] = None
    autosave_seconds: Annotated[
        int,
        Meta(ge=1, le=86_400, description="How often they are written; what came since then is lost at a power cut."),
    ] = _DEFAULT.autosave_seconds
    max_packet_bytes: Annotated[
        int, Meta(ge=1, le=268_435_455, description="Largest MQTT packet; who sends a larger one is cut off.")
    ] = _DEFAULT.max_packet_bytes
    max_queued_messages: Annotated[
        int,
        Meta(ge=1, le=1 << 31, description="Messages kept for a client that is away or slow; then the newest go."),
    ] = _DEFAULT.max_queued_messages
    max_queued_bytes: Annotated[int, Meta(ge=1, le=1 << 40, description="The same in bytes.")] = (
        _DEFAULT.max_queued_bytes
    )
    max_inflight: Annotated[
        int, Meta(ge=1, le=65_535, description="Messages under way to a client that it has not acknowledged.")
    ] = _DEFAULT.max_inflight
    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Connections at a time, those in their handshake included. Mosquitto needs as many file"
            " descriptors (LimitNOFILE of its service).",
        ),
    ] = _DEFAULT.max_connections
    max_keepalive_seconds: Annotated[
        int,
        Meta(
            ge=10, le=65_535, description="Longest keepalive of a client; one that is gone is noticed in 1.5 times it."
        ),
    ] = _DEFAULT.max_keepalive_seconds
    session_hours: Annotated[
        int,
        Meta(ge=1, le=8760, description="Hours after which the session of an absent MQTT 3.1.1 client is forgotten."),
    ] = _DEFAULT.session_hours
    log: Annotated[
        str, Meta(min_length=1, max_length=4096, description='Where it logs to: "stdout", "syslog", or a file.')
    ] = "stdout"
    user: Annotated[
        str | None,
        Meta(examples=["mosquitto"], description="System user that Mosquitto changes to when root starts it."),
    ] = None

    def check(self) -> Iterator[tuple[str, str]]:
        needed = {"passwords": ("password_file",), "certificates": ("ca_file", "certificate_file", "key_file")}
        missing = [key for key in needed.get(self.access, ()) if getattr(self, key) is None]
        if (self.revoked_file is None) != (self.guard_dir is None):
            absent, given = ("guard_dir", "revoked_file") if self.guard_dir is None else ("revoked_file", "guard_dir")
            yield absent, f"required where there is a {given}"
        for key in missing:
            yield key, f'required for access = "{self.access}"'
        if not missing:
            try:
                self.broker()
            except ValueError as error:
                key, colon, text = str(error).partition(": ")
                yield (key.split(" ")[0], text) if colon else ("", str(error))

    def broker(self) -> BrokerSettings:
        """As `render` takes it; a free port is picked by whoever starts the broker. Raises ValueError."""
        access: Anonymous | Passwords | Certificates = Anonymous()
        if self.access == "passwords" and self.password_file is not None:
            access = Passwords(self.password_file.absolute())
        elif self.ca_file is not None and self.certificate_file is not None and self.key_file is not None:
            access = Certificates(
                ca_file=self.ca_file.absolute(),
                cert_file=self.certificate_file.absolute(),
                key_file=self.key_file.absolute(),
                guarded=None
                if self.revoked_file is None or self.guard_dir is None
                else Guarded(revoked_file=self.revoked_file.absolute(), directory=self.guard_dir.absolute()),
            )
        return BrokerSettings(
            federation=self.federation,
            coordinator=self.coordinator,
            sites=tuple(
                Site(user=site, gateways=tuple(names.split()))
                for site, _, names in (text.partition(":") for text in self.sites)
            ),
            observers=self.observers,
            address=self.address,
            port=self.port or _DEFAULT.port,
            access=access,
            persistence_dir=None if self.persistence_dir is None else self.persistence_dir.absolute(),
            autosave_seconds=self.autosave_seconds,
            max_packet_bytes=self.max_packet_bytes,
            max_queued_messages=self.max_queued_messages,
            max_queued_bytes=self.max_queued_bytes,
            max_inflight=self.max_inflight,
            max_connections=self.max_connections,
            max_keepalive_seconds=self.max_keepalive_seconds,
            session_hours=self.session_hours,
            log=self.log if self.log in ("stdout", "syslog") else Path(self.log).absolute(),  # type: ignore[arg-type]
            user=self.user,
        )
