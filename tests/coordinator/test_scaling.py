from __future__ import annotations

import numpy as np
import pytest
from fedmq_coordinator.scaling import combine
from hypothesis import given, settings
from hypothesis import strategies as st

FEATURES = 4


def honest(gateways: int, seed: int = 0, count: int = 200) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Gateways whose windows differ a little in mean: spread 2 about 5, and sites shifted by up to 1."""
    rng = np.random.default_rng(seed)
    told = []
    for _ in range(gateways):
        x = 5 + rng.uniform(-1, 1) + 2 * rng.normal(size=(count, FEATURES))
        told.append((count, x.mean(axis=0), ((x - x.mean(axis=0)) ** 2).sum(axis=0)))
    return told


def test_equal_gateways_give_the_plain_mean_and_spread() -> None:
    mean, scale = combine([(100, np.full(2, 3.0), np.full(2, 400.0))] * 3)
    assert mean.tolist() == [3.0, 3.0]
    assert scale.tolist() == [2.0, 2.0]
    assert mean.dtype == scale.dtype == np.float32


def test_what_sets_gateways_apart_counts_as_spread() -> None:
    told = [(100, np.array([centre]), np.array([1.0])) for centre in (-3.0, 0.0, 0.0, 3.0, 3.0, -3.0)]
    assert combine(told)[1][0] > 2.0


@pytest.mark.parametrize("factor", [1000.0, 1e-3, -1.0])
def test_a_gateway_in_wrong_units_cannot_lead_outside_what_the_others_say(factor: float) -> None:
    told = honest(7)
    count, own_mean, own_m2 = told[0]
    mean, scale = combine([(count, own_mean * factor, own_m2 * factor**2), *told[1:]])
    # Within what the six honest ones say, each by itself.
    means = np.stack([honest_mean for _, honest_mean, _ in told[1:]])
    spreads = np.sqrt(np.stack([m2 / count for count, _, m2 in told[1:]]) + (means - mean) ** 2)
    assert (mean >= means.min(axis=0)).all()
    assert (mean <= means.max(axis=0)).all()
    assert (scale >= 0.999 * spreads.min(axis=0)).all()
    assert (scale <= 1.001 * spreads.max(axis=0)).all()


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(5)), seed=st.integers(0, 100))
def test_the_order_of_gateways_does_not_matter(order: list[int], seed: int) -> None:
    told = honest(5, seed, count=30)
    straight, shuffled = combine(told), combine([told[i] for i in order])
    assert straight[0].tobytes() == shuffled[0].tobytes()
    assert straight[1].tobytes() == shuffled[1].tobytes()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(20, 10_000), st.floats(-1e9, 1e9, width=64), st.floats(0, 1e9).map(lambda root: root * root)
        ),
        min_size=1,
        max_size=9,
    )
)
def test_whatever_is_accepted_gives_finite_means_and_scales_above_zero(told: list[tuple[int, float, float]]) -> None:
    mean, scale = combine([(count, np.array([mean]), np.array([m2])) for count, mean, m2 in told])
    assert np.isfinite(mean).all()
    assert np.isfinite(scale).all()
    assert (scale > 0).all()


def test_a_feature_without_spread_is_left_unscaled() -> None:
    assert combine([(100, np.array([7.0]), np.array([0.0]))] * 3)[1].tolist() == [1.0]


@pytest.mark.parametrize(
    ("count", "mean", "m2", "about"),
    [
        (19, [0.0, 0.0], [1.0, 1.0], "at least 20 windows, got 19"),
        (100, [np.nan, 0.0], [1.0, 1.0], "finite"),
        (100, [0.0, 0.0], [np.inf, 1.0], "finite"),
        (100, [0.0, 0.0], [-1e-9, 1.0], "at least 0"),
        (100, [0.0], [1.0], "expected 2 means"),
        (100, [1e300, 0.0], [1.0, 1.0], "at most"),
    ],
)
def test_statistics_that_cannot_be_are_refused(count: int, mean: list[float], m2: list[float], about: str) -> None:
    good = (100, np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match=about):
        combine([good, (count, np.array(mean), np.array(m2))])


def test_no_gateways_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one gateway"):
        combine([])
