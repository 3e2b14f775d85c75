"""Bytes of a run, wherever they are told, are those that went over the socket: a proxy between gateways and broker is
the judge."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from counting_proxy import CountingProxy
from fedmq_broker_config.run import LocalBroker, free_port
from fedmq_coordinator.report import Traffic
from processes import Site, fedmq, small_fleet
from prometheus import page

pytestmark = [pytest.mark.broker, pytest.mark.slow]

APART = 0.01
"""A gateway's last word and its DISCONNECT are in no count of its own: 67 bytes together."""


class Told:
    """A site whose gateways have left, and whose coordinator still serves its figures."""

    def __init__(self, site: Site, port: int, dashboard: int) -> None:
        self.site = site
        self.port = port
        self.dashboard = dashboard


def _figures(text: str) -> Traffic:
    found = dict(re.findall(r'^fedmq_wire_bytes_total\{direction="(up|down)"\} (\S+)$', text, re.MULTILINE))
    return Traffic(up=int(float(found["up"])), down=int(float(found["down"])))


def by_report(told: Told) -> Traffic:
    said = json.loads(fedmq("report", "--json", "--state", str(told.site.state)).stdout)
    return Traffic(up=said["wire"]["up"], down=said["wire"]["down"])


def by_csv(told: Told) -> Traffic:
    """Rounds alone, and joining, which is in the report."""
    import csv
    import io

    said = json.loads(fedmq("report", "--json", "--state", str(told.site.state)).stdout)
    rows = list(csv.DictReader(io.StringIO(fedmq("report", "--csv", "--state", str(told.site.state)).stdout)))
    return Traffic(
        up=said["joining"]["up"] + sum(int(row["wire_up_bytes"]) for row in rows),
        down=said["joining"]["down"] + sum(int(row["wire_down_bytes"]) for row in rows),
    )


def by_endpoint(told: Told) -> Traffic:
    return _figures(page(told.port))


def by_textfile(told: Told) -> Traffic:
    return _figures(fedmq("status", "--prometheus", "--state", str(told.site.state)).stdout)


def by_socket(told: Told) -> Traffic:
    return _figures(fedmq("status", "--prometheus", "--control", str(told.site.state / "control.sock")).stdout)


def by_dashboard(told: Told) -> Traffic:
    """Once it has read what came last."""
    before, now = None, _overview(told.dashboard)
    while now != before:
        time.sleep(3.0)
        before, now = now, _overview(told.dashboard)
    return now


def _overview(port: int) -> Traffic:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/overview", timeout=30) as answer:
        said = json.load(answer)["wire"]
    return Traffic(up=said["up"], down=said["down"])


SOURCES: dict[str, Callable[[Told], Traffic]] = {
    "report": by_report,
    "csv": by_csv,
    "prometheus": by_endpoint,
    "textfile": by_textfile,
    "control socket": by_socket,
    "dashboard": by_dashboard,
}
"""Whoever tells bytes of the wire: another view of them is one line here."""


@pytest.mark.parametrize(("codec", "rounds"), [("sparse", 160), ("dense", 6)])
def test_all_who_tell_bytes_tell_those_of_the_socket(
    tmp_path: Path, mosquitto: LocalBroker, capsys: pytest.CaptureFixture[str], codec: str, rounds: int
) -> None:
    """Some hundred bytes a round, and 35 kB in chunks; one gateway declines every round."""
    fleet, port, dashboard = small_fleet(3), free_port("127.0.0.1"), free_port("127.0.0.1")
    names = [own.name for own in fleet.gateways]
    with (
        CountingProxy("127.0.0.1", mosquitto.port) as proxy,
        Site(
            tmp_path,
            fleet,
            port=mosquitto.port,
            port_of=dict.fromkeys(names, proxy.port),
            rounds=rounds,
            task={} if codec == "sparse" else {"hidden": [320], "codec.kind": "dense"},
            round_={"quorum_gateways": 1},
            vitals={names[0]: {"battery_pct": 5.0, "on_mains": False}},
            coordinator={"metrics.listen": str(port), "http.listen": str(dashboard)},
        ) as site,
    ):
        site.start()
        site.wait_for_rest()
        for name in names:
            site.stop(name)
        site.wait(lambda ledger: not any(g.present for g in ledger.gateways()), "the gateways' last words")
        socket = Traffic(up=proxy.bytes_up, down=proxy.bytes_down)
        said = {who: tell(Told(site, port, dashboard)) for who, tell in SOURCES.items()}
        with capsys.disabled():
            print(f"\n{codec}, {rounds} rounds", file=sys.stderr)
            print(f"{'socket':>15} {socket.up:,} up {socket.down:,} down", file=sys.stderr)
            for who, traffic in said.items():
                print(f"{who:>15} {traffic.up:,} up {traffic.down:,} down", file=sys.stderr)
        for who, traffic in said.items():
            assert traffic.up == pytest.approx(socket.up, rel=APART), who
            assert traffic.down == pytest.approx(socket.down, rel=APART), who
        site.finish()
