"""Who fails to answer: when nobody asks it any more, for how long, and what brings it back."""

from __future__ import annotations

from itertools import pairwise

from fedmq_coordinator.absent import Absence, after_round, from_bytes, set_aside, to_bytes
from hypothesis import given
from hypothesis import strategies as st

FLEET = frozenset({"a", "b", "c"})
NONCES = dict.fromkeys(FLEET, b"born one")


def play(heard: list[set[str]], patience: int = 3) -> tuple[list[frozenset[str]], dict[str, Absence]]:
    """Who was asked in each round, when those were `heard` of whom it asked; and what is on record in the end."""
    absences: dict[str, Absence] = {}
    asked = []
    for answering in heard:
        asked.append(FLEET - set_aside(absences, NONCES))
        absences = after_round(
            absences,
            asked=asked[-1],
            failed=asked[-1] - answering,
            heard=answering & asked[-1],
            nonces=NONCES,
            patience=patience,
        )
    return asked, absences


def test_one_that_stays_silent_is_set_aside_after_so_many_rounds_and_asked_again_after_pauses_that_double() -> None:
    asked, _ = play([{"a", "b"}] * 200)
    turns = [number for number, names in enumerate(asked) if "c" in names]
    pauses = [later - earlier - 1 for earlier, later in pairwise(turns)]
    assert pauses == [0, 0, 1, 2, 4, 8, 16, 32, 64]
    assert all({"a", "b"} <= names for names in asked)


def test_no_pause_is_longer_than_64_rounds() -> None:
    asked, _ = play([set()] * 1000)
    turns = [number for number, names in enumerate(asked) if "c" in names]
    assert {later - earlier - 1 for earlier, later in pairwise(turns[-5:])} == {64}


def test_one_success_makes_all_of_it_forgotten() -> None:
    _, failing = play([{"a", "b"}] * 12)
    assert set(failing) == {"c"}
    assert after_round(failing, asked=FLEET, failed=(), heard=FLEET, nonces=NONCES, patience=3) == {}
    asked, _ = play([*([{"a", "b"}] * 4), set(FLEET), *([{"a", "b"}] * 3)])
    assert [("c" in names) for names in asked] == [True, True, True, False, True, True, True, True]


def test_what_is_heard_of_one_that_was_not_asked_counts_too() -> None:
    _, failing = play([{"a", "b"}] * 5)
    assert after_round(failing, asked={"a", "b"}, failed=(), heard=FLEET, nonces=NONCES, patience=3) == {}


def test_a_new_boot_nonce_ends_the_pause_and_not_the_record() -> None:
    _, failing = play([{"a", "b"}] * 5)
    assert set_aside(failing, NONCES) == {"c"}
    born_again = NONCES | {"c": b"born two"}
    assert not set_aside(failing, born_again)
    failed_again = after_round(failing, asked=FLEET, failed={"c"}, heard={"a", "b"}, nonces=born_again, patience=3)
    assert set_aside(failed_again, born_again) == {"c"}
    assert failed_again["c"].left > failing["c"].left


def test_without_patience_nobody_is_set_aside_and_nothing_is_kept() -> None:
    asked, absences = play([set()] * 50, patience=0)
    assert asked == [FLEET] * 50
    assert absences == {}


def test_only_those_that_fail_are_on_record() -> None:
    _, absences = play([{"a", "b"}])
    assert set(absences) == {"c"}


@given(
    rounds=st.lists(st.sets(st.sampled_from(sorted(FLEET))), max_size=60),
    patience=st.integers(1, 6),
)
def test_a_restart_at_any_time_goes_on_with_the_same(rounds: list[set[str]], patience: int) -> None:
    _, absences = play(rounds, patience)
    assert from_bytes(to_bytes(absences)) == absences
    for absence in absences.values():
        assert absence.missed >= 1
        assert 0 <= absence.left <= 64
        assert (absence.pauses > 0) == (absence.missed >= patience)


def test_nothing_on_disk_is_nobody() -> None:
    assert from_bytes(None) == {}


def test_who_was_not_given_the_time_is_neither_forgiven_nor_blamed() -> None:
    _, failing = play([{"a", "b"}] * 2)
    assert after_round(failing, asked=FLEET, failed=(), heard={"a"}, nonces=NONCES, patience=3) == failing
