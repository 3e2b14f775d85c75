"""Where values lie among the tenths of what is normal, and when that is another distribution."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from fedmq_protocol.condition import SpreadOf
from fedmq_protocol.sketch import Summary
from fedmq_protocol.spread import (
    PARTS,
    as_many_as,
    by_chance,
    counts_of,
    mean,
    per_mille,
    shares_of,
    stability,
    typical,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

VALUES = st.lists(st.floats(min_value=0, max_value=1e9), min_size=1, max_size=200)


def summed(values: NDArray[np.float64]) -> Summary:
    return Summary().seen(*values.tolist())


def index(then: Summary, now: Summary) -> float:
    return stability(shares_of(counts_of(then, now)), 0.5 / now.count)


@given(VALUES, VALUES)
def test_every_value_is_counted_once(then: list[float], now: list[float]) -> None:
    counts = counts_of(Summary().seen(*then), Summary().seen(*now))
    assert len(counts) == PARTS
    assert min(counts) >= 0
    assert sum(counts) == len(now)


@given(VALUES)
def test_the_same_values_again_are_even_however_many_of_them_are_alike(values: list[float]) -> None:
    """As where a sensor tells but three different values."""
    repeated = Summary().seen(*values * 10)
    assert all(abs(count - len(values)) <= 1 for count in counts_of(repeated, repeated))


def test_values_beyond_all_that_was_normal_lie_in_the_outermost_tenths() -> None:
    then = summed(np.linspace(1, 2, 1000))
    assert counts_of(then, summed(np.full(50, 9.0))) == (0,) * 9 + (50,)
    assert counts_of(then, summed(np.full(50, 0.1))) == (50,) + (0,) * 9
    assert counts_of(then, summed(np.zeros(50))) == (50,) + (0,) * 9
    gap = Summary().seen(*[1.0] * 50, *[3.0] * 50)
    assert counts_of(gap, Summary().seen(*[2.0] * 60)) == (0, 0, 0, 0, 30, 30, 0, 0, 0, 0)


def test_without_values_nothing_can_be_compared() -> None:
    one = Summary().seen(1.0)
    for then, now in ((one, Summary()), (Summary(), one)):
        with pytest.raises(ValueError, match="expected values to compare"):
            counts_of(then, now)


@given(seed=st.integers(0, 10_000), steps=st.sampled_from((0.0, 0.5, 5.0)))
def test_where_nothing_has_changed_the_index_is_what_chance_explains(seed: int, steps: float) -> None:
    """Also where values come in steps. Twice the bound is seven deviations: no seed comes near."""
    rng = np.random.default_rng(seed)
    then, now = (rng.lognormal(0, 0.3, n) for n in (800, 500))
    if steps:
        then, now = (np.ceil(one / steps) * steps for one in (then, now))
    assert index(summed(then), summed(now)) < 2 * by_chance(as_many_as(800, 500))


def test_the_bound_of_chance_is_passed_seldom() -> None:
    rng = np.random.default_rng(5)
    bound = by_chance(as_many_as(500, 300))
    found = [index(summed(rng.lognormal(0, 0.3, 500)), summed(rng.lognormal(0, 0.3, 300))) for _ in range(300)]
    assert sum(one > bound for one in found) <= 9
    assert bound < 4 * float(np.mean(found)), "or it would be no bound"


@given(seed=st.integers(0, 10_000), level=st.floats(-5, 5))
def test_another_distribution_is_told_whatever_the_machines_level(seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    then = summed(rng.lognormal(level, 0.3, 2000))
    moved = summed(rng.lognormal(level + 0.5, 0.3, 2000))
    assert index(then, moved) > 0.25
    # Not in its level alone: in how far it spreads, too.
    assert index(then, summed(rng.lognormal(level, 0.6, 2000))) > 0.25


def test_machines_at_other_levels_add_up_to_even_tenths_whichever_of_them_run() -> None:
    rng = np.random.default_rng(2)
    levels = (0.0, 1.0, 3.0)
    then = [summed(rng.lognormal(level, 0.1, 2000)) for level in levels]
    day = [summed(rng.lognormal(level, 0.1, 2000)) for level in levels[:2]]
    shares = mean([shares_of(counts_of(*pair)) for pair in zip(then[:2], day, strict=True)])
    assert stability(shares, 0.001) < 0.02
    # Of the values themselves it is another distribution as soon as one machine stands.
    pooled_then, pooled_day = then[0].merge(then[1]).merge(then[2]), day[0].merge(day[1])
    assert index(pooled_then, pooled_day) > 0.25


def test_one_day_of_three_moves_nothing() -> None:
    even, hot = (10,) * 10, (0,) * 9 + (100,)
    assert typical([even, hot, even]) == pytest.approx((0.1,) * 10)
    assert typical([hot, even, hot])[-1] == 1.0
    assert sum(typical([(5, 0, 0, 0, 0, 0, 0, 0, 0, 0), hot, (0, 3) + (0,) * 8])) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="expected a day at least"):
        typical([])


@pytest.mark.parametrize("shares", [(100,) * 9, (101,) * 10, (500, 500), (-1, *(111,) * 8, 113), (1001, *(0,) * 9)])
def test_shares_that_cannot_be_true_are_no_spread(shares: tuple[int, ...]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(["pump", "all", "velocity", 1, 1, shares], SpreadOf)


@given(st.lists(st.floats(0, 1), min_size=10, max_size=10).filter(lambda parts: sum(parts) > 0))
def test_shares_in_per_mille_are_a_thousand_in_all_and_near_the_truth(parts: list[float]) -> None:
    shares = [part / sum(parts) for part in parts]
    told = per_mille(shares)
    assert sum(told) == 1000
    assert all(abs(one / 1000 - share) < 0.0011 for one, share in zip(told, shares, strict=True))
