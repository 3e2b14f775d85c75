"""How fast a machine turns against how it turned before, from its vibration alone.

Owns the estimate, and the bands of speed that a machine without set ones falls into. Pure; refuses to know what follows
from a change of speed.

On a logarithmic axis of frequency another speed is a shift: all that hangs on the shaft (its orders, a mesh's, a
bearing's) moves by the logarithm of the ratio, and the shift at which two spectra agree best is that logarithm (Combet,
Zimroz 2009, "A new method for the estimation of the instantaneous speed relative fluctuation in a vibration signal
based on the short time scale transform", Mech. Syst. Signal Process. 23(4), 1382-1397). What does not turn, the
structure's broad resonances, is taken out first: of a spectrum only the lines count that stand out of what is around
them. No geometry, no nominal speed and no calibrated clock are needed. Where two spectra do not agree at any shift,
nothing is said: of a fault that drowns all lines, of a machine that stands, of a speed beyond `FARTHEST`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["BAND_WIDTH", "FARTHEST", "Shift", "Turn", "Turning", "lines", "shift"]

Lines = NDArray[np.uint8]
"""Of a spectrum: how far it stands out, bin by bin of `STEP` on the logarithmic axis."""

STEP = 0.004
LOWEST_HZ, HIGHEST_HZ = 10.0, 5000.0
AROUND = 0.12
"""On either side, of which the median is what a line stands out of,"""
FLOOR_BINS = 8
"""looked for once in so many bins."""
HIGHEST = 4.0
"""Natural logarithm of power: what stands out more counts as this."""
SCALE = 255 / HIGHEST
PADDED = 1 << 15
LEAST_LINES_BELOW = 4
"""Lines of the transform below which a bin says nothing."""
FARTHEST = 0.55
"""Natural logarithm: 0.58 to 1.73 times the speed. Farther away harmonics meet others: at twice the speed
3 is where 6 was."""
LEAST_LIKENESS = 0.35
LEAST_LEAD = 0.12
"""Correlation at the best shift, and what it is above that at any other. Steady windows of healthy machines have 0.7 to
0.96; of CWRU's faults, against a healthy window at another load, 0.39 to 0.76; noise 0.2."""
BESIDE = 0.03
"""What is nearer than this to the best shift is the same peak."""
NEARLY = 0.8
MOVING = 0.004
MOVING_WIDTHS = 0.6
"""What the halves of a window differ by at least."""
ENOUGH = 30
"""Windows of a reference; it stands then."""
BAND_WIDTH = math.log(1.1)
BAND_HELD = 0.6
"""Of a band's width: within so much of its middle a machine stays in it."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What one window says."""

    lines: bytes
    ratio: float | None
    """Natural logarithm of the speed over that of the machine's first window; None where the lines do not say."""
    moving: bool
    """Whether the speed changed within the window."""


class _State(msgspec.Struct, kw_only=True):
    bins: int = 0
    last: bytes = b""
    """Lines of the window before,"""
    last_ratio: float = 0.0
    """and its ratio, as far as known."""
    summed: bytes = b""
    """Lines of the windows that were learnt, added up (uint16)."""
    learnt: int = 0
    normal_ratio: float = 0.0
    """Where the reference lies."""
    hz: float | None = None
    """Turns a second at ratio 0, once the shaft's own lines or a sensor have told it."""
    band: int = 0


