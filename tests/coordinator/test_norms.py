"""How long an update may be follows from those before it, and from no single gateway."""

from __future__ import annotations

from statistics import median

from fedmq_coordinator.norms import KEPT, LATELY, LEAST_UPDATES, Norms
from hypothesis import given
from hypothesis import strategies as st

NAMES = [f"g{n}" for n in range(8)]


def history(norms: list[float], names: list[str] = NAMES) -> Norms:
    found = Norms(5)
    for n, norm in enumerate(norms):
        found = found.after(names[n % len(names)], norm, beyond=False)
    return found


def test_nothing_is_known_before_enough_gateways_have_sent_enough() -> None:
    assert history([1.0] * (LEAST_UPDATES - 1)).bound(10) is None
    assert history([1.0] * 60, NAMES[:2]).bound(10) is None
    assert history([1.0] * LEAST_UPDATES, NAMES[:3]).bound(10) == 10.0


def test_a_factor_of_zero_switches_it_off_and_so_does_a_fleet_that_sends_nothing() -> None:
    assert history([1.0] * 50).bound(0) is None
    assert history([0.0] * 50).bound(10) is None


@given(st.lists(st.floats(0.01, 100), min_size=LEAST_UPDATES, max_size=300), st.floats(1.5, 100))
def test_the_bound_is_the_factor_times_the_largest_median_so_far(norms: list[float], factor: float) -> None:
    medians = [median(norms[max(0, end - KEPT) : end]) for end in range(LEAST_UPDATES, len(norms) + 1)]
    assert history(norms).bound(factor) == factor * max(medians)


def test_a_board_that_joins_late_may_begin_as_everybody_did() -> None:
    """Updates become short as the model settles, a newcomer's first ones are long."""
    settled = history([10.0] * 40 + [0.01] * 500)
    bound = settled.bound(20)
    assert bound is not None
    assert bound >= 10.0


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.floats(0, 9), st.booleans()), max_size=150))
def test_what_is_written_is_what_is_read_and_of_one_lineage(judged: list[tuple[str, float, bool]]) -> None:
    found = Norms(5)
    for name, norm, beyond in judged:
        found = found.after(name, norm, beyond=beyond)
    assert Norms.read(found.write(), 5) == found
    assert Norms.read(found.write(), 6) == Norms(6)
    assert len(found.accepted) <= KEPT
    assert len(found.lately) <= LATELY


@given(st.integers(1, 3), st.integers(1, 200))
def test_a_minority_that_is_refused_for_ever_changes_nothing(liars: int, rounds: int) -> None:
    found = history([1.0] * 40)
    for n in range(rounds):
        for name in NAMES:
            found = found.after(name, 1e6 if name in NAMES[:liars] else 1.0, beyond=name in NAMES[:liars])
        assert found.bound(10) == 10.0, f"after {n + 1} rounds"


def test_a_fleet_whose_machines_have_changed_is_not_locked_out() -> None:
    found = history([1.0] * 100)
    refused = 0
    while (bound := found.bound(10)) is not None:
        assert refused < LATELY
        refused += 1
        found = found.after(NAMES[refused % len(NAMES)], 50.0, beyond=bound < 50.0)
    for n in range(LEAST_UPDATES):
        found = found.after(NAMES[n % len(NAMES)], 50.0, beyond=False)
    assert found.bound(10) == 500.0


def test_one_gateway_that_is_refused_a_thousand_times_changes_nothing() -> None:
    found = history([1.0] * 100)
    for _ in range(1_000):
        found = found.after("g0", 1e6, beyond=True)
    assert found.bound(10) == 10.0
