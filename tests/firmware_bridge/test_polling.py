"""The order of requests on a Modbus line, in virtual time; rows, counts and settings."""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_firmware_bridge.polling import (
    REST_MOST,
    Answer,
    Failure,
    ModbusDevice,
    ModbusLine,
    Refused,
    Request,
    Rows,
    Schedule,
    modbus_lines,
)
from fedmq_firmware_bridge.registers import Channel, Group, RegisterMap
from fedmq_firmware_bridge.tables import TableError
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]

TIMEOUT = 0.2
TOOK = 0.03
"""Seconds of a request that is answered."""


def sensor(*periods: float, addresses: Sequence[int] = (0,)) -> RegisterMap:
    channels = tuple(Channel(name=f"c{at}", address=at, type="uint16", unit="mm/s", scale=0.1) for at in addresses)
    groups = tuple(Group(name=f"g{at}", period_seconds=period, channels=channels) for at, period in enumerate(periods))
    return RegisterMap(title="A sensor", source="made up", groups=groups)


def line(*maps: RegisterMap, **more: Any) -> ModbusLine:
    devices = tuple(
        ModbusDevice(address=at, registers=registers, machine=f"m{at}") for at, registers in enumerate(maps, 1)
    )
    return ModbusLine(**{"port": "/dev/null", "devices": devices, "baud": 115_200, "timeout_seconds": TIMEOUT, **more})


@dataclass
class Simulated:
    """A line in virtual time, whose devices answer what `says` says: 7 in each register, if nothing else."""

    schedule: Schedule
    now: float = 0.0
    says: dict[int, Answer] = field(default_factory=dict)
    asked: list[tuple[float, Request]] = field(default_factory=list)
    due: list[float] = field(default_factory=list)
    """Since when each of those had been due."""
    timeouts: list[float] = field(default_factory=list)
    """When each was over."""
    rows: list[Rows] = field(default_factory=list)

    def until(self, end: float) -> Simulated:
        while self.now < end:
            step = self.schedule.next(self.now)
            if isinstance(step, float):
                assert step > self.now, "the schedule waits for what is due"
                self.now = step
                continue
            answer = self.says.get(step.device.address, (7,) * step.read.count)
            self.asked.append((self.now, step))
            self.due.append(self.schedule._tables[step.place].due_at)
            self.now += TIMEOUT if isinstance(answer, Failure) else TOOK
            if isinstance(answer, Failure):
                self.timeouts.append(self.now)
            rows = self.schedule.take(step, answer, self.now)
            self.rows += [rows] if rows is not None else []
        return self

    def times(self, address: int) -> list[float]:
        return [now for now, request in self.asked if request.device.address == address]


def simulated(of: ModbusLine, **says: Answer) -> Simulated:
    """`m3=Failure.SILENT`: what the device of address 3 says."""
    return Simulated(Schedule(of, 0.0), says={int(name[1:]): answer for name, answer in says.items()})


def test_each_group_is_asked_at_its_own_period() -> None:
    run = simulated(line(sensor(1.0, 5.0), sensor(2.0))).until(19.9)
    asked = [(request.device.address, request.place) for _, request in run.asked]
    assert {place: asked.count(place) for place in set(asked)} == {(1, 0): 20, (1, 1): 4, (2, 2): 10}


def test_a_period_does_not_drift_by_what_requests_take() -> None:
    run = simulated(line(sensor(1.0))).until(100.0)
    assert run.times(1) == [float(second) for second in range(100)]


def test_a_row_has_values_names_and_units() -> None:
    run = simulated(line(sensor(1.0, addresses=(4, 5)))).until(0.5)
    (rows,) = run.rows
    assert (rows.device.machine, rows.table, rows.names, rows.units) == ("m1", "g0", ("c4", "c5"), ("mm/s", "mm/s"))
    assert rows.taken_at.tolist() == [TOOK]
    assert rows.values.dtype == np.float32
    np.testing.assert_allclose(rows.values, [[0.7, 0.7]], rtol=1e-6)


