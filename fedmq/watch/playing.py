"""A script of a machine's day as signal: recordings played, the machine stopped, started, and run at another speed.

    normal:30s, stop:10s, start, inner_race:20s, speed=0.8:5s, inner_race@105:20s

    LABEL[@RECORDING]:TIME    plays recordings of that label in turn, or that one; `healthy` is `normal`
    stop[:TIME]               runs down, and stands still for so long (10 s)
    start[:TIME]              runs up within so long (3 s), and sounds like what is played next
    speed=FACTOR[:TIME]       to another speed, as a share of that of the recordings, within so long (3 s)

Owns the script's words, and how transitions are made. Refuses to know where recordings lie, and who hears them. Pure;
what is drawn (a standing sensor's noise) is drawn from a seed.

How a transition is made, and what it cannot be:

- A speed of s is the recording read s times as fast (band-limited interpolation: Smith 1984, *A flexible sampling-rate
  conversion method*, ICASSP), and s squared times as high, as an unbalance's force is. Orders follow the shaft, as on a
  real machine; resonances do too, which on a real machine stand still. Passing through a critical speed is not in it.
- From one recording to another, and from one's end to its beginning where it is played longer than it is, the two are
  cross-faded within 50 ms at equal power. Windows of a recording that is played twice are the same windows twice: hours
  of it are no more evidence than one pass is.
- A machine that stands is white noise of the sensor, and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Block", "Player", "ScriptError", "Span", "Step", "Take", "parse_script", "whole"]

Floats = NDArray[np.float64]
State = Literal["running", "stopping", "stopped", "starting", "changing"]

STAND_SECONDS = 10.0
RAMP_SECONDS = 3.0
FADE_SECONDS = 0.05
SLOWEST, FASTEST = 0.1, 1.5
TAPS = 16
"""Of the interpolation, on each side at full speed."""
MAX_STEPS = 1000
MAX_SECONDS = 400 * 86_400.0
NOISE_G = 0.001
"""Of a standing machine's sensor, RMS."""
HEALTHY = {"healthy": "normal"}


class ScriptError(ValueError):
    """A script that cannot be played: where, what was expected, what came."""


@dataclass(frozen=True, kw_only=True)
class Take:
    """A recording in memory."""

    label: str
    name: str
    values: Floats
    """`(n, channels)` in g, at the machine's full speed."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One word of a script."""

    kind: Literal["play", "stop", "start", "speed"]
    seconds: float
    label: str = ""
    recording: str = ""
    """Empty: those of the label in turn."""
    factor: float = 1.0
    """Of a change of speed, the speed after it."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """What is truly the matter meanwhile. Seconds count from the beginning of the script."""

    from_at: float
    to_at: float
    state: State
    label: str
    """Of what is heard, also as it runs up and down; empty of a machine that stands."""
    recording: str
    speed: float
    """At its end, as a share of the recordings'."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive samples, `(n, channels)` in g, from one span."""

    values: Floats
    span: Span


_WORD = re.compile(
    r"(?P<word>[A-Za-z0-9_.-]+)(?:=(?P<factor>[0-9.]+))?(?:@(?P<recording>[^,:@=]+))?"
    r"(?::(?P<count>[0-9]+(?:\.[0-9]+)?)(?P<unit>s|m|h))?"
)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_EXPECTED = "expected LABEL:30s, LABEL@RECORDING:30s, stop:10s, start or speed=0.8, with commas between"


def parse_script(text: str) -> tuple[Step, ...]:
    """Raises ScriptError."""
    steps = []
    for part in text.split(","):
        found = _WORD.fullmatch(part.strip())
        if found is None:
            raise ScriptError(f"script: {_EXPECTED}; got {part.strip()[:40]!r}")
        seconds = None if found["count"] is None else float(found["count"]) * _UNITS[found["unit"]]
        steps.append(_step(part.strip(), found, seconds))
    if len(steps) > MAX_STEPS or sum(step.seconds for step in steps) > MAX_SECONDS:
        raise ScriptError(f"script: expected at most {MAX_STEPS:,} parts and {MAX_SECONDS / 86_400:g} days in all")
    return tuple(steps)


def _step(part: str, found: re.Match[str], seconds: float | None) -> Step:
    word, factor, recording = found["word"], found["factor"], found["recording"]
    if (factor is not None) != (word == "speed") or (recording is not None and word in ("stop", "start", "speed")):
        raise ScriptError(f"script: {_EXPECTED}; got {part[:40]!r}")
    if word == "speed":
        try:
            speed = float(factor)
        except ValueError:
            speed = math.nan
        if not SLOWEST <= speed <= FASTEST:
            raise ScriptError(f"script: expected a speed of {SLOWEST} to {FASTEST} times, got {part[:40]!r}")
        return Step(kind="speed", factor=speed, seconds=RAMP_SECONDS if seconds is None else seconds)
    if word == "stop":
        return Step(kind="stop", seconds=STAND_SECONDS if seconds is None else seconds)
    if word == "start":
        return Step(kind="start", seconds=RAMP_SECONDS if seconds is None else seconds)
    if not seconds:
        raise ScriptError(f"script: expected how long to play it, such as {part[:40]}:30s")
    return Step(kind="play", label=HEALTHY.get(word, word), recording=recording or "", seconds=seconds)


