"""Whether this gateway may train now: readings and limits in, a reason to decline or None out.

Owns the gates, their limits and the data budget. Pure: reads no clock, no sensor and no disk.

Rules it keeps:

- Unknown is None and is never read as 0. An unknown reading passes its gate, unless `require` names the gate:
  most plant gateways have no battery, and many no temperature sensor.
- The gates are tried in the order of their reasons' numbers (battery, mains, CPU, memory, temperature, link, metered,
  data budget, time window, samples), and the first that is shut is the answer.
- A limit holds at its own value: exactly 30 per cent passes a limit of 30.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from fedmq_protocol.reasons import Reason
from fedmq_protocol.settings import Table
from fedmq_protocol.vitals import LinkKind, ToldVitals
from msgspec import Meta

__all__ = ["Budget", "Limits", "Vitals", "check", "shut_gates"]

Percent = Annotated[float, Meta(ge=0, le=100)]

_BYTES = Meta(ge=0)


@dataclass(frozen=True, kw_only=True)
class Vitals(Table):
    """How the gateway is. Every field is None while it is not known."""

    battery_pct: Annotated[Percent | None, Meta(description="Charge of the battery, in per cent.", examples=[85])] = (
        None
    )
    on_mains: Annotated[
        bool | None, Meta(description="Whether power comes from outside, not from the battery.", examples=[True])
    ] = None
    cpu_idle_pct: Annotated[
        Percent | None,
        Meta(
            description="Share of the CPU that other work leaves, in per cent of what this process may use.",
            examples=[90],
        ),
    ] = None
    memory_available_bytes: Annotated[
        int | None, _BYTES, Meta(description="Bytes that this process may still take.", examples=[512 << 20])
    ] = None
    temperature_c: Annotated[
        float | None, Meta(ge=-100, le=250, description="Temperature of the CPU, in degrees Celsius.", examples=[45])
    ] = None
    link_up: Annotated[bool | None, Meta(description="Whether the link towards the broker is up.", examples=[True])] = (
        None
    )
    link_kind: Annotated[
        LinkKind | None, Meta(description="Kind of the link towards the broker.", examples=["ethernet"])
    ] = None
    metered: Annotated[
        bool | None, Meta(description="Whether data over that link is paid for by volume.", examples=[False])
    ] = None

    def told(self) -> ToldVitals:
        """What of them the coordinator is told; nothing else leaves the gateway."""
        return ToldVitals(
            battery_pct=None if self.battery_pct is None else round(self.battery_pct),
            on_mains=self.on_mains,
            link=self.link_kind,
            metered=self.metered,
        )


TimeSpan = Annotated[
    str,
    Meta(
        pattern=r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)\Z",
        extra={"expected": 'a span of local time such as "22:00-06:00"'},
    ),
]

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""In the order of `date.weekday`."""


