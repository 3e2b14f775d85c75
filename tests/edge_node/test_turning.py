"""How fast a machine turns against how it turned: by its lines alone, on structures that stay as they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedmq_edge_node.turning import FARTHEST, Turning, lines, shift
from numpy.typing import NDArray

from fedmq.simulator import simulate_vibration

RATE_HZ = 12_000.0


def shaking(n: int, speed: float = 1.0, label: str = "normal", severity: float = 16.0) -> NDArray[np.float64]:
    """Another speed moves the orders; what the structure rings at stays."""
    signal = simulate_vibration(
        label=label,
        severity=severity,
        shaft_hz=30.0 * speed,
        load=1.0,
        resonance_hz=3200.0,
        seconds=2.0,
        rng=np.random.default_rng((n, 5)),
    )
    return np.asarray(signal, dtype=np.float64)[:, None]


def noise(n: int, seconds: float = 2.0) -> NDArray[np.float64]:
    return np.random.default_rng(n).normal(size=(round(seconds * RATE_HZ), 1))


def swept(first: float, last: float) -> NDArray[np.float64]:
    """Two seconds of a shaft's orders while it goes from one speed to another, with noise."""
    time = np.arange(round(2 * RATE_HZ)) / RATE_HZ
    turns = 30.0 * (first * time + (last - first) * time**2 / 4)
    orders = sum(np.cos(2 * np.pi * order * turns + order) / order for order in range(1, 30))
    return np.asarray(orders + 0.1 * noise(0)[:, 0], dtype=np.float64)[:, None]


@pytest.mark.parametrize("speed", [0.6, 0.8, 0.97, 1.0, 1.15, 1.6])
def test_the_ratio_of_two_speeds_is_told_while_resonances_stand_still(speed: float) -> None:
    moved = shift(lines(shaking(1, speed), RATE_HZ), lines(shaking(2), RATE_HZ))
    assert moved is not None
    assert math.exp(moved.by) == pytest.approx(speed, rel=0.01)


@pytest.mark.parametrize("label", ["inner_race", "outer_race", "ball"])
@pytest.mark.parametrize("severity", [4.0, 16.0, 64.0])
def test_a_fault_is_no_other_speed(label: str, severity: float) -> None:
    moved = shift(lines(shaking(1, 1.0, label, severity), RATE_HZ), lines(shaking(2), RATE_HZ))
    assert moved is None or abs(moved.by) < 0.01


def test_noise_and_a_speed_too_far_away_say_nothing() -> None:
    known = lines(shaking(2), RATE_HZ)
    assert shift(lines(noise(3), RATE_HZ), known) is None
    assert shift(lines(noise(3), RATE_HZ), lines(noise(4), RATE_HZ)) is None
    assert shift(lines(shaking(1, math.exp(FARTHEST) + 0.5), RATE_HZ), known) is None


def test_a_window_too_short_or_too_slow_for_lines_is_no_mistake() -> None:
    turning = Turning()
    for signal, rate_hz in ((np.zeros((40, 1)), RATE_HZ), (noise(1), 20.0), (np.zeros((4000, 2)), RATE_HZ)):
        turn = turning.step(signal, rate_hz)
        assert not turn.moving
        assert turning.band() == "all"


def test_a_speed_that_changes_within_a_window_is_told() -> None:
    turning = Turning()
    assert not turning.step(swept(1.0, 1.0), RATE_HZ).moving
    assert not turning.step(swept(1.0, 1.0), RATE_HZ).moving
    assert turning.step(swept(1.0, 0.98), RATE_HZ).moving
    assert turning.step(swept(0.9, 1.0), RATE_HZ).moving


def test_bands_are_about_the_speed_that_was_learnt_first_and_do_not_flicker_at_their_edges() -> None:
    turning = Turning()
    for _ in range(3):
        turning.learn(turning.step(swept(0.9, 0.9), RATE_HZ))
        assert turning.band() == "all"
    told = []
    for speed in (0.93, 0.94, 0.95, 0.94, 0.99, 0.95, 0.94, 0.9):
        turning.step(swept(speed, speed), RATE_HZ)
        told.append(turning.band())
    #               4 %    4 %    5 %    4 %    10 %          6 % on the way back    4 %            0 %
    assert told == ["all", "all", "all", "all", "1.10 x speed", "1.10 x speed", "1.10 x speed", "all"]


def test_a_measured_speed_wins_and_a_confirmed_one_goes_with_the_ratio() -> None:
    turning = Turning()
    turning.learn(turning.step(swept(1.0, 1.0), RATE_HZ), 29.9)
    turning.step(swept(0.8, 0.8), RATE_HZ)
    assert turning.shaft_hz() == pytest.approx(0.8 * 29.9, rel=0.003)
    turning.step(noise(5), RATE_HZ)
    assert turning.shaft_hz() is None
    measured = Turning()
    measured.learn(measured.step(swept(1.0, 1.0), RATE_HZ, 30.0))
    measured.step(noise(5), RATE_HZ, 24.0)
    assert measured.band() == "0.83 x speed"


def test_a_restart_changes_nothing() -> None:
    windows = [swept(speed, speed) for speed in (1.0, 1.0, 0.8, 0.8, 1.15)]
    whole, first = Turning(), Turning()
    for n, window in enumerate(windows):
        if n == 3:
            first = Turning(first.dump())
        for turning in (whole, first):
            turn = turning.step(window, RATE_HZ)
            turning.band()
            if n < 2:
                turning.learn(turn, 30.0)
    assert first.dump() == whole.dump()
