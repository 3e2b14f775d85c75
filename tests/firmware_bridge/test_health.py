"""How a sensor is: a number that is wrong is told in a word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fedmq_firmware_bridge.health import Watch, states
from fedmq_firmware_bridge.readings import SensorCounts
from fedmq_firmware_bridge.sources import Heard
from sensors import INFO, counting, stretch


def watched(values: list[np.ndarray[Any, Any]], *, seconds: float = 1.0, clips_at: int = 32_767) -> dict[str, Any]:
    """One stretch of a sensor of 1,000 Hz every `seconds`; the report as the last one comes."""
    watch = Watch(clips_at=clips_at)
    for place, block in enumerate(values):
        watch.observe(Heard(sensor=INFO, stretch=stretch(0, 1, values=block)), place * seconds)
    return watch.report((len(values) - 1) * seconds, 1000.0 + len(values) * seconds, SensorCounts(gaps=3))


MOVING = counting(0, 1000)[:, [0, 0, 2]]


def test_a_sensor_that_is_well_has_nothing_to_tell() -> None:
    report = watched([MOVING] * 11)
    assert report["achieved_hz"] == pytest.approx(1000.0)
    assert (report["promised_hz"], report["gaps"], report["machine"]) == (1000.0, 3, "pump-3")
    assert states(report, report["last_seen_at"]) == []


def test_a_sensor_that_brings_less_than_it_promises_is_slow() -> None:
    report = watched([MOVING[:800]] * 11)
    assert report["achieved_hz"] == pytest.approx(8800 / 10.8)
    assert states(report, report["last_seen_at"]) == ["slow"]


def test_a_sensor_that_says_nothing_is_silent_and_not_also_slow() -> None:
    report = watched([MOVING[:800]] * 11)
    assert states(report, report["last_seen_at"] + 60) == ["silent"]


def test_a_sensor_of_one_sample_a_minute_is_not_silent_after_a_minute() -> None:
    report = watched([MOVING] * 3) | {"promised_hz": 1 / 60}
    assert states(report, report["last_seen_at"] + 70) == []
    assert states(report, report["last_seen_at"] + 181) == ["silent"]


@pytest.mark.parametrize(("missing", "wrong"), [(0, []), (1, []), (4, ["slow"])])
def test_a_sensor_of_one_sample_a_minute_is_slow_after_some_that_are_missing(missing: int, wrong: list[str]) -> None:
    watch = Watch()
    for minute in range(60):
        if not 40 <= minute < 40 + missing:
            value = np.full((1, 3), minute, dtype=np.float32)
            watch.observe(Heard(sensor=INFO, stretch=stretch(0, 1, values=value, rate_hz=1 / 60)), minute * 60.0)
        reports = [watch.report(minute * 60.0 + part, 0.0, SensorCounts()) for part in (0.0, 30.0, 59.0)]
        if minute < 40:
            assert not any(report["slow"] for report in reports)
    assert states(reports[-1], reports[-1]["last_seen_at"]) == wrong


def test_a_chip_that_repeats_one_number_is_flat() -> None:
    frozen = MOVING.copy()
    frozen[:, 1] = 5
    report = watched([MOVING, *[frozen] * 6])
    assert report["flat_channels"] == [1]
    assert states(report, report["last_seen_at"]) == ["flat"]


def test_a_level_that_is_constant_and_then_another_is_not_flat() -> None:
    low, high = MOVING.copy(), MOVING.copy()
    low[:, 1], high[:, 1] = 5, 6
    assert watched([low, high] * 6)["flat_channels"] == []


@pytest.mark.parametrize("steps", [4095, -4095, -32_768])
def test_samples_at_the_end_of_the_scale_are_clipped(steps: int) -> None:
    hit = MOVING % 100
    hit[::100, 2] = steps
    report = watched([hit.astype(np.int16)] * 3, clips_at=4095)
    assert report["clipped_share"] == pytest.approx(0.01)
    assert "clipping" in states(report, report["last_seen_at"])


def test_what_was_a_minute_ago_is_forgotten() -> None:
    watch = Watch()
    hit = MOVING.copy()
    hit[:, 2] = 32_767
    watch.observe(Heard(sensor=INFO, stretch=stretch(0, 1, values=hit)), 0.0)
    assert watch.report(0.0, 0.0, SensorCounts())["clipped_share"] == 1.0
    for second in range(2, 100):
        watch.observe(Heard(sensor=INFO, stretch=stretch(0, 1, values=MOVING)), float(second))
        report = watch.report(float(second), 0.0, SensorCounts())
    assert report["clipped_share"] == 0.0


def test_numbers_that_are_no_steps_have_no_end_of_scale() -> None:
    report = watched(
        [np.full((1000, 3), 1e9, dtype=np.float32) + np.arange(1000)[:, None].astype(np.float32) * 1e3] * 3
    )
    assert report["clipped_share"] == 0.0
