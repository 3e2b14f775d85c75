"""The bridge at work: a thread for each source, what they hear into the store, and a flush from time to time.

Owns the threads, the clock, and when to write. What is heard is in `sources`, what stays is in `store`, how sensors are
is in `health`.

Two things end a bridge: being told to stop, and a bug. A full disk does not: what it does not take is tried again with
the next flush, then dropped, counted and told, and the samples after it are a run of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from fedmq_firmware_bridge.health import INT16_LIMIT, Watch
from fedmq_firmware_bridge.readings import SensorCounts
from fedmq_firmware_bridge.sources import Heard, Source
from fedmq_firmware_bridge.store import Recorder, StoreError

__all__ = ["Bridge", "Keeping"]

log = logging.getLogger("fedmq.bridge")

MOST_BATCHES_WAITING = 4
"""Where the disk takes nothing, so many times `flush_bytes` gather before they are dropped."""
MAX_SENSORS = 1024


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What of a source is kept: the first `seconds` of every `every_seconds`, so that storage lasts. 0 keeps all."""

    seconds: float = 0.0
    every_seconds: float = 0.0
    clips_at: int = INT16_LIMIT


class Bridge:
    """`run` works until `stopping` is set, then writes what there is and gives the store back in order."""

    def __init__(
        self,
        *,
        sources: Sequence[Source],
        recorder: Recorder,
        flush_seconds: float,
        flush_bytes: int,
        keeping: Mapping[str, Keeping] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self._sources = {source.name: source for source in sources}
        self._recorder = recorder
        self._flush_seconds = flush_seconds
        self._flush_bytes = flush_bytes
        self._keeping = keeping or {}
        self._monotonic = monotonic
        self._unix = unix
        self._lock = threading.Lock()
        """Over watches and what was left out; never held while the disk works."""
        self._watches: dict[tuple[str, int], Watch] = {}
        self._left_out: set[tuple[str, int]] = set()
        """Sensors of which something was not kept: what comes next follows nothing."""
        self._dropped_bytes = 0
        self._full = threading.Event()
        self._stop = threading.Event()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    @stopping.setter
    def stopping(self, value: bool) -> None:
        if value:
            self._stop.set()
            self._full.set()

    def run(self) -> None:
        if self._recorder.lost is not None:
            log.warning("%s", self._recorder.lost)
        threads = [
            threading.Thread(target=self._work, args=(source,), name=f"source {source.name}", daemon=True)
            for source in self._sources.values()
        ]
        for thread in threads:
            thread.start()
        while not self.stopping:
            self._full.wait(self._flush_seconds)
            self._full.clear()
            self.flush()
        for thread in threads:
            thread.join(10.0)
        self.flush()
        self._recorder.close()

    def _work(self, source: Source) -> None:
        try:
            source.run(self.take, self._stop)
        except Exception:
            # A bug in one source must not be silent, and must not go on as half a bridge: a supervisor starts it anew.
            log.exception("source %s has ended; so does the bridge", source.name)
            self.stopping = True

    def take(self, heard: Sequence[Heard]) -> None:
        """From the sources' threads."""
        now = self._monotonic()
        offset = self._unix() - now
        with self._lock:
            for one in heard:
                self._take(one, now, offset)
            if self._recorder.pending_bytes >= self._flush_bytes:
                self._full.set()

    def _take(self, heard: Heard, now: float, offset: float) -> None:
        sensor = (heard.sensor.source, heard.sensor.number)
        keeping = self._keeping.get(heard.sensor.source, Keeping())
        watch = self._watches.get(sensor)
        if watch is None:
            if len(self._watches) >= MAX_SENSORS:
                return
            watch = self._watches[sensor] = Watch(clips_at=keeping.clips_at)
        watch.observe(heard, now)
        if keeping.every_seconds and heard.stretch.taken_at % keeping.every_seconds >= keeping.seconds:
            self._left_out.add(sensor)
            return
        if self._recorder.pending_bytes >= MOST_BATCHES_WAITING * self._flush_bytes:
            dropped = self._recorder.forget_pending()
            self._dropped_bytes += dropped
            self._left_out.update(self._watches)
            log.error("the store takes nothing: %d bytes of samples are dropped", dropped)
        stretch = heard.stretch
        if sensor in self._left_out:
            self._left_out.discard(sensor)
            stretch = replace(stretch, follows=False)
        self._recorder.append(heard.sensor, stretch, offset)

    def reports(self) -> dict[str, object]:
        """How its sources and sensors are now; for any thread."""
        with self._lock:
            return self._reports(self._monotonic())

    def flush(self) -> None:
        reports = self.reports()
        try:
            self._recorder.flush(self._unix(), reports)
        except StoreError as error:
            log.error("%s; trying again in %g s", error, self._flush_seconds)

    def _reports(self, now: float) -> dict[str, object]:
        unix = self._unix()
        lines = {name: source.report() for name, source in self._sources.items()}
        sensors = []
        for (source, number), watch in self._watches.items():
            counts = lines[source].sensors.get(number, SensorCounts())
            sensors.append(watch.report(now, unix, counts))
        return {
            "at": unix,
            "flush_seconds": self._flush_seconds,
            "dropped_bytes": self._dropped_bytes,
            "lost": None if self._recorder.lost is None else str(self._recorder.lost),
            "sources": {
                name: {key: value for key, value in asdict(line).items() if key != "sensors"}
                for name, line in lines.items()
            },
            "sensors": sensors,
        }
