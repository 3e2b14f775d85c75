"""0. What can be said of roles and playbooks without a machine: knobs, settings in TOML, how units are shut in."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"
PROGRAMS = Path(sys.executable).parent
PLAYBOOKS = sorted(path.name for path in ANSIBLE.glob("*.yml"))
ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir())
UNITS = {
    "broker": ["fedmq-broker-guard.service", "fedmq-firewall.service"],
    "coordinator": ["fedmq-coordinator.service"],
    "firmware_bridge": ["fedmq-bridge.service"],
    "gateway": [
        "fedmq-gateway.service",
        "fedmq-renew.service",
        "fedmq-enrol.service",
        "fedmq-identity.service",
        "fedmq-release.service",
    ],
    "monitoring": ["fedmq-metrics.service", "fedmq-report.service"],
    "watch": ["fedmq-watch.service"],
}


def ansible(program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    }
    command = [str(PROGRAMS / program), *map(str, words)]
    return subprocess.run(command, cwd=ANSIBLE, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("inventory", ["one-site", "several-sites"])
def test_playbooks_go_with_the_inventories_that_are_shipped(inventory: str) -> None:
    done = ansible("ansible-playbook", "--syntax-check", "-i", f"inventories/{inventory}", *PLAYBOOKS)
    assert done.returncode == 0, done.stderr
    listed = json.loads(ansible("ansible-inventory", "-i", f"inventories/{inventory}", "--list").stdout)
    assert {"brokers", "coordinators", "gateways"} <= set(listed)


@pytest.mark.parametrize("role", ROLES)
def test_every_knob_of_a_role_has_a_default_or_must_be_given_and_is_described(role: str) -> None:
    yaml = pytest.importorskip("yaml")
    defaults = yaml.safe_load((ANSIBLE / f"roles/{role}/defaults/main.yml").read_text())
    specs = yaml.safe_load((ANSIBLE / f"roles/{role}/meta/argument_specs.yml").read_text())["argument_specs"]
    described = {name for entry in specs.values() for name in entry.get("options", {})}
    assert set(defaults) == described
    assert all(name.startswith(f"{role}_") for name in defaults)


def filters() -> Any:
    spec = importlib.util.spec_from_file_location("fedmq_filters", ANSIBLE / "filter_plugins/fedmq.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_are_the_same_read_back_from_toml() -> None:
    document = {
        "name": 'press "1"\n\\ é \x7f \x01',
        "tags": ["a", "b"],
        "empty": [],
        "nested": {"port": 8883, "deep": {"on": True, "rate hz": 12000.0}, "off": False},
        "port": [{"name": "motor", "line": {"columns": ["x", "y"]}}, {"name": "fan"}],
    }
    assert tomllib.loads(filters().to_toml(document)) == document


def test_what_is_null_keeps_its_default_and_what_toml_lacks_is_refused() -> None:
    assert filters().to_toml({"a": None, "b": {"c": None}}) == "[b]\n"
    from ansible.errors import AnsibleFilterError

    with pytest.raises(AnsibleFilterError, match=r"to_toml: a\.b: expected a text"):
        filters().to_toml({"a": {"b": [{"c": 1}, 2]}})


def test_a_wheelhouse_says_its_version(tmp_path: Path) -> None:
    from ansible.errors import AnsibleFilterError

    with pytest.raises(AnsibleFilterError, match="one wheel of fedmq, got 0"):
        filters().wheelhouse_version(str(tmp_path))
    (tmp_path / "fedmq-0.3.1.dev2-py3-none-any.whl").touch()
    assert filters().wheelhouse_version(str(tmp_path)) == "0.3.1.dev2"


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All units, rendered with what stands in defaults."""
    folder = tmp_path_factory.mktemp("units")
    plays = [
        {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": True,
            "vars_files": [
                str(path)
                for name in ("release", role)
                for path in (ANSIBLE / f"roles/{name}/defaults/main.yml", ANSIBLE / f"roles/{name}/vars/main.yml")
                if path.exists()
            ],
            "vars": {
                "ansible_python_interpreter": "{{ ansible_playbook_python }}",
                "fedmq_broker_host": "hub",
                "gateway_ca_url": "https://hub:8443",
            },
            "tasks": [
                {
                    "ansible.builtin.template": {
                        "src": str(ANSIBLE / f"roles/{role}/templates/{unit}.j2"),
                        "dest": str(folder / unit),
                        "mode": "0644",
                    }
                }
                for unit in names
            ],
        }
        for role, names in UNITS.items()
        if role in ROLES
    ]
    playbook = folder / "render.yml"
    playbook.write_text(json.dumps(plays))
    done = ansible("ansible-playbook", "-i", "localhost,", playbook)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("unit", [unit for role, units in UNITS.items() if role in ROLES for unit in units])
def test_a_unit_is_shut_in(units: Path, unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(units / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= 2.5, done.stdout


@pytest.mark.parametrize("unit", [unit for role, units in UNITS.items() if role in ROLES for unit in units])
def test_systemd_knows_every_line_of_a_unit(units: Path, unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(units / unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    # The programs themselves are not on this machine.
    wrong = [line for line in done.stderr.splitlines() if unit in line and "is not executable" not in line]
    assert wrong == []
