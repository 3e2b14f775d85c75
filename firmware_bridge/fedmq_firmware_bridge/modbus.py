"""The driver of a Modbus RTU line: asks what the schedule says, and hands rows on.

Owns the port and the wait for an answer; the only module that knows pymodbus. Refuses to decide: `polling` says whom to
ask next and what an answer comes to, `registers` what registers mean.

Rules:
- An answer is whole within the line's timeout, or it counts as none. pymodbus begins its timeout anew with every byte
  that comes, and by a clock that may be set; on a line that others wait for, it ends when it ends.
- Silence, an exception and bytes that make no sense are three things, and told apart.
- pymodbus repeats nothing. Only the schedule knows who else waits.
- A port that goes (an adapter is pulled out) is opened again, with growing pauses; no device is blamed for it.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from fedmq_firmware_bridge.polling import Answer, Failure, ModbusLine, Refused, Request, Rows, Schedule

__all__ = ["MAX_PAUSE", "ModbusSource", "PortError"]

MAX_PAUSE = 30.0
"""Seconds between tries to open a port that is gone."""

FIRST_PAUSE = 0.5

_log = logging.getLogger(__name__)


class PortError(OSError):
    """The port cannot be opened, read or written."""


class ModbusSource:
    """One line as a source of rows. `clock`: seconds, of a clock that nobody sets."""

    def __init__(self, line: ModbusLine, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.line = line
        self.schedule = Schedule(line, clock())
        self.port_failures = 0
        self.problem = "not opened yet"
        """Why the port is not open; empty while it is."""
        self.opened = 0
        self.bytes = 0
        """What came, less what an adapter heard of itself."""
        self._clock = clock
        self._client = _client(line)

    def run(self, emit: Callable[[Rows], None], stop: threading.Event) -> None:
        """Asks until `stop` is set, and hands each row on as it is there. Blocks; `emit` is called on this thread."""
        pause = FIRST_PAUSE
        try:
            while not stop.is_set():
                step = self.schedule.next(self._clock())
                if isinstance(step, float):
                    stop.wait(max(0.0, step - self._clock()))
                    continue
                try:
                    answer = self.ask(step)
                except PortError as error:
                    self.port_failures += 1
                    self.problem = str(error)
                    _log.warning("%s: %s; opened again in %g s", self.line.port, error, pause)
                    stop.wait(pause)
                    pause = min(2 * pause, MAX_PAUSE)
                    continue
                pause = FIRST_PAUSE
                self.opened += bool(self.problem)
                self.problem = ""
                rows = self.schedule.take(step, answer, self._clock())
                if rows is not None:
                    emit(rows)
                # Frames are told apart by silence between them.
                stop.wait(self.line.silence_seconds)
        finally:
            self._client.close()

    def ask(self, request: Request) -> Answer:
        """One request, and what came of it within the timeout. Raises PortError."""
        from pymodbus.exceptions import ConnectionException, ModbusException

        client, read = self._client, request.read
        method = client.read_holding_registers if read.function == "holding" else client.read_input_registers
        function = 3 if read.function == "holding" else 4
        client.came = 0
        try:
            response = method(read.address, count=read.count, device_id=request.device.address)
        except (ConnectionException, OSError) as error:
            client.close()
            raise PortError(_why(self.line.port, error)) from None
        except (ModbusException, struct.error):
            # Up to 3.10 at least, pymodbus trips over some frames that are whole and nonsense.
            return Failure.GARBLED if client.heard else Failure.SILENT
        finally:
            self.bytes += max(0, client.came)
        if response.function_code == function | 0x80:
            return Refused(response.exception_code)
        if response.function_code != function or len(response.registers) != read.count:
            return Failure.GARBLED
        return tuple(response.registers)


def _why(port: str, error: Exception) -> str:
    """Why the port cannot be used: pymodbus does not say."""
    if "://" in port:
        return str(error)
    if not os.path.exists(port):
        return "no such port: is the adapter plugged in?"
    if not os.access(port, os.R_OK | os.W_OK):
        return "no permission to read and write it: this user has to be in its group, often dialout"
    return f"cannot be used; another program may have it open ({error})"


def _client(line: ModbusLine) -> Any:
    """pymodbus's client, with one timeout for a whole answer."""
    from pymodbus.client import ModbusSerialClient

    class Client(ModbusSerialClient):
        deadline = 0.0
        came = 0
        """Bytes that came since the request, less the request itself where the adapter hears it."""

        @property
        def heard(self) -> bool:
            return self.came > 0

        def send(self, request: bytes, addr: Any = None) -> int:
            self.deadline = time.monotonic() + line.timeout_seconds
            self.came = -len(request) if line.local_echo else 0
            return super().send(request, addr)

        def recv(self, size: int | None) -> bytes:
            """What comes next until the deadline; nothing, once it is over: pymodbus then gives up."""
            left = self.deadline - time.monotonic()
            if left <= 0:
                return b""
            port: Any = self.socket
            port.timeout = left
            received: bytes = port.read(1)
            if received:
                received += port.read(port.in_waiting)
            self.came += len(received)
            return received

    # What pymodbus says of every timeout, the counts say, and the line's own log says what is wrong with its port.
    logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)
    return Client(
        line.port,
        baudrate=line.baud,
        parity=line.parity,
        stopbits=line.stop_bits,
        timeout=line.timeout_seconds,
        retries=0,
        handle_local_echo=line.local_echo,
    )
