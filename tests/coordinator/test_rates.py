"""One gateway is read, and served, up to a rate and a burst, whatever it does."""

from __future__ import annotations

import itertools

from fedmq_coordinator.rates import JUNK_COST, SAY_AGAIN_SECONDS, Rates
from hypothesis import given
from hypothesis import strategies as st

START = 1_700_000_000.0


def rates(**changes: float) -> Rates:
    values = {
        "messages_per_second": 10.0,
        "messages_burst": 50,
        "births_per_minute": 6.0,
        "served_bytes_per_minute": 6_000.0,
    }
    return Rates(**(values | changes))  # type: ignore[arg-type]


GAPS = st.lists(st.floats(0, 3) | st.just(0.0), min_size=1, max_size=300)


@given(GAPS)
def test_over_any_time_no_more_is_read_than_the_burst_and_the_rate_allow(gaps: list[float]) -> None:
    one = rates()
    times = list(itertools.accumulate(gaps, initial=START))
    read = [one.reads("g", at) for at in times]
    for first in range(0, len(times), 7):
        allowed = 50 + 10.0 * (times[-1] - times[first])
        assert sum(read[first:]) <= allowed + 1e-3
    # And what is within it is read.
    assert all(read[:50])


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 20_000)), min_size=1, max_size=100))
def test_bytes_served_over_any_time_are_bounded_but_for_the_last_thing(served: list[tuple[float, int]]) -> None:
    one = rates()
    now, total, largest = START, 0, 0
    for gap, size in served:
        now += gap
        if one.serves("g", now):
            one.charge("g", size, now)
            total, largest = total + size, max(largest, size)
    assert total <= 6_000 + 100.0 * (now - START) + largest + 1e-3


def test_what_there_is_to_fetch_can_be_fetched_at_once() -> None:
    one = rates()
    one.serve_at_once = 4 * 1_000_000
    for _ in range(4):
        assert one.serves("newcomer", START)
        one.charge("newcomer", 999_999, START)
    assert one.serves("newcomer", START)
    one.charge("newcomer", 999_999, START)
    assert not one.serves("newcomer", START)
    assert one.serves("another", START)


def test_births_and_questions_have_buckets_of_their_own() -> None:
    one = rates()
    assert [one.welcomes("g", START) for _ in range(7)] == [True] * 6 + [False]
    assert [one.hears_question("g", START) for _ in range(7)] == [True] * 6 + [False]
    assert one.reads("g", START)
    assert one.welcomes("g", START + 10)
    assert not one.welcomes("g", START + 10)


def test_one_gateway_takes_nothing_from_another() -> None:
    one = rates()
    while one.reads("loud", START):
        pass
    assert [one.reads("quiet", START) for _ in range(50)] == [True] * 50


def test_junk_counts_as_several() -> None:
    one = rates()
    read = 0
    while one.reads("g", START):
        one.blame("g", START)
        read += 1
    assert read == 50 / JUNK_COST


@given(st.lists(st.floats(-100, 1), min_size=60, max_size=100))
def test_a_clock_that_is_set_back_neither_fills_nor_empties(steps: list[float]) -> None:
    one = rates()
    now = START
    read = 0
    for step in steps:
        now += step
        read += one.reads("g", now)
    forward = sum(max(0.0, step) for step in steps)
    assert min(50, len(steps)) <= read <= 50 + 10 * forward + 1e-3


def test_memory_is_bounded_however_many_names_come() -> None:
    one = rates(most_names=100)
    for n in range(1_000):
        one.reads(f"g{n}", START)
        one.charge(f"g{n}", 10, START)
    assert len(one) == 100


def test_what_is_dropped_is_counted_and_said_once_a_minute() -> None:
    one = rates()
    said = [one.refuse("g", "ask", 100, START + second / 10) for second in range(int(SAY_AGAIN_SECONDS * 10))]
    assert [n for n in said if n is not None] == [1]
    assert one.refuse("h", "status", 7, START) == 1
    assert one.refuse("g", "ask", 100, START + SAY_AGAIN_SECONDS) == int(SAY_AGAIN_SECONDS * 10)
    taken = one.take_refused()
    assert (taken["ask"].messages, taken["ask"].bytes) == (
        SAY_AGAIN_SECONDS * 10 + 1,
        (SAY_AGAIN_SECONDS * 10 + 1) * 100,
    )
    assert (taken["status"].messages, taken["status"].bytes) == (1, 7)
    assert one.take_refused() == {}
