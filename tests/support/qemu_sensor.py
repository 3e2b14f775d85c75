"""The example firmware on an emulated Cortex-M3, its UART on a Unix socket."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "firmware_bridge" / "firmware" / "examples" / "qemu_mps2_an385"
LIBRARY = EXAMPLE.parents[1]
SAMPLE_HZ = 62_500
"""Twenty times the example's own, so that 2,000 frames take 2 s. Emulated time is this machine's, which may be busy:
the sensor's FIFO is made so deep that a late firmware loses no sample."""


def build_firmware(directory: Path) -> Path:
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: apt-get install gcc-arm-none-eabi qemu-system-arm make")
    shutil.copytree(LIBRARY, directory / "firmware", ignore=shutil.ignore_patterns("*.elf"))
    example = directory / "firmware" / "examples" / EXAMPLE.name
    defines = f"DEFINES=-DSAMPLE_HZ={SAMPLE_HZ} -DFIFO_DEPTH=1000000"
    ended = subprocess.run(["make", "-C", str(example), defines], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "warning" not in ended.stderr
    return example / "sensor.elf"


@contextmanager
def running(firmware: Path, directory: Path) -> Iterator[socket.socket]:
    """The firmware's UART. It starts as somebody connects, so that not one byte is missed. `reset` finds it there."""
    path = directory / "uart"
    serial = ["-serial", f"unix:{path},server=on,wait=on", "-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"]
    words = ["qemu-system-arm", "-M", "mps2-an385", "-display", "none", "-monitor", "none", "-kernel", str(firmware)]
    emulator = subprocess.Popen([*words, *serial], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert emulator.stdout is not None
        assert "waiting for connection" in emulator.stdout.readline()
        with socket.socket(socket.AF_UNIX) as connected:
            connected.settimeout(60)
            connected.connect(str(path))
            yield connected
    finally:
        emulator.terminate()
        emulator.wait(10)


def reset(directory: Path) -> None:
    """As the button on the board: it starts anew, and keeps what the example takes for flash."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(10)
        monitor.connect(str(directory / "qmp"))
        answers = monitor.makefile("r")
        answers.readline()
        for command in ("qmp_capabilities", "system_reset"):
            monitor.sendall(json.dumps({"execute": command}).encode("ascii"))
            assert "error" not in answers.readline()


def accelerations(begin: int, count: int) -> np.ndarray:
    """`(count, 3)` int16: `acceleration` of the example's main.c, once more."""
    n = np.arange(begin, begin + count, dtype=np.int64)
    sine = np.rint(400 * np.sin(2 * np.pi * np.arange(64) / 64)).astype(np.int64)
    axes = []
    for axis in range(3):
        noise = ((n * 3 + axis) * 2654435761 % 2**32 >> 26) - 32
        value = sine[(n + 16 * axis) & 63] + noise
        if axis == 2:
            value += (np.trunc(sine / 2).astype(np.int64))[2 * n & 63] + np.where(n % 500 < 4, 2000, 0)
        axes.append(value)
    return np.stack(axes, axis=1).astype(np.int16)
