"""When the next round opens and when the run rests, told by wall clocks, metrics and windows."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise

import pytest
from fedmq_coordinator.schedule import Pace, may_resume, next_opening, reason_to_rest

NAN = float("nan")


def opening(pace: Pace, *, opened: float, closed: float | None = None, failures: int = 0) -> float:
    return next_opening(pace, last_opened=opened, last_closed=opened if closed is None else closed, failures=failures)


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the machine's time zone for one test."""

    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        clock.tzset()

    yield set_zone
    monkeypatch.undo()
    clock.tzset()


# --- an interval, and pauses -----------------------------------------------------------------------------------------


def test_without_a_schedule_the_next_round_opens_as_the_last_one_closes() -> None:
    assert opening(Pace(), opened=100.0, closed=130.0) == 130.0


def test_an_interval_counts_from_the_opening_and_waits_for_the_close() -> None:
    pace = Pace(interval_seconds=60.0)
    assert opening(pace, opened=100.0, closed=130.0) == 160.0
    assert opening(pace, opened=100.0, closed=190.0) == 190.0


def test_after_failures_the_pause_doubles_up_to_its_most() -> None:
    pace = Pace(retry_most_seconds=300.0)
    pauses = [opening(pace, opened=0.0, closed=1_000.0, failures=n) - 1_000.0 for n in range(12)]
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert opening(pace, opened=0.0, closed=1_000.0, failures=10_000) == 1_300.0


def test_a_pause_never_makes_a_round_earlier_than_its_interval() -> None:
    pace = Pace(interval_seconds=600.0)
    assert opening(pace, opened=1_000.0, closed=1_060.0, failures=3) == 1_600.0
    assert opening(pace, opened=1_000.0, closed=1_060.0, failures=20) == 1_600.0
    assert opening(pace, opened=1_000.0, closed=1_550.0, failures=20) == 1_850.0


# --- at night --------------------------------------------------------------------------------------------------------


def at(text: str) -> float:
    """Unix time of a local time, or of one with its offset."""
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"])
def test_a_nightly_round_opens_at_its_time_on_the_wall(zone: Callable[[str], None], name: str) -> None:
    zone(name)
    pace = Pace(nightly=time(2, 30))
    assert opening(pace, opened=at("2026-01-15 14:00")) == at("2026-01-16 02:30")
    assert opening(pace, opened=at("2026-01-15 02:30")) == at("2026-01-16 02:30")
    assert opening(pace, opened=at("2026-01-15 02:29:59")) == at("2026-01-15 02:30")
    assert opening(pace, opened=at("2026-12-31 23:59")) == at("2027-01-01 02:30")


def test_a_round_just_before_midnight_is_followed_by_one_the_next_night(zone: Callable[[str], None]) -> None:
    zone("UTC")
    pace = Pace(nightly=time(23, 55))
    assert opening(pace, opened=at("2026-01-15 23:55:02")) == at("2026-01-16 23:55")
    assert opening(pace, opened=at("2026-01-16 00:01")) == at("2026-01-16 23:55")
    assert opening(Pace(nightly=time(0, 0)), opened=at("2026-01-15 23:59:59")) == at("2026-01-16 00:00")


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York", "Australia/Sydney"])
@pytest.mark.parametrize("nightly", [time(0, 0), time(1, 30), time(2, 30), time(3, 0), time(23, 30)])
def test_a_year_of_nights_has_one_round_each_though_the_clocks_change(
    zone: Callable[[str], None], name: str, nightly: time
) -> None:
    zone(name)
    pace = Pace(nightly=nightly)
    # The coordinator opens a few seconds after the time that was due.
    openings = [at("2026-01-01 12:00")]
    for _ in range(364):
        openings.append(opening(pace, opened=openings[-1], closed=openings[-1] + 40.0) + 3.0)
    days = {datetime.fromtimestamp(opened).date() for opened in openings[1:]}
    assert len(days) == 364
    assert max(days) - min(days) == timedelta(days=363)
    # A night in which the clocks change is an hour longer or shorter, no more.
    hours = {round((later - earlier - 3.0) / 3600) for earlier, later in pairwise(openings[1:])}
    assert hours <= {23, 24, 25}


def test_opened_in_the_hour_that_comes_twice_the_next_round_is_not_due_in_the_past(
    zone: Callable[[str], None],
) -> None:
    zone("Europe/Berlin")
    # 2026-10-25: 03:00 summer time becomes 02:00. Opened at 02:10 for the second time that night.
    opened = datetime(2026, 10, 25, 1, 10, tzinfo=UTC).timestamp()
    assert opening(Pace(nightly=time(2, 30)), opened=opened) > opened


