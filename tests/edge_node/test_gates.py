from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from fedmq_edge_node.gates import Budget, Limits, Vitals, check, shut_gates
from fedmq_protocol.reasons import Reason
from fedmq_protocol.settings import SettingsError
from hypothesis import assume, given
from hypothesis import strategies as st

NOON = datetime(2025, 3, 5, 12, 0)  # a Wednesday

HEALTHY = Vitals(
    battery_pct=100.0,
    on_mains=True,
    cpu_idle_pct=100.0,
    memory_available_bytes=1 << 30,
    temperature_c=40.0,
    link_up=True,
    link_kind="ethernet",
    metered=False,
)


def checked(
    vitals: Vitals = HEALTHY,
    limits: Limits | None = None,
    *,
    now: datetime = NOON,
    today: int = 0,
    month: int = 0,
    windows: int = 100,
    silent: str = "",
) -> Reason | None:
    return check(
        vitals,
        limits or Limits(),
        now_local=now,
        bytes_today=today,
        bytes_month=month,
        windows=windows,
        min_windows=20,
        silent=silent,
    )


def but(**changes: object) -> Vitals:
    values = {name: getattr(HEALTHY, name) for name in Vitals.__dataclass_fields__}
    return Vitals(**values | changes)  # type: ignore[arg-type]


def test_a_healthy_gateway_passes_every_gate() -> None:
    assert checked() is None


def test_a_gateway_that_knows_nothing_of_itself_passes() -> None:
    assert checked(Vitals()) is None


@pytest.mark.parametrize(
    ("vitals", "limits", "reason"),
    [
        (but(battery_pct=15), Limits(), Reason.BATTERY),
        (but(battery_pct=15), Limits(battery_ignored_on_mains=True), None),
        (but(battery_pct=15, on_mains=False), Limits(battery_ignored_on_mains=True), Reason.BATTERY),
        (but(battery_pct=15, on_mains=None), Limits(battery_ignored_on_mains=True), Reason.BATTERY),
        (but(battery_pct=30), Limits(battery_min_pct=30), None),
        (but(battery_pct=0), Limits(battery_min_pct=0), None),
        (but(on_mains=False), Limits(), None),
        (but(on_mains=False), Limits(mains_required=True), Reason.MAINS),
        (but(cpu_idle_pct=19.9), Limits(), Reason.CPU),
        (but(cpu_idle_pct=20), Limits(), None),
        (but(memory_available_bytes=(32 << 20) - 1), Limits(), Reason.MEMORY),
        (but(memory_available_bytes=0), Limits(memory_min_bytes=0), None),
        (but(temperature_c=80), Limits(), None),
        (but(temperature_c=80.5), Limits(), Reason.TEMPERATURE),
        (but(link_up=False), Limits(), Reason.LINK),
        (but(link_kind="cellular"), Limits(links=("ethernet", "wifi")), Reason.LINK),
        (but(link_kind="wifi"), Limits(links=("ethernet", "wifi")), None),
        (but(metered=True), Limits(), Reason.METERED),
        (but(metered=True), Limits(metered_allowed=True), None),
    ],
)
def test_a_reading_beyond_its_limit_shuts_its_gate(vitals: Vitals, limits: Limits, reason: Reason | None) -> None:
    assert checked(vitals, limits) is reason


@pytest.mark.parametrize(
    ("gate", "field", "reason"),
    [
        ("battery", "battery_pct", Reason.BATTERY),
        ("mains", "on_mains", Reason.MAINS),
        ("cpu", "cpu_idle_pct", Reason.CPU),
        ("memory", "memory_available_bytes", Reason.MEMORY),
        ("temperature", "temperature_c", Reason.TEMPERATURE),
        ("link", "link_up", Reason.LINK),
        ("link", "link_kind", Reason.LINK),
        ("metered", "metered", Reason.METERED),
    ],
)
def test_an_unknown_reading_shuts_its_gate_only_where_it_is_required(gate: str, field: str, reason: Reason) -> None:
    strictest = Limits(mains_required=True, cpu_idle_min_pct=100, battery_min_pct=100, links=("ethernet",))
    assert checked(but(**{field: None}), strictest) is None
    assert checked(but(**{field: None}), Limits(require=(gate,))) is reason  # type: ignore[arg-type]
    assert checked(HEALTHY, Limits(require=(gate,))) is None  # type: ignore[arg-type]


def test_gates_are_tried_in_the_order_of_their_numbers() -> None:
    worst = Vitals(
        battery_pct=1,
        on_mains=False,
        cpu_idle_pct=0,
        memory_available_bytes=0,
        temperature_c=99,
        link_up=False,
        metered=True,
    )
    limits = Limits(mains_required=True, daily_bytes=1, monthly_bytes=1, hours=("00:00-01:00",))
    shut = list(shut_gates(worst, limits, now_local=NOON, bytes_today=5, bytes_month=5, windows=1, min_windows=20))
    assert [reason for reason, _ in shut] == [Reason(number) for number in range(1, 11)]
    assert shut[0][1] == "battery at 1 %, limit 30 %"
    assert checked(worst, limits, today=5, month=5, windows=1) is Reason.BATTERY


def test_reasons_keep_their_numbers() -> None:
    assert {reason.name: reason.value for reason in Reason} == {
        "BATTERY": 1,
        "MAINS": 2,
        "CPU": 3,
        "MEMORY": 4,
        "TEMPERATURE": 5,
        "LINK": 6,
        "METERED": 7,
        "DATA_BUDGET": 8,
        "TIME_WINDOW": 9,
        "SAMPLES": 10,
        "NO_MODEL": 11,
        "TASK": 12,
        "PENDING": 13,
        "ERROR": 14,
        "LATE": 15,
    }
    assert all(reason.about for reason in Reason)


