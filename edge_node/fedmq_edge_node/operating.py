"""Whether a machine stands, starts, runs or stops, and in which band of speed and load it runs.

Owns the state of one machine, from the speed where there is one, else from the level of its vibration. Pure: time and
level come in. Refuses to know what is judged in which state; its rules:

- Only RUNNING and steady windows are worth training on and scoring: `Operating.usable`. A machine that stands is
  healthy as far as anybody can tell, and a run-up passes resonances that it never works at.
- Two limits with a gap between (hysteresis): a machine runs from the upper one on, and stands below the lower one. In
  between it does what it did.
- Every change takes `dwell_seconds`. A machine that is seen for the first time is STARTING first: nobody knows how
  long it has run.
- A window is steady when it is about as loud, and as fast (measured, or by its lines: `turning`), as the one before,
  when its speed does not change within it, and no ramp led to it: a change over the last `ramp_seconds` in many small
  steps is a machine that speeds up, slows down or takes on load. After one sudden
  step one window is left out, not more: a fault that breaks out is such a step, and must not be hidden.
- What the machine's own quiet and running levels are is set, or learnt from a histogram of levels (the lowest cluster,
  with nothing above it for a while, is quiet). A quiet level above `quiet_at_most_g` is not believed: a machine
  that never stops, and gets louder, would otherwise stand by its healthy days' level.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import numpy as np
from fedmq_protocol.settings import Table
from msgspec import Meta
from numpy.typing import NDArray

__all__ = ["Operating", "OperatingSettings", "State", "level_g", "tacho_hz"]


class State(StrEnum):
    """What a machine does."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


_Edge = Annotated[float, Meta(gt=0, le=1e9)]


@dataclass(frozen=True, kw_only=True)
class OperatingSettings(Table):
    """When the machine counts as running, and in which bands it has thresholds of its own."""

    running_from_g: Annotated[
        float | None,
        Meta(
            gt=0,
            le=1000,
            examples=[0.03],
            description="RMS of the vibration, in g, from which on it runs. Without it, and without a speed, the level"
            " is learnt from when it stood; until it has stood once, it runs from unlearnt_running_from_g on.",
        ),
    ] = None
    stopped_below_g: Annotated[
        float | None,
        Meta(gt=0, le=1000, examples=[0.015], description="RMS in g below which it stands; needs running_from_g."),
    ] = None
    unlearnt_running_from_g: Annotated[
        float,
        Meta(gt=0, le=1000, description="What takes the place of running_from_g while nothing is learnt. In g."),
    ] = 0.01
    quiet_at_most_g: Annotated[
        float,
        Meta(gt=0, le=1000, description="No learnt level of standing still is believed above this one. In g."),
    ] = 0.03
    running_from_rpm: Annotated[
        float,
        Meta(
            gt=0,
            le=200_000,
            description="With a measured speed: turns a minute from which on it runs. It stands below half.",
        ),
    ] = 60.0
    dwell_seconds: Annotated[
        float,
        Meta(ge=0, le=86_400, description="Seconds that a new state must last before it holds."),
    ] = 10.0
    steady_level_pct: Annotated[
        float,
        Meta(gt=0, le=1000, description="Change of level from window to window, in per cent, that is no transient."),
    ] = 40.0
    steady_speed_pct: Annotated[
        float,
        Meta(
            gt=0,
            le=100,
            description="Change of speed, measured or told by the vibration, that is no transient. In per cent.",
        ),
    ] = 3.0
    ramp_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="Seconds over which small steps add up to a transient. A fault that grows as fast is seen so"
            " much later.",
        ),
    ] = 20.0
    speed_bands_rpm: Annotated[
        tuple[_Edge, ...],
        Meta(
            max_length=16,
            examples=[[1000, 1500]],
            description="Edges between bands of speed, in turns a minute: each band has thresholds of its own. Without"
            " them bands are 10 % wide about the speed at which normal was learnt first.",
        ),
    ] = ()
    load_bands: Annotated[
        tuple[_Edge, ...],
        Meta(
            max_length=16,
            examples=[[20, 60]],
            description="Edges between bands of load, in the unit in which the load is told.",
        ),
    ] = ()

    def check(self) -> Iterator[tuple[str, str]]:
        if self.stopped_below_g is not None and self.running_from_g is None:
            yield "running_from_g", "required where there is a stopped_below_g"
        elif (
            self.stopped_below_g is not None
            and self.running_from_g is not None
            and self.stopped_below_g > self.running_from_g
        ):
            yield "stopped_below_g", f"expected at most running_from_g ({self.running_from_g:g})"
        for key in ("speed_bands_rpm", "load_bands"):
            edges = getattr(self, key)
            if any(upper <= lower for lower, upper in pairwise(edges)):
                yield key, f"expected each edge above the one before, got {list(edges)}"