def whole(takes: Sequence[Take], rate_hz: float) -> tuple[Step, ...]:
    """A script that plays each recording once, from its beginning to its end."""
    return tuple(
        Step(kind="play", label=take.label, recording=take.name, seconds=len(take.values) / rate_hz) for take in takes
    )


class Player:
    """Plays a script, block by block. `spans` are known beforehand. Raises ScriptError for one that cannot be played.

    `rate_hz` is that of all takes, which have the same channels.
    """

    def __init__(
        self,
        takes: Sequence[Take],
        script: Sequence[Step],
        *,
        rate_hz: float,
        seed: int = 0,
        noise_g: float = NOISE_G,
        ramp_seconds: float = RAMP_SECONDS,
    ) -> None:
        if not takes or not script:
            raise ScriptError("expected a recording and a script, or nothing can be played")
        widths = {take.values.shape[1] for take in takes}
        if len(widths) != 1:
            raise ScriptError(f"expected recordings with as many channels each, got {sorted(widths)}")
        self.rate_hz = rate_hz
        self.channels = widths.pop()
        self._noise_g = noise_g
        self._rng = np.random.default_rng((seed, 0x9EA7))
        fade = round(FADE_SECONDS * rate_hz)
        self._loops = {(take.label, take.name): _Loop(take.values, fade) for take in takes}
        self._parts = _parts(takes, script, ramp_seconds)
        peak = max(float(np.abs(loop.values).max()) for loop in self._loops.values())
        # Two at once, as one fades into the other, and what an interpolation may add.
        self.peak_g = max(1.5 * FASTEST**2 * peak if self._speeds_up() else 1.5 * peak, 6 * noise_g)
        """No sample is higher, or nearly none: the range that a sensor needs."""

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(part.span for part in self._parts)

    @property
    def seconds(self) -> float:
        return self._parts[-1].span.to_at

    def blocks(self, samples: int) -> Iterator[Block]:
        """The whole script, at most so many samples at a time. Twice the same from a player made anew."""
        before: _Loop | None = None
        made = 0
        for part in self._parts:
            count = round(part.span.to_at * self.rate_hz) - made
            loop = None if part.take is None else self._loops[part.take.label, part.take.name]
            fading = before if before is not loop and before is not None and loop is not None else None
            for first in range(0, count, samples):
                n = min(samples, count - first)
                yield Block(values=self._block(part, loop, fading, first, n, count), span=part.span)
            made += count
            before = loop

    def _speeds_up(self) -> bool:
        return any(max(part.speed_from, part.span.speed) > 1 for part in self._parts)

    def _block(self, part: _Part, loop: _Loop | None, fading: _Loop | None, first: int, n: int, count: int) -> Floats:
        at = np.arange(first, first + n)
        speed = part.speed_from + (part.span.speed - part.speed_from) * (at + 1) / count
        level = speed**2
        values = np.zeros((n, self.channels))
        if loop is not None:
            values = loop.read(speed) * level[:, None]
        if fading is not None and first < fading.fade:
            both = min(n, fading.fade - first)
            share = ((at[:both] + 0.5) / fading.fade * (math.pi / 2))[:, None]
            leaving = fading.read(speed[:both]) * level[:both, None]
            values[:both] = values[:both] * np.sin(share) + leaving * np.cos(share)
        # A recording brings its own noise along; the less is left of it, the more is the sensor's own.
        quiet = np.sqrt(np.clip(1.0 - level**2, 0.0, 1.0))[:, None]
        if quiet.any():
            values = values + self._rng.normal(0.0, self._noise_g, values.shape) * quiet
        return values