def test_a_row_of_several_reads_is_whole_and_taken_as_its_first_registers_came() -> None:
    run = simulated(line(sensor(1.0, addresses=(0, 100)), sensor(1.0))).until(0.9)
    assert [rows.values.shape for rows in run.rows] == [(1, 2), (1, 1)]
    assert run.rows[0].taken_at.tolist() == [TOOK]
    assert [request.read.address for _, request in run.asked] == [0, 100, 0]


def test_a_row_whose_second_read_fails_is_begun_anew() -> None:
    schedule = Schedule(line(sensor(1.0, addresses=(0, 100))), 0.0)
    first = schedule.next(0.0)
    assert isinstance(first, Request)
    assert schedule.take(first, (1,), 0.1) is None
    second = schedule.next(0.1)
    assert isinstance(second, Request)
    assert second.read.address == 100
    assert schedule.take(second, Failure.SILENT, 0.3) is None
    due = schedule.next(0.3)
    assert isinstance(due, float)
    again = schedule.next(due)
    assert isinstance(again, Request)
    assert again.read.address == 0


def test_the_same_request_is_told_until_its_answer_is_taken() -> None:
    schedule = Schedule(line(sensor(1.0), sensor(1.0)), 0.0)
    assert schedule.next(0.0) == schedule.next(0.5)


def test_a_missing_device_is_asked_ever_more_rarely_up_to_a_bound() -> None:
    run = simulated(line(sensor(1.0)), m1=Failure.SILENT).until(1000.0)
    waits = np.diff(run.times(1)) - TIMEOUT
    np.testing.assert_allclose(waits[:6], [1, 2, 4, 8, 16, 32])
    assert set(np.round(waits[6:], 6)) == {REST_MOST}
    counts = run.schedule.counts[1]
    assert counts.silent == counts.requests == counts.failures_in_a_row == len(run.asked)


def test_a_slow_period_stays_as_slow_while_the_device_is_missing() -> None:
    run = simulated(line(sensor(3600.0)), m1=Failure.SILENT).until(20_000.0)
    assert np.diff(run.times(1)).min() >= 3600.0


def test_a_missing_device_with_a_fast_period_leaves_the_line_to_others() -> None:
    run = simulated(line(sensor(0.05), sensor(0.05)), m1=Failure.SILENT).until(20.0)
    assert np.diff(run.times(1)).min() >= 4 * TIMEOUT


def test_a_device_that_comes_back_is_asked_at_its_period_again() -> None:
    run = simulated(line(sensor(1.0, 1.0)), m1=Failure.SILENT).until(100.0)
    run.says.clear()
    back = run.until(200.0).rows[0].taken_at[0]
    assert back <= 100.0 + REST_MOST
    rows = [rows for rows in run.rows if back + 1.0 <= rows.taken_at[0] <= back + 11.0]
    assert 19 <= len(rows) <= 21
    assert run.schedule.counts[1].failures_in_a_row == 0
    assert run.schedule.counts[1].skipped == 0


@settings(max_examples=60, deadline=None)
@given(
    devices=st.lists(
        st.tuples(st.floats(0.3, 3.0), st.sampled_from(["here", "missing", "garbled"])), min_size=2, max_size=12
    ),
)
def test_a_device_waits_for_one_timeout_at_most_however_many_are_missing(devices: list[tuple[float, str]]) -> None:
    says = {"missing": Failure.SILENT, "garbled": Failure.GARBLED}
    run = simulated(line(*(sensor(period) for period, _ in devices)))
    run.says = {at: says[how] for at, (_, how) in enumerate(devices, 1) if how != "here"}
    run.until(120.0)
    heard = set()
    for (asked_at, request), due_at in zip(run.asked, run.due, strict=True):
        address = request.device.address
        if address in heard:  # until its first answer nobody knows it from those that are missing
            met = [over for over in run.timeouts if due_at < over <= asked_at]
            assert len(met) <= 1, f"device {address}, due at {due_at}, asked at {asked_at}, timeouts over at {met}"
        if address not in run.says:
            heard.add(address)
    assert len(heard) == len(devices) - len(run.says)


