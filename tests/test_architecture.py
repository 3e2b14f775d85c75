"""Who may know whom: reads the imports of all shipped code, and keeps the sentences of the layout true."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("protocol", "compression", "models", "broker_config", "edge_node", "coordinator", "firmware_bridge")
PACKAGES = {name: folder for name in FOLDERS if (folder := ROOT / name / f"fedmq_{name}").is_dir()} | {
    "fedmq": ROOT / "fedmq"
}

MAY_IMPORT = {
    "compression": set(),
    "firmware_bridge": set(),
    "protocol": set(),
    "models": {"protocol", "compression"},
    "broker_config": {"protocol"},
    "edge_node": {"protocol", "compression", "models", "firmware_bridge"},
    "coordinator": {"protocol", "compression", "models"},
    "fedmq": {"protocol", "compression", "models", "broker_config", "edge_node", "coordinator", "firmware_bridge"},
}

DOORS = {
    "paho": {"protocol/session.py"},
    "psutil": {"edge_node/vitals.py", "fedmq/demo.py"},
    "zstandard": {"compression/frame.py", "fedmq/bench/rivals.py"},
    "numba": {"compression/compiled.py"},
    "scipy": {"fedmq/data.py"},
    "rich": {"coordinator/report_text.py", "fedmq/showing.py", "fedmq/bench/showing.py"},
    "prometheus_client": {"fedmq/metrics/serving.py"},
    "pyroaring": {"fedmq/bench/rivals.py"},
    "matplotlib": {"fedmq/bench/showing.py", "fedmq/simulate/showing.py"},
    "iotcore": {"broker_config/run.py"},
    "serial": {"firmware_bridge/port.py"},
    "pymodbus": {"firmware_bridge/modbus.py"},
    "cobs": {"firmware_bridge/frames.py"},
    "fastcrc": {"firmware_bridge/frames.py"},
    "onnxruntime": {"edge_node/runtimes.py"},
    "ai_edge_litert": {"edge_node/runtimes.py", "models/tflite_int8.py"},
    "ai_edge_quantizer": {"models/tflite_int8.py"},
    "tflite_runtime": {"edge_node/runtimes.py"},
    "flatbuffers": {"models/tflite_format.py"},
    "torch": {"fedmq/authoring/tracing.py", "fedmq/authoring/building.py"},
    "onnx": {"fedmq/authoring/tracing.py", "fedmq/authoring/conversion.py"},
    "onnxscript": {"fedmq/authoring/tracing.py"},
    "cryptography": {
        "protocol/signing.py",
        "protocol/identity.py",
        "fedmq/ca/certificates.py",
        "fedmq/doctor/certificates.py",
        "fedmq/doctor/identity.py",
        "fedmq/doctor/network.py",
        "fedmq/simulate/sealing.py",
        "broker_config/revocation.py",
    },
    "starlette": {"coordinator/web/app.py", "coordinator/web/service.py"},
    "uvicorn": {"coordinator/web/service.py"},
    "grp": {"coordinator/control.py"},
    "sqlite3": {
        "coordinator/ledger.py",
        "edge_node/alertbook.py",
        "edge_node/memory.py",
        "firmware_bridge/store.py",
        "fedmq/simulate/disks.py",
    },
}
"""Each outside thing has one door. The demo measures its children's memory, which is not a gateway's vitals, the
codec's rivals compress for themselves, a file in integers is read and run where it is made, and a simulation has disks
of its own."""

CLOCKS = {
    ("time", name)
    for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "process_time", "sleep", "localtime")
} | {("datetime", "now"), ("datetime", "today"), ("datetime", "utcnow"), ("date", "today")}
MAY_READ_CLOCKS = {"service.py", "session.py", "port.py", "modbus.py", "vitals.py", "control.py", "audit.py"}
"""`vitals.py` reads the machine: how busy it was is a difference over time. `control.py` gives each connection its
time, in a thread of its own; `audit.py` says when something happened as it is noted."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """One source file: `where` is package and name, such as `protocol/session.py`."""

    where: str
    package: str
    tree: ast.Module

    def imports(self) -> Iterator[tuple[str, bool]]:
        """Top-level names that are imported, each with whether that happens as the module is loaded."""
        lazy = {id(inner) for node in ast.walk(self.tree) if _is_lazy(node) for inner in ast.walk(node)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name.partition(".")[0], id(node) not in lazy
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.where}: a relative import"
                yield (node.module or "").partition(".")[0], id(node) not in lazy


def _is_lazy(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return True
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _modules() -> list[Module]:
    return [
        Module(
            where=f"{name}/{path.relative_to(folder).as_posix()}",
            package=name,
            tree=ast.parse(path.read_text(encoding="utf-8"), str(path)),
        )
        for name, folder in PACKAGES.items()
        for path in sorted(folder.rglob("*.py"))
    ]


MODULES = _modules()


def test_there_is_code_to_read() -> None:
    assert len(MODULES) > 30
    assert {"protocol/session.py", "compression/frame.py", "fedmq/demo.py"} <= {module.where for module in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.where)
def test_a_package_imports_only_those_that_it_may_know(module: Module) -> None:
    own = {name if name == "fedmq" else f"fedmq_{name}" for name in MAY_IMPORT[module.package]}
    own.add("fedmq" if module.package == "fedmq" else f"fedmq_{module.package}")
    strange = {name for name, _ in module.imports() if name.startswith("fedmq") and name not in own}
    assert not strange, f"{module.where} imports {strange}"


@pytest.mark.parametrize("outside", DOORS)
def test_an_outside_thing_has_one_door(outside: str) -> None:
    through = {module.where for module in MODULES for name, _ in module.imports() if name == outside}
    assert through <= DOORS[outside], f"{outside} is imported by {through - DOORS[outside]}"


@pytest.mark.parametrize(
    "outside",
    [
        *(
            "scipy",
            "iotcore",
            "onnxruntime",
            "ai_edge_litert",
            "ai_edge_quantizer",
            "tflite_runtime",
            "flatbuffers",
            "serial",
            "pymodbus",
        ),
        *("matplotlib", "prometheus_client", "pyroaring", "numba"),
    ],
)
def test_what_may_be_missing_is_imported_where_it_is_used(outside: str) -> None:
    eager = {module.where for module in MODULES for name, at_load in module.imports() if name == outside and at_load}
    assert not eager


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.where)
def test_only_services_and_drivers_read_a_clock_or_sleep(module: Module) -> None:
    if module.package == "fedmq" or module.where == "broker_config/run.py":
        return
    if module.where.rpartition("/")[2] in MAY_READ_CLOCKS:
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in CLOCKS, f"{module.where}:{node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            raise AssertionError(f"{module.where}:{node.lineno}: from time import …")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.where)
def test_nothing_from_outside_is_ever_run(module: Module) -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    assert not {name for name, _ in module.imports()} & forbidden
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "compile", "__import__"}, f"{module.where}:{node.lineno}"
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            called = (node.func.value.id, node.func.attr)
            assert called not in {("os", "system"), ("os", "popen")}, f"{module.where}:{node.lineno}"
            if called == ("np", "load"):
                given = {word.arg: word.value for word in node.keywords}
                allowed = given.get("allow_pickle")
                assert isinstance(allowed, ast.Constant), f"{module.where}:{node.lineno}: np.load without allow_pickle"
                assert allowed.value is False, f"{module.where}:{node.lineno}"
        for word in node.keywords:
            if word.arg == "shell":
                assert isinstance(word.value, ast.Constant), f"{module.where}:{node.lineno}"
                assert word.value.value is False, f"{module.where}:{node.lineno}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_root_folder_is_no_package(folder: str) -> None:
    """From Python 3.14 the standard library has a package `compression`, and gzip imports it."""
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_that_it_is_typed(package: str) -> None:
    assert (PACKAGES[package] / "__init__.py").is_file()
    assert (PACKAGES[package] / "py.typed").is_file()


def test_a_gateway_loads_nothing_that_only_a_server_or_a_workstation_needs() -> None:
    program = """
