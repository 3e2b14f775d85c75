"""A TCP proxy that stands for a poor radio link: slow, lossy, and cut off every now and then.

TCP hides loss behind waiting: a segment that is lost comes a retransmission timeout later, and everything behind it
waits. So that is what is played here: each segment is lost with a probability, again and again, and each time costs
a timeout. What the link carries is counted, so that a test can tell a transfer that goes on from one that starts anew.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from random import Random
from types import TracebackType
from typing import Self

SEGMENT_BYTES = 512


class SlowLink:
    """Stands before a broker. `cuts_up` and `cuts_down` say after how many bytes that way, counted from the start, all
    connections are ended."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        bytes_per_second: float,
        loss: float,
        timeout_seconds: float = 0.2,
        cuts_up: Sequence[int] = (),
        cuts_down: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._rate = bytes_per_second
        self._loss = loss
        self._timeout = timeout_seconds
        self._cuts_up = deque(cuts_up)
        self._cuts_down = deque(cuts_down)
        self._rng = Random(seed)
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.cuts = 0
        self.segments_lost = 0
        self.bytes_up = 0
        self.bytes_down = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._end_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self.connections += 1
                self._open += [client, broker]
            for source, sink, up in ((client, broker, True), (broker, client, False)):
                # Small buffers: what waits for the link waits at its sender, as it would before a radio.
                source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink, up), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(SEGMENT_BYTES):
                time.sleep(len(data) / self._rate + self._retransmissions() * self._timeout)
                if self._count(len(data), up):
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _retransmissions(self) -> int:
        lost = 0
        with self._lock:
            while self._rng.random() < self._loss:
                lost += 1
            self.segments_lost += lost
        return lost

    def _count(self, size: int, up: bool) -> bool:
        """True when the link is cut just now."""
        with self._lock:
            if up:
                self.bytes_up += size
            else:
                self.bytes_down += size
            passed, cuts = (self.bytes_up, self._cuts_up) if up else (self.bytes_down, self._cuts_down)
            if not cuts or passed < cuts[0]:
                return False
            cuts.popleft()
            self.cuts += 1
            self._end_all()
            return True

    def _end_all(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()
