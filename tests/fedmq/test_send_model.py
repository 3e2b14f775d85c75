"""`fedmq bridge send-model` against the firmware's own slots in C, on a socket and on a pseudo terminal."""

from __future__ import annotations

import os
import socket
import threading
import tty
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fedmq_firmware_bridge.port import open_wire
from fedmq_models.sensor_image import to_bytes
from qemu import emulated
from qemu_sensor import SAMPLE_HZ, build_firmware
from sensor_images import CSensor, mended, sensor_image

from fedmq.cli import main

SENSOR = 3


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> CSensor:
    return CSensor(tmp_path_factory.mktemp("sensor"))


@pytest.fixture
def port(device: CSensor, tmp_path: Path) -> Iterator[str]:
    """A Unix socket with the sensor at its other end, as QEMU gives one; for one connection."""
    device.format()
    path = tmp_path / "sensor.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    stop = threading.Event()

    def serve() -> None:
        connected, _ = listener.accept()
        with connected:
            while not stop.is_set() and (data := connected.recv(1 << 16)):
                connected.sendall(device.feed(data))

    thread = threading.Thread(target=serve)
    thread.start()
    yield str(path)
    stop.set()
    # Where nobody came, this lets `accept` go.
    with socket.socket(socket.AF_UNIX) as last:
        if thread.is_alive():
            last.connect(str(path))
    thread.join()
    listener.close()


@pytest.fixture
def send(tmp_path: Path) -> Callable[[bytes, str], int]:
    def sent(image: bytes, port: str) -> int:
        path = tmp_path / "model.img"
        path.write_bytes(image)
        return main(["bridge", "send-model", str(path), "--port", port, "--sensor", str(SENSOR)])

    return sent


def test_a_model_comes_into_force_and_its_progress_is_shown(
    port: str, device: CSensor, send: Callable[[bytes, str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    image = to_bytes(sensor_image("mlp", 0, version=7))
    assert device.active is None
    assert send(image, port) == 0
    assert device.active is not None
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"asking what the sensor has: 0 of {len(image):,} bytes there"
    assert len([line for line in said if line.startswith("sending chunks")]) > 3
    assert said[-1].startswith("accepted: sensor 3 runs version 7 (")


def test_what_the_sensor_refuses_is_told_with_its_reason(
    port: str, device: CSensor, send: Callable[[bytes, str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(to_bytes(replace(sensor_image("mlp", 0, version=1), rate_mhz=1)), port) == 1
    assert device.active is None
    assert "not accepted: the sensor refused it: the model is for another rate" in capsys.readouterr().err


@pytest.mark.parametrize("image", [b"", b"no model", mended(b"a checksum makes no model" + bytes(80))])
def test_a_file_that_is_no_image_is_told_before_the_port_is_opened(
    image: bytes, send: Callable[[bytes, str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(image, "/dev/no-such-port") == 1
    assert "model.img is no image of fedmq export --sensor-image: " in capsys.readouterr().err


def test_a_port_that_the_bridge_has_open_is_told_as_busy(
    send: Callable[[bytes, str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    master, end = os.openpty()
    tty.setraw(end)
    name = os.ttyname(end)
    held = open_wire(name, 921_600)
    try:
        assert send(to_bytes(sensor_image("mlp", 0, version=1)), name) == 1
    finally:
        held.close()
        os.close(master)
        os.close(end)
    assert f"{name} is busy: another program has it open, such as fedmq bridge run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sensor_in_qemu_that_measures_all_the_while_takes_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "model.img"
    image.write_bytes(to_bytes(replace(sensor_image("mlp", 0, version=7), rate_mhz=SAMPLE_HZ * 1000)))
    uart = tmp_path / "uart"
    with emulated(build_firmware(tmp_path), uart, tmp_path / "qmp"):
        assert main(["bridge", "send-model", str(image), "--port", str(uart), "--sensor", "1"]) == 0
    assert "accepted: sensor 1 runs version 7 (" in capsys.readouterr().out
