"""The dashboard's process: it looks whether the ledger has changed, keeps what pages show, and serves it.

It is a process of its own beside the coordinator, and knows it only by the ledger's file, which any process may read
while another writes (SQLite's WAL). So a report of seconds, a browser that asks too much, or a fault here never takes a
millisecond of the coordinator's loop, nor its memory, nor its keys.

Rules it keeps:

- Whether the file has changed is asked `LOOKS_A_SECOND` times (`PRAGMA data_version`, which reads no page). What a
  round came to is told at once from its own rows; the report is made anew behind it.
- A report is made only while somebody looks, never two at a time for one task, and after each it rests five times as
  long as it took: a large ledger costs a sixth of one core at most.
- What is slow or too much is hung up on: see `_Patient`.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import uvicorn
from fedmq_protocol.secrets import open_secret
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedmq_coordinator.audit import AUDIT_FILE, AuditLog
from fedmq_coordinator.ledger import Ledger, LedgerError
from fedmq_coordinator.settings import HttpSettings, is_loopback
from fedmq_coordinator.web.access import Sessions, Tokens
from fedmq_coordinator.web.app import MAX_HEAD_BYTES, Gate, Kept, make_app
from fedmq_coordinator.web.machines import give_verdict
from fedmq_coordinator.web.views import MissingError, RoundEvent, round_event, snapshot

__all__ = ["Dashboard", "Watcher", "bind"]

log = logging.getLogger("fedmq.dashboard")

T = TypeVar("T")

LOOKS_A_SECOND = 4
REST = 5.0
"""Times as long as a report took that none is made after it."""
LEAST_REST_SECONDS = 0.5
WATCHED_SECONDS = 120.0
"""Since it was last asked for that a task's report is kept up to date."""
RETRY_SECONDS = 2.0
"""Between two looks at a ledger that cannot be read."""

LATEST = 8
"""Newest rounds that are looked at for one that has opened, closed, or got its metric."""

MAX_READERS = 4
MAX_STREAMS = 64
MAX_EVENTS = 64
"""Waiting for one page; a page that takes them no faster is hung up on, and asks anew."""

MAX_CONNECTIONS = 192
REQUEST_SECONDS = 10.0
"""To say what is wanted, head and all."""
KEEP_ALIVE_SECONDS = 15
SHUTDOWN_SECONDS = 3


