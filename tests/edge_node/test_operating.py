from __future__ import annotations

import json
import math

import numpy as np
import pytest
from fedmq_edge_node.operating import Operating, OperatingSettings, State, level_g, tacho_hz
from hypothesis import given, settings
from hypothesis import strategies as st

QUIET_G, RUNNING_G = 0.002, 0.1


def watched(levels: list[float], operating: Operating, seconds: float = 2.0, start: float = 0.0) -> list[State]:
    return [operating.step(start + seconds * number, level) for number, level in enumerate(levels)]


def noisy(level: float, windows: int, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(value) for value in level * np.exp(rng.normal(0, 0.05, windows))]


def learnt() -> Operating:
    """One that has stood and run for a while."""
    operating = Operating()
    watched(noisy(QUIET_G, 60) + noisy(RUNNING_G, 60) + noisy(QUIET_G, 60), operating)
    return operating


def test_a_machine_starts_runs_stops_and_stands() -> None:
    run_up = [float(level) for level in np.geomspace(QUIET_G, RUNNING_G, 15)]
    levels = noisy(QUIET_G, 30) + run_up + noisy(RUNNING_G, 60) + run_up[::-1] + noisy(QUIET_G, 30)
    states = watched(levels, Operating())
    seen = [state for number, state in enumerate(states) if not number or state is not states[number - 1]]
    # Nobody knows at first how long a machine that stands has stood.
    assert seen == [
        State.STOPPING,
        State.STOPPED,
        State.STARTING,
        State.RUNNING,
        State.STOPPING,
        State.STOPPED,
    ]


def test_no_window_of_a_run_up_or_coast_down_is_usable() -> None:
    operating = learnt()
    run_up = [float(level) for level in np.geomspace(QUIET_G, RUNNING_G, 25)]
    start = 1_000.0
    usable = []
    for number, level in enumerate(noisy(QUIET_G, 10) + run_up + noisy(RUNNING_G, 60) + run_up[::-1]):
        operating.step(start + 2 * number, level)
        usable.append(operating.usable)
    assert not any(usable[: 10 + 25])
    assert all(usable[10 + 25 + 15 : 10 + 25 + 60])
    # Of a coast-down the first windows are not to be told from running.
    assert not any(usable[10 + 25 + 60 + 3 :])


def test_a_slow_ramp_is_no_running_window_until_it_is_over() -> None:
    operating = learnt()
    watched(noisy(0.1, 60), operating, start=1_000.0)
    assert operating.usable
    # 10 % from window to window: each is like the one before, and together they are a change of speed.
    usable = []
    for number in range(12):
        operating.step(1_120.0 + 2 * number, 0.1 * 1.1**number)
        usable.append(operating.usable)
    assert not any(usable[5:])
    for number in range(15):
        operating.step(1_144.0 + 2 * number, 0.1 * 1.1**11)
    assert operating.usable


def test_a_fault_that_breaks_out_leaves_out_one_window() -> None:
    operating = learnt()
    watched(noisy(RUNNING_G, 60), operating, start=1_000.0)
    usable = []
    for number, level in enumerate(noisy(6 * RUNNING_G, 20, seed=1)):
        assert operating.step(1_120.0 + 2 * number, level) is State.RUNNING
        usable.append(operating.usable)
    assert usable == [False] + [True] * 19


def test_levels_are_learnt_only_once_it_has_stood_and_run() -> None:
    operating = Operating()
    watched(noisy(RUNNING_G, 100), operating)
    assert operating.levels() is None
    assert operating.limits() == (pytest.approx(0.01 / 1.5), 0.01)
    watched(noisy(QUIET_G, 100), operating, start=300.0)
    levels = operating.levels()
    assert levels is not None
    assert levels == (pytest.approx(QUIET_G, rel=0.15), pytest.approx(RUNNING_G, rel=0.15))
    lower, upper = operating.limits()
    assert 1.5 * QUIET_G < lower < upper < RUNNING_G / 5


def test_a_noisy_place_is_learnt_so_that_a_machine_that_stands_there_is_not_taken_to_run() -> None:
    operating = Operating()
    # The neighbours shake it with more than the limit that holds before anything is learnt.
    watched(noisy(0.015, 100) + noisy(0.4, 100), operating)
    states = watched(noisy(0.015, 30), operating, start=500.0)
    assert states[-1] is State.STOPPED
    assert states[0] is State.STOPPING


def test_a_machine_that_never_stops_and_gets_louder_runs_all_the_time() -> None:
    operating = Operating()
    watched(noisy(0.08, 300) + noisy(0.9, 300), operating)
    assert operating.levels() is None
    assert watched(noisy(0.08, 20), operating, start=2_000.0)[-1] is State.RUNNING


def test_limits_follow_quiet_and_not_a_growing_fault() -> None:
    operating = learnt()
    before = operating.limits()
    watched(noisy(40 * RUNNING_G, 500), operating, start=1_000.0)
    assert operating.limits() == pytest.approx(before, rel=0.15)


def test_set_limits_win_over_what_could_be_learnt() -> None:
    operating = Operating(OperatingSettings(running_from_g=0.3, stopped_below_g=0.2))
    watched(noisy(QUIET_G, 60) + noisy(0.1, 60), operating)
    assert operating.limits() == (0.2, 0.3)
    assert operating.state is State.STOPPED


def test_between_the_limits_it_does_what_it_did() -> None:
    operating = Operating(OperatingSettings(running_from_g=0.1, stopped_below_g=0.05, dwell_seconds=0))
    assert watched([0.07] * 5, operating)[-1] is State.STOPPED
    assert watched([0.2] * 5, operating, start=100.0)[-1] is State.RUNNING
    assert watched([0.07] * 5, operating, start=200.0)[-1] is State.RUNNING
    assert watched([0.04] * 5, operating, start=300.0)[-1] is State.STOPPED


def test_a_short_knock_does_not_start_a_machine_and_a_short_lull_does_not_stop_it() -> None:
    operating = learnt()
    states = watched([QUIET_G] * 5 + [RUNNING_G] * 2 + [QUIET_G] * 10, operating, start=1_000.0)
    assert State.RUNNING not in states
    states = watched(noisy(RUNNING_G, 30) + [QUIET_G] * 2 + noisy(RUNNING_G, 30), operating, start=2_000.0)
    assert State.STOPPED not in states[20:]
    assert states[-1] is State.RUNNING


def test_a_measured_speed_decides_whatever_the_level() -> None:
    operating = Operating(OperatingSettings(running_from_rpm=300))
    speeds = (
        [0.0] * 10 + [1.0, 3.0, 6.0, 10.0, 15.0, 20.0, 24.0] + [25.0] * 30 + [15.0, 8.0, 4.0, 2.0, 0.0] + [0.0] * 10
    )
    states = [operating.step(2.0 * number, 0.5, speed) for number, speed in enumerate(speeds)]
    assert states[9] is State.STOPPED
    assert states[12] is State.STARTING
    assert states[40] is State.RUNNING
    assert states[50] is State.STOPPING
    assert states[-1] is State.STOPPED


def test_a_change_of_measured_speed_is_a_transient_until_it_holds() -> None:
    operating = Operating()
    usable = []
    for number, speed in enumerate([25.0] * 20 + [25.0 + 0.5 * step for step in range(1, 11)] + [30.0] * 20):
        operating.step(2.0 * number, 0.1, speed)
        usable.append(operating.usable)
    assert all(usable[8:20])
    assert not any(usable[22:30])
    assert all(usable[-5:])


def test_bands_are_named_by_speed_and_load() -> None:
    operating = Operating(OperatingSettings(speed_bands_rpm=(1000.0, 1500.0), load_bands=(50.0,)))
    assert operating.band(10.0, 20.0) == "speed-1 load-1"
    assert operating.band(1000 / 60, 50.0) == "speed-2 load-2"
    assert operating.band(30.0) == "speed-3"
    assert operating.band() == "all"
    assert Operating().band(25.0, 3.0) == "all"


def test_one_that_is_restarted_from_its_memory_goes_on_as_if_nothing_had_happened() -> None:
    levels = noisy(QUIET_G, 40) + noisy(RUNNING_G, 40) + noisy(QUIET_G, 10) + noisy(RUNNING_G, 40)
    whole, parts = Operating(), Operating()
    for number, level in enumerate(levels):
        parts = Operating(memory=json.loads(json.dumps(parts.memory())))
        assert whole.step(2.0 * number, level) is parts.step(2.0 * number, level)
        assert (whole.usable, whole.limits()) == (parts.usable, pytest.approx(parts.limits()))


