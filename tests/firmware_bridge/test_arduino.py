"""The Arduino sketch, compiled for this machine with an ADXL345 on its SPI that is played by the test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fedmq_firmware_bridge.frames import AskHello, Decoder, Frame, Hello, Samples, encode
from fedmq_firmware_bridge.readings import Line

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "firmware_bridge" / "firmware"
SKETCH = LIBRARY / "examples" / "arduino" / "fedmq_sensor" / "fedmq_sensor.ino"
ARDUINO = ROOT / "tests" / "support" / "arduino"


@pytest.fixture(scope="module")
def sketch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("needs g++: apt-get install g++")
    directory = tmp_path_factory.mktemp("sketch")
    program = directory / "sketch"
    # What the Arduino IDE does with an .ino: its core's header in front, then C++.
    (directory / "sketch.cpp").write_text(f'#include "Arduino.h"\n{SKETCH.read_text(encoding="ascii")}', "ascii")
    sources = [directory / "sketch.cpp", ARDUINO / "arduino.cpp"]
    flags = ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-O1", "-fsanitize=address,undefined"]
    words = ["g++", *flags, f"-I{LIBRARY}", f"-I{ARDUINO}", *map(str, sources)]
    words += ["-x", "c++", str(LIBRARY / "fedmq_sensor.c"), "-o", str(program)]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return program


def run(sketch: Path, milliseconds: int, *, stall_at: int = 0, stall: int = 0, given: bytes = b"") -> list[Frame]:
    words = [str(sketch), str(milliseconds), str(stall_at), str(stall)]
    ended = subprocess.run(words, input=given, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr.decode()
    decoder = Decoder()
    frames = decoder.feed(ended.stdout)
    assert decoder.counts.failed + decoder.counts.malformed + decoder.counts.oversized == 0
    return frames


def test_the_sketch_introduces_itself_and_sends_every_sample_of_three_axes(sketch: Path) -> None:
    frames = run(sketch, 3000)
    assert isinstance(frames[0], Hello)
    assert [channel.name for channel in frames[0].channels] == ["x", "y", "z"]
    assert frames[0].boot != 0
    line = Line()
    (stretch,) = line.take(frames, 0.0)
    assert len(stretch.values) > 2.9 * 3200
    assert stretch.rate_hz == 3200
    numbers = np.arange(len(stretch.values))
    assert np.array_equal(stretch.values[:, 0], numbers)
    assert np.array_equal(stretch.values[:, 1], -numbers)
    assert np.array_equal(stretch.values[:, 2], numbers * numbers & 0x7FFF)
    assert stretch.values[:, 2].max() > 256 * 64, "the high bytes were not looked at"


def test_its_clock_goes_on_where_micros_wraps(sketch: Path) -> None:
    taken = [frame.taken_us for frame in run(sketch, 3000) if isinstance(frame, Samples)]
    assert taken[0] < 2**32 < taken[-1]
    assert np.all(np.abs(np.diff(taken) - 20_000) < 5000)


def test_it_answers_who_it_is_and_not_for_others(sketch: Path) -> None:
    for sensor, hellos in ((1, 2), (0xFFFF, 2), (2, 1)):
        frames = run(sketch, 3000, given=b"noise\0" + encode(AskHello(sensor=sensor, sequence=0)))
        assert [frame.sequence for frame in frames if isinstance(frame, Hello)] == list(range(hellos))


def test_it_says_hello_every_ten_seconds(sketch: Path) -> None:
    assert sum(isinstance(frame, Hello) for frame in run(sketch, 35_000)) == 4


def test_where_it_was_held_up_it_says_that_samples_are_missing(sketch: Path) -> None:
    line = Line()
    before, after = line.take(run(sketch, 3000, stall_at=1500, stall=50), 0.0)
    assert not after.follows
    for stretch in (before, after):
        assert np.all(np.diff(stretch.values[:, 0]) == 1)
    assert after.values[0, 0] - before.values[-1, 0] > 100
    counts = line.sensors[1].counts
    assert (counts.overruns, counts.lost_frames, counts.jumps) == (1, 0, 0)