DECADE_BINS = 20
"""Bins of a decade of level: 12 % each."""
LOWEST_G, HIGHEST_G = 1e-6, 1e4
ENOUGH_WINDOWS = 20
"""Quiet and running: with fewer of either nothing is learnt."""
HALF_LIFE_WINDOWS = 20_000
"""Windows after which what was learnt counts half: sensors move, and neighbours come and go."""
VALLEY_BINS = 4
"""Between quiet and running: a factor of 1.6 with next to nothing in it."""
ON_OVER_QUIET, OFF_OVER_QUIET = 3.0, 2.0
"""Of the quiet level, and no more than geometrically half-way to the running level. Tied to the quiet level,
which a fault does not change, and not to the running level, which it does."""


MOST_PAST = 32
"""Windows of the past that a ramp is looked for in, however many there were."""
RAMP_PART = 4
"""Of what a single step may be: half a ramp is seen between the halves, and their means scatter less than windows."""
LEAST_PULSES = 3
MOST_JITTER = 0.5
"""Spread of the times between pulses, over their mean. Of noise it is about 1."""


class _Seen(NamedTuple):
    at: float
    level: float
    """Natural logarithm of the level."""
    speed: float | None
    """Natural logarithm of the speed."""
    turned: float | None = None
    """The same of the ratio of speeds that the vibration tells."""


class Operating:
    """One machine's state. `memory`: what an earlier one's `memory()` gave."""

    def __init__(self, settings: OperatingSettings | None = None, memory: Mapping[str, Any] | None = None) -> None:
        self._settings = settings or OperatingSettings()
        self._counts = np.zeros(round(math.log10(HIGHEST_G / LOWEST_G)) * DECADE_BINS)
        self._state = State.STARTING
        self._since: float | None = None
        """Since when the machine is on, or off, without a break."""
        self._on = False
        self._past: list[_Seen] = []
        """Of the last `ramp_seconds`, and at least the window before."""
        self._steady = False
        self._levels: tuple[float, float] | None = None
        if memory is not None:
            self._remember(memory)

    @property
    def state(self) -> State:
        return self._state

    @property
    def steady(self) -> bool:
        """Whether the last window was like the one before it."""
        return self._steady

    @property
    def usable(self) -> bool:
        """Whether the last window may train and be scored."""
        return self._state is State.RUNNING and self._steady

    def step(
        self,
        at: float,
        level_g: float,
        speed_hz: float | None = None,
        *,
        turned: float | None = None,
        moving: bool = False,
    ) -> State:
        """The next window, which ends at `at` (seconds): its RMS in g about its mean, and its measured speed.

        `turned`: the natural logarithm of its speed over some other one, the same for all windows, by `turning`;
        `moving`: whether its speed changed meanwhile. Raises ValueError for a level that is none.
        """
        if not (math.isfinite(level_g) and level_g >= 0):
            raise ValueError(f"level_g: expected a finite number of at least 0, got {level_g}")
        first = self._since is None
        on = self._is_on(level_g, speed_hz)
        if first or on != self._on:
            self._since = at
        speed = speed_hz and math.log(max(speed_hz, LOWEST_G))
        seen = _Seen(at, math.log(max(level_g, LOWEST_G)), speed, None if moving else turned)
        self._steady = not first and not moving and on == self._on and self._is_steady(seen)
        self._on = on
        self._keep(seen)
        self._learn(level_g)
        assert self._since is not None
        lasting = at - self._since >= self._settings.dwell_seconds and not first
        if on and self._state is not State.RUNNING:
            self._state = State.RUNNING if lasting and self._steady else State.STARTING
        elif not on and self._state is not State.STOPPED:
            self._state = State.STOPPED if lasting else State.STOPPING
        return self._state

    def band(self, speed_hz: float | None = None, load: float | None = None) -> str:
        """Name of the band of speed and load; "all" where there is none. What is unknown is in no band."""
        parts = []
        for word, edges, value in (
            ("speed", self._settings.speed_bands_rpm, None if speed_hz is None else speed_hz * 60.0),
            ("load", self._settings.load_bands, load),
        ):
            if edges and value is not None:
                parts.append(f"{word}-{bisect.bisect_right(edges, value) + 1}")
        return " ".join(parts) or "all"

    def levels(self) -> tuple[float, float] | None:
        """Learnt levels of standing still and of running, in g; None until both have been seen often enough."""
        return self._levels

    def memory(self) -> dict[str, Any]:
        """All that must survive a restart, as JSON holds it."""
        return {
            "state": self._state.value,
            "since": self._since,
            "on": self._on,
            "past": [list(seen) for seen in self._past],
            "steady": self._steady,
            "counts": {str(place): float(self._counts[place]) for place in np.flatnonzero(self._counts).tolist()},
        }

    def _remember(self, memory: Mapping[str, Any]) -> None:
        self._state = State(memory["state"])
        self._since, self._on = memory["since"], memory["on"]
        self._past, self._steady = [_Seen(*seen) for seen in memory["past"]], memory["steady"]
        for place, count in memory["counts"].items():
            self._counts[int(place)] = count
        self._levels = _levels(self._counts, self._settings.quiet_at_most_g)

    def _is_on(self, level_g: float, speed_hz: float | None) -> bool:
        if speed_hz is not None:
            upper = self._settings.running_from_rpm / 60.0
            return speed_hz >= (upper / 2 if self._on else upper)
        lower_g, upper_g = self.limits()
        return level_g >= (lower_g if self._on else upper_g)

    def limits(self) -> tuple[float, float]:
        """Level below which it stands, and from which on it runs, in g: as set, else learnt, else unlearnt."""
        settings = self._settings
        upper = settings.running_from_g
        if upper is None and self._levels is not None:
            quiet, running = self._levels
            half = math.sqrt(running / quiet)
            return quiet * min(OFF_OVER_QUIET, half / 1.2), quiet * min(ON_OVER_QUIET, half * 1.2)
        if upper is None:
            upper = settings.unlearnt_running_from_g
        return settings.stopped_below_g or upper / 1.5, upper

    def _is_steady(self, seen: _Seen) -> bool:
        settings = self._settings
        recent = [*self._past, seen]
        level_limit = math.log(1 + settings.steady_level_pct / 100)
        if not _settled([one.level for one in recent], level_limit):
            return False
        speed_limit = math.log(1 + settings.steady_speed_pct / 100)
        measured = [one.speed for one in recent if one.speed is not None]
        turned = [one.turned for one in recent if one.turned is not None]
        return all(len(every) < 2 or _settled(every, speed_limit) for every in (measured, turned))

    def _keep(self, seen: _Seen) -> None:
        settings = self._settings
        last = self._past[-2].at if len(self._past) > 1 else -math.inf
        if seen.at - last < settings.ramp_seconds / MOST_PAST:
            # Many windows a second: the newest takes the last one's place.
            self._past.pop()
        recent = [one for one in self._past if one.at > seen.at - settings.ramp_seconds]
        self._past = [*recent[-MOST_PAST:], seen]

    def _learn(self, level_g: float) -> None:
        decades = math.log10(max(level_g, LOWEST_G) / LOWEST_G)
        self._counts *= 0.5 ** (1 / HALF_LIFE_WINDOWS)
        self._counts[min(int(decades * DECADE_BINS), len(self._counts) - 1)] += 1.0
        self._levels = _levels(self._counts, self._settings.quiet_at_most_g)


