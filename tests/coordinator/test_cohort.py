"""Everyone's turn comes, nobody's comes twice, and a gateway finds the same answer in the plan as the coordinator."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest
from fedmq_coordinator.cohort import BITMAP_FLEET, Cohort, Turn, draw, following
from fedmq_protocol.messages import RoundKind, RoundPlan, Slot
from hypothesis import given, settings
from hypothesis import strategies as st


def fleet(size: int) -> dict[str, int]:
    return {f"gateway-{place}": place for place in range(size)}


def turn_of(number: int, fraction: float, rate: float = 1.0) -> Turn:
    """The so-manieth turn of a fleet whose answer rate never changed."""
    slots = following(None, fraction=fraction, answer_rate=rate).slots
    cycle, slot = divmod(number, slots)
    return Turn(cycle=cycle, slots=slots, slot=slot)


def drawn(present: dict[str, int], turn: int, *, fraction: float, rate: float = 1.0, seed: int = 7) -> Cohort:
    roster_size = max(present.values(), default=-1) + 1
    return draw(present, roster_size, fraction=fraction, seed=seed, turn=turn_of(turn, fraction, rate))


def draws(cohort: Cohort, place: int, name: str) -> bool:
    """As a gateway finds it in the plan."""
    plan = RoundPlan(
        round_id=1,
        lineage=1,
        kind=RoundKind.TRAINING,
        base=0,
        model=0,
        closes_after=60,
        drawn=cohort.drawn,
        accepted=0,
        since=1,
        level=0,
    )
    return plan.draws(place, name)


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 200),
    slots=st.integers(1, 20),
    cycle=st.integers(0, 1000),
    seed=st.integers(0, 2**63),
)
def test_everyone_s_turn_comes_once_in_a_cycle(size: int, slots: int, cycle: int, seed: int) -> None:
    turns = Counter[str]()
    rules = set()
    for turn in range(cycle * slots, (cycle + 1) * slots):
        cohort = drawn(fleet(size), turn, fraction=1 / slots, seed=seed)
        turns.update(cohort.asked)
        rules.add(cohort.drawn)
    if size > BITMAP_FLEET and len(rules) < slots:
        # Nobody falls into some slot, and the next one is drawn twice.
        assert set(turns) == set(fleet(size))
    elif size >= slots:
        assert turns == Counter(fleet(size).keys())
    else:
        # Fewer gateways than rounds: turns go round, and nobody has two more than another.
        assert set(turns) == set(fleet(size))
        assert max(turns.values()) - min(turns.values()) <= 1


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 150),
    absent=st.floats(0, 0.9),
    fraction=st.floats(0.01, 1.0),
    rate=st.floats(0, 1),
    turn=st.integers(0, 10_000),
)
def test_who_is_asked_is_who_finds_itself_in_the_plan(
    size: int, absent: float, fraction: float, rate: float, turn: int
) -> None:
    rng = random.Random(turn)
    present = {name: place for name, place in fleet(size).items() if rng.random() >= absent}
    cohort = draw(present, size, fraction=fraction, seed=1, turn=turn_of(turn, fraction, rate))
    assert {name for name, place in present.items() if draws(cohort, place, name)} == cohort.asked
    assert isinstance(cohort.drawn, Slot if size > 64 else int)
    if size <= BITMAP_FLEET:
        # The bitmap names those who are here, and no place beside.
        assert {place for place in range(64) if draws(cohort, place, "")} == {present[n] for n in cohort.asked}
    assert bool(cohort.asked) == bool(present)
    assert 1 <= cohort.target <= max(1, len(cohort.asked))


def test_up_to_64_gateways_are_named_one_by_one_and_more_by_a_rule() -> None:
    assert isinstance(drawn(fleet(64), 0, fraction=0.1).drawn, int)
    assert isinstance(drawn(fleet(65), 0, fraction=0.1).drawn, Slot)
    # The roster counts, not who is here today: a place beyond the bitmap cannot be said.
    few = {"gateway-80": 80, "gateway-3": 3}
    assert isinstance(draw(few, 81, fraction=1.0, seed=1, turn=turn_of(0, 1.0)).drawn, Slot)


def test_where_few_of_a_large_fleet_are_here_no_round_is_empty() -> None:
    # 5 of 70: most of ten slots hold nobody. A draw of nobody would open no round, and the next would be the same.
    present = {f"gateway-{place}": place for place in range(0, 70, 14)}
    asked = [draw(present, 70, fraction=0.1, seed=2, turn=turn_of(turn, 0.1)).asked for turn in range(10)]
    assert all(asked)
    assert frozenset().union(*asked) == set(present)


def test_a_large_fleet_is_cut_about_evenly() -> None:
    counts = [len(drawn(fleet(10_000), turn, fraction=0.1).asked) for turn in range(10)]
    assert sum(counts) == 10_000
    # Binomial(10000, 0.1): standard deviation 30.
    assert all(abs(count - 1_000) < 150 for count in counts)


def test_a_small_fleet_is_cut_to_within_one() -> None:
    for size in range(10, 65):
        counts = [len(drawn(fleet(size), turn, fraction=0.1).asked) for turn in range(10)]
        assert max(counts) - min(counts) <= 1


def test_everyone_is_drawn_for_a_whole_fraction() -> None:
    for size in (1, 7, 64, 65, 500):
        cohort = drawn(fleet(size), 3, fraction=1.0)
        assert cohort.asked == set(fleet(size))
        assert cohort.target == size


def test_the_same_draw_comes_out_the_same_whatever_the_order_of_the_fleet() -> None:
    forwards = fleet(50)
    backwards = dict(reversed(forwards.items()))
    for turn in range(20):
        assert drawn(forwards, turn, fraction=0.2) == drawn(backwards, turn, fraction=0.2)


@pytest.mark.parametrize("size", [60, 600])
def test_cycles_and_seeds_are_drawn_differently(size: int) -> None:
    def cycle(number: int, seed: int) -> tuple[frozenset[str], ...]:
        return tuple(drawn(fleet(size), 10 * number + i, fraction=0.1, seed=seed).asked for i in range(10))

    assert len({cycle(number, seed) for number in range(5) for seed in range(5)}) == 25


def test_the_draw_of_a_seed_is_the_one_written_down() -> None:
    assert sorted(drawn(fleet(20), 13, fraction=0.2).asked) == ["gateway-14", "gateway-15", "gateway-2", "gateway-5"]
    large = drawn(fleet(100), 13, fraction=0.2)
    assert large.drawn == Slot(seed=hashlib.sha256(b"7:5:2").digest()[:8], slots=5, slot=3)


def test_more_are_asked_where_few_answer_and_the_hope_stays_the_same() -> None:
    sure = drawn(fleet(60), 0, fraction=0.1, rate=1.0)
    doubtful = drawn(fleet(60), 0, fraction=0.1, rate=0.5)
    assert (len(sure.asked), sure.target) == (6, 6)
    assert (len(doubtful.asked), doubtful.target) == (12, 6)
    # A fleet that never answers is not drawn more than ten times over, and never more than whole.
    assert len(drawn(fleet(60), 0, fraction=0.05, rate=0.0).asked) == 30
    assert len(drawn(fleet(60), 0, fraction=0.5, rate=0.0).asked) == 60


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction of the fleet"):
        drawn(fleet(10), 0, fraction=fraction)


def test_nobody_present_means_nobody_asked() -> None:
    for roster_size in (0, 10, 100):
        cohort = draw({}, roster_size, fraction=0.1, seed=1, turn=turn_of(0, 0.1))
        assert cohort.asked == frozenset()


def test_a_drifting_answer_rate_lets_nobody_wait_for_two_cycles() -> None:
    rng = random.Random(0)
    present = fleet(500)
    last = dict.fromkeys(present, 0)
    longest = 0
    turn = None
    for number in range(400):
        turn = following(turn, fraction=0.1, answer_rate=rng.uniform(0.8, 0.98))
        for name in draw(present, 500, fraction=0.1, seed=3, turn=turn).asked:
            longest = max(longest, number - last[name])
            last[name] = number
    assert longest < 20


def test_at_least_the_fraction_asked_for_is_drawn() -> None:
    for fraction in (0.15, 0.3, 0.4, 0.7):
        assert following(None, fraction=fraction, answer_rate=1.0).slots <= 1 / fraction


def test_answers_that_nobody_asked_for_do_not_make_up_for_those_that_were_asked() -> None:
    assert following(None, fraction=0.1, answer_rate=2.5).slots == 10


@given(size=st.integers(1, 200), fraction=st.floats(0.01, 1.0), rate=st.floats(0.0, 3.0))
def test_however_few_answer_nobody_is_drawn_twice_and_no_more_than_there_are(
    size: int, fraction: float, rate: float
) -> None:
    cohort = drawn(fleet(size), 0, fraction=fraction, rate=rate)
    assert cohort.asked <= set(fleet(size))
    assert 1 <= cohort.target <= len(cohort.asked)
