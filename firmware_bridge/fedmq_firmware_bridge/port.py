"""A byte stream that comes and goes: serial ports, TCP and Unix sockets. The only module that knows pyserial.

Owns opening, reading, the time at which bytes came, and opening again. Refuses to know what the bytes mean: a `Talk`
does.

    /dev/serial/by-id/…    a serial port; the name stays the same whatever socket of the hub it is put into
    /run/sensor.sock       a Unix socket, as QEMU gives one
    tcp://HOST:PORT        a serial server that hands bytes through
    rfc2217://HOST:PORT    one that is told the baud rate; and what else `serial.serial_for_url` knows

Rules:
- A port that vanishes is no error of the program. pyserial says it in two ways: SerialException where it reads, OSError
  where it counts what waits. Both close the port, which is then tried again with a pause that doubles.
- A port is opened for this process alone.
- Reading waits for the first byte, then a little for those behind it, so that a busy port costs 100 wake-ups a second
  and not one for each USB packet.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from fedmq_firmware_bridge.sources import Emit, LineReport, Talk

__all__ = ["Port", "PortError", "Wire", "listen", "open_wire"]

log = logging.getLogger("fedmq.bridge")

READ_SECONDS = 0.25
"""How long a read waits for a first byte, and so how soon a stop is noticed."""
GATHER_SECONDS = 0.01
"""Between two reads of a socket, of which each costs, however little it brings."""
GATHER_BYTES = 2048
"""So much may gather between two reads of a port: half of what a tty holds."""
MOST_GATHER_SECONDS = 0.03
BITS_A_BYTE = 10
"""On the line, with start and stop."""
ENOUGH_BYTES = 1024
"""With so many there is nothing to wait for."""
WRITE_SECONDS = 5.0
RETRY_FIRST_SECONDS = 0.5
RETRY_MOST_SECONDS = 10.0


class PortError(ValueError):
    """A port that cannot be opened or has gone, and why."""


class Wire(Protocol):
    """An open stream. Each method raises OSError where it is gone."""

    def read(self) -> bytes:
        """What has come; empty where nothing did for a moment."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


def open_wire(url: str, baud: int) -> Wire:
    """Raises PortError; ImportError where pyserial is needed and missing."""
    try:
        if url.startswith("tcp://"):
            host, _, port = url.removeprefix("tcp://").rpartition(":")
            return _SocketWire(socket.create_connection((host.strip("[]"), int(port)), timeout=WRITE_SECONDS))
        if Path(url).is_socket():
            connected = socket.socket(socket.AF_UNIX)
            try:
                connected.connect(url)
            except OSError:
                connected.close()
                raise
            return _SocketWire(connected)
        return _SerialWire(url, baud)
    except (OSError, ValueError) as error:
        raise PortError(f"cannot open {url}: {error}") from error


class _SocketWire:
    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._socket.settimeout(READ_SECONDS)

    def read(self) -> bytes:
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return b""
        if not data:
            raise OSError("the other side has closed it")
        time.sleep(GATHER_SECONDS)
        return data

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()


class _SerialWire:
    def __init__(self, url: str, baud: int) -> None:
        try:
            import serial
        except ImportError:
            raise ImportError(f"{url} needs pyserial, which is not installed: pip install 'fedmq[bridge]'") from None
        wish: dict[str, Any] = {"exclusive": True} if "://" not in url else {}
        self._serial = serial.serial_for_url(
            url, baudrate=baud, timeout=READ_SECONDS, write_timeout=WRITE_SECONDS, **wish
        )
        self._gather_seconds = min(MOST_GATHER_SECONDS, GATHER_BYTES * BITS_A_BYTE / baud)

    def read(self) -> bytes:
        first: bytes = self._serial.read(1)
        if not first:
            return b""
        waiting = self._serial.in_waiting
        if waiting < ENOUGH_BYTES:
            time.sleep(self._gather_seconds)
            waiting = self._serial.in_waiting
        return first + self._serial.read(waiting) if waiting else first

    def write(self, data: bytes) -> None:
        self._serial.write(data)

    def close(self) -> None:
        # A device that is gone cannot be flushed either.
        with contextlib.suppress(OSError):
            self._serial.close()


class Port:
    """A port as a source: opened, read, and opened again for as long as the bridge runs."""

    def __init__(
        self,
        name: str,
        url: str,
        talk: Talk,
        *,
        baud: int = 921_600,
        retry_first_seconds: float = RETRY_FIRST_SECONDS,
        retry_most_seconds: float = RETRY_MOST_SECONDS,
    ) -> None:
        self._name = name
        self._url = url
        self._talk = talk
        self._baud = baud
        self._retry = (retry_first_seconds, retry_most_seconds)
        self._wire: Wire | None = None
        self._writing = threading.Lock()
        self._problem = "not opened yet"
        self._opened = 0

    @property
    def name(self) -> str:
        return self._name

    def write(self, data: bytes) -> None:
        """Say something to the sensor, from any thread. Raises PortError where the port is not open or has gone."""
        with self._writing:
            if self._wire is None:
                raise PortError(f"port {self._name} is not open: {self._problem}")
            try:
                self._wire.write(data)
            except OSError as error:
                raise PortError(f"port {self._name} takes nothing: {error}") from error

    def report(self) -> LineReport:
        return replace(
            self._talk.report(), connected=self._wire is not None, problem=self._problem, opened=self._opened
        )

    def run(self, emit: Emit, stop: threading.Event) -> None:
        first, most = self._retry
        pause = first
        while not stop.is_set():
            try:
                wire = open_wire(self._url, self._baud)
            except (PortError, ImportError) as error:
                if str(error) != self._problem:
                    log.warning("port %s: %s; trying again", self._name, error)
                self._problem = str(error)
                stop.wait(pause)
                pause = min(2 * pause, most)
                continue
            heard = self._listen(wire, emit, stop)
            # A device that opens and says nothing before it goes again is one that flaps.
            pause = first if heard else min(2 * pause, most)
            if not stop.is_set():
                stop.wait(pause)

    def _listen(self, wire: Wire, emit: Emit, stop: threading.Event) -> bool:
        """Until the port is gone; whether it has said anything."""
        heard = False
        try:
            log.info("port %s: %s is open", self._name, self._url)
            greeting = self._talk.opened()
            with self._writing:
                self._wire, self._problem = wire, ""
                self._opened += 1
            if greeting:
                wire.write(greeting)
            while not stop.is_set():
                data = wire.read()
                if data:
                    heard = True
                    stretches = self._talk.take(data, time.monotonic())
                    if stretches:
                        emit(stretches)
        except OSError as error:
            self._problem = f"{self._url} has gone: {error}"
            log.warning("port %s: %s", self._name, self._problem)
        finally:
            with self._writing:
                self._wire = None
            wire.close()
        return heard


def listen(url: str, baud: int, greeting: bytes, *, seconds: float, most_bytes: int = 1 << 20) -> tuple[bytes, float]:
    """What is heard on a port for a while after a greeting, and for how long. Raises PortError."""
    wire = open_wire(url, baud)
    heard = b""
    began = time.monotonic()
    try:
        wire.write(greeting)
        while (spent := time.monotonic() - began) < seconds and len(heard) < most_bytes:
            heard += wire.read()
    except OSError as error:
        raise PortError(f"{url} has gone: {error}") from error
    finally:
        wire.close()
    return heard, spent