class Watcher:
    """The ledger, looked at from beside. Made for one event loop."""

    def __init__(
        self,
        ledger: Path,
        *,
        audit: AuditLog | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = ledger
        self._audit = audit or AuditLog(ledger.with_name(AUDIT_FILE))
        self._clock = clock
        self._monotonic = monotonic
        self._start = os.urandom(4).hex()
        self._made = 0
        self._trouble = ""
        self._changes = 1
        self._changed = asyncio.Event()
        self._kept: dict[str | None, tuple[Kept, int, float]] = {}
        """By task as it was asked for: what is kept, the count of changes it has seen, and when another may be made."""
        self._asked: dict[str | None, float] = {}
        self._locks: dict[str | None, asyncio.Lock] = {}
        self._readers = asyncio.Semaphore(MAX_READERS)
        self._streams: set[asyncio.Queue[bytes | None]] = set()
        self._rounds: dict[int, RoundEvent] = {}
        self._looking = ThreadPoolExecutor(1, "look")
        self._open: Ledger | None = None

    @property
    def trouble(self) -> str:
        return self._trouble

    def now(self) -> float:
        return self._clock()

    # -- looking -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        making = asyncio.create_task(self._make())
        try:
            while True:
                before = self._trouble
                try:
                    events = await loop.run_in_executor(self._looking, self._look)
                except LedgerError as error:
                    self._trouble = str(error)
                    if self._trouble != before:
                        log.warning("%s", error)
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                self._trouble = ""
                if events is not None:
                    self._changes += 1
                    self._changed.set()
                    for event in events:
                        self._tell("round", event)
                await asyncio.sleep(1 / LOOKS_A_SECOND)
        finally:
            making.cancel()
            self._looking.shutdown(wait=False)

    def _look(self) -> list[RoundEvent] | None:
        """In a thread of its own: rounds of which there is news; None where nothing has changed. Raises LedgerError."""
        try:
            if self._open is None:
                self._open = Ledger(self._path, read_only=True)
            if not self._open.touched():
                return None
            with self._open.snapshot():
                found = {
                    row.id: round_event(row, self._open.task_of_round(row.id) or "", self._open)
                    for row in self._open.rounds(last=LATEST)
                }
        except LedgerError:
            if self._open is not None:
                self._open.close()
                self._open = None
            raise
        # At the first look all of it is news, to whoever has listened since before it.
        news = [event for number, event in found.items() if event != self._rounds.get(number)]
        self._rounds = found
        return news

    # -- what is kept ------------------------------------------------------------------------------------------

    async def kept(self, task: str | None) -> Kept:
        if task not in self._kept and task is not None and not await self.read(lambda ledger: _has(ledger, task)):
            # Before anything is kept of it: names from outside shall not fill the memory.
            raise MissingError(f"there is no task {task!r}")
        self._asked[task] = self._monotonic()
        lock = self._locks.setdefault(task, asyncio.Lock())
        found = self._kept.get(task)
        if found is not None and (found[1] == self._changes or self._monotonic() < found[2] or lock.locked()):
            return found[0]
        async with lock:
            found = self._kept.get(task)
            if found is not None and found[1] == self._changes:
                return found[0]
            return await self._remake(task)

    async def _remake(self, task: str | None) -> Kept:
        seen, began = self._changes, self._monotonic()
        found = await self.read(lambda ledger: snapshot(ledger, task, self._clock()))
        overview, fleet = await asyncio.to_thread(lambda: (_packed(found.overview), _packed(found.fleet)))
        self._made += 1
        kept = Kept(snapshot=found, mark=f"{self._start}-{self._made}", overview=overview, fleet=fleet)
        took = self._monotonic() - began
        self._kept[task] = kept, seen, self._monotonic() + max(LEAST_REST_SECONDS, REST * took)
        return kept

    async def _make(self) -> None:
        """Make anew what somebody looks at, and say so."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not self._streams:
                continue
            now = self._monotonic()
            for task in [t for t, at in self._asked.items() if now - at < WATCHED_SECONDS and t in self._kept]:
                rest = self._kept[task][2] - self._monotonic()
                if rest > 0:
                    await asyncio.sleep(rest)
                try:
                    kept = await self.kept(task)
                except LedgerError as error:
                    log.warning("%s", error)
                    continue
                self._tell("fresh", {"task": kept.snapshot.report.task, "mark": kept.mark})

    async def read(self, use: Callable[[Ledger], T]) -> T:
        def reading() -> T:
            with closing(Ledger(self._path, read_only=True)) as ledger:
                return use(ledger)

        async with self._readers:
            return await asyncio.to_thread(reading)

    async def order(self, *, place: str, what: str, fault: str, said_by: str, session: str, with_others: bool) -> None:
        def ordering() -> None:
            with closing(Ledger(self._path, visit=True)) as ledger:
                give_verdict(
                    ledger,
                    self._audit,
                    place=place,
                    what=what,
                    fault=fault,
                    said_by=said_by,
                    session=session,
                    now=self._clock(),
                    with_others=with_others,
                )

        async with self._readers:
            await asyncio.to_thread(ordering)
        # Whoever gave it sees it at once.
        self._changes += 1
        self._kept = {task: (kept, seen, 0.0) for task, (kept, seen, _) in self._kept.items()}

    # -- who listens -------------------------------------------------------------------------------------------

    def listen(self) -> asyncio.Queue[bytes | None] | None:
        if len(self._streams) >= MAX_STREAMS:
            return None
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_EVENTS)
        self._streams.add(queue)
        for event in self._rounds.values():
            queue.put_nowait(_event("round", event))
        return queue

    def leave(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._streams.discard(queue)

    def end(self) -> None:
        """Nothing more comes: every stream ends."""
        for queue in list(self._streams):
            _end(queue)

    def _tell(self, kind: str, value: object) -> None:
        said = _event(kind, value)
        for queue in list(self._streams):
            try:
                queue.put_nowait(said)
            except asyncio.QueueFull:
                self._streams.discard(queue)
                _end(queue)


def _has(ledger: Ledger, task: str) -> bool:
    return any(row.name == task for row in ledger.tasks())


def _end(queue: asyncio.Queue[bytes | None]) -> None:
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)


def _event(kind: str, value: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode(value))


def _packed(value: object) -> bytes:
    return gzip.compress(msgspec.json.encode(value), compresslevel=5, mtime=0)


# -- serving ---------------------------------------------------------------------------------------------------


class _Patient(H11Protocol):
    """Hangs up on who takes too long to say what is wanted, and on whoever comes when there are too many.

    uvicorn bounds a head's bytes and the rest between two requests, but not how slowly the bytes come.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_more()
        elif self._waiting is None:
            self._wait()

    def on_response_complete(self) -> None:
        self._wait_no_more()
        super().on_response_complete()

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Server(uvicorn.Server):
    """Streams of events end before it waits for connections to."""

    def __init__(self, config: uvicorn.Config, watcher: Watcher) -> None:
        super().__init__(config)
        self._watcher = watcher

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._watcher.end()
        await super().shutdown(sockets)


class Dashboard:
    """One dashboard of one ledger. Raises ValueError for tokens or a certificate that cannot be used."""

    def __init__(self, ledger: Path, settings: HttpSettings) -> None:
        tokens = Tokens.read(settings.token_file, settings.operator_token_file)
        host, _ = settings.address or ("127.0.0.1", 0)
        self._watcher = Watcher(ledger)
        self._gate = Gate(
            tokens=tokens,
            sessions=Sessions(os.urandom),
            loopback=is_loopback(host),
            behind_proxy=settings.behind_proxy,
            secure=settings.certificate_file is not None or settings.behind_proxy,
            clock=time.time,
        )
        self._settings = settings
        self._app = make_app(self._watcher, self._gate, lifespan=self._living)
        if not self._gate.loopback and not self._gate.secure:
            log.warning(
                "the dashboard speaks plain HTTP on %s: whoever reads the network reads the token. Name a"
                " certificate_file, or put a proxy in front that speaks HTTPS",
                settings.listen,
            )

    @asynccontextmanager
    async def _living(self, app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watcher.run())
        try:
            yield
        finally:
            watching.cancel()

    def serve(self, listener: socket.socket, *, with_parent: int | None = None) -> None:
        """Until SIGTERM or SIGINT; with `with_parent`, a pipe's end, also until its other end is closed."""
        config = uvicorn.Config(
            self._app,
            http=_Patient,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        config.load()
        # Invalid requests are told to who sends them: the log is for the plant's own trouble.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        with self._certificate() as context:
            config.ssl = context
            server = _Server(config, self._watcher)
            asyncio.run(_serve(server, listener, with_parent))

    @contextmanager
    def _certificate(self) -> Iterator[ssl.SSLContext | None]:
        """Raises ValueError."""
        certificate, key = self._settings.certificate_file, self._settings.key_file
        if certificate is None or key is None:
            yield None
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with open_secret(key) as file:
            try:
                context.load_cert_chain(certificate, f"/proc/self/fd/{file}")
            except (OSError, ssl.SSLError) as error:
                raise ValueError(f"http.certificate_file: cannot use {certificate} with {key}: {error}") from error
        yield context


async def _serve(server: _Server, listener: socket.socket, with_parent: int | None) -> None:
    if with_parent is not None:
        # A pipe that nobody writes to: it can be read when it is at its end, and that is when the other process is.
        asyncio.get_running_loop().add_reader(with_parent, _leave, server, with_parent)
    await server.serve(sockets=[listener])


def _leave(server: _Server, pipe: int) -> None:
    asyncio.get_running_loop().remove_reader(pipe)
    server.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError for an address that cannot be had."""
    try:
        ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"http.listen: cannot listen on {host}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and sys.platform == "linux":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise ValueError(f"http.listen: cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener
