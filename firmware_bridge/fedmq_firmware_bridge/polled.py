"""A Modbus line as a source of the bridge: rows to stretches, and its counts to what status shows.

A group of a device is one sensor. Its rows carry the gateway's own clock, so that a row that did not come shows as a
gap by the times of those beside it.
"""

from __future__ import annotations

import threading

from fedmq_firmware_bridge import lines
from fedmq_firmware_bridge.frames import Channel
from fedmq_firmware_bridge.modbus import ModbusSource
from fedmq_firmware_bridge.polling import EXCEPTIONS, ModbusDevice, ModbusLine, Rows
from fedmq_firmware_bridge.registers import Group
from fedmq_firmware_bridge.sources import DeviceReport, Emit, Heard, LineReport
from fedmq_firmware_bridge.store import SensorInfo

__all__ = ["PolledLine"]

TAKEN_AT = "taken at"
"""The column of a row's time. No channel is called so: their names have no spaces."""
GROUP_STEP = 256
"""A sensor's number is its address, and so many more for each group after the device's first."""


class PolledLine:
    """A `Source`. Its clock is the service's: `time.monotonic`."""

    def __init__(self, line: ModbusLine) -> None:
        self.name = line.name
        self._modbus = ModbusSource(line)
        self._tables = {
            (device.address, group.name): (_info(line.name, device, group, place), _rows(group))
            for device in line.devices
            for place, group in enumerate(device.registers.groups)
        }

    def run(self, emit: Emit, stop: threading.Event) -> None:
        self._modbus.run(lambda rows: emit(self.take(rows)), stop)

    def take(self, rows: Rows) -> list[Heard]:
        info, taken = self._tables[rows.device.address, rows.table]
        for at, values in zip(rows.taken_at.tolist(), rows.values.tolist(), strict=True):
            taken.take([at, *values], at)
        return [Heard(sensor=info, stretch=stretch) for stretch in taken.drain()]

    def report(self) -> LineReport:
        modbus = self._modbus
        counts = modbus.schedule.counts
        return LineReport(
            connected=not modbus.problem,
            problem=modbus.problem,
            opened=modbus.opened,
            bytes=modbus.bytes,
            malformed=sum(one.garbled for one in counts.values()),
            sensors={info.number: rows.counts for info, rows in self._tables.values()},
            devices=tuple(
                DeviceReport(
                    address=device.address,
                    machine=device.machine,
                    requests=one.requests,
                    answers=one.answers,
                    silent=one.silent,
                    garbled=one.garbled,
                    refused={f"{code} {EXCEPTIONS.get(code, '')}".rstrip(): n for code, n in list(one.refused.items())},
                    not_numbers=one.not_numbers,
                    skipped=one.skipped,
                    failures_in_a_row=one.failures_in_a_row,
                )
                for device in modbus.line.devices
                for one in (counts[device.address],)
            ),
        )


def _info(source: str, device: ModbusDevice, group: Group, place: int) -> SensorInfo:
    name = f"{source}-{device.address}" + (f"-{group.name}" if len(device.registers.groups) > 1 else "")
    return SensorInfo(
        source=source,
        number=device.address + GROUP_STEP * place,
        name=name,
        machine=device.machine,
        channels=tuple(Channel(name=channel.name, unit=channel.unit) for channel in group.channels),
    )


def _rows(group: Group) -> lines.Rows:
    names = (TAKEN_AT, *(channel.name for channel in group.channels))
    return lines.Rows(
        columns=lines.Columns(names=names, rate_hz=1.0 / group.period_seconds, time=TAKEN_AT, time_unit="s")
    )
