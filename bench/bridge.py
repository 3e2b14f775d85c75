"""What the bridge costs and how much it takes: `python bench/bridge.py --help`.

Sensors are played by a process of their own and write into pseudo terminals; the bridge reads these as it reads serial
ports, with its decoder, its bookkeeping and its store on disk, in a process whose CPU is measured. First at the pace of
real sensors, then at growing paces until not everything comes through in time: the last pace that did is the highest
rate. Every sample is counted: what was sent is held against what is in the store.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import pty
import select
import sys
import tempfile
import threading
import time
import tty
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from fedmq_firmware_bridge.frames import Channel, Hello, Samples, encode
from fedmq_firmware_bridge.port import Port
from fedmq_firmware_bridge.readings import Stretch
from fedmq_firmware_bridge.service import Bridge
from fedmq_firmware_bridge.sources import Native
from fedmq_firmware_bridge.store import Recorder, SensorInfo, Store

BLOCK = 64
CHANNELS = tuple(Channel(name=name, unit="m/s2") for name in "xyz")
PAUSE_SECONDS = 0.002
WAIT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    rate_hz: float
    sent: int
    """Samples of each channel, of all ports."""
    kept: int
    lost: int
    """Frames."""
    cpu_share: float
    """Of one core, while sensors sent."""
    late: bool
    """Whether the sensors could not write at their pace, because the bridge did not read."""
    stored_bytes: int

    @property
    def right(self) -> bool:
        return self.sent == self.kept and self.lost == 0 and not self.late


def frames_of(rate_hz: float, count: int) -> list[bytes]:
    rng = np.random.default_rng(1)
    rate_mhz = round(rate_hz * 1000)
    hello = Hello(
        sensor=1,
        boot=1,
        sequence=0,
        uid=bytes(16),
        name="bench",
        firmware="1",
        now_us=0,
        rate_mhz=rate_mhz,
        scale=0.01,
        channels=CHANNELS,
    )
    blocks = [
        encode(
            Samples(
                sensor=1,
                boot=1,
                sequence=sequence,
                taken_us=sequence * BLOCK * 1_000_000_000 // rate_mhz,
                rate_mhz=rate_mhz,
                scale=0.01,
                values=rng.normal(0, 200, (BLOCK, 3)).astype(np.int16),
            )
        )
        for sequence in range(count)
    ]
    return [encode(hello), *blocks]


def read_ports(names: list[str], store: Path, control: Connection) -> None:
    """The measured process: a bridge, told when to look at its CPU and when to end."""
    recorder = Recorder(store, max_bytes=4 << 30, opened_at=time.time(), flush_seconds=5.0, flush_bytes=4_000_000)
    ports = [
        Port(f"port-{place}", name, Native(source=f"port-{place}", machine="m")) for place, name in enumerate(names)
    ]
    bridge = Bridge(sources=ports, recorder=recorder, flush_seconds=5.0, flush_bytes=4_000_000)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    while not all(port.report().connected for port in ports):
        time.sleep(0.01)
    control.send("open")
    while (word := control.recv()) != "end":
        assert word == "look"
        samples = sum(count.samples for port in ports for count in port.report().sensors.values())
        control.send((time.process_time(), samples))
    bridge.stopping = True
    thread.join()
    control.send(sum(count.lost_frames for port in ports for count in port.report().sensors.values()))


def run(ports: int, rate_hz: float, seconds: float, folder: Path) -> Outcome:
    count = max(1, round(rate_hz * seconds / BLOCK))
    frames = frames_of(rate_hz, count)
    pairs = [pty.openpty() for _ in range(ports)]
    for _, slave in pairs:
        tty.setraw(slave)
    masters = [master for master, _ in pairs]
    for master in masters:
        os.set_blocking(master, False)
    store = folder / f"{ports}-{rate_hz:.0f}.sqlite"
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=read_ports, args=([os.ttyname(slave) for _, slave in pairs], store, there))
    process.start()
    assert here.recv() == "open"
    here.send("look")
    cpu_before, _ = here.recv()
    late = play(masters, frames, rate_hz)
    expected = ports * count * BLOCK
    until = time.monotonic() + WAIT_SECONDS
    while True:
        here.send("look")
        cpu_after, came = here.recv()
        if came >= expected or time.monotonic() > until:
            break
        time.sleep(0.02)
    here.send("end")
    lost = here.recv()
    process.join()
    for pair in pairs:
        for end in pair:
            os.close(end)
    opened = Store(store)
    kept = sum(run.stop - run.start for run in opened.runs())
    opened.close()
    size = store.stat().st_size
    store.unlink()
    span = count * BLOCK / rate_hz
    return Outcome(
        rate_hz=rate_hz,
        sent=expected,
        kept=kept,
        lost=lost,
        cpu_share=(cpu_after - cpu_before) / span,
        late=late,
        stored_bytes=size,
    )


def play(masters: list[int], frames: list[bytes], rate_hz: float) -> bool:
    """Write every frame to every port when a sensor would; whether that was late by more than a second at the end.

    What a port does not take waits here: a real one would wait in its driver, and then lose it.
    """
    waiting = {master: bytearray() for master in masters}
    began = time.monotonic()
    sent = 0
    span = (len(frames) - 1) * BLOCK / rate_hz
    while sent < len(frames) or any(waiting.values()):
        due = min(len(frames), 1 + int((time.monotonic() - began) * rate_hz / BLOCK))
        if due > sent:
            block = b"".join(frames[sent:due])
            for queue in waiting.values():
                queue += block
            sent = due
        ready = [master for master, queue in waiting.items() if queue]
        if ready:
            _, writable, _ = select.select([], ready, [], PAUSE_SECONDS)
            for master in writable:
                # Small pieces: a pseudo terminal that is nearly full takes part of a large one again and again.
                written = os.write(master, bytes(waiting[master][:2048]))
                del waiting[master][:written]
            if not writable:
                continue
        if time.monotonic() - began > 3 * span + WAIT_SECONDS:
            return True
        if not any(waiting.values()):
            time.sleep(PAUSE_SECONDS)
    return time.monotonic() - began > span + 1.0


def most_of_a_core(ports: int, frames_each: int, folder: Path) -> tuple[float, bool]:
    """Samples a second of each axis and port that one core decodes, checks and stores, pieces of 1,024 bytes being at
    hand; and whether all are in the store. What a kernel takes to bring them is not in it."""
    streams = [b"".join(frames_of(3200.0, frames_each))] * ports
    talks = [Native(source=f"port-{place}", machine="m") for place in range(ports)]
    store = folder / "core.sqlite"
    recorder = Recorder(store, max_bytes=4 << 30, opened_at=0.0, flush_seconds=5.0, flush_bytes=4_000_000)
    bridge = Bridge(sources=[], recorder=recorder, flush_seconds=5.0, flush_bytes=4_000_000)
    began = time.process_time()
    for at in range(0, len(streams[0]), 1024):
        for talk, stream in zip(talks, streams, strict=True):
            bridge.take(talk.take(stream[at : at + 1024], at / 68_000))
        if recorder.pending_bytes >= 4_000_000:
            recorder.flush(0.0, {})
    recorder.flush(0.0, {})
    spent = time.process_time() - began
    kept = sum(run.stop - run.start for run in recorder.runs())
    recorder.close()
    return frames_each * BLOCK / spent, kept == ports * frames_each * BLOCK


def wear(flush_seconds: int, folder: Path) -> float:
    """Bytes written to the disk for each byte of samples, of four sensors of three axes at 3.2 kHz for 20 minutes into
    a ring that holds 11. Linux's count for this process: a folder in memory would show nothing."""
    rng = np.random.default_rng(0)
    signal = rng.normal(0, 200, (3200, 3)).astype(np.int16)
    recorder = Recorder(folder / f"wear-{flush_seconds}.sqlite", max_bytes=50_000_000, opened_at=0.0)
    before, samples = written_bytes(), 0
    for second in range(1200):
        for place in range(4):
            sensor = SensorInfo(source=f"port-{place}", number=1, name="bench", machine="m", channels=CHANNELS)
            stretch = Stretch(
                sensor=1,
                boot=1,
                taken_at=float(second),
                taken_us=second * 1_000_000,
                rate_hz=3200.0,
                scale=0.01,
                values=signal,
                follows=True,
            )
            recorder.append(sensor, stretch, 0.0)
            samples += signal.nbytes
        if (second + 1) % flush_seconds == 0:
            recorder.flush(float(second), {})
    recorder.close()
    return (written_bytes() - before) / samples


