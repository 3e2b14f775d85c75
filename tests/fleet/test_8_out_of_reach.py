"""8. A gateway that nobody reaches enrols by a token at its first boot, renews its certificate and pulls its releases.
Beside it one with a sensor, and a broker that only some networks reach."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Authority
from fleetbed import Bed, Spec
from fleetbed.plant import MACHINE, PYTHON, STATE, Plant
from test_3_upgrade import break_gateways, running

MACHINES = [Spec("hub", ("plant", "other")), "gw1", "far"]
CONTROL = "10.77.0.1"
NEWER, BROKEN = "0.1.2", "0.1.3"

HTTPS = """
import functools, http.server, ssl, sys
folder, certificate, key = sys.argv[1:]
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
server = http.server.ThreadingHTTPServer(("10.77.0.1", 8444), handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@contextmanager
def served(plant: Plant, *command: str) -> Iterator[None]:
    """A server on the control node, for as long as it is wanted."""
    log = (plant.folder / f"{Path(command[0]).name}.log").open("w")
    words = ["ip", "netns", "exec", plant.bed.control, *command]
    server = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        server.terminate()
        server.wait()
        log.close()


@pytest.fixture(scope="module")
def releases(bed: Bed) -> Path:
    return bed.folder / "releases"


@pytest.fixture(scope="module")
def plant(bed: Bed, releases: Path) -> Iterator[Plant]:
    plant = Plant(bed, gateways=["gw1", "far"], rounds={"first_gateways": 1})
    plant.lay_out_recordings()
    plant.build()
    authority = Authority(bed.folder / "releases-ca")
    certificate, key = authority.issue("releases", address=CONTROL)
    plant.groups |= {"firmware_bridges": ["gw1"], "watches": ["gw1"], "monitoring": ["hub"]}
    plant.variables |= {
        "broker_firewall": True,
        "broker_firewall_networks": ["10.77.0.0/24"],
        "coordinator_http": {"listen": "127.0.0.1:8080"},
        "coordinator_settings": {"metrics": {"listen": "127.0.0.1:9464"}},
        # The exporter itself comes from the distribution, whose mirror nobody here reaches.
        "monitoring_packages": [],
        "monitoring_rules": "/etc/fedmq",
        "monitoring_dashboards": "/etc/fedmq",
    }
    plant.host_variables = {
        "far": {
            "gateway_enrolment": "enrol",
            "gateway_ca_url": f"https://{CONTROL}:8443",
            # Every look renews.
            "gateway_renew_days": 3000,
            "gateway_pull_url": f"https://{CONTROL}:8444",
            "gateway_pull_key": fedmq(plant, "release", "key", "--out", str(bed.folder / "release.key")).split('"')[1],
            "gateway_pull_ca_file": str(authority.ca_file),
            "gateway_pull_settings": {"jitter_seconds": 0.0, "health": {"seconds": 60.0, "settle_seconds": 5.0}},
        },
        "gw1": {
            "firmware_bridge_ports": [{"name": "motor", "port": "/run/sensor.sock", "machine": "motor-1"}],
            "watch_machines": [{"name": "motor-1", "bearing": "6205", "speed_rpm": 1797, "iso_group": 2}],
            "watch_faults": ["inner_race", "ball", "outer_race"],
        },
    }
    releases.mkdir()
    plant.play("site.yml")
    with (
        served(plant, str(Path(sys.executable).parent / "fedmq"), "ca", "serve", "--dir", plant.variables["pki_dir"],
               "--host", CONTROL, "--listen", f"{CONTROL}:8443"),
        served(plant, sys.executable, "-c", textwrap.dedent(HTTPS), str(releases), str(certificate), str(key)),
    ):  # fmt: skip
        yield plant


def fedmq(plant: Plant, *words: str) -> str:
    """The command on the control node."""
    return plant.bed.control_run(Path(sys.executable).parent / "fedmq", *words)


def publish(plant: Plant, releases: Path, version: str) -> None:
    wheels = plant.wheelhouses / f"{MACHINE}-python{PYTHON}"
    key = str(plant.bed.folder / "release.key")
    fedmq(plant, "release", "make", str(wheels.resolve()), "--version", version, "--key", key, "--out", str(releases))


def test_without_a_token_it_waits_and_the_others_learn(plant: Plant) -> None:
    plant.wait_round(accepted=1)
    far = plant.bed.machine("far")
    assert far.run("systemctl is-active fedmq-gateway", check=False).out.strip() == "inactive"
    assert far.run("systemctl is-enabled fedmq-enrol fedmq-gateway").code == 0


def test_at_its_first_boot_with_a_token_it_enrols_and_answers_a_round(plant: Plant) -> None:
    far = plant.bed.machine("far")
    token = fedmq(plant, "ca", "token", "far", "--dir", plant.variables["pki_dir"]).strip().splitlines()[-1]
    (far.root / "etc/fedmq/token").write_text(token + "\n")
    (far.root / "etc/fedmq/token").chmod(0o600)
    far.power_cut()
    far.boot()
    # Nobody logs in from here on.
    far.run("systemctl disable --now ssh")
    plant.wait_round(accepted=2)
    assert far.run("test -e /etc/fedmq/token", check=False).code == 1, "a token is used up"


def test_it_renews_its_certificate_and_takes_it_into_use(plant: Plant) -> None:
    far = plant.bed.machine("far")
    before = far.run("cat /etc/fedmq/identity/client.crt").out
    pid = far.run("systemctl show fedmq-gateway -p MainPID --value").out
    assert "fedmq-renew.timer" in far.run("systemctl list-timers --no-legend").out
    far.run("systemctl start fedmq-renew")
    assert far.run("cat /etc/fedmq/identity/client.crt").out != before
    far.wait("a restart", lambda: far.run("systemctl show fedmq-gateway -p MainPID --value").out != pid)
    plant.wait_round(accepted=2)


def test_it_pulls_a_release_and_old_and_new_answer_in_one_round(plant: Plant, releases: Path) -> None:
    own = running(plant)["gw1"]
    far = plant.bed.machine("far")
    assert "fedmq-release.timer" in far.run("systemctl list-timers --no-legend").out
    plant.build(NEWER)
    publish(plant, releases, NEWER)
    with plant.no_round_lost():
        far.run("systemctl start fedmq-release", seconds=300)
        plant.wait_round(accepted=2)
    assert running(plant) == {"gw1": own, "far": NEWER}


def test_a_broken_release_is_taken_back_by_itself_and_not_tried_again(plant: Plant, releases: Path) -> None:
    far = plant.bed.machine("far")
    plant.build(BROKEN, change=break_gateways)
    publish(plant, releases, BROKEN)
    pulled = far.run("systemctl start fedmq-release", check=False, seconds=300)
    assert pulled.code != 0
    shown = json.loads(far.run("/opt/fedmq/current/bin/fedmq release show --json").out)
    assert shown["current"] == NEWER
    assert BROKEN in shown["state"]["bad"]
    plant.wait_round(accepted=2)
    assert running(plant)["far"] == NEWER


def test_the_broker_is_reached_from_its_own_network_and_from_no_other(plant: Plant) -> None:
    assert "10.77.0.0/24" in plant.hub.run("nft list table inet fedmq_broker").out
    probe = "import socket, sys; socket.create_connection((sys.argv[1], 8883), 3).close()"
    plant.bed.control_run(sys.executable, "-c", probe, plant.hub.addresses["plant"])
    other = plant.hub.addresses["other"]
    with pytest.raises(Exception, match="time"):
        plant.bed.control_run(sys.executable, "-c", probe, other)


def test_a_sensor_is_heard_and_what_it_says_is_judged(plant: Plant) -> None:
    """A sensor's side of a port, played on the machine itself: a healthy bearing, then one with a fault."""
    gateway = plant.bed.machine("gw1")
    play = (
        "systemd-run --collect --unit=sensor --property=User=fedmq --property=AmbientCapabilities=CAP_DAC_OVERRIDE"
        " /opt/fedmq/current/bin/fedmq replay simulated --socket /run/sensor.sock --machine motor-1"
        " --script healthy:30s,outer_race:60s"
    )
    gateway.run(play)
    book = "/var/lib/fedmq/watch/alerts.sqlite"
    alerts: list[dict[str, object]] = []

    def raised() -> bool:
        said = plant.fedmq("alert", "list", "--json", "--book", book, machine="gw1", check=False)
        alerts[:] = json.loads(said) if said else []
        return bool(alerts)

    gateway.wait("an alert", raised, seconds=180)
    assert {alert["machine"] for alert in alerts} == {"motor-1"}


def test_the_alert_is_seen_at_the_coordinator_and_what_is_said_there_comes_back(plant: Plant) -> None:
    def listed() -> list[dict[str, object]]:
        return json.loads(plant.fedmq("alert", "list", "--json", "--all", "--state", STATE))

    plant.hub.wait("the alert at the coordinator", listed, seconds=120)
    number = listed()[0]["number"]
    order = f"fedmq alert confirm gw1/{number} outer_race --control /run/fedmq/control.sock --wait 60"
    said = plant.hub.run(f"/opt/fedmq/current/bin/{order}")
    book = "/var/lib/fedmq/watch/alerts.sqlite"
    shown = json.loads(plant.fedmq("alert", "list", "--all", "--json", "--book", book, machine="gw1"))
    confirmed = [alert for alert in shown if alert["state"] == "confirmed"]
    assert [alert["verdict"] for alert in confirmed] == ["outer_race"], said


def test_the_server_shows_itself_to_people_and_to_their_tools(plant: Plant) -> None:
    fetch = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"
    page, figures = (
        plant.hub.run(["python3", "-c", fetch, f"http://127.0.0.1:{where}"]).out for where in ("8080/", "9464/metrics")
    )
    assert "far" in page
    assert 'fedmq_gateway_present{gateway="far"} 1.0' in figures
    plant.hub.run("systemctl start fedmq-report fedmq-metrics")
    assert "a gigabyte" in plant.hub.run("cat /var/lib/fedmq/reports/savings.html").out
    assert "fedmq_rounds" in plant.hub.run("cat /var/lib/prometheus/node-exporter/fedmq.prom").out
    assert {"fedmq-metrics.timer", "fedmq-report.timer"} <= set(plant.hub.run("systemctl list-timers").out.split())
    plant.hub.run("ls /etc/fedmq/fedmq.rules.yml /etc/fedmq/fedmq.json")


def test_remove_yml_leaves_nothing_of_all_that(plant: Plant) -> None:
    far = plant.bed.machine("far")
    far.run("systemctl enable --now ssh")
    plant.play("remove.yml", limit="far,gw1", extra_vars={"remove_sure": True})
    for name in ("far", "gw1"):
        machine = plant.bed.machine(name)
        left = machine.run("ls -d /etc/systemd/system/fedmq-* /etc/fedmq /opt/fedmq /var/lib/fedmq", check=False).out
        assert left == ""
