"""What a machine's vibration says before anything is learnt: velocity in zones, and lines of its bearing's defects.

Owns the measuring, from acceleration in g. Refuses to know time: one stretch of signal comes in, and its condition goes
out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmq_edge_node.machines import DEFECTS, Bearing, Machine

__all__ = ["LEAST_SAMPLES", "LEAST_TURNS", "Condition", "measure", "zone"]

G_MM_S2 = 9806.65
"""Standard gravity in mm/s2."""
VELOCITY_BAND_HZ = (10.0, 1000.0)
LEAST_LINES = 4
"""Of the spectrum below the velocity's band: with fewer, the integration's 1/f2 would be wrong by per cents."""
LEAST_SAMPLES = 64
LEAST_TURNS = 16
"""Turns of the shaft in a stretch, below which a bearing's lines cannot be told from the shaft's."""
HARMONICS = 3
SLIP = 0.02
ENVELOPE_FROM_HZ = 500.0
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
    where bearing or speed is unknown, or the stretch too short to tell the lines apart."""

    @property
    def complete(self) -> bool:
        """Whether the velocity is of the whole band from 10 to 1,000 Hz. If not, it is a lower bound."""
        return self.velocity_band_hz == VELOCITY_BAND_HZ


def measure(
    signal: NDArray[np.float64], rate_hz: float, shaft_hz: float | None = None, bearing: Bearing | None = None
) -> Condition:
    """Acceleration in g, `(n,)` or `(n, channels)` float64, measured. Raises ValueError for what cannot be."""
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
    if bearing is not None and shaft_hz and centred.shape[1] / rate_hz * shaft_hz >= LEAST_TURNS:
        every = [_defects(channel, rate_hz, shaft_hz, bearing) for channel in centred]
        defects = {where: max(one[where] for one in every) for where in every[0]}
    return Condition(
        velocity_mm_s=float(velocity.max()),
        velocity_band_hz=band_hz,
        acceleration_rms_g=float(np.sqrt(power.max())),
        kurtosis=float(np.max(np.mean(centred**4, axis=1) / power**2)),
        crest=float(np.max(np.abs(centred).max(axis=1) / np.sqrt(power))),
        defects=defects,
    )


def zone(velocity_mm_s: float, machine: Machine) -> str | None:
    """One of A to D, or None where the machine has no limits. A limit itself belongs to the better zone."""
    limits = machine.zone_limits
    if limits is None:
        return None
    return "ABCD"[sum(velocity_mm_s > limit for limit in limits)]


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
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(samples) / samples)
    power = 2 * np.abs(np.fft.rfft(centred * window, axis=1)) ** 2 / (samples * np.sum(window**2))
    # A line on an edge spreads by one bin beyond it.
    first = max(2, int(np.ceil(low / line_hz)) - 1)
    last = min(power.shape[1] - 1, int(np.floor(high / line_hz)) + 1)
    k = np.arange(first, last + 1, dtype=np.float64)
    weights = (1 / k**2 - 1 / k**4 + 5 / 3 / k**6) / (2 * np.pi * line_hz) ** 2
    return np.sqrt(power[:, first : last + 1] @ weights) * G_MM_S2, (low, high)


def _defects(centred: NDArray[np.float64], rate_hz: float, shaft_hz: float, bearing: Bearing) -> dict[str, float]:
    samples = len(centred)
    spectrum = np.fft.fft(centred)
    spectrum[: int(ENVELOPE_FROM_HZ / rate_hz * samples)] = 0.0
    spectrum[(samples + 1) // 2 :] = 0.0
    envelope = np.abs(np.fft.ifft(spectrum)) ** 2
    lines = np.abs(np.fft.rfft((envelope - envelope.mean()) * np.hanning(samples)))
    line_hz = rate_hz / samples
    rates = bearing.defect_hz(shaft_hz)
    return {where: _height(lines, line_hz, rates[where]) for where in DEFECTS}


def _height(lines: NDArray[np.float64], line_hz: float, rate_hz: float) -> float:
    heights = []
    for order in range(1, HARMONICS + 1):
        at, half = order * rate_hz / line_hz, order * rate_hz * SLIP / line_hz
        low, high = int(at - half), int(at + half) + 2
        around = lines[max(2, int(at * 0.8)) : int(at * 1.2) + 2]
        if high >= len(lines) or len(around) < 8:
            break
        heights.append(lines[low:high].max() / max(float(np.median(around)), FLOOR))
    return float(np.mean(heights)) if heights else 1.0
