"""A battery and a link, from the files of a gateway's kernel to whoever looks at the fleet."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dashboards import served
from fedmq_coordinator.status_text import status
from fedmq_coordinator.tasks import state_of_affairs
from fedmq_coordinator.vitals import vitals_of
from fedmq_coordinator.web.views import FLEET
from fedmq_edge_node.vitals import VitalsReader
from plant import Plant

Times = namedtuple("Times", "user system idle", defaults=(1.0,))

ROUTE = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "wwan0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def on_battery(root: Path, pct: int) -> None:
    """A gateway on a battery and a modem, as Linux shows them."""
    write(
        root,
        {
            "sys/class/power_supply/BAT0/type": "Battery",
            "sys/class/power_supply/BAT0/status": "Discharging",
            "sys/class/power_supply/BAT0/capacity": str(pct),
            "sys/class/net/wwan0/type": "519",
            "sys/class/net/wwan0/operstate": "up",
            "proc/net/route": ROUTE,
        },
    )


class Quiet:
    """A psutil of which the gates learn nothing, however busy the machine is that runs the tests."""

    def cpu_times(self, percpu: bool) -> list[Times]:
        return [Times(1.0, 1.0)]

    def virtual_memory(self) -> Any:
        return SimpleNamespace(available=1 << 30)

    def Process(self) -> Any:
        return SimpleNamespace(cpu_times=lambda: Times(0.0, 0.0))


def reader(root: Path) -> VitalsReader:
    return VitalsReader(root=root, system=Quiet(), run=lambda command: "GENERAL.METERED:no", fresh_seconds=0.0)


def test_what_the_kernel_says_of_battery_and_link_is_what_people_see(tmp_path: Path) -> None:
    plant = Plant(tmp_path / "plant", gateways=3, rounds=3)
    trees = {name: tmp_path / name for name in ("g0", "g1")}
    on_battery(trees["g0"], 81)
    write(trees["g1"], {"sys/class/power_supply/AC/type": "Mains", "sys/class/power_supply/AC/online": "1"})
    for name, root in trees.items():
        plant.gateways[name]._read_vitals = reader(root).read
    plant.gateways["g2"]._tell_vitals = False
    plant.run_until(lambda: plant.version == 1)
    first = vitals_of(plant.ledger, "g0")
    assert first is not None
    assert first.told.battery_pct == 81
    on_battery(trees["g0"], 12)
    plant.run_to_rest()

    last = vitals_of(plant.ledger, "g0")
    assert last is not None
    assert last.at > first.at
    declines = [answer for answer in plant.ledger.answers() if answer.kind == "decline"]
    assert {(answer.gateway, answer.reason) for answer in declines} == {("g0", "battery")}
    told = {one["name"]: one["vitals"] for one in state_of_affairs(plant.ledger, plant.now)["gateways"]}
    assert told["g0"] == {
        "battery_pct": 12,
        "on_mains": False,
        "link": "cellular",
        "metered": False,
        "low": True,
        "at": last.at,
    }
    assert (told["g1"]["battery_pct"], told["g1"]["on_mains"], told["g1"]["low"]) == (None, True, False)
    assert told["g2"] is None
    assert "1 gateway below 20 % battery: g0 (12 %)" in " ".join(status(plant.ledger, plant.now).split())
    with served(plant.directory / "ledger.sqlite") as site:
        rows = [dict(zip(FLEET, row, strict=True)) for row in site.get("/api/fleet").json()["rows"]]
    assert {row["name"]: (row["battery"], row["link"]) for row in rows} == {
        "g0": ("12 %", "cellular"),
        "g1": ("mains", ""),
        "g2": (None, None),
    }
