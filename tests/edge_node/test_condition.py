from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_edge_node.condition import Condition, measure, suspected, zone
from fedmq_edge_node.machines import BALL, BEARINGS, CAGE, INNER, OUTER, Machine
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.simulator import simulate_vibration

BEARING = BEARINGS["6205"]
LIMIT = Machine(name="m").defect_limit
REPOSITORY = Path(__file__).resolve().parents[2]
CWRU = Path(os.environ.get("FEDMQ_DATA", REPOSITORY.parent / "shared" / "data")) / "cwru" / "cwru_de12k_load012.npz"


def sine(velocity_mm_s: float, at_hz: float, rate_hz: float, samples: int, phase: float = 0.0) -> np.ndarray:
    """Acceleration in g of a vibration whose velocity has this RMS."""
    time = np.arange(samples) / rate_hz
    peak_g = velocity_mm_s * math.sqrt(2) * 2 * math.pi * at_hz / 9806.65
    return np.asarray(peak_g * np.cos(2 * math.pi * at_hz * time + phase), dtype=np.float64)


def simulated(label: str, severity: float, seconds: float = 2.0, seed: int = 0, shaft_hz: float = 29.2) -> np.ndarray:
    signal = simulate_vibration(
        label=label,
        severity=severity,
        shaft_hz=shaft_hz,
        load=1.0,
        resonance_hz=3000.0,
        seconds=seconds,
        rng=np.random.default_rng(seed),
    )
    return signal.astype(np.float64)


@settings(deadline=None)
@given(
    st.sampled_from([2560.0, 3200.0, 12_000.0, 25_600.0, 48_000.0]),
    st.floats(0.1, 3.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 6.28),
    st.floats(0.01, 50.0),
)
def test_velocity_of_a_sine_is_right_within_one_per_cent(
    rate_hz: float, seconds: float, place: float, phase: float, velocity_mm_s: float
) -> None:
    samples = int(rate_hz * seconds)
    low, high = measure(sine(1.0, 100.0, rate_hz, samples), rate_hz).velocity_band_hz
    at_hz = low * (high / low) ** place
    got = measure(sine(velocity_mm_s, at_hz, rate_hz, samples, phase), rate_hz)
    assert got.velocity_mm_s == pytest.approx(velocity_mm_s, rel=0.01)


def test_velocities_of_several_lines_add_up_by_their_squares_and_the_loudest_channel_counts() -> None:
    signal = sine(3.0, 25.0, 12_000.0, 12_000) + sine(4.0, 310.0, 12_000.0, 12_000)
    assert measure(signal, 12_000.0).velocity_mm_s == pytest.approx(5.0, rel=0.01)
    pair = np.stack([0.1 * signal, signal], axis=1)
    assert measure(pair, 12_000.0).velocity_mm_s == pytest.approx(5.0, rel=0.01)


def test_what_is_outside_of_the_band_and_an_offset_do_not_count() -> None:
    rate_hz, samples = 12_000.0, 24_000
    loud = sine(50.0, 2.0, rate_hz, samples) + sine(50.0, 1500.0, rate_hz, samples) + 1.0
    assert measure(loud, rate_hz).velocity_mm_s < 0.01
    assert measure(loud + sine(2.0, 30.0, rate_hz, samples), rate_hz).velocity_mm_s == pytest.approx(2.0, rel=0.01)


def test_a_window_too_short_for_ten_hertz_says_from_where_it_measured() -> None:
    rate_hz = 12_000.0
    short = measure(sine(3.0, 30.0, rate_hz, 2048), rate_hz)
    assert not short.complete
    assert short.velocity_band_hz == (pytest.approx(3 * rate_hz / 2048), 1000.0)
    assert short.velocity_mm_s == pytest.approx(3.0, rel=0.01)
    # What lies below is missed in part or in whole, so that it is a lower bound.
    assert measure(sine(3.0, 12.0, rate_hz, 2048), rate_hz).velocity_mm_s < 2.7
    assert measure(sine(3.0, 3.0, rate_hz, 2048), rate_hz).velocity_mm_s < 0.2
    assert measure(sine(3.0, 10.0, rate_hz, 12_000), rate_hz).complete