def test_of_a_simulated_signal_only_windows_at_one_speed_are_usable() -> None:
    # Unbalance pulls with the square of the speed, on a resonance at 18 Hz that the run-up passes.
    rate_hz, samples = 2_000.0, 2_000
    plan = [(0, 60), (25, 60), (25, 180), (15, 60), (15, 120), (0, 60), (0, 60)]  # speed in Hz, seconds to get there
    speed = np.concatenate([[0.0]])
    for target, seconds in plan:
        speed = np.concatenate([speed, np.linspace(speed[-1], target, int(seconds * rate_hz))])
    gain = speed**2 / np.hypot(1 - (speed / 18) ** 2, 0.2 * speed / 18) / 2_000
    rng = np.random.default_rng(3)
    phase = 2 * math.pi * np.cumsum(speed) / rate_hz
    signal = gain * np.cos(phase) + rng.normal(0, 0.002, len(speed)) + rng.normal(0, 0.02, len(speed)) * (speed / 25)
    operating = Operating(OperatingSettings(dwell_seconds=5.0))
    usable, changing = [], []
    for start in range(0, len(signal) - samples, samples):
        operating.step((start + samples) / rate_hz, level_g(signal[start : start + samples]))
        usable.append(operating.usable)
        within = speed[start : start + samples]
        changing.append(float(within.max()) < 1 or float(np.ptp(within)) > 0.05)
    wrong = [number for number, (good, bad) in enumerate(zip(usable, changing, strict=True)) if good and bad]
    # Nothing of standing still and of the run-up. The first seconds of a slow change are like the speed before it, and
    # for a moment a resonance's top is level: from vibration alone no more can be told.
    assert all(number >= 300 for number in wrong)
    assert len(wrong) <= 20
    assert sum(changing[300:]) == 180
    assert sum(usable[120:300]) > 140
    assert sum(usable[360:480]) > 80


@pytest.mark.parametrize("level", [-1.0, math.nan, math.inf])
def test_a_level_that_is_none_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level_g: expected a finite number of at least 0"):
        Operating().step(0.0, level)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 20)), min_size=1, max_size=60),
    st.floats(0, 30),
)
def test_whatever_comes_a_new_state_holds_for_its_dwell_and_only_running_is_usable(
    windows: list[tuple[float, float]], dwell_seconds: float
) -> None:
    operating = Operating(OperatingSettings(dwell_seconds=dwell_seconds))
    at = 0.0
    began: dict[bool, float] = {}
    on_before: bool | None = None
    for level, later in windows:
        at += later
        state = operating.step(at, level)
        on = state in (State.STARTING, State.RUNNING)
        if on is not on_before:
            began[on] = at
            on_before = on
        if state in (State.RUNNING, State.STOPPED):
            assert at - began[on] >= dwell_seconds
        assert not operating.usable or (state is State.RUNNING and operating.steady)


@given(st.floats(1, 100), st.floats(0, 0.04), st.integers(1, 60))
def test_a_tachos_pulses_are_counted(turns_hz: float, noise: float, pulses: int) -> None:
    rate_hz = max(2_000.0, 40 * turns_hz * pulses)
    time = np.arange(int(rate_hz * (6 / turns_hz))) / rate_hz
    signal = (time * turns_hz * pulses % 1 < 0.3) * 5.0 + np.random.default_rng(0).normal(0, noise * 5, len(time))
    assert tacho_hz(signal, rate_hz, pulses) == pytest.approx(turns_hz, rel=0.02)


def test_a_tacho_at_rest_is_zero_and_noise_or_a_single_pulse_is_unknown() -> None:
    assert tacho_hz(np.full(1000, 2.5), 1000.0) == 0.0
    single = np.zeros(1000)
    single[500:520] = 5.0
    assert tacho_hz(single, 1000.0) is None
    assert tacho_hz(np.random.default_rng(0).normal(size=10_000), 1000.0) is None


def test_the_level_is_that_of_the_loudest_channel_about_its_mean() -> None:
    signal = np.stack([np.ones(1000), 0.5 + np.tile([0.2, -0.2], 500)], axis=1)
    assert level_g(signal) == pytest.approx(0.2)
    assert level_g(signal[:, 1]) == pytest.approx(0.2)
