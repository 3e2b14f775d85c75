"""Transfers that go on over a bad link: what has come stays, only what is missing is asked for, and not too soon.

Owns when a gateway asks again for the chunks of a blob that is coming in, when it gives up on one, and how many chunks
of its own payload are on their way at a time. Pure: the time, the bytes that the socket has received and the messages
under way come in as numbers. How a blob is cut and checked is in `fedmq_protocol.transfer`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fedmq_protocol.messages import BlobRef, Chunk
from fedmq_protocol.task import short
from fedmq_protocol.transfer import Incoming, chunks, refer

__all__ = ["CHUNK_PAUSE_SECONDS", "UPLINK_CHUNK_BYTES", "Download", "Downloads", "Fetch", "Upload"]

Use = TypeVar("Use")

CHUNK_PAUSE_SECONDS = 2.0
"""A transfer that has been still for so long asks for what is missing, on a fast link."""

LONGEST_PAUSE_SECONDS = 300.0

PAUSE_CHUNKS = 8.0
"""On a slow link it waits for as long as so many chunks took: TCP that loses segments is still for several, and what
is asked for while it only waits comes twice."""

MOVING_BYTES = 256
"""A socket that received more since the last look is taken to be in the middle of a chunk."""

MOST_PAUSES = 4.0
"""The pause doubles with each question that brings nothing, so far."""

ASKS_WITHOUT_A_CHUNK = 5
"""Then the blob is given up: whoever has it does not have it any more."""

UPLINK_CHUNK_BYTES = 8 * 1024
"""A chunk of an update. A link of 2 kB/s carries one in 4 s, and loses no more than that when it breaks."""

WINDOW_FIRST = 2
WINDOW_MOST = 32


class Fetch:
    """A blob that is coming in. Raises TransferError where it is longer than `max_bytes`."""

    def __init__(self, ref: BlobRef, max_bytes: int, *, now: float, received: int, delay_seconds: float) -> None:
        self.incoming = Incoming(ref, max_bytes)
        self._pause = CHUNK_PAUSE_SECONDS
        self._since = now
        self._heard = self._looked = received
        self._missing: tuple[int, ...] = ()
        self.begun = False
        """Whether a chunk has come."""
        self._asked = 0
        self.stalled = False
        """Whether nothing came of asking again and again."""
        self.at = now + self._pause + delay_seconds
        """When it is to be looked at."""

    def add(self, chunk: Chunk, now: float, received: int) -> bytes | None:
        """Take a piece; the blob once it is whole. Raises TransferError, after which all or that piece must come
        again."""
        whole = self.incoming.add(chunk)
        self.begun = True
        self._pause = min(max(CHUNK_PAUSE_SECONDS, PAUSE_CHUNKS * (now - self._since)), LONGEST_PAUSE_SECONDS)
        self._since = now
        self._heard = self._looked = received
        self.at = now + self._pause
        return self.incoming.blob() if whole else None

    def due(self, now: float, received: int) -> tuple[int, ...]:
        """The chunks to ask for now; none while it is not time, or while one seems to be under way."""
        if now < self.at:
            return ()
        moving = received - self._looked > MOVING_BYTES
        self._looked = received
        # Other messages move the socket, too: after the bytes of two chunks this one's would have been among them.
        if moving and received - self._heard < 2 * self.incoming.ref.chunk_bytes:
            self.at = now + self._pause
            return ()
        missing = self.incoming.missing()
        if missing != self._missing:
            self._asked = 0
        if self._asked == ASKS_WITHOUT_A_CHUNK:
            self.stalled = True
            return ()
        self._asked += 1
        self._missing = missing
        self._since = now
        self._heard = received
        self.at = now + min(self._pause * min(2.0**self._asked, MOST_PAUSES), LONGEST_PAUSE_SECONDS)
        return missing

    def resume(self, now: float, received: int, delay_seconds: float) -> None:
        """The connection is new. What the broker has kept comes now; what is missing then is asked for."""
        self._asked = 0
        self._since = now
        self._heard = self._looked = received
        self.at = now + CHUNK_PAUSE_SECONDS + delay_seconds


@dataclass(kw_only=True)
class Download(Generic[Use]):
    """A blob that is coming in, and what it is for by kind: it may be more than one thing."""

    fetch: Fetch
    uses: dict[str, Use] = field(default_factory=dict)


class Downloads(Generic[Use]):
    """What is coming in: one blob of each kind at a time. What has begun goes on, what has not makes room."""

    def __init__(self) -> None:
        self._by_transfer: dict[bytes, Download[Use]] = {}

    def begin(
        self, kind: str, use: Use, ref: BlobRef, max_bytes: int, *, now: float, received: int, delay_seconds: float
    ) -> None:
        """Collect a blob; one that is coming in already goes on. Raises TransferError."""
        key = short(ref.digest)
        same = self._by_transfer.get(key)
        if same is None or same.fetch.incoming.ref != ref:
            fetch = Fetch(ref, max_bytes, now=now, received=received, delay_seconds=delay_seconds)
            same = Download(fetch=fetch)
        for known, other in list(self._by_transfer.items()):
            if other is same or kind not in other.uses:
                continue
            if other.fetch.begun:
                return
            del other.uses[kind]
            if not other.uses:
                del self._by_transfer[known]
        same.uses[kind] = use
        self._by_transfer[key] = same

    @property
    def idle(self) -> bool:
        """Whether nothing is coming in."""
        return not self._by_transfer

    def under_way(self, kind: str) -> bool:
        return any(kind in download.uses for download in self._by_transfer.values())

    def add(self, chunk: Chunk, now: float, received: int) -> tuple[bytes, dict[str, Use]] | None:
        """Take a piece; a blob and what it is for once it is whole. Raises TransferError."""
        download = self._by_transfer.get(chunk.transfer)
        blob = None if download is None else download.fetch.add(chunk, now, received)
        if download is None or blob is None:
            return None
        del self._by_transfer[chunk.transfer]
        return blob, download.uses

    def due(self, now: float, received: int) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        """What to ask for: each transfer, and the chunks that it lacks."""
        for key, download in self._by_transfer.items():
            missing = download.fetch.due(now, received)
            if missing:
                yield key, missing

    def give_up(self) -> list[dict[str, Use]]:
        """Drop what has stalled, and say what that was for."""
        stalled = {key: d.uses for key, d in self._by_transfer.items() if d.fetch.stalled}
        for key in stalled:
            del self._by_transfer[key]
        return list(stalled.values())

    def due_at(self) -> Iterator[float]:
        for download in self._by_transfer.values():
            yield download.fetch.at

    def resume(self, now: float, received: int, delay_seconds: float) -> None:
        """The connection is new: what has come stays."""
        for download in self._by_transfer.values():
            download.fetch.resume(now, received, delay_seconds)


class Upload:
    """A payload on its way out in chunks. Each goes out once, and again where the other end says that it lacks it."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self.ref = refer(payload, UPLINK_CHUNK_BYTES)
        self._waiting: dict[int, None] = {}
        self._under_way: deque[int] = deque()
        self._window = WINDOW_FIRST

    @property
    def waiting(self) -> bool:
        """Whether there is something left to be handed to the connection."""
        return bool(self._waiting)

    def want(self, indexes: Iterable[int] | None, outstanding: int) -> None:
        """Send these chunks, or all. Those that are waiting or under way already are not sent twice for it.

        `outstanding` is how many messages the broker has not acknowledged: of ours at most so many, the last ones.
        """
        self._trim(outstanding)
        count = -(-self.ref.length // self.ref.chunk_bytes)
        for index in range(count) if indexes is None else indexes:
            if index < count and index not in self._under_way:
                self._waiting.setdefault(index)

    def take(self, outstanding: int) -> Chunk | None:
        """The next chunk to hand to the connection; None while enough is under way.

        The window doubles whenever all of it is found acknowledged: a link that carries it between two looks carries
        more.
        """
        if not self._waiting or outstanding >= self._window:
            return None
        if outstanding == 0 and self._under_way:
            self._window = min(2 * self._window, WINDOW_MOST)
        self._trim(outstanding)
        index = next(iter(self._waiting))
        del self._waiting[index]
        self._under_way.append(index)
        (chunk,) = chunks(self._payload, self.ref, (index,))
        return chunk

    def interrupt(self) -> None:
        """The connection is gone: the other end will say what it lacks."""
        self._waiting.clear()
        self._under_way.clear()
        self._window = WINDOW_FIRST

    def _trim(self, outstanding: int) -> None:
        while len(self._under_way) > outstanding:
            self._under_way.popleft()
