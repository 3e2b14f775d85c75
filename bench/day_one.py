"""What limits and defect frequencies find with nothing learnt: on simulated bearings, and on CWRU's recordings."""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import math
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
from fedmq_edge_node.condition import Condition, measure, suspected
from fedmq_edge_node.machines import BEARINGS, DEFECTS, Machine

from fedmq.data import recordings_at, signal_of
from fedmq.simulator import simulate_vibration

RATE_HZ = 12_000.0
BEARING = BEARINGS["6205"]
MACHINE = Machine(name="m")
LIMIT = MACHINE.defect_limit
STATED_HZ = 1770 / 60
"""One speed for all loads, as a nameplate has it: the recordings turn at 1,748 to 1,797."""
PLACES = {"IR": "inner race", "OR": "outer race", "B": "ball", "N": None}
MINUTES_PER_MONTH = 43_800


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench/day_one",
        description="Prints the tables of docs/alerts-day-one.md: errors of the calibrated velocity, heights of defect"
        " lines on simulated bearings, healthy and faulty, and on CWRU's drive-end recordings.",
    )
    parser.add_argument("--cwru", type=Path, metavar="FILE", help=".npz of CWRU's drive-end recordings at 12 kHz")
    parser.add_argument("--gearbox", type=Path, metavar="DIR", help=".npz of the gearbox, healthy and broken")
    parser.add_argument("--healthy", type=int, default=1500, help="simulated healthy windows (default: 1500)")
    parser.add_argument("--faulty", type=int, default=20, help="windows of each fault and severity (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: 0)")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {date.today()}, limit {LIMIT:g}")
    for lines in (
        velocity(),
        healthy(arguments.healthy, arguments.seed),
        faulty(arguments.faulty, arguments.seed),
        cwru(arguments.cwru, 2.0) if arguments.cwru else iter(()),
        cwru(arguments.cwru, 5.0) if arguments.cwru else iter(()),
        gears(arguments.gearbox) if arguments.gearbox else iter(()),
    ):
        print()
        for line in lines:
            print(line, flush=True)
    return 0


def velocity() -> Iterator[str]:
    yield "| rate | stretch | band | largest error |"
    yield "|---|---|---|---|"
    for rate_hz in (3200.0, 12_000.0, 25_600.0, 48_000.0):
        for seconds in (2048 / 12_000, 0.5, 1.0, 5.0):
            samples = int(rate_hz * seconds)
            time = np.arange(samples) / rate_hz
            low, high = measure(np.cos(2 * math.pi * 100 * time), rate_hz).velocity_band_hz
            worst = 0.0
            for at_hz in np.geomspace(low, high, 60):
                for phase in (0.0, 1.0, 2.0):
                    # 3 mm/s RMS.
                    peak_g = 3 * math.sqrt(2) * 2 * math.pi * at_hz / 9806.65
                    got = measure(peak_g * np.cos(2 * math.pi * at_hz * time + phase), rate_hz).velocity_mm_s
                    worst = max(worst, abs(got / 3 - 1))
            yield f"| {rate_hz:,.0f} Hz | {seconds:.2f} s | {low:.1f} to {high:,.0f} Hz | {100 * worst:.2f} % |"


def healthy(windows: int, seed: int) -> Iterator[str]:
    yield "| seconds | windows | median | 99 % | highest | over the limit | by its tail, a month at one a minute |"
    yield "|---|---|---|---|---|---|---|"
    rng = np.random.default_rng((seed, 1))
    every = list(BEARINGS.values())
    for seconds in (2.0, 5.0):
        count = int(windows * 2 / seconds)
        highest = np.empty(count)
        for number in range(count):
            signal, shaft_hz = simulated("normal", 0.0, seconds, rng)
            defects = measure(signal, RATE_HZ, shaft_hz * rng.uniform(0.98, 1.02), every[number % len(every)]).defects
            highest[number] = max(defects.values())
        # The excess over the 90 % quantile, as an exponential distribution: where a maximum's tail tends to.
        base = float(np.quantile(highest, 0.9))
        spread = float((highest[highest > base] - base).mean())
        monthly = MINUTES_PER_MONTH * 0.1 * math.exp(-(LIMIT - base) / spread)
        yield (
            f"| {seconds:g} | {count:,} | {np.median(highest):.2f} | {np.quantile(highest, 0.99):.2f} |"
            f" {highest.max():.2f} | {int((highest >= LIMIT).sum())} | {monthly:.2g} |"
        )