def test_a_window_that_can_measure_no_velocity_says_so_and_measures_the_rest() -> None:
    got = measure(np.random.default_rng(0).normal(size=64), 48_000.0)
    low, high = got.velocity_band_hz
    assert (low, got.velocity_mm_s) == (high, 0.0)
    assert got.acceleration_rms_g == pytest.approx(1.0, rel=0.3)
    slow = measure(sine(1.0, 30.0, 1000.0, 2000), 1000.0)
    assert slow.velocity_band_hz == (10.0, pytest.approx(1000 / 2.56))
    assert slow.velocity_mm_s == pytest.approx(1.0, rel=0.01)


def test_kurtosis_and_crest_are_those_of_noise_and_of_a_sine() -> None:
    noise = measure(np.random.default_rng(1).normal(2.0, 0.5, 100_000), 12_000.0)
    assert noise.kurtosis == pytest.approx(3.0, abs=0.1)
    assert noise.acceleration_rms_g == pytest.approx(0.5, rel=0.01)
    pure = measure(sine(5.0, 100.0, 12_000.0, 12_000), 12_000.0)
    assert (pure.kurtosis, pure.crest) == (pytest.approx(1.5, abs=0.01), pytest.approx(math.sqrt(2), rel=0.01))


def test_silence_is_measured_as_silence() -> None:
    got = measure(np.full(24_000, 0.3), 12_000.0, 30.0, BEARING)
    assert (got.velocity_mm_s, got.kurtosis) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-6))
    assert all(height < LIMIT for height in got.defects.values())


