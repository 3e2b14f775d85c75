"""A Modbus line over pseudo-terminals: pymodbus's own server as sensors, and scripts where sensors misbehave."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_firmware_bridge.modbus import ModbusSource, PortError
from fedmq_firmware_bridge.polling import (
    Answer,
    Failure,
    ModbusDevice,
    ModbusLine,
    Refused,
    Request,
    Rows,
)
from fedmq_firmware_bridge.registers import Channel, Function, Group, Read, RegisterMap, load
from modbus_line import frame, registers_frame, scripted, serving, wire

BAUD = 115_200
DEADLINE = 60.0
"""Seconds until a test gives up waiting for what it needs."""

TIMEOUT = 1.5
"""Long enough for a script on a machine that is busy with other tests."""


def quick(registers: RegisterMap, period: float = 0.1) -> RegisterMap:
    """The map with another period: a test need not wait for a second."""
    groups = tuple(
        Group(
            name=group.name,
            period_seconds=period,
            channels=group.channels,
            function=group.function,
            read_across=group.read_across,
        )
        for group in registers.groups
    )
    return RegisterMap(title=registers.title, source=registers.source, groups=groups)


def floats(function: Function = "holding") -> RegisterMap:
    """Two floats in two reads: one as Modbus would have it, one with its words swapped."""
    channels = (
        Channel(name="level", address=200, type="float32", unit="bar"),
        Channel(name="swapped", address=300, type="float32", unit="K", offset=-273.0, word_order="little"),
    )
    group = Group(name="process", period_seconds=0.1, channels=channels, function=function)
    return RegisterMap(title="Floats", source="made up", groups=(group,))


def line(port: str, *devices: tuple[int, RegisterMap], **more: Any) -> ModbusLine:
    made = tuple(ModbusDevice(address=at, registers=registers, machine=f"m{at}") for at, registers in devices)
    return ModbusLine(**{"port": port, "devices": made, "baud": BAUD, "timeout_seconds": 2.0, **more})


@contextlib.contextmanager
def running(source: ModbusSource) -> Iterator[list[Rows]]:
    """The source on a thread of its own, as a service has it; its rows."""
    rows: list[Rows] = []
    stop = threading.Event()
    thread = threading.Thread(target=source.run, args=(rows.append, stop))
    thread.start()
    try:
        yield rows
    finally:
        stop.set()
        thread.join()


def wait_for(what: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(DEADLINE / 0.01)):
        if what():
            return
        pause.wait(0.01)
    raise AssertionError(f"did not come about in {DEADLINE} s")


def test_one_line_with_sensors_that_answer_one_that_is_missing_and_one_that_refuses() -> None:
    from pymodbus.constants import ExcCodes
    from pymodbus.simulator import DataType, SimData, SimDevice

    told = {0x3A: 3, 0x3B: 4, 0x3C: 5, 0x40: -250, 0x41: 120, 0x42: 30_000, 0x43: 7, 0x44: 497, 0x45: 50, 0x46: 1000}
    registers = [told.get(at, 0) & 0xFFFF for at in range(0x3A, 0x47)]

    async def busy(*_: Any) -> ExcCodes:
        return ExcCodes.DEVICE_BUSY

    devices = [
        SimDevice(80, [SimData(0x3A, values=registers, datatype=DataType.REGISTERS)]),
        SimDevice(
            2,
            [
                SimData(200, values=[1.25], datatype=DataType.FLOAT32),
                SimData(300, values=[0x8000, 0x4393], datatype=DataType.REGISTERS),
            ],
        ),
        SimDevice(4, [SimData(200, values=[0] * 200, datatype=DataType.REGISTERS)], action=busy),
        SimDevice(5, [SimData(0, values=[0] * 10, datatype=DataType.REGISTERS)]),
    ]
    wtvb01 = quick(load("witmotion-wtvb01-485"))
    with wire(missing=frozenset({3})) as made, serving(devices, made.ends[1], BAUD):
        stations = (80, wtvb01), (2, floats()), (3, floats()), (4, floats()), (5, floats())
        source = ModbusSource(line(made.ends[0], *stations))
        counts = source.schedule.counts
        with running(source) as rows:
            wait_for(lambda: counts[3].silent >= 1 and min(counts[80].rows, counts[2].rows) >= 5)
            after = counts[80].rows, counts[2].rows, counts[4].requests
            wait_for(lambda: all(now > then + 3 for now, then in zip(_asked(counts), after, strict=True)))

    vibration = next(one for one in rows if one.device.address == 80)
    assert (vibration.device.machine, vibration.table) == ("m80", "vibration")
    expected = [3, 4, 5, -2.5, 120, 30_000, 7, 49.7, 5.0, 100.0]
    np.testing.assert_allclose(vibration.values, np.array([expected], dtype=np.float32))
    assert vibration.units == ("mm/s",) * 3 + ("°C",) + ("µm",) * 3 + ("Hz",) * 3
    process = next(one for one in rows if one.device.address == 2)
    assert (process.names, process.units) == (("level", "swapped"), ("bar", "K"))
    assert process.values.tolist() == [[1.25, 22.0]]

    for here in (80, 2):
        assert (counts[here].silent, counts[here].garbled, dict(counts[here].refused)) == (0, 0, {})
        assert counts[here].rows == sum(one.device.address == here for one in rows)
    assert (counts[3].answers, counts[3].garbled, dict(counts[3].refused)) == (0, 0, {})
    assert counts[3].silent == counts[3].requests == counts[3].failures_in_a_row
    for refusing, code in ((4, 6), (5, 2)):
        assert dict(counts[refusing].refused) == {code: counts[refusing].requests}
        assert (counts[refusing].silent, counts[refusing].garbled) == (0, 0)
    assert {one.device.address for one in rows} == {80, 2}

    # On the wire: between two requests to the one that is missing, the others had theirs.
    places = [place for place, address in enumerate(made.asked) if address == 3]
    for before, after_that in itertools.pairwise([*places, len(made.asked)]):
        assert set(made.asked[before + 1 : after_that]) >= {80, 2}


def _asked(counts: dict[int, Any]) -> tuple[int, int, int]:
    return counts[80].rows, counts[2].rows, counts[4].requests


REGISTERS = [1, 2, 3]


def ask(answer: Callable[[bytes], Iterable[bytes]], function: Function = "holding", **more: Any) -> Answer:
    """What comes of one request for three registers of device 7, if a script answers it."""
    with scripted(answer) as port:
        return _ask(port, function, **more)


def _ask(port: str, function: Function = "holding", **more: Any) -> Answer:
    made = line(port, (7, floats()), **{"timeout_seconds": TIMEOUT, **more})
    source = ModbusSource(made)
    read = Read(function=function, address=10, count=len(REGISTERS))
    try:
        return source.ask(Request(device=made.devices[0], read=read, place=0))
    finally:
        source._client.close()


GOOD = registers_frame(7, REGISTERS)


def test_an_answer_is_its_registers() -> None:
    heard: list[bytes] = []

    def answer(request: bytes) -> list[bytes]:
        heard.append(request)
        return [GOOD]

    assert ask(answer) == (1, 2, 3)
    assert heard == [frame(7, 3, bytes([0, 10, 0, 3]))]


def test_input_registers_are_asked_for_by_their_own_function() -> None:
    assert ask(lambda request: [registers_frame(7, REGISTERS, function=request[1])], "input") == (1, 2, 3)
    assert ask(lambda _: [GOOD], "input") is Failure.GARBLED


def test_an_answer_may_come_in_pieces() -> None:
    assert ask(lambda _: [bytes([byte]) for byte in GOOD]) == (1, 2, 3)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 6, 11, 99])
def test_an_exception_is_told_by_its_code(code: int) -> None:
    assert ask(lambda _: [frame(7, 0x83, bytes([code]))]) == Refused(code)


def test_exceptions_have_names() -> None:
    assert (str(Refused(2)), str(Refused(99))) == ("illegal data address", "exception 99")


NO_ANSWERS = (
    GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
    GOOD[:-3],
    b"\x00",
    b"\xff" * 40,
    registers_frame(8, REGISTERS),
    registers_frame(7, REGISTERS[:2]),
    registers_frame(7, [*REGISTERS, 4]),
    frame(7, 3, bytes([0])),
    frame(7, 3, bytes([5, 1, 2, 3, 4, 5])),
    frame(7, 1, bytes([1, 0])),
    frame(7, 0x84, bytes([2])),
    frame(7, 0x80, bytes([2])),
    frame(7, 0x2B, bytes([0x0E, 1, 1, 0, 0, 0])),
    frame(7, 0x18, bytes([0, 2, 0, 9])),
    frame(7, 0x14, bytes([3, 9, 6, 1])),
)


def test_bytes_that_are_no_answer_are_told_from_silence() -> None:
    with ThreadPoolExecutor(len(NO_ANSWERS)) as pool:  # each waits for its whole timeout
        came = pool.map(lambda said: ask(lambda _: [said]), NO_ANSWERS)
    told = {said.hex(): answer for said, answer in zip(NO_ANSWERS, came, strict=True)}
    assert told == dict.fromkeys(told, Failure.GARBLED)


def test_nothing_is_silence() -> None:
    assert ask(lambda _: []) is Failure.SILENT


def test_a_device_that_talks_without_end_is_given_up_while_it_talks() -> None:
    over = threading.Event()
    with scripted(lambda _: [b"\x07"] * 10_000, over) as port:
        assert _ask(port) is Failure.GARBLED
        assert not over.is_set()


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one() -> None:
    late = registers_frame(7, [9, 9, 9])
    given_up = threading.Event()

    def tardy() -> Iterator[bytes]:
        given_up.wait(DEADLINE)
        yield late

    answers = iter([tardy(), iter([GOOD])])
    with scripted(lambda _: next(answers)) as port:
        made = line(port, (7, floats()), timeout_seconds=TIMEOUT)
        source = ModbusSource(made)
        request = Request(device=made.devices[0], read=Read(function="holding", address=10, count=3), place=0)
        assert source.ask(request) is Failure.SILENT
        given_up.set()
        wait_for(lambda: source._client.socket.in_waiting == len(late))
        assert source.ask(request) == (1, 2, 3)
        source._client.close()


def test_an_adapter_that_hears_itself_changes_nothing_if_the_settings_say_so() -> None:
    assert ask(lambda request: [request, GOOD], local_echo=True) == (1, 2, 3)
    assert ask(lambda request: [request + GOOD], local_echo=True) == (1, 2, 3)
    assert ask(lambda request: [request], local_echo=True) is Failure.SILENT
    assert ask(lambda request: [request, GOOD[:-1]], local_echo=True) is Failure.GARBLED


def test_a_port_that_is_not_there_is_no_device_that_is_missing() -> None:
    with pytest.raises(PortError, match="is the adapter plugged in"):
        _ask("/dev/no-such-port")


def test_two_programs_do_not_share_a_line() -> None:
    with scripted(lambda _: [GOOD]) as port:
        first = ModbusSource(line(port, (7, floats())))
        assert first._client.connect()
        with pytest.raises(PortError, match="another program may have it open"):
            _ask(port)
        first._client.close()
        assert _ask(port) == (1, 2, 3)


def test_an_adapter_that_is_pulled_out_and_put_back_goes_on(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    values = registers_frame(7, [0x3F80, 0x0000])
    source = ModbusSource(line(str(adapter), (7, floats())))
    with running(source) as rows:
        wait_for(lambda: source.port_failures >= 1)
        for times in (1, 2):
            with scripted(lambda _: [values]) as port:
                os.symlink(port, adapter)
                so_far = len(rows)
                wait_for(lambda so_far=so_far: len(rows) >= so_far + 3)  # type: ignore[misc]
                adapter.unlink()
            failures = source.port_failures
            if times == 1:
                wait_for(lambda failures=failures: source.port_failures > failures)  # type: ignore[misc]
    counts = source.schedule.counts[7]
    assert counts.silent <= 2  # the request that was under way as it was pulled out
    assert counts.rows == len(rows)


def test_what_takes_the_rows_may_fail_and_the_port_is_closed() -> None:
    with scripted(lambda _: [registers_frame(7, [0, 0])]) as port:
        source = ModbusSource(line(port, (7, floats())))

        def full(_: Rows) -> None:
            raise OSError("no space left on device")

        with pytest.raises(OSError, match="no space"):
            source.run(full, threading.Event())
        assert source._client.socket is None
