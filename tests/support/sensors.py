"""A sensor that tests play: its samples count, so that what is missing, doubled or joined shows in the values."""

from __future__ import annotations

import os
import pty
import threading
import tty
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fedmq_firmware_bridge.frames import Channel, Hello, Samples, encode
from fedmq_firmware_bridge.readings import Stretch
from fedmq_firmware_bridge.sources import Emit, LineReport
from fedmq_firmware_bridge.store import Run, SensorInfo, Store
from numpy.typing import NDArray

CHANNELS = (Channel(name="x", unit="m/s2"), Channel(name="y", unit="m/s2"), Channel(name="z", unit="m/s2"))


def counting(first: int, count: int) -> NDArray[np.int16]:
    """Three channels: the low 15 bits of each sample's number, the next 15, and a sine."""
    n = np.arange(first, first + count)
    return np.stack([n & 0x7FFF, n >> 15, np.rint(300 * np.sin(n / 7))], axis=1).astype(np.int16)


def numbers(values: NDArray[Any]) -> NDArray[np.int64]:
    """Of samples that `counting` made."""
    wide = values.astype(np.int64)
    return wide[:, 0] + (wide[:, 1] << 15)


@dataclass(kw_only=True)
class CountingSensor:
    """`frame` is the next one, whether anybody hears it or not."""

    rate_mhz: int = 3_200_000
    block: int = 64
    sensor: int = 1
    boot: int = 7
    made: int = 0
    greeted: int = 0

    def frame(self) -> bytes:
        first = self.made * self.block
        frame = Samples(
            sensor=self.sensor,
            boot=self.boot,
            sequence=self.made,
            taken_us=first * 1_000_000_000 // self.rate_mhz,
            rate_mhz=self.rate_mhz,
            scale=0.01,
            values=counting(first, self.block),
        )
        self.made += 1
        return encode(frame)

    def hello(self) -> bytes:
        frame = Hello(
            sensor=self.sensor,
            boot=self.boot,
            sequence=self.greeted,
            uid=b"counting".ljust(16, b"\0"),
            name="counting",
            firmware="1",
            now_us=self.made * self.block * 1_000_000_000 // self.rate_mhz,
            rate_mhz=self.rate_mhz,
            scale=0.01,
            channels=CHANNELS,
        )
        self.greeted += 1
        return encode(frame)


class Cable:
    """A pseudo terminal behind a stable name, as udev gives a serial port one. `pull` takes it away."""

    def __init__(self, name: Path) -> None:
        self.name = name
        self._master: int | None = None

    def plug(self) -> None:
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(self._master, False)
        self.name.unlink(missing_ok=True)
        self.name.symlink_to(os.ttyname(slave))
        os.close(slave)

    def pull(self) -> None:
        assert self._master is not None
        self.name.unlink()
        os.close(self._master)
        self._master = None

    def send(self, data: bytes) -> int:
        """Bytes that fitted; nobody may be listening."""
        assert self._master is not None
        try:
            return os.write(self._master, data)
        except OSError:
            return 0


class Played:
    """A source that does what a test says, in the bridge's own thread for it."""

    def __init__(self, name: str = "motor", do: Callable[[Emit], None] = lambda emit: None) -> None:
        self.name = name
        self._do = do

    def run(self, emit: Emit, stop: threading.Event) -> None:
        self._do(emit)
        stop.wait()

    def report(self) -> LineReport:
        return LineReport(connected=True, failed=2)


INFO = SensorInfo(source="motor", number=1, name="counting", machine="pump-3", channels=CHANNELS)


def stretch(first: int, count: int, *, follows: bool = True, taken_at: float | None = None, **more: Any) -> Stretch:
    """At 1,000 Hz; sample n is taken at n / 1,000 s."""
    values: dict[str, Any] = {
        "sensor": 1,
        "boot": 7,
        "taken_at": first / 1000 if taken_at is None else taken_at,
        "taken_us": first * 1000,
        "rate_hz": 1000.0,
        "scale": 0.01,
        "values": counting(first, count),
        "follows": follows,
    }
    return Stretch(**(values | more))


def kept(store: Store) -> list[tuple[Run, NDArray[np.int64]]]:
    """Every run with the numbers of its samples."""
    return [(run, numbers(store.read(run, run.start, run.stop))) for run in store.runs()]


def is_whole(numbers_of_run: Iterable[int]) -> bool:
    """Whether nothing is missing or doubled within."""
    values = list(numbers_of_run)
    return values == list(range(values[0], values[0] + len(values)))