class Turning:
    """One sensor's. `step` takes its windows in order; `learn` those of them that are normal."""

    def __init__(self, memory: bytes | None = None) -> None:
        """`memory`: what an earlier one's `dump` gave. Raises msgspec.MsgspecError."""
        self._state = _State() if memory is None else msgspec.msgpack.decode(memory, type=_State)
        self._ratio: float | None = None

    def step(self, signal: NDArray[np.float64], rate_hz: float, measured_hz: float | None = None) -> Turn:
        """The next window, `(n, channels)`."""
        state = self._state
        seen = lines(signal, rate_hz)
        if len(seen) != state.bins:
            self._state = state = _State(bins=len(seen))
        known = self._against(seen) if len(seen) else None
        half = len(signal) // 2
        moving = len(seen) > 0 and self._moves(lines(signal[:half], rate_hz), lines(signal[half:], rate_hz))
        if measured_hz:
            # What is measured wins; the first one is where ratios count from, if nothing was known before.
            state.hz = state.hz or measured_hz / math.exp(known or 0.0)
            known = math.log(measured_hz / state.hz)
        state.last = seen.tobytes()
        state.last_ratio = state.last_ratio if known is None else known
        self._ratio = known
        return Turn(lines=state.last, ratio=known, moving=moving)

    def shaft_hz(self) -> float | None:
        """Of the last window: what was confirmed once, and the ratio since; None where either is not known."""
        state = self._state
        return None if state.hz is None or self._ratio is None else state.hz * math.exp(self._ratio)

    def band(self) -> str:
        """Of the last window, or the last one whose speed is known: "all" about the speed at which normal was learnt
        first, else how many times that. A speed between two bands stays in the one where it was."""
        state = self._state
        if not state.learnt:
            return _name(0)
        away = (state.last_ratio - state.normal_ratio) / BAND_WIDTH
        if abs(away - state.band) > BAND_HELD:
            state.band = round(away)
        return _name(state.band)

    def is_usual(self) -> bool:
        """Whether `band` is the one at which normal was learnt first, or would be if nothing is learnt yet."""
        return self.band() == _name(0)

    def learn(self, turn: Turn, shaft_hz: float | None = None) -> None:
        """The window is normal. The first one says where the reference lies; those at that speed make it, until there
        are enough. `shaft_hz`: turns a second, where its own lines or a sensor told them."""
        state = self._state
        if state.hz is None and shaft_hz is not None and turn.ratio is not None:
            state.hz = shaft_hz / math.exp(turn.ratio)
        if state.learnt >= ENOUGH or len(turn.lines) != state.bins:
            return
        if not state.learnt:
            state.normal_ratio = state.last_ratio if turn.ratio is None else turn.ratio
            state.summed = np.zeros(state.bins, np.uint16).tobytes()
        elif turn.ratio is None or abs(turn.ratio - state.normal_ratio) > BESIDE:
            return
        moved = 0 if turn.ratio is None else round((turn.ratio - state.normal_ratio) / STEP)
        seen = np.roll(np.frombuffer(turn.lines, np.uint8), -moved)
        state.summed = (np.frombuffer(state.summed, np.uint16) + seen).astype(np.uint16).tobytes()
        state.learnt += 1

    @property
    def learns(self) -> bool:
        """Whether the reference is still being made."""
        return self._state.learnt < ENOUGH

    def dump(self) -> bytes:
        return msgspec.msgpack.encode(self._state)

    def _against(self, seen: Lines) -> float | None:
        """What is normal tells best; before there is such, and where it does not, the window before does."""
        state = self._state
        if state.learnt:
            moved = shift(seen, np.frombuffer(state.summed, np.uint16))
            if moved is not None:
                return state.normal_ratio + moved.by
        if not state.last:
            return 0.0
        moved = shift(seen, np.frombuffer(state.last, np.uint8))
        return None if moved is None else state.last_ratio + moved.by

    def _moves(self, first: Lines, second: Lines) -> bool:
        """By the same reference for both halves: what they share with each other is less, in a short window."""
        state = self._state
        known = np.frombuffer(state.summed, np.uint16) if state.learnt else np.frombuffer(state.last, np.uint8)
        if len(known) != len(first):
            return False
        before, after = shift(first, known), shift(second, known)
        if before is None or after is None:
            return False
        return abs(after.by - before.by) > max(MOVING, MOVING_WIDTHS * max(before.width, after.width))


