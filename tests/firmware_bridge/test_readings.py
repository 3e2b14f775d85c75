"""What was lost, and where a signal is whole."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fedmq_firmware_bridge.frames import AskHello, Channel, FrameError, Hello, Opaque, Samples
from fedmq_firmware_bridge.readings import MAX_SENSORS, Line, SensorCounts, in_units
from hypothesis import given, settings
from hypothesis import strategies as st

COUNT, RATE_MHZ = 32, 3_200_000
BLOCK_US = 10_000


def block(sequence: int, **other: Any) -> Samples:
    """The block with this number of a signal that counts its own samples."""
    first = sequence % 1000 * COUNT
    fields: dict[str, Any] = {
        "sensor": 1,
        "boot": 5,
        "sequence": sequence,
        "taken_us": 1_000_000 + sequence * BLOCK_US,
        "rate_mhz": RATE_MHZ,
        "scale": 0.5,
        "values": np.arange(first, first + COUNT, dtype=np.int16)[:, None],
    }
    return Samples(**fields | other)


def hello(sequence: int = 0, **other: Any) -> Hello:
    fields: dict[str, Any] = {
        "sensor": 1,
        "boot": 5,
        "sequence": sequence,
        "uid": bytes(16),
        "name": "pump-3",
        "firmware": "1",
        "now_us": 1_000_000,
        "rate_mhz": RATE_MHZ,
        "scale": 0.5,
        "channels": (Channel(name="x", unit="g"),),
    }
    return Hello(**fields | other)


def counts(line: Line) -> SensorCounts:
    return line.sensors[1].counts


def test_frames_that_follow_each_other_come_as_one_stretch() -> None:
    line = Line()
    (stretch,) = line.take([block(number) for number in range(10)], 50.0)
    assert stretch.values[:, 0].tolist() == list(range(10 * COUNT))
    assert (stretch.sensor, stretch.boot, stretch.rate_hz, stretch.scale) == (1, 5, 3200.0, 0.5)
    assert stretch.taken_us == 1_000_000
    assert not stretch.follows
    assert counts(line) == SensorCounts(frames=10, samples=10 * COUNT)


def test_the_next_stretch_says_that_it_follows() -> None:
    line = Line()
    line.take([block(0)], 50.0)
    (stretch,) = line.take([block(1), block(2)], 50.1)
    assert stretch.follows
    assert len(stretch.values) == 2 * COUNT


@settings(deadline=None)
@given(st.sets(st.integers(1, 198)), st.lists(st.integers(0, 199), max_size=10))
def test_losses_are_counted_exactly_and_no_stretch_spans_one(lost: set[int], cuts: list[int]) -> None:
    came = [number for number in range(200) if number not in lost]
    line, stretches = Line(), []
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 200], strict=True):
        stretches += line.take([block(number) for number in came if begin <= number < end], 9.0)
    assert counts(line).lost_frames == len(lost)
    assert counts(line).gaps == sum(number in lost and number - 1 not in lost for number in range(200))
    for stretch in stretches:
        assert np.all(np.diff(stretch.values[:, 0]) == 1)
    for before, after in pairwise(stretches):
        assert after.follows == (after.values[0, 0] == before.values[-1, 0] + 1)


def test_a_sequence_that_wraps_is_no_loss_and_no_restart() -> None:
    line = Line()
    line.take([block(2**32 - 2, taken_us=1000), block(2**32 - 1, taken_us=11_000), block(1, taken_us=31_000)], 0.0)
    assert (counts(line).lost_frames, counts(line).restarts) == (1, 0)


def test_a_frame_that_comes_twice_counts_once() -> None:
    line = Line()
    stretches = line.take([block(0), block(0), block(1)], 0.0)
    assert [len(stretch.values) for stretch in stretches] == [2 * COUNT]
    assert (counts(line).duplicates, counts(line).frames) == (1, 2)


@pytest.mark.parametrize(
    ("how", "restarted"),
    [
        ("another boot number, later and further", block(2000, boot=6)),
        ("the same clock and number again, another boot", block(10, boot=6)),
        ("no boot number, the clock went back", block(2000, taken_us=5)),
        ("no boot number, the sequence went back", block(4, taken_us=90_000_000)),
    ],
)
def test_a_restart_is_seen_in_the_samples(how: str, restarted: Samples) -> None:
    line = Line()
    line.take([hello(), *(block(number) for number in range(11))], 0.0)
    (stretch,) = line.take([restarted], 100.0)
    assert counts(line).restarts == 1, how
    assert counts(line).lost_frames == restarted.sequence, "a start counts from 0"
    assert not stretch.follows
    assert stretch.taken_at == pytest.approx(100.0 - BLOCK_US * 1e-6), "by a clock of its own"
    assert line.sensors[1].hello is None, "whose hello was that of the start before"


@pytest.mark.parametrize("again", [hello(boot=6), hello(boot=5, now_us=10)])
def test_a_restart_is_seen_in_the_hello_and_counts_once(again: Hello) -> None:
    line = Line()
    line.take([hello(), *(block(number) for number in range(11))], 0.0)
    (stretch,) = line.take([again, block(2, boot=again.boot)], 100.0)
    assert (counts(line).restarts, counts(line).lost_frames) == (1, 2)
    assert not stretch.follows
    assert line.sensors[1].hello == again


def test_a_hello_now_and_then_is_no_restart_and_no_gap() -> None:
    line = Line()
    frames = [hello(), block(0), hello(1, now_us=1_010_500), block(1), hello(2, now_us=1_020_100), block(2)]
    (stretch,) = line.take(frames, 0.0)
    assert len(stretch.values) == 3 * COUNT
    assert (counts(line).hellos, counts(line).restarts, counts(line).gaps) == (3, 0, 0)


def test_what_was_sent_before_we_listened_is_not_lost() -> None:
    line = Line()
    line.take([block(500), hello(7, now_us=6_500_000), block(501)], 0.0)
    assert counts(line).lost_frames == 0


def test_what_is_missing_after_a_restart_that_we_saw_is_lost_though_we_had_joined_late() -> None:
    line = Line()
    line.take([block(500), block(3, boot=6)], 0.0)
    assert (counts(line).restarts, counts(line).lost_frames) == (1, 3)


def test_what_is_missing_behind_the_first_hello_is_lost() -> None:
    line = Line()
    line.take([hello(0), block(3)], 0.0)
    assert (counts(line).lost_frames, counts(line).gaps) == (3, 1)


def test_samples_that_the_sensor_lost_end_a_stretch_and_no_frame_is_missing() -> None:
    line = Line()
    _, second = line.take([block(0), block(1, overrun=True, taken_us=9_000_000)], 0.0)
    assert not second.follows
    assert (counts(line).overruns, counts(line).gaps, counts(line).jumps) == (1, 0, 0)


def test_samples_that_the_sensor_skipped_in_silence_end_a_stretch() -> None:
    line = Line()
    stretches = line.take([block(0), block(1, taken_us=1_200_000)], 0.0)
    assert [stretch.follows for stretch in stretches] == [False, False]
    assert counts(line).jumps == 1


def test_an_oscillator_some_per_cent_off_and_a_late_interrupt_do_not() -> None:
    line = Line()
    rng = np.random.default_rng(0)
    frames = [block(n, taken_us=int(n * BLOCK_US * 1.04) + int(rng.integers(2000))) for n in range(200)]
    assert len(line.take(frames, 0.0)) == 1
    assert counts(line).jumps == 0


@pytest.mark.parametrize(
    "change", [{"rate_mhz": RATE_MHZ + 1}, {"scale": 1.0}, {"values": np.zeros((COUNT, 2), dtype=np.int16)}]
)
def test_another_rate_scale_or_number_of_channels_begins_a_stretch(change: dict[str, Any]) -> None:
    line = Line()
    stretches = line.take([block(0), block(1, **change), block(2, **change)], 0.0)
    assert [len(stretch.values) for stretch in stretches] == [COUNT, 2 * COUNT]
    assert not stretches[1].follows
    assert counts(line).gaps == 0


def test_sensors_on_one_line_are_kept_apart() -> None:
    line = Line()
    frames = [block(number, sensor=sensor) for number in range(5) for sensor in (1, 2)]
    stretches = line.take(frames, 0.0)
    assert {stretch.sensor: len(stretch.values) for stretch in stretches} == {1: 5 * COUNT, 2: 5 * COUNT}
    assert all(sensor.counts.gaps == 0 for sensor in line.sensors.values())


def test_a_line_that_invents_sensors_is_followed_only_so_far() -> None:
    line = Line()
    line.take([block(0, sensor=sensor) for sensor in range(1000)], 0.0)
    assert len(line.sensors) == MAX_SENSORS
    assert line.strangers == 1000 - MAX_SENSORS


def test_other_kinds_bring_no_samples_and_no_sensor() -> None:
    line = Line()
    assert line.take([AskHello(sensor=1, sequence=0), Opaque(sensor=1, sequence=0, kind=3, payload=b"x")], 0.0) == []
    assert not line.sensors


def test_a_stretch_stands_on_the_gateways_clock() -> None:
    line = Line()
    for number in range(2000):
        received_at = 7000.0 + (number + 1) * BLOCK_US * 1e-6 + 0.003 + (0.02 if number % 7 else 0)
        (stretch,) = line.take([block(number)], received_at)
    assert stretch.taken_at == pytest.approx(7000.0 + 1999 * BLOCK_US * 1e-6 + 0.003, abs=1e-4)


def test_units_come_from_the_frames_scale_and_the_hellos_calibration() -> None:
    channels = (Channel(name="x", unit="g", offset=1.0, gain=2.0), Channel(name="y", unit="g"))
    told = hello(channels=channels)
    (stretch,) = Line().take([block(0, values=np.array([[4, 4], [-6, 32767]], dtype=np.int16))], 0.0)
    units = in_units(stretch, told)
    assert units.dtype == np.float32
    assert units.tolist() == [[2.0, 2.0], [-8.0, 16383.5]]
    with pytest.raises(FrameError, match="1 channels in the hello, 2 in samples"):
        in_units(stretch, hello())
