"""The example firmware, built and run on an emulated Cortex-M3, its UART on a Unix socket."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "firmware_bridge" / "firmware" / "examples" / "qemu_mps2_an385"
LIBRARY = EXAMPLE.parents[1]


def build(directory: Path, **defines: int) -> Path:
    """The firmware as an ELF file; skips the test where a tool is missing."""
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: apt-get install gcc-arm-none-eabi qemu-system-arm make")
    shutil.copytree(LIBRARY, directory / "firmware", ignore=shutil.ignore_patterns("*.elf"))
    example = directory / "firmware" / "examples" / EXAMPLE.name
    words = "DEFINES=" + " ".join(f"-D{name}={value}" for name, value in defines.items())
    ended = subprocess.run(["make", "-C", str(example), words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "warning" not in ended.stderr
    return example / "sensor.elf"


@contextmanager
def emulated(firmware: Path, uart: Path, monitor: Path | None = None) -> Iterator[None]:
    """It starts as somebody connects to `uart`, so that not one byte is missed. `monitor` is where it takes QMP."""
    serial = ["-serial", f"unix:{uart},server=on,wait=on"]
    control = [] if monitor is None else ["-qmp", f"unix:{monitor},server=on,wait=off"]
    words = ["qemu-system-arm", "-M", "mps2-an385", "-display", "none", "-monitor", "none", "-kernel", str(firmware)]
    emulator = subprocess.Popen(
        [*words, *serial, *control], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert emulator.stdout is not None
        assert "waiting for connection" in emulator.stdout.readline()
        yield
    finally:
        emulator.terminate()
        emulator.wait(10)