def _settled(logarithms: list[float], limit: float) -> bool:
    """Whether the last step is within the limit, and no ramp led to it.

    A ramp goes beyond the limit between lowest and highest, or beyond a part of it between the older half's mean and
    the newer one's; but where one step makes half of it, it is a step, or the scatter of windows.
    """
    steps = [abs(after - before) for before, after in pairwise(logarithms)]
    if steps[-1] > limit:
        return False
    span = max(logarithms) - min(logarithms)
    half = len(logarithms) // 2
    drift = abs(sum(logarithms[-half:]) - sum(logarithms[:half])) / half
    return (span <= limit and drift <= limit / RAMP_PART) or max(steps) >= span / 2


def _levels(counts: NDArray[np.float64], quiet_at_most_g: float) -> tuple[float, float] | None:
    """Quiet and running level from the histogram: the lowest cluster that ends in a valley, and what lies above it."""
    peak, held, empty = 0.0, 0.0, 0
    for place, count in enumerate(counts.tolist()):
        peak, held = max(peak, count), held + count
        empty = empty + 1 if count <= peak / 10 else 0
        if held < ENOUGH_WINDOWS or empty < VALLEY_BINS:
            continue
        quiet = _median_g(counts[: place + 1])
        above = counts[place + 1 :]
        if quiet > quiet_at_most_g or above.sum() < ENOUGH_WINDOWS:
            return None
        return quiet, _median_g(above, place + 1)
    return None


def _median_g(counts: NDArray[np.float64], first: int = 0) -> float:
    """Median of the histogram's bins from `first` on, in g."""
    place = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    return float(LOWEST_G * 10 ** ((first + place + 0.5) / DECADE_BINS))


def level_g(signal: NDArray[np.float64]) -> float:
    """RMS in g about the mean of the loudest channel; `signal` is `(n,)` or `(n, channels)`."""
    return float(np.max(np.std(signal, axis=0)))


def tacho_hz(signal: NDArray[np.float64], rate_hz: float, pulses_per_turn: float = 1.0) -> float | None:
    """Turns a second from a tacho's pulses, `(n,)`: rising edges, with hysteresis, between the first and the last.

    0 where nothing moves; None where there are too few pulses, or none that come evenly: noise, or a loose cable.
    """
    low, high = float(np.min(signal)), float(np.max(signal))
    if high <= low:
        return 0.0
    # A pulse has begun above two thirds of the range, and ended below one third: noise on its flanks counts once.
    marks = np.where(signal > low + (high - low) * 2 / 3, 1, np.where(signal < low + (high - low) / 3, -1, 0))
    places = np.flatnonzero(marks)
    rising = places[1:][(marks[places][1:] == 1) & (marks[places][:-1] == -1)]
    if len(rising) < LEAST_PULSES:
        return None
    between = np.diff(rising)
    if between.std() > MOST_JITTER * between.mean():
        return None
    return float(rate_hz / between.mean() / pulses_per_turn)
