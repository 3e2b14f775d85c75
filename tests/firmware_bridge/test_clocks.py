"""The sensor's clock on the gateway's: drift, jitter, and what a map must not do."""

from __future__ import annotations

import numpy as np
import pytest
from fedmq_firmware_bridge.clocks import BUCKET_US, BUCKETS, ClockMap

EPOCH = 1.8e9
LEAST_DELAY = 0.004


def watched(drift_ppm: float, seconds: float, *, seed: int = 0, jitter: float = 0.02) -> tuple[ClockMap, float]:
    """A map after 20 frames a second with exponential jitter, and the largest error in the last minute, in seconds."""
    rng = np.random.default_rng(seed)
    clock, worst = ClockMap(), 0.0
    for true in np.arange(0, seconds, 0.05):
        sensor_us = round(true * 1e6 / (1 + drift_ppm * 1e-6))
        clock.observe(sensor_us, EPOCH + true + LEAST_DELAY + float(rng.exponential(jitter)))
        if true > seconds - 60:
            worst = max(worst, abs(clock.to_gateway(sensor_us) - (EPOCH + true + LEAST_DELAY)))
    return clock, worst


@pytest.mark.parametrize("drift_ppm", [-100.0, 0.0, 30.0, 500.0])
@pytest.mark.parametrize("seed", range(3))
def test_drift_and_offset_are_found_below_the_jitter(drift_ppm: float, seed: int) -> None:
    clock, worst = watched(drift_ppm, 600, seed=seed)
    assert clock.drift_ppm == pytest.approx(drift_ppm, abs=2)
    assert worst < 0.001, "jitter is 20 ms"


def test_an_hour_is_as_good_as_ten_minutes_and_takes_no_more_room() -> None:
    clock, worst = watched(80, 3600)
    assert worst < 0.001
    assert len(clock._minima) <= BUCKETS


def test_a_burst_of_late_frames_moves_nothing() -> None:
    clock, _ = watched(50, 300)
    before = clock.to_gateway(400_000_000)
    for late in np.arange(300, 340, 0.05):
        clock.observe(round(late * 1e6 / 1.00005), EPOCH + float(late) + 0.5)
    assert clock.to_gateway(400_000_000) == pytest.approx(before, abs=0.002)


def test_the_first_frame_says_where_the_clock_stands_and_no_drift() -> None:
    clock = ClockMap()
    clock.observe(5_000_000, 105.0)
    assert clock.to_gateway(6_000_000) == pytest.approx(106.0)
    assert clock.drift_ppm is None


def test_before_the_first_frame_there_is_no_time() -> None:
    with pytest.raises(ValueError, match="observation first"):
        ClockMap().to_gateway(0)


def test_a_sensor_whose_clock_was_set_forward_begins_anew() -> None:
    clock, _ = watched(0, 120)
    clock.observe(1_000_000_000, EPOCH + 121)
    assert clock.to_gateway(1_000_000_000) == pytest.approx(EPOCH + 121)
    assert clock.drift_ppm is None
    for later in range(100):
        now_us = 1_000_000_000 + later * 1_000_000
        clock.observe(now_us, EPOCH + 121 + later)
        assert clock.to_gateway(now_us) == pytest.approx(EPOCH + 121 + later, abs=1e-4)


def test_a_time_that_goes_back_is_left_out() -> None:
    clock, _ = watched(0, 60)
    before = clock.to_gateway(60_000_000)
    clock.observe(1, EPOCH - 1000)
    assert clock.to_gateway(60_000_000) == before


def test_times_at_the_ends_of_what_a_frame_can_say_do_no_harm() -> None:
    clock = ClockMap()
    for step in range(100):
        clock.observe(step * BUCKET_US, EPOCH + step * 4)
    for step in range(100):
        clock.observe(2**64 - 1 - (99 - step) * BUCKET_US, EPOCH + 400 + step * 4)
    assert np.isfinite(clock.to_gateway(2**64 - 1))
