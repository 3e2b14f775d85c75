"""What talks on a port: the rate at which it makes sense, and settings that can be used as they are."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fedmq_firmware_bridge.probing import probe, recognise
from fedmq_protocol.settings import load
from sensors import CountingSensor

from fedmq.bridge.settings import BridgeSettings


def native() -> bytes:
    sensor = CountingSensor()
    return sensor.frame()[30:] + sensor.hello() + b"".join(sensor.frame() for _ in range(5)) + sensor.frame()[:50]


def noise(seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(20_000)


def test_the_native_stream_is_known_by_its_frames_and_says_who_is_there() -> None:
    found = recognise(native(), 1.0)
    assert found is not None
    assert (found.kind, found.refused) == ("native", 0)
    (about,) = found.about
    assert about == "sensor 1: counting, firmware 1, x in m/s2, y in m/s2, z in m/s2, 3,200 samples a second"


def test_lines_are_known_by_what_most_of_them_hold() -> None:
    lines = b"0}\nboot: v1.2\n" + b'{"n": 1, "accel": {"x": 0.1, "y": 2}, "name": "hall"}\n' * 20 + b'{"n"'
    found = recognise(lines, 2.0)
    assert found is not None
    assert (found.kind, found.columns, found.rate_hz, found.refused) == ("json", ("n", "accel.x", "accel.y"), 10.0, 1)
    found = recognise(b"3\n" + b"1,2.5,-3e2\r\n" * 10, 1.0)
    assert found is not None
    assert (found.kind, found.columns) == ("csv", ("column1", "column2", "column3"))


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, noise(), noise(1) * 3, b"hello\nworld\nagain\nand again\n"])
def test_noise_is_nothing_that_is_known(data: bytes) -> None:
    assert recognise(data, 1.0) is None


def test_the_rate_is_the_one_at_which_something_makes_sense() -> None:
    heard = {9600: noise(), 115_200: b"", 921_600: native()}
    found = probe(lambda baud: (heard[baud], 1.0), [9600, 115_200, 921_600])
    assert found is not None
    assert found[0] == 921_600
    assert probe(lambda baud: (heard[baud], 1.0), [9600, 115_200]) is None


@pytest.mark.parametrize("data", [native(), b"\n" + b"1,2\n" * 10])
def test_what_it_prints_can_be_pasted_into_the_settings(data: bytes, tmp_path: Path) -> None:
    found = recognise(data, 1.0)
    assert found is not None
    path = tmp_path / "bridge.toml"
    path.write_text('store = "bridge.sqlite"\n' + found.settings("motor", "/dev/ttyUSB0", 115_200))
    (port,) = load(BridgeSettings, path).port
    assert (port.name, port.port, port.baud, port.kind) == ("motor", "/dev/ttyUSB0", 115_200, found.kind)
