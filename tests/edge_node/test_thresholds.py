"""Quantile summaries: how far they are off, that merging is like having seen all, and their bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedmq_edge_node.thresholds import (
    ACCURACY,
    MAX_BINS,
    MAX_BYTES,
    Rule,
    Summary,
    SummaryError,
    limit,
    merged,
    robust_bound,
)
from hypothesis import given, settings
from hypothesis import strategies as st

VALUES = st.lists(st.floats(min_value=0, max_value=1e9), min_size=1, max_size=200)
SHARES = st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0))


@given(VALUES, SHARES)
def test_a_quantile_is_off_by_one_per_cent_at_most(values: list[float], share: float) -> None:
    true = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    found = Summary().seen(*values).quantile(share)
    assert abs(found - true) <= ACCURACY * true * (1 + 1e-9) + 1e-12


@given(VALUES, VALUES, VALUES)
def test_merging_is_the_same_as_having_seen_all_in_any_order(a: list[float], b: list[float], c: list[float]) -> None:
    one, two, three = (Summary().seen(*part) for part in (a, b, c))
    whole = Summary().seen(*c, *a, *b)
    assert one.merge(two).merge(three) == whole
    assert one.merge(two.merge(three)) == whole
    assert merged([three, one, two]) == whole
    assert whole.count == len(a) + len(b) + len(c)


@given(st.lists(st.floats(min_value=1e-12, max_value=1e12), max_size=50), st.integers(0, 1000))
def test_bytes_come_back_and_have_a_bound(values: list[float], zeros: int) -> None:
    summary = Summary(zeros=zeros).seen(*values)
    data = summary.to_bytes()
    assert len(data) <= MAX_BYTES
    assert Summary.from_bytes(data) == summary


def test_the_widest_range_keeps_its_bound_and_its_high_quantiles() -> None:
    values = np.logspace(-11.9, 11.9, 20_000)
    summary = Summary()
    for part in np.split(values, 20):
        summary = summary.seen(*part)
    assert len(summary.bins) == MAX_BINS
    assert summary.count == len(values)
    assert len(summary.to_bytes()) <= MAX_BYTES
    for share in (0.8, 0.99, 1.0):
        true = values[math.ceil(share * len(values)) - 1]
        assert abs(summary.quantile(share) - true) <= ACCURACY * true * (1 + 1e-9)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_other_bytes_are_a_summary_or_told(data: bytes) -> None:
    try:
        summary = Summary.from_bytes(data)
    except SummaryError:
        return
    assert Summary.from_bytes(summary.to_bytes()) == summary


@given(VALUES, st.data())
def test_a_summary_cut_short_or_made_longer_is_refused(values: list[float], data: st.DataObject) -> None:
    whole = Summary().seen(*values).to_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(SummaryError):
        Summary.from_bytes(whole[:cut])
    with pytest.raises(SummaryError):
        Summary.from_bytes(whole + b"\0")


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(SummaryError, match="version 1, got 2"):
        Summary.from_bytes(b"\2\0\0")


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_what_is_no_measure_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite value"):
        Summary().seen(value)


def test_a_limit_is_above_what_was_normal_and_below_a_fault() -> None:
    rng = np.random.default_rng(0)
    normal = Summary().seen(*rng.lognormal(0, 0.2, 2000))
    found = limit(normal, Rule())
    assert normal.share_above(found) == 0
    assert 1.5 <= found < 4
    assert limit(Summary().seen(*[1.0] * 100), Rule(least_factor=1.5)) == pytest.approx(1.5, rel=0.02)


def test_the_robust_bound_withstands_a_fifth_of_faulty_windows() -> None:
    rng = np.random.default_rng(0)
    clean = rng.lognormal(0, 0.2, 80)
    bound = robust_bound(Summary().seen(*clean, *[10.0] * 20), Rule())
    assert bound < 10
