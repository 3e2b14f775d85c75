"""A bridge's store as what a gateway learns from: runs and labels become recordings, and a silent sensor is told.

Owns which part of which run is a recording. What a run is, is in the bridge's `store`; how a recording becomes windows
in `samples`. Its like for folders is `folder`.

A run is cut where its label changes, and every `RECORDING_SECONDS`: the end of each recording is held out, and would
otherwise move on with every flush, so that windows that were held out would be trained on later. No recording, and so
no window, spans a gap. What nobody has labelled counts as in a folder `unlabelled`; what is set aside (of a machine
that is another one since) is in no recording.

Beside the store there may be a folder of *kept* recordings, those of alerts that somebody has judged
(`<label>/<alert>--<sensor>--<from>-<to>.npy`, times in milliseconds). One counts once the store no longer reaches so
far back: before, the store has the same samples under the same label, cut elsewhere, and what the one holds out the
other would train on.

Of machines whose `operating` settings are known only what they do while they run, and steadily, is learnt from: no
window touches a stretch in which one stands, starts, stops or changes its speed. What a stretch is, is found anew from
the recording and what is before it, so that it is the same each time.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from fedmq_firmware_bridge.health import states
from fedmq_firmware_bridge.store import SET_ASIDE, Piece, Run, Store, StoreError
from fedmq_protocol.messages import SensorHealth
from fedmq_protocol.task import Windowing
from numpy.typing import NDArray

from fedmq_edge_node.operating import Operating, OperatingSettings, level_g
from fedmq_edge_node.samples import (
    UNLABELLED,
    Preparation,
    SampleError,
    Samples,
    Signal,
    check_channels,
    cut_up,
    most_windows,
    number_of,
    open_recording,
    rates_agree,
    read_settings,
)
from fedmq_edge_node.turning import Turning

__all__ = ["RECORDING_SECONDS", "Sensors", "in_g", "is_acceleration", "plain_name"]

log = logging.getLogger("fedmq.gateway")

RECORDING_SECONDS = 60.0
RECORDING_WINDOWS = 16
"""A recording is so many windows at least, so that there are some on both sides of its cut."""
GROWTH = 1.25
"""While a store is young, windows are cut anew when there is a quarter more."""

STATE_SECONDS = 1.0
"""Between two looks at whether a machine runs."""
STEPS_AHEAD = 12
"""So many looks later it must still run steadily: a slow ramp is told from chance only once half of it is over."""

MOST_TOLD = 16
"""Sensors in a birth."""

IN_G = {"m/s2": 1 / 9.80665, "m/s^2": 1 / 9.80665, "mg": 1e-3}
"""What an acceleration is multiplied by: as a folder's recordings are, `vibration-1` is in g."""


@dataclass(frozen=True, kw_only=True)
class _Recording:
    run: Run
    piece: Piece


