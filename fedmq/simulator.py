"""Bearing vibration from physics, for where no recording is at hand. What it gives is always called simulated.

Owns a model of one rolling bearing on an accelerometer, and a fleet of machines that have each seen one kind of
fault. Refuses to know about windows, features and models. Everything is drawn from the seed given: the same seed
gives the same recordings on one machine. The pieces, and who found them:

- A point defect is struck once per rolling element passing: a train of impulses at BPFO, BPFI or twice BSF, which
  follow from geometry and shaft speed (McFadden, Smith 1984, J. Sound Vib. 96(1), 69-82).
- Each strike rings a structural resonance, an exponentially decaying sinusoid (same paper).
- A defect that turns passes in and out of the load zone: strikes on the inner race come and go with the shaft, those
  on a ball with the cage (Stribeck's load distribution, in Harris, Kotzalas 2006, Rolling Bearing Analysis, ch. 7).
- Elements slip a little, so that strikes jitter and the lines smear (Randall, Antoni 2011, MSSP 25(2), 485-520).
- Shaft harmonics from unbalance and misalignment, and broadband noise, lie over it all.
"""

from __future__ import annotations

from math import pi

import numpy as np
from fedmq_coordinator.settings import WindowingSettings
from fedmq_edge_node.machines import BEARINGS, CAGE, Bearing
from numpy.typing import NDArray

from fedmq.data import Fleet, GatewayData, Recording

__all__ = ["CLASSES", "simulate_fleet", "simulate_vibration"]

CLASSES = ("normal", "inner_race", "ball", "outer_race")
SAMPLING_RATE_HZ = 12_000.0
RECORDING_SECONDS = 8.0
SLIP = 0.01
"""Standard deviation of the time from strike to strike, as a share of it (Randall, Antoni 2011: 1 to 2 %)."""
SEVERITIES = (8.0, 16.0, 32.0)
"""Height of a strike's ringing at nominal load, in multiples of the RMS of the noise: weak, middling, strong."""
TEST_SEVERITIES = (11.0, 22.0)
LOADS = (0.8, 1.2)
TEST_LOAD = 1.0


def simulate_vibration(
    *,
    label: str,
    severity: float,
    shaft_hz: float,
    load: float,
    resonance_hz: float,
    seconds: float,
    rng: np.random.Generator,
    bearing: Bearing | None = None,
) -> NDArray[np.float32]:
    """Simulated acceleration in g, `(n,)` float32 at 12 kHz; `severity` is ignored for `normal`.

    severity: height of a strike over the RMS of the noise; load: 1 is nominal; resonance_hz: what a strike rings;
    bearing: a 6205 unless another one is given.
    """
    if label not in CLASSES:
        raise ValueError(f"label: expected one of {', '.join(CLASSES)}, got {label!r}")
    bearing = bearing or BEARINGS["6205"]
    count = round(seconds * SAMPLING_RATE_HZ)
    time = np.arange(count) / SAMPLING_RATE_HZ
    noise_rms = 0.05 * (0.8 + 0.2 * load)
    signal = rng.normal(0.0, noise_rms, count)
    # The structure rings a little by itself, whatever the bearing does.
    signal += _ring(rng.normal(0.0, 0.5 * noise_rms, count), resonance_hz * 0.6, 0.03)
    for order, height in ((1, 0.04), (2, 0.02), (3, 0.01)):
        phase = rng.uniform(0, 2 * pi)
        signal += height * (0.5 + 0.5 * load) * np.cos(2 * pi * order * shaft_hz * time + phase)
    if label != "normal":
        strikes = _strikes(label, shaft_hz, load, count, rng, bearing)
        signal += severity * noise_rms * _ring(strikes, resonance_hz, 0.06)
    return signal.astype(np.float32)


def _strikes(
    label: str, shaft_hz: float, load: float, count: int, rng: np.random.Generator, bearing: Bearing
) -> NDArray[np.float64]:
    """The impulse train, `(count,)`, with slip and with the load zone's modulation."""
    rates = bearing.defect_hz(shaft_hz)
    rate = rates[label.replace("_", " ")]
    number = int(count / SAMPLING_RATE_HZ * rate * 1.1) + 2
    # Every interval varies around its mean, and the deviations add up: the train forgets its phase.
    intervals = (1.0 + rng.normal(0.0, SLIP, number)) / rate
    times = rng.uniform(0, 1 / rate) + np.cumsum(intervals)
    times = times[times < (count - 1) / SAMPLING_RATE_HZ]
    heights = 1.0 + 0.15 * rng.normal(size=len(times))
    turns_hz = {"inner_race": shaft_hz, "ball": rates[CAGE], "outer_race": 0.0}[label]
    if turns_hz:
        # Stribeck: load over the zone is (1 - (1 - cos a) / (2 e))^1.5; a higher load opens the zone.
        opening = 0.35 + 0.25 * load
        angle = 2 * pi * turns_hz * times + rng.uniform(0, 2 * pi)
        heights *= np.maximum(1 - (1 - np.cos(angle)) / (2 * opening), 0.0) ** 1.5
    train = np.zeros(count)
    np.add.at(train, np.round(times * SAMPLING_RATE_HZ).astype(np.int64), heights * load**0.5)
    return train


def _ring(force: NDArray[np.float64], resonance_hz: float, damping: float) -> NDArray[np.float64]:
    """Response of a damped resonance: convolution with exp(-damping w t) sin(w t), by way of the spectrum."""
    omega = 2 * pi * resonance_hz
    length = int(8 / (damping * omega) * SAMPLING_RATE_HZ) + 1
    time = np.arange(length) / SAMPLING_RATE_HZ
    response = np.exp(-damping * omega * time) * np.sin(omega * time)
    size = 1 << (len(force) + length - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(force, size) * np.fft.rfft(response, size), size)[: len(force)]


def simulate_fleet(*, gateways: int = 7, seed: int = 0, healthy: bool = False) -> Fleet:
    """A simulated plant: each gateway has seen one fault type at one load, the last one healthy machines only.

    With `healthy` none has seen a fault, which is what an autoencoder learns from. The test set holds other
    severities, another load and other shaft speeds, faulty and healthy.
    """
    if not 2 <= gateways <= 1000:
        raise ValueError(f"expected 2 to 1,000 simulated gateways, got {gateways}")
    faults = CLASSES[1:]
    fleet = []
    for number in range(gateways):
        label = "normal" if healthy or number % 7 == 6 or number == gateways - 1 else faults[number % 7 % 3]
        load = LOADS[number % 7 // 3 % 2]
        severities = SEVERITIES if label != "normal" else (0.0,) * len(SEVERITIES)
        fleet.append(
            GatewayData(
                name=f"sim-{number + 1:02d}-{label.replace('_', '-')}",
                recordings=_recordings(label, severities, load, (seed, number)),
            )
        )
    test = tuple(
        recording
        for position, label in enumerate(CLASSES)
        for recording in _recordings(label, TEST_SEVERITIES, TEST_LOAD, (seed, 1_000_000 + position))
    )
    return Fleet(
        name="simulated",
        windowing=WindowingSettings(sampling_rate_hz=SAMPLING_RATE_HZ),
        classes=CLASSES,
        gateways=tuple(fleet),
        test=test,
        split="healthy" if healthy else "fault",
    )


def _recordings(label: str, severities: tuple[float, ...], load: float, seed: tuple[int, int]) -> tuple[Recording, ...]:
    rng = np.random.default_rng(seed)
    recordings = []
    for number, severity in enumerate(severities):
        signal = simulate_vibration(
            label=label,
            severity=severity * rng.uniform(0.85, 1.15),
            # An induction motor slips with its load: 1,797 rpm idle, 1,730 at full load for the 2 hp of CWRU's rig.
            shaft_hz=(1800.0 - 35.0 * load + rng.uniform(-8, 8)) / 60.0,
            load=load,
            # Structures differ from machine to machine.
            resonance_hz=3_000.0 * rng.uniform(0.8, 1.2),
            seconds=RECORDING_SECONDS,
            rng=rng,
        )
        # A 16-bit converter whose range fits the recording.
        scale = float(np.abs(signal).max()) / 32_767
        recordings.append(
            Recording(
                label=label,
                name=f"simulated-{number + 1}",
                signal=np.rint(signal / scale).astype(np.int16),
                scale=scale,
                sampling_rate_hz=SAMPLING_RATE_HZ,
            )
        )
    return tuple(recordings)
