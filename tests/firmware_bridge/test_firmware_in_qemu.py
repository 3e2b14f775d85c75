"""The example firmware on an emulated Cortex-M3, its UART on a Unix socket: nothing lost, every sample right."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_firmware_bridge.frames import AskHello, Decoder, Hello, encode
from fedmq_firmware_bridge.readings import Line, Stretch
from qemu import build, emulated

pytestmark = pytest.mark.slow

FRAMES = 2000
SAMPLE_HZ = 62_500
"""Twenty times the example's own, so that 2,000 frames take 2 s. Emulated time is this machine's, which may be busy:
the sensor's FIFO is made so deep that a late firmware loses no sample."""


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("firmware"), SAMPLE_HZ=SAMPLE_HZ, FIFO_DEPTH=1_000_000)


@pytest.fixture
def line(firmware: Path, tmp_path: Path) -> Iterator[socket.socket]:
    path = tmp_path / "uart"
    with emulated(firmware, path), socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(60)
        connected.connect(str(path))
        yield connected


def test_two_thousand_of_two_thousand_frames_arrive_and_every_sample_is_what_the_firmware_made(
    line: socket.socket,
) -> None:
    decoder, book = Decoder(), Line()
    stretches: list[Stretch] = []
    hellos: list[Hello] = []
    asked = False
    while 1 not in book.sensors or book.sensors[1].counts.frames < FRAMES or len(hellos) < 2:
        frames = decoder.feed(line.recv(1 << 16))
        hellos += [frame for frame in frames if isinstance(frame, Hello)]
        stretches += book.take(frames, 0.0)
        if not asked and hellos:
            line.sendall(encode(AskHello(sensor=0xFFFF, sequence=0)))
            asked = True

    counts = book.sensors[1].counts
    assert (counts.lost_frames, counts.gaps, counts.overruns, counts.restarts, counts.jumps) == (0, 0, 0, 0, 0)
    assert (decoder.counts.failed, decoder.counts.malformed, decoder.counts.oversized) == (0, 0, 0)
    assert [stretch.follows for stretch in stretches] == [False, *[True] * (len(stretches) - 1)]

    values = np.concatenate([stretch.values for stretch in stretches])
    assert len(values) >= FRAMES * 64
    assert np.array_equal(values, accelerations(len(values)))

    assert [hello.sequence for hello in hellos[:2]] == [0, 1], "one at the start, one for the question"
    assert (hellos[0].name, hellos[0].firmware, hellos[0].now_us) == ("qemu-motor", "1.0.0", 0)
    assert [channel.unit for channel in hellos[0].channels] == ["m/s2"] * 3


def accelerations(count: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """`acceleration` of the example's main.c, once more."""
    n = np.arange(count, dtype=np.int64)
    sine = np.rint(400 * np.sin(2 * np.pi * np.arange(64) / 64)).astype(np.int64)
    axes = []
    for axis in range(3):
        noise = ((n * 3 + axis) * 2654435761 % 2**32 >> 26) - 32
        value = sine[(n + 16 * axis) & 63] + noise
        if axis == 2:
            value += (np.trunc(sine / 2).astype(np.int64))[2 * n & 63] + np.where(n % 500 < 4, 2000, 0)
        axes.append(value)
    return np.stack(axes, axis=1).astype(np.int16)
