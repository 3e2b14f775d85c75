"""The folder for machines without internet: it installs by itself, says what is in it, and a changed byte shows."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_REQUIRE_VIRTUALENV")}
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, cwd=cwd, env=kept)


def fill(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "scripts" / "wheelhouse.py"), str(directory), *words]
    return subprocess.run(script, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the base, for this machine."""
    for needed in ("hatchling", "cyclonedx", "packaging"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}: pip install 'fedmq[dev]'")
    probe = tmp_path_factory.mktemp("probe")
    reached = run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", probe, "msgspec")
    if reached.returncode:
        pytest.skip(f"the package index cannot be reached: {reached.stderr.strip().splitlines()[-1]}")
    directory = tmp_path_factory.mktemp("house") / "wheels"
    filled = fill(directory)
    assert filled.returncode == 0, filled.stderr
    return directory


@pytest.fixture(scope="session")
def script() -> ModuleType:
    pytest.importorskip("packaging")
    spec = importlib.util.spec_from_file_location("wheelhouse_script", ROOT / "scripts" / "wheelhouse.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wheelhouse_script"] = module
    spec.loader.exec_module(module)
    return module


def install(house: Path, venv: Path) -> subprocess.CompletedProcess[str]:
    """As the machine without internet does it."""
    made = run(sys.executable, "-m", "venv", venv)
    assert made.returncode == 0, made.stderr
    pip = [venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "--isolated"]
    return run(
        *(*pip, "install", "--no-index", "--no-cache-dir", "--find-links", house),
        *("--require-hashes", "-r", house / "requirements.txt"),
    )


@pytest.mark.slow
def test_the_folder_alone_installs_the_command(house: Path, tmp_path: Path) -> None:
    installed = install(house, tmp_path / "venv")
    assert installed.returncode == 0, installed.stderr
    told = run(tmp_path / "venv" / "bin" / "fedmq", "--version", cwd=tmp_path)
    assert told.stdout == f"fedmq {PROJECT['version']}\n", told.stderr


@pytest.mark.slow
def test_one_changed_byte_of_a_wheel_is_refused(house: Path, tmp_path: Path) -> None:
    changed = tmp_path / "wheels"
    shutil.copytree(house, changed)
    whole = run("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS", cwd=changed)
    assert whole.returncode == 0, whole.stdout
    (wheel,) = changed.glob("msgspec-*.whl")
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    refused = install(changed, tmp_path / "venv")
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / "venv" / "bin" / "fedmq").exists()
    checked = run("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS", cwd=changed)
    assert checked.returncode != 0
    assert checked.stdout.splitlines() == [f"{wheel.name}: FAILED"]


@pytest.mark.slow
def test_every_wheel_is_listed_with_its_hash_and_nothing_else(house: Path) -> None:
    wheels = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in house.glob("*.whl")}
    assert {path.name for path in house.iterdir()} == {*wheels, "requirements.txt", "sbom.cdx.json", "SHA256SUMS"}
    requirements = (house / "requirements.txt").read_text()
    assert sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", requirements)) == sorted(wheels.values())
    sums = dict(line.split("  ")[::-1] for line in (house / "SHA256SUMS").read_text().splitlines())
    assert {name: digest for name, digest in sums.items() if name.endswith(".whl")} == wheels
    named = {re.split(r"[>=<;\[ ]", one)[0] for one in PROJECT["dependencies"]}
    assert named <= set(re.findall(r"^([a-z0-9-]+)", requirements, re.MULTILINE))


@pytest.mark.slow
def test_the_bill_of_materials_follows_its_schema_and_names_every_wheel(house: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (house / "sbom.cdx.json").read_text(encoding="utf-8")
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"SHA-256"', '"ROT-13"')) is not None, "the schema does look at it"
    bom = json.loads(text)
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    own = bom["metadata"]["component"]
    assert (own["name"], own["version"], own["licenses"]) == (
        "fedmq",
        PROJECT["version"],
        [{"expression": "Apache-2.0"}],
    )
    hashes = {one["hashes"][0]["content"] for one in [own, *bom["components"]]}
    assert hashes == {hashlib.sha256(path.read_bytes()).hexdigest() for path in house.glob("*.whl")}
    assert all(one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}" for one in bom["components"])
    assert all(one["licenses"] for one in bom["components"])
    edges = {line["ref"].partition("@")[0]: line.get("dependsOn", []) for line in bom["dependencies"]}
    assert len(edges["pkg:pypi/fedmq"]) == len(PROJECT["dependencies"])
    assert edges["pkg:pypi/cryptography"], "what is needed by what is needed is told, too"


@pytest.mark.slow
def test_a_folder_with_something_in_it_and_an_extra_that_is_none_are_refused(house: Path, tmp_path: Path) -> None:
    again = fill(house)
    assert again.returncode == 1
    assert f"{house}: expected an empty folder" in again.stderr
    wrong = fill(tmp_path / "wheels", "telepathy")
    assert wrong.returncode == 1
    assert "no extra telepathy; there is authoring, bench, bridge" in wrong.stderr
    assert not list((tmp_path / "wheels").iterdir()), "half a folder would be taken for a whole one"


def test_a_target_is_described_as_its_conditions_see_it(script: ModuleType) -> None:
    target = script.Target(platforms=("manylinux2014_armv7l", "linux_armv7l"), python_version="3.11")
    assert list(target.pip_words()) == [
        "--platform=manylinux2014_armv7l",
        "--platform=linux_armv7l",
        "--python-version=3.11",
    ]
    assert target.environment()["platform_machine"] == "armv7l"
    assert target.environment()["python_version"] == "3.11"
    assert script.Target().environment() == {}
    with pytest.raises(ValueError, match="tags of one kind of machine, got aarch64, x86_64"):
        script.Target(platforms=("manylinux_2_28_aarch64", "manylinux2014_x86_64")).environment()


def test_what_the_target_needs_is_worked_out_for_the_target(script: ModuleType) -> None:
    from email.message import Message

    from packaging.requirements import Requirement

    def wheel(name: str, version: str, *needs: str) -> object:
        metadata = Message()
        metadata["Provides-Extra"] = "tflite"
        return script.Wheel(
            path=Path(name),
            name=name,
            version=version,
            sha256="",
            metadata=metadata,
            needs=tuple(map(Requirement, needs)),
        )

    own = wheel("fedmq", "1", "numpy>=1", 'old; python_version < "3.12"', 'lite; extra == "tflite"')
    wheels = {"fedmq": own, "numpy": wheel("numpy", "2"), "lite": wheel("lite", "1", "fedmq[tflite]")}
    assert script._needed(wheels, (), {"python_version": "3.13"}) == {"fedmq": {"numpy"}, "numpy": set()}
    assert script._needed(wheels, ("tflite",), {"python_version": "3.13"})["fedmq"] == {"numpy", "lite"}
    with pytest.raises(ValueError, match=r'fedmq needs old; python_version < "3.12" on that machine'):
        script._needed(wheels, (), {"python_version": "3.11"})
    wheels["numpy"] = wheel("numpy", "0.9")
    with pytest.raises(ValueError, match="fedmq needs numpy>=1 on that machine"):
        script._needed(wheels, (), {"python_version": "3.13"})
