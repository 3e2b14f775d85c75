"""Ports that come and go, as pseudo terminals behind a stable name."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fedmq_firmware_bridge.frames import AskHello, Decoder
from fedmq_firmware_bridge.port import Port, PortError, listen, open_wire
from fedmq_firmware_bridge.service import Bridge
from fedmq_firmware_bridge.sources import Native
from fedmq_firmware_bridge.store import Recorder, Store
from sensors import Cable, CountingSensor, is_whole, kept

PATIENCE_SECONDS = 60.0
PULLS = 50


def wait(ready: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not ready():
        assert time.monotonic() < until, f"waited for {what}"
        time.sleep(0.002)


@pytest.fixture
def cable(tmp_path: Path) -> Cable:
    return Cable(tmp_path / "by-id-motor")


def port_of(cable: Cable) -> tuple[Port, Native]:
    talk = Native(source="motor", machine="pump-3")
    return Port("motor", str(cable.name), talk, retry_first_seconds=0.01, retry_most_seconds=0.02), talk


class Running:
    """A bridge with one port, in a thread."""

    def __init__(self, port: Port, store: Path) -> None:
        recorder = Recorder(store, max_bytes=1 << 30, opened_at=time.time(), flush_seconds=0.05, flush_bytes=1 << 20)
        self.bridge = Bridge(sources=[port], recorder=recorder, flush_seconds=0.05, flush_bytes=1 << 20)
        self._thread = threading.Thread(target=self.bridge.run)
        self._thread.start()

    def stop(self) -> None:
        self.bridge.stopping = True
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture
def running(cable: Cable, tmp_path: Path) -> Iterator[tuple[Port, Native, Running]]:
    port, talk = port_of(cable)
    started = Running(port, tmp_path / "bridge.sqlite")
    yield port, talk, started
    started.stop()


def test_pulled_and_returned_fifty_times_nothing_is_doubled_and_no_run_spans_a_gap(
    cable: Cable, tmp_path: Path, running: tuple[Port, Native, Running]
) -> None:
    port, talk, started = running
    sensor = CountingSensor()
    for pull in range(PULLS):
        cable.plug()
        wait(lambda pull=pull: port.report().connected and port.report().opened == pull + 1, "the port to open")  # type: ignore[misc]
        if pull == 0:
            cable.send(sensor.hello())
        frames = [sensor.frame() for _ in range(5)]
        heard = talk.decoder.counts.frames
        cable.send(b"".join(frames))
        wait(lambda heard=heard: talk.decoder.counts.frames == heard + 5 + (heard == 0), "five frames")  # type: ignore[misc]
        # Pulled in the middle of a frame, which is lost with the two that nobody hears.
        cable.send(sensor.frame()[:100])
        cable.pull()
        wait(lambda: not port.report().connected, "the port to be missed")
        sensor.frame()
        sensor.frame()
    started.stop()

    counts = talk.line.sensors[1].counts
    assert counts.frames == 5 * PULLS
    assert counts.lost_frames == 3 * (PULLS - 1), "of the last three nobody can know"
    assert (counts.gaps, counts.duplicates, counts.restarts) == (PULLS - 1, 0, 0)
    runs = kept(Store(tmp_path / "bridge.sqlite"))
    assert len(runs) == PULLS
    assert all(is_whole(numbers) for _, numbers in runs)
    every = [number for _, numbers in runs for number in numbers.tolist()]
    assert len(every) == len(set(every)) == 5 * PULLS * 64


class VanishingSerial:
    """pyserial's port as its device goes away: `where` says which call finds out first."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._read = False

    def read(self, size: int) -> bytes:
        if self._where == "read" and self._read:
            import serial

            raise serial.SerialException("device reports readiness to read but returned no data")
        self._read = True
        return b"\0" * size

    @property
    def in_waiting(self) -> int:
        if self._where == "in_waiting":
            raise OSError(5, "Input/output error")
        return 3

    def write(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("where", ["read", "in_waiting"])
def test_a_port_that_vanishes_is_opened_again_however_pyserial_says_it(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import serial

    opened = []

    def open_one(url: str, **words: Any) -> VanishingSerial:
        opened.append(words["exclusive"])
        return VanishingSerial(where)

    monkeypatch.setattr(serial, "serial_for_url", open_one)
    port = Port("motor", "/dev/ttyX", Native(source="motor", machine="m"), retry_first_seconds=0.001)
    stop = threading.Event()
    thread = threading.Thread(target=port.run, args=(lambda heard: None, stop))
    thread.start()
    wait(lambda: len(opened) >= 3, "the port to be opened again")
    stop.set()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert all(opened), "for this process alone"
    assert "has gone" in port.report().problem


def test_a_port_that_is_not_there_is_told_and_tried_again(cable: Cable) -> None:
    port, _ = port_of(cable)
    stop = threading.Event()
    thread = threading.Thread(target=port.run, args=(lambda heard: None, stop))
    thread.start()
    wait(lambda: "cannot open" in port.report().problem, "the first try")
    with pytest.raises(PortError, match="port motor is not open: cannot open"):
        port.write(b"x")
    cable.plug()
    wait(lambda: port.report().connected, "the port to open")
    stop.set()
    thread.join(PATIENCE_SECONDS)


def test_an_open_port_asks_who_is_there_and_takes_what_others_want_to_say(tmp_path: Path) -> None:
    path = tmp_path / "uart"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        port = Port("motor", str(path), Native(source="motor", machine="m"))
        stop = threading.Event()
        thread = threading.Thread(target=port.run, args=(lambda heard: None, stop))
        thread.start()
        line, _ = server.accept()
        with line:
            line.settimeout(PATIENCE_SECONDS)
            wait(lambda: port.report().connected, "the port to open")
            port.write(b"model\0")
            heard = b""
            while not heard.endswith(b"model\0"):
                heard += line.recv(100)
            (asked,) = Decoder().feed(heard.removesuffix(b"model\0"))
            assert isinstance(asked, AskHello)
            stop.set()
            thread.join(PATIENCE_SECONDS)


def test_bytes_come_through_tcp_from_a_serial_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        wire = open_wire(f"tcp://127.0.0.1:{server.getsockname()[1]}", 9600)
        line, _ = server.accept()
        line.sendall(b"abc")
        assert wire.read() == b"abc"
        assert wire.read() == b"", "silence is no end"
        line.close()
        with pytest.raises(OSError, match="closed"):
            wire.read()
        wire.close()


def test_a_device_that_goes_while_it_is_listened_to_is_one_clear_error(cable: Cable) -> None:
    cable.plug()
    threading.Timer(0.1, cable.pull).start()
    with pytest.raises(PortError, match="has gone"):
        listen(str(cable.name), 9600, b"", seconds=PATIENCE_SECONDS)


def test_a_port_is_opened_for_one_process_alone(cable: Cable) -> None:
    cable.plug()
    wire = open_wire(str(cable.name), 9600)
    with pytest.raises(PortError, match="cannot open"):
        open_wire(str(cable.name), 9600)
    wire.close()
    assert os.path.islink(cable.name)