class Sensors:
    """A source of windows, as `Folder` is. `unix` is the clock on the wall. Raises SampleError without a store."""

    def __init__(
        self,
        store: Path,
        *,
        unix: Callable[[], float],
        kept: Path | None = None,
        machines: tuple[str, ...] = (),
        fresh_seconds: float = 300.0,
        windows: int = 4000,
        renew_seconds: float = 3600.0,
        operating: Mapping[str, OperatingSettings] | None = None,
    ) -> None:
        try:
            self._store = Store(store)
        except StoreError as error:
            raise SampleError(str(error)) from error
        self._unix = unix
        self._kept = kept
        self._machines = machines
        self._fresh_seconds = fresh_seconds
        self._windows = windows
        self._renew_seconds = renew_seconds
        self._operating = operating or {}
        self._seen = self._store.mark()
        self._seen_at = unix()
        self._used: dict[tuple[str, int], Run] = {}
        """Sensors that windows come from, for any task, each with its newest run."""

    def signal_samples(self) -> dict[str, int]:
        """Samples of signal by label."""
        counts: dict[str, int] = {}
        for path in self._kept_paths(self._runs_told()):
            signal = _open_kept(path, 1)
            if signal is not None:
                counts[path.parent.name] = counts.get(path.parent.name, 0) + signal.length
        with _told(), self._store.snapshot():
            for run in self._runs():
                for piece in self._store.pieces(run):
                    if piece.label == SET_ASIDE:
                        continue
                    counts[piece.label] = counts.get(piece.label, 0) + piece.stop - piece.start
        return counts

    def load(
        self, windowing: Windowing, classes: tuple[str, ...], healthy: str, preparation: Preparation | None = None
    ) -> Samples:
        """Raises SampleError where nothing fits the task."""
        if windowing.remaining_most:
            raise SampleError(
                f"{self._store.path}: expected recordings of machines that ran to their end, as folders hold them;"
                " a bridge's store has none"
            )
        with _told(), self._store.snapshot():
            self._seen, self._seen_at = self._store.mark(), self._unix()
            runs = [run for run in self._runs() if self._fits(run, windowing)]
            if not runs:
                raise SampleError(self._nothing_fits(windowing))
            self._used |= {(run.sensor.source, run.sensor.number): run for run in runs}
            recordings = self._newest(self._recordings(runs, windowing, classes), windowing)
            signals = itertools.chain(
                self._signals(recordings, windowing, classes, healthy),
                self._kept_signals(windowing, classes, healthy),
            )
            return cut_up(signals, windowing, classes, preparation)

    def changed(self) -> bool:
        """Whether there is a new label, or enough of new samples to cut windows anew."""
        with _told():
            samples, batch, label = self._store.mark()
        seen_samples, seen_batch, seen_label = self._seen
        if label != seen_label:
            return True
        if batch == seen_batch:
            return False
        waited = self._unix() - self._seen_at
        return samples > GROWTH * seen_samples or not 0 <= waited < self._renew_seconds

    def silent(self) -> str:
        """Which sensors that windows come from have not been heard for too long; empty where all are well."""
        if not self._fresh_seconds or not self._used:
            return ""
        with _told():
            reports = self._store.reports().get("sensors", ())
        # What the bridge noted since windows were cut: it may keep only a part of what it hears.
        last = {(report["source"], report["number"]): report["last_seen_at"] for report in reports}
        now = self._unix()
        dead = [
            f"{run.sensor.name} on {run.sensor.machine} for {silent:,.0f} s"
            for sensor, run in self._used.items()
            if (silent := now - max(run.ended_at, last.get(sensor, 0.0))) > self._fresh_seconds
        ]
        return f"silent: {', '.join(dead)}; limit {self._fresh_seconds:g} s" if dead else ""

    def health(self) -> tuple[SensorHealth, ...]:
        """Of sensors on the machines that it learns from, those that are not well first: a birth may not hold all."""
        with _told():
            reports = self._store.reports()
        mine = [
            report
            for report in reports.get("sensors", ())
            if report["channels"] and (not self._machines or report["machine"] in self._machines)
        ]
        mine.sort(key=lambda report: not states(report, reports["at"]))
        now = self._unix()
        return tuple(
            SensorHealth(
                name=report["name"][:16],
                rate_pct=min(1000, round(100 * (report["achieved_hz"] or 0.0) / report["promised_hz"])),
                silent_seconds=min(1 << 32, max(0, round(now - report["last_seen_at"]))),
                lost_frames=report["lost_frames"],
                failed=reports["sources"][report["source"]]["failed"],
                clipping="clipping" in states(report, now),
                flat="flat" in states(report, now),
            )
            for report in mine[:MOST_TOLD]
        )

    def _runs(self) -> list[Run]:
        return [
            run
            for run in self._store.runs()
            if run.sensor.channels and (not self._machines or run.sensor.machine in self._machines)
        ]

    def _fits(self, run: Run, windowing: Windowing) -> bool:
        if not rates_agree(run.rate_hz, windowing.sampling_rate_hz):
            return False
        try:
            check_channels(_signal(run, 0, _unread), windowing)
        except SampleError:
            return False
        return True

    def _nothing_fits(self, windowing: Windowing) -> str:
        there = {
            f"{run.sensor.name} on {run.sensor.machine} with {run.width} channels at {run.rate_hz:g} Hz"
            for run in self._runs()
        }
        return (
            f"{self._store.path}: expected a sensor with {windowing.channels:,} channels at"
            f" {windowing.sampling_rate_hz:g} Hz as the task has it, got {'; '.join(sorted(there)) or 'none so far'}"
        )

    def _recordings(self, runs: list[Run], windowing: Windowing, classes: tuple[str, ...]) -> Iterator[_Recording]:
        length = max(round(RECORDING_SECONDS * windowing.sampling_rate_hz), RECORDING_WINDOWS * windowing.samples)
        newest = {(run.sensor.source, run.sensor.number): run.id for run in runs}
        for run in runs:
            growing = newest[run.sensor.source, run.sensor.number] == run.id
            for piece in self._store.pieces(run):
                if piece.label == SET_ASIDE or (classes and piece.label == UNLABELLED):
                    continue
                if classes and piece.label not in classes:
                    raise SampleError(
                        f"{self._store.path}: expected labels that are classes ({', '.join(classes)}), got"
                        f" {piece.label!r} for {run.sensor.machine}; `fedmq label` can put {UNLABELLED!r} in its place"
                    )
                edges = [piece.start, *range((piece.start // length + 1) * length, piece.stop, length), piece.stop]
                if growing and piece.stop == run.stop and len(edges) > 2 and (piece.stop - edges[-2]) < length:
                    # It is still growing, and its end would be held out today and trained on tomorrow.
                    edges.pop()
                for start, stop in itertools.pairwise(edges):
                    yield _Recording(run=run, piece=Piece(start=start, stop=stop, label=piece.label))

    def _newest(self, recordings: Iterator[_Recording], windowing: Windowing) -> list[_Recording]:
        """Of each sensor and label the newest, as many as are wanted and fit in memory; oldest first."""
        by_kind: dict[tuple[str, int, str], list[_Recording]] = {}
        for one in recordings:
            sensor = one.run.sensor
            by_kind.setdefault((sensor.source, sensor.number, one.piece.label), []).append(one)
        share = min(self._windows, most_windows(windowing) // max(1, len(by_kind)))
        kept = []
        for every in by_kind.values():
            windows = 0
            for one in reversed(every):
                windows += max(0, (one.piece.stop - one.piece.start - windowing.samples) // windowing.hop + 1)
                if windows > share and one is not every[-1]:
                    break
                kept.append(one)
        return sorted(kept, key=lambda one: (one.run.id, one.piece.start))

    def _signals(
        self, recordings: list[_Recording], windowing: Windowing, classes: tuple[str, ...], healthy: str
    ) -> Iterator[tuple[Signal, int]]:
        for one in recordings:
            run, piece = one.run, one.piece
            try:
                stretches = self._running(run, piece)
                # A worn SD card loses a block now and then; the rest is as good as before.
                parts = [in_g(self._store.read(run, start, stop), run) for start, stop in stretches]
            except StoreError as error:
                log.warning("%s: left out", error)
                continue
            number = number_of(piece.label, classes, healthy)
            for part in parts:
                values = part[:, : windowing.channels]
                yield _signal(run, len(values), partial(_part, values)), number

    def _running(self, run: Run, piece: Piece) -> list[tuple[int, int]]:
        """Stretches of the piece in which the machine runs steadily: all of it where nobody has said when it does."""
        settings = self._operating.get(run.sensor.machine)
        if settings is None or not is_acceleration(run):
            return [(piece.start, piece.stop)]
        step = max(1, round(STATE_SECONDS * run.rate_hz))
        # Whether it runs shows in what came before, and whether it goes on in what comes next.
        before = math.ceil((settings.dwell_seconds + settings.ramp_seconds) / STATE_SECONDS) + 2
        first = piece.start - step * min(before, (piece.start - run.start) // step)
        last = min(run.stop, piece.stop + step * (STEPS_AHEAD + 1))
        signal = in_g(self._store.read(run, first, last), run)
        state, turning = Operating(settings), Turning()
        usable = []
        for place in range(0, len(signal) - step + 1, step):
            part = signal[place : place + step]
            turn = turning.step(part, run.rate_hz)
            state.step((place + step) / run.rate_hz, level_g(part), turned=turn.ratio, moving=turn.moving)
            usable.append(state.usable)
            if state.usable:
                turning.learn(turn)
        steps = [
            first + number * step
            for number in range(len(usable) - STEPS_AHEAD)
            if all(usable[number : number + STEPS_AHEAD + 1]) and first + number * step >= piece.start
        ]
        stretches: list[tuple[int, int]] = []
        for start in steps:
            if stretches and stretches[-1][1] == start:
                stretches[-1] = (stretches[-1][0], start + step)
            else:
                stretches.append((start, start + step))
        return [(start, min(stop, piece.stop)) for start, stop in stretches if start < piece.stop]

    def _kept_signals(
        self, windowing: Windowing, classes: tuple[str, ...], healthy: str
    ) -> Iterator[tuple[Signal, int]]:
        for path in self._kept_paths(self._runs()):
            label = path.parent.name
            if classes and label not in classes:
                log.warning("%s: left out, for %r is no class of the task", path, label)
                continue
            signal = _open_kept(path, windowing.channels)
            if signal is None or not rates_agree(signal.sampling_rate_hz, windowing.sampling_rate_hz):
                continue
            try:
                check_channels(signal, windowing)
            except SampleError:
                continue
            yield signal, number_of(label, classes, healthy)

    def _kept_paths(self, runs: list[Run]) -> list[Path]:
        """Those that the store has no more, oldest alert first."""
        if self._kept is None or not self._kept.is_dir():
            return []
        oldest: dict[str, float] = {}
        for run in runs:
            name = plain_name(run.sensor.name)
            oldest[name] = min(run.taken_at, oldest.get(name, run.taken_at))
        found = []
        for path in self._kept.glob("*/*.npy"):
            match = _KEPT.fullmatch(path.name)
            if match is None or path.parent.name.startswith(".") or path.name.startswith("."):
                continue
            if int(match["to"]) / 1000 <= oldest.get(match["sensor"], math.inf):
                found.append((int(match["alert"]), path.name, path))
        return [path for _, _, path in sorted(found)]

    def _runs_told(self) -> list[Run]:
        with _told():
            return self._runs()


def _open_kept(path: Path, wanted: int) -> Signal | None:
    """None for one that cannot be read, or that another verdict has moved meanwhile: the rest is as good as before."""
    try:
        return open_recording(path, read_settings(path.with_suffix(".toml")), wanted)
    except (SampleError, OSError) as error:
        log.warning("%s: left out", error)
        return None


_KEPT = re.compile(r"(?P<alert>\d{1,18})--(?P<sensor>[A-Za-z0-9._]{1,64})--(?P<from>\d{1,18})-(?P<to>\d{1,18})\.npy")


def plain_name(sensor: str) -> str:
    """A sensor's name as kept recordings have it."""
    return re.sub(r"[^A-Za-z0-9._]", "_", sensor)[:64]


@contextmanager
def _told() -> Iterator[None]:
    """A store that fails is a gateway's recordings that cannot be read just now."""
    try:
        yield
    except StoreError as error:
        raise SampleError(str(error)) from error


def is_acceleration(run: Run) -> bool:
    """Whether all its channels are, by their units."""
    units = [channel.unit for channel in run.sensor.channels]
    return bool(units) and len(units) == run.width and all(unit == "g" or unit in IN_G for unit in units)


def in_g(steps: NDArray[np.int16] | NDArray[np.float32], run: Run) -> NDArray[np.float64]:
    """Samples as the store has them, `(n, channels)`: accelerations in g, other channels in their own units."""
    channels = run.sensor.channels
    offset = np.array([channel.offset for channel in channels])
    factor = np.array([channel.gain * IN_G.get(channel.unit, 1.0) for channel in channels])
    values: NDArray[np.float64] = (steps * run.scale - offset) * factor
    return values


def _signal(run: Run, length: int, read: Callable[[int, int], NDArray[np.float64]]) -> Signal:
    return Signal(
        where=f"{run.sensor.name} on {run.sensor.machine}",
        length=length,
        channels=run.width,
        sampling_rate_hz=run.rate_hz,
        read=read,
    )


def _part(values: NDArray[np.float64], start: int, stop: int) -> NDArray[np.float64]:
    return values[start:stop]


def _unread(start: int, stop: int) -> NDArray[np.float64]:
    raise AssertionError("only its shape was asked for")