@dataclass(frozen=True, kw_only=True)
class Limits(Table):
    """When this gateway may train. A gate that is shut is a decline with its reason; the rounds go on without it."""

    battery_min_pct: Annotated[
        Percent,
        Meta(description="Charge of the battery below which this gateway does not train, in per cent. 0: any."),
    ] = 30.0
    battery_ignored_on_mains: Annotated[
        bool, Meta(description="Whether a low battery does not matter while the gateway is known to run on mains.")
    ] = False
    mains_required: Annotated[bool, Meta(description="Whether to train on mains only.")] = False
    cpu_idle_min_pct: Annotated[
        Percent,
        Meta(
            description="Share of the CPU that other work must leave, in per cent of what this process may use"
            " (its cgroup's quota counts). What this process itself uses counts as free. 0: any."
        ),
    ] = 20.0
    memory_min_bytes: Annotated[
        int,
        _BYTES,
        Meta(description="Bytes of memory that must be free, within the cgroup's limit if it has one. 0: any."),
    ] = 32 << 20
    temperature_max_c: Annotated[
        float,
        Meta(
            ge=-100,
            le=250,
            description="Temperature of the CPU above which this gateway does not train, in degrees Celsius.",
        ),
    ] = 80.0
    links: Annotated[
        tuple[LinkKind, ...],
        Meta(min_length=1, description="Kinds of network link over which this gateway takes part."),
    ] = ("ethernet", "wifi", "cellular", "loopback", "other")
    metered_allowed: Annotated[
        bool,
        Meta(
            description="Whether to take part over a link that NetworkManager calls metered. Set a data budget with it."
        ),
    ] = False
    daily_bytes: Annotated[
        int | None,
        Meta(
            ge=1,
            examples=[1_000_000],
            description="Bytes, sent and received, after which this gateway trains no more until local midnight."
            " MQTT bytes on the socket; TCP, IP and TLS come on top (about 600 B a round).",
        ),
    ] = None
    monthly_bytes: Annotated[
        int | None,
        Meta(
            ge=1,
            examples=[20_000_000],
            description="Bytes, sent and received, after which this gateway trains no more until next month.",
        ),
    ] = None
    hours: Annotated[
        tuple[TimeSpan, ...],
        Meta(
            max_length=48,
            description='Spans of local time in which training is allowed, for instance ["22:00-06:00"]. A span may'
            " pass midnight; its end is not part of it. Empty: at any time.",
        ),
    ] = ()
    weekdays: Annotated[
        tuple[Weekday, ...],
        Meta(
            max_length=7,
            description="Days on which a span may begin (the whole day where hours is empty). Empty: every day.",
        ),
    ] = ()
    require: Annotated[
        tuple[Literal["battery", "mains", "cpu", "memory", "temperature", "link", "metered"], ...],
        Meta(
            max_length=7,
            description="Gates that are shut while their reading is unknown. The others let the unknown pass.",
        ),
    ] = ()

    def check(self) -> Iterator[tuple[str, str]]:
        for span in self.hours:
            begin, end = _minutes(span)
            if begin == end:
                yield "hours", f'expected spans of some length ("00:00-24:00" is the whole day), got "{span}"'

    def allows(self, now_local: datetime) -> bool:
        """Whether the time window is open."""
        minute = now_local.hour * 60 + now_local.minute
        yesterday = now_local - timedelta(days=1)
        for begin, end in [_minutes(span) for span in self.hours] or [(0, 24 * 60)]:
            if begin < end:
                if begin <= minute < end and self._on(now_local):
                    return True
            elif (minute >= begin and self._on(now_local)) or (minute < end and self._on(yesterday)):
                return True
        return False

    def _on(self, day: date) -> bool:
        return not self.weekdays or WEEKDAYS[day.weekday()] in self.weekdays


def check(
    vitals: Vitals,
    limits: Limits,
    *,
    now_local: datetime,
    bytes_today: int,
    bytes_month: int,
    windows: int,
    min_windows: int,
    silent: str = "",
) -> Reason | None:
    """The reason of the first gate that is shut, None when all are open.

    `bytes_today` and `bytes_month` are what was used so far (`Budget.used`), `windows` the training windows at hand,
    `min_windows` what the task asks for, `silent` names sensors that should have been heard of, in words.
    """
    shut = shut_gates(
        vitals,
        limits,
        now_local=now_local,
        bytes_today=bytes_today,
        bytes_month=bytes_month,
        windows=windows,
        min_windows=min_windows,
        silent=silent,
    )
    return next((reason for reason, _ in shut), None)


