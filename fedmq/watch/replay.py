"""`fedmq replay`: recordings played to a bridge as a sensor would say them, for commissioning and for tests.

Owns what the command does, the sensor that it plays (the native stream, byte by byte as firmware speaks it), and the
two ways to a bridge. What is played is `playing`'s, where recordings lie `fedmq.data`'s.

- `--socket PATH`: a Unix socket, which a running bridge has in its settings as a port. All is as in the plant: the
  bridge's process, its threads, its reading of clocks. Only in real time, for a sensor whose clock runs ten times too
  fast is a broken sensor, and the bridge treats it as one: time stamps would say so, and minimum durations of alerts
  would be ten times as long as they are.
- `--store FILE`: a bridge in this process writes the store. Its sensor's bytes pass the same decoder, clock map, health
  watch and recorder as those of a port, but its clock is the replay's and runs N times as fast; so windows, rates and
  times in the store are those of real time. It holds the store's lock: another bridge cannot write meanwhile, while any
  number of programs read. By default the replay begins so long ago that it ends now.
"""

from __future__ import annotations

import argparse
import math
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType

import numpy as np
from fedmq_edge_node.alertbook import Alertbook
from fedmq_firmware_bridge.frames import MAX_CHANNELS, MAX_PAYLOAD, Channel, Hello, Samples, encode
from fedmq_firmware_bridge.service import Bridge
from fedmq_firmware_bridge.sources import Emit, LineReport, Native
from fedmq_firmware_bridge.store import Recorder, Store, StoreError
from numpy.typing import NDArray

from fedmq.data import DataError, Recording, recordings_at, signal_of
from fedmq.watch.playing import Block, Player, ScriptError, Span, Take, parse_script, whole

__all__ = ["Firmware", "Replayed", "load_takes", "play_into", "run", "simulated_machine"]


HEALTHY = "normal"
SIMULATED = "simulated"
SIMULATED_SECONDS = 60.0
SENSOR = 1
HELLO_SECONDS = 5.0
FRAME_SECONDS = 0.1
"""A frame holds no more, as nobody waits longer for a slow sensor."""
FRAMES_AT_ONCE = 16
"""Of a replay that waits for nobody: a bridge reads as many from a port that it comes late to."""
FLUSH_SECONDS = 10.0
FLUSH_BYTES = 1 << 20
MAX_STORE_BYTES = 1 << 30
MOST_VALUES = 1 << 27
"""Of all recordings that are played: a gigabyte."""
APART_SECONDS = 2.0
"""Between what a store has of a machine and a replay."""
SOCKET_SECONDS = 0.05
WAIT_SECONDS = 0.25
LAST_SECONDS = 60.0
"""A watch judges windows with time between: the last one may end so long before a replay does."""


