"""Modbus lines as `fedmq bridge` has them: from settings to the store, and what status says of a missing device."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node.samples import RAW
from fedmq_edge_node.sensors import Sensors
from fedmq_firmware_bridge.polled import PolledLine
from fedmq_firmware_bridge.polling import ModbusDevice, ModbusLine, Rows
from fedmq_firmware_bridge.registers import Channel, Group, RegisterMap
from fedmq_firmware_bridge.store import Recorder, Store
from fedmq_protocol.settings import SettingsError, load
from fedmq_protocol.task import Windowing
from modbus_line import serving, wire

from fedmq.bridge.program import build_bridge
from fedmq.bridge.settings import BridgeSettings
from fedmq.bridge.showing import as_json, as_prometheus, as_text

DEADLINE = 60.0
"""Seconds until a test gives up waiting for what it needs."""

MAP = """
title = "Pump"
source = "made up"

[[group]]
name = "process"
period_seconds = 0.1

[[group.channel]]
name = "temperature"
address = 10
type = "int16"
unit = "°C"
scale = 0.01

[[group.channel]]
name = "velocity_rms_x"
address = 11
type = "uint16"
unit = "mm/s"
scale = 0.001
"""


def settings(folder: Path, text: str) -> BridgeSettings:
    (folder / "pump.toml").write_text(MAP)
    path = folder / "bridge.toml"
    path.write_text('store = "bridge.sqlite"\nflush_seconds = 0.2\n' + text)
    return load(BridgeSettings, path)


def test_rows_are_in_the_store_with_their_units_and_status_names_the_device_that_is_missing(tmp_path: Path) -> None:
    from pymodbus.simulator import DataType, SimData, SimDevice

    there = SimDevice(80, [SimData(10, values=[-250 & 0xFFFF, 1234], datatype=DataType.REGISTERS)])
    with wire(missing=frozenset({81})) as made, serving([there], made.ends[1], 115_200):
        asked = settings(
            tmp_path,
            f'[[modbus]]\nname = "hall"\nport = "{made.ends[0]}"\nbaud = 115200\ntimeout_seconds = 1.0\n'
            '[[modbus.device]]\naddress = 80\nmap = "pump.toml"\nmachine = "pump-3"\n'
            '[[modbus.device]]\naddress = 81\nmap = "pump.toml"\nmachine = "fan-1"\n',
        )
        bridge = build_bridge(asked)
        before = time.time()
        thread = threading.Thread(target=bridge.run)
        thread.start()
        store = Store(asked.store)
        try:
            _wait_for(lambda: _told(store, 81, "silent") >= 1 and _told(store, 80, "answers") >= 5)
        finally:
            bridge.stopping = True
            thread.join()
    after = time.time()

    runs = store.runs()
    assert {run.sensor.machine for run in runs} == {"pump-3"}
    assert {(run.sensor.source, run.sensor.number, run.sensor.name) for run in runs} == {("hall", 80, "hall-80")}
    assert [(one.name, one.unit) for one in runs[0].sensor.channels] == [
        ("temperature", "°C"),
        ("velocity_rms_x", "mm/s"),
    ]
    kept = np.concatenate([store.read(run, run.start, run.stop) for run in runs])
    assert kept.dtype == np.float32
    np.testing.assert_allclose(kept, np.tile(np.float32([-2.5, 1.234]), (len(kept), 1)), rtol=1e-6)
    assert len(kept) == _told(store, 80, "answers") >= 5
    assert all(before <= run.taken_at <= after for run in runs)

    report = json.loads(as_json(store, after))
    assert (report["sources"]["hall"]["connected"], report["sources"]["hall"]["opened"]) == (True, 1)
    shown = {line.split()[1]: line.split() for line in as_text(store, after).splitlines() if line.startswith("hall ")}
    assert shown["80"][2:4] == ["pump-3", "answers"]
    assert shown["81"][2:4] == ["fan-1", "missing"]
    silent = _told(store, 81, "silent")
    assert f'fedmq_modbus_silent_total{{address="81",machine="fan-1",source="hall"}} {silent}.0' in as_prometheus(
        store, after
    )


def _told(store: Store, address: int, key: str) -> int:
    devices = store.reports().get("sources", {}).get("hall", {}).get("devices", ())
    return next((int(device[key]) for device in devices if device["address"] == address), 0)


def _wait_for(what) -> None:  # type: ignore[no-untyped-def]
    pause = threading.Event()
    for _ in range(int(DEADLINE / 0.05)):
        if what():
            return
        pause.wait(0.05)
    raise AssertionError(f"did not come about in {DEADLINE} s")


def polled() -> tuple[PolledLine, ModbusDevice]:
    groups = tuple(
        Group(
            name=name,
            period_seconds=1.0,
            channels=(Channel(name=name, address=place, type="int16", unit="g"),),
        )
        for place, name in enumerate(("fast", "slow"))
    )
    device = ModbusDevice(
        address=7, registers=RegisterMap(title="Two groups", source="made up", groups=groups), machine="pump-3"
    )
    return PolledLine(ModbusLine(name="hall", port="/dev/none", devices=(device,))), device


def row(device: ModbusDevice, table: str, at: float) -> Rows:
    return Rows(
        device=device,
        table=table,
        names=(table,),
        units=("g",),
        taken_at=np.array([at]),
        values=np.array([[at]], dtype=np.float32),
    )


def test_a_row_that_did_not_come_is_lost_and_ends_the_run() -> None:
    line, device = polled()
    heard = [one for at in (100.0, 101.02, 104.0, 105.0) for one in line.take(row(device, "fast", at))]
    assert [one.stretch.follows for one in heard] == [False, True, False, True]
    assert [one.stretch.values.tolist() for one in heard] == [[[100.0]], [[np.float32(101.02)]], [[104.0]], [[105.0]]]
    counts = line.report().sensors[7]
    assert (counts.samples, counts.lost_frames, counts.gaps, counts.restarts) == (4, 2, 1, 0)


def test_each_group_of_a_device_is_a_sensor_of_its_own() -> None:
    line, device = polled()
    heard = [*line.take(row(device, "fast", 100.0)), *line.take(row(device, "slow", 100.1))]
    assert [(one.sensor.number, one.sensor.name) for one in heard] == [(7, "hall-7-fast"), (263, "hall-7-slow")]


def test_a_gateway_learns_from_rows_in_windows_of_one_sample(tmp_path: Path) -> None:
    line, device = polled()
    path = tmp_path / "bridge.sqlite"
    recorder = Recorder(path, max_bytes=1 << 20, opened_at=0.0)
    for at in range(100, 300):
        for heard in line.take(row(device, "fast", float(at))):
            recorder.append(heard.sensor, heard.stretch, 0.0)
    recorder.flush(300.0, {})
    windowing = Windowing(samples=1, hop=1, sampling_rate_hz=1.0, features=RAW, channels=1, held_out=0.25)
    samples = Sensors(path, unix=lambda: 300.0).load(windowing, (), "normal")
    recorder.close()
    windows = np.concatenate([samples.train_x, samples.held_x])
    assert windows.shape[1] == 1
    assert set(windows.ravel().tolist()) <= {float(at) for at in range(100, 300)}
    assert len(windows) > 150


def test_a_port_that_is_not_there_is_told_and_blamed_on_no_device() -> None:
    line, _ = polled()
    stop = threading.Event()
    thread = threading.Thread(target=line.run, args=(lambda heard: None, stop))
    thread.start()
    try:
        _wait_for(lambda: "is the adapter plugged in" in line.report().problem)
    finally:
        stop.set()
        thread.join()
    report = line.report()
    assert (report.connected, report.opened, report.devices[0].requests) == (False, 0, 0)


def test_all_mistakes_in_modbus_lines_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(
            tmp_path,
            '[[modbus]]\nport = "a"\n[[modbus.device]]\naddress = 1\nmap = "no.toml"\nmachine = "a"\n'
            '[[modbus.device]]\naddress = 2\nmap = "unheard-of"\nmachine = "b"\n'
            '[[modbus]]\nport = "b"\nbaud = 1200\n[[modbus.device]]\naddress = 300\nmap = "pump.toml"\n',
        )
    said = str(caught.value)
    assert "modbus[1].device[1].map: " in said
    assert "no.toml: cannot be read" in said
    assert "modbus[1].device[2].map: expected the path of a .toml file, or one of banner-qm30vt2" in said
    assert "modbus[2].device[1].address: " in said
    assert "modbus[2].device[1].machine: " in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[modbus]]\nport = "a"', "modbus[1].device: "),
        (
            '[[modbus]]\nport = "a"\ntimeout_seconds = 0.01\n[[modbus.device]]\naddress = 1\n'
            'map = "pump.toml"\nmachine = "a"',
            "modbus[1].timeout_seconds: at 19,200 baud",
        ),
        (
            "".join(
                f'[[modbus]]\nport = "{port}"\n[[modbus.device]]\naddress = 1\nmap = "pump.toml"\nmachine = "a"\n'
                for port in "ab"
            ),
            '"modbus" is the name of more than one',
        ),
    ],
)
def test_what_does_not_add_up_on_a_line_is_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(tmp_path, text)
    assert said in str(caught.value)
