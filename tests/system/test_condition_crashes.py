"""Real processes: a bridge's store, a watch, gateways and a coordinator behind Mosquitto. The coordinator hears of each
alert once, and what people say there reaches the windows' labels, whoever is killed around it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from fedmq_broker_config.run import LocalBroker
from fedmq_edge_node.alertbook import Alertbook
from fedmq_firmware_bridge.store import Store
from processes import Site, fedmq, small_fleet
from watched import PUMP, Plant

GATEWAY = "gateway"


class Watched:
    """A gateway whose machine a watch judges. The store holds a fault."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        plant = Plant(directory)
        plant.hear(30)
        plant.hear(4, "outer_race")
        plant.hear(8)
        plant.recorder.close()
        (directory / "machines.toml").write_text(
            f'[[machine]]\nname = "{PUMP}"\nkind = "pump"\n'
            "[machine.operating]\nrunning_from_g = 0.05\ndwell_seconds = 5\n"
        )
        (directory / "watch.toml").write_text(
            f"""
store = "{directory}/bridge.sqlite"
machines = "{directory}/machines.toml"
state_dir = "{directory}/watch"
window_seconds = 1
every_seconds = 1
poll_seconds = 0.05
commit_seconds = 0
[judging]
learning_windows = 20
learning_hours = 0
clear_windows = 3
"""
        )
        fleet = small_fleet(2)
        self.name = fleet.gateways[0].name
        self.site = Site(
            directory,
            fleet,
            port=port,
            rounds=1,
            gateway_of={self.name: {"watch_state": str(directory / "watch"), "watch_seconds": 5}},
        )

    def start_watch(self) -> None:
        self.site._start("watch", "watch", "run", "--config", str(self.directory / "watch.toml"))

    @property
    def book(self) -> Alertbook:
        return Alertbook.existing(self.directory / "watch" / "alerts.sqlite")

    def alert(self, *words: str) -> str:
        ended = fedmq("alert", *words, "--state", str(self.site.state))
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def labels(self) -> set[str]:
        store = Store(self.directory / "bridge.sqlite")
        return {piece.label for run in store.runs() for piece in store.pieces(run)}


@pytest.mark.broker
@pytest.mark.slow
def test_an_alert_is_heard_of_once_and_a_word_on_it_labels_its_windows(tmp_path: Path, mosquitto: LocalBroker) -> None:
    watched = Watched(tmp_path, mosquitto.port)
    with watched.site as site:
        site.start()
        watched.start_watch()
        site.wait(lambda ledger: [a for a in ledger.alerts() if a.state == "cleared"], "the alert, and that it is over")
        site.wait(lambda ledger: [m for m in ledger.machines() if m.learnt], "the machine")
        (alert,) = site.ledger.alerts()
        (machine,) = site.ledger.machines()
        assert (machine.gateway, machine.name, machine.kind) == (watched.name, PUMP, "pump")
        assert alert.machine == PUMP
        assert alert.evidence
        assert site.ledger.summaries()
        (shown,) = json.loads(watched.alert("list", "--json"))
        assert shown["alert"] == f"{watched.name}/1"
        # The gateway is killed; what is said meanwhile waits for it.
        site.kill(watched.name)
        said = watched.alert("confirm", f"{watched.name}/1", "outer_race", "--wait", "0")
        assert said == ""
        site.start_gateway(watched.name)
        site.wait(lambda ledger: ledger.alerts()[0].state == "confirmed", "the verdict")
        site.poll(lambda: "outer_race" in watched.labels(), "the windows' label")
        (order,) = site.ledger.orders_of_alert(watched.name, 1)
        assert order.done is True
        assert [step.what for step in watched.book.steps(1)] == ["raised", "cleared", "confirmed"]
        status = fedmq("status", "--state", str(site.state))
        assert "1 at 1 gateway" in status.stdout


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "point"),
    [(who, f"{when} condition") for who in (GATEWAY, "coordinator") for when in ("before", "after")],
)
def test_whoever_is_killed_around_a_word_on_machines_nothing_is_lost_or_doubled(
    tmp_path: Path, mosquitto: LocalBroker, program: str, point: str
) -> None:
    watched = Watched(tmp_path, mosquitto.port)
    with watched.site as site:
        name = watched.name if program == GATEWAY else program
        site.crash_at[name] = point
        site.start()
        watched.start_watch()
        assert site.programs[name].process.wait(60) == -signal.SIGKILL
        del site.crash_at[name]
        if program == GATEWAY:
            site.start_gateway(watched.name)
        else:
            site.start_coordinator()
        site.poll(site.programs[name].is_connected, "it to be back")
        site.wait(lambda ledger: [a for a in ledger.alerts() if a.state == "cleared"], "the alert, and that it is over")
        site.wait(lambda ledger: [m for m in ledger.machines() if m.learnt], "the machine")
        assert len(site.ledger.alerts()) == len(watched.book.alerts()) == 1
        assert "cleared" in watched.alert("show", f"{watched.name}/1")
        said = watched.alert("dismiss", f"{watched.name}/1", "--who", "ann", "--wait", "30")
        assert "dismissed" in said
        assert [step.what for step in watched.book.steps(1)] == ["raised", "cleared", "dismissed"]