def faulty(windows: int, seed: int) -> Iterator[str]:
    yield "| fault | severity | windows | found | at the right place | median height there |"
    yield "|---|---|---|---|---|---|"
    rng = np.random.default_rng((seed, 2))
    for place in DEFECTS[:3]:
        for severity in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
            measured = []
            for _ in range(windows):
                signal, shaft_hz = simulated(place.replace(" ", "_"), severity, 2.0, rng)
                measured.append(measure(signal, RATE_HZ, shaft_hz * rng.uniform(0.98, 1.02), BEARING))
            yield f"| {place} | {severity:g} | {counted(measured, place)} |"


def simulated(label: str, severity: float, seconds: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    load = rng.uniform(0.7, 1.3)
    shaft_hz = (1800.0 - 35.0 * load + rng.uniform(-8, 8)) / 60.0
    signal = simulate_vibration(
        label=label,
        severity=severity,
        shaft_hz=shaft_hz,
        load=load,
        resonance_hz=3000.0 * rng.uniform(0.8, 1.2),
        seconds=seconds,
        rng=rng,
    )
    return signal.astype(np.float64), shaft_hz


def cwru(path: Path, seconds: float) -> Iterator[str]:
    yield f"{seconds:g} s:"
    yield ""
    yield "| recording | fault | inch | load | velocity | windows | found | at the right place | median height there |"
    yield "|---|---|---|---|---|---|---|---|---|"
    with np.load(path, allow_pickle=False) as archive:
        for number in range(len(archive["recording"])):
            signal = archive[f"x{number:02d}"].astype(np.float64) * archive["scale"][number]
            length = int(seconds * RATE_HZ)
            measured = [
                measure(signal[start : start + length], RATE_HZ, STATED_HZ, BEARING)
                for start in range(0, len(signal) - length + 1, length)
            ]
            place = PLACES[str(archive["fault"][number])]
            mil, load_hp = int(archive["diameter_mil"][number]), int(archive["load_hp"][number])
            size = f"0.{mil:03d}" if place else "-"
            level = np.median([one.velocity_mm_s for one in measured])
            name = int(archive["recording"][number])
            yield (
                f"| {name} | {place or 'healthy'} | {size} | {load_hp} hp | {level:.2f} mm/s |"
                f" {counted(measured, place)} |"
            )


def counted(measured: list[Condition], place: str | None) -> str:
    """Cells: windows, those with a defect, those with it at the right place, median height (healthy: the highest)."""
    found = [suspicion[0] for one in measured if (suspicion := suspected(one, MACHINE)) is not None]
    if place is None:
        worst = max(max(one.defects.values()) for one in measured)
        return f"{len(measured)} | {len(found)} | - | {worst:.1f} at most"
    height = np.median([one.defects[place] for one in measured])
    return f"{len(measured)} | {len(found)} | {found.count(place)} | {height:.1f}"


# --- gears -----------------------------------------------------------------------------------------------------------

PINION_TEETH, WHEEL_TEETH = 32, 80
"""Not stated anywhere: the mesh is at 32 times the shaft, and there is a comb at 0.4 of it."""
MESH_HARMONICS, SIDEBANDS = 3, 6
POINTS_PER_TOOTH = 32


def gears(directory: Path) -> Iterator[str]:
    """Figures that need no training, of signals averaged synchronously with either shaft."""
    found: dict[tuple[str, str], list[float]] = {}
    turns: list[int] = []
    for one in recordings_at(directory):
        signal = signal_of(one)
        signal = signal - signal.mean(axis=0)
        shaft_hz = _third_line_hz(signal, one.sampling_rate_hz) / 3
        state = "healthy" if one.label == "normal" else "broken"
        found.setdefault(("kurtosis of the signal", state), []).extend(_kurtosis(signal).tolist())
        for gear, teeth in (("pinion", PINION_TEETH), ("wheel", WHEEL_TEETH)):
            turn, count = _averaged(signal, one.sampling_rate_hz, shaft_hz, teeth)
            turns.append(count)
            lines = np.fft.rfft(turn, axis=0)
            orders = np.arange(len(lines))
            # FM4: kurtosis of what is left without the mesh, its nearest sidebands and the shaft's own lines.
            left = np.minimum(orders % teeth, teeth - orders % teeth) > 1
            left[:4] = False
            left[teeth * (POINTS_PER_TOOTH // 2) :] = True
            rest = np.fft.irfft(np.where(left[:, None], lines, 0), axis=0)
            found.setdefault((f"FM4, {gear}", state), []).extend(_kurtosis(rest).tolist())
            heights, mesh = np.abs(lines), [teeth * order for order in range(1, MESH_HARMONICS + 1)]
            beside = [line + way * step for line in mesh for way in (-1, 1) for step in range(1, SIDEBANDS + 1)]
            ratios = heights[beside].sum(axis=0) / heights[mesh].sum(axis=0)
            found.setdefault((f"sidebands over mesh lines, {gear}", state), []).extend(ratios.tolist())
    yield f"averaged over {min(turns)} to {max(turns)} turns; lowest and highest of all loads and sensors:"
    yield ""
    yield "| figure | healthy | broken tooth |"
    yield "|---|---|---|"
    for figure in dict.fromkeys(figure for figure, _ in found):
        ends = [
            f"{min(found[figure, state]):.1f} to {max(found[figure, state]):.1f}" for state in ("healthy", "broken")
        ]
        yield f"| {figure} | {ends[0]} | {ends[1]} |"


def _third_line_hz(signal: np.ndarray, rate_hz: float) -> float:
    """The strongest line about three times the shaft, at the rate that is assumed."""
    samples = 1 << 16
    window = np.hanning(samples)[:, None]
    power = (np.abs(np.fft.rfft(signal[:samples] * window, axis=0)) ** 2).sum(axis=1)
    line_hz = rate_hz / samples
    first, last = int(70 / line_hz), int(95 / line_hz)
    return (first + int(power[first:last].argmax())) * line_hz


def _averaged(signal: np.ndarray, rate_hz: float, shaft_hz: float, teeth: int) -> tuple[np.ndarray, int]:
    """One turn of the gear `(points, channels)`, the mean of so many: its phase is that of the mesh."""
    samples = len(signal)
    away_hz = np.abs(np.fft.fftfreq(samples, 1 / rate_hz) - PINION_TEETH * shaft_hz)
    mesh = np.fft.ifft(np.where((away_hz < 0.45 * shaft_hz)[:, None], np.fft.fft(signal, axis=0), 0), axis=0)
    loudest = int(np.abs(mesh).mean(axis=0).argmax())
    turned = np.unwrap(np.angle(mesh[:, loudest])) / (2 * math.pi * teeth)
    turned -= turned[0]
    count, points = int(turned[-1]), POINTS_PER_TOOTH * teeth
    at = np.interp(np.arange(count * points) / points, turned, np.arange(samples))
    even = np.stack([np.interp(at, np.arange(samples), channel) for channel in signal.T], axis=1)
    return even.reshape(count, points, -1).mean(axis=0), count


def _kurtosis(signal: np.ndarray) -> np.ndarray:
    centred = signal - signal.mean(axis=0)
    return np.asarray((centred**4).mean(axis=0) / (centred**2).mean(axis=0) ** 2)


if __name__ == "__main__":
    raise SystemExit(main())