class Firmware:
    """The sensor: blocks of a player to bytes. Its clock counts its samples, and begins at its start."""

    def __init__(self, player: Player, *, name: str, boot: int = 1) -> None:
        self.rate_mhz = round(player.rate_hz * 1000)
        self.scale = player.peak_g / 32_767
        self.made = 0
        """Samples."""
        most = (MAX_PAYLOAD - 20) // (2 * player.channels)
        self.block = max(1, min(most, round(FRAME_SECONDS * player.rate_hz)))
        self._name, self._boot = name, boot
        self._channels = tuple(Channel(name=f"a{place + 1}", unit="g") for place in range(player.channels))
        self._frames = 0
        self._hellos = 0

    @property
    def now_us(self) -> int:
        return self.made * 1_000_000_000 // self.rate_mhz

    def hello(self) -> bytes:
        frame = Hello(
            sensor=SENSOR,
            boot=self._boot,
            sequence=self._hellos,
            uid=b"replay".ljust(16, b"\0"),
            name=self._name[:16],
            firmware="replay",
            now_us=self.now_us,
            rate_mhz=self.rate_mhz,
            scale=self.scale,
            channels=self._channels,
        )
        self._hellos += 1
        return encode(frame)

    def say(self, block: Block) -> bytes:
        """As frames of at most `self.block` samples, and a hello between them from time to time."""
        steps = np.clip(np.rint(block.values / self.scale), -32_768, 32_767).astype(np.int16)
        return b"".join(self._frame(steps[first : first + self.block]) for first in range(0, len(steps), self.block))

    def _frame(self, steps: NDArray[np.int16]) -> bytes:
        hello = b""
        if self.made >= self._hellos * HELLO_SECONDS * self.rate_mhz / 1000:
            hello = self.hello()
        frame = Samples(
            sensor=SENSOR,
            boot=self._boot,
            sequence=self._frames,
            taken_us=self.now_us,
            rate_mhz=self.rate_mhz,
            scale=self.scale,
            values=steps,
        )
        self._frames += 1
        self.made += len(steps)
        return hello + encode(frame)


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What was played, and when it was in the store's time."""

    from_at: float
    to_at: float
    spans: tuple[Span, ...]
    took_seconds: float
    """On this machine's clock."""
    lost_frames: int = 0

    def at(self, seconds: float) -> float:
        """A script's second in Unix time."""
        return self.from_at + seconds


@dataclass
class _Line:
    """The source whose sensor is played: nothing from outside comes in."""

    native: Native
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.native.source

    def run(self, emit: Emit, stop: object) -> None:
        raise AssertionError("the replay itself hands over what its sensor says")

    def report(self) -> LineReport:
        return self.native.report()


