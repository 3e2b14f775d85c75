"""The example firmware on an emulated Cortex-M3, its UART on a Unix socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from qemu import build, emulated

SAMPLE_HZ = 62_500
"""Twenty times the example's own, so that 2,000 frames take 2 s. Emulated time is this machine's, which may be busy:
the sensor's FIFO is made so deep that a late firmware loses no sample."""


def build_firmware(directory: Path) -> Path:
    return build(directory, SAMPLE_HZ=SAMPLE_HZ, FIFO_DEPTH=1_000_000)


@contextmanager
def running(firmware: Path, directory: Path) -> Iterator[socket.socket]:
    """The firmware's UART. `reset` finds it there."""
    path = directory / "uart"
    with emulated(firmware, path, directory / "qmp"), socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(60)
        connected.connect(str(path))
        yield connected


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
