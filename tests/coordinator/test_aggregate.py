"""The sum is the same in any order, to the bit; the server's step loses nothing, whatever gateways send."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from statistics import median_low

import numpy as np
import pytest
from fedmq_compression.pipeline import CodecSpec, Decoded, decode, encode
from fedmq_coordinator.aggregate import (
    FIXED_POINT_BITS,
    MAX_WEIGHT,
    RULES,
    AggregationRule,
    RuleMaker,
    ServerState,
    WeightedMean,
    most_windows,
    rule_named,
    server_step,
    staleness,
    weigh,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

STEP = 2.0**-FIXED_POINT_BITS
GRID = 2.0**-12
LARGEST = (64 << FIXED_POINT_BITS) - 1


def update(
    steps: list[int] | NDArray[np.int64], indices: list[int] | None = None, length: int | None = None
) -> Decoded:
    values = np.array(steps, dtype=np.int64)
    places = None if indices is None else np.array(indices, dtype=np.int64)
    return Decoded(length=len(values) if length is None else length, indices=places, steps=values, step=STEP)


def coded(rng: np.random.Generator, length: int, spec: CodecSpec) -> Decoded:
    values = (rng.standard_cauchy(length) * 0.1).clip(-60, 60).astype(np.float32)
    return decode(encode(values, spec).payload, length, spec)


# --- the mean --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 400),
    count=st.integers(1, 12),
    bits=st.sampled_from([1, 4, 8, 32]),
    density=st.sampled_from([0.01, 0.1, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_the_mean_does_not_depend_on_the_order_and_is_the_weighted_mean(
    length: int, count: int, bits: int, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    spec = CodecSpec(bits=bits, density=density, step=STEP)
    answers = [(coded(rng, length, spec), int(rng.integers(1, MAX_WEIGHT + 1))) for _ in range(count)]
    means = []
    for order in range(3):
        mean = WeightedMean(length)
        for decoded, weight in random.Random(order).sample(answers, count):
            mean.add(decoded, weight)
        assert mean.updates == count
        assert mean.weight == sum(weight for _, weight in answers)
        means.append(mean.mean())
    assert means[0].dtype == np.float64
    assert means[0].tobytes() == means[1].tobytes() == means[2].tobytes()
    plain = np.average([a.dense().astype(np.float64) for a, _ in answers], axis=0, weights=[w for _, w in answers])
    assert np.abs(means[0] - plain).max() <= 2.0**-24


def test_the_mean_of_one_is_that_one_exactly() -> None:
    steps = [LARGEST, -LARGEST, 0, 1, -1]
    for weight in (1, 3, MAX_WEIGHT):
        mean = WeightedMean(5)
        mean.add(update(steps), weight)
        assert mean.mean().tolist() == [step * STEP for step in steps]


def test_the_sum_holds_as_much_as_the_bounds_let_in() -> None:
    # The largest value at the largest weight, for as many gateways as the total weight allows: no overflow.
    mean = WeightedMean(2)
    mean.add(update([LARGEST, -LARGEST]), MAX_WEIGHT)
    gateways = (1 << 32) // MAX_WEIGHT
    for _ in range(20):
        mean._sum += mean._sum
        mean.weight *= 2
    assert mean.weight == gateways * MAX_WEIGHT
    assert mean.mean().tolist() == [LARGEST * STEP, -LARGEST * STEP]
    with pytest.raises(ValueError, match="on top of"):
        mean.add(update([1, 1]), 1)


def test_no_payload_decodes_to_more_than_the_sum_can_hold() -> None:
    for bits in (1, 4, 8, 32):
        spec = CodecSpec(bits=bits, density=1.0, step=STEP)
        decoded = encode(np.full(8, np.nextafter(np.float32(64), np.float32(0)), dtype=np.float32), spec).sent
        assert 0 < np.abs(decoded.steps).max() <= LARGEST


@pytest.mark.parametrize("weight", [0, -1, MAX_WEIGHT + 1])
def test_a_weight_out_of_range_is_refused_and_changes_nothing(weight: int) -> None:
    mean = WeightedMean(2)
    mean.add(update([3, 4]), 2)
    with pytest.raises(ValueError, match="a weight is 1 to 4096"):
        mean.add(update([1, 1]), weight)
    assert (mean.weight, mean.updates, mean.mean().tolist()) == (2, 1, [3 * STEP, 4 * STEP])


def test_an_update_of_another_length_or_step_is_refused_and_changes_nothing() -> None:
    mean = WeightedMean(2)
    mean.add(update([3, 4]), 2)
    coarse = Decoded(length=2, indices=None, steps=np.array([1, 1]), step=GRID)
    for wrong in (update([1, 2, 3]), update([1], indices=[0], length=3), coarse):
        with pytest.raises(ValueError, match=r"expected 2 values in steps of 2\^-24"):
            mean.add(wrong, 1)
    assert (mean.weight, mean.updates, mean.mean().tolist()) == (2, 1, [3 * STEP, 4 * STEP])


def test_of_nothing_there_is_no_mean() -> None:
    with pytest.raises(ValueError, match="no mean"):
        WeightedMean(3).mean()


def test_what_a_sparse_update_leaves_out_counts_as_zero() -> None:
    mean = WeightedMean(4)
    mean.add(update([8], indices=[2], length=4), 1)
    mean.add(update([], indices=[], length=4), 3)
    assert mean.mean().tolist() == [0, 0, 2 * STEP, 0]


# --- weights ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=40))
def test_a_weight_is_at_most_four_medians_and_at_most_the_largest(windows: list[int]) -> None:
    told = [count for count in windows if count]
    cap = max(1.0, 4 * median_low(told)) if told else 1.0
    scale = min(1.0, MAX_WEIGHT / cap)
    made = weights(windows)
    assert len(made) == len(windows)
    for count, weight in zip(windows, made, strict=True):
        assert 1 <= weight <= MAX_WEIGHT
        assert abs(weight - max(1.0, min(count, cap) * scale)) <= 0.5 + 1e-9
    # Whoever has more never weighs less.
    assert [w for _, w in sorted(zip(windows, made, strict=True))] == sorted(made)


def test_one_huge_archive_does_not_speak_for_the_fleet() -> None:
    assert weights([100, 100, 100, 1_000_000]) == [100, 100, 100, 400]
    assert weights([10, 20, 30]) == [10, 20, 30]
    assert weights([50_000, 50_000, 50_000]) == [1_024, 1_024, 1_024]
    assert weights([1_024, 1_024, 9_999]) == [1_024, 1_024, 4_096]
    assert weights([0, 0, 5]) == [1, 1, 5]  # who has no windows sends no update
    assert weights([100, 1 << 40]) == [100, 400]  # of two, neither makes itself the median
    assert weights([]) == []


def test_an_update_that_waited_weighs_less_but_never_nothing() -> None:
    assert staleness(400, 0, 0.5) == 400
    assert staleness(400, 3, 0.5) == 200
    assert staleness(400, 3, 1.0) == 100
    assert staleness(400, 10**9, 1.0) == 1
    assert staleness(400, 7, 0.0) == 400
    waited = [staleness(MAX_WEIGHT, rounds, 0.5) for rounds in range(100)]
    assert waited == sorted(waited, reverse=True)


# --- the server's step -----------------------------------------------------------------------------------------------


def vector(rng: np.random.Generator, length: int, size: float) -> NDArray[np.float64]:
    return np.asarray(rng.normal(size=length) * size, dtype=np.float64)


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 500),
    bits=st.sampled_from([1, 4, 8, 32]),
    density=st.sampled_from([0.01, 0.1, 1.0]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    rate=st.sampled_from([0.1, 1.0, 1.5]),
    size=st.sampled_from([1e-6, 1e-3, 0.1, 5.0, 300.0]),
    seed=st.integers(0, 2**32),
)
def test_what_is_broadcast_plus_the_new_residual_is_what_was_wanted(
    length: int, bits: int, density: float, momentum: float, rate: float, size: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codec = CodecSpec(bits=bits, density=density, step=GRID)
    mean = vector(rng, length, size)
    state = ServerState(momentum=vector(rng, length, size), residual=vector(rng, length, size))
    before = (state.momentum.copy(), state.residual.copy(), mean.copy())
    step = server_step(mean, state, codec, momentum=momentum, learning_rate=rate)
    wanted = rate * (momentum * state.momentum + mean) + state.residual
    assert step.steps.dtype == np.int32
    assert step.state.residual.dtype == np.float64
    left = step.steps * GRID + step.state.residual - wanted
    assert np.abs(left).max() <= 2.0**-50 * max(1.0, float(np.abs(wanted).max()))
    assert np.array_equal(step.state.momentum, momentum * state.momentum + mean)
    # What gateways decode is what the coordinator adds to its own model.
    assert np.array_equal(decode(step.delta, length, codec).whole_steps(), step.steps)
    for kept, now in zip(before, (state.momentum, state.residual, mean), strict=True):
        assert np.array_equal(kept, now)


def test_over_many_rounds_nothing_is_lost_on_the_way_down() -> None:
    rng = np.random.default_rng(5)
    length = 2_000
    codec = CodecSpec(bits=1, density=0.01, step=GRID)
    state = ServerState.start(length)
    model = np.zeros(length, dtype=np.int32)
    learnt = np.zeros(length)
    for _ in range(60):
        mean = vector(rng, length, 0.01)
        learnt += mean
        step = server_step(mean, state, codec, momentum=0.0, learning_rate=1.0)
        model = model + step.steps
        state = step.state
    assert model.any()
    assert np.abs(model * GRID + state.residual - learnt).max() < 1e-12


def test_momentum_is_that_of_fedavgm() -> None:
    codec = CodecSpec(bits=32, density=1.0, step=GRID)
    state = ServerState.start(1)
    moved = []
    for _ in range(4):
        step = server_step(np.array([0.5]), state, codec, momentum=0.5, learning_rate=1.0)
        moved.append(float(step.steps[0]) * GRID)
        state = step.state
    assert moved == [0.5, 0.75, 0.875, 0.9375]
    assert state.momentum.tolist() == [0.9375]
    assert state.residual.tolist() == [0.0]


def test_a_step_larger_than_the_codec_can_say_is_sent_over_several_rounds() -> None:
    # One gateway may send values just below 64 in every round; with momentum they add up to 640.
    codec = CodecSpec(bits=32, density=1.0, step=GRID)
    state = ServerState(momentum=np.array([600.0, -600.0, 0.0]), residual=np.zeros(3))
    model = np.zeros(3, dtype=np.int64)
    for _ in range(20):
        step = server_step(np.zeros(3), state, codec, momentum=0.5, learning_rate=1.0)
        model += step.steps
        state = step.state
    assert np.abs(model * GRID - [600.0, -600.0, 0.0]).max() < 0.01


def test_nothing_learnt_is_broadcast_as_nothing() -> None:
    codec = CodecSpec(bits=1, density=0.01, step=GRID)
    step = server_step(np.zeros(1_000), ServerState.start(1_000), codec, momentum=0.9, learning_rate=1.0)
    assert len(step.delta) <= 3
    assert not step.steps.any()


# --- rules ----------------------------------------------------------------------------------------------------------


def test_the_mean_is_a_rule_like_any_other() -> None:
    maker: RuleMaker = rule_named("mean")
    rule: AggregationRule = maker(3)
    rule.add(update([1 << FIXED_POINT_BITS, 0, -(1 << FIXED_POINT_BITS)]), 5)
    assert (rule.mean().tolist(), rule.weight, rule.updates) == ([1.0, 0.0, -1.0], 5, 1)


def test_the_project_registers_the_mean_as_others_register_theirs() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"][RULES]["mean"].partition(":")
    assert (module, name) == (WeightedMean.__module__, WeightedMean.__name__)


def test_a_rule_that_nobody_brings_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"expected one of .*mean.*, got 'median'"):
        rule_named("median")


@given(fleet=st.lists(st.integers(0, 10**6), min_size=1, max_size=50), newcomer=st.integers(0, 10**7))
def test_one_that_comes_later_weighs_as_it_would_have_but_for_the_median(fleet: list[int], newcomer: int) -> None:
    most = most_windows(fleet)
    assert [weigh(count, most) for count in fleet] == weights(fleet)
    assert 1 <= weigh(newcomer, most) <= MAX_WEIGHT
    assert weigh(newcomer, most) <= weigh(10**9, most)