def play_into(
    store: Path,
    player: Player,
    *,
    machine: str,
    from_at: float,
    sensor: str = "replay",
    speed: float = math.inf,
    label: bool = False,
    max_bytes: int = MAX_STORE_BYTES,
    flush_seconds: float = FLUSH_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    flushed: Callable[[float], None] = lambda at: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Replayed:
    """Play all into a store, through a bridge in this process, `speed` times as fast as it was; inf waits for nothing.

    `from_at`: Unix time of its first sample. `flushed` is called with each flush, at that time of the replay: what came
    before is in the store. With `label` each span of a running machine gets its label there. Raises StoreError.
    """
    recorder = Recorder(
        store, max_bytes=max_bytes, opened_at=from_at, flush_seconds=flush_seconds, flush_bytes=FLUSH_BYTES
    )
    try:
        after = [run.ended_at for run in recorder.runs(machine=machine)]
        if after and max(after) > from_at:
            raise StoreError(
                f"{store}: expected a replay that begins after what there is of {machine}, which ends "
                f"{max(after) - from_at:,.1f} s after its beginning"
            )
        firmware = Firmware(player, name=sensor, boot=1 + int(from_at) % 0xFFFF)
        # One store may hold many machines that were replayed: each has a line of its own, as in a plant.
        native = Native(source=f"replay {machine}", machine=machine)
        at = 0.0
        bridge = Bridge(
            sources=[_Line(native)],
            recorder=recorder,
            flush_seconds=flush_seconds,
            flush_bytes=FLUSH_BYTES,
            monotonic=lambda: at,
            unix=lambda: from_at + at,
        )
        began, next_flush = clock(), flush_seconds
        for block in player.blocks(FRAMES_AT_ONCE * firmware.block):
            if stopping():
                break
            data = firmware.say(block)
            at = firmware.now_us / 1e6
            bridge.take(native.take(data, at))
            if at >= next_flush or recorder.pending_bytes >= FLUSH_BYTES:
                _wait_until(began + at / speed, clock, sleep)
                bridge.flush()
                flushed(at)
                next_flush = at + flush_seconds
        _wait_until(began + at / speed, clock, sleep)
        bridge.flush()
        if label:
            for span in player.spans:
                if span.state == "running" and span.from_at < at:
                    recorder.label(machine, from_at + span.from_at, from_at + span.to_at, span.label, noted_at=from_at)
        flushed(at)
        return Replayed(
            from_at=from_at,
            to_at=from_at + at,
            spans=player.spans,
            took_seconds=clock() - began,
            lost_frames=sum(one.lost_frames for one in native.report().sensors.values()),
        )
    finally:
        recorder.close()


def _wait_until(due: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
    if (left := due - clock()) > 0:
        sleep(left)


def play_to_socket(
    path: Path, player: Player, *, sensor: str, stopping: Callable[[], bool] = lambda: False
) -> Replayed:
    """Serve one bridge at a time on a Unix socket, in real time, from the moment the first one is there.

    What is said while nobody listens is lost, as a sensor's is. Raises OSError.
    """
    if path.is_socket():
        path.unlink()
    firmware = Firmware(player, name=sensor, boot=1 + int(time.time()) % 0xFFFF)
    lost = 0
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        listening.settimeout(SOCKET_SECONDS)
        try:
            bridge = None
            while bridge is None and not stopping():
                bridge = _accepted(listening)
            began, from_at, at = time.monotonic(), time.time(), 0.0
            for block in player.blocks(firmware.block):
                if stopping():
                    break
                data = firmware.say(block)
                at = firmware.now_us / 1e6
                _wait_until(began + at, time.monotonic, time.sleep)
                if bridge is None:
                    listening.settimeout(0.0)
                    bridge = _accepted(listening)
                    data = firmware.hello() + data if bridge is not None else data
                bridge = bridge if bridge is not None and _heard(bridge, data) else None
                lost += bridge is None
            if bridge is not None:
                bridge.close()
            return Replayed(
                from_at=from_at,
                to_at=from_at + at,
                spans=player.spans,
                took_seconds=time.monotonic() - began,
                lost_frames=lost,
            )
        finally:
            path.unlink(missing_ok=True)


def _accepted(listening: socket.socket) -> socket.socket | None:
    try:
        connected, _ = listening.accept()
    except (TimeoutError, BlockingIOError):
        return None
    connected.settimeout(1.0)
    return connected


def _heard(bridge: socket.socket, data: bytes) -> bool:
    """Whether it is still there."""
    try:
        bridge.sendall(data)
    except OSError:
        bridge.close()
        return False
    return True


# --- what is played --------------------------------------------------------------------------------------------------


def load_takes(
    paths: Sequence[str], *, sampling_rate_hz: float | None = None, seed: int = 0
) -> tuple[list[Recording], float]:
    """Recordings of all the paths, `simulated` among them, and the rate that they share. Raises DataError."""
    found: list[Recording] = []
    for path in paths:
        if path == SIMULATED:
            found += simulated_machine(seed)
        else:
            found += recordings_at(Path(path), sampling_rate_hz=sampling_rate_hz)
    if not found:
        raise DataError(f"{', '.join(paths)}: expected recordings, found none")
    rates = sorted({recording.sampling_rate_hz for recording in found})
    if len(rates) != 1:
        raise DataError(f"{', '.join(paths)}: expected one sampling rate for all recordings, got {rates} Hz")
    return found, rates[0]


def simulated_machine(seed: int = 0, *, seconds: float = SIMULATED_SECONDS, severity: float = 16.0) -> list[Recording]:
    """One simulated machine at one speed: healthy, and with each fault of its bearing (a 6205 at 1,770 rpm, about)."""
    from fedmq.simulator import CLASSES, SAMPLING_RATE_HZ, simulate_vibration

    rng = np.random.default_rng((seed, 0x51A1))
    shaft_hz, resonance_hz = rng.uniform(29.2, 29.8), 3000.0 * rng.uniform(0.8, 1.2)
    return [
        Recording(
            label=label,
            name=f"simulated-{label}",
            signal=simulate_vibration(
                label=label,
                severity=severity,
                shaft_hz=shaft_hz,
                load=1.0,
                resonance_hz=resonance_hz,
                seconds=seconds,
                rng=np.random.default_rng((seed, place)),
            ),
            sampling_rate_hz=SAMPLING_RATE_HZ,
        )
        for place, label in enumerate(CLASSES)
    ]


def to_takes(recordings: Sequence[Recording], labels: set[str] | None = None) -> list[Take]:
    """In memory; those with one of the `labels`, or all. Raises DataError."""
    takes, values = [], 0
    for recording in recordings:
        if labels is not None and recording.label not in labels:
            continue
        take = Take(label=recording.label, name=recording.name, values=signal_of(recording, MOST_VALUES - values))
        values += take.values.size
        takes.append(take)
    return takes


# --- the command -----------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    """`fedmq replay`; returns its exit status."""
    speed = _speed(arguments)
    if arguments.watch is not None:
        Alertbook.existing(arguments.watch).close()  # a wrong path is told before anything is played
    recordings, rate_hz = load_takes(arguments.recording, sampling_rate_hz=arguments.sampling_rate, seed=arguments.seed)
    script = None if arguments.script is None else parse_script(arguments.script)
    labels = None if script is None else {step.label for step in script if step.kind == "play"}
    takes = to_takes(recordings, labels)
    if not takes:
        there = ", ".join(sorted({recording.label for recording in recordings}))
        raise ScriptError(
            f"script: expected labels that there are recordings of ({there}), got {', '.join(labels or ())}"
        )
    if takes[0].values.shape[1] > MAX_CHANNELS:
        raise DataError(f"expected recordings of at most {MAX_CHANNELS} channels, got {takes[0].values.shape[1]}")
    player = Player(
        takes,
        script if script is not None else whole(takes, rate_hz),
        rate_hz=rate_hz,
        seed=arguments.seed,
        noise_g=arguments.noise,
        ramp_seconds=arguments.ramp,
    )
    stop = _Stop()
    if arguments.socket is not None:
        print(f"waiting for a bridge at {arguments.socket}", flush=True)
        played = play_to_socket(arguments.socket, player, sensor=arguments.sensor, stopping=stop)
    else:
        played = play_into(
            arguments.store,
            player,
            machine=arguments.machine,
            from_at=_begin(arguments, player.seconds, speed),
            sensor=arguments.sensor,
            speed=speed,
            label=arguments.label,
            flushed=_progress(player.seconds),
            stopping=stop,
        )
    for line in summary(played, arguments.machine):
        print(line)
    if arguments.watch is not None:
        book = Alertbook.existing(arguments.watch)
        try:
            until = time.monotonic() + arguments.wait
            while judged_until(book, played) < played.to_at and time.monotonic() < until and not stop():
                time.sleep(WAIT_SECONDS)
            for line in came_of_it(book, arguments.machine, played):
                print(line)
        finally:
            book.close()
    return 0


def _speed(arguments: argparse.Namespace) -> float:
    try:
        speed = math.inf if arguments.speed == "max" else float(arguments.speed)
    except ValueError:
        speed = math.nan
    if not speed > 0:
        raise ValueError(f"--speed: expected a number above 0, or max, got {arguments.speed!r}")
    if arguments.socket is not None and arguments.speed not in ("max", "1"):
        raise ValueError(
            f"--speed: expected 1 with --socket, got {arguments.speed}: a sensor whose clock runs too fast is a broken"
            " one to a bridge; with --store the clock is the replay's"
        )
    return speed


def _begin(arguments: argparse.Namespace, seconds: float, speed: float) -> float:
    """Unix time of the first sample."""
    if arguments.begin is not None:
        from fedmq.bridge.times import parse_time

        return parse_time(arguments.begin, datetime.now().astimezone())
    now = time.time()
    begin = now - seconds * (1.0 - 1.0 / speed)
    if arguments.store.is_file():
        store = Store(arguments.store)
        try:
            there = [run.ended_at for run in store.runs(machine=arguments.machine)]
        finally:
            store.close()
        if there and max(there) + APART_SECONDS > begin:
            begin = max(there) + APART_SECONDS
            if (ahead := begin + seconds - now) > APART_SECONDS:
                print(f"it ends {ahead:,.0f} s from now in the store's time: {arguments.machine} has newer samples")
    return begin


class _Stop:
    """Whether it was told to stop: what was played by then is kept and told."""

    def __init__(self) -> None:
        self._told = False
        signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGINT, self._tell)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def __call__(self) -> bool:
        return self._told


def _progress(seconds: float) -> Callable[[float], None]:
    """A line a tenth, on stderr."""
    shown = 0

    def show(at: float) -> None:
        nonlocal shown
        tenth = int(10 * at / seconds)
        if tenth > shown:
            shown = tenth
            print(f"{at:,.0f} of {seconds:,.0f} s played", file=sys.stderr, flush=True)

    return show


def summary(played: Replayed, machine: str) -> Iterator[str]:
    length = played.to_at - played.from_at
    times = f", {length / played.took_seconds:,.0f} times real time" if played.took_seconds > 0.01 else ""
    yield f"played {length:,.1f} s of {machine} in {played.took_seconds:,.1f} s{times}"
    if played.lost_frames:
        yield f"{played.lost_frames:,} frames were lost: nobody listened"
    for span in played.spans:
        what = f"{span.label} ({span.recording})" if span.label else "-"
        speed = f" at {span.speed:g} times its speed" if span.speed not in (0.0, 1.0) else ""
        times = f"{clock_time(played.at(span.from_at))} to {clock_time(played.at(span.to_at))}"
        yield f"  {times}  {span.state:8}  {what}{speed}"


def clock_time(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="seconds")[:19]


def judged_until(book: Alertbook, played: Replayed) -> float:
    """Unix time up to which a watch has judged what was played here; the end of it where no window is left to judge."""
    latest = max((one.at for one in book.positions().values()), default=0.0)
    return played.to_at if latest >= played.to_at - min(LAST_SECONDS, (played.to_at - played.from_at) / 2) else latest


def came_of_it(book: Alertbook, machine: str, played: Replayed) -> Iterator[str]:
    """The alerts that a watch raised of it, each with how long what it tells had been there."""
    until = judged_until(book, played)
    if until < played.from_at:
        yield "no watch has judged any of it yet: `fedmq watch run` does"
        return
    if until < played.to_at:
        yield f"judged up to {clock_time(until)} so far"
    alerts = [
        alert
        for alert in book.alerts(machine=machine)
        if played.from_at <= alert.opened_at <= played.to_at + LAST_SECONDS
    ]
    before = [
        str(alert.id)
        for alert in book.alerts(machine=machine)
        if alert.opened_at < played.from_at and (alert.to_at is None or alert.to_at > played.from_at)
    ]
    if before:
        yield f"open from before, and not raised again: alert {', '.join(before)}"
    yield f"{len(alerts)} alert{'' if len(alerts) == 1 else 's'} came of it"
    for alert in sorted(alerts, key=lambda one: one.id):
        began = fault_began(played.spans, alert.opened_at - played.from_at)
        after = (
            "of nothing that was wrong in the replay" if began is None else f"{began[1]:.1f} s after {began[0]} began"
        )
        named = f" ({alert.label})" if alert.label else ""
        yield f"  {clock_time(alert.opened_at)}  alert {alert.id}: {alert.kind}{named}, {alert.severity}, {after}"


def fault_began(spans: Sequence[Span], at: float) -> tuple[str, float] | None:
    """Label of the fault that is played then, and for how long it has been; None of a machine that is well."""
    began: tuple[str, float] | None = None
    for span in spans:
        if span.from_at > at:
            break
        if span.label in ("", HEALTHY):
            began = None if span.label else began
        elif began is None or began[0] != span.label:
            began = (span.label, span.from_at)
    return None if began is None else (began[0], at - began[1])