@pytest.mark.parametrize(
    ("today", "month", "reason"),
    [(99, 99, None), (100, 100, Reason.DATA_BUDGET), (0, 1000, Reason.DATA_BUDGET), (0, 999, None)],
)
def test_a_data_budget_is_shut_once_it_is_used_up(today: int, month: int, reason: Reason | None) -> None:
    assert checked(limits=Limits(daily_bytes=100, monthly_bytes=1000), today=today, month=month) is reason
    assert checked(today=1 << 40, month=1 << 40) is None


def test_too_few_windows_shut_the_last_gate() -> None:
    assert checked(windows=19) is Reason.SAMPLES
    assert checked(windows=20) is None


def test_a_silent_sensor_shuts_the_last_gate_however_many_windows_there_are() -> None:
    assert checked(silent="silent: motor on pump-3 for 400 s; limit 300 s") is Reason.SAMPLES


@pytest.mark.parametrize(
    ("hours", "weekdays", "when", "opens"),
    [
        ((), (), "2025-03-05 12:00", True),
        (("22:00-06:00",), (), "2025-03-05 12:00", False),
        (("22:00-06:00",), (), "2025-03-05 22:00", True),
        (("22:00-06:00",), (), "2025-03-05 23:59", True),
        (("22:00-06:00",), (), "2025-03-05 00:00", True),
        (("22:00-06:00",), (), "2025-03-05 05:59", True),
        (("22:00-06:00",), (), "2025-03-05 06:00", False),
        (("12:00-13:00", "15:00-16:00"), (), "2025-03-05 15:30", True),
        (("12:00-13:00", "15:00-16:00"), (), "2025-03-05 14:00", False),
        (("00:00-24:00",), (), "2025-03-05 23:59", True),
        ((), ("wed",), "2025-03-05 12:00", True),
        ((), ("thu",), "2025-03-05 12:00", False),
        # A night belongs to the day on which it begins.
        (("22:00-06:00",), ("wed",), "2025-03-06 05:00", True),
        (("22:00-06:00",), ("wed",), "2025-03-05 05:00", False),
        (("22:00-06:00",), ("sun",), "2025-03-03 05:00", True),
    ],
)
def test_the_time_window(hours: tuple[str, ...], weekdays: tuple[str, ...], when: str, opens: bool) -> None:
    limits = Limits(hours=hours, weekdays=weekdays)  # type: ignore[arg-type]
    reason = checked(limits=limits, now=datetime.fromisoformat(when))
    assert reason is (None if opens else Reason.TIME_WINDOW)


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 7 * 1440 - 1))
def test_a_span_and_its_complement_cover_every_minute_once(begin: int, end: int, minute: int) -> None:
    assume(begin != end)
    spans = [f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for a, b in ((begin, end), (end, begin))]
    now = datetime(2025, 3, 3) + timedelta(minutes=minute)
    assert sum(Limits(hours=(span,)).allows(now) for span in spans) == 1


def test_vitals_out_of_range_do_not_exist() -> None:
    with pytest.raises(SettingsError, match="battery_pct: expected a number from 0 to 100, got 101"):
        Vitals(battery_pct=101)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_budget_adds_up_and_turns_over_at_local_midnight() -> None:
    budget = Budget().add(10, at("2025-03-30 23:59")).add(5, at("2025-03-31 00:00"))
    assert budget.used(at("2025-03-31 12:00")) == (5, 15)
    assert budget.used(at("2025-04-01 00:00")) == (0, 0)
    assert budget.add(1, at("2025-04-01 00:00")).used(at("2025-04-01 00:01")) == (1, 1)


def test_a_clock_that_steps_back_opens_no_fresh_budget() -> None:
    budget = Budget().add(10, at("2025-03-01 00:05"))
    assert budget.used(at("2025-02-28 23:55")) == (10, 10)
    assert budget.add(1, at("1970-01-01 00:00")).used(at("2025-03-01 01:00")) == (11, 11)


def test_a_budget_from_a_far_future_was_counted_by_a_wrong_clock() -> None:
    assert Budget().add(10, at("2099-01-01 00:00")).used(at("2025-03-01 00:00")) == (0, 0)


def test_a_budget_comes_back_from_what_was_stored() -> None:
    budget = Budget().add(10, at("2025-03-01 00:05"))
    assert Budget.from_dict(budget.to_dict()) == budget
    assert Budget.from_dict(Budget().to_dict()) == Budget()


@pytest.mark.parametrize(
    "stored", [{"day": "soon"}, {"day": 3}, {"day_bytes": -1}, {"day_bytes": "x"}, {"day_bytes": 1.5}, []]
)
def test_a_stored_budget_that_is_none_is_refused(stored: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Budget.from_dict(stored)


def test_negative_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 or more, got -1"):
        Budget().add(-1, NOON)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 60 * 24 * 90)), max_size=30))
def test_a_month_never_counts_less_than_its_day(steps: list[tuple[int, int]]) -> None:
    budget = Budget()
    for count, minute in steps:
        now = datetime(2025, 1, 1) + timedelta(minutes=minute)
        before = budget.used(now)
        budget = budget.add(count, now)
        assert budget.used(now) == (before[0] + count, before[1] + count)
        assert budget.day_bytes <= budget.month_bytes