class _Loop:
    """A recording that goes on for ever, and where in it the player is."""

    def __init__(self, values: Floats, fade: int) -> None:
        n = len(values)
        if n < 4 * TAPS:
            raise ScriptError(f"expected recordings of {4 * TAPS} samples or more, got one of {n}")
        self.fade = fade = min(fade, n // 4)
        self.values = values.astype(np.float64, copy=True)
        share = ((np.arange(fade) + 0.5) / max(fade, 1) * (math.pi / 2))[:, None]
        # Its last samples fade into its first ones, and it goes on behind those.
        self.values[n - fade :] = values[n - fade :] * np.cos(share) + values[:fade] * np.sin(share)
        self._at = 0.0

    def read(self, speed: Floats) -> Floats:
        """As many samples as speeds are given, `(n, channels)`."""
        if (speed == 1.0).all():
            # Exactly the recording: what rounding moves by half a sample, nobody hears.
            first = math.floor(self._at + 0.5 + 1e-6)  # a ramp ends at half a sample
            self._at = self._wrapped(first + len(speed))
            return self.values[self._places(np.arange(first, first + len(speed)))]
        at = self._at + np.concatenate([[0.0], np.cumsum(speed)])
        self._at = self._wrapped(float(at[-1]))
        return self._between(at[:-1], float(speed.max()))

    def _between(self, at: Floats, fastest: float) -> Floats:
        """At fractions of samples, by a windowed sinc; above full speed it also keeps out what would fold back."""
        cutoff = min(1.0, 1.0 / fastest)
        reach = math.ceil(TAPS / cutoff)
        taps = np.arange(-reach + 1, reach + 1)
        whole_part = np.floor(at).astype(np.int64)
        away = taps[None, :] - (at - whole_part)[:, None]
        weights = cutoff * np.sinc(cutoff * away) * (0.5 + 0.5 * np.cos(np.pi * np.clip(away / reach, -1.0, 1.0)))
        places = self._places(whole_part[:, None] + taps[None, :])
        values: Floats = np.einsum("nt,ntc->nc", weights, self.values[places])
        return values

    def _places(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        n, period = len(self.values), len(self.values) - self.fade
        return np.where(at < n, np.abs(at), self.fade + (at - n) % period)

    def _wrapped(self, at: float) -> float:
        n, period = len(self.values), len(self.values) - self.fade
        return at if at < n else self.fade + (at - n) % period


@dataclass(frozen=True, kw_only=True)
class _Part:
    span: Span
    speed_from: float
    take: Take | None


class _Parts:
    """Spans as they are put one behind the other."""

    def __init__(self, takes: Sequence[Take]) -> None:
        self._takes = takes
        self._turns: dict[str, int] = {}
        self.parts: list[_Part] = []
        self.at = 0.0
        self.speed = 1.0
        """While it runs; what it comes back to after a stop."""
        self.running = True

    def add(self, state: State, seconds: float, take: Take | None, speed_from: float, speed: float) -> None:
        if not seconds:
            return
        span = Span(
            from_at=self.at,
            to_at=self.at + seconds,
            state=state,
            label=take.label if take else "",
            recording=take.name if take else "",
            speed=speed,
        )
        self.parts.append(_Part(span=span, speed_from=speed_from, take=take))
        self.at += seconds

    def take_of(self, step: Step) -> Take:
        fit = [one for one in self._takes if one.label == step.label and step.recording in ("", one.name)]
        if not fit:
            there = sorted({one.label for one in self._takes})
            which = f" named {step.recording!r}" if step.recording else ""
            names = [one.name for one in self._takes if one.label == step.label]
            told = f"of {step.label}: {', '.join(names[:20])}" if names else f"with the labels {', '.join(there[:20])}"
            raise ScriptError(f"script: expected a recording of {step.label!r}{which}, there are those {told}")
        turn = self._turns.get(step.label, 0)
        self._turns[step.label] = turn + 1
        return fit[turn % len(fit)]


def _parts(takes: Sequence[Take], script: Sequence[Step], ramp_seconds: float) -> tuple[_Part, ...]:
    """The script's words to spans, with what is heard in each."""
    made = _Parts(takes)
    chosen = [made.take_of(step) if step.kind == "play" else None for step in script]
    heard: Take | None = None
    for number, step in enumerate(script):
        later = next((take for take in chosen[number:] if take is not None), None)
        if step.kind == "play":
            if not made.running:
                raise ScriptError(f"script: expected start before {step.label!r}, for the machine stands still there")
            heard = chosen[number]
            made.add("running", step.seconds, heard, made.speed, made.speed)
        elif step.kind == "stop":
            if made.running and heard is not None:
                made.add("stopping", ramp_seconds, heard, made.speed, 0.0)
            made.add("stopped", step.seconds, None, 0.0, 0.0)
            made.running = False
        elif step.kind == "start":
            heard = later or heard
            if made.running and made.parts:
                raise ScriptError("script: expected stop before start, for the machine runs there already")
            if heard is None:
                raise ScriptError("script: expected something to play after start, such as normal:30s")
            made.add("starting", step.seconds, heard, 0.0, made.speed)
            made.running = True
        else:
            heard = heard or later
            if made.running and made.parts and heard is not None:
                made.add("changing", step.seconds, heard, made.speed, step.factor)
            made.speed = step.factor
    if not made.parts:
        raise ScriptError("script: expected something to play, such as normal:30s")
    return tuple(made.parts)