def written_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ports", type=int, default=4)
    parser.add_argument("--rate", type=float, default=3200.0, help="samples a second of each axis (3,200)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run (20)")
    parser.add_argument("--most", action="store_true", help="also look for the highest rate")
    parser.add_argument("--folder", type=Path, help="where stores are made: the disk to measure (default: temporary)")
    parser.add_argument("--wear", action="store_true", help="only measure what is written for each byte of samples")
    words = parser.parse_args()
    print(
        f"{platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    )
    with tempfile.TemporaryDirectory(dir=words.folder) as name:
        folder = Path(name)
        if words.wear:
            for seconds in (1, 5, 30, 120):
                print(f"flush every {seconds:>3} s: {wear(seconds, folder):.2f} bytes written for each byte of samples")
            return 0
        first = run(words.ports, words.rate, words.seconds, folder)
        show(words.ports, first)
        rate, best = words.rate, first
        while words.most and best.right:
            rate *= 1.5
            found = run(words.ports, rate, min(words.seconds, 10.0), folder)
            show(words.ports, found)
            if not found.right:
                break
            best = found
        core_hz, whole = most_of_a_core(words.ports, 4000, folder)
    if words.most:
        print(f"highest rate that came through whole: {words.ports} ports x {best.rate_hz:,.0f} Hz x 3 axes")
    print(f"one core decodes, checks and stores {words.ports} ports x {core_hz:,.0f} Hz x 3 axes; all kept: {whole}")
    return 0 if first.right and whole else 1


def show(ports: int, found: Outcome) -> None:
    words: list[Any] = [f"{ports} ports at {found.rate_hz:>9,.0f} Hz x 3 axes:"]
    words.append(f"{found.kept:,} of {found.sent:,} samples kept, {found.lost} frames lost,")
    words.append(f"{found.cpu_share:.1%} of one core, {found.stored_bytes:,} bytes on disk")
    words.append(", LATE" if found.late else "")
    print(*words)


if __name__ == "__main__":
    sys.exit(main())