@pytest.mark.parametrize(
    ("signal", "rate_hz", "said"),
    [
        (np.zeros(63), 1000.0, "expected at least 64 samples"),
        (np.zeros((0, 2)), 1000.0, "expected at least 64 samples"),
        (np.full(100, np.nan), 1000.0, "expected finite accelerations"),
        (np.zeros(100), 0.0, "expected a sampling rate above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(signal: np.ndarray, rate_hz: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        measure(signal, rate_hz)


@pytest.mark.parametrize(("label", "severity"), [("outer_race", 8.0), ("inner_race", 8.0), ("ball", 16.0)])
def test_a_simulated_defect_is_found_where_it_is(label: str, severity: float) -> None:
    for seed in range(3):
        got = measure(simulated(label, severity, seed=seed), 12_000.0, 29.2, BEARING)
        where = label.replace("_", " ")
        assert suspected(got, Machine(name="m")) == (where, got.defects[where])
        assert suspected(got, Machine(name="m", defect_limit=1000.0)) is None


def test_a_healthy_bearing_has_no_line() -> None:
    for seed in range(20):
        for bearing in (BEARING, BEARINGS["6308"]):
            heights = measure(simulated("normal", 0.0, seed=seed), 12_000.0, 29.2, bearing).defects
            assert max(heights.values()) < 2.8


@pytest.mark.parametrize(
    ("heights", "where"),
    [
        ({OUTER: 3.4, INNER: 2.0}, None),
        ({OUTER: 3.6, INNER: 9.0}, INNER),
        ({BALL: 5.0, CAGE: 8.0}, BALL),
        ({BALL: 3.0, CAGE: 8.0}, CAGE),
        ({}, None),
    ],
)
def test_the_highest_line_says_where_but_for_the_cage_beside_a_ball(
    heights: dict[str, float], where: str | None
) -> None:
    condition = Condition(
        velocity_mm_s=1.0,
        velocity_band_hz=(10.0, 1000.0),
        acceleration_rms_g=1.0,
        kurtosis=3.0,
        crest=4.0,
        defects=heights,
    )
    got = suspected(condition, Machine(name="m"))
    assert got == (None if where is None else (where, heights[where]))


def test_an_inner_race_shows_sidebands_at_the_shafts_rate() -> None:
    healthy, faulty = (
        measure(simulated(label, 16.0), 12_000.0, 29.2, BEARING).sidebands[INNER] for label in ("normal", "inner_race")
    )
    assert healthy < 2.8
    assert faulty > 2 * healthy


@pytest.mark.parametrize("stated_hz", [28.3, 29.2, 30.1])
def test_a_speed_that_is_three_per_cent_off_is_found_in_the_vibration(stated_hz: float) -> None:
    signal = simulated("outer_race", 8.0, seconds=4.0)
    got = measure(signal, 12_000.0, stated_hz, BEARING)
    assert got.shaft_hz == pytest.approx(29.2, rel=0.005)
    assert got.defects[OUTER] > 2 * LIMIT


def test_a_measured_speed_is_taken_as_it_is() -> None:
    signal = simulated("outer_race", 8.0)
    assert measure(signal, 12_000.0, 28.3, BEARING, speed_measured=True).shaft_hz == 28.3


def test_the_shafts_own_multiples_are_no_defect() -> None:
    # Modulated by the shaft and its multiples, as by looseness: a 6308 has its outer race's rate at 3.07 times it.
    rng = np.random.default_rng(2)
    time = np.arange(48_000) / 12_000.0
    beat = 1 + sum(0.5 * np.cos(2 * math.pi * order * 25.0 * time) for order in range(1, 16))
    signal = rng.normal(size=48_000) * np.clip(beat, 0, None)
    for bearing in BEARINGS.values():
        assert max(measure(signal, 12_000.0, 25.0, bearing).defects.values()) < LIMIT


def test_a_stretch_too_short_for_the_lines_measures_none_of_them() -> None:
    assert measure(simulated("outer_race", 16.0, seconds=0.17), 12_000.0, 29.2, BEARING).defects == {}
    # At 29.2 Hz one second does not tell 3.07 turns from 3, and two do.
    assert OUTER not in measure(simulated("normal", 0.0, seconds=1.0), 12_000.0, 29.2, BEARINGS["6308"]).defects
    assert OUTER in measure(simulated("normal", 0.0, seconds=2.0), 12_000.0, 29.2, BEARINGS["6308"]).defects


def test_without_bearing_or_speed_or_above_what_the_rate_can_carry_there_are_no_lines() -> None:
    signal = simulated("outer_race", 16.0)
    assert measure(signal, 12_000.0).defects == measure(signal, 12_000.0, 29.2).defects == {}
    assert measure(signal, 12_000.0, None, BEARING).defects == {}
    assert measure(sine(1.0, 20.0, 900.0, 9000), 900.0, 29.2, BEARING).defects == {}


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-3, 1e3))
def test_heights_do_not_depend_on_how_loud_it_is(factor: float) -> None:
    quiet = measure(signal_of("outer_race"), 12_000.0, 29.2, BEARING)
    loud = measure(factor * signal_of("outer_race"), 12_000.0, 29.2, BEARING)
    assert loud.defects == pytest.approx(quiet.defects, rel=1e-6)
    assert loud.velocity_mm_s == pytest.approx(factor * quiet.velocity_mm_s, rel=1e-6)


@cache
def signal_of(label: str) -> Any:
    return simulated(label, 8.0)


def test_a_limit_belongs_to_the_better_zone() -> None:
    machine = Machine(name="m", iso_group=2)
    zones = [zone(velocity, machine) for velocity in (0.0, 1.4, 1.5, 2.8, 2.9, 4.5, 4.6, 100.0)]
    assert zones == ["A", "A", "B", "B", "C", "C", "D", "D"]
    assert zone(100.0, Machine(name="m")) is None


@pytest.mark.skipif(not CWRU.is_file(), reason=f"no recordings at {CWRU}")
def test_cwru_races_are_found_and_the_healthy_recording_is_silent() -> None:
    with np.load(CWRU, allow_pickle=False) as archive:
        for place in range(len(archive["recording"])):
            fault, mil = str(archive["fault"][place]), int(archive["diameter_mil"][place])
            signal = archive[f"x{place:02d}"].astype(np.float64) * archive["scale"][place]
            heights = [
                measure(signal[start : start + 24_000], 12_000.0, 1770 / 60, BEARING).defects
                for start in range(0, len(signal) - 23_999, 24_000)
            ]
            if fault == "N":
                assert max(max(each.values()) for each in heights) < 2.8
            elif fault == "IR" or (fault == "OR" and mil != 14):
                wanted = INNER if fault == "IR" else OUTER
                right = sum(max(each, key=each.__getitem__) == wanted and each[wanted] > LIMIT for each in heights)
                assert right == len(heights), archive["recording"][place]
            # Balls, and the outer race of 0.014 inch, are not told for certain: docs/alerts-day-one.md has the figures.
