"""What a secure federation costs on the wire: the demo without and with identities, byte by byte."""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import contextlib
import json
import socket
import ssl
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The proxy that counts is the tests'.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from counting_proxy import CountingProxy
from fedmq_broker_config.run import LocalBroker
from fedmq_coordinator import report as savings
from fedmq_coordinator.ledger import Ledger

from fedmq.data import Fleet, lay_out
from fedmq.demo import DemoOptions, Identities, Plant, broker_settings, open_fleet
from fedmq.programs import ledger_path
from fedmq.showing import Screen


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes of all gateways. `mqtt` is what their sessions counted, `tcp` what passed on their connections."""

    rounds: int
    connections: int
    mqtt_up: int
    mqtt_down: int
    tcp_up: int
    tcp_down: int
    memory: int


class Through(Plant):
    """The demo's plant, with its gateways behind a proxy; the coordinator speaks to the broker itself."""

    def connection(self, name: str) -> dict[str, Any]:
        port = self.port if name == "coordinator" else self.proxy.port
        return super().connection(name) | {"port": port}

    proxy: CountingProxy


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench/secure",
        description="Runs the demo's federation twice over Mosquitto, first open, then with identities: TLS with client"
        " certificates, signatures and MACs. Counts MQTT bytes as the gateways do, and TCP payload in a proxy before"
        " the broker. Both learn the same model, so the difference is what security costs.",
    )
    parser.add_argument("--rounds", type=int, default=40, help="default: 40")
    parser.add_argument("--gateways", type=int, default=7, help="default: 7")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    given = parser.parse_args()
    options = DemoOptions(
        rounds=given.rounds, gateways=given.gateways, seed=given.seed, broker="mosquitto", baselines=False
    )
    fleet = open_fleet(options)
    with tempfile.TemporaryDirectory(prefix="fedmq-secure-") as folder:
        open_run = run(options, fleet, Path(folder) / "open", secure=False)
        secure_run = run(options, fleet, Path(folder) / "secure", secure=True)
        handshake = handshake_bytes(options, Path(folder) / "handshake")
    count = given.gateways

    def each(bytes_: int) -> float:
        return bytes_ / count / (given.rounds + 1)  # and the round of statistics

    mqtt_open, mqtt_secure = (one.mqtt_up + one.mqtt_down for one in (open_run, secure_run))
    tcp = secure_run.tcp_up + secure_run.tcp_down
    records = tcp - mqtt_secure - handshake * secure_run.connections
    figures = {
        "gateways": count,
        "rounds": given.rounds + 1,
        "mqtt_open_per_round": each(mqtt_open),
        "mqtt_secure_per_round": each(mqtt_secure),
        "seals_per_round": each(mqtt_secure - mqtt_open),
        "seals_up_per_round": each(secure_run.mqtt_up - open_run.mqtt_up),
        "seals_down_per_round": each(secure_run.mqtt_down - open_run.mqtt_down),
        "tls_handshake": handshake,
        "tls_connections": secure_run.connections,
        "tls_records_per_round": each(records),
        "memory_open": open_run.memory,
        "memory_secure": secure_run.memory,
    }
    print(f"{count} gateways, {given.rounds + 1} rounds; bytes of one gateway in one round, up and down together")
    print(f"  MQTT, open                                      {figures['mqtt_open_per_round']:8.1f}")
    print(f"  MQTT, with signatures, MACs and identities      {figures['mqtt_secure_per_round']:8.1f}")
    print(f"    that is more by                               {figures['seals_per_round']:8.1f}")
    print(f"      of it up                                    {figures['seals_up_per_round']:8.1f}")
    print(f"      and down                                    {figures['seals_down_per_round']:8.1f}")
    print(f"  what TLS adds in records                        {figures['tls_records_per_round']:8.1f}")
    print(f"once for each connection, the TLS handshake       {handshake:8,} bytes, both certificates in it")
    memory = f"{open_run.memory / 1e6:8.1f} MB, {secure_run.memory / 1e6:.1f} MB"
    print(f"memory of a gateway at most, open and secure      {memory}")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def run(options: DemoOptions, fleet: Fleet, folder: Path, *, secure: bool) -> Cost:
    """One federation from its start to its rest."""
    folder.mkdir()
    lay_out(fleet, folder / "plant")
    names = [gateway.name for gateway in fleet.gateways]
    identities = Identities.make(folder / "identities", names) if secure else None
    with (
        tempfile.TemporaryDirectory(prefix="fedmq-") as short,
        LocalBroker(broker_settings(identities, Path(short)), directory=folder / "broker") as broker,
        CountingProxy("127.0.0.1", broker.port) as proxy,
    ):
        plant = Through(
            fleet=fleet,
            options=options,
            stores={},
            directory=folder,
            host="127.0.0.1",
            port=broker.port,
            identities=identities,
        )
        plant.proxy = proxy
        with plant.running():
            ledger = plant.watch(Screen(progress=False))
            plant.shut_down(ledger)
        with contextlib.closing(Ledger(ledger_path(plant.state), read_only=True)) as ledger:
            built = savings.build(ledger)
        return Cost(
            rounds=len(built.rounds),
            connections=proxy.connections,
            mqtt_up=built.wire.up,
            mqtt_down=built.wire.down,
            tcp_up=proxy.bytes_up,
            tcp_down=proxy.bytes_down,
            memory=max(child.rss_bytes for child in plant.children[1:]),
        )


def handshake_bytes(options: DemoOptions, folder: Path) -> int:
    """TCP payload of one TLS handshake with both certificates, and of nothing else."""
    folder.mkdir()
    identities = Identities.make(folder / "identities", ["g"])
    own = identities.of("g")
    context = ssl.create_default_context(cafile=own / "ca.crt")
    context.load_cert_chain(own / "client.crt", own / "client.key")
    with (
        tempfile.TemporaryDirectory(prefix="fedmq-") as short,
        LocalBroker(broker_settings(identities, Path(short)), directory=folder / "broker") as broker,
        CountingProxy("127.0.0.1", broker.port) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        # An answer from the broker shows that it has everything, and that its tickets for a later session are out.
        secure.sendall(PINGREQ_TOO_EARLY)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            secure.recv(1)
        return proxy.bytes_up + proxy.bytes_down - RECORD


PINGREQ_TOO_EARLY = b"\xc0\x00"
"""A ping before the CONNECT: the broker hangs up."""
RECORD = 2 + 22
"""Its TLS 1.3 record."""


if __name__ == "__main__":
    sys.exit(main())