@settings(max_examples=30, deadline=None)
@given(missing=st.integers(1, 10))
def test_missing_devices_are_asked_again_even_on_a_line_that_is_always_busy(missing: int) -> None:
    run = simulated(line(*[sensor(0.05)] * (missing + 3)))  # three answers take longer than their period
    run.says = dict.fromkeys(range(1, missing + 1), Failure.SILENT)
    run.until(60.0)
    assert all(len(run.times(at)) >= 2 for at in range(1, missing + 1))
    assert run.schedule.counts[missing + 1].skipped > 0


def test_a_line_that_is_too_busy_counts_what_it_skips() -> None:
    run = simulated(line(sensor(0.05), sensor(0.05))).until(10.0)
    for counts in run.schedule.counts.values():
        assert counts.rows + counts.skipped == pytest.approx(200, abs=3)
        assert counts.skipped > 10


def test_exceptions_are_counted_by_kind_and_cost_others_nothing() -> None:
    run = simulated(line(sensor(1.0), sensor(1.0)), m1=Refused(2)).until(60.0)
    counts = run.schedule.counts[1]
    assert counts.refused == {2: counts.requests}
    assert (counts.silent, counts.garbled, counts.failures_in_a_row, counts.rows) == (0, 0, 0, 0)
    assert not run.timeouts
    assert len(run.times(2)) == 60


def test_a_group_that_is_refused_rests_and_the_other_goes_on() -> None:
    run = Simulated(Schedule(line(sensor(1.0, 1.0)), 0.0))
    while run.now < 100.0:
        step = run.schedule.next(run.now)
        if isinstance(step, float):
            run.now = step
            continue
        run.asked.append((run.now, step))
        run.now += TOOK
        run.schedule.take(step, Refused(2) if step.place == 0 else (7,), run.now)
    places = [request.place for _, request in run.asked]
    assert places.count(0) == 7  # after 1, 2, 4, 8, 16 and 32 s
    assert places.count(1) == 100


def test_an_answer_after_exceptions_ends_their_rest() -> None:
    run = simulated(line(sensor(1.0)), m1=Refused(6)).until(30.0)
    run.says.clear()
    run.until(100.0)
    assert np.diff(run.times(1)[-20:]) == pytest.approx(1.0)
    run.says[1] = Refused(6)
    run.until(103.0)
    assert len([asked_at for asked_at in run.times(1) if asked_at >= 100.0]) >= 2


def test_garbled_answers_are_told_from_silence() -> None:
    run = simulated(line(sensor(1.0), sensor(1.0)), m1=Failure.GARBLED, m2=Failure.SILENT).until(10.0)
    first, second = run.schedule.counts.values()
    assert (first.garbled, first.silent) == (first.requests, 0)
    assert (second.garbled, second.silent) == (0, second.requests)


def test_a_value_that_is_no_number_leaves_its_row_out() -> None:
    channel = Channel(name="a", address=0, type="float32", unit="")
    registers = RegisterMap(title="A", source="b", groups=(Group(name="g", period_seconds=1.0, channels=(channel,)),))
    run = simulated(line(registers), m1=(0x7FC0, 0x0000)).until(3.5)
    counts = run.schedule.counts[1]
    assert (counts.not_numbers, counts.rows, run.rows) == (4, 0, [])
    assert counts.answers == 4


SETTINGS = """
[[modbus]]
port = "/dev/serial/by-id/adapter"
timeout_seconds = 0.2
[[modbus.device]]
address = 80
map = "witmotion-wtvb01-485"
machine = "pump-3"
"""


def lines_of(text: str, folder: Path = Path()) -> tuple[ModbusLine, ...]:
    return modbus_lines(tomllib.loads(text), folder)


def test_settings_become_lines() -> None:
    (made,) = lines_of(SETTINGS)
    assert (made.baud, made.parity, made.stop_bits, made.local_echo) == (19_200, "N", 1, False)
    assert made.devices[0].registers.title == "WitMotion WTVB01-485"
    assert lines_of("") == ()


