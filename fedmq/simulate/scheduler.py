"""Virtual time: what is to happen, in order, and a trace of what did.

A heap of (time, number, action): the number settles what happens at the same time, so that nothing depends on chance or
on the order of a set. The trace is a running sha256 over one line for each event, and on request the lines themselves.
Refuses to know what an action does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any
from zlib import crc32

__all__ = ["Line", "Scheduler", "Trace"]


@dataclass(frozen=True)
class Line:
    """One event, as it is kept for a story."""

    at: float
    what: str
    who: str
    topic: str = ""
    payload: bytes = field(default=b"", repr=False)


class Trace:
    """What happened. `digest` names the whole course; `lines` is empty unless they are to be kept."""

    def __init__(self, *, keep: bool = False) -> None:
        self.events = 0
        self.acknowledgements = 0
        """Of the events."""
        self.lines: list[Line] = []
        self._keep = keep
        self._hash = hashlib.sha256()
        self._gathered: list[str] = []

    def event(self, at: float, what: str, who: str, topic: str = "", payload: bytes = b"") -> None:
        """Something that counts as an event: see docs/simulation.md."""
        self.events += 1
        self._gathered.append(f"{at!r} {what} {who} {topic} {crc32(payload)}\n")
        if len(self._gathered) >= 1024:
            self._flush()
        if self._keep:
            self.lines.append(Line(at, what, who, topic, payload))

    def acknowledged(self, at: float, who: str) -> None:
        """An acknowledgement has arrived: an event, of which no story tells."""
        self.events += 1
        self.acknowledgements += 1
        self._gathered.append(f"{at!r} {who}\n")

    def note(self, at: float, what: str, who: str, topic: str = "", payload: bytes = b"") -> None:
        """Something that belongs to the story, and is no event."""
        # Not Python's own hash of the payload, which differs from process to process.
        self._gathered.append(f"{at!r} {what} {who} {topic} {crc32(payload)}\n")
        if self._keep:
            self.lines.append(Line(at, what, who, topic, payload))

    @property
    def digest(self) -> str:
        """sha256 over all lines so far, in hex."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update("".join(self._gathered).encode())
        self._gathered.clear()


class Scheduler:
    """The heap. Actions are called with their one argument at their time; `now` is then that time."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self._heap: list[tuple[float, int, Callable[[Any], object], Any]] = []
        self._number = 0

    def at(self, time: float, action: Callable[[Any], object], argument: Any = None) -> None:
        """Not before now, whatever `time` says."""
        self._number += 1
        heappush(self._heap, (time if time > self.now else self.now, self._number, action, argument))

    @property
    def next_at(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def run_until(self, time: float, trace: Trace, most_events: int | None) -> None:
        """Do everything up to and at `time`, which is then now; or stop once the trace has come to so many events."""
        heap = self._heap
        while heap and heap[0][0] <= time:
            self.now, _, action, argument = heappop(heap)
            action(argument)
            if most_events is not None and trace.events >= most_events:
                return
        self.now = max(self.now, time)
