"""A real Prometheus scrapes a whole plant: every page is sound, every panel of the dashboard has data, rules run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fedmq_broker_config.run import LocalBroker, free_port
from processes import PATIENCE_SECONDS, Site, environment, small_fleet
from prometheus import Prometheus, needed, page
from sensors import Cable, CountingSensor
from watched import PUMP, Plant

from fedmq.metrics.page import FILES

pytestmark = [pytest.mark.broker, pytest.mark.slow]

RULES, DASHBOARD = FILES
GATEWAYS, ROUNDS = 3, 8
VARIABLES = {"$task": ".*", "$gateway": ".*"}


@contextmanager
def program(directory: Path, *words: str) -> Iterator[None]:
    """One that runs until the test is over, and fails it where it ends before."""
    with (directory / f"{words[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedmq", *words],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
            start_new_session=True,
        )
    try:
        yield
        assert process.poll() is None, (directory / f"{words[0]}.log").read_text()
    finally:
        process.kill()
        process.wait()


@contextmanager
def a_bridge(directory: Path, port: int) -> Iterator[None]:
    """A sensor talks on a cable, and now and then something else does."""
    directory.mkdir()
    cable, sensor, over = Cable(directory / "by-id-motor"), CountingSensor(), threading.Event()
    cable.plug()
    (directory / "bridge.toml").write_text(
        'store = "bridge.sqlite"\nflush_seconds = 0.5\n'
        '[[port]]\nname = "motor"\nport = "by-id-motor"\nmachine = "fan"\n'
    )

    def talk() -> None:
        while not over.wait(0.02):
            cable.send(sensor.hello() + sensor.frame() + b"\x00noise\x00")

    talking = threading.Thread(target=talk)
    talking.start()
    try:
        with program(directory, "bridge", "run", "--config", "bridge.toml", "--metrics", str(port)):
            yield
    finally:
        over.set()
        talking.join()


@contextmanager
def a_watch(directory: Path, port: int) -> Iterator[None]:
    """A machine with a fault that nobody has looked at."""
    directory.mkdir()
    plant = Plant(directory)
    plant.hear(30)
    plant.hear(6, "outer_race")
    plant.recorder.close()
    (directory / "machines.toml").write_text(
        f'[[machine]]\nname = "{PUMP}"\n[machine.operating]\nrunning_from_g = 0.05\ndwell_seconds = 5\n'
    )
    (directory / "watch.toml").write_text(
        'store = "bridge.sqlite"\nmachines = "machines.toml"\nstate_dir = "watch"\nwindow_seconds = 1\n'
        "every_seconds = 1\npoll_seconds = 0.5\ncommit_seconds = 0\n"
        "[judging]\nlearning_windows = 20\nlearning_hours = 0\nclear_windows = 3\n"
    )
    with program(directory, "watch", "run", "--config", "watch.toml", "--metrics", str(port)):
        yield


def test_every_page_is_sound_every_panel_has_data_and_every_rule_runs(tmp_path: Path, mosquitto: LocalBroker) -> None:
    needed()
    fleet = small_fleet(GATEWAYS)
    names = [own.name for own in fleet.gateways]
    ports = {name: free_port("127.0.0.1") for name in ("coordinator", *names, "bridge", "watch")}
    tired = names[-1]
    with ExitStack() as stack:
        prometheus = stack.enter_context(Prometheus(tmp_path / "prometheus", ports, RULES))
        stack.enter_context(a_bridge(tmp_path / "bridge", ports["bridge"]))
        stack.enter_context(a_watch(tmp_path / "watch", ports["watch"]))
        site = stack.enter_context(
            Site(
                tmp_path,
                fleet,
                port=mosquitto.port,
                rounds=ROUNDS,
                round_={"interval_seconds": 1, "quorum_gateways": 1, "set_aside_after": 0},
                coordinator={"metrics.listen": str(ports["coordinator"])},
                gateway_of={name: {"metrics.listen": str(ports[name])} for name in names},
                vitals={tired: {"battery_pct": 5.0, "on_mains": False}},
            )
        )
        site.start()
        site.wait_for_rest()
        rounds = len(site.ledger.rounds())
        prometheus.wait(
            lambda: sum(value for _, value in prometheus.query("sum(fedmq_rounds_total)")) == rounds,
            "Prometheus to have the last round",
        )
        prometheus.wait(lambda: prometheus.query("sum(fedmq_alerts{state='open'}) > 0"), "the watch to have an alert")

        assert {value for _, value in prometheus.query("up")} == {1.0}
        assert {value for _, value in prometheus.query("fedmq_scrape_ok")} == {1.0}
        for name, port in ports.items():
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=page(port), capture_output=True, text=True, timeout=30
            )
            assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", ""), name

        empty = []
        for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"]
                for variable, stands_for in VARIABLES.items():
                    expression = expression.replace(variable, stands_for)
                found = prometheus.query(expression)
                if not found or all(math.isnan(value) for _, value in found):
                    empty.append(f"{panel['title']}: {expression}")
        assert not empty

        # What a panel shows is what happened.
        declines = {m["reason"]: v for m, v in prometheus.query("sum by (reason) (fedmq_declines_total) > 0")}
        assert declines == {"battery": len(site.answers_of(tired, "decline"))}
        shut = prometheus.query('fedmq_edge_gate_open{reason="battery"} == 0')
        assert [m["instance"] for m, _ in shut] == [f"127.0.0.1:{ports[tired]}"]
        assert prometheus.query(
            "sum(fedmq_bridge_source_checksum_errors_total) + sum(fedmq_bridge_source_malformed_total)"
        )
        assert prometheus.query("sum(fedmq_edge_training_cpu_seconds_total) > 0")

        def rules() -> list[dict[str, str]]:
            groups = prometheus.get("rules")["groups"]
            return [rule for group in groups for rule in group["rules"]]

        prometheus.wait(lambda: all(rule["health"] == "ok" for rule in rules()), "every rule to have been evaluated")
        raised = {rule["name"] for rule in rules() if rule["state"] != "inactive"}
        assert "FedmqMachineAlarm" in raised or "FedmqMachineAlertWaits" in raised
        site.finish()


def test_a_scrape_holds_up_no_round_and_a_kill_of_the_coordinator_is_seen(
    tmp_path: Path, mosquitto: LocalBroker
) -> None:
    """Scraped as fast as it answers, the coordinator goes on; gone, it is seen to be gone; back, it tells the same."""
    port = free_port("127.0.0.1")
    with Site(
        tmp_path,
        small_fleet(2),
        port=mosquitto.port,
        rounds=6,
        coordinator={"metrics.listen": str(port)},
    ) as site:
        site.start()
        over, pages = threading.Event(), []

        def scrape() -> None:
            while not over.is_set():
                try:
                    pages.append(page(port))
                except OSError:
                    time.sleep(0.05)

        scrapers = [threading.Thread(target=scrape) for _ in range(4)]
        for scraper in scrapers:
            scraper.start()
        try:
            site.wait_for_rest()
        finally:
            over.set()
            for scraper in scrapers:
                scraper.join()
        assert pages
        assert len(site.training("applied")) == 6

        def figures() -> list[str]:
            ours = ("fedmq_rounds_total", "fedmq_answers_total", "fedmq_task_payload_bytes_total")
            return [line for line in page(port).splitlines() if line.startswith(ours)]

        applied = f'fedmq_rounds_total{{outcome="applied",task="{site.fleet.name}"}} {len(site.ledger.rounds())}.0'
        site.poll(lambda: applied in figures(), "the figures of the last round")
        until = time.monotonic() + PATIENCE_SECONDS
        before = figures()
        site.kill("coordinator")
        with pytest.raises(OSError, match=r".+"):
            page(port)
        site.start_coordinator()
        while time.monotonic() < until:
            try:
                if figures() == before:
                    break
            except OSError:
                pass
            time.sleep(0.1)
        assert figures() == before
        site.finish()
