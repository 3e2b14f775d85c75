"""A Modbus line without hardware: pseudo-terminals as the wire, pymodbus's own server or a script as the sensors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import tty
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pymodbus.framer import FramerRTU


def frame(address: int, function: int, data: bytes) -> bytes:
    """A frame as it is on the wire."""
    body = bytes([address, function]) + data
    return body + FramerRTU.compute_CRC(body).to_bytes(2, "big")


def registers_frame(address: int, registers: Sequence[int], function: int = 3) -> bytes:
    data = b"".join(register.to_bytes(2, "big") for register in registers)
    return frame(address, function, bytes([len(data)]) + data)


@dataclass
class Wire:
    """Two ends of one line, each the path of a serial port. `asked` holds the addresses of requests, in order."""

    ends: tuple[str, str]
    asked: list[int] = field(default_factory=list)


@contextlib.contextmanager
def wire(missing: frozenset[int] = frozenset()) -> Iterator[Wire]:
    """What one end says, the other hears; but nobody hears a request to an address that is missing.

    pymodbus's server cannot be silent for an address: in 3.16 it answers exception 4, whatever `ignore_missing_devices`
    says.
    """
    (near, near_end), (far, far_end) = os.openpty(), os.openpty()
    leave, left = os.pipe()
    for end in (near_end, far_end):
        tty.setraw(end)
    made = Wire((os.ttyname(near_end), os.ttyname(far_end)))
    other = {near: far, far: near}

    def relay() -> None:
        while True:
            ready, _, _ = select.select([near, far, leave], [], [])
            if leave in ready:
                return
            for end in ready:
                said = os.read(end, 4096)
                if end == near:
                    made.asked.append(said[0])
                    if said[0] in missing:
                        continue
                os.write(other[end], said)

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        yield made
    finally:
        os.write(left, b".")
        thread.join()
        for descriptor in (near, near_end, far, far_end, leave, left):
            os.close(descriptor)


@contextlib.contextmanager
def serving(devices: Sequence[Any], port: str, baud: int) -> Iterator[None]:
    """pymodbus's server for these simulated devices."""
    from pymodbus import FramerType
    from pymodbus.server import ModbusSerialServer

    loop = asyncio.new_event_loop()

    async def start() -> ModbusSerialServer:
        server = ModbusSerialServer(list(devices), framer=FramerType.RTU, port=port, baudrate=baud)
        await server.serve_forever(background=True)
        return server

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(server.shutdown(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def scripted(answer: Callable[[bytes], Iterable[bytes]], over: threading.Event | None = None) -> Iterator[str]:
    """A port at whose other end a script answers each request with pieces, some milliseconds apart."""
    near, near_end = os.openpty()
    leave, left = os.pipe()
    tty.setraw(near_end)

    def reply() -> None:
        while True:
            ready, _, _ = select.select([near, leave], [], [])
            if leave in ready:
                return
            request = os.read(near, 4096)
            for piece in answer(request):
                os.write(near, piece)
                if select.select([leave], [], [], 0.005)[0]:
                    return
            if over is not None:
                over.set()

    thread = threading.Thread(target=reply)
    thread.start()
    try:
        yield os.ttyname(near_end)
    finally:
        os.write(left, b".")
        thread.join()
        for descriptor in (near, near_end, leave, left):
            os.close(descriptor)
