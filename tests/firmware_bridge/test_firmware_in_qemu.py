"""The example firmware on an emulated Cortex-M3, its UART on a Unix socket: nothing lost, every sample right."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fedmq_firmware_bridge.frames import AskHello, Decoder, Hello, encode
from fedmq_firmware_bridge.readings import Line, Stretch
from qemu_sensor import accelerations, build_firmware, running

pytestmark = pytest.mark.slow

FRAMES = 2000


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_firmware(tmp_path_factory.mktemp("firmware"))


@pytest.fixture
def line(firmware: Path, tmp_path: Path) -> Iterator[socket.socket]:
    with running(firmware, tmp_path) as connected:
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
    assert np.array_equal(values, accelerations(0, len(values)))

    assert [hello.sequence for hello in hellos[:2]] == [0, 1], "one at the start, one for the question"
    assert (hellos[0].name, hellos[0].firmware, hellos[0].now_us) == ("qemu-motor", "1.0.0", 0)
    assert [channel.unit for channel in hellos[0].channels] == ["m/s2"] * 3