# --- rest ------------------------------------------------------------------------------------------------------------


def test_a_run_without_rules_never_rests() -> None:
    assert reason_to_rest(Pace(), rounds=10_000, metrics=[0.9] * 10_000) is None


def test_a_run_rests_when_it_has_made_its_rounds() -> None:
    pace = Pace(max_rounds=40)
    assert reason_to_rest(pace, rounds=39, metrics=[]) is None
    assert reason_to_rest(pace, rounds=40, metrics=[]) == "40 rounds made"
    assert reason_to_rest(pace, rounds=41, metrics=[]) == "41 rounds made"


def test_the_target_must_be_reached_twice_in_a_row() -> None:
    pace = Pace(target_metric=0.98)
    for metrics in ([], [0.99], [0.99, 0.97], [0.97, 0.99], [0.99, 0.97, 0.99], [0.99, 0.99, 0.97]):
        assert reason_to_rest(pace, rounds=len(metrics), metrics=metrics) is None
    for metrics in ([0.98, 0.98], [0.1, 0.99, 0.98]):
        assert reason_to_rest(pace, rounds=len(metrics), metrics=metrics) == "target 0.98 reached twice in a row"


def test_a_target_of_zero_is_a_target() -> None:
    assert reason_to_rest(Pace(target_metric=0.0), rounds=2, metrics=[0.1, 0.1]) is not None
    assert reason_to_rest(Pace(target_metric=0.0), rounds=2, metrics=[-1.0, -0.5]) is None


def test_a_metric_that_is_not_a_number_reaches_no_target() -> None:
    for metrics in ([0.99, NAN], [NAN, 0.99], [NAN, NAN]):
        assert reason_to_rest(Pace(target_metric=0.98), rounds=2, metrics=metrics) is None


def test_a_plateau_is_no_new_best_by_the_delta_in_so_many_rounds() -> None:
    pace = Pace(plateau_rounds=3, plateau_delta=0.01)
    flat = [0.5, 0.9, 0.9, 0.905, 0.9]
    assert reason_to_rest(pace, rounds=5, metrics=flat) == "no gain of 0.01 in 3 rounds"
    assert reason_to_rest(pace, rounds=4, metrics=flat[:4]) is None
    assert reason_to_rest(pace, rounds=5, metrics=[0.5, 0.9, 0.9, 0.92, 0.9]) is None
    # A fall and a recovery are no gain.
    assert reason_to_rest(pace, rounds=5, metrics=[0.5, 0.9, 0.2, 0.6, 0.9]) is not None


def test_too_few_rounds_are_no_plateau() -> None:
    pace = Pace(plateau_rounds=3, plateau_delta=0.01)
    for count in range(4):
        assert reason_to_rest(pace, rounds=count, metrics=[0.9] * count) is None


def test_without_a_delta_any_gain_counts_and_a_flat_line_is_a_plateau() -> None:
    pace = Pace(plateau_rounds=3)
    assert reason_to_rest(pace, rounds=4, metrics=[0.9, 0.9, 0.9, 0.9001]) is None
    assert reason_to_rest(pace, rounds=4, metrics=[1.0, 1.0, 1.0, 1.0]) is not None


def test_a_run_goes_on_when_enough_new_windows_have_come() -> None:
    pace = Pace(resume_windows=100)
    assert not may_resume(pace, windows_at_rest=500, windows_now=599)
    assert may_resume(pace, windows_at_rest=500, windows_now=600)
    # Old windows were thrown away: fewer than before is no news.
    assert not may_resume(pace, windows_at_rest=500, windows_now=0)


def test_a_run_that_is_not_to_go_on_rests_for_good() -> None:
    assert not may_resume(Pace(), windows_at_rest=0, windows_now=10**9)


# --- a metric of which less is better --------------------------------------------------------------------------------


def test_an_error_reaches_its_target_from_above() -> None:
    pace = Pace(target_metric=16.0)
    assert reason_to_rest(pace, rounds=2, metrics=[30.0, 20.0], direction=-1) is None
    assert reason_to_rest(pace, rounds=2, metrics=[15.0, 16.5], direction=-1) is None
    assert reason_to_rest(pace, rounds=2, metrics=[16.0, 15.0], direction=-1) == "target 16 reached twice in a row"


def test_an_error_that_falls_no_more_is_a_plateau() -> None:
    pace = Pace(plateau_rounds=2, plateau_delta=0.5)
    assert reason_to_rest(pace, rounds=4, metrics=[30.0, 20.0, 19.0, 18.0], direction=-1) is None
    assert reason_to_rest(pace, rounds=4, metrics=[30.0, 20.0, 19.8, 25.0], direction=-1) is not None
