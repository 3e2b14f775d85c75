"""What a machine's vibration says before anything is learnt: velocity in zones, and lines of its bearing's defects.

Owns the measuring, from acceleration in g. Refuses to know time: one stretch of signal comes in, and its condition goes
out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmq_edge_node.machines import BALL, CAGE, INNER, Bearing, Machine

__all__ = ["LEAST_SAMPLES", "LEAST_TURNS", "Condition", "measure", "suspected", "zone"]

G_MM_S2 = 9806.65
"""Standard gravity in mm/s2."""
VELOCITY_BAND_HZ = (10.0, 1000.0)
LEAST_LINES = 3
"""Of the spectrum below the velocity's band: with fewer, the integration by 1/f2 is wrong by more than 1 %."""
LEAST_SAMPLES = 64
LEAST_TURNS = 25
"""Turns of the shaft in a stretch, below which a bearing's lines cannot be told from the shaft's. Twice as many are
better: a line's height grows with the root of the time."""
HARMONICS = 3
SLIP = 0.02
"""Search on either side of a defect's rate: elements slip by up to so much."""
ENVELOPE_FROM_HZ = 500.0
ENVELOPE_FROM_ORDER = 10.0
"""The band whose envelope is taken begins at the higher of the two, in Hz and in turns of the shaft, and ends at half
the sampling rate. Below lie the shaft's own harmonics. A fixed band, and no search for the best one: on the CWRU
recordings narrower bands showed races about as high, and one of them the healthy bearing half as high again."""
SHAFT_LINES = 1.5
"""Lines on either side of a multiple of the shaft's rate that are left out."""
LEAST_FLOOR_LINES = 20
SHAFT_ORDERS = 3
SPEED_ERROR = 0.04
SHAFT_HEIGHT = 6.0
"""Search for the shaft on either side of its stated speed, by so many of its lines, which must stand out so far."""
LEAST_HEIGHT = 0.1
FLOOR = 1e-12


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One stretch of signal, measured. Of several channels the highest value of each."""

    velocity_mm_s: float
    """RMS of the velocity in `velocity_band_hz`."""
    velocity_band_hz: tuple[float, float]
    """10 to 1,000 Hz, or what of it the stretch's length and the sampling rate let through. Empty (low = high) where
    that is nothing: the velocity is 0 then, and says nothing."""
    acceleration_rms_g: float
    kurtosis: float
    """Of noise 3."""
    crest: float
    defects: dict[str, float] = field(default_factory=dict)
    """By where: height of the bearing's line in the envelope's spectrum over what is around it; 1 is nothing. Empty
    where bearing or speed is unknown; a line that the stretch is too short to tell from the shaft's is left out."""
    sidebands: dict[str, float] = field(default_factory=dict)
    """The same of the lines beside these: of the inner race at the shaft's rate, of a ball at the cage's. Each passes
    the load zone as often. They confirm, and do not decide: a load that is never negative keeps the line itself the
    highest."""
    shaft_hz: float | None = None
    """Turns a second that the lines were looked for by: as found in the vibration, else as it was told."""
    shaft_found: bool = False
    """Whether the shaft's own lines say so; a measured speed is not looked for."""

    @property
    def complete(self) -> bool:
        """Whether the velocity is of the whole band from 10 to 1,000 Hz. If not, it is a lower bound."""
        return self.velocity_band_hz == VELOCITY_BAND_HZ


def measure(
    signal: NDArray[np.float64],
    rate_hz: float,
    shaft_hz: float | None = None,
    bearing: Bearing | None = None,
    *,
    speed_measured: bool = False,
) -> Condition:
    """Acceleration in g, `(n,)` or `(n, channels)` float64, measured. Raises ValueError for what cannot be.

    Unless the speed was measured, the shaft is looked for within 4 % of it. For a bearing's lines take a second or
    more, at one speed: two to ten are best.
    """
    channels = np.atleast_2d(np.asarray(signal, dtype=np.float64).T)
    if channels.ndim != 2 or channels.shape[1] < LEAST_SAMPLES or not len(channels):
        raise ValueError(f"signal: expected at least {LEAST_SAMPLES} samples of a channel or more, got {signal.shape}")
    if not np.isfinite(channels).all():
        raise ValueError("signal: expected finite accelerations in g, got some that are not")
    if not 0 < rate_hz < 1e9:
        raise ValueError(f"rate_hz: expected a sampling rate above 0, got {rate_hz:g}")
    centred = channels - channels.mean(axis=1, keepdims=True)
    power = np.maximum(np.mean(centred**2, axis=1), FLOOR**2)
    velocity, band_hz = _velocity(centred, rate_hz)
    defects: dict[str, float] = {}
    sidebands: dict[str, float] = {}
    found_hz: float | None = None
    if bearing is not None and shaft_hz and centred.shape[1] / rate_hz * shaft_hz >= LEAST_TURNS:
        if not speed_measured:
            found_hz = _turning_hz(centred, rate_hz, shaft_hz)
            shaft_hz = found_hz or shaft_hz
        every = [_defects(channel, rate_hz, shaft_hz, bearing) for channel in centred]
        defects = {where: max(one[where] for one, _ in every) for where in every[0][0]}
        sidebands = {where: max(one[where] for _, one in every) for where in every[0][1]}
    return Condition(
        velocity_mm_s=float(velocity.max()),
        velocity_band_hz=band_hz,
        acceleration_rms_g=float(np.sqrt(power.max())),
        kurtosis=float(np.max(np.mean(centred**4, axis=1) / power**2)),
        crest=float(np.max(np.abs(centred).max(axis=1) / np.sqrt(power))),
        defects=defects,
        sidebands=sidebands,
        shaft_hz=shaft_hz,
        shaft_found=found_hz is not None,
    )


