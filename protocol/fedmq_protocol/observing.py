"""Where a program serves its metrics: the settings that coordinator, gateway, bridge and watch share."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from fedmq_protocol.settings import Table

__all__ = ["LOOPBACK", "MetricsSettings", "place"]

LOOPBACK = "127.0.0.1"

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def place(listen: str) -> tuple[str, int]:
    """Host and port of "[HOST:]PORT"; without a host it is loopback. Raises ValueError."""
    host, _, port = listen.rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65_535):
        raise ValueError(f"expected [HOST:]PORT such as 127.0.0.1:9464 or 9464, got {listen[:80]!r}")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), int(port)
        except ValueError:
            raise ValueError(f"expected an IPv6 address in brackets, got {host[:80]!r}") from None
    if ":" in host:
        raise ValueError(f"expected an IPv6 address in brackets, such as [::1]:9464, got {listen[:80]!r}")
    if host and not _HOST.fullmatch(host):
        raise ValueError(f"expected a host name or an address before the port, got {listen[:80]!r}")
    return host or LOOPBACK, int(port)


@dataclass(frozen=True, kw_only=True)
class MetricsSettings(Table):
    """Figures for Prometheus: see docs/metrics.md. They need the extra "metrics"."""

    listen: Annotated[
        str | None,
        Meta(
            max_length=300,
            examples=["127.0.0.1:9464"],
            description="[HOST:]PORT at which Prometheus finds this program's figures; loopback where no host is named."
            " No password is asked: beyond loopback, see to who can reach it. Without it there is no such port.",
        ),
    ] = None

    def check(self) -> Iterator[tuple[str, str]]:
        if self.listen is not None:
            try:
                place(self.listen)
            except ValueError as error:
                yield "listen", str(error)
