"""A federation over TLS with its gateways at the far end of a cable: what it costs at the IP level, counted there.

Broker and coordinator are in one network namespace, the gateways in another; the counters of the cable between them see
all that passes: handshakes, pings and bare acknowledgements, too.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedmq_broker_config.run import LocalBroker
from fedmq_coordinator import report as savings
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.report_shares import TCP_JOIN_BYTES, TLS_JOIN_BYTES
from veth import HUB, Cable

from fedmq.ca.authority import Authority
from fedmq.data import lay_out
from fedmq.demo import FEDERATION, DemoOptions, Identities, Plant, broker_settings, open_fleet
from fedmq.programs import ledger_path
from fedmq.showing import Screen

KEEPALIVE_SECONDS = 5
"""The shortest that gateways take: pings come often."""
RECONNECT_SECONDS = 6.0
"""Enough to come back and to be welcomed: the demo's gateways wait for 2 at most."""
GATEWAYS = 2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of all gateways, up and down together."""

    story: str
    rounds: int
    wire: int
    """Socket bytes, as it counts them."""
    told: int
    """IP bytes by its own word."""
    estimated: int
    """As for a gateway whose system does not count."""
    told_pct: float
    """Share of the socket bytes around which the gateway has counted."""
    counted: int
    """On the cable."""
    cpu_seconds: float | None

    @property
    def told_off_pct(self) -> float:
        return 100 * (self.told / self.counted - 1)

    @property
    def estimated_off_pct(self) -> float:
        return 100 * (self.estimated / self.counted - 1)


class Far(Plant):
    """The demo's plant, with its gateways at the far end of a cable."""

    cable: Cable

    def connection(self, name: str) -> dict[str, Any]:
        return super().connection(name) | {"keepalive_seconds": KEEPALIVE_SECONDS}

    def _start(self, name: str, words: list[str]) -> None:
        with self.cable.inside(self.cable.hub if name == "coordinator" else self.cable.far):
            super()._start(name, words)


def measure(*, story: str, rounds: int, idle_seconds: float = 0.0, reconnects: int = 0) -> Measured:
    """Gateways from their start to their leave: rounds, then pings alone, then so many restarts of the broker."""
    options = DemoOptions(rounds=rounds, gateways=GATEWAYS, broker="mosquitto", baselines=False)
    fleet = open_fleet(options)
    with (
        tempfile.TemporaryDirectory(prefix="fedmq-") as short,
        tempfile.TemporaryDirectory(prefix="fedmq-ip-") as name,
        Cable() as cable,
        cable.inside(cable.hub),
    ):
        folder = Path(name)
        lay_out(fleet, folder / "plant")
        identities = identities_at(HUB, folder / "identities", [gateway.name for gateway in fleet.gateways])
        settings = replace(broker_settings(identities, Path(short)), address=HUB)
        with LocalBroker(settings, directory=folder / "broker") as broker:
            plant = Far(
                fleet=fleet,
                options=options,
                stores={},
                directory=folder,
                host=HUB,
                port=broker.port,
                identities=identities,
            )
            plant.cable = cable
            with plant.running():
                ledger = plant.watch(Screen(progress=False))
                time.sleep(idle_seconds)
                for _ in range(reconnects):
                    broker.restart()
                    time.sleep(RECONNECT_SECONDS)
                plant.shut_down(ledger)
                time.sleep(0.5)
                counted = cable.ip_bytes()
        with contextlib.closing(Ledger(ledger_path(plant.state), read_only=True)) as ledger:
            built = savings.build(ledger)
    answers = sum(line.answered for line in built.gateways)
    return Measured(
        story=story,
        rounds=len(built.rounds),
        wire=built.wire.total,
        told=built.ip.bytes,
        told_pct=built.ip.counted_pct,
        estimated=built.wire.total
        + GATEWAYS * (TCP_JOIN_BYTES + TLS_JOIN_BYTES)
        + answers * (savings.TCP_IP_ROUND_BYTES + savings.TLS_ROUND_BYTES),
        counted=counted,
        cpu_seconds=built.cpu_seconds,
    )


def identities_at(host: str, directory: Path, names: list[str]) -> Identities:
    """Those of the demo, of an authority whose broker is at this address."""
    directory.mkdir(parents=True)
    authority = Authority.create(directory / "ca", federation=FEDERATION, hosts=[host], years=1)
    for name in names:
        authority.issue(name, "gateway", days=30, out=directory / name)
    return Identities(directory=directory)