def shut_gates(
    vitals: Vitals,
    limits: Limits,
    *,
    now_local: datetime,
    bytes_today: int,
    bytes_month: int,
    windows: int,
    min_windows: int,
    silent: str = "",
) -> Iterator[tuple[Reason, str]]:
    """Every gate that is shut, first the one that `check` names, each with its reading and limit in words for a log."""
    require = limits.require

    if vitals.battery_pct is None:
        if "battery" in require:
            yield Reason.BATTERY, "the battery's charge is unknown"
    elif vitals.battery_pct < limits.battery_min_pct and not (limits.battery_ignored_on_mains and vitals.on_mains):
        yield Reason.BATTERY, f"battery at {vitals.battery_pct:g} %, limit {limits.battery_min_pct:g} %"

    if vitals.on_mains is None:
        if "mains" in require:
            yield Reason.MAINS, "whether there is mains power is unknown"
    elif limits.mains_required and not vitals.on_mains:
        yield Reason.MAINS, "on battery, and mains is required"

    if vitals.cpu_idle_pct is None:
        if "cpu" in require:
            yield Reason.CPU, "the load of the CPU is unknown"
    elif vitals.cpu_idle_pct < limits.cpu_idle_min_pct:
        yield Reason.CPU, f"CPU {vitals.cpu_idle_pct:.1f} % free, limit {limits.cpu_idle_min_pct:g} %"

    if vitals.memory_available_bytes is None:
        if "memory" in require:
            yield Reason.MEMORY, "the free memory is unknown"
    elif vitals.memory_available_bytes < limits.memory_min_bytes:
        yield Reason.MEMORY, f"{vitals.memory_available_bytes:,} B of memory free, limit {limits.memory_min_bytes:,} B"

    if vitals.temperature_c is None:
        if "temperature" in require:
            yield Reason.TEMPERATURE, "the temperature is unknown"
    elif vitals.temperature_c > limits.temperature_max_c:
        yield Reason.TEMPERATURE, f"{vitals.temperature_c:.1f} °C, limit {limits.temperature_max_c:g} °C"

    if vitals.link_up is False:
        yield Reason.LINK, "the link is down"
    elif vitals.link_kind is not None and vitals.link_kind not in limits.links:
        yield Reason.LINK, f"the link is {vitals.link_kind}, allowed: {', '.join(limits.links)}"
    elif "link" in require and (vitals.link_up is None or vitals.link_kind is None):
        yield Reason.LINK, "whether the link is up, or its kind, is unknown"

    if vitals.metered is None:
        if "metered" in require:
            yield Reason.METERED, "whether the link is metered is unknown"
    elif vitals.metered and not limits.metered_allowed:
        yield Reason.METERED, "the link is metered"

    for used, budget, period in (
        (bytes_today, limits.daily_bytes, "day"),
        (bytes_month, limits.monthly_bytes, "month"),
    ):
        if budget is not None and used >= budget:
            yield Reason.DATA_BUDGET, f"{used:,} B used of the {period}'s {budget:,} B"
            break

    if not limits.allows(now_local):
        yield Reason.TIME_WINDOW, f"{now_local:%a %H:%M} is outside the hours allowed"

    if windows < min_windows:
        yield Reason.SAMPLES, f"{windows:,} training windows, the task asks for {min_windows:,}"
    elif silent:
        # Windows of a machine as it was before its sensor died say nothing of how it is.
        yield Reason.SAMPLES, silent


CLOCK_UNSET_BEFORE = 2024
"""A year before this one is a machine without a clock that has not been told the time yet."""

CLOCK_FAULT = timedelta(days=32)
"""A budget that lies further in the future than this was counted by a clock that was wrong."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes used in the current day and month, local time.

    Turns over at local midnight. A clock that steps back opens no fresh budget: the bytes count for the day
    that was reached already.
    """

    day: str = ""
    """ISO date, as 2025-03-01. Empty before anything was counted."""
    day_bytes: int = 0
    month_bytes: int = 0

    def add(self, count: int, now_local: datetime) -> Budget:
        """With `count` more bytes, sent and received. Raises ValueError for a negative count."""
        if count < 0:
            raise ValueError(f"bytes used since the last count: expected 0 or more, got {count}")
        turned = self._turned(now_local)
        return dataclasses.replace(turned, day_bytes=turned.day_bytes + count, month_bytes=turned.month_bytes + count)

    def used(self, now_local: datetime) -> tuple[int, int]:
        """Bytes used today and this month."""
        turned = self._turned(now_local)
        return turned.day_bytes, turned.month_bytes

    def to_dict(self) -> dict[str, str | int]:
        """As plain values, to be stored."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Budget:
        """What `to_dict` gave. Raises ValueError for anything else."""
        budget = msgspec.convert(stored, cls)
        if budget.day:
            date.fromisoformat(budget.day)
        if min(budget.day_bytes, budget.month_bytes) < 0:
            raise ValueError(f"a stored data budget holds negative bytes: {budget}")
        return budget

    def _turned(self, now_local: datetime) -> Budget:
        today = now_local.date()
        if not self.day:
            return Budget(day=today.isoformat(), day_bytes=self.day_bytes, month_bytes=self.month_bytes)
        counted = date.fromisoformat(self.day)
        back = today < counted
        if today == counted or (back and (today.year < CLOCK_UNSET_BEFORE or counted - today <= CLOCK_FAULT)):
            return self
        same_month = (today.year, today.month) == (counted.year, counted.month)
        return Budget(day=today.isoformat(), month_bytes=self.month_bytes if same_month else 0)


def _minutes(span: str) -> tuple[int, int]:
    """Begin and end in minutes from midnight."""
    begin, end = ((int(part[:2]) * 60 + int(part[3:])) for part in span.split("-"))
    return begin, end