def zone(velocity_mm_s: float, machine: Machine) -> str | None:
    """One of A to D, or None where the machine has no limits. A limit itself belongs to the better zone."""
    limits = machine.zone_limits
    if limits is None:
        return None
    return "ABCD"[sum(velocity_mm_s > limit for limit in limits)]


def suspected(condition: Condition, machine: Machine) -> tuple[str, float] | None:
    """Where the bearing's defect is, and its line's height; None while no line reaches the machine's `defect_limit`.

    The highest line says where. A ball's defect meets the load zone once for each turn of the cage, whose line then
    stands as high: beside a ball the cage is not meant.
    """
    over = {where: height for where, height in condition.defects.items() if height >= machine.defect_limit}
    if BALL in over:
        over.pop(CAGE, None)
    if not over:
        return None
    where = max(over, key=over.__getitem__)
    return where, over[where]


def _velocity(centred: NDArray[np.float64], rate_hz: float) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """RMS in mm/s of each of `(channels, samples)`, and the band that it is of.

    Integration divides a line's power by (2 pi f)^2. A Hann window spreads a line over its neighbours, where the
    divisor is another one: with k = f/df, the weights 1/k^2 - 1/k^4 + (5/3)/k^6 take that back, from the second and
    fourth moments of the window's own lines (1/3 each), for a line on a bin or between two.
    """
    samples = centred.shape[1]
    line_hz = rate_hz / samples
    low = max(VELOCITY_BAND_HZ[0], LEAST_LINES * line_hz)
    high = min(VELOCITY_BAND_HZ[1], rate_hz / 2.56)
    if low >= high:
        return np.zeros(len(centred)), (low, low)
    window = _hann(samples)
    power = 2 * np.abs(np.fft.rfft(centred * window, axis=1)) ** 2 / (samples * np.sum(window**2))
    # A line on an edge spreads by one bin beyond it.
    first = max(2, int(np.floor(low / line_hz)) - 1)
    last = min(power.shape[1] - 1, int(np.ceil(high / line_hz)) + 1)
    k = np.arange(first, last + 1, dtype=np.float64)
    weights = (1 / k**2 - 1 / k**4 + 5 / 3 / k**6) / (2 * np.pi * line_hz) ** 2
    return np.sqrt(power[:, first : last + 1] @ weights) * G_MM_S2, (low, high)


def _defects(
    centred: NDArray[np.float64], rate_hz: float, shaft_hz: float, bearing: Bearing
) -> tuple[dict[str, float], dict[str, float]]:
    """Heights of the bearing's lines in the spectrum of one channel's squared envelope, and of their sidebands."""
    from_hz = max(ENVELOPE_FROM_HZ, ENVELOPE_FROM_ORDER * shaft_hz)
    line_hz = rate_hz / len(centred)
    lines = _envelope_lines(centred, rate_hz, from_hz)
    # Whatever turns with the shaft beats at its multiples; a bearing's lines lie between them.
    turns = np.arange(len(lines)) * line_hz / shaft_hz
    beside = np.abs(turns - np.rint(turns)) * shaft_hz > SHAFT_LINES * line_hz
    envelope = _Lines(lines, line_hz, shaft_hz, beside)
    rates = bearing.defect_hz(shaft_hz)
    turned_by_hz = {INNER: shaft_hz, BALL: rates[CAGE]}
    defects: dict[str, float] = {}
    sidebands: dict[str, float] = {}
    for where, defect_hz in rates.items():
        orders_hz = np.arange(1, min(HARMONICS, int((rate_hz / 2 - from_hz) / defect_hz)) + 1) * defect_hz
        apart_hz = abs(defect_hz - round(defect_hz / shaft_hz) * shaft_hz)
        if not len(orders_hz) or apart_hz < (SHAFT_LINES + 1) * line_hz:
            continue
        slips = np.arange(-SLIP, SLIP, line_hz / orders_hz[-1])
        series_hz = np.multiply.outer(1 + slips, orders_hz)
        heights = envelope.heights(series_hz)
        best = int(heights.argmax())
        defects[where] = float(heights[best])
        if where in turned_by_hz:
            pair_hz = np.stack([series_hz[best] - turned_by_hz[where], series_hz[best] + turned_by_hz[where]])
            sidebands[where] = float(np.sqrt(envelope.heights(pair_hz).prod()))
    return defects, sidebands


