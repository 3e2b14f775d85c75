"""The wheel, as somebody installs it: built, unpacked elsewhere, and used from there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling: pip install 'fedmq[dev]'")
    directory = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), str(ROOT))
    (built,) = directory.glob("fedmq-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, and nothing of the source tree."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def fedmq(installed: Path, cwd: Path, *words: str) -> str:
    """What the installed command prints, started where no source is."""
    ended = subprocess.run(
        [sys.executable, "-m", "fedmq", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(installed)},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_installed_code_is_what_runs(installed: Path, tmp_path: Path) -> None:
    program = "import fedmq, fedmq_protocol, fedmq_coordinator; print(fedmq.__file__, fedmq_coordinator.__file__)"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
    )
    assert all(Path(word).is_relative_to(installed) for word in ended.stdout.split()), ended.stdout
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert fedmq(installed, tmp_path, "--version").strip() == f"fedmq {version}"


def test_the_installed_command_prints_its_examples(installed: Path, tmp_path: Path) -> None:
    assert "data_dir" in tomllib_keys(fedmq(installed, tmp_path, "gateway", "--example"))
    assert "state_dir" in fedmq(installed, tmp_path, "coordinator", "--example")


def test_the_installed_command_renders_the_configuration_that_is_shipped(installed: Path, tmp_path: Path) -> None:
    fedmq(installed, tmp_path, "broker", "--render", "rendered", "--federation", "plant")
    shipped = (ROOT / "broker_config" / "mosquitto" / "loopback" / "acl").read_text(encoding="utf-8")
    assert (tmp_path / "rendered" / "acl").read_text(encoding="utf-8") == shipped
    assert "listener 1883 127.0.0.1" in (tmp_path / "rendered" / "mosquitto.conf").read_text(encoding="utf-8")


def test_the_installed_register_maps_can_be_read(installed: Path, tmp_path: Path) -> None:
    program = """
from fedmq_firmware_bridge.registers import included_maps, load
print(len([load(name) for name in included_maps()]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
    )
    maps = ROOT / "firmware_bridge" / "fedmq_firmware_bridge" / "maps"
    assert int(ended.stdout) == len(list(maps.glob("*.toml"))) > 0


def test_the_wheel_holds_what_is_not_python_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("assets", "web"):
        place = ROOT / "coordinator" / "fedmq_coordinator"
        assets = [path.relative_to(place) for path in (place / folder).rglob("*") if path.suffix not in (".py", ".pyc")]
        shipped = [asset.as_posix() for asset in assets if (place / asset).is_file()]
        assert shipped
        for asset in shipped:
            assert f"fedmq_coordinator/{asset}" in names
    assert "fedmq_coordinator/web/vendor/uplot/LICENSE" in names
    maps = ROOT / "firmware_bridge" / "fedmq_firmware_bridge" / "maps"
    shipped = sorted(path.name for path in maps.iterdir())
    assert shipped
    assert sorted(name for name in names if "/maps/" in name) == [
        f"fedmq_firmware_bridge/maps/{one}" for one in shipped
    ]
    assert {"fedmq/metrics/files/fedmq.rules.yml", "fedmq/metrics/files/fedmq.json"} <= set(names)
    packages = {name.partition("/")[0] for name in names if name.endswith("/py.typed")}
    assert packages == {path.parent.name for path in ROOT.glob("*/py.typed")} | {
        path.parent.name for path in ROOT.glob("*/fedmq_*/py.typed")
    }
    assert not [name for name in names if name.startswith(("tests", "bench", "docs", ".venv"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def tomllib_keys(text: str) -> str:
    """The text, checked to be TOML where it is not a comment."""
    tomllib.loads(text)
    return text