import sys
from pathlib import Path
from fedmq_edge_node.settings import GatewaySettings
from fedmq.programs import build_gateway
try:
    build_gateway(GatewaySettings(name="g", data_dir=Path("/nowhere"), state_dir=Path("/dev/null/nowhere"), nice=0))
except ValueError:
    pass
assert "fedmq_edge_node.service" in sys.modules
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert {"numpy", "paho", "msgspec", "zstandard"} <= loaded, "what a gateway does need was not loaded"
    unneeded = {"rich", "scipy", "numba", "iotcore", "prometheus_client", "fedmq_coordinator", "fedmq_broker_config"}
    unneeded |= {"hypothesis", "pytest"}
    assert not loaded & unneeded


def test_reading_the_command_line_loads_no_part_of_the_work() -> None:
    """Each program has the command line in its memory, and an installation may lack what another program needs."""
    code = (
        "import sys; from fedmq.cli import _parser; _parser();print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert "fedmq" in loaded
    assert loaded.isdisjoint({f"fedmq_{name}" for name in MAY_IMPORT if name != "fedmq"})
    assert loaded.isdisjoint(DOORS)


@pytest.mark.parametrize(
    "program", ["fedmq.demo", "fedmq.programs", "fedmq_edge_node.service", "fedmq_edge_node.folder"]
)
def test_what_has_no_sensors_runs_without_the_bridges_extra(program: str) -> None:
    code = (
        "import importlib, sys; sys.modules |= dict.fromkeys(('cobs', 'fastcrc', 'serial', 'pymodbus'));"
        f"importlib.import_module({program!r})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