def lines(signal: NDArray[np.float64], rate_hz: float) -> Lines:
    """How far a window's spectrum stands out of what is around it, `(bins,)`; no bins where it is too short.

    `signal` is `(n,)` or `(n, channels)`, in any unit: the channels count alike.
    """
    channels = np.atleast_2d(np.asarray(signal, dtype=np.float64).T)
    samples = channels.shape[1]
    highest_hz = min(HIGHEST_HZ, 0.45 * rate_hz)
    bins = int(math.log(highest_hz / LOWEST_HZ) / STEP) if highest_hz > LOWEST_HZ else 0
    around = int(AROUND / STEP)
    if bins <= 4 * around or samples < 64:
        return np.zeros(0, np.uint8)
    # Padding puts points between the lines of a short window; a long one has enough of its own.
    size = (4 if samples <= PADDED else 1) << (samples - 1).bit_length()
    window = np.hanning(samples)
    power = np.zeros(size // 2 + 1)
    for channel in channels:
        one = np.abs(np.fft.rfft((channel - channel.mean()) * window, size)) ** 2
        power += one / max(float(one.sum()), 1e-300)
    # The mean of what lies in each bin, also where a bin is narrower than a line.
    edges = LOWEST_HZ * np.exp((np.arange(bins + 1) - 0.5) * STEP) * size / rate_hz
    summed = np.interp(edges, np.arange(len(power) + 1) - 0.5, np.concatenate([[0.0], np.cumsum(power)]))
    level = np.log(np.diff(summed) / np.diff(edges) + 1e-12)
    padded = np.pad(level, around, mode="edge")
    # The floor is smooth: it is looked for at some bins, and is on straight lines between them.
    places = np.arange(0, bins, FLOOR_BINS)
    floors = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * around + 1)[::FLOOR_BINS], axis=1)
    floor = np.interp(np.arange(bins), places, floors)
    out = np.clip(level - floor, 0.0, HIGHEST)
    first = math.log(max(LEAST_LINES_BELOW * rate_hz / samples / LOWEST_HZ, 1.0)) / STEP
    out[: math.ceil(first)] = 0.0
    return np.asarray(np.rint(out * SCALE), dtype=np.uint8)


class Shift(NamedTuple):
    """Natural logarithm of the ratio of two windows' speeds,"""

    by: float
    width: float
    """and on how wide a range of it they agree nearly as well: low lines of a short window are broad on this axis."""


def shift(seen: NDArray[np.unsignedinteger], known: NDArray[np.unsignedinteger]) -> Shift | None:
    """By two windows' `lines`; None where they do not agree enough."""
    if len(seen) != len(known) or not len(seen):
        return None
    left, right = (one - one.mean() for one in (seen.astype(np.float64), known.astype(np.float64)))
    most = int(FARTHEST / STEP)
    likeness = _likeness(left, right, np.arange(-most, most + 1))
    best = int(likeness.argmax())
    beside = round(BESIDE / STEP)
    others = np.concatenate([likeness[: max(0, best - beside)], likeness[best + beside + 1 :]])
    if likeness[best] < LEAST_LIKENESS or likeness[best] - others.max() < LEAST_LEAD:
        return None
    below = np.flatnonzero(likeness < NEARLY * likeness[best])
    from_, to = below[below < best].max(initial=-1), below[below > best].min(initial=len(likeness))
    return Shift((best - most + _between(likeness, best)) * STEP, float(to - from_ - 1) * STEP)


def _likeness(left: NDArray[np.float64], right: NDArray[np.float64], moved: NDArray[np.int64]) -> NDArray[np.float64]:
    """Correlation of what overlaps when the one is moved over the other so far."""
    n = len(left)
    size = 2 << (n - 1).bit_length()
    products = np.fft.irfft(np.fft.rfft(left, size) * np.conj(np.fft.rfft(right, size)), size)[moved % size]
    squares = [np.concatenate([[0.0], np.cumsum(one**2)]) for one in (left, right)]
    overlaps = [
        one[n + np.minimum(0, way)] - one[np.maximum(0, way)] for one, way in zip(squares, (moved, -moved), strict=True)
    ]
    norms = np.sqrt(overlaps[0] * overlaps[1])
    return np.asarray(np.divide(products, norms, out=np.zeros(len(moved)), where=norms > 0))


def _between(values: NDArray[np.float64], best: int) -> float:
    """Where a parabola through the highest value and its neighbours has its top, from the highest."""
    if not 0 < best < len(values) - 1:
        return 0.0
    before, middle, after = values[best - 1 : best + 2].tolist()
    bend = before - 2 * middle + after
    return 0.0 if bend >= 0 else 0.5 * (before - after) / bend


def _name(band: int) -> str:
    return "all" if band == 0 else f"{math.exp(band * BAND_WIDTH):.2f} x speed"
