"""Runs that take too long are stopped, from a thread that looks at them now and then.

Owns how long a run may go on. It reads no clock: a thread looks four times in that span, and a run that it meets once
more often than that has had its time. So a process that was itself stopped for a while blames nobody, and a run that is
over before the thread looks costs no more than two assignments. The thread ends by itself where nothing runs any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Watch", "Watchdog"]

LOOKS = 4
"""A run is stopped after its span, and at the latest a quarter of that later."""


class Watch:
    """One run. `late` once its time is over; `stop` is then called, from another thread."""

    def __init__(self) -> None:
        self.late = False
        self.stop: Callable[[], None] = lambda: None


class Watchdog:
    """Watches one run at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._running: Watch | None = None
        self._runs = 0
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """While this lasts, a run."""
        watch = Watch()
        self._running = watch
        self._runs += 1
        if self._thread is None:
            self._wake()
        try:
            yield watch
        finally:
            self._running = None

    def _wake(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
                self._thread.start()

    def _look(self) -> None:
        pause = threading.Event()
        met, times, runs = None, 0, -1
        while True:
            pause.wait(self.seconds / LOOKS)
            with self._lock:
                running = self._running
                if running is None and runs == self._runs:
                    self._thread = None
                    return
                runs = self._runs
            times = times + 1 if running is met else 0
            met = running
            if running is not None and times == LOOKS:
                running.late = True
                running.stop()