def test_a_map_of_ones_own_lies_beside_the_settings(tmp_path: Path) -> None:
    text = "title = 'Mine'\nsource = 'me'\n[[group]]\nname = 'a'\nperiod_seconds = 1\n"
    text += "[[group.channel]]\nname = 'b'\naddress = 1\ntype = 'int16'\nunit = ''\n"
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    (made,) = lines_of(SETTINGS.replace("witmotion-wtvb01-485", "mine.toml"), tmp_path)
    assert made.devices[0].registers.title == "Mine"


def test_every_mistake_of_the_settings_is_named_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("title = 'Bad'\nsource = 'me'\ngroup = []\n", encoding="utf-8")
    text = """
[[modbus]]
port = ""
bauds = 9600
baud = 50
parity = "none"
stop_bits = true
[[modbus.device]]
address = 0
map = "bad.toml"
machine = "../pump"
[[modbus.device]]
address = 248
map = "no-such-map"
[[modbus]]
port = "/dev/b"
device = []
"""
    with pytest.raises(TableError) as caught:
        lines_of(text, tmp_path)
    assert {key for key, _ in caught.value.mistakes} == {
        "modbus[1].port",
        "modbus[1].bauds",
        "modbus[1].baud",
        "modbus[1].parity",
        "modbus[1].stop_bits",
        "modbus[1].device[1].address",
        f"modbus[1].device[1].map: {tmp_path / 'bad.toml'}: group",
        "modbus[1].device[1].machine",
        "modbus[1].device[2].address",
        "modbus[1].device[2].map",
        "modbus[1].device[2].machine",
        "modbus[2].device",
    }


def test_the_documentation_shows_settings_and_a_map_that_are_right(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "modbus.md").read_text(encoding="utf-8")
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE)]
    (settings,) = (block for block in blocks if block.strip().startswith("[[modbus]]"))
    (own,) = (block for block in blocks if block.strip().startswith("title ="))
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "our-own.toml").write_text(own, encoding="utf-8")
    (made,) = lines_of(settings, tmp_path)
    assert [device.registers.title for device in made.devices] == ["WitMotion WTVB01-485", "Our sensor"]


@pytest.mark.parametrize("text", ["modbus = 3", "modbus = [3]", "[modbus]", "[[modbus]]\nport = 'a'\ndevice = [3]"])
def test_settings_of_another_shape_are_refused(text: str) -> None:
    with pytest.raises(TableError):
        lines_of(text)


def test_two_devices_of_one_address_are_refused() -> None:
    device = SETTINGS.partition("[[modbus.device]]")[2]
    with pytest.raises(TableError, match="address 80 is there twice"):
        lines_of(SETTINGS + "[[modbus.device]]" + device)


def test_a_timeout_that_no_answer_can_keep_is_refused() -> None:
    registers = sensor(60.0, addresses=range(100))
    with pytest.raises(TableError, match=r"timeout_seconds: at 9,600 baud the longest answer takes 0.242 s"):
        line(registers, baud=9600)
    assert line(registers, baud=9600, timeout_seconds=0.25)


def test_a_line_that_cannot_carry_its_reads_is_refused() -> None:
    maps = [sensor(0.1, addresses=range(50))] * 10
    with pytest.raises(TableError, match=r"device: at 19,200 baud the bytes alone take 6\.\d s of each second"):
        line(*maps, baud=19_200)
    assert line(*maps, baud=230_400)


@pytest.mark.parametrize(("parity", "stop_bits", "bits"), [("N", 1, 10), ("E", 1, 11), ("N", 2, 11), ("O", 2, 12)])
def test_a_character_has_the_bits_that_the_line_is_set_to(parity: str, stop_bits: int, bits: int) -> None:
    made = line(sensor(1.0), baud=10_000, parity=parity, stop_bits=stop_bits)
    assert made.character_seconds == pytest.approx(bits / 10_000)


def test_frames_are_3_5_characters_apart_and_1750_us_at_least() -> None:
    assert line(sensor(1.0), baud=9600).silence_seconds == pytest.approx(3.5 * 10 / 9600)
    assert line(sensor(1.0), baud=115_200).silence_seconds == 0.00175
