"""Readings as text: what is a sample, what is missing, and what is no error."""

from __future__ import annotations

from typing import Any

import pytest
from fedmq_firmware_bridge.lines import MAX_LINE, Columns, Rows, TextLine, read_csv, read_json
from fedmq_firmware_bridge.sources import Heard
from fedmq_firmware_bridge.store import SensorInfo
from hypothesis import given, settings
from hypothesis import strategies as st

XY = Columns(names=("x", "y"), units=("g",), rate_hz=10.0)
COUNTED = Columns(names=("n", "x"), rate_hz=10.0, sequence="n")
TIMED = Columns(names=("t", "x"), rate_hz=10.0, time="t")


def line_of(columns: Columns, kind: Any = "csv") -> TextLine:
    info = SensorInfo(source="hall", number=0, name="hall", machine="m", channels=columns.channels)
    talk = TextLine(sensor=info, kind=kind, rows=Rows(columns=columns))
    talk.opened()
    talk.take(b"\n", 0.0)
    return talk


def values(heard: list[Heard]) -> list[tuple[bool, list[list[float]]]]:
    return [(one.stretch.follows, one.stretch.values.tolist()) for one in heard]


def test_lines_of_csv_become_one_stretch_however_they_are_cut() -> None:
    talk = line_of(XY)
    assert talk.take(b"1,2\r\n3;", 0.1) != []
    heard = talk.take(b"4\n5, 6\n", 0.3)
    assert values(heard) == [(True, [[3.0, 4.0], [5.0, 6.0]])]
    assert [(channel.name, channel.unit) for channel in heard[0].sensor.channels] == [("x", "g"), ("y", "g")]


def test_json_is_found_by_key_and_a_contact_counts() -> None:
    columns = Columns(names=("accel.x", "open"), rate_hz=1.0)
    assert read_json('{"accel": {"x": 1.5}, "open": true, "battery": 90}', columns) == [1.5, 1.0]
    assert read_json("21.5", Columns(rate_hz=1.0)) == [21.5]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "[" * 4000, '{"x": 1}', '{"x": 1, "y": "2"}', '{"x": 1, "y": NaN}', '{"x": 1e999, "y": 1}'),
        '{"x": 1, "y": 1' + "0" * 400 + "}",
    ],
)
def test_json_that_is_no_sample_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_json(text, XY)


@pytest.mark.parametrize("text", ["1", "1,2,3", "x,y", "1,nan", "1,inf", "1,1e300", "1,"])
def test_csv_that_is_no_sample_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_csv(text, XY)


def test_a_column_that_is_not_wanted_may_hold_a_number_of_any_meaning() -> None:
    columns = Columns(names=("-", "x"), rate_hz=1.0)
    assert [channel.name for channel in columns.channels] == ["x"]
    rows = Rows(columns=columns)
    rows.take(read_csv("7,1", columns), 0.0)
    assert rows.drain()[0].values.tolist() == [[1.0]]


def test_what_stands_before_the_first_whole_line_is_no_error() -> None:
    talk = TextLine(
        sensor=SensorInfo(source="hall", number=0, name="hall", machine="m"), kind="csv", rows=Rows(columns=XY)
    )
    talk.opened()
    assert talk.take(b"2\n1,2\n", 0.0) != []
    assert talk.report().malformed == 0


def test_a_line_that_cannot_be_read_is_counted_and_what_is_around_it_not_joined() -> None:
    talk = line_of(XY)
    heard = talk.take(b"1,2\nI (1234) wifi: up\n3,4\n", 0.1)
    assert values(heard) == [(False, [[1.0, 2.0]]), (False, [[3.0, 4.0]])]
    assert talk.report().malformed == 1


def test_an_endless_line_is_thrown_away_up_to_its_end() -> None:
    talk = line_of(XY)
    for _ in range(10):
        assert talk.take(b"1" * MAX_LINE, 0.1) == []
        assert len(talk._begun) <= MAX_LINE
    assert values(talk.take(b"\n3,4\n", 0.2)) == [(False, [[3.0, 4.0]])]
    assert talk.report().malformed == 1


def test_losses_repeats_and_restarts_follow_from_the_sequence() -> None:
    talk = line_of(COUNTED)
    heard = talk.take(b"0,1\n1,1\n1,1\n4,2\n5,2\n0,3\n", 0.1)
    assert values(heard) == [(False, [[1.0], [1.0]]), (False, [[2.0], [2.0]]), (False, [[3.0]])]
    counts = talk.rows.counts
    assert (counts.samples, counts.duplicates, counts.lost_frames, counts.gaps, counts.restarts) == (5, 1, 2, 1, 1)


def test_losses_follow_from_the_sensors_clock_where_it_has_no_sequence() -> None:
    talk = line_of(TIMED)
    heard = talk.take(b"0,1\n104,1\n104,1\n397,2\n12,3\n", 0.1)
    assert values(heard) == [(False, [[1.0], [1.0]]), (False, [[2.0]]), (False, [[3.0]])]
    counts = talk.rows.counts
    assert (counts.duplicates, counts.lost_frames, counts.gaps, counts.restarts) == (1, 2, 1, 1)


def test_a_silence_is_a_gap_where_nothing_else_can_tell() -> None:
    talk = line_of(XY)
    talk.take(b"1,2\n", 10.0)
    assert values(talk.take(b"1,2\n", 11.9)) == [(True, [[1.0, 2.0]])], "a busy line is late by a second"
    assert values(talk.take(b"1,2\n", 15.0)) == [(False, [[1.0, 2.0]])]
    assert talk.rows.counts.gaps == 1


def test_samples_are_taken_one_period_apart_although_they_come_in_bursts() -> None:
    talk = line_of(XY)
    times = [talk.take(b"1,2\n" * 5, 10.0 + burst * 0.5)[0].stretch.taken_at for burst in range(4)]
    assert times == pytest.approx([9.6, 10.1, 10.6, 11.1])


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40)))
def test_whatever_comes_is_read_or_counted_and_ends_nothing(pieces: list[bytes]) -> None:
    for kind in ("csv", "json"):
        talk = line_of(XY, kind)
        for piece in pieces:
            talk.take(piece, 0.0)
        assert talk.report().bytes == 1 + sum(map(len, pieces))
