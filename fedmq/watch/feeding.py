"""Windows of a bridge's store in the order of their time, from where each sensor was left.

Owns which samples are a window, and which speed goes with it. Refuses to know what windows are judged by. A window lies
in one run, and no sample is missing in it; what is left at the end of a run is too short to judge and passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from fedmq_edge_node.alertbook import Position
from fedmq_edge_node.machines import Machine
from fedmq_edge_node.operating import tacho_hz
from fedmq_edge_node.sensors import in_g, is_acceleration
from fedmq_edge_node.watching import Window
from fedmq_firmware_bridge.store import Run, Store, StoreError

__all__ = ["Fed", "feed", "sensor_key", "speed_at", "watched"]

log = logging.getLogger("fedmq.watch")

LEAST_RATE_HZ = 200.0
"""A slower sensor (a temperature, a counter) says nothing of vibration."""
MOST_AT_ONCE = 64
"""Windows of one call: what is raised, said and sent has its turn in between."""
SPEED_AGE_SECONDS = 120.0
"""A speed that was told longer ago than this is not known any more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fed:
    machine: str
    key: str
    """Of the sensor, as positions have it."""
    window: Window | None
    """None where its samples are damaged or gone: they are passed over."""
    position: Position
    """Once it has been judged."""


def feed(
    store: Store,
    machines: Mapping[str, Machine],
    positions: Mapping[str, Position],
    *,
    window_seconds: float,
    every_seconds: float,
    most: int = MOST_AT_ONCE,
) -> Iterator[Fed]:
    """The next windows of all machines, the earliest first. Raises StoreError where the store cannot be read."""
    runs = store.runs()
    found: list[tuple[float, int, int, Run]] = []
    for run in runs:
        machine = machines.get(run.sensor.machine)
        if machine is None or not watched(run, machine):
            continue
        length, hop = (max(1, round(seconds * run.rate_hz)) for seconds in (window_seconds, every_seconds))
        place = positions.get(sensor_key(run))
        if place is not None and run.id < place.run:
            continue
        start = run.start if place is None or run.id != place.run else max(run.start, place.sample)
        for first in range(start, min(run.stop - length + 1, start + most * hop), hop):
            found.append((run.time_of(first + length), run.id, first, run))
    found.sort(key=lambda one: one[:3])
    for ended_at, _, first, run in found[:most]:
        length, hop = (max(1, round(seconds * run.rate_hz)) for seconds in (window_seconds, every_seconds))
        position = Position(run=run.id, sample=first + hop, at=ended_at)
        machine = machines[run.sensor.machine]
        window: Window | None = None
        try:
            signal = in_g(store.read(run, first, first + length), run)
            window = Window(
                sensor=run.sensor.name,
                from_at=run.time_of(first),
                to_at=ended_at,
                signal=signal,
                rate_hz=run.rate_hz,
                speed_hz=speed_at(store, runs, machine, run.time_of(first), ended_at),
            )
        except StoreError as error:
            log.warning("%s: passed over", error)
        yield Fed(machine=machine.name, key=sensor_key(run), window=window, position=position)


def watched(run: Run, machine: Machine) -> bool:
    """Whether it is acceleration of this machine."""
    if machine.sensors and run.sensor.name not in machine.sensors:
        return False
    if run.sensor.name == machine.speed_sensor or run.rate_hz < LEAST_RATE_HZ:
        return False
    return is_acceleration(run)


def sensor_key(run: Run) -> str:
    return f"{run.sensor.source}/{run.sensor.number}"


def speed_at(store: Store, runs: Sequence[Run], machine: Machine, from_at: float, to_at: float) -> float | None:
    """Turns a second that were measured meanwhile, or told last; None where none were."""
    if machine.speed_from == "none" or machine.speed_sensor is None:
        return None
    for run in reversed(runs):
        if run.sensor.name != machine.speed_sensor or run.taken_at > to_at:
            continue
        if run.ended_at < from_at - SPEED_AGE_SECONDS:
            continue
        start, stop = run.sample_at(from_at), run.sample_at(to_at)
        if machine.speed_from == "tacho":
            if stop - start < 2:
                return None
            pulses = store.read(run, start, stop)[:, 0].astype(np.float64)
            return tacho_hz(pulses, run.rate_hz, machine.pulses_per_turn)
        start = min(start, stop - 1)
        if start < run.start:
            continue
        channel = run.sensor.channels[0]
        steps = store.read(run, start, stop)[:, 0].astype(np.float64)
        value = float(np.mean((steps * run.scale - channel.offset) * channel.gain))
        return max(0.0, value * machine.speed_scale / 60.0)
    return None
