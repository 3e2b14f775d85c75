"""The command as people type it: help, examples, and reports of a run that is going on."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from fedmq_broker_config.run import LocalBroker
from fedmq_coordinator.settings import CoordinatorSettings, TaskSettings
from fedmq_edge_node.settings import GatewaySettings
from fedmq_protocol.settings import Table, load
from processes import Site, fedmq, small_fleet

pytestmark = pytest.mark.slow

COMMANDS = ("broker", "coordinator", "gateway", "report", "status", "demo")


def said(*words: str, cwd: Path | None = None) -> str:
    """What the command prints when all is well."""
    ended = fedmq(*words, cwd=cwd)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_help_names_every_command_and_every_command_has_help() -> None:
    assert said("--version").startswith("fedmq ")
    top = said("--help")
    for command in COMMANDS:
        assert re.search(rf"^    {command}\s", top, re.MULTILINE)
        own = said(command, "--help")
        assert own.startswith(f"usage: fedmq {command} ")
        assert "--" in own


@pytest.mark.parametrize(("command", "settings"), [("coordinator", CoordinatorSettings), ("gateway", GatewaySettings)])
def test_an_example_is_settings_without_a_mistake(tmp_path: Path, command: str, settings: type[Table]) -> None:
    example = tmp_path / f"{command}.toml"
    example.write_text(said(command, "--example"), encoding="utf-8")
    loaded = load(settings, example)
    # As it is printed it changes nothing: what it sets are the defaults, and what has none is an example.
    plain: Table = CoordinatorSettings(
        state_dir=Path("/var/lib/fedmq/coordinator"),
        task=TaskSettings(name="bearing-faults", classes=("normal", "inner", "ball", "outer")),
    )
    if command == "gateway":
        plain = GatewaySettings(
            name="gateway-1", data_dir=Path("/var/lib/fedmq/data"), state_dir=Path("/var/lib/fedmq/gateway")
        )
    assert loaded == plain


def test_every_key_of_an_example_may_be_uncommented(tmp_path: Path) -> None:
    """Tables and keys that are only shown, after a single #, are settings as well."""
    for command, settings in (("coordinator", CoordinatorSettings), ("gateway", GatewaySettings)):
        keys = [
            line.lstrip("#").strip().partition(" =")[0]
            for line in said(command, "--example").splitlines()
            if " = " in line and line.lstrip("#").strip().partition(" =")[0].isidentifier()
        ]
        for name, field in settings.__dataclass_fields__.items():
            if not isinstance(field.default_factory, type) and name != "task":
                assert name in keys, f"{name} is not in the example of {command}"


def test_a_configuration_is_rendered_into_a_folder(tmp_path: Path) -> None:
    assert said("broker", "--render", "etc", "--federation", "plant", "--port", "1999", cwd=tmp_path) == ""
    assert "listener 1999 127.0.0.1" in (tmp_path / "etc" / "mosquitto.conf").read_text(encoding="utf-8")
    acl = (tmp_path / "etc" / "acl").read_text(encoding="utf-8")
    assert "fl/1/plant/up/+/answer" in acl


def test_the_configuration_of_a_site_is_rendered_with_its_bridge(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text(
        'access = "certificates"\nca_file = "ca.crt"\ncertificate_file = "broker.crt"\nkey_file = "broker.key"\n'
        'sites = ["north: g1 g2"]\n',
        encoding="utf-8",
    )
    common = ("--config", "broker.toml", "--render", "etc", "--upstream", "broker.example:8883", "--identity", "id")
    assert said("broker", "site", "north", *common, cwd=tmp_path) == ""
    conf = (tmp_path / "etc" / "mosquitto.conf").read_text(encoding="utf-8").splitlines()
    for line in (
        "address broker.example:8883",
        f"bridge_certfile {tmp_path / 'id' / 'client.crt'}",
        f"cafile {tmp_path / 'ca.crt'}",
        "topic fl/1/plant/up/g2/answer out 0",
    ):
        assert line in conf
    assert "user g2" in (tmp_path / "etc" / "acl").read_text(encoding="utf-8").splitlines()


@pytest.mark.broker
def test_reports_and_status_of_a_run_that_is_going_on(tmp_path: Path, mosquitto: LocalBroker) -> None:
    fleet = small_fleet(2)
    slow = fleet.gateways[0].name
    with Site(
        tmp_path,
        fleet,
        port=mosquitto.port,
        rounds=1000,
        round_={"interval_seconds": 1.0},
        gateway_of={slow: {"answer_jitter_seconds": 1.0}},
    ) as site:
        site.start()
        site.wait(lambda ledger: len(site.training("applied")) >= 2, "two rounds")
        state = ("--state", str(site.state))

        now = said("status", *state)
        for name in site.names:
            assert name in now
        table = said("report", *state)
        for name in site.names:
            assert name in table
        report = json.loads(said("report", *state, "--json"))
        assert {line["name"] for line in report["gateways"]} == set(site.names)
        assert report["wire"]["up"] > 0
        assert report["wire"]["down"] > 0
        lines = list(csv.DictReader(io.StringIO(said("report", *state, "--csv"))))
        assert len(lines) >= 3
        assert len({tuple(line) for line in lines}) == 1
        page = tmp_path / "savings.html"
        assert said("report", *state, "--html", str(page)) == ""
        text = page.read_text(encoding="utf-8")
        assert text.lstrip().lower().startswith("<!doctype html")
        assert 'src="http' not in text, "the page must need nothing but itself"
        assert slow in text

        # All of that only read: the run has gone on meanwhile, and goes on.
        done = len(site.training("applied"))
        site.wait(lambda ledger: len(site.training("applied")) > done, "another round")
        site.finish()