def _turning_hz(centred: NDArray[np.float64], rate_hz: float, stated_hz: float) -> float | None:
    """How fast the shaft turns, from its first lines in the vibration itself; None where these do not stand out.

    A motor slips with its load: between idling and full load a 4-pole motor loses 2 to 4 % of its speed, which would
    carry a bearing's lines out of where they are looked for, and the shaft's own ones in.
    """
    line_hz = rate_hz / centred.shape[1]
    orders_hz = np.arange(1, SHAFT_ORDERS + 1) * stated_hz
    if orders_hz[-1] * (1 + SPEED_ERROR) > rate_hz / 2.56:
        return None
    errors = np.arange(-SPEED_ERROR, SPEED_ERROR, line_hz / orders_hz[-1] / 4)
    window = _hann(centred.shape[1])
    found = [
        _Lines(np.abs(np.fft.rfft(channel * window)), line_hz, stated_hz).heights(
            np.multiply.outer(1 + errors, orders_hz), exactly=True
        )
        for channel in centred
    ]
    heights = np.max(found, axis=0)
    if heights.max() < SHAFT_HEIGHT:
        return None
    # Several speeds fall on the same lines: the middle one.
    return stated_hz * (1 + float(errors[heights >= 0.999 * heights.max()].mean()))


def _envelope_lines(centred: NDArray[np.float64], rate_hz: float, from_hz: float) -> NDArray[np.float64]:
    """Spectrum of the squared envelope above `from_hz`: that of the analytic signal, which the FFT makes by leaving
    out what is below and the negative half (Randall, Antoni 2011, section 4)."""
    samples = len(centred)
    spectrum = np.fft.fft(centred)
    spectrum[: int(from_hz / rate_hz * samples)] = 0.0
    spectrum[(samples + 1) // 2 :] = 0.0
    squared = np.abs(np.fft.ifft(spectrum)) ** 2
    return np.asarray(np.abs(np.fft.rfft((squared - squared.mean()) * _hann(samples))), dtype=np.float64)


class _Lines:
    """A spectrum's lines, and how high they are over what is around. `counted`: those that may be found at all."""

    def __init__(
        self,
        lines: NDArray[np.float64],
        line_hz: float,
        around_hz: float,
        counted: NDArray[np.bool_] | None = None,
    ) -> None:
        self._all = lines
        self._line_hz = line_hz
        self._around = max(int(around_hz / line_hz), LEAST_FLOOR_LINES)
        self._lines = lines if counted is None else np.where(counted, lines, 0.0)
        # Slip smears a line: the highest of three neighbours speaks for it.
        padded = np.pad(self._lines, 1)
        self._highest = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])

    def heights(self, series_hz: NDArray[np.float64], *, exactly: bool = False) -> NDArray[np.float64]:
        """Of each row of frequencies the geometric mean of their lines over the floor around: `(n, orders)` to `(n,)`.

        Geometric, so that one line alone does not make a series. `exactly`: a line's neighbours do not speak for it.
        """
        places = np.clip(np.rint(series_hz / self._line_hz).astype(np.int64), 0, len(self._all) - 1)
        floors = [self._floor(place) for place in places[len(places) // 2].tolist()]
        lines = self._lines if exactly else self._highest
        ratios = np.maximum(lines[places] / np.array(floors), LEAST_HEIGHT)
        return np.asarray(np.exp(np.log(ratios).mean(axis=1)), dtype=np.float64)

    def _floor(self, place: int) -> float:
        """RMS of the noise's lines around one: of a Rayleigh distribution from its median, which lines hardly move."""
        around = self._all[max(2, place - self._around) : place + self._around + 1]
        return max(float(np.median(around)) / math.sqrt(math.log(2)), FLOOR) if len(around) else 1 / FLOOR


def _hann(samples: int) -> NDArray[np.float64]:
    """The periodic one, whose lines' moments are exact."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(samples) / samples), dtype=np.float64)
